# SPDX-License-Identifier: Apache-2.0
"""DICOM series to a volume in HU.

Headers of all files are read first, series are judged by them, and only the chosen one is decoded. No name,
date, path or UID leaves this module; a series is called by its number and by a key, the start of the hash of
its UID.
"""

import hashlib
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pydicom
from jaxtyping import Float, Int16
from pydicom.dataset import FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from ucadi.errors import DataError, DicomError, GeometryError, UcadiError
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.volume import Volume
from ucadi.io.files import InputFile
from ucadi.io.report import SeriesReport
from ucadi.types import Orientation

__all__ = ["MIN_SLICES", "DicomVolume", "looks_like_dicom", "read_dicom"]

MIN_SLICES = 16
"""Fewer slices are no volume of a chest (the published code asks for more than 15)."""

SPACING_TOLERANCE_MM = 0.1
SPACING_TOLERANCE_SHARE = 0.01
"""Slice distances may differ from their median by the larger of the two."""

DRIFT_TOLERANCE_MM = 0.5
"""In-plane shift of positions over the whole series; more means a tilted gantry."""

ORIENTATION_TOLERANCE = 1e-3
"""Direction cosines that differ by less are the same orientation."""

AXIAL_COSINE = 0.9
"""A slice normal this close to the body's long axis makes a series axial (up to 26 degrees)."""

PADDING_HU = -1024
"""What replaces values outside the scan circle; scanners store -2000 to -3024 there."""

_HEADER_TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "BurnedInAnnotation",
]

# What pydicom raises on damaged files, read on thousands of mutated ones.
_PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    AttributeError,
    EOFError,
    KeyError,
    IndexError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    UnicodeDecodeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, eq=False)
class DicomVolume:
    """What was read.

    Attributes:
        volume: int16 HU in canonical axes.
        series: Every series that was found.
        repairs: What was changed.
        warnings: What a reader should know.
    """

    volume: Volume
    series: tuple[SeriesReport, ...]
    repairs: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Slice:
    """One image's header."""

    file: InputFile
    uid: str
    number: int | None
    modality: str
    image_type: tuple[str, ...]
    frames: int
    shape: tuple[int, int]
    position: tuple[float, ...] | None
    directions: tuple[float, ...] | None
    pixel_mm: tuple[float, ...] | None
    is_burned_in: bool

    @property
    def normal(self) -> Float[np.ndarray, " 3"]:
        """Slice normal in LPS."""
        cosines = np.array(self.directions)
        return np.asarray(np.cross(cosines[:3], cosines[3:]))

    @property
    def is_localizer(self) -> bool:
        return "LOCALIZER" in self.image_type

    @property
    def orientation(self) -> Orientation:
        sagittal, coronal, axial = np.abs(self.normal)
        if axial >= AXIAL_COSINE:
            return Orientation.AXIAL
        return Orientation.CORONAL if coronal > sagittal else Orientation.SAGITTAL


@dataclass(frozen=True, eq=False)
class _Candidate:
    """Images that could form one volume, and why they cannot."""

    slices: tuple[_Slice, ...]
    error: DicomError | None

    def report(self, *, chosen: bool, reason: str) -> SeriesReport:
        """Say what it is, without the UID."""
        first = self.slices[0]
        return SeriesReport(
            key=hashlib.sha256(first.uid.encode()).hexdigest()[:8],
            number=first.number,
            modality=first.modality,
            slices=len(self.slices),
            shape=None,
            spacing_mm=None,
            chosen=chosen,
            reason=reason,
        )


class SeriesRefusedError(DicomError):
    """No series can be read; carries what was found."""

    def __init__(self, error: UcadiError, series: tuple[SeriesReport, ...]) -> None:
        super().__init__(error.code, error.detail, cure=error.cure)
        self.series = series


def looks_like_dicom(head: bytes) -> bool:
    """Tell by the first 132 bytes: the standard's mark, or a bare data set that starts with group 2 or 8."""
    return head[128:132] == b"DICM" or head[:2] in (b"\x02\x00", b"\x08\x00")


def read_dicom(files: Iterable[InputFile]) -> DicomVolume:
    """Read the best axial CT series among files.

    Raises:
        SeriesRefusedError: If no series can be read; ``series`` says what was found.
    """
    slices = [header for header in map(_read_header, files) if header is not None]
    if not slices:
        raise SeriesRefusedError(DicomError("dicom-none", "No file of the input is a DICOM image."), ())
    candidates = sorted(map(_judge, _group(slices)), key=lambda c: (c.error is not None, -len(c.slices)))
    best = candidates[0]
    others = tuple(
        other.report(chosen=False, reason=other.error.detail if other.error else "It has fewer slices.")
        for other in candidates[1:]
    )
    try:
        if best.error is not None:
            raise _most_telling(candidates)
        voxels, affine, repairs = _assemble(best.slices)
    except DataError as error:
        raise SeriesRefusedError(error, (best.report(chosen=False, reason=error.detail), *others)) from error
    volume, turned = to_canonical(voxels, affine)
    if turned:
        repairs.append(
            "Slices, rows or columns were put into the order feet to head, front to back, right to left."
        )
    reason = (
        "It is the only axial CT series." if not others else "It is the axial CT series with most slices."
    )
    chosen = replace(
        best.report(chosen=True, reason=reason), shape=volume.grid.shape, spacing_mm=volume.grid.spacing_mm
    )
    return DicomVolume(volume, (chosen, *others), tuple(repairs), ())


