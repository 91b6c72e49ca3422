# SPDX-License-Identifier: Apache-2.0
"""Lung without air: what disease has filled, up to the chest wall.

Consolidation looks like heart, liver, pleural fluid and chest wall; only its place tells them apart, and the
open airways in it. Two witnesses say where lung should be: the other lung, mirrored at the chest's plane of
symmetry, and the cage, whose whole cross-section above the diaphragm and beside the mediastinum is lung.
What they miss is lung when it

- lines the chest wall over an area, which heart and hila do not, and
- has aerated lung below it, or open airways inside: a raised diaphragm and fluid have neither.

Works on sparse copies of a scan, in fractions of a second.

Source of the ideas: Mansoor et al., IEEE Trans Med Imaging 33, 2293 (2014), rib cage against aerated lung;
Yao et al., IEEE Trans Biomed Eng 60, 1834 (2013), pleural space between chest wall and lung.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from scipy import ndimage
from scipy.spatial import cKDTree

__all__ = ["LEFT", "RIGHT", "fill_consolidation"]

RIGHT, LEFT = 1, 2
"""Numbers of the lungs in an array of sides; 0 is neither."""

_AROUND = ndimage.generate_binary_structure(3, 3)
_IN_PLANE = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])[:, None, None]

Mask = Bool[np.ndarray, "z y x"]
Box = tuple[slice, slice, slice]
Sides = UInt8[np.ndarray, "z y x"]
Spacing = Float[np.ndarray, "3"]

_BONE_HU = 200
_TISSUE_HU = -300
_GAS_HU = -600
"""Gas in the stomach lies below, consolidation with open airways mostly above."""

_MIN_BONES, _MAX_BONES = 200, 3000
_PLANE_STEPS = 12
_UPRIGHT = 0.94
"""Least share of the plane's normal from side to side: 20 degrees of turn or tilt."""

_COARSE_MM = 6.0
"""Spacing at which the shapes are compared."""

_MARGIN_MM = 36.0
"""Around the lungs: ribs, and the other lung's image when one is smaller."""

_DIRECTIONS = 48
"""Sides of the polygon around each slice's lungs: within 0.3 mm of a circle of 140 mm."""

_PLEURA_MM = 3.5
"""The wall lies this far outside the polygon: half a sample, and what a polygon cuts off."""

_BULGE_MM = 60.0
"""Half the height of what can be a dent by disease; the wall of a chest is convex."""

_BRIDGE_MM = 25.0
"""Patches along the chest wall of up to twice this width are bridged by the lung around them."""

_PERIPHERAL_MM = 30.0
"""Depth below the chest wall within which heart and liver are not expected between two parts of a lung."""

_SEAM_MM = 5.0
_SLAB_MM = 9.0
"""Half the thickness of what can be an error of the witnesses, such as domes of unequal height."""

_DOME_MM = 6.0
"""The right dome of the diaphragm stands about 15 mm higher; a part of that is kept as a margin."""

_WALL_MM = 14.0
_MIN_WALL_CM2 = 8.0
"""Contact with the chest wall that heart and hila do not have; errors of the witnesses had up to 1 cm²."""

_RIBS_APART_MM = 24.0

_MIDDLE_MM = 35.0
"""Half-width of breastbone and spine, where lung need not touch the wall."""

_MEDIASTINUM_MM = {RIGHT: 32.0, LEFT: 40.0}
"""How far great vessels, aorta and hila reach to each side."""

_HEART = (0.28, 0.32), (0.38, 0.37), {RIGHT: 0.36, LEFT: 0.66}
"""Middle (height, depth) and half-axes (height, depth, by side) of the heart, as shares of the lungs' box."""

_LATERAL, _MIDDLE_DEPTH, _MOSTLY = (0.60, 0.85), (0.30, 0.75), 0.7
"""Where a slice shows whether it lies above the diaphragm's dome: lung covers most of this band."""


_ASLANT_MM = 9.0
"""How far beside a column its lung below may lie."""

_DEEP_MM = 6.0
"""Further from aerated lung, blurred edges are no airways."""

_AIRWAY_HU, _AIRWAY_SIGMAS = -250.0, 6.0
"""Airways of a few mm lie this far below the tissue around them, and out of reach of its noise."""

