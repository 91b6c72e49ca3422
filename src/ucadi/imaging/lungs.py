# SPDX-License-Identifier: Apache-2.0
"""Where the lungs are: air enclosed by the body, left and right apart, with what disease has filled.

Deterministic image processing: topology on a sparse copy of the scan (every third millimeter or so), edges
at full resolution. A trained network can take its place behind `find_lungs`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from scipy import ndimage

from ucadi.errors import GeometryError
from ucadi.imaging.consolidation import LEFT, RIGHT, fill_consolidation
from ucadi.imaging.grid import Grid
from ucadi.imaging.upright import is_upside_down
from ucadi.imaging.volume import Volume

__all__ = ["Lungs", "find_lungs", "lung_box"]

Box = tuple[slice, slice, slice]
Spacing = Float[np.ndarray, "3"]

_AIR_HU = -400.0
"""Half-way between soft tissue (about 40) and aerated lung (about -850); most ground glass lies below."""

_TISSUE_HU = -300.0
"""Soft tissue, fat and bone lie above."""

_GAS_HU = -960.0
"""Lung holds blood, so its median lies above, with emphysema too; that of gas in bowel or trachea below."""

_TABLE_SHELLS_MM = 9.0
"""A body wall is thicker; the shells of a table together are thinner."""

_LEVEL = 0.97
"""Cosine of 14 degrees: where slices lean more, what lies below in the stack is not below in the patient."""

_WORK_MM = 3.0
"""Spacing of the sparse copy: finer than body wall, diaphragm and most of the septum between the lungs."""

_MIN_PIECE_ML = 30.0
"""Smaller pieces of enclosed air are bowel, esophagus, cysts or noise."""

_MIN_LUNGS_ML = 100.0
"""Less air than this is no pair of lungs, not even a newborn's."""

_CLOSING_MM = 12.0
"""Bridges vessels and consolidations of up to twice this width."""

_AIRWAY_HU = -930.0
"""Air without lung around it, also where the scan's noise is high."""

_AIRWAY_ML = (3.0, 80.0)
"""Trachea and main bronchi; more is emphysema."""

_SPLIT_MM = (0.0, 6.0, 9.0, 12.0, 15.0, 18.0)
"""Depths below the surface at which airways and a thin septum no longer join the lungs, tried in order."""

_SIDE_SHARE = 0.05
"""A core of at least this share of all lung air may stand for a lung."""

_SIDES_APART_MM = 50.0
"""The middles of two lungs lie further apart from side to side, those of one lung's parts do not."""

_TOUCHING = ndimage.generate_binary_structure(3, 1)
_AROUND = ndimage.generate_binary_structure(3, 3)
_IN_PLANE = _TOUCHING & np.array([False, True, False])[:, None, None]


@dataclass(frozen=True, eq=False)
class Lungs:
    """Both lungs of a scan: diseased parts, vessels and pleural fluid included, without trachea.

    The three masks are True or False on the volume's grid. A voxel belongs to one lung at most; where both
    touch, as at the front, they share a border and no voxel.

    Attributes:
        sides: 1 in the patient's right lung, 2 in the left one, else 0; over the box only.
        box: Smallest box around the lungs.
        grid: The volume's grid.
    """

    sides: UInt8[np.ndarray, "z y x"]
    box: Box
    grid: Grid

    @cached_property
    def mask(self) -> Bool[np.ndarray, "z y x"]:
        """Both lungs."""
        return self._placed(self.sides > 0)

    @property
    def right(self) -> Bool[np.ndarray, "z y x"]:
        """The patient's right lung; a new array."""
        return self._placed(self.sides == RIGHT)

    @property
    def left(self) -> Bool[np.ndarray, "z y x"]:
        """The patient's left lung; a new array."""
        return self._placed(self.sides == LEFT)

    @cached_property
    def right_ml(self) -> float:
        """The right lung; 0 when only the left one is there."""
        return np.count_nonzero(self.sides == RIGHT) * self.grid.voxel_ml

    @cached_property
    def left_ml(self) -> float:
        """The left lung; 0 when only the right one is there."""
        return np.count_nonzero(self.sides == LEFT) * self.grid.voxel_ml

    @property
    def total_ml(self) -> float:
        """Both lungs."""
        return self.left_ml + self.right_ml

    @cached_property
    def area_cm2(self) -> Float[np.ndarray, " z"]:
        """Cross-section of both lungs in each slice, from feet to head."""
        area = np.zeros(self.grid.shape[0])
        area[self.box[0]] = np.count_nonzero(self.sides, axis=(1, 2))
        return area * (self.grid.spacing_mm[1] * self.grid.spacing_mm[2] / 100.0)

    @property
    def cut_share(self) -> tuple[float, float]:
        """Cross-section in the first and in the last slice, as shares of the largest one.

        Near 0 when the scan covers the lungs, toward 1 when it begins or ends in their middle.
        """
        largest = float(self.area_cm2.max())
        return float(self.area_cm2[0]) / largest, float(self.area_cm2[-1]) / largest

    def _placed(self, inner: Bool[np.ndarray, "z2 y2 x2"]) -> Bool[np.ndarray, "z y x"]:
        """Return a mask of the box on the whole grid."""
        whole = np.zeros(self.grid.shape, np.bool_)
        whole[self.box] = inner
        return whole


