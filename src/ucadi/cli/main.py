# SPDX-License-Identifier: Apache-2.0
"""The command tree and the one place where errors become messages and exit statuses."""

import errno
import json
import sys
from typing import Annotated

import typer

from ucadi import __version__
from ucadi.cli.cohort import cohort
from ucadi.cli.coordinator import coordinator
from ucadi.cli.demo import demo
from ucadi.cli.dicom import dicom
from ucadi.cli.model import model
from ucadi.cli.output import console_error
from ucadi.cli.phantom import phantom
from ucadi.cli.read import convert, inspect, predict
from ucadi.cli.run import run
from ucadi.cli.site import site
from ucadi.cli.train import simulate, train
from ucadi.errors import CODES, ExitStatus, UcadiError

__all__ = ["app", "main"]

app = typer.Typer(
    name="ucadi",
    help="Hospitals train one chest-CT model together without sharing a scan, and read scans with it.\n\n"
    "Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(demo)
app.command()(inspect)
app.command()(convert)
app.command()(predict)
app.command()(train)
app.command()(simulate)
app.add_typer(phantom, name="phantom")
app.add_typer(cohort, name="cohort")
app.add_typer(dicom, name="dicom")
app.add_typer(coordinator, name="coordinator")
app.add_typer(site, name="site")
app.add_typer(run, name="run")
app.add_typer(model, name="model")

_INTERRUPTED = 130
"""What a shell expects after Ctrl-C."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""A write to an open file fails without the file's name; all else about files names one."""


def _show_version(value: bool) -> bool:
    """Print the version and leave."""
    if value:
        typer.echo(f"ucadi {__version__}")
        raise typer.Exit
    return value


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take options that stand before a command."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status. No input leads to a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(arguments, prog_name="ucadi")
    except UcadiError as error:
        _report(error, as_json="--json" in arguments)
        return int(error.exit_status)
    except SystemExit as left:  # typer's way to end: help, usage errors, a command's own exit status
        status = left.code if isinstance(left.code, int) else int(ExitStatus.OK)
        if status == _INTERRUPTED:
            console_error().print("\nStopped. All processes that this command started have ended.")
        return status
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        code = "disk-full" if error.errno in _DISK_ERRORS else "file-error"
        refused = UcadiError(code, f"Cannot read or write{where}: {error.strerror or error}.")
        _report(refused, as_json="--json" in arguments)
        return int(refused.exit_status)
    return int(ExitStatus.OK)


def _report(error: UcadiError, *, as_json: bool) -> None:
    """Say what happened and how to mend it: on stderr for people, on stdout as one object for programs.

    The object may travel, so it holds the code's public sentence and no path.
    """
    if as_json:
        cure = CODES[error.code].cure
        typer.echo(json.dumps({"code": error.code, "reason": error.public_message, "cure": cure}))
    screen = console_error()
    screen.print(f"[bold red]Error[/] ({error.code}): ", end="")
    screen.print(error.detail, markup=False, highlight=False)
    screen.print(f"  {error.cure}", markup=False, highlight=False)
