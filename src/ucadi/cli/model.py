# SPDX-License-Identifier: Apache-2.0
"""`ucadi model`: release, promote, check and fetch models, and see how they do at each site."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ucadi.cli.output import check_new_file, console_error, print_json

if TYPE_CHECKING:
    from ucadi.workflows.release_files import Statement

__all__ = ["model"]

model = typer.Typer(
    help="Released models: freeze, sign, promote, roll back; fetch and check.", no_args_is_help=True
)

_COORDINATOR = Path("ucadi-coordinator")
_SITE = Path("ucadi-site")

Home = Annotated[Path, typer.Option("--home", envvar="UCADI_HOME", help="The coordinator's home.")]
AnyHome = Annotated[
    Path | None,
    typer.Option("--home", envvar="UCADI_HOME", help="A coordinator's or a site's home.", show_default=False),
]
SiteFolder = Annotated[Path, typer.Option("--home", envvar="UCADI_HOME", help="The site's home.")]
Name = Annotated[str, typer.Argument(help="The release's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]

_HASH_SHOWN = 12


@model.command()
def release(
    runs: Annotated[list[str], typer.Argument(help="One run for each network that the release is to have.")],
    name: Annotated[str, typer.Option(help="The release's name; never given twice.")],
    rounds: Annotated[
        list[str], typer.Option("--round", help="best, last or a number; once, or once for each run.")
    ] = ["best"],  # noqa: B006 - typer reads it only
    intended_use: Annotated[str, typer.Option(help="For the card: what the model is meant for.")] = "",
    limits: Annotated[
        list[str] | None, typer.Option("--limit", help="What goes wrong; for the card.")
    ] = None,
    licence: Annotated[str, typer.Option(help="For the card: how it may be passed on.")] = "",
    home: Home = _COORDINATOR,
    as_json: Json = False,
) -> None:
    """Freeze models of runs as a release with a card, signed by the coordinator."""
    from ucadi.workflows.coordinator_home import CoordinatorHome
    from ucadi.workflows.release_card import CardWords
    from ucadi.workflows.releases import release_models

    usual = CardWords()
    words = CardWords(intended_use or usual.intended_use, tuple(limits or ()), licence)
    statement = release_models(CoordinatorHome.open(home), name, runs, rounds, words)
    _print_statement(statement, as_json=as_json)
    if not as_json:
        typer.echo(f"Read its card (ucadi model card {name}), then: ucadi model promote {name}")


@model.command("list")
def list_(home: AnyHome = None, as_json: Json = False) -> None:
    """List the releases of a coordinator, or those that a site has installed."""
    listing = _listing(_place(home))
    if as_json:
        print_json(listing)
        return
    for entry in listing["releases"]:
        mark = "*" if entry["name"] == listing["current"] else " "
        if entry["fault"]:
            typer.echo(f"{mark} {entry['name']}: {entry['fault']}")
        else:
            size = f"{entry['bytes'] / 1e6:.1f} MB"
            typer.echo(f"{mark} {entry['name']}  {entry['created']}  {entry['hash'][:_HASH_SHOWN]}  {size}")
    if not listing["releases"]:
        typer.echo("no releases")


@model.command()
def show(name: Name, home: Home = _COORDINATOR, as_json: Json = False) -> None:
    """Show what the coordinator signed about a release, and when it was the current one."""
    from ucadi.workflows.coordinator_home import CoordinatorHome
    from ucadi.workflows.releases import open_shelf

    with open_shelf(CoordinatorHome.open(home)) as shelf:
        statement = shelf.statement(name)
        history = [vars(promotion) for promotion in shelf.history() if promotion.name == name]
    if as_json:
        print_json({**_document(statement), "promotions": history})
        return
    _print_statement(statement, as_json=False)
    for file, (sha256, size) in statement.files.items():
        typer.echo(f"  {file}: {size} bytes, {sha256}")
    for entry in history:
        typer.echo(f"  {entry['kind'].replace('_', ' ')} {entry['time']} by {entry['actor']}")


@model.command()
def card(name: Name, home: Home = _COORDINATOR, as_json: Json = False) -> None:
    """Print a release's model card."""
    from ucadi.workflows.coordinator_home import CoordinatorHome
    from ucadi.workflows.release_card import card_markdown
    from ucadi.workflows.releases import open_shelf

    with open_shelf(CoordinatorHome.open(home)) as shelf:
        document = shelf.card(name)
    if as_json:
        print_json(document)
    else:
        typer.echo(card_markdown(document))


