# SPDX-License-Identifier: Apache-2.0
"""Continuous scalar fields in patient space: values on a coarse lattice, joined by cubic B-splines.

The spline is the definition of the field, so one field can be read on any grid and always means the same
anatomy. Reading is separable: in-plane first, on the lattice's few slices, then along z where it is wanted.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from ucadi.types import Triple

__all__ = ["Field", "InPlane", "Lattice", "noise_field", "smooth_max", "smooth_min"]


@dataclass(frozen=True)
class Lattice:
    """Where a field's nodes lie.

    Attributes:
        shape: Nodes in z, y, x.
        step_mm: Distance between nodes, the same along each axis.
        origin_mm: Node (0, 0, 0) in z, y, x.
    """

    shape: tuple[int, int, int]
    step_mm: float
    origin_mm: Triple

    @classmethod
    def over_box(cls, low_mm: Triple, high_mm: Triple, step_mm: float) -> "Lattice":
        """Build a lattice that covers a box with two nodes to spare on each side."""
        shape = tuple(int(np.ceil((b - a) / step_mm)) + 5 for a, b in zip(low_mm, high_mm, strict=True))
        z, y, x = (a - 2 * step_mm for a in low_mm)
        return cls((shape[0], shape[1], shape[2]), step_mm, (z, y, x))

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the nodes' coordinates in mm, shaped to broadcast: (z,1,1), (1,y,1), (1,1,x)."""
        z, y, x = (
            (origin + self.step_mm * np.arange(n)).astype(np.float32)
            for origin, n in zip(self.origin_mm, self.shape, strict=True)
        )
        return z[:, None, None], y[None, :, None], x[None, None, :]


@dataclass(frozen=True, eq=False)
class Field:
    """A scalar field.

    Attributes:
        nodes: (z, y, x) float32, the spline's coefficients.
        lattice: Where they lie.
        is_periodic: Whether the field repeats beyond its lattice (noise) or holds its edge value.
    """

    nodes: Float[np.ndarray, "z y x"]
    lattice: Lattice
    is_periodic: bool = False

    def weights(self, axis: int, position_mm: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n nodes"]:
        """Return the spline's weights of one axis' nodes at positions: rows sum to 1."""
        size = self.lattice.shape[axis]
        t = (position_mm - self.lattice.origin_mm[axis]) / self.lattice.step_mm
        base = np.floor(t).astype(np.intp)
        u = t - base
        parts = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, 3 * (u * (1 + u - u**2)) + 1, u**3)
        out = np.zeros((len(position_mm), size), np.float32)
        rows = np.arange(len(position_mm))
        for offset, part in zip((-1, 0, 1, 2), parts, strict=True):
            nodes = (base + offset) % size if self.is_periodic else np.clip(base + offset, 0, size - 1)
            np.add.at(out, (rows, nodes), (part / 6.0).astype(np.float32))
        return out

    def in_plane(self, y_mm: Float[np.ndarray, " y"], x_mm: Float[np.ndarray, " x"]) -> "InPlane":
        """Read the field at the given rows and columns, on the lattice's slices."""
        rows = np.matmul(self.weights(1, y_mm), self.nodes)
        return InPlane(self, np.matmul(rows, self.weights(2, x_mm).T))

    def at(self, points_mm: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        """Read the field at scattered points (z, y, x)."""
        index = (points_mm - np.array(self.lattice.origin_mm)) / self.lattice.step_mm
        values = ndimage.map_coordinates(
            self.nodes, index.T, order=3, mode="grid-wrap" if self.is_periodic else "nearest", prefilter=False
        )
        return np.asarray(values, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class InPlane:
    """A field on given rows and columns, still continuous along z."""

    field: Field
    slices: Float[np.ndarray, "nodes y x"]

    def at(self, z_mm: Float[np.ndarray, " z"]) -> Float[np.ndarray, "z y x"]:
        """Read at heights in mm; only the lattice slices that carry weight are touched."""
        weights = self.field.weights(0, z_mm)
        used = np.flatnonzero(weights.any(axis=0))
        if self.field.is_periodic:
            nodes = self.slices[used]
        else:
            nodes = self.slices[used[0] : used[-1] + 1]
            used = np.arange(used[0], used[-1] + 1)
        flat = np.matmul(weights[:, used], nodes.reshape(len(used), -1))
        return np.asarray(flat.reshape(len(z_mm), *self.slices.shape[1:]))


def noise_field(rng: np.random.Generator, nodes: int, step_mm: float) -> Field:
    """Draw a periodic noise field with mean 0, sd about 1 and a correlation length of about one step."""
    lattice = Lattice((nodes, nodes, nodes), step_mm, (0.0, 0.0, 0.0))
    white = rng.standard_normal((nodes, nodes, nodes), dtype=np.float32)
    # The spline averages its nodes: 0.479 is the mean sum of squared weights along one axis.
    return Field(white / np.float32(0.479**1.5), lattice, is_periodic=True)


def smooth_min(
    a: Float[np.ndarray, "z y x"], b: Float[np.ndarray, "z y x"], radius_mm: float
) -> Float[np.ndarray, "z y x"]:
    """Return the smaller of two distances, with the edge between them rounded (polynomial blend)."""
    h = np.clip(0.5 + 0.5 * (b - a) / radius_mm, 0, 1)
    result: np.ndarray = b + (a - b) * h - radius_mm * h * (1 - h)
    return result.astype(np.float32, copy=False)


def smooth_max(
    a: Float[np.ndarray, "z y x"], b: Float[np.ndarray, "z y x"], radius_mm: float
) -> Float[np.ndarray, "z y x"]:
    """Return the larger of two distances, with the edge between them rounded."""
    return -smooth_min(-a, -b, radius_mm)
