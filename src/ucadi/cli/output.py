# SPDX-License-Identifier: Apache-2.0
"""Where results and messages go: results to stdout, all else to stderr."""

import json
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from ucadi.errors import ConfigError

__all__ = ["check_free", "check_new_file", "claim_folder", "console_error", "mark_folder", "print_json"]


@cache
def console_error() -> Console:
    """Return the console for progress and messages."""
    return Console(stderr=True, soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON object to stdout."""
    typer.echo(json.dumps(document, indent=2, default=str))


_MARKER = ".ucadi"
"""A file that says that a folder was made by ucadi; --force empties no other folder."""


def check_free(folder: Path, *, force: bool | None, inputs: Iterable[Path] = ()) -> None:
    """Make sure that results may be written into a folder: new, empty, or an old result given up.

    Args:
        folder: Where results go; a link is followed.
        force: Whether the user gives up an old result; None when the command has no such option.
        inputs: What the command reads; must not lie in the folder.

    Raises:
        ConfigError: ``output-exists``, saying why.
    """
    real = folder.resolve()
    if any(path.resolve().is_relative_to(real) for path in inputs):
        raise ConfigError(
            "output-exists", f"{folder} holds what this command reads.", cure="Choose another folder."
        )
    if not real.exists() or (real.is_dir() and not any(real.iterdir())):
        return
    if not force or not real.is_dir():
        cure = "Choose another folder." if force is None else None
        raise ConfigError("output-exists", f"{folder} exists and is not empty.", cure=cure)
    if not (real / _MARKER).is_file() or Path.cwd().is_relative_to(real):
        raise ConfigError(
            "output-exists",
            f"{folder} was not made by ucadi, or you are in it, so --force does not empty it.",
            cure="Choose another folder.",
        )


def check_new_file(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Make sure that a result may be written into a file: a new one, or an old one given up.

    Raises:
        ConfigError: ``output-exists``, saying why.
    """
    if any(path.resolve().is_relative_to(source.resolve()) for source in inputs):
        raise ConfigError(
            "output-exists", f"{path} is, or lies in, what this command reads.", cure="Choose another file."
        )
    if path.is_dir() or (path.exists() and not force):
        raise ConfigError("output-exists", f"{path} exists.", cure="Choose another file, or give --force.")


def claim_folder(folder: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Check a folder, empty it of an old result, and mark it as ucadi's.

    Raises:
        ConfigError: As `check_free`.
    """
    check_free(folder, force=force, inputs=inputs)
    if folder.exists():
        for child in folder.resolve().iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
    mark_folder(folder)


def mark_folder(folder: Path) -> None:
    """Make a folder, if it is not there, and mark it as ucadi's."""
    folder.resolve().mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).write_text(
        "This folder holds results of ucadi; --force may empty it.\n", encoding="utf-8"
    )
