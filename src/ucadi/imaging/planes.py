# SPDX-License-Identifier: Apache-2.0
"""A volume sampled on the planes of the images that it came from.

Results are computed on the repaired volume, but a viewer shows them over the images as they were made:
flipped, tilted, at uneven distances. Where an image's pixels fall on voxels, the voxels' own values are
returned; elsewhere the value is interpolated.
"""

from itertools import product
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from scipy.ndimage import map_coordinates

from ucadi.imaging.grid import Grid

__all__ = ["ON_VOXEL_MM", "ON_VOXEL_SHARE", "PixelPlane", "mask_on_plane", "values_on_plane"]

ON_VOXEL_MM, ON_VOXEL_SHARE = 0.1, 0.01
"""A pixel this near to a voxel's center, in mm or as a share of the spacing, lies on it: the tolerance within
which slices count as evenly spaced, so that jitter never blurs a mask."""

_NUDGE = 1e-3
"""Voxels. Half-way between two slices, what only one of them marks is neither in nor out, and any fixed rule
would shrink or swell every mask. So masks are sampled a little nearer to the slice with the even index, as
numbers are rounded half to even."""

Corner = Float[np.ndarray, "3"]


@runtime_checkable
class PixelPlane(Protocol):
    """Where an image's pixels lie, as DICOM states it."""

    @property
    def position_mm(self) -> Float[np.ndarray, "3"]:
        """Centre of the first pixel, LPS."""

    @property
    def row(self) -> Float[np.ndarray, "3"]:
        """Unit vector along a row, to the next column, LPS."""

    @property
    def column(self) -> Float[np.ndarray, "3"]:
        """Unit vector along a column, to the next row, LPS."""

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Distance of rows (y) and of columns (x)."""


def mask_on_plane(
    mask: Bool[np.ndarray, "z y x"], grid: Grid, plane: PixelPlane, size: tuple[int, int]
) -> Bool[np.ndarray, "rows columns"]:
    """Return a mask on an image's pixels: interpolated masks are true above one half, false outside the grid.

    Args:
        mask: Marked voxels.
        grid: Where the voxels lie.
        plane: Where the image lies.
        size: Rows and columns of the image.
    """
    is_above_odd = np.floor(grid.to_index(plane.position_mm)[0]) % 2 == 1
    sampled = _sample(mask, grid, plane, size, _NUDGE if is_above_odd else -_NUDGE)
    return sampled if sampled.dtype == np.bool_ else sampled > 0.5


def values_on_plane(
    voxels: Shaped[np.ndarray, "z y x"], grid: Grid, plane: PixelPlane, size: tuple[int, int]
) -> Shaped[np.ndarray, "rows columns"]:
    """Return a volume's values on an image's pixels: the voxels' own type, or float32 when interpolated.

    Args:
        voxels: Numbers or bool.
        grid: Where the voxels lie.
        plane: Where the image lies.
        size: Rows and columns of the image. Pixels outside the grid's edges become 0.
    """
    return _sample(voxels, grid, plane, size, 0.0)


def _sample(
    voxels: Shaped[np.ndarray, "z y x"], grid: Grid, plane: PixelPlane, size: tuple[int, int], nudge: float
) -> Shaped[np.ndarray, "rows columns"]:
    """Return the voxels under the pixels, or values interpolated a nudge (in voxels along z) beside them."""
    start = grid.to_index(plane.position_mm)
    to_row = grid.to_index(plane.position_mm + plane.column * plane.pixel_mm[0]) - start
    to_column = grid.to_index(plane.position_mm + plane.row * plane.pixel_mm[1]) - start
    if _is_on_voxels(grid, start, to_row, to_column, size):
        first, down, right = (np.rint(index).astype(np.intp) for index in (start, to_row, to_column))
        return _pick(voxels, first, down, right, size)
    return _interpolate(voxels, start + np.array((nudge, 0.0, 0.0)), to_row, to_column, size)


def _is_on_voxels(
    grid: Grid, start: Corner, to_row: Corner, to_column: Corner, size: tuple[int, int]
) -> bool:
    """Tell whether every pixel lies on a voxel's center: the corners decide, for all between is linear."""
    whole = np.rint(to_row), np.rint(to_column)
    if any(np.abs(step).sum() != 1 for step in whole) or whole[0] @ whole[1] != 0:
        return False
    spacing_mm = np.array(grid.spacing_mm)
    tolerance = np.maximum(ON_VOXEL_MM / spacing_mm, ON_VOXEL_SHARE)
    for down, right in product((0, size[0] - 1), (0, size[1] - 1)):
        index = start + down * to_row + right * to_column
        if np.any(np.abs(index - (np.rint(start) + down * whole[0] + right * whole[1])) > tolerance):
            return False
    return True


def _pick(
    voxels: Shaped[np.ndarray, "z y x"],
    start: Integer[np.ndarray, "3"],
    to_row: Integer[np.ndarray, "3"],
    to_column: Integer[np.ndarray, "3"],
    size: tuple[int, int],
) -> Shaped[np.ndarray, "rows columns"]:
    """Return the voxels under the pixels; rows and columns run along one axis each, either way."""
    axes = [int(np.abs(step).argmax()) for step in (to_row, to_column)]
    across = 3 - sum(axes)
    result = np.zeros(size, voxels.dtype)
    if not 0 <= start[across] < voxels.shape[across]:
        return result
    sheet = np.moveaxis(voxels, across, 0)[start[across]]
    if axes[0] > axes[1]:
        sheet = sheet.T
    rows, columns = (
        start[axis] + step[axis] * np.arange(n)
        for axis, step, n in zip(axes, (to_row, to_column), size, strict=True)
    )
    has_row, has_column = (
        (index >= 0) & (index < n) for index, n in zip((rows, columns), sheet.shape, strict=True)
    )
    result[np.ix_(has_row, has_column)] = sheet[np.ix_(rows[has_row], columns[has_column])]
    return result


def _interpolate(
    voxels: Shaped[np.ndarray, "z y x"],
    start: Corner,
    to_row: Corner,
    to_column: Corner,
    size: tuple[int, int],
) -> Float[np.ndarray, "rows columns"]:
    """Return values interpolated between voxels; edge values hold for half a voxel beyond the centers."""
    down, right = np.arange(size[0])[:, None], np.arange(size[1])[None, :]
    index = [start[axis] + down * to_row[axis] + right * to_column[axis] for axis in range(3)]
    is_inside = np.ones(size, np.bool_)
    for along, n in zip(index, voxels.shape, strict=True):
        is_inside &= (along >= -0.5) & (along <= n - 0.5)
    result = np.zeros(size, np.float32)
    places = np.stack([along[is_inside] for along in index])
    result[is_inside] = map_coordinates(voxels, places, np.float32, order=1, mode="nearest")
    return result
