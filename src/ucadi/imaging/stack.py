# SPDX-License-Identifier: Apache-2.0
"""Parallel slices at their true positions become one regular volume, or are refused with the place.

Four defects are repaired: a few missing slices (interpolated), uneven distances (resampled), a tilted gantry
(slices moved back in their planes) and jitter (ignored within a tolerance). All decisions follow from the
slices' positions, none from tags that describe them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int16

from ucadi.errors import GeometryError
from ucadi.imaging.grid import Grid
from ucadi.imaging.remarks import Remark

__all__ = [
    "DRIFT_MM",
    "MAX_GAP_MM",
    "MAX_MISSING",
    "MAX_TILT_DEGREES",
    "SPACING_MM",
    "SPACING_SHARE",
    "Stack",
    "plan_stack",
]

SPACING_MM = 0.1
"""A slice may lie this far from its even place; positions are written with one or two decimals."""

SPACING_SHARE = 0.01
"""Or this share of the slices' distance, whichever is larger."""

MAX_MISSING = 2
"""Missing slices that are interpolated; with more, too much of the patient would be invented."""

MAX_GAP_MM = 10.0
"""Between neighboring slices of an uneven stack: two slices of 5 mm."""

DRIFT_MM = 0.5
"""Sideways movement over the whole stack that is ignored; less than a pixel."""

MAX_TILT_DEGREES = 35.0
"""Gantries tilt by up to 30 degrees; more is another error."""

_OFF_LINE_MM = 1.0
"""A tilted stack's slices lie on a line; beyond this distance from it they were shuffled or re-centered."""

_RARE = 0.1
"""Wide gaps that are at most this share of all are lost slices; more are another distance of slices."""

_WIDE = 1.5
"""A gap of this many usual ones is wide."""

_TOO_NEAR = 0.2
"""A gap of less than this share of the usual wide ones (the third quartile) is no spacing of one scan."""


@dataclass(frozen=True, eq=False)
class Stack:
    """How decoded slices become a volume.

    Attributes:
        grid: Of the finished volume; axes are the slices' normal, column and row directions.
        buffer_shape: (slices with room for missing ones, rows, columns) of the array to decode into.
        slots: Index in the buffer for each slice, in the order of the positions.
        missing: Slots in the buffer that no slice fills.
        interpolated: Indices along z of the volume's slices where none was measured nearby.
        repairs: What `finish` changes.
    """

    grid: Grid
    buffer_shape: tuple[int, int, int]
    slots: Int[np.ndarray, " slices"]
    missing: tuple[int, ...]
    interpolated: tuple[int, ...]
    repairs: tuple[Remark, ...]
    _shifts: Float[np.ndarray, "slices 2"] | None
    _heights: Float[np.ndarray, " slices"] | None

    def finish(self, buffer: Int16[np.ndarray, "z y x"], background: int) -> Int16[np.ndarray, "z2 y2 x2"]:
        """Repair decoded slices; an even, upright stack is returned as it is.

        Args:
            buffer: HU, shape ``buffer_shape``, slices at their ``slots``; changed in place.
            background: HU where no slice was measured.
        """
        voxels = buffer
        if self._shifts is not None:
            voxels = _shear(buffer, self.slots, self._shifts, self.grid.shape[1:], background)
        for z in self.missing:
            below, above = _neighbors(z, self.slots)
            voxels[z] = _mix(voxels[below], voxels[above], (z - below) / (above - below))
        if self._heights is not None:
            voxels = _resample(voxels, self._heights, self.grid.shape[0], self.grid.spacing_mm[0])
        return voxels


