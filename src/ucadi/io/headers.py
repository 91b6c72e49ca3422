# SPDX-License-Identifier: Apache-2.0
"""What decides about one DICOM image, read without its pixels."""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from pydicom import Dataset, dcmread
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)

from ucadi.io.files import OpenFile

__all__ = ["DICOM_MAGIC", "Header", "Plane", "read_header"]

DICOM_MAGIC = (128, b"DICM")
"""Where a DICOM file has its mark, and the mark."""

_SAME_DIRECTION = 0.01  # largest difference of direction cosines within a series; their rounding is 1e-6
_ENHANCED = {str(EnhancedCTImageStorage), str(LegacyConvertedEnhancedCTImageStorage)}
_MAX_SERIES_NUMBER = 99_999  # longer ones hold dates or patients' numbers at some sites
_TAGS = [
    "BurnedInAnnotation",
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "LossyImageCompression",
    "Modality",
    "NumberOfFrames",
    "PixelSpacing",
    "Rows",
    "SOPClassUID",
    "SamplesPerPixel",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SliceThickness",
]


@dataclass(frozen=True, eq=False)
class Plane:
    """Where a slice lies in the patient.

    Attributes:
        position_mm: Center of the first pixel, LPS.
        row: Unit vector along a row (to the next column), LPS.
        column: Unit vector along a column (to the next row), LPS.
        pixel_mm: Spacing in y, x.
    """

    position_mm: Float[np.ndarray, "3"]
    row: Float[np.ndarray, "3"]
    column: Float[np.ndarray, "3"]
    pixel_mm: tuple[float, float]

    @property
    def normal(self) -> Float[np.ndarray, "3"]:
        """Unit vector across the slice, toward the head."""
        cross = np.cross(self.row, self.column)
        return np.asarray(cross / np.linalg.norm(cross) * (1.0 if cross[2] >= 0 else -1.0))

    @property
    def height_mm(self) -> float:
        """Position along the normal."""
        return float(self.position_mm @ self.normal)

    def is_parallel(self, other: "Plane") -> bool:
        """Tell whether both are turned alike, rows and columns too."""
        return bool(
            np.allclose(self.row, other.row, rtol=0, atol=_SAME_DIRECTION)
            and np.allclose(self.column, other.column, rtol=0, atol=_SAME_DIRECTION)
        )


@dataclass(frozen=True)
class Header:
    """One image without its pixels.

    Attributes:
        open: Opens the file.
        series_uid: Stays in memory; reports carry its hash.
        number: SeriesNumber, when it is short enough not to be an identifier.
        modality: Two to four letters, for example CT.
        frames: Number of frames.
        is_enhanced: Whether it is a multi-frame object.
        image_type: Words of ImageType.
        size: Rows and columns; (0, 0) for objects that are no image.
        is_plain: One sample per pixel, and no text burned in.
        is_lossy: Compressed with loss at some time.
        plane: None when position, orientation or pixel spacing is missing or malformed.
        thickness_mm: Nominal thickness of the slice.
    """

    open: OpenFile
    series_uid: str
    number: int | None
    modality: str
    frames: int
    is_enhanced: bool
    image_type: frozenset[str]
    size: tuple[int, int]
    is_plain: bool
    is_lossy: bool
    plane: Plane | None
    thickness_mm: float | None


def read_header(open_file: OpenFile) -> Header | None:
    """Read one file's header; None for a file that is not DICOM, and for a directory of files.

    Raises:
        Exception: One of `ucadi.io.files.READ_ERRORS` when the file is damaged or names no series.
    """
    offset, mark = DICOM_MAGIC
    with open_file() as file:
        if file.read(offset + len(mark))[offset:] != mark:
            return None
        file.seek(0)
        dataset = dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
    if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return None
    number, frames = _number(dataset, "SeriesNumber"), _number(dataset, "NumberOfFrames") or 1.0
    types = dataset.get("ImageType") or ()
    sop_class = str(dataset.get("SOPClassUID", ""))
    return Header(
        open=open_file,
        series_uid=str(dataset.SeriesInstanceUID),
        number=int(number) if number is not None and 0 <= number <= _MAX_SERIES_NUMBER else None,
        modality=_modality(str(dataset.get("Modality") or ""), sop_class),
        frames=max(1, int(frames)),
        is_enhanced=frames > 1 or sop_class in _ENHANCED,
        image_type=frozenset([types] if isinstance(types, str) else map(str, types)),
        size=(int(_number(dataset, "Rows") or 0), int(_number(dataset, "Columns") or 0)),
        is_plain=_number(dataset, "SamplesPerPixel") in (None, 1.0)
        and dataset.get("BurnedInAnnotation") != "YES",
        is_lossy=dataset.get("LossyImageCompression") == "01",
        plane=_plane(dataset),
        thickness_mm=_number(dataset, "SliceThickness"),
    )


def _modality(stated: str, sop_class: str) -> str:
    """Return the modality's code; "unknown" for anything that could be more than a code."""
    if not stated and sop_class == CTImageStorage:
        return "CT"
    return stated if re.fullmatch("[A-Z]{2,4}", stated) else "unknown"


def _plane(dataset: Dataset) -> Plane | None:
    """Return the slice's place, None unless it is complete and the directions are at a right angle."""
    position = _numbers(dataset, "ImagePositionPatient", 3)
    cosines = _numbers(dataset, "ImageOrientationPatient", 6)
    pixel_mm = _numbers(dataset, "PixelSpacing", 2)
    if position is None or cosines is None or pixel_mm is None or pixel_mm.min() <= 0:
        return None
    pair = cosines.reshape(2, 3)
    if not np.allclose(pair @ pair.T, np.eye(2), atol=_SAME_DIRECTION):
        return None
    row, column = pair / np.linalg.norm(pair, axis=1, keepdims=True)
    return Plane(position, row, column, (float(pixel_mm[0]), float(pixel_mm[1])))


def _number(dataset: Dataset, tag: str) -> float | None:
    """Return a tag's finite number, or None when it is missing or malformed."""
    numbers = _numbers(dataset, tag, 1)
    return None if numbers is None else float(numbers[0])


def _numbers(dataset: Dataset, tag: str, count: int) -> Float[np.ndarray, " count"] | None:
    """Return a tag's finite numbers, or None when they are missing, malformed or not as many."""
    try:
        numbers = np.atleast_1d(np.asarray(dataset.get(tag), dtype=np.float64))
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None
