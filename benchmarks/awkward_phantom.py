# SPDX-License-Identifier: Apache-2.0
"""A chest as a function of place, and the judge of a volume that a reader made of its slices.

The truth is not an array but a formula: HU at any LPS position. A volume is right when its voxels hold the
formula's values at the places where its affine puts them, however the reader got there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

__all__ = [
    "CENTER_MM",
    "LESION_RADII_MM",
    "Case",
    "Judgement",
    "Refusal",
    "Scene",
    "Truth",
    "judge_volume",
    "lung_volumes_ml",
    "true_lesion_ml",
]

CENTER_MM = np.array([-12.0, -205.0, -310.5])
"""Middle of the chest, LPS; odd, so that a lost origin is seen."""

_EDGE_MM = 4.0  # half the width of every edge: wide enough for linear interpolation over 5 mm to hold
_LUNGS = (((-72.0, -4.0, -20.0), (52.0, 72.0, 120.0)), ((75.0, -4.0, -20.0), (48.0, 72.0, 116.0)))
_DOMES = (((-72.0, -4.0, -95.0), (31.0, 44.0, 60.0)), ((75.0, -4.0, -95.0), (29.0, 44.0, 58.0)))
_BASE_MM = -95.0  # where the lungs end, in a crescent around the diaphragm's domes
_LEAN = 0.2  # toward the apex the lungs come closer together
LESION_RADII_MM = (16.0, 20.0, 24.0)
"""Of the lesion in the left lung, along x, y and z."""

_LESION = ((82.0, 12.0, 28.0), LESION_RADII_MM)
_LESION_HU = -100.0
_MARKER = ((55.0, -88.0, 62.0), (13.0, 9.0, 13.0))
_METAL = ((-118.0, 52.0, 80.0), (9.0, 9.0, 9.0))

_ROI_MM = (168.0, 118.0, 116.0)  # half sizes in x, y, z; every scan that is no refusal covers it
_OFF_HU = 80.0  # an edge moved by half a millimeter; interpolation and rounding stay below
_MAX_OFF = 0.01  # share of voxels that may be off
_MAX_MEDIAN_HU = 6.0
_SPACING = 0.002
_NO_AIR_HU = -950.0  # how much air there is depends on the field of view
_RIM_MM = 8.0  # where measured meets not measured, resampling may mix both
_PADDING_HU = -900.0  # what was not measured must look like air or less
_DISPLAY_HU = (-1024.0, 3071.0)  # beyond, readers may clip as they like

Points = np.ndarray
Verdict = Literal["right", "wrong spacing", "wrong geometry", "wrong values", "incomplete"]


@dataclass(frozen=True)
class Scene:
    """A patient at one moment.

    Attributes:
        shift_mm: Where the patient lies, against the usual place; a second acquisition is shifted.
        thickness_mm: Slices are averages over this height; 0 for samples.
        has_lungs: Without them it is no chest.
        has_metal: Whether an implant of 40,000 HU is there.
        is_upside_down: Whether head and feet are exchanged.
    """

    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    thickness_mm: float = 0.0
    has_lungs: bool = True
    has_metal: bool = False
    is_upside_down: bool = False

    def hu(self, points_lps: Points) -> np.ndarray:
        """Return HU at LPS positions in mm, (..., 3) to (...)."""
        if self.thickness_mm:
            sharp = replace(self, thickness_mm=0.0)
            offsets = (np.arange(6) + 0.5) / 6.0 - 0.5
            parts = [sharp.hu(points_lps + np.array([0.0, 0.0, o * self.thickness_mm])) for o in offsets]
            return np.asarray(np.mean(parts, axis=0))
        p = self.local(points_lps)
        x, y, z = p[..., 0], p[..., 1], p[..., 2]
        soft = 45.0 + 0.05 * x + 12.0 * np.sin((x + 0.5 * y + 0.3 * z) / 9.0)
        hu = np.full(p.shape[:-1], -1000.0)
        hu = _put(hu, -100.0, _ellipsoid(p, (0.0, 0.0, 0.0), (165.0, 115.0, np.inf)))
        hu = _put(hu, soft, _ellipsoid(p, (0.0, 0.0, 0.0), (148.0, 100.0, np.inf)))
        if self.has_lungs:
            for lung, dome in zip(_LUNGS, _DOMES, strict=True):
                hu = _put(hu, _lung_hu(p), _lung_mm(p, lung, dome))
            hu = _put(hu, _LESION_HU, _ellipsoid(p, *_LESION))
        hu = _put(hu, 350.0, _ellipsoid(p, (0.0, 78.0, 0.0), (17.0, 15.0, np.inf)))
        hu = _put(hu, 700.0, _ellipsoid(p, *_MARKER))
        if self.has_metal:
            hu = _put(hu, 40_000.0, _ellipsoid(p, *_METAL))
        return hu

    def local(self, points_lps: Points) -> Points:
        """Return positions from the chest's middle."""
        p = np.asarray(points_lps, dtype=np.float64) - CENTER_MM - np.array(self.shift_mm)
        return p * [1.0, 1.0, -1.0] if self.is_upside_down else p


