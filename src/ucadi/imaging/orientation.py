# SPDX-License-Identifier: Apache-2.0
"""Bring any volume into the one array order: z toward the head, y toward the back, x toward the left."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume

__all__ = ["to_canonical"]


def to_canonical(volume: Volume) -> Volume:
    """Permute and flip axes so that they follow z, y, x as nearly as the affine allows.

    No voxel is interpolated: every voxel keeps its value and its place in the patient, and an oblique volume
    stays oblique. The voxels are C-contiguous, and not copied when they were in order.

    Args:
        volume: Any order and direction of axes.
    """
    affine = volume.grid.affine_lps
    # Rows: head, back, left (S, P, L); columns: the array's axes. An assignment, since two axes of an oblique
    # volume may both be nearest to the same patient axis.
    cosines = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))[::-1]
    rows, order = linear_sum_assignment(-np.abs(cosines))
    is_reversed = cosines[rows, order] < 0
    voxels = np.flip(volume.voxels.transpose(order), tuple(np.flatnonzero(is_reversed).tolist()))
    moved = affine.copy()
    moved[:, :3] = affine[:, order]
    for axis in np.flatnonzero(is_reversed):
        moved[:3, 3] += moved[:3, axis] * (voxels.shape[axis] - 1)
        moved[:3, axis] *= -1.0
    z, y, x = voxels.shape
    return Volume(np.ascontiguousarray(voxels), Grid((z, y, x), moved))
