# SPDX-License-Identifier: Apache-2.0
"""The files of an input, from a folder, a single file or a zip, with limits against hostile archives.

Names inside an archive are never used as paths and never shown: they may be hostile and may identify a patient.
"""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ucadi.errors import DataError

__all__ = ["MAX_ENTRIES", "MAX_FILE_BYTES", "MAX_RATIO", "MAX_TOTAL_BYTES", "InputFile", "input_files"]

MAX_ENTRIES = 20_000
"""Files in one input; a thin-slice study with all reconstructions has a few thousand."""

MAX_FILE_BYTES = 2 * 2**30
"""One file, unpacked."""

MAX_TOTAL_BYTES = 8 * 2**30
"""All files of an archive, unpacked."""

MAX_RATIO = 200
"""Unpacked over packed bytes of one entry; CT compresses 2 to 4 times, empty slices at most 100 times."""


@dataclass(frozen=True)
class InputFile:
    """One file.

    Attributes:
        read: Returns a fresh seekable stream.
        path: Where it lies when it lies on disk.
    """

    read: Callable[[], BinaryIO]
    path: Path | None = None

    def head(self, count: int) -> bytes:
        """Return the first bytes."""
        with self.read() as stream:
            return stream.read(count)


def input_files(source: Path) -> Iterator[InputFile]:
    """Return all files of a folder (recursive, sorted), of a zip, or the one file.

    Raises:
        DataError: ``input-not-found``, or ``archive-unsafe`` when a limit is passed.
    """
    if not source.exists():
        raise DataError("input-not-found", "There is nothing at the given path.")
    if source.is_dir():
        return _folder_files(source)
    if zipfile.is_zipfile(source):
        return _zip_files(source)
    return iter([_on_disk(source)])


def _on_disk(path: Path) -> InputFile:
    return InputFile(lambda: path.open("rb"), path)


def _folder_files(folder: Path) -> Iterator[InputFile]:
    """Yield regular files; links are not followed."""
    count = 0
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        count += 1
        if count > MAX_ENTRIES:
            raise DataError("archive-unsafe", f"The folder has more than {MAX_ENTRIES} files.")
        yield _on_disk(path)


def _zip_files(path: Path) -> Iterator[InputFile]:
    """Check an archive's directory, then yield its entries."""
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_ENTRIES:
        raise DataError(
            "archive-unsafe", f"The archive has {len(entries)} entries, at most {MAX_ENTRIES} are read."
        )
    total = sum(entry.file_size for entry in entries)
    if total > MAX_TOTAL_BYTES:
        raise DataError("archive-unsafe", f"The archive unpacks to {total / 2**30:.1f} GiB.")
    for entry in entries:
        ratio = entry.file_size / max(entry.compress_size, 1)
        if entry.file_size > MAX_FILE_BYTES or ratio > MAX_RATIO:
            raise DataError(
                "archive-unsafe",
                f"An entry of {entry.compress_size} bytes would unpack to {entry.file_size} bytes.",
            )
        if entry.flag_bits & 0x1:
            raise DataError("archive-unsafe", "The archive is encrypted.", cure="Send it without a password.")
    return (InputFile(_entry_reader(path, entry)) for entry in entries)


def _entry_reader(path: Path, entry: zipfile.ZipInfo) -> Callable[[], BinaryIO]:
    """Return a function that unpacks one entry into memory, never more than its directory says."""

    def read() -> BinaryIO:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(entry) as packed:
                data = packed.read(entry.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
            raise DataError("input-unreadable", "An entry of the archive is damaged.") from error
        if len(data) > entry.file_size:
            raise DataError("archive-unsafe", "An entry is larger than the archive says.")
        return io.BytesIO(data)

    return read
