# SPDX-License-Identifier: Apache-2.0
"""Numbers out of a file's stream, plain or compressed, step by step: no header's word is taken for memory."""

import io
import zlib
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped

from ucadi.errors import DataError

__all__ = ["MAX_TRAILING_BYTES", "MAX_VOXELS", "Inflated", "read_numbers", "skip"]

MAX_VOXELS = 2**30
"""1024 slices of 1024x1024. A header that states more is damaged or hostile, not a chest CT."""

MAX_TRAILING_BYTES = 1024
"""Behind a file's numbers: a line's end, or padding to a block of tape. A wrong size leaves more."""

_STEP_NUMBERS = 2**20
_STEP_BYTES = 2**18  # of compressed input, and of what is passed over
_ZLIB_OR_GZIP = 47  # zlib's word for either header, with the largest window


class Inflated(io.RawIOBase):
    """What a zlib or gzip stream holds, forward only, never more at once than asked for.

    Several streams one after the other count as one, as gzip allows. Checksums are verified at the end.

    Raises:
        EOFError: From reading, when the stream is cut short.
        zlib.error: From reading, when it is damaged.
    """

    mode = "rb"
    name = ""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(_ZLIB_OR_GZIP)
        self._waiting = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill a part of a buffer; 0 at the end."""
        while len(buffer):
            piece = self._inflater.decompress(self._waiting, min(len(buffer), _STEP_NUMBERS))
            self._waiting = self._inflater.unconsumed_tail
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)
            if self._inflater.eof:
                if not self._start_next():
                    return 0
            elif not self._waiting:
                self._waiting = self._file.read(_STEP_BYTES)
                if not self._waiting:
                    raise EOFError("the compressed data are cut short")
        return 0

    def _start_next(self) -> bool:
        """Go to the stream behind the one that ended, if there is one; zeros between are padding."""
        rest = self._inflater.unused_data.lstrip(b"\0")
        while not rest:
            chunk = self._file.read(_STEP_BYTES)
            if not chunk:
                return False
            rest = chunk.lstrip(b"\0")
        self._inflater = zlib.decompressobj(_ZLIB_OR_GZIP)
        self._waiting = rest
        return True


def skip(file: BinaryIO, size_bytes: int) -> None:
    """Read on by a number of bytes.

    Raises:
        EOFError: If there are not as many.
    """
    while size_bytes > 0:
        passed = len(file.read(min(size_bytes, _STEP_BYTES)))
        if not passed:
            raise EOFError("the file ends before its data")
        size_bytes -= passed


def read_numbers(
    file: BinaryIO, stored: np.dtype[Any], count: int, slope: float = 1.0, intercept: float = 0.0
) -> Shaped[np.ndarray, " count"]:
    """Read all numbers that follow in a file: int16 when they are whole and fit, else float32.

    Memory is taken for the result and one step, and touched only as numbers arrive.

    Args:
        file: Where the numbers begin; they must end with the file.
        stored: Their type in the file, with its byte order: an integer or float.
        count: How many the header states, at most `MAX_VOXELS`.
        slope: Each number times this ...
        intercept: ... plus this is returned.

    Raises:
        EOFError: If there are fewer.
        DataError: ``input-unreadable`` when there are more; ``ct-not-hu`` for NaN and infinite values.
    """
    numbers: np.ndarray = np.empty(count, np.int16)
    broken = 0
    for start in range(0, count, _STEP_NUMBERS):
        part: np.ndarray = np.empty(min(_STEP_NUMBERS, count - start), stored)
        _fill(file, part.data.cast("B"))
        values = part if (slope, intercept) == (1.0, 0.0) else part * np.float64(slope) + intercept
        if numbers.dtype == np.int16 and not _fits_int16(values):
            wide = np.empty(count, np.float32)
            wide[:start] = numbers[:start]
            numbers = wide
        with np.errstate(over="ignore"):
            numbers[start : start + part.size] = values
        broken += part.size - int(np.count_nonzero(np.isfinite(numbers[start : start + part.size])))
    if len(file.read(MAX_TRAILING_BYTES + 1)) > MAX_TRAILING_BYTES:
        raise DataError("input-unreadable", "The file holds more data than its header states.")
    if broken:
        raise DataError("ct-not-hu", f"{broken} of {count} values are NaN or infinite.")
    return numbers


def _fill(file: BinaryIO, buffer: memoryview) -> None:
    """Read exactly as many bytes as a buffer has."""
    done = 0
    while done < len(buffer):
        passed = file.readinto(buffer[done:])  # type: ignore[attr-defined]  # every binary file has it
        if not passed:
            raise EOFError("the file ends in the middle of its data")
        done += passed


def _fits_int16(values: Shaped[np.ndarray, " count"]) -> bool:
    """Tell whether all values are whole numbers that int16 holds."""
    bounds = np.iinfo(np.int16)
    if values.dtype.kind == "i" and values.dtype.itemsize <= np.dtype(np.int16).itemsize:
        return True
    if not (values.min() >= bounds.min and values.max() <= bounds.max):  # also when any is NaN
        return False
    return values.dtype.kind in "iu" or bool((values == np.rint(values)).all())
