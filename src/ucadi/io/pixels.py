# SPDX-License-Identifier: Apache-2.0
"""The pixels of DICOM images: stored values, and HU as int16 written straight into a volume's slices.

Use, with headers that have what `Image` asks for::

    elements = read_elements(file, tags_of([...]) | PIXEL_TAGS)   # ucadi.io.elements
    layout = pixel_layout(elements)                               # of ucadi.io.frames; kept in the header

    counts = read_hu(headers, [volume[z] for z in slots])         # DicomError names the place in mm
    stored = read_stored(header)                                  # as in the file, to compare copies
    dataset = read_whole_header(header)                           # all elements but the pixels

Pixels are rescaled where they were read to, so a volume needs no second one beside it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int16, Integer
from pydicom import Dataset, dcmread

from ucadi.errors import DicomError
from ucadi.io.elements import inflated
from ucadi.io.files import READ_ERRORS, OpenFile
from ucadi.io.frames import PIXEL_TAGS, PixelLayout, pixel_layout, plain_file, read_frame

__all__ = [
    "LOWEST_HU",
    "PIXEL_TAGS",
    "Image",
    "PixelCounts",
    "PixelLayout",
    "pixel_layout",
    "read_hu",
    "read_stored",
    "read_whole_header",
]

LOWEST_HU = -1024
"""Nothing is less dense than air at -1000 HU and its noise; lower values are padding."""

_PLAUSIBLE_HU = (-950.0, 4000.0)  # a padding value in here may be a patient's; nothing is replaced then
_MAX_SLOPE, _MAX_INTERCEPT = 100.0, 1e5  # beyond, no CT; within, int32 holds every product of 16 bits
_INT16 = np.iinfo(np.int16)


@runtime_checkable
class Image(Protocol):
    """What is needed of a header to read its pixels; see `ucadi.io.headers.Header`."""

    @property
    def open(self) -> OpenFile:
        """Opens the file."""

    @property
    def frame(self) -> int | None:
        """Index of the frame from 0; None when the file has one image."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def layout(self) -> PixelLayout | None:
        """How the file's pixels are stored; None when that is not known."""

    @property
    def plane(self) -> Any:
        """Where the slice lies, or None; names the place in messages."""

    @property
    def rescale(self) -> tuple[float, float]:
        """Slope and intercept."""

    @property
    def padding(self) -> tuple[int, ...]:
        """Stored values without measurement: none, one, or the ends of a range."""


@dataclass
class PixelCounts:
    """What was met while reading.

    Attributes:
        padding: Number of pixels that were set to `LOWEST_HU`.
        kept_padding: Padding values in HU that lie among tissue, so that nothing was replaced.
    """

    padding: int = 0
    kept_padding: set[float] = field(default_factory=set)


def read_hu(images: Sequence[Image], slices: Sequence[Int16[np.ndarray, "y x"]]) -> PixelCounts:
    """Read images as HU.

    Values are rounded; padding and everything below becomes `LOWEST_HU`; what int16 cannot hold is clipped.

    Args:
        images: Their headers. Frames of one file have the same ``open`` and are read in the file's order,
            since an entry of a zip archive cannot be read backward.
        slices: Where to write each, C-contiguous and of the image's size.

    Raises:
        DicomError: ``dicom-undecodable`` when pixels are damaged, of another size than stated, in a syntax
            that is not read, or without usable rescale.
    """
    counts = PixelCounts()
    files: dict[OpenFile, list[tuple[Image, Int16[np.ndarray, "y x"]]]] = defaultdict(list)
    for image, out in zip(images, slices, strict=True):
        files[image.open].append((image, out))
    for open_file, wanted in files.items():
        wanted.sort(key=lambda pair: pair[0].frame or 0)
        image = wanted[0][0]
        try:
            with open_file() as file:
                plain = plain_file(file, image.layout)
                for image, out in wanted:
                    _rescale(_stored(plain, image, out), out, image, counts)
        except READ_ERRORS as error:
            raise _undecodable(image, error) from error
    return counts


