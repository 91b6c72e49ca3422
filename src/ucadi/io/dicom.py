# SPDX-License-Identifier: Apache-2.0
"""A DICOM series to a volume in HU, slice by slice, with the repairs that its stack names."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ucadi.errors import DicomError
from ucadi.imaging.continuity import check_continuity
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.remarks import Remark
from ucadi.imaging.volume import Volume
from ucadi.io.files import READ_ERRORS
from ucadi.io.headers import Header
from ucadi.io.pixels import LOWEST_HU, PixelCounts, read_hu, read_whole_header
from ucadi.io.series import Series
from ucadi.io.source import SourceInstance, SourceSeries
from ucadi.io.streams import MAX_VOXELS

__all__ = ["DicomVolume", "padding_repair", "read_series"]

_GAP_FACTOR = 2.0  # distance over thickness from which on much of the patient is not seen
_GAP_MM = 0.1


@dataclass(frozen=True, eq=False)
class DicomVolume:
    """What was read.

    Attributes:
        volume: int16 HU, canonical axes.
        interpolated: Indices along z of slices that no scanner measured.
        repairs: What was changed on the way.
        warnings: What a reader of a result should know.
        source: The images that went into the volume.
    """

    volume: Volume
    interpolated: tuple[int, ...]
    repairs: tuple[Remark, ...]
    warnings: tuple[Remark, ...]
    source: SourceSeries


def read_series(series: Series) -> DicomVolume:
    """Read a series slice by slice into one int16 array.

    Args:
        series: A candidate: its slices are in order and their stack is planned.

    Raises:
        DataError: ``ct-interleaved`` when two acquisitions alternate.
        DicomError: If a slice cannot be decoded. Messages name the series by number and key, places by mm.
    """
    stack = series.stack
    if stack is None:
        raise ValueError("only a candidate can be read")
    if max(np.prod(shape, dtype=np.int64) for shape in (stack.buffer_shape, stack.grid.shape)) > MAX_VOXELS:
        raise DicomError(
            "dicom-undecodable", f"{series.name}: {stack.grid.shape} voxels are more than any chest CT has."
        )
    source = _source(series)
    buffer = np.empty(stack.buffer_shape, np.int16)
    try:
        counts = read_hu(series.headers, [buffer[slot] for slot in stack.slots])
    except DicomError as error:
        raise DicomError(error.code, f"{series.name}: {error.detail}", cure=error.cure) from error
    if not stack.missing:
        check_continuity(buffer)  # here, where slices are as measured; resampling would blur what alternates
    volume = to_canonical(Volume(stack.finish(buffer, LOWEST_HU), stack.grid))
    repairs = (*_repairs(series.copies, counts, buffer.size), *stack.repairs)
    warnings = _warnings(series.headers, stack.grid.spacing_mm[0], counts)
    return DicomVolume(volume, stack.interpolated, repairs, warnings, source)


def _source(series: Series) -> SourceSeries:
    """Return what identifies the images of a series."""
    try:
        header = read_whole_header(series.headers[0])
    except READ_ERRORS as error:
        raise DicomError(
            "dicom-undecodable", f"{series.name}: a header is damaged ({type(error).__name__})."
        ) from error
    instances = tuple(
        SourceInstance(h.instance_uid, None if h.frame is None else h.frame + 1, h.plane)
        for h in series.headers
        if h.plane is not None
    )
    return SourceSeries(header, instances, series.headers[0].size)


def padding_repair(padding: int, voxels: int) -> Remark:
    """Say that padding was replaced."""
    share = 100.0 * padding / voxels
    text = f"Padding outside the scan circle ({share:.1f} % of voxels) was set to {LOWEST_HU} HU."
    return Remark("padding-replaced", text)


def _repairs(copies: int, counts: PixelCounts, voxels: int) -> list[Remark]:
    """Say what was changed."""
    repairs = []
    if copies:
        text = f"{copies} slices that were there twice, with equal pixels, were dropped."
        repairs.append(Remark("duplicates-dropped", text))
    if counts.padding:
        repairs.append(padding_repair(counts.padding, voxels))
    return repairs


def _warnings(headers: Sequence[Header], step_mm: float, counts: PixelCounts) -> tuple[Remark, ...]:
    """Say what a reader of a result should know."""
    warnings = []
    if any(header.is_lossy for header in headers):
        text = "The images were compressed with loss, so fine detail and HU are not exact."
        warnings.append(Remark("lossy", text))
    unit = headers[0].unit
    if unit not in ("", "HU"):
        text = "The header says that the values are not in Hounsfield units (RescaleType); they look as if."
        warnings.append(Remark("rescale-type", text))
    thickness = headers[0].thickness_mm
    if thickness and step_mm > _GAP_FACTOR * thickness + _GAP_MM:
        text = f"Slices {thickness:.1f} mm thick lie {step_mm:.1f} mm apart; what is between is not seen."
        warnings.append(Remark("gaps-between-slices", text))
    if counts.kept_padding:
        value = min(counts.kept_padding)
        text = f"The padding value ({value:.0f} HU) lies among tissue values and was not replaced."
        warnings.append(Remark("padding-kept", text))
    return tuple(warnings)
