# SPDX-License-Identifier: Apache-2.0
"""`ucadi coordinator`: make a federation, invite and approve sites, serve."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ucadi.cli.output import console_error, print_json

if TYPE_CHECKING:
    from ucadi.workflows.coordinator_home import CoordinatorHome

__all__ = ["coordinator"]

coordinator = typer.Typer(
    help="The coordinator's side: make a federation, invite sites, serve.", no_args_is_help=True
)

Home = Annotated[Path, typer.Option("--home", envvar="UCADI_HOME", help="The coordinator's home.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Site = Annotated[str, typer.Argument(help="The site's name.")]

_HOME = Path("ucadi-coordinator")
_MOST_DAYS = 90


@coordinator.command()
def init(
    name: Annotated[str, typer.Option("--name", help="The federation's name: letters, digits, - and _.")],
    host: Annotated[str, typer.Option("--host", help="Where the sites reach this machine.")],
    port: Annotated[int, typer.Option("--port", help="For the rounds' messages.")] = 8102,
    api_port: Annotated[int, typer.Option("--api-port", help="For enrolment and releases.")] = 8103,
    database: Annotated[
        str, typer.Option("--database", help="URL; without one, a SQLite file in the home.")
    ] = "",
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Make a coordinator's home: its keys, the federation's authority, the engine's files."""
    from ucadi.workflows.coordinator_home import init_coordinator, settings_from

    settings = settings_from(name=name, host=host, port=port, api_port=api_port, database=database)
    made = init_coordinator(home, settings)
    if as_json:
        print_json({"home": str(made.folder), "name": name, "host": host, "port": port, "api_port": api_port})
        return
    typer.echo(f"{name} is ready in {made.folder}")
    typer.echo(f"Keep a copy of {made.keys} in a safe place: without it nobody can be admitted any more.")
    typer.echo("Next: ucadi coordinator serve, and ucadi coordinator invite SITE for each site.")


@coordinator.command()
def serve(home: Home = _HOME) -> None:
    """Answer sites and run what was submitted, until stopped."""
    opened = _open(home)
    from ucadi.workflows.serve import serve as serve_coordinator  # takes seconds to load

    screen = console_error()
    serve_coordinator(opened, lambda words: screen.print(words, markup=False, highlight=False))


@coordinator.command()
def invite(
    site: Site,
    days: Annotated[float, typer.Option(min=0.01, max=_MOST_DAYS, help="How long it can be used.")] = 7.0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; without one, SITE.invitation.json.")
    ] = None,
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Write an invitation, with which one site joins once. Hand it over by a way that only they read."""
    from ucadi.workflows.membership import invite as invite_site

    file = out or Path(f"{site}.invitation.json")
    document = invite_site(_open(home), site, days, file)
    if as_json:
        print_json({"site": site, "file": str(file), "id": document["id"], "expires": document["expires"]})
        return
    typer.echo(f"{file} invites {site} until {_when(float(document['expires']))}")


@coordinator.command()
def sites(home: Home = _HOME, as_json: Json = False) -> None:
    """List all sites: state, since when, and when they were last heard of."""
    from ucadi.workflows.membership import list_sites, member_document

    members = list_sites(_open(home))
    if as_json:
        print_json({"sites": [member_document(member) for member in members]})
        return
    if not members:
        typer.echo("no site has been invited yet")
        return
    rows = [("site", "state", "since", "last seen", "organization")]
    rows += [_row(member_document(member)) for member in members]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


@coordinator.command()
def approve(
    site: Site,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: the fingerprint was compared.")] = False,
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Admit a site that applied, after its people read the same fingerprint by phone."""
    from ucadi.workflows.membership import approve as approve_site
    from ucadi.workflows.membership import look_at, member_document

    opened = _open(home)
    candidate = look_at(opened, site)
    said = candidate.member.organization
    screen = console_error()
    screen.print(f"{site}{f' ({said})' if said else ''} shows:", markup=False, highlight=False)
    screen.print(f"  {candidate.fingerprint}", markup=False, highlight=False)
    if not yes and not typer.confirm("Do its people read the same digits to you?", err=True):
        screen.print("Not approved. If the digits differ, revoke the site and invite it again.")
        raise typer.Exit(1)
    member = approve_site(opened, candidate)
    if as_json:
        print_json({**member_document(member), "fingerprint": candidate.fingerprint})
        return
    typer.echo(f"{site} is approved and takes part from the next round on")


@coordinator.command()
def revoke(
    site: Site,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "",
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """End a site's membership, application or invitation; it is in no round after the running one."""
    from ucadi.workflows.membership import member_document
    from ucadi.workflows.membership import revoke as revoke_site

    member = revoke_site(_open(home), site, reason)
    if as_json:
        print_json(member_document(member))
        return
    typer.echo(f"{site} is revoked")


@coordinator.command()
def audit(
    verify: Annotated[bool, typer.Option("--verify", help="Check the chain of hashes.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only entries after this number.")] = 0,
    home: Home = _HOME,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per entry.")] = False,
) -> None:
    """Show who did what when; with --verify, check first that nothing was changed or taken out."""
    from ucadi.workflows.membership import audit_entries, verify_audit

    opened = _open(home)
    count = verify_audit(opened) if verify else None
    if verify and as_json:
        print_json({"verified": count})
        return
    for entry in audit_entries(opened, after):
        if as_json:
            typer.echo(json.dumps(vars(entry)))
        else:
            details = " ".join(f"{key}={value}" for key, value in entry.details.items())
            typer.echo(
                f"{entry.seq:>6}  {entry.time}  {entry.actor}  {entry.action}  {entry.subject}  {details}"
            )
    if count is not None:
        typer.echo(f"{count} entries, none changed")


def _open(home: Path) -> "CoordinatorHome":
    """Return the home."""
    from ucadi.workflows.coordinator_home import CoordinatorHome

    return CoordinatorHome.open(home)


def _row(site: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Return a site's line of the table."""
    seen = _when(site["last_seen"]) if site["last_seen"] else "never"
    return site["name"], site["state"], _when(site["since"]), seen, site["organization"]


def _when(seconds: float) -> str:
    """Return a time as people write it, in the machine's own zone."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