@model.command()
def promote(name: Name, home: Home = _COORDINATOR, as_json: Json = False) -> None:
    """Make a release the current one: what sites get when they pull."""
    from ucadi.workflows.coordinator_home import CoordinatorHome
    from ucadi.workflows.releases import open_shelf

    with open_shelf(CoordinatorHome.open(home)) as shelf:
        promotion = shelf.promote(name)
    _print_current(vars(promotion), as_json=as_json)


@model.command()
def rollback(home: Home = _COORDINATOR, as_json: Json = False) -> None:
    """Make the release current that was before the current one."""
    from ucadi.workflows.coordinator_home import CoordinatorHome
    from ucadi.workflows.releases import open_shelf

    with open_shelf(CoordinatorHome.open(home)) as shelf:
        promotion = shelf.rollback()
    _print_current(vars(promotion), as_json=as_json)


@model.command()
def verify(
    release_path: Annotated[Path, typer.Argument(metavar="RELEASE", help="A release's folder or archive.")],
    key: Annotated[str, typer.Option(help="The coordinator's public key, or a file that holds it.")] = "",
    home: AnyHome = None,
    as_json: Json = False,
) -> None:
    """Check a release's signature and every file of it, against --key or the key of --home."""
    from ucadi.workflows.release_files import ArchiveSource, FolderSource, check_release, key_fingerprint

    wanted = _key(key, home)
    source = ArchiveSource(release_path) if release_path.is_file() else FolderSource(release_path)
    statement = check_release(source, wanted)
    if as_json:
        print_json({**_document(statement), "is_signer_checked": wanted is not None})
        return
    typer.echo(f"{statement.name} is complete and unchanged since it was signed.")
    signer = key_fingerprint(statement.public_key)
    if wanted is None:
        console_error().print(
            f"Who signed it was not checked: give --key or --home, or compare {signer} by phone.",
            markup=False,
            highlight=False,
        )
    else:
        typer.echo(f"Signed by the coordinator, {signer}.")


@model.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option("--out", "-o", help="The archive, .zip.")],
    home: Home = _COORDINATOR,
    force: Annotated[bool, typer.Option("--force", help="Replace the archive.")] = False,
    as_json: Json = False,
) -> None:
    """Write a release into one archive, for sites that have no connection."""
    from ucadi.workflows.coordinator_home import CoordinatorHome
    from ucadi.workflows.releases import open_shelf

    check_new_file(out, force=force)
    with open_shelf(CoordinatorHome.open(home)) as shelf:
        statement = shelf.export(name, out)
    if as_json:
        print_json({**_document(statement), "archive": str(out)})
    else:
        typer.echo(f"{name} is in {out}; a site installs it with `ucadi model pull --from {out.name}`")


@model.command()
def pull(
    name: Annotated[str | None, typer.Argument(help="A release; else the current one.")] = None,
    archive: Annotated[
        Path | None, typer.Option("--from", help="An archive of `ucadi model export` instead of the network.")
    ] = None,
    is_used: Annotated[
        bool, typer.Option("--use", help="Point models/current to it, as for the coordinator's current one.")
    ] = False,
    home: SiteFolder = _SITE,
    as_json: Json = False,
) -> None:
    """Fetch a release to a site: checked against the key that the join pinned, all of it or nothing."""
    from ucadi.workflows.release_pull import pull_archive, pull_release
    from ucadi.workflows.site_home import SiteHome

    place = SiteHome.open(home)
    if archive is None:
        statement, folder = pull_release(place, name=name, is_used=is_used)
    elif name is None:
        statement, folder = pull_archive(place, archive, is_used=is_used)
    else:
        raise typer.BadParameter("give a name or --from, not both")
    if as_json:
        print_json({**_document(statement), "folder": str(folder)})
        return
    _print_statement(statement, as_json=False)
    typer.echo(f"Installed; read a scan with it: ucadi predict SCAN --model {folder} -o OUT")


