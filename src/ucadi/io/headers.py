# SPDX-License-Identifier: Apache-2.0
"""What decides about a DICOM image, read without its pixels: one header for each slice or frame."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)

from ucadi.io.elements import Elements, read_elements, tags_of
from ucadi.io.files import OpenFile
from ucadi.io.framing import framed
from ucadi.io.pixels import PIXEL_TAGS, PixelLayout, pixel_layout

__all__ = ["Header", "Plane", "read_headers"]

_SAME_DIRECTION = 0.01  # largest difference of direction cosines within a series; their rounding is 1e-6
_ENHANCED = {str(EnhancedCTImageStorage), str(LegacyConvertedEnhancedCTImageStorage)}
_MAX_SERIES_NUMBER = 99_999  # longer ones hold dates or patients' numbers at some sites
_MAX_FRAMES = 10_000
_FUNCTIONAL = {
    "CTImageFrameTypeSequence",
    "CTReconstructionSequence",
    "FrameContentSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
}
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_WANTED = tags_of(
    [
        "AcquisitionNumber",
        "AcquisitionTime",
        "BurnedInAnnotation",
        "Columns",
        "ConvolutionKernel",
        "FrameOfReferenceUID",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "ImageType",
        "IssuerOfPatientID",
        "LossyImageCompression",
        "Modality",
        "NumberOfFrames",
        "PatientID",
        "PhotometricInterpretation",
        "PixelPaddingRangeLimit",
        "PixelPaddingValue",
        "PixelSpacing",
        "RescaleIntercept",
        "RescaleSlope",
        "RescaleType",
        "Rows",
        "SOPClassUID",
        "SOPInstanceUID",
        "SamplesPerPixel",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SliceThickness",
        "StudyInstanceUID",
        "TemporalPositionIdentifier",
        *_GROUPS,
    ]
)


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
        (a, b, c), (d, e, f) = self.row.tolist(), self.column.tolist()
        across = np.array((b * f - c * e, c * d - a * f, a * e - b * d))
        return across * ((1.0 if across[2] >= 0 else -1.0) / math.sqrt(across @ across))

    @property
    def height_mm(self) -> float:
        """Position along the normal."""
        return float(self.position_mm @ self.normal)

    def is_parallel(self, other: "Plane") -> bool:
        """Tell whether both are turned alike, rows and columns too."""
        if self.row is other.row:  # as in nearly all pairs of one series
            return True
        turned = np.abs([self.row - other.row, self.column - other.column])
        return bool(turned.max() <= _SAME_DIRECTION)


@dataclass(frozen=True, eq=False)
class Header:
    """One image without its pixels: a file's only one, or a frame of a multi-frame file.

    Attributes:
        open: Opens the file.
        frame: Index of the frame from 0; None when the file has one image.
        patient: Hash of the patient's id and its issuer.
        study_uid: Stays in memory, as all UIDs; reports carry hashes.
        series_uid: Of the series.
        instance_uid: Of the file (SOPInstanceUID).
        frame_uid: Of the frame of reference: places with different ones cannot be compared.
        number: SeriesNumber, when it is short enough not to be an identifier.
        modality: Two to four letters, for example CT.
        images: Number of frames that the header stands for; 1 but for multi-frame objects that are no CT.
        image_type: Words of ImageType.
        kernel: Reconstruction kernel; empty when not given.
        acquisition: What may tell acquisitions of one series apart: number, temporal position, time.
        size: Rows and columns; (0, 0) for objects that are no image.
        is_plain: One gray sample per pixel.
        is_burned: Text is burned into the pixels.
        is_lossy: Compressed with loss at some time.
        plane: None when position, orientation or pixel spacing is missing or malformed.
        thickness_mm: Nominal thickness of the slice.
        rescale: Slope and intercept from stored values to HU; NaN when malformed, 1 and 0 when not stated.
        is_rescaled: Whether the header states an intercept.
        unit: What the rescaled values are said to be (RescaleType); empty when not said.
        padding: Stored values that mean no measurement: the value, or the ends of a range.
        layout: How the file's pixels are stored; None when that is not one gray sample each.
    """

    open: OpenFile
    frame: int | None
    patient: str
    study_uid: str
    series_uid: str
    instance_uid: str
    frame_uid: str
    number: int | None
    modality: str
    images: int
    image_type: frozenset[str]
    kernel: str
    acquisition: tuple[str, str, str]
    size: tuple[int, int]
    is_plain: bool
    is_burned: bool
    is_lossy: bool
    plane: Plane | None
    thickness_mm: float | None
    rescale: tuple[float, float]
    is_rescaled: bool
    unit: str
    padding: tuple[int, ...]
    layout: PixelLayout | None


def read_headers(open_file: OpenFile) -> list[Header]:
    """Read one file's images; none for a file that is not DICOM, and for a directory of files.

    Raises:
        Exception: One of `ucadi.io.files.READ_ERRORS` when the file is damaged or names no series.
    """
    open_framed = framed(open_file)
    if open_framed is None:
        return []
    with open_framed() as file:
        elements = read_elements(file, _WANTED | PIXEL_TAGS)
    if elements.sop_class == MediaStorageDirectoryStorage:
        return []
    sop_class = str(elements.get("SOPClassUID", ""))
    frames = int(_number(elements.get("NumberOfFrames")) or 1)
    if sop_class not in _ENHANCED:
        return [_header(open_framed, elements, {}, None, max(1, frames))]
    shared, each = (list(elements.get(name) or ()) for name in _GROUPS)
    if not 1 <= frames == len(each) <= _MAX_FRAMES:
        raise ValueError(f"{frames} frames, but {len(each)} items describe them")
    common = _elements_of_groups(shared[0]) if shared else {}
    return [
        _header(open_framed, elements, {**common, **_elements_of_groups(item)}, frame, 1)
        for frame, item in enumerate(each)
    ]


def _elements_of_groups(item: Dataset) -> dict[str, Any]:
    """Return the elements of a frame's functional groups by keyword, without their nesting."""
    return {
        inner.keyword: inner.value
        for group in item
        if group.keyword in _FUNCTIONAL and group.value
        for inner in group.value[0]
        if inner.VR != "SQ"
    }