_MIN_AIRWAYS, _MIN_AIRWAY_SHARE = 3, 0.0005
"""Samples of airways that prove lung; measured: 0.06 to 0.6 % of consolidation, none in 300 mL of liver."""


@dataclass(frozen=True, eq=False)
class _Chest:
    """Coordinates in the chest.

    Attributes:
        beside_mm: Distance from the plane of symmetry, positive to the left.
        below_wall_mm: Depth below the polygon around both lungs; negative outside.
        height, depth, aside: Shares of the box around both lungs: feet to head, front to back, plane to side.
    """

    beside_mm: Float[np.ndarray, "z y x"]
    below_wall_mm: Float[np.ndarray, "z y x"]
    height: Float[np.ndarray, "z 1 1"]
    depth: Float[np.ndarray, "1 y 1"]
    aside: Float[np.ndarray, "z y x"]

    def half(self, side: int) -> Mask:
        """Return the side's half of the cage."""
        own = self.beside_mm < 0.0 if side == RIGHT else self.beside_mm > 0.0
        return own & (self.below_wall_mm >= -_PLEURA_MM)

    def heart(self, side: int) -> Mask:
        """Return where the side's part of the heart may be."""
        (z, y), (radius_z, radius_y), reach = _HEART
        square = ((self.height - z) / radius_z) ** 2 + ((self.depth - y) / radius_y) ** 2
        return np.asarray(square + (self.aside / reach[side]) ** 2 < 1.0)


def fill_consolidation(sides: Sides, hu: Shaped[np.ndarray, "z y x"], spacing_mm: Spacing) -> Sides:
    """Add lung that holds no air.

    Args:
        sides: `RIGHT` and `LEFT` where air or ground glass was found, else 0.
        hu: HU at the same places.
        spacing_mm: Distance between samples, about 3 mm.

    Returns:
        The sides with consolidation. A lung that has no air at all stays missing.
    """
    if not all((sides == side).any() for side in (RIGHT, LEFT)):
        return sides
    steps = np.maximum(1, np.round(_COARSE_MM / spacing_mm)).astype(int)
    z, y, x = (slice(None, None, step) for step in steps)
    coarse, coarse_mm = sides[z, y, x], spacing_mm * steps
    near = _box_around(coarse > 0, coarse_mm)
    shapes = coarse.copy()
    shapes[near] = _compare(coarse[near], hu[z, y, x][near], coarse_mm)
    filled = sides.copy()
    for side in (RIGHT, LEFT):
        added = _interpolate((shapes == side) & (coarse == 0), steps, sides.shape) & (sides == 0)
        is_above_lung = _spread(np.logical_or.accumulate(sides == side), added, spacing_mm)
        filled[_without_slabs(added & is_above_lung, spacing_mm)] = side
        for box, piece in _pieces(added & ~is_above_lung):
            if _has_airways(piece, hu[box], spacing_mm):
                filled[box][piece & (filled[box] == 0)] = side
    return filled


def _box_around(lungs: Mask, spacing_mm: Spacing) -> Box:
    """Return the box around the lungs with a margin for chest wall and ribs."""
    z, y, x = (
        slice(max(0, side.start - int(_MARGIN_MM / mm)), side.stop + int(_MARGIN_MM / mm))
        for side, mm in zip(ndimage.find_objects(lungs.view(np.uint8))[0], spacing_mm, strict=True)
    )
    return z, y, x


def _without_slabs(added: Mask, spacing_mm: Spacing) -> Mask:
    """Take out what is thin: a slope of the diaphragm beside columns of lung."""
    if not added.any():
        return added
    z, y, x = ndimage.find_objects(added.view(np.uint8))[0]
    thick = np.zeros_like(added)
    half = max(1, round(_ASLANT_MM / 2.0 / float(spacing_mm.mean())))
    thick[z, y, x] = ndimage.binary_opening(added[z, y, x], iterations=half)
    return thick


