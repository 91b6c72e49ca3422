# SPDX-License-Identifier: Apache-2.0
"""Ribs, breastbone and spine, drawn on a few slices at a time."""

import numpy as np
from jaxtyping import Float

from ucadi.phantom.anatomy import Thorax

__all__ = ["Axes", "Slab", "add_ribs", "add_spine", "blend"]

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Coordinates of slices, rows and columns in mm."""

Slab = Float[np.ndarray, "z y x"]

_CORTEX_HU, _MARROW_HU, _CARTILAGE_HU, _DISK_HU, _CANAL_HU = 620.0, 190.0, 120.0, 85.0, 25.0


def blend(hu: Slab, value: Slab | float, distance_mm: Slab, edge_mm: float) -> None:
    """Paint a value where a distance is positive, with an edge as wide as a voxel; in place."""
    share = distance_mm * np.float32(1.0 / edge_mm)
    share += np.float32(0.5)
    np.clip(share, 0.0, 1.0, out=share)
    share *= value - hu
    hu += share


def add_ribs(hu: Slab, thorax: Thorax, axes: Axes, cavity: Slab, edge_mm: float) -> None:
    """Paint ribs with cortex and marrow, their cartilage in front and the breastbone; in place."""
    z, y, x = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    s = thorax.build.scale
    heights, front, _ = thorax.midline_mm
    shell = (cavity < 0.0) & (cavity > -13.0 * s) & (np.abs(x) > 18.0 * s)
    k, j, i = np.nonzero(shell)
    if len(k):
        rise = (axes[0][k] - 0.42 * axes[1][j]) / (27.0 * s)  # ribs fall toward the front
        along = (rise - np.floor(rise) - 0.5) * (27.0 / 6.5)
        across = (-cavity[k, j, i] / s - 5.5) / 4.2
        rib = (1.0 - np.hypot(along, across)) * (4.2 * s)
        cortex = np.clip((2.2 - rib) / 1.5, 0.0, 1.0)
        value = _MARROW_HU + (_CORTEX_HU - _MARROW_HU) * cortex
        bony = np.clip((axes[1][j] + 58.0 * s) / (6.0 * s), 0.0, 1.0)
        value = _CARTILAGE_HU + (value - _CARTILAGE_HU) * bony
        share = np.clip(rib / edge_mm + 0.5, 0.0, 1.0)
        hu[k, j, i] += (share * (value - hu[k, j, i])).astype(np.float32)
    rows = np.interp(axes[0], heights, front).astype(np.float32)[:, None, None]
    bone = (1.0 - np.hypot(x / (17.0 * s), (y - rows) / (5.5 * s))) * (5.5 * s)
    bone = np.minimum(bone, np.minimum(z + 75.0 * s, 92.0 * s - z))
    near = _box(axes, rows, (-12.0 * s, 12.0 * s), 22.0 * s)
    if near is not None:
        value = _MARROW_HU + 250.0 * np.clip((2.0 - bone[near]) / 1.5, 0.0, 1.0)
        part = hu[near]
        blend(part, value.astype(np.float32), bone[near].astype(np.float32), edge_mm)


def add_spine(hu: Slab, thorax: Thorax, axes: Axes, edge_mm: float) -> None:
    """Paint vertebral bodies and disks, the canal, arches and processes; in place."""
    s = thorax.build.scale
    heights, _, back = thorax.midline_mm
    rows = np.interp(axes[0], heights, back).astype(np.float32)[:, None, None]
    near = _box(axes, rows, (-20.0 * s, 58.0 * s), 36.0 * s)
    if near is None:
        return
    part = hu[near]
    z = axes[0][:, None, None] / s
    y = (axes[1][near[1]][None, :, None] - rows) / s
    x = axes[2][near[2]][None, None, :] / s
    phase = np.abs(((z / 24.0) % 1.0) - 0.5) * 24.0  # 0 in the middle of a vertebra, 12 between two

    def paint(value: Slab | float, distance: Slab) -> None:
        blend(part, value, (distance * s).astype(np.float32), edge_mm)

    waist = 15.5 + 0.12 * phase
    body = (1.0 - np.hypot(x / (waist + 2.0), y / (waist - 2.0))) * 14.0
    value = 150.0 + 330.0 * np.clip((2.0 - body) / 1.5, 0.0, 1.0) + 200.0 * (np.abs(phase - 9.2) < 1.0)
    paint(np.where(phase > 10.0, _DISK_HU, value).astype(np.float32), body)
    ring = np.hypot(x, y - 24.0)
    arch = np.minimum(4.5 - np.abs(ring - 12.0), np.where(phase < 8.0, 5.0, 2.0 * (9.0 - phase)))
    paint(430.0, arch)
    spinous = np.minimum(3.2 - np.abs(x), np.minimum(y - 32.0, 54.0 - y - 0.5 * phase))
    paint(380.0, np.minimum(spinous, 8.0 - phase))
    transverse = np.minimum(4.0 - np.abs(y - 24.0 - 0.12 * np.abs(x)), 31.0 - np.abs(x))
    paint(380.0, np.minimum(np.minimum(transverse, np.abs(x) - 12.0), 6.0 - phase))
    paint(_CANAL_HU, 8.5 - ring)


def _box(
    axes: Axes, rows: Float[np.ndarray, "z 1 1"], reach_y: tuple[float, float], reach_x: float
) -> tuple[slice, slice, slice] | None:
    """Return the part of a slab around the midline, or None when it lies outside."""
    y = np.searchsorted(axes[1], (rows.min() + reach_y[0], rows.max() + reach_y[1]))
    x = np.searchsorted(axes[2], (-reach_x, reach_x))
    if y[0] == y[1] or x[0] == x[1]:
        return None
    return slice(None), slice(int(y[0]), int(y[1])), slice(int(x[0]), int(x[1]))