def read_stored(image: Image) -> Integer[np.ndarray, "y x"]:
    """Read one image's values as they are in the file.

    Raises:
        DicomError: ``dicom-undecodable``, as `read_hu`.
    """
    try:
        with image.open() as file:
            return _stored(plain_file(file, image.layout), image, np.empty(image.size, np.int16))
    except READ_ERRORS as error:
        raise _undecodable(image, error) from error


def read_whole_header(image: Image) -> Dataset:
    """Read all elements but the pixels.

    Raises:
        Exception: One of `ucadi.io.files.READ_ERRORS` when the file is damaged.
    """
    with image.open() as file:
        return dcmread(inflated(file), stop_before_pixels=True)


def _undecodable(image: Image, error: BaseException) -> DicomError:
    """Say where pixels cannot be read."""
    place = "an image" if image.plane is None else f"the slice at z = {image.plane.position_mm[2]:.1f} mm"
    return DicomError("dicom-undecodable", f"{place} cannot be decoded ({type(error).__name__}).")


def _stored(file: BinaryIO, image: Image, buffer: Int16[np.ndarray, "y x"]) -> Integer[np.ndarray, "y x"]:
    """Return an image's stored values, if its header says how they are stored."""
    if image.layout is None or image.layout.size != image.size:
        raise ValueError("no gray pixels of the stated size")
    return read_frame(file, image.layout, image.frame or 0, buffer)


def _rescale(
    values: Integer[np.ndarray, "y x"], out: Int16[np.ndarray, "y x"], image: Image, counts: PixelCounts
) -> None:
    """Write HU; ``values`` may lie in the same memory as ``out``."""
    slope, intercept = image.rescale
    if not (0 < abs(slope) <= _MAX_SLOPE and abs(intercept) <= _MAX_INTERCEPT):
        raise ValueError("no usable rescale")
    low, high = int(values.min()), int(values.max())
    is_padding = _padding(values, (low, high), image, counts)
    ends = sorted((slope * low + intercept, slope * high + intercept))
    if not (slope.is_integer() and intercept.is_integer()):
        out[:] = np.clip(np.rint(values * slope + intercept), _INT16.min, _INT16.max)
    elif values.dtype.itemsize == 2 and _INT16.min <= ends[0] and ends[1] <= _INT16.max:
        # What wraps on the way wraps back: only the result has to fit.
        np.multiply(values.view(np.int16), np.int16(slope), out=out)
        np.add(out, np.int16((int(intercept) + 2**15) % 2**16 - 2**15), out=out)
    else:
        out[:] = np.clip(values.astype(np.int64) * int(slope) + int(intercept), _INT16.min, _INT16.max)
    if ends[0] < LOWEST_HU or is_padding is not None:
        is_lowest = out < LOWEST_HU
        if is_padding is not None:
            is_lowest |= is_padding & (out != LOWEST_HU)
        counts.padding += int(np.count_nonzero(is_lowest))
        out[is_lowest] = LOWEST_HU


def _padding(
    values: Integer[np.ndarray, "y x"], ends: tuple[int, int], image: Image, counts: PixelCounts
) -> Bool[np.ndarray, "y x"] | None:
    """Return where a padding value stands that the rescale alone would not bring below `LOWEST_HU`."""
    slope, intercept = image.rescale
    is_padding = None
    for first, last in _padding_ranges(image.padding):
        lowest, highest = sorted((first * slope + intercept, last * slope + intercept))
        if highest >= _PLAUSIBLE_HU[0] and lowest <= _PLAUSIBLE_HU[1]:
            counts.kept_padding.add(lowest)
        elif last >= ends[0] and first <= ends[1] and highest >= LOWEST_HU:
            found = (values >= first) & (values <= last)
            is_padding = found if is_padding is None else is_padding | found
    return is_padding


def _padding_ranges(padding: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return ranges of padding values, also as they are when read with the wrong sign."""
    if not padding:
        return []
    first, last = min(padding), max(padding)
    ranges = [(first, last)]
    # Some writers store the unsigned reading of a signed value, and the other way round.
    if first >= 2**15:
        ranges.append((first - 2**16, last - 2**16))
    elif last < 0:
        ranges.append((first + 2**16, last + 2**16))
    return ranges
