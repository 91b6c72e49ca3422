# SPDX-License-Identifier: Apache-2.0
"""Linear resampling between grids that share their axes, one axis after the other.

`resample_linear` averages where the target is coarser, as a network's input needs it. `interpolate_linear`
takes the value at each place, whatever the distance of places, as image libraries do.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from ucadi.imaging.grid import Grid

__all__ = ["axis_weights", "interpolate_linear", "resample_linear"]


def axis_weights(
    size_in: int, size_out: int, start: float, step: float
) -> Float[np.ndarray, "size_out size_in"]:
    """Return the weights of one axis: rows sum to 1.

    Output i lies at input index ``start + i·step``. For step <= 1 this is linear interpolation; for larger
    steps the triangle is as wide as the step, so that no input sample is skipped (no aliasing). Beyond the
    first and last sample the edge value holds.
    """
    position = np.clip(start + step * np.arange(size_out), 0, size_in - 1)[:, None]
    distance = np.abs(position - np.arange(size_in)[None, :]) / max(1.0, step)
    weights = np.clip(1.0 - distance, 0.0, None)
    normalized: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalized


def resample_linear(
    voxels: Shaped[np.ndarray, "z y x"], grid: Grid, target: Grid
) -> Float[np.ndarray, "z2 y2 x2"]:
    """Resample voxels to a grid with the same axes; float32.

    Args:
        voxels: Any number type or bool, on ``grid``.
        grid: Where the voxels lie.
        target: Where values are wanted; same axis directions, any spacing, origin and shape.

    Raises:
        ValueError: If the grids' axes differ in direction.
    """
    start, step = _start_and_step(grid, target)
    result = voxels
    for axis in range(3):  # z first: it shrinks thin-slice series before the in-plane work
        result = _apply(
            result, axis, axis_weights(result.shape[axis], target.shape[axis], start[axis], step[axis])
        )
    return result.astype(np.float32, copy=False)


def interpolate_linear(
    voxels: Shaped[np.ndarray, "z y x"], grid: Grid, target: Grid
) -> Float[np.ndarray, "z2 y2 x2"]:
    """Take the values at a grid's voxel centers, linear between the eight voxels around; float32.

    Beyond the first and last voxel the edge value holds. Slices that no center lies next to are not touched.
    To coarser voxels, small structures between the centers are skipped; `resample_linear` averages them.

    Args:
        voxels: Any number type or bool, on ``grid``.
        grid: Where the voxels lie.
        target: Where values are wanted; same axis directions, any spacing, origin and shape.

    Raises:
        ValueError: If the grids' axes differ in direction.
    """
    start, step = _start_and_step(grid, target)
    slices, rows, columns = (
        _taps(voxels.shape[axis], target.shape[axis], start[axis], step[axis]) for axis in range(3)
    )
    depth, height, width = target.shape
    out = np.empty((depth, height, width), np.float32)
    # One slice after the other: these stay in the processor's cache.
    plane, plane2 = np.empty((2, *voxels.shape[1:]), np.float32)
    lines, lines2 = np.empty((2, height, voxels.shape[2]), np.float32)
    spare = np.empty((height, width), np.float32)
    for below, above, share, result in zip(*slices, out, strict=True):
        np.multiply(voxels[below], 1 - share, out=plane)
        np.multiply(voxels[above], share, out=plane2)
        plane += plane2
        _between(plane, rows._replace(share=rows.share[:, None]), 0, lines, lines2)
        _between(lines, columns, 1, result, spare)
    return out


class _Taps(NamedTuple):
    """For each output along an axis: the two inputs around it, and how near it is to the second."""

    below: Int[np.ndarray, " outputs"]
    above: Int[np.ndarray, " outputs"]
    share: Float[np.ndarray, "..."]


def _taps(size_in: int, size_out: int, start: float, step: float) -> _Taps:
    """Return the inputs between which outputs at ``start + i * step`` lie."""
    position = np.clip(start + step * np.arange(size_out), 0, size_in - 1)
    below = position.astype(np.intp)
    return _Taps(below, np.minimum(below + 1, size_in - 1), (position - below).astype(np.float32))


def _between(
    values: Float[np.ndarray, "y x"],
    taps: _Taps,
    axis: int,
    out: Float[np.ndarray, "y2 x2"],
    spare: Float[np.ndarray, "y2 x2"],
) -> None:
    """Write the values between neighbors along an axis."""
    np.take(values, taps.below, axis, out=out, mode="clip")  # in range already; "raise" would copy
    np.take(values, taps.above, axis, out=spare, mode="clip")
    spare -= out
    spare *= taps.share
    out += spare


def _start_and_step(grid: Grid, target: Grid) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Return the target's first center and its steps, both in voxels of the grid."""
    step = np.array(target.spacing_mm) / np.array(grid.spacing_mm)
    turned = target.affine_lps[:3, :3] - grid.affine_lps[:3, :3] * step
    if np.abs(turned).max() > 1e-4 * max(target.spacing_mm):
        raise ValueError("both grids must have the same axes")
    return grid.to_index(target.affine_lps[:3, 3]), step


def _apply(
    voxels: Shaped[np.ndarray, "z y x"], axis: int, weights: Float[np.ndarray, "size_out size_in"]
) -> Shaped[np.ndarray, "z2 y2 x2"]:
    """Apply one axis' weights, reading only the inputs that carry weight."""
    if axis > 0:  # in-plane: a matrix product per slice
        voxels = voxels.astype(np.float32, copy=False)
        with np.errstate(all="ignore"):  # unused vector lanes of the BLAS set floating-point flags at random
            product: np.ndarray = np.matmul(weights, voxels) if axis == 1 else np.matmul(voxels, weights.T)
        return product
    out = np.zeros((len(weights), *voxels.shape[1:]), np.float32)
    for row, target in zip(weights, out, strict=True):
        for k in np.flatnonzero(row):
            target += row[k] * voxels[k]
    return out
