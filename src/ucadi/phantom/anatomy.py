# SPDX-License-Identifier: Apache-2.0
"""The thorax as distance fields: body wall, lungs, heart and great vessels, upper abdomen.

Coordinates are (z, y, x) in mm: z toward the head, y toward the back, x toward the patient's left; the
origin lies in the middle of the chest. Every field is a distance in mm, positive inside. The outlines follow
what axial CT shows (cavity narrowing to the apex, diaphragm domes, heart to the left), with a slow random
warp so that no edge is a geometric figure.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator

from ucadi.phantom.fields import Field, Lattice, noise_field, smooth_max, smooth_min

__all__ = ["HILA_MM", "LUNG_VOLUME_ML", "Build", "Thorax", "draw_build", "draw_thorax", "with_effusion"]

LUNG_VOLUME_ML = (2900.0, 6000.0)
"""Smallest and largest pair of lungs. Source: chest CTs of eight patients, 2.8-6.1 L."""

HILA_MM = {"right": (8.0, 2.0, -38.0), "left": (12.0, 2.0, 36.0)}
"""Where vessels and bronchi enter each lung, at scale 1."""

_STEP_MM = 7.0
_BOX_MM = ((-165.0, -150.0, -235.0), (165.0, 150.0, 235.0))

# Outline of the chest cavity by height at scale 1: half width, half depth, shift of the centre to the back.
_HEIGHT = np.array([-150.0, -110.0, -60.0, 0.0, 45.0, 80.0, 105.0, 130.0])
_HALF_WIDTH = np.array([131.0, 133.0, 132.0, 126.0, 113.0, 94.0, 74.0, 56.0])
_HALF_DEPTH = np.array([92.0, 94.0, 93.0, 88.0, 79.0, 66.0, 52.0, 42.0])
_SHIFT = np.array([0.0, 0.0, 0.0, 2.0, 6.0, 14.0, 22.0, 28.0])

_LIVER_HU, _SPLEEN_HU, _BLOOD_HU, _FLUID_HU = 56.0, 47.0, 41.0, 9.0


@dataclass(frozen=True)
class Build:
    """A patient's proportions.

    Attributes:
        scale: Size of the chest against the reference outline.
        width, depth: Further factors across and front to back.
        fat_mm: Subcutaneous fat at the flank.
        breast_mm: Thickness of the breasts; 0 for none.
        heart: Factor of the heart's radii.
        dome_mm: Height of the right diaphragm's top at scale 1.
        parenchyma_hu: Lung density in the middle of the chest.
        gradient_hu: Front-to-back rise of lung density.
        dependent_hu: Further rise in the last few mm at the back (0 for none).
        emphysema: Share of the upper lungs lost to emphysema, 0 for none.
    """

    scale: float
    width: float
    depth: float
    fat_mm: float
    breast_mm: float
    heart: float
    dome_mm: float
    parenchyma_hu: float
    gradient_hu: float
    dependent_hu: float
    emphysema: float


@dataclass(frozen=True, eq=False)
class Thorax:
    """Large anatomy.

    Attributes:
        build: Proportions.
        lung: Both lungs, distance in mm.
        cavity: Chest cavity.
        body: Skin surface.
        muscle: Muscle of the chest wall.
        soft: Heart, great vessels, abdominal organs.
        organ_hu: What the soft organs measure.
        midline_mm: Knots (height, breastbone's y, vertebral bodies' y) in mm.
        volume_ml: Both lungs.
        lung_box_mm: Low and high corner (z, y, x) of the lungs.
    """

    build: Build
    lung: Field
    cavity: Field
    body: Field
    muscle: Field
    soft: Field
    organ_hu: Field
    midline_mm: tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]
    volume_ml: float
    lung_box_mm: tuple[tuple[float, float, float], tuple[float, float, float]]


def draw_build(rng: np.random.Generator) -> Build:
    """Draw a patient's proportions; the scale is set later from a lung volume."""
    return Build(
        scale=float(np.clip(rng.lognormal(np.log(4300.0), 0.19), *LUNG_VOLUME_ML)),
        width=rng.uniform(0.96, 1.05),
        depth=rng.uniform(0.93, 1.08),
        fat_mm=rng.uniform(8.0, 26.0),
        breast_mm=rng.uniform(10.0, 28.0) if rng.random() < 0.4 else 0.0,
        heart=rng.uniform(0.9, 1.12),
        dome_mm=rng.uniform(-74.0, -58.0),
        parenchyma_hu=rng.uniform(-890.0, -856.0),
        gradient_hu=rng.uniform(30.0, 60.0),
        dependent_hu=rng.uniform(60.0, 190.0) if rng.random() < 0.5 else 0.0,
        emphysema=rng.uniform(0.05, 0.25) if rng.random() < 0.2 else 0.0,
    )


