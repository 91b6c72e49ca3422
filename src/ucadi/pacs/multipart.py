# SPDX-License-Identifier: Apache-2.0
"""Multipart messages as DICOMweb uses them (RFC 2387), read and written piece by piece.

An answer is a stranger's: its parts are handed on as they come, so a part of any size needs little memory,
and an answer without its closing line is known to be cut short.
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

__all__ = ["MultipartBody", "TruncatedError", "boundary_of", "read_parts"]

_BLOCK_BYTES = 2**18
_MAX_HEAD_BYTES = 2**16  # of a part, or of what stands before the first one


class TruncatedError(ValueError):
    """A message ended before its closing line."""


class MultipartBody:
    """Files as one multipart/related message. Its length is known beforehand and it can be read again.

    Args:
        paths: DICOM files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._boundary = uuid.uuid4().hex
        self._paths = tuple(paths)
        self._head = f"\r\n--{self._boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._end = f"\r\n--{self._boundary}--\r\n".encode()
        files = sum(path.stat().st_size for path in self._paths)
        self._length = files + len(self._head) * len(self._paths) + len(self._end)

    @property
    def content_type(self) -> str:
        """What the message says of itself."""
        return f'multipart/related; type="application/dicom"; boundary={self._boundary}'

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        for path in self._paths:
            yield self._head
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    yield block
        yield self._end


def boundary_of(content_type: str) -> str:
    """Return the boundary that a content type states; empty for none."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.strip().partition("=")
        if name.strip().lower() == "boundary":
            return value.strip().strip('"')
    return ""


def read_parts(blocks: Iterable[bytes], boundary: str) -> Iterator[Iterator[bytes]]:
    """Yield the parts of a message, each as its own pieces; read one before asking for the next.

    Args:
        blocks: The message as it comes, cut anywhere.
        boundary: As the content type states it.

    Raises:
        TruncatedError: If the message ends before its closing line.
        ValueError: If a part's head is too long.
    """
    source = _Source(blocks, b"\r\n--" + boundary.encode())
    source.discard_part()
    while source.starts_part():
        yield source.read_part()
        source.discard_part()


class _Source:
    """A message of which the part up to the next boundary is read."""

    def __init__(self, blocks: Iterable[bytes], delimiter: bytes) -> None:
        self._blocks = iter(blocks)
        self._buffer = b"\r\n"  # before the message: its first boundary then looks like all others
        self._delimiter = delimiter
        self._in_part = True

    def starts_part(self) -> bool:
        """Return whether a part follows, and step over its head; False at the closing line."""
        while len(self._buffer) < 2:
            self._fill()
        if self._buffer.startswith(b"--"):
            return False
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise ValueError("a part's head is too long")
            self._fill()
        self._buffer = self._buffer[end + 4 :]
        self._in_part = True
        return True

    def read_part(self) -> Iterator[bytes]:
        """Yield the rest of the part, without what may be the beginning of a boundary."""
        while self._in_part:
            end = self._buffer.find(self._delimiter)
            if end >= 0:
                body, self._buffer = self._buffer[:end], self._buffer[end + len(self._delimiter) :]
                self._in_part = False
            else:
                keep = len(self._delimiter) - 1
                body, self._buffer = self._buffer[:-keep], self._buffer[-keep:]
            if body:
                yield body
            if self._in_part:
                self._fill()

    def discard_part(self) -> None:
        """Read what is left of the part."""
        for _ in self.read_part():
            pass

    def _fill(self) -> None:
        """Read on."""
        block = next(self._blocks, None)
        if block is None:
            raise TruncatedError("the message ends before its closing line")
        self._buffer += block