def plan_stack(
    positions_mm: Float[np.ndarray, "slices 3"],
    row: Float[np.ndarray, "3"],
    column: Float[np.ndarray, "3"],
    pixel_mm: tuple[float, float],
    size: tuple[int, int],
) -> Stack:
    """Judge the positions of parallel slices.

    Args:
        positions_mm: LPS centers of the slices' first pixels, two or more, at different heights, in order.
        row: Unit vector along a row.
        column: Unit vector along a column, at a right angle to the row.
        pixel_mm: Spacing in y, x.
        size: Rows and columns.

    Raises:
        GeometryError: ``dicom-uneven-spacing`` when too many slices are missing or a gap is too wide;
            ``dicom-tilted`` beyond `MAX_TILT_DEGREES`; ``dicom-mixed-geometry`` when slices jump sideways.
    """
    normal = np.cross(row, column)
    normal *= np.sign(normal @ (positions_mm[-1] - positions_mm[0]))
    heights = (positions_mm - positions_mm[0]) @ normal
    sideways = (positions_mm - positions_mm[0]) @ np.stack([column, row], axis=1)
    slots, step, is_even = _space(heights, positions_mm)
    missing = tuple(sorted(set(range(int(slots[-1]) + 1)) - set(slots.tolist())))
    repairs = [_missing_remark(missing, positions_mm, slots)] if missing else []
    if not is_even:
        repairs.append(_uneven_remark(heights, step))
    shifts = None
    if np.abs(sideways).max() > DRIFT_MM:
        repairs.append(_tilt_remark(heights, sideways))
        shifts = sideways / np.array(pixel_mm)
    low = np.zeros(2) if shifts is None else np.floor(shifts.min(axis=0))
    high = np.zeros(2) if shifts is None else np.ceil(shifts.max(axis=0))
    rows, columns = (int(n) for n in np.array(size) + high - low)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([normal * step, column * pixel_mm[0], row * pixel_mm[1]], axis=1)
    affine[:3, 3] = positions_mm[0] + affine[:3, 1:3] @ low
    depth = int(slots[-1]) + 1 if is_even else 1 + round(heights[-1] / step)
    return Stack(
        grid=Grid((depth, rows, columns), affine),
        buffer_shape=(int(slots[-1]) + 1, *size),
        slots=slots,
        missing=missing,
        interpolated=missing if is_even else _far_slices(heights, depth, step),
        repairs=tuple(repairs),
        _shifts=None if shifts is None else shifts - low,
        _heights=None if is_even else heights,
    )