def draw_thorax(rng: np.random.Generator) -> Thorax:
    """Draw large anatomy whose lungs have a drawn volume."""
    drawn = draw_build(rng)
    warp = [noise_field(rng, 12, 42.0) for _ in range(3)]
    wall_noise = noise_field(rng, 24, 16.0)
    lattice = Lattice.over_box(*_BOX_MM, _STEP_MM)
    shapes = _Shapes(drawn, warp, wall_noise, lattice)
    lung = shapes.lung()
    # Distances scale with the body: one volume at scale 1 gives the scale that meets the drawn volume.
    reference_ml = np.clip(lung / _STEP_MM + 0.5, 0, 1).sum() * _STEP_MM**3 / 1000.0
    scale = float((drawn.scale / reference_ml) ** (1.0 / 3.0))
    build = Build(**{**drawn.__dict__, "scale": scale})
    scaled = Lattice(
        lattice.shape,
        _STEP_MM * scale,
        tuple(scale * v for v in lattice.origin_mm),  # type: ignore[arg-type]  # three values
    )
    fields = {
        name: Field(np.ascontiguousarray(nodes * np.float32(scale)), scaled)
        for name, nodes in {"lung": lung, **shapes.others(build.fat_mm / scale, lung)}.items()
    }
    inside = np.argwhere(lung > 0)
    origin = np.array(scaled.origin_mm)
    low, high = ((origin + scaled.step_mm * i).tolist() for i in (inside.min(0) - 1, inside.max(0) + 1))
    return Thorax(
        build=build,
        organ_hu=Field(shapes.organ_hu(), scaled),
        midline_mm=(
            scale * _HEIGHT,
            scale * (_SHIFT - _HALF_DEPTH * build.depth - 7.0),
            scale * shapes.spine_y(_HEIGHT),
        ),
        volume_ml=float(reference_ml * scale**3),
        lung_box_mm=((low[0], low[1], low[2]), (high[0], high[1], high[2])),
        **fields,
    )


def with_effusion(thorax: Thorax, is_right: bool, thickness_mm: float) -> Thorax:
    """Return the thorax with fluid in the back of one pleural space (the patient lies on the back)."""
    z, y, x = thorax.lung.lattice.axes()
    side = -x if is_right else x
    level = thorax.lung_box_mm[1][1] - thickness_mm
    lung = thorax.lung.nodes
    climb = 0.004 * (side - 75.0) ** 2  # the fluid rises along the walls: a crescent, not a plane
    fluid = np.minimum((y - level) + climb - 0.06 * np.maximum(z, -60.0), side)
    layer = np.minimum(fluid, lung + 2.0)
    return replace(
        thorax,
        lung=replace(thorax.lung, nodes=np.minimum(lung, -fluid).astype(np.float32)),
        soft=replace(thorax.soft, nodes=np.maximum(thorax.soft.nodes, layer).astype(np.float32)),
        organ_hu=replace(
            thorax.organ_hu, nodes=np.where(layer > -4.0, np.float32(_FLUID_HU), thorax.organ_hu.nodes)
        ),
    )