def _spread(columns: Mask, near: Mask, spacing_mm: Spacing) -> Mask:
    """Widen columns in their slices, where something is near: the chest wall is not upright."""
    wide = np.zeros_like(columns)
    if near.any():
        rows, reach = np.flatnonzero(near.any(axis=(1, 2))), max(1, round(_ASLANT_MM / float(spacing_mm[1])))
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        wide[part] = ndimage.binary_dilation(columns[part], structure=_IN_PLANE, iterations=reach)
    return wide


def _compare(sides: Sides, hu: Shaped[np.ndarray, "z y x"], spacing_mm: Spacing) -> Sides:
    """Add what the other lung and the cage say is missing at the chest wall."""
    plane = _find_symmetry(hu, spacing_mm)
    bridged = _bridge(sides, _chest(sides > 0, plane, spacing_mm), spacing_mm)
    mirrored = {side: _mirror(bridged == other, plane, spacing_mm) for side, other in ((1, 2), (2, 1))}
    # The right dome is the higher one: what lies just above the left one's mirror image may be liver.
    steps = round(_DOME_MM / float(spacing_mm[0]))
    mirrored[RIGHT] &= _lift(mirrored[RIGHT], steps)
    mirrored[LEFT] |= _lift(mirrored[LEFT], -steps)
    chest = _chest((bridged > 0) | mirrored[RIGHT] | mirrored[LEFT], plane, spacing_mm)
    # One half of a chest may be narrower than the other: its ribs end it, and the muscle between them.
    ribs = _close(hu > _BONE_HU, _RIBS_APART_MM / 2.0, spacing_mm) & (chest.below_wall_mm < _WALL_MM)
    filled = bridged.copy()
    for side in (RIGHT, LEFT):
        expected = _expect(side, bridged == side, mirrored[side], chest)
        missing = expected & (sides == 0) & (hu > _GAS_HU) & ~ribs
        filled[_at_wall(side, missing, chest, spacing_mm) & (filled == 0)] = side
    return filled


def _interpolate(
    mask: Bool[np.ndarray, "z2 y2 x2"], steps: Int[np.ndarray, "3"], shape: tuple[int, ...]
) -> Mask:
    """Bring a coarse mask to the finer grid; linear between samples, so that its border has no steps."""
    if not mask.any():
        return np.zeros(shape, np.bool_)
    share = ndimage.affine_transform(
        mask.astype(np.float32), 1.0 / steps, order=1, output_shape=shape, mode="nearest"
    )
    return np.asarray(share > 0.5)


def _pieces(mask: Mask) -> Iterator[tuple[Box, Mask]]:
    """Yield the connected pieces of a mask, each with its box."""
    labels, _ = ndimage.label(mask)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        z, y, x = box
        yield (z, y, x), labels[z, y, x] == number


def _has_airways(piece: Mask, hu: Shaped[np.ndarray, "z y x"], spacing_mm: Spacing) -> bool:
    """Tell whether thin airways run through the inside of a piece."""
    is_gas = hu < _AIRWAY_HU
    wide = ndimage.binary_opening(is_gas, structure=_AROUND)
    inside = ndimage.binary_closing(np.pad(piece, 3), iterations=2)[3:-3, 3:-3, 3:-3] & ~wide
    deep = ndimage.distance_transform_edt(inside, sampling=spacing_mm) > _DEEP_MM
    if not deep.any():
        return False
    low, middle, high = np.percentile(hu[deep], (25.0, 50.0, 75.0))
    noise_hu = (high - low) / 1.35
    airways = np.count_nonzero(hu[deep] < min(_AIRWAY_HU, middle - _AIRWAY_SIGMAS * noise_hu))
    return bool(airways >= max(_MIN_AIRWAYS, _MIN_AIRWAY_SHARE * np.count_nonzero(deep)))


def _bridge(sides: Sides, chest: _Chest, spacing_mm: Spacing) -> Sides:
    """Fill what a lung encloses along the chest wall."""
    bridged = sides.copy()
    near_wall = (chest.below_wall_mm < _PERIPHERAL_MM) & (np.abs(chest.beside_mm) > _MIDDLE_MM)
    for side in (RIGHT, LEFT):
        lung = sides == side
        enclosed = _close(lung, _BRIDGE_MM, spacing_mm)
        above = np.logical_or.accumulate(lung[::-1], axis=0)[::-1]
        enclosed |= np.logical_or.accumulate(lung, axis=0) & above & ~chest.heart(side)
        gaps = enclosed & (sides == 0) & near_wall & chest.half(side)
        bridged[_open(gaps, _SEAM_MM, spacing_mm)] = side
    return bridged


