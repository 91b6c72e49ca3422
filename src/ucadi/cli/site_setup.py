# SPDX-License-Identifier: Apache-2.0
"""`ucadi site init`, `join` and `leave`: the commands by which a hospital comes and goes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucadi.cli.output import console_error, print_json

if TYPE_CHECKING:
    from ucadi.workflows.join import Joined

__all__ = ["init", "join", "leave"]

Home = Annotated[Path, typer.Option("--home", envvar="UCADI_HOME", help="The site's home.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]

_HOME = Path("ucadi-site")


def init(
    name: Annotated[
        str, typer.Option("--name", help="The site's name; without one, the invitation gives it.")
    ] = "",
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Make a site's home: its keys, which never leave it, its settings and its policy."""
    from ucadi.workflows.join import init_site

    made = init_site(home, name)
    if as_json:
        print_json({"home": str(made.folder), "name": name})
        return
    typer.echo(f"the site's home is {made.folder}")
    typer.echo(f"Next: name your cohort in {made.settings_file.name}, read {made.policy_file.name},")
    typer.echo("and run ucadi site join INVITATION with the file from the coordinator.")


def join(
    invitation: Annotated[
        Path | None, typer.Argument(help="The coordinator's file; leave it out to go on with a join.")
    ] = None,
    organization: Annotated[
        str, typer.Option("--organization", help="The hospital in words, for the coordinator's list.")
    ] = "",
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Minutes to wait for approval; join again to go on.")
    ] = 0,
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Apply with an invitation; once approved, fetch the certificate and make the engine's files."""
    from ucadi.workflows.join import join as join_federation
    from ucadi.workflows.site_home import SiteHome

    joined = join_federation(
        SiteHome.open(home), invitation, organization=organization, wait_s=wait * 60, on_applied=_show
    )
    if as_json:
        print_json({**vars(joined), "state": str(joined.state)})
        return
    if joined.state == "approved":
        typer.echo(f"{joined.site} is a member of {joined.federation}")
        typer.echo("Next: ucadi site preflight, then ucadi site start.")
    else:
        typer.echo(
            f"{joined.federation} has not approved {joined.site} yet; run ucadi site join again later."
        )


def leave(
    reason: Annotated[str, typer.Option(help="Told to the coordinator.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Leave the federation: nothing more leaves this site. Coming back takes a new invitation."""
    from ucadi.workflows.join import leave as leave_federation
    from ucadi.workflows.site_home import SiteHome

    opened = SiteHome.open(home)
    if not yes and not typer.confirm("Leave? Coming back takes a new invitation.", err=True):
        raise typer.Exit(1)
    is_told = leave_federation(opened, reason)
    if as_json:
        print_json({"state": "left", "coordinator_told": is_told})
        return
    typer.echo("the site has left")
    if not is_told:
        typer.echo("The coordinator could not be told; run ucadi site leave again when it can be reached.")


def _show(joined: "Joined") -> None:
    """Show what is to be read out, while it still can be compared."""
    if joined.state == "approved":
        return
    screen = console_error()
    screen.print(f"{joined.site} has applied to {joined.federation}. Call the coordinator and read to them:")
    screen.print(f"  {joined.fingerprint}", markup=False, highlight=False)