def _read_header(file: InputFile) -> _Slice | None:
    """Read one header; None when the file is no DICOM image or too damaged to say."""
    if not looks_like_dicom(file.head(132)):
        return None
    try:
        with file.read() as stream, warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # pydicom warns of harmless deviations in values we check ourselves
            data = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_HEADER_TAGS)
            return _parse(file, data)
    except _PARSE_ERRORS:
        return None


def _parse(file: InputFile, data: FileDataset) -> _Slice | None:
    """Take the fields that judge a series; None without rows and columns (no image)."""
    if not data.get("Rows") or not data.get("Columns"):
        return None
    number = data.get("SeriesNumber")
    return _Slice(
        file=file,
        uid=str(data.get("SeriesInstanceUID", "")),
        number=None if number is None else int(number),
        modality=str(data.get("Modality", "") or "unknown"),
        image_type=tuple(str(word).upper() for word in data.get("ImageType") or ()),
        frames=int(data.get("NumberOfFrames") or 1),
        shape=(int(data.Rows), int(data.Columns)),
        position=_numbers(data.get("ImagePositionPatient"), 3),
        directions=_numbers(data.get("ImageOrientationPatient"), 6),
        pixel_mm=_numbers(data.get("PixelSpacing"), 2),
        is_burned_in=str(data.get("BurnedInAnnotation", "")).upper() == "YES",
    )


def _numbers(value: Sequence[float] | None, count: int) -> tuple[float, ...] | None:
    """Return finite numbers, or None when they are missing or not as many."""
    if value is None or isinstance(value, str) or len(value) != count:
        return None
    numbers = tuple(float(number) for number in value)
    return numbers if np.isfinite(numbers).all() else None


def _group(slices: Iterable[_Slice]) -> list[tuple[_Slice, ...]]:
    """Split into series, and series into parts of one size and orientation; localizers apart."""
    groups: dict[tuple[object, ...], list[_Slice]] = defaultdict(list)
    for item in slices:
        cosines = item.directions and tuple(round(c / ORIENTATION_TOLERANCE / 2) for c in item.directions)
        groups[item.uid, item.modality, item.is_localizer, item.shape, cosines].append(item)
    return [tuple(group) for group in groups.values()]


def _judge(slices: tuple[_Slice, ...]) -> _Candidate:
    """Say by the headers alone whether images can form a chest CT volume."""
    first = slices[0]
    error: DicomError | None = None
    if first.modality != "CT":
        error = DicomError("dicom-not-ct", f"The modality is {_word(first.modality)}, not CT.")
    elif first.is_localizer:
        error = DicomError("dicom-localizer", f"{len(slices)} localizer image(s).")
    elif any(item.is_burned_in for item in slices):
        error = DicomError(
            "dicom-not-ct",
            "The header says that text is burned into the image.",
            cure="Export the original series.",
        )
    elif first.frames > 1:
        error = DicomError(
            "input-unsupported",
            f"It is a multi-frame image with {first.frames} frames.",
            cure="Export the series as single-frame CT images.",
        )
    elif not all(item.position and item.directions and item.pixel_mm for item in slices):
        error = DicomError("dicom-no-geometry", "Position, orientation or pixel spacing is missing.")
    elif first.orientation is not Orientation.AXIAL:
        error = DicomError("dicom-not-axial", f"The slices are {first.orientation}.")
    elif len(slices) < MIN_SLICES:
        error = DicomError(
            "dicom-too-few-slices", f"{len(slices)} slice(s), at least {MIN_SLICES} are needed."
        )
    return _Candidate(slices, error)


def _most_telling(candidates: Sequence[_Candidate]) -> DicomError:
    """Return the error of the candidate that came furthest."""
    order = (
        "dicom-too-few-slices",
        "dicom-no-geometry",
        "input-unsupported",
        "dicom-not-axial",
        "dicom-localizer",
        "dicom-not-ct",
    )
    errors = [candidate.error for candidate in candidates if candidate.error is not None]
    return min(errors, key=lambda error: order.index(error.code))


def _word(text: str) -> str:
    """Keep a header's code word short and plain."""
    return "".join(c for c in text if c.isalnum())[:16] or "not given"


