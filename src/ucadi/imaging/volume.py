# SPDX-License-Identifier: Apache-2.0
"""A 3D array together with its grid."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from ucadi.imaging.grid import Grid

__all__ = ["Volume"]


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie.

    Attributes:
        voxels: (z, y, x). HU as int16 or float32 for a CT; bool for a mask.
        grid: Geometry of the voxels; same shape.

    Raises:
        ValueError: If array and grid differ in shape.
    """

    voxels: Shaped[np.ndarray, "z y x"]
    grid: Grid

    def __post_init__(self) -> None:
        if self.voxels.shape != self.grid.shape:
            raise ValueError(f"voxels have shape {self.voxels.shape}, the grid {self.grid.shape}")

    def crop(self, box: tuple[slice, slice, slice]) -> "Volume":
        """Return the sub-volume in a box given by three slices with start and stop."""
        return Volume(self.voxels[box], self.grid.crop(box))