@dataclass(frozen=True)
class Truth:
    """A volume is expected.

    Attributes:
        scenes: What may be seen; several when several acquisitions are there and any of them will do.
        spacing_mm: z, y, x; None where several spacings are right (tilt, changed spacing).
        slices: Number of slices; None where several are right.
        remarks: Codes of repairs and warnings without which ucadi's answer is not honest.
        or_refused: Codes with which a refusal is as good.
        lesion_share: Tolerance of the lesion's volume.
        field_mm: Radius of the measured circle, where nothing was measured outside it.
    """

    scenes: tuple[Scene, ...] = (Scene(),)
    spacing_mm: tuple[float | None, float | None, float | None] = (None, None, None)
    slices: int | None = None
    remarks: tuple[str, ...] = ()
    or_refused: tuple[str, ...] = ()
    lesion_share: float = 0.01
    field_mm: float = np.inf


@dataclass(frozen=True)
class Refusal:
    """No volume may come out.

    Attributes:
        codes: Any of these causes is right.
        is_for_chests: Only a reader of chest CTs need refuse; one of any images may return them.
    """

    codes: tuple[str, ...]
    is_for_chests: bool = False


@dataclass(frozen=True)
class Case:
    """One awkward series.

    Attributes:
        name: Words with hyphens.
        what: One line for people.
        write: Writes the files into a folder.
        expectation: The volume that should come out, or the refusal.
        source: Where people met it: a public thread as owner/repository/number; empty for textbook cases.
        input: What the reader is given, under the folder; empty for the folder itself.
    """

    name: str
    what: str
    write: Callable[[Path], None]
    expectation: Truth | Refusal
    source: str = ""
    input: str = ""


@dataclass(frozen=True)
class Judgement:
    """What the judge says.

    Attributes:
        verdict: "right", or what is wrong.
        detail: The figures; empty when right.
    """

    verdict: Verdict
    detail: str = ""


def judge_volume(
    volume_zyx_hu: np.ndarray, affine_lps_zyx: np.ndarray, truth: Truth, *, lesion_share: float | None = None
) -> Judgement:
    """Compare a volume with the truth at the places where its affine puts its voxels.

    Args:
        volume_zyx_hu: HU, axes of slices, rows and columns; each may run either way.
        affine_lps_zyx: 4x4, maps (z, y, x, 1) to LPS mm; a shear is taken as it is.
        truth: What should be there.
        lesion_share: Tolerance of the lesion's volume, in place of the truth's.
    """
    spacing = np.linalg.norm(affine_lps_zyx[:3, :3], axis=0)
    for axis, found, right in zip("zyx", spacing, truth.spacing_mm, strict=True):
        if right is not None and abs(found - right) > _SPACING * right:
            return Judgement("wrong spacing", f"spacing {found:.3f} instead of {right:g} mm along {axis}")
    if truth.slices is not None and volume_zyx_hu.shape[0] != truth.slices:
        return Judgement("wrong geometry", f"{volume_zyx_hu.shape[0]} slices instead of {truth.slices}")
    if lesion_share is not None:
        truth = replace(truth, lesion_share=lesion_share)
    answers = [_judge_scene(volume_zyx_hu, affine_lps_zyx, scene, truth) for scene in truth.scenes]
    return next((a for a in answers if a.verdict == "right"), answers[0])