def _header(
    open_file: OpenFile, elements: Elements, of_frame: Mapping[str, Any], frame: int | None, images: int
) -> Header:
    """Build a header; what a frame says comes before what the file says."""

    def get(name: str) -> Any:
        return of_frame[name] if name in of_frame else elements.get(name)

    types = get("FrameType") or elements.get("ImageType") or ()
    number = _number(elements.get("SeriesNumber"))
    padding = (_number(elements.get(name)) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    return Header(
        open=open_file,
        frame=frame,
        patient=_hash(elements.get("PatientID"), elements.get("IssuerOfPatientID")),
        study_uid=str(elements.get("StudyInstanceUID", "")),
        series_uid=str(elements.found["SeriesInstanceUID"].value),
        instance_uid=str(elements.get("SOPInstanceUID", "")),
        frame_uid=str(elements.get("FrameOfReferenceUID") or ""),
        number=int(number) if number is not None and 0 <= number <= _MAX_SERIES_NUMBER else None,
        modality=_modality(str(elements.get("Modality") or ""), str(elements.get("SOPClassUID", ""))),
        images=images,
        image_type=frozenset([types] if isinstance(types, str) else map(str, types)),
        kernel=str(get("ConvolutionKernel") or ""),
        acquisition=(
            str(get("FrameAcquisitionNumber") or get("AcquisitionNumber") or ""),
            str(get("TemporalPositionIndex") or get("TemporalPositionIdentifier") or ""),
            str(get("FrameAcquisitionDateTime") or get("AcquisitionTime") or ""),
        ),
        size=(int(_number(elements.get("Rows")) or 0), int(_number(elements.get("Columns")) or 0)),
        is_plain=images == 1
        and _number(elements.get("SamplesPerPixel")) in (None, 1.0)
        and str(elements.get("PhotometricInterpretation", "MONOCHROME2")).startswith("MONOCHROME"),
        is_burned=str(elements.get("BurnedInAnnotation") or "NO").strip().upper() != "NO",
        is_lossy=elements.get("LossyImageCompression") == "01",
        plane=_plane(*(get(n) for n in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))),
        thickness_mm=_number(get("SliceThickness")),
        rescale=(_rescale(get("RescaleSlope"), 1.0), _rescale(get("RescaleIntercept"), 0.0)),
        is_rescaled=get("RescaleIntercept") is not None,
        unit=str(get("RescaleType") or "").strip().upper(),
        padding=tuple(int(value) for value in padding if value is not None and abs(value) < 2**31),
        layout=pixel_layout(elements),
    )


def _rescale(value: Any, default: float) -> float:
    """Return a stated number, NaN for one that is malformed, and the default for none."""
    if value is None:
        return default
    number = _number(value)
    return math.nan if number is None else number


def _hash(*words: Any) -> str:
    """Return a hash by which patients are told apart without keeping who they are."""
    return hashlib.sha256("\n".join(str(word or "").strip() for word in words).encode()).hexdigest()


def _modality(stated: str, sop_class: str) -> str:
    """Return the modality's code; "unknown" for anything that could be more than a code."""
    if not stated and sop_class == CTImageStorage:
        return "CT"
    return stated if re.fullmatch("[A-Z]{2,4}", stated) else "unknown"


def _plane(position: Any, orientation: Any, spacing: Any) -> Plane | None:
    """Return the slice's place, None unless it is complete and the directions are at a right angle."""
    position_mm, cosines, pixel_mm = _numbers(position, 3), _numbers(orientation, 6), _numbers(spacing, 2)
    if position_mm is None or cosines is None or pixel_mm is None or min(pixel_mm) <= 0:
        return None
    directions = _directions(cosines)
    if directions is None:
        return None
    return Plane(np.array(position_mm), *directions, (pixel_mm[0], pixel_mm[1]))


@lru_cache(maxsize=16)
def _directions(cosines: tuple[float, ...]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]] | None:
    """Return unit vectors along rows and columns; the slices of a series share them."""
    pair = np.array(cosines).reshape(2, 3)
    if not np.allclose(pair @ pair.T, np.eye(2), atol=_SAME_DIRECTION):
        return None
    row, column = pair / np.linalg.norm(pair, axis=1, keepdims=True)
    row.flags.writeable = column.flags.writeable = False
    return row, column


def _number(value: Any) -> float | None:
    """Return a finite number, or None."""
    numbers = _numbers(value, 1)
    return None if numbers is None else numbers[0]


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """Return finite numbers, or None when they are missing, malformed or not as many."""
    if value is None:
        return None
    try:
        numbers = tuple(map(float, value if isinstance(value, MultiValue | list | tuple) else (value,)))
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
