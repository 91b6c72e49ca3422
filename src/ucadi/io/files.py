# SPDX-License-Identifier: Apache-2.0
"""Files of an input, from a folder or a zip archive, each behind a function that opens it.

What the user names is trusted to be what is meant, and may be a link. What lies inside is not: names inside
an archive are never used as paths (entries are read as streams, and archives inside an archive are not
opened), links are not followed, and only regular files are read.
"""

import io
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from pydicom.errors import BytesLengthException, InvalidDicomError

from ucadi.errors import DataError

__all__ = [
    "MAX_DIRECTORY_BYTES",
    "MAX_ENTRIES",
    "MAX_ENTRY_BYTES",
    "MAX_RATIO",
    "MAX_TOTAL_BYTES",
    "READ_ERRORS",
    "OpenFile",
    "file_of_path",
    "files_of_folder",
    "open_zip",
    "opener",
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
"""Files and folders in an archive or a folder; a study has a few thousand images at most."""

MAX_DIRECTORY_BYTES = 16 * 2**20
"""Of an archive's list of entries: 800 bytes for each of the most entries."""

MAX_TOTAL_BYTES = 16 * 2**30
"""Of all entries, expanded."""

MAX_ENTRY_BYTES = 2 * 2**30
"""Of one entry, expanded: 4,000 frames of 512x512 in a multi-frame file."""

MAX_RATIO = 200
"""Expanded over stored: CT images reach 10, blank ones 100; a bomb reaches 1,000."""

_MIN_RATIO_BYTES = 2**20  # small blank entries expand a lot and harm nobody
_IS_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile expands bzip2 and LZMA without a limit
_LOCAL_HEADER_BYTES = 30  # of an entry, before its name
_BUFFER_BYTES = 2**16
_REGULAR_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe must not block
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def opener(source: Path | OpenFile) -> OpenFile:
    """Return a function that opens a file, from a path or such a function."""
    return file_of_path(source) if isinstance(source, Path) else source


def file_of_path(path: Path) -> OpenFile:
    """Return one file that the user named; opening anything but a regular file raises OSError."""
    return partial(_open_regular, path, 0)


def files_of_folder(folder: Path) -> list[OpenFile]:
    """Return all regular files under a folder, in the order of their paths.

    The folder itself may be a link. Inside, links are not followed: one to a file or folder inside is passed
    over, since its target is found anyway, and so are pipes, sockets and devices.

    Raises:
        DataError: ``input-links`` when a link leads out of the folder or nowhere; ``input-too-costly`` when
            there are more than `MAX_ENTRIES` files and folders; ``input-unreadable`` when a folder inside
            cannot be listed.
    """
    root = os.path.realpath(folder)
    paths: list[str] = []
    pending, entries, links = [root], 0, 0
    while pending:
        for entry in _list(pending.pop()):
            entries += 1
            if entries > MAX_ENTRIES:
                raise DataError(
                    "input-too-costly", f"The folder holds more than {MAX_ENTRIES} files and folders."
                )
            if entry.is_symlink():
                links += not _is_inside(root, entry.path)
            elif entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                paths.append(entry.path)
    if links:
        raise DataError("input-links", f"{links} links in the folder lead out of it, or nowhere.")
    return [partial(_open_regular, path, _NO_LINK) for path in sorted(paths)]


@contextmanager
def open_zip(path: Path) -> Iterator[list[OpenFile]]:
    """Open a zip archive and give all its files, without archives inside it.

    Raises:
        DataError: ``input-unreadable`` when it is damaged; ``archive-unsafe`` when a limit is exceeded,
            entries overlap, or one is encrypted or compressed otherwise than by deflate.
    """
    try:
        file = _ArchiveFile(_open_regular(path, 0))
        try:
            archive = zipfile.ZipFile(file)
        except BaseException:
            file.close()
            raise
    except READ_ERRORS as error:
        raise DataError("input-unreadable", "The zip archive is damaged or cut short.") from error
    with file, archive:
        file.most_at_once = sys.maxsize
        yield _files_of(archive)


def _files_of(archive: zipfile.ZipFile) -> list[OpenFile]:
    """Return all files of an archive whose list of entries is within the limits; links are passed over.

    Sizes are the list's, which is safe: zipfile never expands an entry beyond its stated size, and raises
    when an entry is shorter or its checksum differs.
    """
    entries = [entry for entry in archive.infolist() if _is_regular(entry)]
    if len(archive.infolist()) > MAX_ENTRIES:
        raise DataError(
            "archive-unsafe", f"The archive has {len(archive.infolist())} entries, more than {MAX_ENTRIES}."
        )
    total = sum(entry.file_size for entry in entries)
    if total > MAX_TOTAL_BYTES:
        raise DataError(
            "archive-unsafe", f"The archive expands to {total:,} bytes, more than {MAX_TOTAL_BYTES:,}."
        )
    for number, entry in enumerate(entries, start=1):
        _check_entry(number, entry)
    _check_places(archive.infolist())
    return [_opener_of_entry(archive, entry) for entry in entries]


class _ArchiveFile(io.BufferedReader):
    """An archive on disk whose list of entries is read only when it is not huge.

    zipfile takes in the whole list in one read, of a size that the archive states, and makes an object of
    several hundred bytes for every 46 bytes of it.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)  # type: ignore[arg-type]  # a buffered file is a raw one to its reader
        self.most_at_once = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file does, but not more at once than allowed."""
        if size is not None and size > self.most_at_once:
            raise zipfile.BadZipFile("the list of entries is too long")
        return super().read(size)


def _list(folder: str) -> list["os.DirEntry[str]"]:
    """List a folder, of which not more is taken in than the limit needs."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found.append(entry)
                if len(found) > MAX_ENTRIES:
                    break
    except OSError as error:
        raise DataError(
            "input-unreadable",
            f"A folder in the input cannot be listed ({type(error).__name__}).",
            cure="Check that you may read all folders in it.",
        ) from error
    return found


def _is_inside(root: str, path: str) -> bool:
    """Tell whether a link leads to something that exists inside a folder."""
    target = os.path.realpath(path)
    return Path(target).exists() and Path(target).is_relative_to(root)


def _is_regular(entry: zipfile.ZipInfo) -> bool:
    """Tell whether an entry is a plain file; archives made elsewhere than on Unix state no kind."""
    is_folder = entry.filename.endswith("/")  # zipfile's own test fails on an empty name
    return not is_folder and stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)


def _check_entry(number: int, entry: zipfile.ZipInfo) -> None:
    """Refuse an encrypted, too large, too strongly or strangely compressed entry."""
    if entry.flag_bits & _IS_ENCRYPTED:
        raise DataError(
            "archive-unsafe",
            f"Entry {number} of the archive is encrypted.",
            cure="Send it without a password.",
        )
    if entry.compress_type not in _METHODS:
        raise DataError(
            "archive-unsafe",
            f"Entry {number} of the archive is compressed by method {entry.compress_type}.",
            cure="Make the archive with ordinary compression (deflate).",
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


def _check_places(entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse entries that share bytes: a small archive could then hold any number of large files."""
    in_order = sorted(entries, key=lambda entry: entry.header_offset)
    for entry, after in pairwise(in_order):
        if entry.header_offset + _LOCAL_HEADER_BYTES + entry.compress_size > after.header_offset:
            raise DataError("archive-unsafe", "Entries of the archive overlap.")


def _open_regular(path: str | Path, flags: int) -> BinaryIO:
    """Open a file, but no pipe, socket or device, which could block or never end."""
    file = open(  # noqa: SIM115 - the caller closes it; the path's own method takes no opener
        path, "rb", opener=lambda name, mode: os.open(name, mode | flags | _REGULAR_FLAGS)
    )
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("not a regular file")
    return file


def _opener_of_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> OpenFile:
    """Return one file of an archive."""

    def open_entry() -> BinaryIO:
        stream = archive.open(entry)
        stream.mode = "rb"  # type: ignore[misc]  # as every other binary file says
        # Buffered: the DICOM reader seeks back by a few bytes, which a bare entry answers by starting over.
        return io.BufferedReader(stream, _BUFFER_BYTES)  # type: ignore[type-var]

    return open_entry
