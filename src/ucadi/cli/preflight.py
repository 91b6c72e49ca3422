# SPDX-License-Identifier: Apache-2.0
"""`ucadi site preflight`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucadi.cli.output import print_json
from ucadi.errors import ExitStatus

if TYPE_CHECKING:
    from ucadi.workflows.preflight_checks import Line

__all__ = ["preflight"]

_COLORS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}
_WIDTH = 24
"""Of the column of names."""


def preflight(
    home: Annotated[Path, typer.Option("--home", envvar="UCADI_HOME", help="The site's home.")] = Path(
        "ucadi-site"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")] = False,
) -> None:
    """Look at all that could keep this site from taking part; exit status 1 when something would."""
    from ucadi.workflows.preflight import run_preflight

    result = run_preflight(home, (lambda line: None) if as_json else _print_line)
    if as_json:
        print_json(result.to_json())
    else:
        counts = result.to_json()["counts"]
        typer.echo(", ".join(f"{count} {state}" for state, count in counts.items()))
    if not result.is_fine:
        raise typer.Exit(ExitStatus.FAILED)


def _print_line(line: "Line") -> None:
    """Print one line, and the cure below it."""
    state = typer.style(f"{line.state:<8}", fg=_COLORS[line.state])
    typer.echo(f"{state} {line.name:<{_WIDTH}} {line.found}")
    if line.cure:
        typer.echo(f"{'':<8} {'':<{_WIDTH}} -> {line.cure}")