def _judge_scene(volume: np.ndarray, affine: np.ndarray, scene: Scene, truth: Truth) -> Judgement:
    """Compare a volume with one scene: every second row and column, and all of the lesion."""
    sparse = volume[:, ::2, ::2]
    points = _places(sparse.shape, affine @ np.diag([1.0, 2.0, 2.0, 1.0]))
    is_near = (np.abs(points - CENTER_MM) <= _ROI_MM).all(axis=-1)
    outside_mm = np.hypot(*(points - CENTER_MM)[..., :2].T).T - truth.field_mm
    if (sparse[is_near & (outside_mm > _RIM_MM)] > _PADDING_HU).any():
        return Judgement("wrong values", "what was not measured looks like tissue")
    is_near &= outside_mm < -_RIM_MM
    right = np.clip(scene.hu(points[is_near]), *_DISPLAY_HU)
    off = np.abs(np.clip(sparse[is_near].astype(np.float64), *_DISPLAY_HU) - right)
    if off.size and np.median(off) <= _MAX_MEDIAN_HU and np.mean(off > _OFF_HU) <= _MAX_OFF:
        if not _covers(volume.shape, affine):
            return Judgement("incomplete", "a part of the chest is missing")
        ratio = _lesion_ml(volume, affine, scene) / true_lesion_ml(scene.thickness_mm)
        if abs(ratio - 1.0) <= truth.lesion_share:
            return Judgement("right")
        return Judgement("wrong geometry", f"the lesion has {100 * ratio:.1f} % of its volume")
    shares = np.array([0.05, 0.2, 0.35, 0.65, 0.8, 0.95])
    body = sparse[sparse > _NO_AIR_HU]
    if not body.size or np.abs(np.quantile(body, shares) - _usual(scene, tuple(shares))).max() > _OFF_HU:
        return Judgement("wrong values", f"values run from {volume.min():g} to {volume.max():g}")
    share = 100.0 * float(np.mean(off > _OFF_HU)) if off.size else 100.0
    return Judgement("wrong geometry", f"{share:.1f} % of the voxels hold what lies elsewhere")


def _places(shape: tuple[int, ...], affine: np.ndarray) -> Points:
    """Return where voxels lie."""
    z, y, x = (np.arange(n)[:, None] * affine[:3, axis] for axis, n in enumerate(shape))
    return np.asarray(z[:, None, None] + y[:, None] + x + affine[:3, 3])