@model.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="The run.")],
    models: Annotated[
        str, typer.Option(help="best, last, own (each site's own best), all, or rounds; comma separated.")
    ] = "best,last,own",
    home: Home = _COORDINATOR,
    as_json: Json = False,
) -> None:
    """Ask the sites how well models of a run do on their own validation studies."""
    from ucadi.workflows.coordinator_home import CoordinatorHome
    from ucadi.workflows.cross_site import request_evaluation
    from ucadi.workflows.kept_models import run_folder

    folder = run_folder(CoordinatorHome.open(home).folder, run)
    candidates = request_evaluation(folder, [word.strip() for word in models.split(",")])
    if as_json:
        print_json({"run_id": run, "models": [vars(candidate) for candidate in candidates]})
        return
    typer.echo(f"Asked for {len(candidates)} models of {run}; see the result with `ucadi model matrix {run}`")


@model.command()
def matrix(
    run: Annotated[str, typer.Argument(help="The run.")], home: Home = _COORDINATOR, as_json: Json = False
) -> None:
    """Show how well models of a run do at each site, as the sites measured it."""
    from ucadi.workflows.coordinator_home import CoordinatorHome
    from ucadi.workflows.cross_site import matrix_document, matrix_markdown, require_matrix
    from ucadi.workflows.kept_models import run_folder

    folder = run_folder(CoordinatorHome.open(home).folder, run)
    found, task = require_matrix(folder)
    if as_json:
        print_json(matrix_document(found, task))
    else:
        typer.echo(matrix_markdown(found, task))


def _place(home: Path | None) -> Path:
    """Return the home that is meant."""
    if home is not None:
        return home
    return _COORDINATOR if _COORDINATOR.is_dir() or not _SITE.is_dir() else _SITE


def _listing(home: Path) -> dict[str, Any]:
    """Return the releases of a home of either kind."""
    if (home / "site.toml").is_file():
        from ucadi.workflows.release_pull import installed_releases
        from ucadi.workflows.site_home import SiteHome

        return installed_releases(SiteHome.open(home))
    from ucadi.workflows.coordinator_home import CoordinatorHome
    from ucadi.workflows.releases import open_shelf

    with open_shelf(CoordinatorHome.open(home)) as shelf:
        return shelf.listing()


def _key(key: str, home: Path | None) -> str | None:
    """Return the key that a release must be signed with; None when nobody named one."""
    if key:
        path = Path(key)
        return path.read_text(encoding="ascii").strip() if path.is_file() else key
    if home is None:
        return None
    if (home / "site.toml").is_file():
        from ucadi.workflows.release_pull import pinned_key
        from ucadi.workflows.site_home import SiteHome

        return pinned_key(SiteHome.open(home))
    from ucadi.workflows.coordinator_home import CoordinatorHome

    return CoordinatorHome.open(home).identity().public_key


def _document(statement: "Statement") -> dict[str, Any]:
    """Return a statement for programs."""
    from ucadi.workflows.release_files import key_fingerprint

    return {
        **statement.signed,
        "hash": statement.hash,
        "public_key": statement.public_key,
        "fingerprint": key_fingerprint(statement.public_key),
    }


def _print_statement(statement: "Statement", *, as_json: bool) -> None:
    """Print what a release is."""
    document = _document(statement)
    if as_json:
        print_json(document)
        return
    parent = statement.parent["name"] if statement.parent else "none"
    typer.echo(f"{statement.name}: model {statement.model_id}, {statement.created}, parent {parent}")
    typer.echo(f"  hash {statement.hash}")
    typer.echo(f"  signed by {document['fingerprint']}")


def _print_current(promotion: dict[str, Any], *, as_json: bool) -> None:
    """Say which release is current now."""
    if as_json:
        print_json(promotion)
    else:
        typer.echo(f"{promotion['name']} is current ({promotion['hash'][:_HASH_SHOWN]})")
