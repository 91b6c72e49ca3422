# SPDX-License-Identifier: Apache-2.0
"""Where results and messages go: results to stdout, all else to stderr."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from ucadi.errors import ConfigError

__all__ = ["console_error", "print_json", "require_free"]


@cache
def console_error() -> Console:
    """Return the console for progress and messages."""
    return Console(stderr=True, soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON object to stdout."""
    typer.echo(json.dumps(document, indent=2, default=str))


_RESULTS = ("record.json", "summary.json", "plan.json", "manifest.json", "cohort.csv", "phantom.json", "run")
"""What ucadi's result folders hold; --force empties no other folder."""


def require_free(folder: Path, *, force: bool) -> None:
    """Make sure that a result folder may be written: new or empty, or an old result given up by the user.

    Raises:
        ConfigError: If the folder has contents, and ``force`` is not given or they are not ucadi's.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not force or not folder.is_dir():
        raise ConfigError("output-exists", f"{folder} exists and is not empty.")
    if Path.cwd().is_relative_to(folder.resolve()) or not any((folder / name).exists() for name in _RESULTS):
        raise ConfigError(
            "output-exists",
            f"{folder} does not hold results of ucadi, so --force does not empty it.",
            cure="Choose another folder.",
        )
    shutil.rmtree(folder)
