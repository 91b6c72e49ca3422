# SPDX-License-Identifier: Apache-2.0
"""Where an import reads and writes: checks that come before a key is made or a file is read."""

from collections.abc import Iterable
from pathlib import Path

from ucadi.errors import ConfigError
from ucadi.workflows.cohort_convert import STUDIES_FOLDER

__all__ = ["LOCK_FILE", "REPORT_FILE", "check_new_key", "check_output", "check_places"]

REPORT_FILE = "import-report.json"
LOCK_FILE = ".lock"


def check_places(places: Iterable[Path], out: Path, key_file: Path) -> None:
    """Make sure that a cohort and its source are apart, and that the key lies in neither.

    Args:
        places: Files and folders of the source.
        out: The cohort's folder.
        key_file: The site's key.

    Raises:
        ConfigError: ``output-in-input`` if the cohort lies in the source, or the source in the cohort;
            ``key-exposed`` if the key would be shared with one of them.
    """
    real, key = out.resolve(), key_file.resolve()
    folders = [place.resolve() for place in places]
    for folder in folders:
        if real.is_relative_to(folder) or folder.is_relative_to(real):
            raise ConfigError("output-in-input", f"The source and {out} lie in one another.")
    for folder in (real, *folders):
        if key.is_relative_to(folder):
            raise ConfigError(
                "key-exposed",
                f"The key file {key_file} lies in the {'cohort' if folder == real else 'source'}.",
                cure="Keep it in a folder of its own: who has key and cohort can name the patients.",
            )


def check_output(folder: Path) -> None:
    """Make sure that a folder is new, or holds a cohort that was imported.

    Raises:
        ConfigError: ``output-exists``.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError("output-exists", f"{folder} is a file.", cure="Choose another.")
    others = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if others - {LOCK_FILE, STUDIES_FOLDER} and REPORT_FILE not in others:
        raise ConfigError(
            "output-exists", f"{folder} exists and is no imported cohort.", cure="Choose another."
        )


def check_new_key(key_file: Path, out: Path) -> None:
    """Make sure that a new key can be made, and is of use for a cohort.

    Raises:
        ConfigError: ``output-exists`` if there is a key, or a cohort that was made with one;
            ``key-missing`` if there is no folder for it.
    """
    if key_file.exists() or key_file.is_symlink():
        raise ConfigError(
            "output-exists",
            f"{key_file} exists, and a key is never overwritten.",
            cure="Choose another file, or leave out --new-key.",
        )
    if (out / REPORT_FILE).exists():
        raise ConfigError(
            "output-exists",
            f"{out} was made with another key; a new one gives its patients other pseudonyms.",
            cure="Leave out --new-key, or choose another folder.",
        )
    if not key_file.parent.is_dir():
        raise ConfigError(
            "key-missing", f"There is no folder {key_file.parent}.", cure="Make it, or choose another file."
        )