def _expect(side: int, lung: Mask, mirrored: Mask, chest: _Chest) -> Mask:
    """Return where a lung must be by the other lung and by the cage."""
    half = chest.half(side)
    (inner, outer), (front, back) = _LATERAL, _MIDDLE_DEPTH
    band = half & (np.abs(chest.aside) > inner) & (np.abs(chest.aside) < outer)
    band &= (chest.depth > front) & (chest.depth < back)
    in_band = np.count_nonzero(band, axis=(1, 2))
    covered = np.count_nonzero(band & (lung | mirrored), axis=(1, 2))
    is_above_dome = np.logical_or.accumulate((covered > _MOSTLY * in_band) & (in_band > 3))
    beside_mm = np.abs(chest.beside_mm)
    cage = is_above_dome[:, None, None] & (beside_mm > _MEDIASTINUM_MM[side])
    if side == RIGHT:
        # Behind the heart the mediastinum is as wide on both sides.
        cage &= (chest.depth < 0.6) | (beside_mm > _MEDIASTINUM_MM[LEFT])
    else:
        mirrored = mirrored & (beside_mm > _MEDIASTINUM_MM[LEFT])  # the aorta lies there
    return np.asarray((mirrored | cage) & half & ~chest.heart(side))


def _at_wall(side: int, missing: Mask, chest: _Chest, spacing_mm: Spacing) -> Mask:
    """Return the missing pieces that line the chest wall."""
    cores = _open(missing, _SLAB_MM, spacing_mm)
    pieces, count = ndimage.label(cores)
    touching = cores & (chest.below_wall_mm < _WALL_MM) & (np.abs(chest.beside_mm) > _MIDDLE_MM)
    if side == LEFT:
        touching &= ~((chest.depth < 0.5) & (chest.height < 0.65))  # a large heart may touch the wall here
    wall_cm2 = np.bincount(pieces[touching], minlength=count + 1) * np.prod(spacing_mm) / _WALL_MM / 100.0
    is_there = np.append(False, wall_cm2[1:] >= _MIN_WALL_CM2)[pieces]
    return missing & _grow(is_there, _SLAB_MM, spacing_mm) if is_there.any() else is_there


