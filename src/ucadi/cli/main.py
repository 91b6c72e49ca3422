# SPDX-License-Identifier: Apache-2.0
"""The command tree and the one place where errors become messages and exit statuses."""

import errno
import json
import sys
from typing import Annotated

import typer

from ucadi import __version__
from ucadi.cli.demo import demo
from ucadi.cli.output import console_error
from ucadi.cli.phantom import phantom
from ucadi.cli.read import inspect, predict
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
app.command()(predict)
app.command()(train)
app.command()(simulate)
app.add_typer(phantom, name="phantom")

_INTERRUPTED = 130
"""What a shell expects after Ctrl-C."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
        _report(error.code, error.detail, error.cure, as_json="--json" in arguments)
        return int(error.exit_status)
    except SystemExit as left:  # typer's way to end: help, usage errors, a command's own exit status
        status = left.code if isinstance(left.code, int) else int(ExitStatus.OK)
        if status == _INTERRUPTED:
            console_error().print("\nStopped. All processes that this command started have ended.")
        return status
    except OSError as error:
        if error.filename is None and error.errno not in _DISK_ERRORS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        detail = f"Cannot read or write{where}: {error.strerror}."
        _report("disk-full", detail, CODES["disk-full"].cure, as_json="--json" in arguments)
        return int(ExitStatus.FAILED)
    return int(ExitStatus.OK)


def _report(code: str, detail: str, cure: str, *, as_json: bool) -> None:
    """Say what happened and how to mend it: on stderr for people, on stdout as one object for programs."""
    if as_json:
        typer.echo(json.dumps({"code": code, "reason": detail, "cure": cure}))
    screen = console_error()
    screen.print(f"[bold red]Error[/] ({code}): ", end="")
    screen.print(detail, markup=False, highlight=False)
    screen.print(f"  {cure}", markup=False, highlight=False)
