# SPDX-License-Identifier: Apache-2.0
"""Files of an input, from a folder or a zip archive, each behind a function that opens it.

Names inside an archive are never used as paths: entries are read as streams.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pydicom.errors import BytesLengthException, InvalidDicomError

from ucadi.errors import DataError

__all__ = [
    "MAX_ENTRIES",
    "MAX_ENTRY_BYTES",
    "MAX_RATIO",
    "MAX_TOTAL_BYTES",
    "READ_ERRORS",
    "OpenFile",
    "file_of_path",
    "files_of_folder",
    "files_of_zip",
]

READ_ERRORS = (
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What pydicom, its decoders and zipfile raise on damaged files; to be caught around their calls only."""

OpenFile = Callable[[], BinaryIO]

MAX_ENTRIES = 20_000
"""A study has a few thousand images at most."""

MAX_TOTAL_BYTES = 16 * 2**30
"""Of all entries, expanded."""

MAX_ENTRY_BYTES = 512 * 2**20
"""Of one entry, expanded: 2,000 frames of 512x512, multi-frame."""

MAX_RATIO = 200
"""Expanded over stored: CT images reach 10, blank ones 100; a bomb reaches 1,000."""

_MIN_RATIO_BYTES = 2**20  # small blank entries expand a lot and harm nobody
_IS_ENCRYPTED = 0x1
_BUFFER_BYTES = 2**16


def files_of_folder(folder: Path) -> list[OpenFile]:
    """Return all files under a folder, in the order of their names; links to folders are not followed."""
    paths = sorted(Path(top, name) for top, _, names in os.walk(folder) for name in names)
    return [file_of_path(path) for path in paths if path.is_file()]


def files_of_zip(archive: zipfile.ZipFile) -> list[OpenFile]:
    """Return all files of an archive, without archives inside it.

    Sizes are the directory's, which is safe: zipfile never expands an entry beyond its stated size.

    Raises:
        DataError: ``archive-unsafe`` when an entry is encrypted or a limit is exceeded.
    """
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_ENTRIES:
        raise DataError("archive-unsafe", f"The archive has {len(entries)} entries, more than {MAX_ENTRIES}.")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_TOTAL_BYTES:
        raise DataError(
            "archive-unsafe", f"The archive expands to {total:,} bytes, more than {MAX_TOTAL_BYTES:,}."
        )
    for number, entry in enumerate(entries, start=1):
        _check_entry(number, entry)
    return [_opener_of_entry(archive, entry) for entry in entries]


def _check_entry(number: int, entry: zipfile.ZipInfo) -> None:
    """Refuse an encrypted, too large or too strongly compressed entry."""
    if entry.flag_bits & _IS_ENCRYPTED:
        raise DataError(
            "archive-unsafe",
            f"Entry {number} of the archive is encrypted.",
            cure="Send it without a password.",
        )
    if entry.file_size > MAX_ENTRY_BYTES:
        raise DataError(
            "archive-unsafe",
            f"Entry {number} expands to {entry.file_size:,} bytes, more than {MAX_ENTRY_BYTES:,}.",
        )
    ratio = entry.file_size / max(1, entry.compress_size)
    if entry.file_size > _MIN_RATIO_BYTES and ratio > MAX_RATIO:
        raise DataError(
            "archive-unsafe", f"Entry {number} expands {ratio:.0f} times, more than {MAX_RATIO} times."
        )


def file_of_path(path: Path) -> OpenFile:
    """Return one file on disk."""
    return lambda: path.open("rb")


def _opener_of_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> OpenFile:
    # Buffered: the DICOM reader seeks back by a few bytes, which a bare entry answers by starting over.
    return lambda: io.BufferedReader(archive.open(entry), _BUFFER_BYTES)  # type: ignore[type-var]