def find_lungs(volume: Volume) -> Lungs:
    """Find both lungs.

    Args:
        volume: CT in HU, canonical axes.

    Raises:
        GeometryError: ``ct-no-chest`` when the body encloses no air that could be lung.
    """
    z, y, x = (max(1, round(_WORK_MM / spacing)) for spacing in volume.grid.spacing_mm)
    sparse = volume.voxels[z // 2 :: z, y // 2 :: y, x // 2 :: x]
    spacing_mm = np.array(volume.grid.spacing_mm) * (z, y, x)
    air, is_upright = _without_trachea(_lung_air(sparse, spacing_mm), sparse, spacing_mm)
    sides = _tell_sides(air, spacing_mm)
    leans = volume.grid.affine_lps[2, 0] / volume.grid.spacing_mm[0] < _LEVEL
    if is_upright and not leans:  # else its place would tell liver from lung wrongly
        sides = fill_consolidation(sides, sparse, spacing_mm)
    refined, box = _refine(volume.voxels, air, _fill(sides, spacing_mm), (z, y, x))
    return Lungs(refined, box, volume.grid)


def lung_box(lungs: Lungs, margin_mm: float) -> Box:
    """Return the box around the lungs with a margin on each side, cut at the volume's edges."""
    sides = []
    for side, size, spacing in zip(lungs.box, lungs.grid.shape, lungs.grid.spacing_mm, strict=True):
        margin = int(np.ceil(margin_mm / spacing))
        sides.append(slice(max(0, side.start - margin), min(size, side.stop + margin)))
    return sides[0], sides[1], sides[2]


def _lung_air(hu: Shaped[np.ndarray, "z y x"], spacing_mm: Spacing) -> Bool[np.ndarray, "z y x"]:
    """Return air that the body encloses in its slice, in pieces that could be lung."""
    air = hu < _AIR_HU
    # A ring of air around each slice joins all outside air, also outside a round field of view.
    ringed = np.pad(air, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    labels, count = ndimage.label(ringed, structure=_IN_PLANE)
    is_outside = np.zeros(count + 1, np.bool_)
    is_outside[labels[:, 0, 0]] = True
    enclosed = air & ~is_outside[labels[:, 1:-1, 1:-1]]
    # The foam of a table is enclosed too, but has no body wall behind it.
    tissue_behind = np.cumsum((hu > _TISSUE_HU)[:, ::-1], axis=1, dtype=np.int16)[:, ::-1]
    enclosed &= tissue_behind > _TABLE_SHELLS_MM / spacing_mm[1]
    pieces, count = ndimage.label(enclosed)
    sizes_ml = np.bincount(pieces[enclosed], minlength=count + 1) * np.prod(spacing_mm) / 1000.0
    is_lung = np.zeros(count + 1, np.bool_)
    for piece in np.flatnonzero(sizes_ml >= _MIN_PIECE_ML):
        is_lung[piece] = np.median(hu[pieces == piece]) > _GAS_HU
    total_ml = float(sizes_ml[is_lung].sum())
    if total_ml < _MIN_LUNGS_ML:
        raise GeometryError("ct-no-chest", f"The body encloses {total_ml:.0f} mL of air that could be lung.")
    return np.asarray(is_lung[pieces])


def _without_trachea(
    air: Bool[np.ndarray, "z y x"], hu: Shaped[np.ndarray, "z y x"], spacing_mm: Spacing
) -> tuple[Bool[np.ndarray, "z y x"], bool]:
    """Take out the trachea, and tell whether the lungs stand upright."""
    upright = _without_column(air, hu, spacing_mm)
    turned = _without_column(air[::-1], hu[::-1], spacing_mm)[::-1]
    return (turned, False) if is_upside_down(upright & turned) else (upright, True)


def _without_column(
    air: Bool[np.ndarray, "z y x"], hu: Shaped[np.ndarray, "z y x"], spacing_mm: Spacing
) -> Bool[np.ndarray, "z y x"]:
    """Take out a column of plain air in the middle that ends above half of the lungs' height."""
    z, y, x = _box_of(air)
    third = (x.stop - x.start) // 3
    middle = slice((z.start + z.stop) // 2, z.stop), y, slice(x.start + third, x.stop - third)
    plain = ndimage.binary_opening(air[middle] & (hu[middle] < _AIRWAY_HU))
    columns, count = ndimage.label(plain)
    sizes_ml = np.bincount(columns.ravel(), minlength=count + 1) * np.prod(spacing_mm) / 1000.0
    is_trachea = (sizes_ml >= _AIRWAY_ML[0]) & (sizes_ml <= _AIRWAY_ML[1])
    is_trachea[0] = False
    lungs = air.copy()
    lungs[middle] &= ~ndimage.binary_dilation(is_trachea[columns], structure=_AROUND)  # with its wall
    return lungs


def _tell_sides(air: Bool[np.ndarray, "z y x"], spacing_mm: Spacing) -> UInt8[np.ndarray, "z y x"]:
    """Number the voxels of the right and of the left lung; airways and a thin septum may join them."""
    thinned, thin_mm = air[::2, ::2, ::2], spacing_mm * 2
    depth_mm = ndimage.distance_transform_edt(thinned, sampling=thin_mm)
    for split_mm in _SPLIT_MM:
        cores, count = ndimage.label(depth_mm > split_mm)
        sizes = np.bincount(cores.ravel(), minlength=count + 1)
        sizes[0] = 0
        kept = np.flatnonzero(sizes >= _SIDE_SHARE * np.count_nonzero(thinned))
        if kept.size < 2:
            continue
        middles_mm = np.array(ndimage.center_of_mass(cores > 0, cores, kept))[:, 2] * thin_mm[2]
        largest_mm = middles_mm[np.argmax(sizes[kept])]
        is_opposite = np.abs(middles_mm - largest_mm) >= _SIDES_APART_MM
        if is_opposite.any():
            opposite_mm = middles_mm[is_opposite][np.argmax(sizes[kept][is_opposite])]
            numbers = np.zeros(count + 1, np.uint8)
            numbers[kept] = np.where(middles_mm < (largest_mm + opposite_mm) / 2.0, RIGHT, LEFT)
            return _spread(numbers[cores], air)
    lone = RIGHT if ndimage.center_of_mass(air)[2] < air.shape[2] / 2.0 else LEFT
    return air * np.uint8(lone)


def _spread(
    cores: UInt8[np.ndarray, "z2 y2 x2"], air: Bool[np.ndarray, "z y x"]
) -> UInt8[np.ndarray, "z y x"]:
    """Give each voxel of air the number of the nearest core; cores have every second voxel of each axis."""
    nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
    z, y, x = air.shape
    sides = cores[tuple(nearest)].repeat(2, 0).repeat(2, 1).repeat(2, 2)[:z, :y, :x]
    return np.asarray(air * sides)


def _fill(sides: UInt8[np.ndarray, "z y x"], spacing_mm: Spacing) -> UInt8[np.ndarray, "z y x"]:
    """Close vessels and consolidations of each lung, and fill its holes."""
    half = max(1, round(_CLOSING_MM / float(spacing_mm.mean()) / 2.0))
    pad = 2 * half
    filled = sides.copy()
    # One side after the other, so that the gap between the lungs stays open.
    for side, box in enumerate(ndimage.find_objects(sides, max_label=LEFT), start=RIGHT):
        if box is None:
            continue
        closed = np.pad(sides[box] == side, pad)
        for change in (ndimage.binary_dilation, ndimage.binary_erosion):
            for structure in (_AROUND, _TOUCHING):  # by turns: nearly a ball
                closed = change(closed, structure=structure, iterations=half)
        # In three dimensions: slice by slice, the domes of the diaphragm would be holes.
        solid = ndimage.binary_fill_holes(closed)[pad:-pad, pad:-pad, pad:-pad]
        filled[box][solid & (filled[box] == 0)] = side
    return filled


def _refine(
    voxels: Shaped[np.ndarray, "z y x"],
    air: Bool[np.ndarray, "z2 y2 x2"],
    filled: UInt8[np.ndarray, "z2 y2 x2"],
    steps: tuple[int, int, int],
) -> tuple[UInt8[np.ndarray, "z3 y3 x3"], Box]:
    """Return the lungs at full resolution and their box; where air is the edge, it is drawn exactly."""
    reached = ndimage.grey_dilation(filled, footprint=_TOUCHING)
    is_inner = ndimage.binary_erosion(filled > 0, structure=_TOUCHING, border_value=1)
    is_certain = is_inner | ((filled > 0) & ~air)
    code = reached + np.uint8(4) * is_certain
    rows, starts = [], []
    for size, step, sparse, side in zip(voxels.shape, steps, code.shape, _box_of(reached > 0), strict=True):
        block = np.minimum(np.arange(size) // step, sparse - 1)  # the sparse copy may end one block early
        start, stop = np.searchsorted(block, (side.start, side.stop))
        rows.append(block[start:stop])
        starts.append(int(start))
    near = code.take(rows[2], axis=2).take(rows[1], axis=1).take(rows[0], axis=0)
    z, y, x = (slice(start, start + n) for start, n in zip(starts, near.shape, strict=True))
    near[(near < 4) & (voxels[z, y, x] >= _AIR_HU)] = 0
    near &= 3
    tight = _box_of(near > 0)
    z, y, x = (slice(n + s.start, n + s.stop) for n, s in zip(starts, tight, strict=True))
    return near[tight], (z, y, x)


def _box_of(mask: Bool[np.ndarray, "z y x"]) -> Box:
    """Return the smallest box around a mask that is not empty."""
    z, y, x = ndimage.find_objects(mask.view(np.uint8))[0]
    return z, y, x
