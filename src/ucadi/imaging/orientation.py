# SPDX-License-Identifier: Apache-2.0
"""Bring any volume into the one array order: z toward the head, y toward the back, x toward the left."""

from itertools import permutations

import numpy as np
from jaxtyping import Float, Shaped

from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume

__all__ = ["to_canonical"]

_CANONICAL = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""LPS directions of the array axes z, y, x, one per row."""


def to_canonical(
    voxels: Shaped[np.ndarray, "a b c"], affine_lps: Float[np.ndarray, "4 4"]
) -> tuple[Volume, bool]:
    """Permute and flip the axes so that they follow z, y, x as nearly as the affine allows.

    No voxel is interpolated; an oblique volume stays oblique.

    Args:
        voxels: Any axis order.
        affine_lps: Maps (a, b, c, 1) to LPS mm.

    Returns:
        The volume (a view of the voxels), and whether anything changed.

    Raises:
        ValueError: If the affine is singular.
    """
    directions = affine_lps[:3, :3] / np.linalg.norm(affine_lps[:3, :3], axis=0)
    cosines = _CANONICAL @ directions  # rows: z, y, x; columns: array axes
    order = max(permutations(range(3)), key=lambda axes: sum(abs(cosines[k, axes[k]]) for k in range(3)))
    flips = [bool(cosines[k, order[k]] < 0) for k in range(3)]
    turned = np.transpose(voxels, order)
    affine = affine_lps.astype(np.float64).copy()
    affine[:, :3] = affine[:, :3][:, list(order)]
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (turned.shape[axis] - 1)
            affine[:3, axis] *= -1
    turned = np.flip(turned, [axis for axis, flip in enumerate(flips) if flip])
    z, y, x = turned.shape
    return Volume(turned, Grid((z, y, x), affine)), order != (0, 1, 2) or any(flips)