def _assemble(
    slices: Sequence[_Slice],
) -> tuple[Int16[np.ndarray, "k r c"], Float[np.ndarray, "4 4"], list[str]]:
    """Sort by position, check the spacing, decode; return voxels, LPS affine and repairs."""
    repairs: list[str] = []
    first = slices[0]
    if len({item.pixel_mm for item in slices}) > 1:
        raise DicomError("dicom-mixed-geometry", "The pixel spacing changes within the series.")
    normal = first.normal / np.linalg.norm(first.normal)
    ordered = sorted(slices, key=lambda item: float(np.dot(item.position or (), normal)))
    ordered = _without_duplicates(ordered, normal, repairs)
    positions = np.array([item.position for item in ordered])
    along = positions @ normal
    gaps = np.diff(along)
    _check_gaps(along, gaps)
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    drift = float(np.linalg.norm(step - normal * (step @ normal)) * (len(ordered) - 1))
    if drift > DRIFT_TOLERANCE_MM:
        angle = float(np.degrees(np.arctan2(drift, along[-1] - along[0])))
        raise GeometryError(
            "dicom-tilted", f"Positions drift sideways by {drift:.1f} mm ({angle:.0f} degrees)."
        )
    affine = np.eye(4)
    cosines, pixel = np.array(first.directions), first.pixel_mm or ()
    affine[:3, 0], affine[:3, 3] = step, positions[0]
    affine[:3, 1], affine[:3, 2] = cosines[3:] * pixel[0], cosines[:3] * pixel[1]
    if abs(np.linalg.det(affine)) < 1e-6:
        raise DicomError("dicom-no-geometry", "Pixel spacing or orientation is zero.")
    voxels = np.empty((len(ordered), *first.shape), np.int16)
    padded = 0
    for target, item in zip(voxels, ordered, strict=True):
        padded += _decode(item, target)
    if padded:
        repairs.append(f"{padded} values outside the scan field were set to {PADDING_HU} HU.")
    return voxels, affine, repairs


def _without_duplicates(
    ordered: list[_Slice], normal: Float[np.ndarray, " 3"], repairs: list[str]
) -> list[_Slice]:
    """Drop a slice whose position and pixels equal the one before; refuse equal positions otherwise."""
    kept: list[_Slice] = []
    for item in ordered:
        step = (
            1.0
            if not kept
            else float(np.dot(np.subtract(item.position or (), kept[-1].position or ()), normal))
        )
        if abs(step) > 0.01:
            kept.append(item)
            continue
        here, before = np.empty(item.shape, np.int16), np.empty(item.shape, np.int16)
        _decode(item, here)
        _decode(kept[-1], before)
        if not np.array_equal(here, before):
            where = float(np.dot(item.position or (), normal))
            raise DicomError("dicom-duplicate-slices", f"Two different slices lie at {where:.1f} mm.")
    if len(kept) < len(ordered):
        repairs.append(f"{len(ordered) - len(kept)} slice(s) that occurred twice were dropped.")
    if len(kept) < MIN_SLICES:
        raise DicomError(
            "dicom-too-few-slices", f"{len(kept)} different slices, at least {MIN_SLICES} are needed."
        )
    return kept


def _check_gaps(along: Float[np.ndarray, " k"], gaps: Float[np.ndarray, " j"]) -> None:
    """Refuse uneven spacing, naming the worst gap."""
    usual = float(np.median(gaps))
    tolerance = max(SPACING_TOLERANCE_MM, SPACING_TOLERANCE_SHARE * usual)
    worst = int(np.argmax(np.abs(gaps - usual)))
    if abs(gaps[worst] - usual) > tolerance:
        raise GeometryError(
            "dicom-uneven-spacing",
            f"The distance after the slice at {along[worst]:.1f} mm is {gaps[worst]:.2f} mm, "
            f"elsewhere it is {usual:.2f} mm.",
        )


def _decode(item: _Slice, target: Int16[np.ndarray, "r c"]) -> int:
    """Write one slice's HU into an array; return how many values were padding."""
    try:
        with item.file.read() as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(stream, force=True)
            stored = data.pixel_array
            slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
            is_inverse = data.get("PhotometricInterpretation") == "MONOCHROME1"
    except (*_PARSE_ERRORS, RuntimeError) as error:  # decoders raise RuntimeError
        raise DicomError("dicom-undecodable", "The pixel data of a slice cannot be decoded.") from error
    if stored.shape != target.shape or is_inverse:
        raise DicomError(
            "dicom-undecodable", "A slice is no single gray image with its stated rows and columns."
        )
    hu = stored.astype(np.float32) * slope + intercept
    outside = hu < PADDING_HU  # by value: PixelPaddingValue is often absent or written with the wrong sign
    hu[outside] = PADDING_HU
    np.copyto(target, np.clip(np.rint(hu), -32768, 32767), casting="unsafe")
    return int(np.count_nonzero(outside))