class _Shapes:
    """Distances on the lattice's nodes at scale 1."""

    def __init__(self, build: Build, warp: list[Field], wall_noise: Field, lattice: Lattice) -> None:
        self.build = build
        z, y, x = lattice.axes()
        rows, columns, heights = y.ravel(), x.ravel(), z.ravel()
        dz, dy, dx = (w.in_plane(rows, columns).at(heights) for w in warp)
        self.wall_noise = wall_noise.in_plane(rows, columns).at(heights)
        self.z, self.y, self.x = z + 2.5 * dz, y + 2.5 * dy, x + 3.0 * dx
        self.level = z
        a, b, shift = (
            PchipInterpolator(_HEIGHT, v)(z).astype(np.float32) for v in (_HALF_WIDTH, _HALF_DEPTH, _SHIFT)
        )
        self.half_width, self.half_depth, self.center_y = a * build.width, b * build.depth, shift
        self.spine = self.spine_y(z.ravel()).astype(np.float32)[:, None, None]
        self.v = self.y - shift  # from the cavity's centre to the back
        self.cavity = self._superellipse(self.half_width, self.half_depth, 2.35)

    def spine_y(self, z: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return the depth of the vertebral bodies' centre."""
        b, shift = (PchipInterpolator(_HEIGHT, v)(z) for v in (_HALF_DEPTH, _SHIFT))
        return np.asarray(b * self.build.depth + shift - 20.0)

    def _superellipse(self, a: np.ndarray, b: np.ndarray, power: float) -> Float[np.ndarray, "z y x"]:
        """Distance to a superellipse, divided by its gradient so that it reads as mm near the edge."""
        u, v = np.abs(self.x) / a, np.abs(self.v) / b
        radius = (u**power + v**power) ** (1.0 / power)
        slope = np.hypot(u ** (power - 1) / a, v ** (power - 1) / b) / np.maximum(radius, 0.2) ** (power - 1)
        return np.asarray((1.0 - radius) / np.maximum(slope, 1e-3), dtype=np.float32)

    def _ball(self, center: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        """Distance to an ellipsoid, near its surface."""
        q = [(c - m) / r for c, m, r in zip((self.z, self.y, self.x), center, radii, strict=True)]
        return np.asarray((1.0 - np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)) * min(radii), dtype=np.float32)

    def _tube(
        self, start: tuple[float, float, float], end: tuple[float, float, float], radius: float
    ) -> np.ndarray:
        """Distance to a capsule."""
        d = [float(b - a) for a, b in zip(start, end, strict=True)]  # no float64 scalars: they widen arrays
        p = (self.z - start[0], self.y - start[1], self.x - start[2])
        t = np.clip((p[0] * d[0] + p[1] * d[1] + p[2] * d[2]) / (d[0] ** 2 + d[1] ** 2 + d[2] ** 2), 0, 1)
        gap = np.sqrt(sum((c - t * e) ** 2 for c, e in zip(p, d, strict=True)))
        return np.asarray(radius - gap, dtype=np.float32)

    def heart(self) -> np.ndarray:
        """Heart: two chambers that lean to the left front."""
        h = self.build.heart
        left = self._ball((-48.0, -22.0, 37.0), (46.0 * h, 43.0 * h, 49.0 * h))
        right = self._ball((-42.0, -28.0, -4.0), (44.0 * h, 40.0 * h, 38.0 * h))
        return smooth_max(left, right, 14.0)

    def great_vessels(self) -> np.ndarray:
        """Aorta, pulmonary trunk and its branches, upper caval vein."""
        back = float(self.spine_y(np.array(20.0))) - 14.0
        tubes = [
            ((-150.0, back + 6.0, 12.0), (42.0, back - 4.0, 24.0), 12.0),  # descending aorta
            ((44.0, back - 6.0, 24.0), (50.0, -22.0, -8.0), 13.0),  # arch
            ((50.0, -22.0, -8.0), (-20.0, -22.0, -10.0), 16.0),  # ascending aorta
            ((-10.0, -34.0, 14.0), (16.0, -16.0, 22.0), 14.0),  # pulmonary trunk
            ((16.0, -14.0, 20.0), (14.0, 6.0, 36.0), 11.0),
            ((12.0, -10.0, 12.0), (8.0, -2.0, -38.0), 11.0),
            ((-15.0, -16.0, -26.0), (84.0, -12.0, -24.0), 9.0),  # upper caval vein
            ((50.0, -8.0, 0.0), (130.0, 2.0, -16.0), 7.0),  # vessels to the neck
            ((50.0, 2.0, 14.0), (130.0, 10.0, 18.0), 6.0),
            ((-150.0, back - 16.0, 4.0), (130.0, 30.0, 4.0), 7.0),  # oesophagus
        ]
        out = self._tube(*tubes[0])
        for tube in tubes[1:]:
            out = np.maximum(out, self._tube(*tube))
        return out

    def mediastinum(self) -> np.ndarray:
        """What the lungs leave free: a column from breastbone to spine, the heart with its fat, the spine."""
        half = np.interp(self.level, [-150, -60, 0, 40, 80, 130], [26, 24, 27, 33, 36, 34]).astype(np.float32)
        half = half * (1.0 - 0.35 * np.clip((self.v - 10.0) / 50.0, 0, 1))  # slimmer beside the spine
        u, v = (self.x - 4.0) / half, (self.v + 2.0) / (self.half_depth + 8.0)
        column = (1.0 - np.hypot(u, v)) * half
        front = 7.0 - np.abs(self.x)  # anterior junction: lungs nearly meet behind the breastbone
        out = smooth_max(column, front, 10.0)
        out = smooth_max(out, self.heart() + 5.0, 12.0)
        out = smooth_max(out, self.great_vessels() + 2.5, 8.0)
        gap = np.hypot(self.x, self.y - self.spine - 4.0)
        return smooth_max(out, (22.0 - gap).astype(np.float32), 6.0)

    def diaphragm(self) -> np.ndarray:
        """Height above the two domes, in mm."""
        right = self._dome(-66.0, self.build.dome_mm)
        left = self._dome(68.0, self.build.dome_mm - 5.0)
        return np.where(self.x < 0, right, left)

    def _dome(self, center_x: float, top: float) -> np.ndarray:
        u, v = (self.x - center_x) / 72.0, (self.v + 12.0) / 78.0
        radial = np.sqrt(1.0 + u**2 + v**2)
        surface = top - 52.0 * (radial - 1.0) - 0.12 * self.v
        slope = 52.0 / radial * np.hypot(u / 72.0, v / 78.0)
        return np.asarray((self.z - surface) / np.sqrt(1.0 + slope**2), dtype=np.float32)

    def apex(self) -> np.ndarray:
        """Distance below the rounded tops of both lungs."""
        u, v = np.abs(self.x) - 44.0 * self.build.width, self.v - 8.0
        radial = np.sqrt(1.0 + (u**2 + v**2) / 34.0**2)
        return np.asarray(
            (112.0 + np.where(self.x < 0, 2.0, 0.0) - 40.0 * (radial - 1.0) - self.z) / np.sqrt(2.0),
            dtype=np.float32,
        )

    def lung(self) -> np.ndarray:
        """Both lungs."""
        out = smooth_min(self.cavity - 2.0, -self.mediastinum(), 7.0)
        out = smooth_min(out, self.diaphragm(), 6.0)
        return smooth_min(out, self.apex(), 10.0)

    def others(self, fat_mm: float, lung: np.ndarray) -> dict[str, np.ndarray]:
        """Cavity, body surface, wall muscle and soft organs."""
        back = np.clip((self.v - 20.0) / 60.0, 0, 1) * np.exp(-((self.x / 75.0) ** 2))
        side = np.clip((np.abs(self.x) - 50.0) / 60.0, 0, 1) * np.clip((self.level + 60.0) / 120.0, 0, 1)
        front = np.clip(-self.v / 60.0, 0, 1) * np.clip((self.level + 10.0) / 60.0, 0, 1)
        shoulder = np.clip((self.level - 40.0) / 70.0, 0, 1)
        muscle_mm = (
            9.0
            + 24.0 * back
            + (15.0 + 60.0 * shoulder) * side
            + 9.0 * front * np.clip(np.abs(self.x) / 30.0 - 0.4, 0, 1)
        )
        fat = fat_mm * (1.0 + 0.25 * self.wall_noise * 0.3)
        a = np.maximum(self.half_width + 26.0 + fat_mm, (150.0 + fat_mm * 0.5) * shoulder) + 22.0 * shoulder
        b = np.maximum(self.half_depth + 20.0 + 0.6 * fat_mm, 72.0 * shoulder)
        self.v = self.v - 6.0
        body = self._superellipse(a.astype(np.float32), b.astype(np.float32), 2.25)
        self.v = self.v + 6.0
        body = smooth_max(body, self._breasts(), 14.0) if self.build.breast_mm else body
        depth = -self.cavity
        muscle = np.minimum(
            np.minimum(muscle_mm + 2.5 * self.wall_noise - depth, depth + 2.0), body - 2.0 - fat * 0.35
        )
        return {
            "cavity": self.cavity,
            "body": body,
            "muscle": muscle.astype(np.float32),
            "soft": self._soft(lung),
        }

    def _breasts(self) -> np.ndarray:
        t = self.build.breast_mm
        y = -self.build.depth * 88.0 - 4.0
        radii = (60.0, 22.0 + t, 62.0)
        return np.asarray(np.maximum(*(self._ball((-35.0, y, x), radii) for x in (-72.0, 72.0))))

    def _soft(self, lung: np.ndarray) -> np.ndarray:
        """Heart, vessels and what lies below the diaphragm."""
        below = (
            np.minimum(-self.diaphragm() - 2.0, self.cavity - 3.0)
            - np.maximum(0.0, 26.0 - np.abs(self.x)) * 0.6
        )
        self._below = below
        chest = np.maximum(self.heart(), self.great_vessels())
        return np.asarray(np.minimum(np.maximum(chest, below), -lung - 0.5), dtype=np.float32)

    def organ_hu(self) -> np.ndarray:
        """HU of the organ at each node."""
        liver = self.x < 28.0 + 0.3 * self.v
        stomach = (self.x > 28.0) & (self.v < 18.0)
        abdomen = np.where(liver, _LIVER_HU, np.where(stomach, 18.0, _SPLEEN_HU))
        return np.where(self._below > -4.0, abdomen, _BLOOD_HU).astype(np.float32)
