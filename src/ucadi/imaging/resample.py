# SPDX-License-Identifier: Apache-2.0
"""Linear resampling between grids that share their axes, one axis after the other."""

import numpy as np
from jaxtyping import Float, Shaped

from ucadi.imaging.grid import Grid

__all__ = ["axis_weights", "resample_linear"]


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
    step = np.array(target.spacing_mm) / np.array(grid.spacing_mm)
    turned = target.affine_lps[:3, :3] - grid.affine_lps[:3, :3] * step
    if np.abs(turned).max() > 1e-4 * max(target.spacing_mm):
        raise ValueError("both grids must have the same axes")
    start = grid.to_index(target.affine_lps[:3, 3])
    result = voxels
    for axis in range(3):  # z first: it shrinks thin-slice series before the in-plane work
        result = _apply(
            result, axis, axis_weights(result.shape[axis], target.shape[axis], start[axis], step[axis])
        )
    return result.astype(np.float32, copy=False)


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
