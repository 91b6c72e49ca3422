# SPDX-License-Identifier: Apache-2.0
"""Branching tubes in the lungs (arteries, veins, bronchi) and how tubes and balls are drawn on a grid."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ucadi.phantom.anatomy import HILA_MM, Thorax

__all__ = ["Tubes", "draw_airways", "draw_vessels", "join", "paint", "points_in_lung"]

_TIP_RADIUS_MM = 0.74
_MURRAY = 2.65
"""Radius grows with the number of tips to the power 1/2.65. Source: morphometry of pulmonary arteries."""


@dataclass(frozen=True, eq=False)
class Tubes:
    """Capsules: straight tubes with round ends; a ball where start equals end.

    Attributes:
        start: (n, 3) mm, z y x.
        end: (n, 3) mm.
        radius: (n,) mm.
    """

    start: Float[np.ndarray, "n 3"]
    end: Float[np.ndarray, "n 3"]
    radius: Float[np.ndarray, " n"]

    def grown(self, wall_mm: Float[np.ndarray, " n"] | float) -> "Tubes":
        """Return the same tubes with another radius."""
        return Tubes(self.start, self.end, self.radius + wall_mm)

    def where(self, keep: np.ndarray) -> "Tubes":
        """Return some of the tubes."""
        return Tubes(self.start[keep], self.end[keep], self.radius[keep])


def join(*parts: Tubes) -> Tubes:
    """Put tubes together."""
    return Tubes(
        np.concatenate([p.start for p in parts]),
        np.concatenate([p.end for p in parts]),
        np.concatenate([p.radius for p in parts]),
    )


def points_in_lung(
    rng: np.random.Generator, thorax: Thorax, count: int, depth_mm: float, side: str
) -> Float[np.ndarray, "count 3"]:
    """Draw points spread over one lung, at least a depth away from its surface."""
    low, high = (np.array(corner) for corner in thorax.lung_box_mm)
    if side == "right":
        high[2] = 0.0
    else:
        low[2] = 0.0
    found = np.empty((0, 3))
    while len(found) < count:
        points = rng.uniform(low, high, (4 * count, 3))
        found = np.concatenate([found, points[thorax.lung.at(points) > depth_mm]])
    return found[:count]


def draw_vessels(rng: np.random.Generator, thorax: Thorax) -> Tubes:
    """Draw arteries and veins of both lungs."""
    trees = []
    for side, hilum in HILA_MM.items():
        for drop, tips in ((0.0, 512), (-16.0, 256)):  # veins enter lower than arteries
            root = thorax.build.scale * (np.array(hilum) + np.array([drop, rng.uniform(-4, 4), 0.0]))
            trees.append(_grow(rng, root, points_in_lung(rng, thorax, tips, 4.0, side), _TIP_RADIUS_MM))
    return join(*trees)


def draw_airways(rng: np.random.Generator, thorax: Thorax) -> tuple[Tubes, Tubes]:
    """Draw trachea with main bronchi, and the bronchi inside the lungs (lumen radii)."""
    s = thorax.build.scale
    carina = s * np.array([26.0, 4.0, -2.0])
    top = s * np.array([150.0, 16.0, 0.0])
    ends, inner = [], []
    for side, hilum in HILA_MM.items():
        root = s * np.array(hilum)
        ends.append(root)
        tree = _grow(rng, root, points_in_lung(rng, thorax, 32, 16.0, side), 0.8)
        inside = thorax.lung.at((tree.start + tree.end) / 2) > 0
        inner.append(tree.where(inside))
    radius = s * rng.uniform(7.4, 8.8)
    central = Tubes(
        np.array([top, carina, carina]),
        np.array([carina, *ends]),
        np.array([radius, 0.78 * radius, 0.7 * radius]),
    )
    return central, join(*inner)


def _grow(rng: np.random.Generator, root: np.ndarray, tips: np.ndarray, tip_radius_mm: float) -> Tubes:
    """Join tips to a root by halving the set of tips along its longest axis, level by level.

    A branch point lies on the way from its parent to the middle of the tips that it feeds, so branches
    run outward and shorten, as in the lung. The number of tips is a power of two.
    """
    sets, parents = tips[None], root[None]
    parts = []
    while True:
        members = sets.shape[1]
        if members == 1:
            nodes = sets[:, 0]
        else:
            middle = sets.mean(axis=1)
            share = rng.uniform(0.35, 0.6, (len(sets), 1))
            reach = np.linalg.norm(middle - parents, axis=1, keepdims=True)
            nodes = parents + share * (middle - parents) + 0.1 * reach * rng.standard_normal(middle.shape)
        radius = tip_radius_mm * members ** (1.0 / _MURRAY) * rng.uniform(0.85, 1.15, len(nodes))
        parts.append(Tubes(parents, nodes, radius))
        if members == 1:
            return _bent(rng, join(*parts))
        spread = sets.var(axis=1) * (0.5, 1.0, 1.0)  # part front from back early: hila are not bare
        axis = spread.argmax(axis=1)
        order = np.argsort(np.take_along_axis(sets, axis[:, None, None], axis=2)[..., 0], axis=1)
        sets = np.take_along_axis(sets, order[..., None], axis=1).reshape(-1, members // 2, 3)
        parents = np.repeat(nodes, 2, axis=0)


def _bent(rng: np.random.Generator, tubes: Tubes) -> Tubes:
    """Give long tubes a bend in the middle: nothing in the lung is straight."""
    length = np.linalg.norm(tubes.end - tubes.start, axis=1)
    is_long = length > 14.0
    long = tubes.where(is_long)
    middle = (long.start + long.end) / 2 + 0.07 * length[is_long, None] * rng.standard_normal(
        long.start.shape
    )
    return join(
        tubes.where(~is_long),
        Tubes(long.start, middle, long.radius),
        Tubes(middle, long.end, 0.94 * long.radius),
    )


def paint(
    tubes: Tubes,
    axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray],
    blur_mm: tuple[float, float],
    out: np.ndarray,
) -> None:
    """Draw the covered share of each voxel into an array, keeping the larger value.

    Args:
        tubes: What is drawn.
        axes_mm: Coordinates of the slices, rows and columns; ascending.
        blur_mm: Voxel size along z and in-plane: sets the width of the edge, and how much a tube thinner
            than a voxel fades.
        out: (z, y, x) float32, changed in place.
    """
    edge = max(blur_mm)
    reach = tubes.radius + 0.5 * edge
    low = np.minimum(tubes.start, tubes.end) - reach[:, None]
    high = np.maximum(tubes.start, tubes.end) + reach[:, None]
    first = [np.searchsorted(a, low[:, i]) for i, a in enumerate(axes_mm)]
    last = [np.searchsorted(a, high[:, i]) for i, a in enumerate(axes_mm)]
    direction = tubes.end - tubes.start
    length2 = np.maximum((direction**2).sum(1), 1e-6)
    z, y, x = (a.astype(np.float32) for a in axes_mm)
    for n in range(len(tubes.radius)):
        a, b, c = (slice(int(first[i][n]), int(last[i][n])) for i in range(3))
        if a.start == a.stop or b.start == b.stop or c.start == c.stop:
            continue
        sz, sy, sx = (float(v) for v in tubes.start[n])
        dz, dy, dx = (float(v) for v in direction[n])
        pz, py, px = (z[a] - sz)[:, None, None], (y[b] - sy)[:, None], x[c] - sx
        inverse = 1.0 / float(length2[n])
        t = (pz * (dz * inverse) + py * (dy * inverse)) + px * (dx * inverse)
        np.clip(t, 0.0, 1.0, out=t)
        gap = (pz - t * dz) ** 2
        gap += (py - t * dy) ** 2
        gap += (px - t * dx) ** 2
        np.sqrt(gap, out=gap)
        radius = float(tubes.radius[n])
        # A tube thinner than the edge covers at most this share of a voxel on its axis.
        peak = min(1.0, (2.0 * radius / edge) ** 1.5)
        gap -= radius + 0.5 * edge
        gap *= -peak / edge
        np.clip(gap, 0.0, peak, out=gap)
        target = out[a, b, c]
        np.maximum(target, gap, out=target)
