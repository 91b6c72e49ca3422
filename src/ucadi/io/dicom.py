# SPDX-License-Identifier: Apache-2.0
"""A DICOM series to a volume in HU, after checks that no image library makes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int16, Integer
from pydicom import Dataset, dcmread

from ucadi.errors import DicomError
from ucadi.imaging.grid import Grid
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.remarks import Remark
from ucadi.imaging.volume import Volume
from ucadi.io.files import READ_ERRORS
from ucadi.io.headers import Header, Plane
from ucadi.io.nifti import MAX_VOXELS
from ucadi.io.series import MIN_SLICES, Series

__all__ = ["LOWEST_HU", "DicomVolume", "padding_repair", "read_series"]

LOWEST_HU = -1024
"""Nothing is less dense than air at -1000 HU and its noise; lower values are padding."""

_PLAUSIBLE_HU = (-950.0, 4000.0)  # a padding value in here may be a patient's; nothing is replaced then
_MAX_SLOPE, _MAX_INTERCEPT = 100.0, 1e5  # beyond, no CT; within, int32 holds every product
_SAME_PLACE_MM = 0.02
_SPACING_MM = 0.1  # tolerance of slice positions: this, or the share below
_SPACING_SHARE = 0.01
_DRIFT_MM = 1.0  # sideways over the whole series
_SAME_PIXEL = 0.001  # relative difference of pixel spacings
_GAP_FACTOR = 2.0  # distance over thickness from which on much of the patient is not seen


@dataclass(frozen=True, eq=False)
class DicomVolume:
    """What was read.

    Attributes:
        volume: int16 HU, canonical axes.
        repairs: What was changed on the way.
        warnings: What a reader of a result should know.
    """

    volume: Volume
    repairs: tuple[Remark, ...]
    warnings: tuple[Remark, ...]


@dataclass
class _Counts:
    """What was met while decoding."""

    duplicates: int = 0
    padding: int = 0
    kept_padding: set[float] = field(default_factory=set)


def read_series(series: Series) -> DicomVolume:
    """Read a series slice by slice into one int16 array.

    Args:
        series: A candidate: axial CT with geometry and enough slices.

    Raises:
        DicomError: If the slices do not form an even, upright stack, or a slice cannot be decoded. Messages
            name the series by number and key, and places by mm.
    """
    order = np.argsort([plane.height_mm for plane in series.planes], kind="stable")
    headers, planes = [series.headers[i] for i in order], [series.planes[i] for i in order]
    heights_mm = np.array([plane.position_mm for plane in planes]) @ planes[0].normal
    is_duplicate = np.diff(heights_mm, prepend=-np.inf) < _SAME_PLACE_MM
    kept = [plane for plane, skip in zip(planes, is_duplicate, strict=True) if not skip]
    if len(kept) < MIN_SLICES:
        raise DicomError(
            "dicom-too-few-slices",
            f"{series.name} has slices at {len(kept)} positions; {MIN_SLICES} or more are needed.",
        )
    _check_geometry(series.name, kept)
    step_mm = _even_step_mm(series.name, kept, heights_mm[~is_duplicate])
    counts = _Counts()
    voxels = _decode(series.name, headers, planes, is_duplicate, counts)
    volume = to_canonical(Volume(voxels, _grid(kept, headers[0].size, step_mm)))
    return DicomVolume(volume, _repairs(counts, voxels.size), _warnings(headers, step_mm, counts))


def _check_geometry(name: str, planes: Sequence[Plane]) -> None:
    """Refuse slices of different pixel size, and stacks that drift sideways."""
    pixels = np.array([plane.pixel_mm for plane in planes])
    if not np.allclose(pixels, pixels[0], rtol=_SAME_PIXEL, atol=0):
        raise DicomError(
            "dicom-mixed-geometry",
            f"{name} has pixel spacings from {pixels.min():.3f} to {pixels.max():.3f} mm.",
        )
    positions = np.array([plane.position_mm for plane in planes]) - planes[0].position_mm
    along = positions @ planes[0].normal
    sideways = np.linalg.norm(positions - along[:, None] * planes[0].normal, axis=1)
    if sideways.max() > _DRIFT_MM:
        angle = np.degrees(np.arctan2(sideways[-1], along[-1]))
        raise DicomError(
            "dicom-tilted",
            f"{name} drifts sideways by {sideways.max():.1f} mm over {along[-1]:.1f} mm, as with a gantry "
            f"that is tilted by {angle:.1f} degrees.",
        )


def _even_step_mm(name: str, planes: Sequence[Plane], heights_mm: Float[np.ndarray, " slices"]) -> float:
    """Return the distance between slices, or refuse an uneven stack and name the place."""
    gaps = np.diff(heights_mm)
    step = float(heights_mm[-1] - heights_mm[0]) / len(gaps)
    # Against the whole lattice, not gap by gap: small steps in one direction add up, jitter does not.
    off_lattice = np.abs(heights_mm - heights_mm[0] - step * np.arange(len(heights_mm)))
    if off_lattice.max() <= max(_SPACING_MM, _SPACING_SHARE * step):
        return step
    usual = float(np.median(gaps))
    worst = int(np.abs(gaps - usual).argmax())
    missing = round(gaps[worst] / usual) - 1
    guess = f"; {missing} missing there" if missing > 0 else ""
    raise DicomError(
        "dicom-uneven-spacing",
        f"{name}: above z = {planes[worst].position_mm[2]:.1f} mm the gap is {gaps[worst]:.2f} mm, "
        f"{usual:.2f} mm is usual{guess}.",
    )


def _grid(planes: Sequence[Plane], size: tuple[int, int], step_mm: float) -> Grid:
    """Return where the stack's voxels lie."""
    first = planes[0]
    affine = np.eye(4)
    affine[:3, 0] = first.normal * step_mm
    affine[:3, 1] = first.column * first.pixel_mm[0]
    affine[:3, 2] = first.row * first.pixel_mm[1]
    affine[:3, 3] = first.position_mm
    return Grid((len(planes), *size), affine)