def _space(
    heights: Float[np.ndarray, " slices"], positions_mm: Float[np.ndarray, "slices 3"]
) -> tuple[Int[np.ndarray, " slices"], float, bool]:
    """Return each slice's slot, the distance of slots, and whether the slices lie on even places."""
    gaps = np.diff(heights)
    usual = float(np.sort(gaps)[len(gaps) // 2])
    slots = np.arange(len(heights))
    if (step := _lattice_step(heights, slots)) is not None:
        return slots, step, True
    is_wide = gaps > _WIDE * usual
    lost = int((np.rint(gaps[is_wide] / usual) - 1).sum())
    is_rare = 0 < np.count_nonzero(is_wide) <= max(1.0, _RARE * len(gaps))
    if lost > MAX_MISSING if is_rare else gaps.max() > MAX_GAP_MM:
        raise _too_wide(gaps, usual, positions_mm, lost if is_rare else 0)
    if gaps.min() < _TOO_NEAR * np.quantile(gaps, 0.75):
        raise GeometryError(
            "dicom-uneven-spacing",
            f"Slices lie only {gaps.min():.2f} mm apart where others are {gaps.max():.2f} mm apart, as when "
            "two acquisitions are mixed.",
        )
    if is_rare:
        filled = np.concatenate([[0], np.cumsum(np.maximum(1, np.rint(gaps / usual)))]).astype(np.int64)
        if (step := _lattice_step(heights, filled)) is not None:
            return filled, step, True
        if gaps.max() > MAX_GAP_MM:
            raise _too_wide(gaps, usual, positions_mm, lost)
    return slots, usual, False


def _too_wide(
    gaps: Float[np.ndarray, " gaps"],
    usual: float,
    positions_mm: Float[np.ndarray, "slices 3"],
    lost: int,
) -> GeometryError:
    """Name the place of the widest gap."""
    worst = int(gaps.argmax())
    guess = f"; {lost} slices are missing in all" if lost else ""
    return GeometryError(
        "dicom-uneven-spacing",
        f"Above z = {positions_mm[worst][2]:.1f} mm the gap is {gaps[worst]:.2f} mm, {usual:.2f} mm is "
        f"usual{guess}.",
    )


def _far_slices(heights: Float[np.ndarray, " slices"], depth: int, step: float) -> tuple[int, ...]:
    """Return the slices of a resampled volume that lie in a wide gap, away from all measured ones."""
    places = step * np.arange(depth)
    distance = np.abs(places[:, None] - heights[None, :]).min(axis=1)
    return tuple(np.flatnonzero(distance >= _WIDE * step / 2.0).tolist())


def _lattice_step(heights: Float[np.ndarray, " slices"], slots: Int[np.ndarray, " slices"]) -> float | None:
    """Return the distance of slots when all slices lie on them, within the tolerance."""
    step = float(heights[-1] / slots[-1])
    # Against the whole lattice, not gap by gap: small steps in one direction add up, jitter does not.
    off = np.abs(heights - step * slots).max()
    return step if off <= max(SPACING_MM, SPACING_SHARE * step) else None


def _missing_remark(
    missing: tuple[int, ...], positions_mm: Float[np.ndarray, "slices 3"], slots: Int[np.ndarray, " slices"]
) -> Remark:
    """Say which slices were interpolated."""
    places = np.interp(missing, slots, positions_mm[:, 2])
    listed = " and ".join(f"{place:.1f}" for place in places)
    count = "1 missing slice was" if len(missing) == 1 else f"{len(missing)} missing slices were"
    return Remark("slices-interpolated", f"{count} interpolated at z = {listed} mm.")


def _uneven_remark(heights: Float[np.ndarray, " slices"], step: float) -> Remark:
    """Say that the slices were resampled."""
    gaps = np.diff(heights)
    return Remark(
        "spacing-resampled",
        f"Slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart; they were resampled to {step:.2f} mm.",
    )


def _tilt_remark(heights: Float[np.ndarray, " slices"], sideways: Float[np.ndarray, "slices 2"]) -> Remark:
    """Say by which angle the stack leans, or refuse one that does not lie on a line."""
    slope = heights @ sideways / (heights @ heights)
    off_line = np.linalg.norm(sideways - heights[:, None] * slope, axis=1).max()
    if off_line > _OFF_LINE_MM:
        raise GeometryError(
            "dicom-mixed-geometry", f"Slices lie up to {off_line:.1f} mm beside the line of the others."
        )
    angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    if angle > MAX_TILT_DEGREES:
        raise GeometryError(
            "dicom-tilted",
            f"The slices lean by {angle:.0f} degrees; gantries tilt by {MAX_TILT_DEGREES:.0f} at most.",
        )
    return Remark(
        "tilt-corrected", f"Slices sheared by {angle:.1f} degrees were moved to their true positions."
    )


def _neighbors(z: int, slots: Int[np.ndarray, " slices"]) -> tuple[int, int]:
    """Return the slots of the measured slices below and above a missing one."""
    above = int(np.searchsorted(slots, z))
    return int(slots[above - 1]), int(slots[above])


def _mix(
    one: Int16[np.ndarray, "y x"], other: Int16[np.ndarray, "y x"], share: float
) -> Int16[np.ndarray, "y x"]:
    """Interpolate linearly; ``share`` 0 gives one, 1 the other."""
    mixed = one * np.float32(1.0 - share) + other * np.float32(share)
    return np.asarray(np.rint(mixed), dtype=np.int16)


def _resample(
    voxels: Int16[np.ndarray, "z y x"], heights: Float[np.ndarray, " z"], depth: int, step: float
) -> Int16[np.ndarray, "z2 y x"]:
    """Interpolate slices at even heights."""
    out = np.empty((depth, *voxels.shape[1:]), np.int16)
    places = np.interp(step * np.arange(depth), heights, np.arange(len(heights)))
    for target, place in zip(out, places, strict=True):
        below = min(int(place), len(heights) - 2)
        target[:] = _mix(voxels[below], voxels[below + 1], place - below)
    return out


def _shear(
    buffer: Int16[np.ndarray, "z y x"],
    slots: Int[np.ndarray, " slices"],
    shifts: Float[np.ndarray, "slices 2"],
    size: tuple[int, int],
    background: int,
) -> Int16[np.ndarray, "z y2 x2"]:
    """Move slices in their planes by whole and broken pixels into larger ones."""
    out = np.full((len(buffer), *size), background, np.int16)
    rows, columns = buffer.shape[1:]
    for slot, shift in zip(slots, shifts, strict=True):
        moved = np.full((rows + 1, columns + 1), background, np.float32)
        moved[:rows, :columns] = buffer[slot]
        (y, x), (part_y, part_x) = np.floor(shift).astype(int), shift % 1.0
        moved = _mix_pixels(_mix_pixels(moved, part_y, background, axis=0), part_x, background, axis=1)
        high, wide = min(rows + 1, size[0] - y), min(columns + 1, size[1] - x)
        out[slot, y : y + high, x : x + wide] = np.rint(moved[:high, :wide])
    return out


def _mix_pixels(
    pixels: Float[np.ndarray, "y x"], part: float, background: int, *, axis: int
) -> Float[np.ndarray, "y x"]:
    """Move pixels along an axis by a part of a pixel."""
    if part == 0.0:
        return pixels
    before = np.roll(pixels, 1, axis)
    np.moveaxis(before, axis, 0)[0] = background
    return np.asarray(pixels * np.float32(1.0 - part) + before * np.float32(part))