def _covers(shape: tuple[int, ...], affine: np.ndarray) -> bool:
    """Tell whether a volume holds the whole chest."""
    corners = np.array(list(product((-1.0, 1.0), repeat=3))) * _ROI_MM + CENTER_MM
    index = (corners - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return bool((index >= -0.5).all() and (index <= np.array(shape) - 0.5).all())


def _lesion_ml(volume: np.ndarray, affine: np.ndarray, scene: Scene) -> float:
    """Measure the lesion: what is denser than lung where the lesion should be, over the full contrast."""
    center, radii = _LESION
    margin = _EDGE_MM + scene.thickness_mm / 2.0
    middle = CENTER_MM + scene.shift_mm + np.array(center) * ([1, 1, -1] if scene.is_upside_down else 1)
    corners = np.array(list(product((-1.0, 1.0), repeat=3))) * (max(radii) + 2.0 * margin) + middle
    index = (corners - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    start = np.maximum(np.floor(index.min(axis=0)), 0.0)
    z, y, x = (slice(int(a), max(int(a), int(b) + 1)) for a, b in zip(start, index.max(axis=0), strict=True))
    hu = volume[z, y, x].astype(np.float64)
    to_box = np.eye(4)
    to_box[:3, 3] = start
    p = scene.local(_places(hu.shape, affine @ to_box))
    is_near = _ellipsoid(p, center, tuple(r + margin for r in radii)) < 0.4
    lung = _lung_hu(p[is_near])
    share = (np.clip(hu[is_near], *_DISPLAY_HU) - lung) / (_LESION_HU - lung)
    return float(share.sum()) * abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0


@lru_cache(maxsize=8)
def true_lesion_ml(thickness_mm: float = 0.0) -> float:
    """Return the lesion's volume as it is measured, from a fine grid."""
    scene = Scene(thickness_mm=thickness_mm)
    step_mm = 1.25
    affine = np.diag([step_mm, step_mm, step_mm, 1.0])[:, [2, 1, 0, 3]]
    sides_mm = 2.0 * np.array(LESION_RADII_MM)[::-1] + 24.0 + thickness_mm
    affine[:3, 3] = CENTER_MM + np.array(_LESION[0]) - sides_mm[::-1] / 2.0
    shape = tuple(int(side / step_mm) for side in sides_mm)
    return _lesion_ml(scene.hu(_places(shape, affine)), affine, scene)


@lru_cache(maxsize=1)
def lung_volumes_ml() -> tuple[float, float]:
    """Return the volumes of the right and the left lung, lesion included, from a grid of 1 mm."""
    volumes = []
    for (center, radii), dome in zip(_LUNGS, _DOMES, strict=True):
        sides = [np.arange(c - r - 30.0, c + r + 30.0, 1.0) for c, r in zip(center, radii, strict=True)]
        p = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
        inside = np.clip(0.5 - _lung_mm(p, (center, radii), dome), 0.0, 1.0)
        volumes.append(float(inside.sum()) / 1000.0)
    return volumes[0], volumes[1]


@lru_cache(maxsize=4)
def _usual(scene: Scene, shares: tuple[float, ...]) -> np.ndarray:
    """Return quantiles of a plain scan of a scene without the air around it."""
    sides = [np.arange(-192.0, 192.0, 6.0), np.arange(-192.0, 192.0, 6.0), np.arange(-160.0, 160.0, 5.0)]
    hu = scene.hu(np.stack(np.meshgrid(*sides), axis=-1) + CENTER_MM)
    return np.asarray(np.quantile(hu[hu > _NO_AIR_HU], shares))


def _put(hu: np.ndarray, value: np.ndarray | float, distance_mm: np.ndarray) -> np.ndarray:
    """Blend a material in where the distance from its surface is negative; the edge is smooth."""
    t = np.clip(0.5 - distance_mm / (2.0 * _EDGE_MM), 0.0, 1.0)
    return np.asarray(hu + (value - hu) * t * t * (3.0 - 2.0 * t))


def _lung_hu(p: Points) -> np.ndarray:
    """Return the density of lung: more blood toward the back and the feet."""
    return np.asarray(-850.0 + 0.3 * p[..., 1] - 0.12 * p[..., 2])


def _lung_mm(p: Points, lung: tuple, dome: tuple) -> np.ndarray:  # type: ignore[type-arg]
    """Return the distance from a lung's surface: an ellipsoid cut at its base, less a dome."""
    (x, _, z), _ = lung
    p = p + np.sign(x) * _LEAN * (p[..., 2:] - z) * np.array([1.0, 0.0, 0.0])
    above = np.maximum(_ellipsoid(p, *lung), _BASE_MM - p[..., 2])
    return np.asarray(np.maximum(above, -_ellipsoid(p, *dome)))


def _ellipsoid(p: Points, center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Return nearly the distance from an ellipsoid's surface, negative inside."""
    q = (p - np.array(center)) / np.array(radii)
    size = np.linalg.norm(q, axis=-1)
    slope = np.linalg.norm(q / np.array(radii), axis=-1)
    return np.asarray(size * (size - 1.0) / np.maximum(slope, 1e-6))
