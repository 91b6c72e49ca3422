# SPDX-License-Identifier: Apache-2.0
"""Where the lungs are: air enclosed by the body, left and right apart, with what disease has filled.

Deterministic image processing: topology on a sparse copy of the scan (every third millimeter or so), edges
at full resolution. A trained network can take its place behind `find_lungs`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped
from scipy import ndimage

from ucadi.errors import GeometryError
from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume

__all__ = ["Lungs", "find_lungs", "lung_box"]

Box = tuple[slice, slice, slice]
Steps = tuple[int, int, int]

_AIR_HU = -400.0
"""Half-way between soft tissue (about 40) and aerated lung (about -850); most ground glass lies below."""

_GAS_HU = -960.0
"""Aerated lung holds blood, so its median lies above; the median of bowel gas and trachea lies below."""

_WORK_MM = 3.0
"""Spacing of the sparse copy: thinner than the chest wall, the diaphragm and the septum between the lungs."""

_MIN_PIECE_ML = 30.0
"""Smaller pieces of enclosed air are bowel, esophagus, cysts or noise."""

_MIN_LUNGS_ML = 300.0
"""Less air than this is no chest, whatever else the scan shows."""

_CLOSING_MM = 9.0
"""Bridges vessels and consolidations of up to twice this width."""

_SPLIT_MM = (0.0, 6.0, 9.0, 12.0, 15.0, 18.0)
"""Depths below the lungs' surface at which airways and the thin septum no longer join them."""

_SIDE_SHARE = 0.05
"""A core this large, of all lung, may stand for a lung."""

_SIDES_APART_MM = 50.0
"""Between the middles of two lungs; parts of one lung lie closer together."""


@dataclass(frozen=True, eq=False)
class Lungs:
    """Both lungs of a scan.

    Attributes:
        mask: True in the lungs, diseased parts included as far as they can be told; on the volume's grid.
        grid: The volume's grid.
        box: Smallest box around the mask.
        left_ml: The patient's left lung; 0 when only the right one is there.
        right_ml: The patient's right lung; 0 when only the left one is there.
        area_cm2: Cross-section of both lungs in each slice, from feet to head.
    """

    mask: Bool[np.ndarray, "z y x"]
    grid: Grid
    box: Box
    left_ml: float
    right_ml: float
    area_cm2: Shaped[np.ndarray, " z"]

    @property
    def total_ml(self) -> float:
        """Both lungs."""
        return self.left_ml + self.right_ml

    @property
    def cut_share(self) -> tuple[float, float]:
        """Cross-section in the first and in the last slice, as shares of the largest one.

        Near 0 when the scan covers the lungs, toward 1 when it begins or ends in their middle.
        """
        largest = float(self.area_cm2.max())
        return float(self.area_cm2[0]) / largest, float(self.area_cm2[-1]) / largest


def find_lungs(volume: Volume) -> Lungs:
    """Find both lungs.

    Args:
        volume: CT in HU, canonical axes.

    Raises:
        GeometryError: ``ct-no-chest`` when the body encloses no air that could be lung.
    """
    z, y, x = (max(1, round(_WORK_MM / spacing)) for spacing in volume.grid.spacing_mm)
    steps = (z, y, x)
    sparse = volume.voxels[z // 2 :: z, y // 2 :: y, x // 2 :: x]
    spacing_mm = tuple(n * mm for n, mm in zip(steps, volume.grid.spacing_mm, strict=True))
    air = _lung_air(sparse, float(np.prod(spacing_mm)) / 1000.0)
    sides = _tell_sides(air, np.array(spacing_mm))
    filled = np.zeros_like(sides)
    for side in (1, 2):  # one after the other, so that the gap between the lungs stays open
        filled[_close(sides == side, np.array(spacing_mm)) & (filled == 0)] = side
    fine = _refine(volume.voxels, air, filled, steps)
    box = ndimage.find_objects(fine > 0)[0]
    counts = np.bincount(fine[box].ravel(), minlength=3)
    mask = fine.view(np.bool_) if fine.max() <= 1 else fine > 0
    pixel_cm2 = volume.grid.spacing_mm[1] * volume.grid.spacing_mm[2] / 100.0
    return Lungs(
        mask=mask,
        grid=volume.grid,
        box=(box[0], box[1], box[2]),
        left_ml=float(counts[2] * volume.grid.voxel_ml),
        right_ml=float(counts[1] * volume.grid.voxel_ml),
        area_cm2=np.count_nonzero(mask, axis=(1, 2)) * pixel_cm2,
    )