def _decode(
    name: str,
    headers: Sequence[Header],
    planes: Sequence[Plane],
    is_duplicate: Bool[np.ndarray, " all"],
    counts: _Counts,
) -> Int16[np.ndarray, "z y x"]:
    """Decode all slices into one array; duplicates are compared with the slice before and dropped."""
    shape = (int(np.count_nonzero(~is_duplicate)), *headers[0].size)
    if int(np.prod(shape, dtype=np.int64)) > MAX_VOXELS:
        raise DicomError("dicom-undecodable", f"{name}: {shape} voxels are more than any chest CT has.")
    voxels = np.empty(shape, np.int16)
    z = -1
    for header, plane, is_copy in zip(headers, planes, is_duplicate, strict=True):
        place = f"{name}: the slice at z = {plane.position_mm[2]:.1f} mm"
        hu = _slice_hu(place, header, counts)
        if not is_copy:
            z += 1
            voxels[z] = hu
        elif np.array_equal(voxels[z], hu):
            counts.duplicates += 1
        else:
            raise DicomError(
                "dicom-duplicate-slices",
                f"{place} is not the only one there, and the pixels differ.",
            )
    return voxels


def _slice_hu(place: str, header: Header, counts: _Counts) -> Int16[np.ndarray, "y x"]:
    """Decode one slice and rescale it by its own slope and intercept."""
    try:
        with header.open() as file:
            dataset = dcmread(file)
            stored = dataset.pixel_array
            slope = float(dataset.get("RescaleSlope", 1.0))
            intercept = float(dataset.get("RescaleIntercept", 0.0))
            padding = _padding_values(dataset)
    except READ_ERRORS as error:
        raise DicomError(
            "dicom-undecodable",
            f"{place} cannot be decoded ({type(error).__name__}).",
        ) from error
    if stored.shape != header.size or not (0 < abs(slope) <= _MAX_SLOPE and abs(intercept) <= _MAX_INTERCEPT):
        raise DicomError("dicom-undecodable", f"{place} has no usable size or rescale.")
    is_padding = np.zeros(stored.shape, np.bool_)
    for value in padding:
        if _PLAUSIBLE_HU[0] <= value * slope + intercept <= _PLAUSIBLE_HU[1]:
            counts.kept_padding.add(value * slope + intercept)
        else:
            is_padding |= stored == value
    hu = _rescale(stored, slope, intercept)
    is_padding |= hu < LOWEST_HU
    counts.padding += int(np.count_nonzero(is_padding & (hu != LOWEST_HU)))
    hu[is_padding] = LOWEST_HU
    return np.asarray(np.clip(hu, LOWEST_HU, np.iinfo(np.int16).max), dtype=np.int16)


def _rescale(
    stored: Integer[np.ndarray, "y x"], slope: float, intercept: float
) -> Integer[np.ndarray, "y x"]:
    """Return HU rounded to whole numbers; int32, so that nothing wraps before clipping."""
    if slope.is_integer() and intercept.is_integer():
        return stored.astype(np.int32) * int(slope) + int(intercept)
    return np.asarray(np.rint(stored * slope + intercept), dtype=np.int32)


def _padding_values(dataset: Dataset) -> set[int]:
    """Return the stored values that mean no measurement, also read with the wrong sign."""
    if "PixelPaddingValue" not in dataset:
        return set()
    value = int(dataset.PixelPaddingValue)
    # Some writers store the unsigned reading of a signed value, and the other way round.
    return {value, value - 2**16 if value >= 2**15 else value + 2**16 if value < 0 else value}


def padding_repair(padding: int, voxels: int) -> Remark:
    """Say that padding was replaced."""
    share = 100.0 * padding / voxels
    text = f"Padding outside the scan circle ({share:.1f} % of voxels) was set to {LOWEST_HU} HU."
    return Remark("padding-replaced", text)


def _repairs(counts: _Counts, voxels: int) -> tuple[Remark, ...]:
    """Say what was changed."""
    repairs = []
    if counts.duplicates:
        text = f"{counts.duplicates} slices that were there twice, with equal pixels, were dropped."
        repairs.append(Remark("duplicates-dropped", text))
    if counts.padding:
        repairs.append(padding_repair(counts.padding, voxels))
    return tuple(repairs)


def _warnings(headers: Sequence[Header], step_mm: float, counts: _Counts) -> tuple[Remark, ...]:
    """Say what a reader of a result should know."""
    warnings = []
    if any(header.is_lossy for header in headers):
        text = "The images were compressed with loss, so fine detail and HU are not exact."
        warnings.append(Remark("lossy", text))
    thickness = headers[0].thickness_mm
    if thickness and step_mm > _GAP_FACTOR * thickness + _SPACING_MM:
        text = f"Slices {thickness:.1f} mm thick lie {step_mm:.1f} mm apart; what is between is not seen."
        warnings.append(Remark("gaps-between-slices", text))
    if counts.kept_padding:
        value = min(counts.kept_padding)
        text = f"The padding value ({value:.0f} HU) lies among tissue values and was not replaced."
        warnings.append(Remark("padding-kept", text))
    return tuple(warnings)