def _find_symmetry(
    hu: Shaped[np.ndarray, "z y x"], spacing_mm: Spacing
) -> tuple[Float[np.ndarray, "3"], float]:
    """Return normal and offset in mm of the plane that maps the bones onto each other."""
    upright = np.array([0.0, 0.0, 1.0]), float(np.nonzero(hu > _TISSUE_HU)[2].mean() * spacing_mm[2])
    bones = np.argwhere(hu > _BONE_HU) * spacing_mm
    if len(bones) < _MIN_BONES:
        return upright
    bones = bones[:: len(bones) // _MAX_BONES + 1]
    tree = cKDTree(bones)
    normal, offset = upright[0], float(bones[:, 2].mean())
    for _ in range(_PLANE_STEPS):
        images = bones - 2.0 * (bones @ normal - offset)[:, None] * normal
        gaps, nearest = tree.query(images)
        is_pair = gaps <= 2.0 * np.median(gaps) + spacing_mm.max()
        ones, others = bones[is_pair], bones[np.asarray(nearest)[is_pair]]
        # Least squares over all planes: the normal is the eigenvector of the pairs' smallest covariance.
        covariance = (ones - ones.mean(0)).T @ (others - others.mean(0))
        _, vectors = np.linalg.eigh(covariance + covariance.T)
        normal = vectors[:, 0] * (1.0 if vectors[2, 0] > 0.0 else -1.0)
        offset = float(normal @ (ones.mean(0) + others.mean(0)) / 2.0)
    return (normal, offset) if normal[2] > _UPRIGHT else upright


def _mirror(mask: Mask, plane: tuple[Float[np.ndarray, "3"], float], spacing_mm: Spacing) -> Mask:
    """Return a mask's image at a plane."""
    normal, offset = plane
    reflection = np.eye(3) - 2.0 * np.outer(normal, normal)
    matrix = reflection * spacing_mm / spacing_mm[:, None]
    shift = 2.0 * offset * normal / spacing_mm
    image = ndimage.affine_transform(mask.astype(np.float32), matrix, shift, order=1)
    return np.asarray(image > 0.5)


def _chest(lungs: Mask, plane: tuple[Float[np.ndarray, "3"], float], spacing_mm: Spacing) -> _Chest:
    """Lay coordinates into the chest around a mask of both lungs."""
    normal, offset = plane
    z, y, x = (np.arange(n) * share for n, share in zip(lungs.shape, spacing_mm * normal, strict=True))
    beside_mm = z[:, None, None] + y[:, None] + x - offset
    height, depth = (_shares(np.any(lungs, axis=others)) for others in ((1, 2), (0, 2)))
    return _Chest(
        beside_mm,
        _depth_below_wall(lungs, spacing_mm),
        height[:, None, None],
        depth[None, :, None],
        beside_mm / np.abs(beside_mm[lungs]).max(),
    )


def _shares(is_lung: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return places along an axis as shares of the lungs' reach: 0 at its start, 1 at its end."""
    places = np.flatnonzero(is_lung)
    return np.asarray((np.arange(is_lung.size) - places[0]) / max(1, int(places[-1] - places[0])))


def _depth_below_wall(lungs: Mask, spacing_mm: Spacing) -> Float[np.ndarray, "z y x"]:
    """Return the depth in mm below the convex polygons around the lungs' slices; -inf without lungs."""
    angles = np.arange(_DIRECTIONS) * (2.0 * np.pi / _DIRECTIONS)
    y, x = (np.arange(n) * mm for n, mm in zip(lungs.shape[1:], spacing_mm[1:], strict=True))
    reach = np.sin(angles)[:, None, None] * y[:, None] + np.cos(angles)[:, None, None] * x
    reach = reach.astype(np.float32)
    slices = np.flatnonzero(lungs.any(axis=(1, 2)))
    walls = np.full((len(lungs), _DIRECTIONS), -np.inf, np.float32)
    for z in slices:
        walls[z] = reach[:, lungs[z]].max(axis=1)
    walls = _bulged(walls, int(_BULGE_MM / spacing_mm[0]))
    depth = np.full(lungs.shape, -np.inf, np.float32)
    for z in slices:
        depth[z] = (walls[z][:, None, None] - reach).min(axis=0)
    return depth


def _bulged(walls: Float[np.ndarray, "z directions"], steps: int) -> Float[np.ndarray, "z directions"]:
    """Return the walls without dents: nowhere inside the straight line between slices above and below."""
    bulged = walls.copy()
    for step in range(1, min(steps, (len(walls) - 1) // 2) + 1):
        inner = bulged[step:-step]
        np.maximum(inner, (walls[: -2 * step] + walls[2 * step :]) / 2.0, out=inner)
    return bulged


def _lift(mask: Mask, steps: int) -> Mask:
    """Return a mask moved toward the head; toward the feet if negative."""
    moved = np.zeros_like(mask)
    if steps >= 0:
        moved[steps:] = mask[: len(mask) - steps]
    else:
        moved[:steps] = mask[-steps:]
    return moved


def _grow(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Dilate by a ball."""
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= radius_mm)


def _open(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Keep where a ball fits."""
    inner = ndimage.distance_transform_edt(mask, sampling=spacing_mm) > radius_mm
    return _grow(inner, radius_mm, spacing_mm) if inner.any() else np.asarray(inner)


def _close(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Fill where a ball does not fit outside."""
    margin = [int(np.ceil(radius_mm / mm)) + 1 for mm in spacing_mm]
    padded = np.pad(mask, [(n, n) for n in margin])
    inner = ndimage.distance_transform_edt(_grow(padded, radius_mm, spacing_mm), sampling=spacing_mm)
    z, y, x = (slice(n, -n) for n in margin)
    return np.asarray(inner[z, y, x] > radius_mm)
