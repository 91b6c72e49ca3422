# SPDX-License-Identifier: Apache-2.0
"""Where voxels lie: shape and affine, without the voxels.

Arrays are (z, y, x): z toward the head, y toward the back, x toward the patient's left. World coordinates
are LPS in mm. An affine maps an index (z, y, x, 1) to (L, P, S, 1).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ucadi.types import Triple

__all__ = ["Grid"]


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice in patient space.

    Attributes:
        shape: Number of voxels in z, y, x.
        affine_lps: 4x4, maps (z, y, x, 1) to LPS mm. Voxel centres, not corners.

    Raises:
        ValueError: If the shape is not three positive numbers or the affine is singular or not finite.
    """

    shape: tuple[int, int, int]
    affine_lps: Float[np.ndarray, "4 4"]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a grid needs three positive sizes, got {self.shape}")
        affine = np.array(self.affine_lps, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
            raise ValueError("a grid needs a finite, invertible 4x4 affine")
        affine.flags.writeable = False
        object.__setattr__(self, "affine_lps", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @classmethod
    def from_spacing(
        cls, shape: tuple[int, int, int], spacing_mm: Triple, origin_mm: Triple = (0.0, 0.0, 0.0)
    ) -> "Grid":
        """Build an upright grid: rows, columns and slices along the patient's axes.

        Args:
            shape: Voxels in z, y, x.
            spacing_mm: Distance between voxel centres in z, y, x.
            origin_mm: Centre of voxel (0, 0, 0), in z, y, x order (S, P, L).
        """
        affine = np.eye(4)
        affine[:3, :3] = np.fliplr(np.diag(spacing_mm[::-1]))
        affine[:3, 3] = origin_mm[::-1]
        return cls(shape, affine)

    @property
    def spacing_mm(self) -> Triple:
        """Distance between voxel centres in z, y, x."""
        z, y, x = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def origin_mm(self) -> Triple:
        """Centre of voxel (0, 0, 0) in z, y, x order (S, P, L)."""
        left, posterior, superior = self.affine_lps[:3, 3]
        return float(superior), float(posterior), float(left)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return float(abs(np.linalg.det(self.affine_lps[:3, :3])) / 1000.0)

    @property
    def extent_mm(self) -> Triple:
        """Edge-to-edge size in z, y, x."""
        (z, y, x), (sz, sy, sx) = self.shape, self.spacing_mm
        return z * sz, y * sy, x * sx

    def to_world(self, index: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Map indices (z, y, x), fractional allowed, to LPS mm."""
        return np.asarray(index @ self.affine_lps[:3, :3].T + self.affine_lps[:3, 3])

    def to_index(self, world_lps: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Map LPS mm to fractional indices (z, y, x)."""
        inverse = np.linalg.inv(self.affine_lps)
        return np.asarray(world_lps @ inverse[:3, :3].T + inverse[:3, 3])

    def with_spacing(self, spacing_mm: Triple) -> "Grid":
        """Return a grid over the same edge-to-edge box with another spacing.

        The first edge stays where it is, so the first centre moves by half the change of spacing; each size
        is the extent over the new spacing, rounded, at least 1.
        """
        old = np.array(self.spacing_mm)
        new = np.array(spacing_mm, dtype=np.float64)
        shape = tuple(max(1, int(n)) for n in np.floor(np.array(self.extent_mm) / new + 0.5))
        affine = self.affine_lps.copy()
        affine[:3, :3] = self.affine_lps[:3, :3] / old * new
        affine[:3, 3] = self.to_world((new / old - 1.0) / 2.0)
        return type(self)((shape[0], shape[1], shape[2]), affine)

    def crop(self, box: tuple[slice, slice, slice]) -> "Grid":
        """Return the grid of a sub-box given by three slices with start and stop."""
        start = np.array([s.start for s in box], dtype=np.float64)
        affine = self.affine_lps.copy()
        affine[:3, 3] = self.to_world(start)
        z, y, x = (int(s.stop - s.start) for s in box)
        return type(self)((z, y, x), affine)

    def is_close(self, other: "Grid", tolerance_mm: float = 0.01) -> bool:
        """Tell whether both grids place every voxel at the same spot, within a tolerance."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1).T
        distance = self.to_world(corners.astype(np.float64)) - other.to_world(corners.astype(np.float64))
        return bool(np.abs(distance).max() <= tolerance_mm)
