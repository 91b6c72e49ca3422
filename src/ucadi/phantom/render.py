# SPDX-License-Identifier: Apache-2.0
"""A patient on a grid: HU, true lesion mask and lung mask.

A voxel holds the mean over its own volume: edges are as wide as a pixel in-plane, and thick slices are the
mean of thinner samples (the slice profile). The work runs over slabs of a few slices, which stay in cache.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ucadi.imaging.grid import Grid
from ucadi.phantom.bones import Axes, Slab, add_ribs, add_spine, blend
from ucadi.phantom.fields import InPlane
from ucadi.phantom.patient import Patient
from ucadi.phantom.trees import Tubes, paint

__all__ = ["RenderedPatient", "render_patient"]

_SAMPLE_MM = 2.1
"""Thickest sample along z; thicker slices are averaged from several."""

_SLAB_VOXELS = 250_000

_AIR_HU, _FAT_HU, _MUSCLE_HU, _SKIN_HU, _BLOOD_HU, _WALL_HU = -1000.0, -104.0, 52.0, 30.0, 38.0, 10.0
_LUMEN_HU = -985.0


InnerSlab = Float[np.ndarray, "z inner_y inner_x"]
"""A slab over the lungs' rows and columns only."""


@dataclass(frozen=True, eq=False)
class RenderedPatient:
    """What an ideal scanner would see.

    Attributes:
        hu: (z, y, x) float32.
        lesion_mask: True where at least half of a voxel is diseased.
        lung_mask: Both lungs with vessels and lesions, without pleural fluid.
        grid: Geometry of all three.
    """

    hu: Float[np.ndarray, "z y x"]
    lesion_mask: Bool[np.ndarray, "z y x"]
    lung_mask: Bool[np.ndarray, "z y x"]
    grid: Grid


def render_patient(patient: Patient, grid: Grid) -> RenderedPatient:
    """Render a patient.

    Args:
        patient: Continuous anatomy.
        grid: Upright, with ascending axes and more than one voxel along each.

    Raises:
        ValueError: If the grid is tilted, mirrored or flat.
    """
    z, y, x = _upright_axes(grid)
    samples = int(np.ceil(grid.spacing_mm[0] / _SAMPLE_MM))
    step = grid.spacing_mm[0] / samples
    fine_z = (z[:, None] + step * (np.arange(samples) - (samples - 1) / 2.0)).ravel()
    painter = _Painter(patient, (fine_z, y, x), step)
    hu = np.empty(grid.shape, np.float32)
    lesion, lung = np.empty(grid.shape, np.bool_), np.empty(grid.shape, np.bool_)
    slices = max(1, _SLAB_VOXELS // (samples * grid.shape[1] * grid.shape[2]))
    for first in range(0, grid.shape[0], slices):
        last = min(first + slices, grid.shape[0])
        parts = painter.slab(slice(first * samples, last * samples))
        thick = [part.reshape(last - first, samples, *part.shape[1:]).mean(axis=1) for part in parts]
        hu[first:last] = thick[0]
        lesion[first:last], lung[first:last] = (painter.placed(share) >= 0.5 for share in thick[1:])
    return RenderedPatient(hu, lesion & lung, lung, grid)


def _upright_axes(grid: Grid) -> Axes:
    """Return the coordinates of slices, rows and columns."""
    upright = Grid.from_spacing(grid.shape, grid.spacing_mm, grid.origin_mm)
    if not grid.is_close(upright) or min(grid.shape) < 2:
        raise ValueError(
            "a phantom is rendered on an upright grid with ascending axes and several voxels per axis"
        )
    z, y, x = (
        o + s * np.arange(n) for o, s, n in zip(grid.origin_mm, grid.spacing_mm, grid.shape, strict=True)
    )
    return z, y, x


class _Painter:
    """A patient read on the rows and columns of a grid, painted slab by slab."""

    def __init__(self, patient: Patient, axes: Axes, step_mm: float) -> None:
        self.patient, self.axes = patient, axes
        self.pixel_mm = float(axes[1][1] - axes[1][0])
        self.blur_mm = (step_mm, self.pixel_mm)
        thorax, lesions = patient.thorax, patient.lesions
        self.rows, self.columns = (
            slice(
                *np.searchsorted(axis, (thorax.lung_box_mm[0][i] - 4, thorax.lung_box_mm[1][i] + 4)).tolist()
            )
            for i, axis in ((1, axes[1]), (2, axes[2]))
        )
        self.box = axes[0], axes[1][self.rows], axes[2][self.columns]
        self.whole = {
            name: getattr(thorax, name).in_plane(axes[1], axes[2])
            for name in ("cavity", "body", "muscle", "soft", "organ_hu")
        }
        self.whole["noise"] = patient.coarse_noise.in_plane(axes[1], axes[2])
        inner = {"lung": thorax.lung, "fine": patient.fine_noise}
        if lesions is not None:
            inner |= {"extent": lesions.extent, "target": lesions.target_hu}
        self.inner: dict[str, InPlane] = {
            name: field.in_plane(self.box[1], self.box[2]) for name, field in inner.items()
        }
        wall = 0.0 if lesions is None else lesions.wall_mm
        self.tissue = self._paint(patient.vessels)
        paint(
            patient.bronchi.grown(0.25 + 0.1 * patient.bronchi.radius + wall),
            self.box,
            self.blur_mm,
            self.tissue,
        )
        paint(patient.windpipe.grown(1.6), self.box, self.blur_mm, self.tissue)
        paint(patient.scars, self.box, self.blur_mm, self.tissue)
        self.lumen = self._paint(patient.bronchi)
        paint(patient.windpipe, self.box, self.blur_mm, self.lumen)
        self.nodules = self.cavity = None
        if lesions is not None and len(lesions.nodules.radius):
            self.nodules = self._paint(lesions.nodules)
        if lesions is not None and len(lesions.cavity.radius):
            paint(lesions.cavity, self.box, self.blur_mm, self.lumen)

    def _paint(self, tubes: Tubes) -> Slab:
        out = np.zeros(tuple(len(axis) for axis in self.box), np.float32)
        paint(tubes, self.box, self.blur_mm, out)
        return out

    def placed(self, inner: InnerSlab) -> Slab:
        """Put an array over the lung box into full slices of zeros."""
        out = np.zeros((len(inner), len(self.axes[1]), len(self.axes[2])), np.float32)
        out[:, self.rows, self.columns] = inner
        return out

    def slab(self, part: slice) -> tuple[Slab, InnerSlab, InnerSlab]:
        """Return HU over full slices, and the lesions' and lungs' shares over the lung box."""
        z = self.axes[0][part]
        axes = z, self.axes[1], self.axes[2]
        whole = {name: field.at(z) for name, field in self.whole.items()}
        hu = self._body(whole, axes)
        inner = {name: field.at(z) for name, field in self.inner.items()}
        hu_box = hu[:, self.rows, self.columns]
        lung_share = _share(inner["lung"], self.pixel_mm)
        lung_hu, lesion = self._lung(inner, whole["noise"][:, self.rows, self.columns], part)
        hu_box += lung_share * (lung_hu - hu_box)
        tissue, lumen = self.tissue[part], self.lumen[part]
        hu_box += tissue * np.maximum(_WALL_HU + (_BLOOD_HU - _WALL_HU) * lung_share - hu_box, 0.0)
        hu_box += lumen * (_LUMEN_HU - hu_box)
        return hu, lesion * lung_share, lung_share

    def _body(self, whole: dict[str, Slab], axes: Axes) -> Slab:
        """Paint air, table, body wall, organs and bones."""
        thorax, edge = self.patient.thorax, self.pixel_mm
        hu = np.full(whole["body"].shape, _AIR_HU, np.float32)
        self._table(hu, axes)
        blend(hu, _SKIN_HU, whole["body"], edge)
        blend(hu, _FAT_HU + 5.0 * whole["noise"], whole["body"] - np.float32(2.0), edge)
        blend(hu, _MUSCLE_HU + 6.0 * whole["noise"], whole["muscle"], edge)
        blend(hu, whole["organ_hu"], whole["soft"], edge)
        add_ribs(hu, thorax, axes, whole["cavity"], edge)
        add_spine(hu, thorax, axes, edge)
        return hu

    def _table(self, hu: Slab, axes: Axes) -> None:
        """Paint the couch: a hollow curved shell under the patient."""
        y, x = axes[1][:, None], axes[2][None, :]
        back = self.patient.thorax.lung_box_mm[1][1] + 62.0 * self.patient.thorax.build.scale
        gap = (y - back - 26.0 + 0.0007 * x**2).astype(np.float32)
        shell = np.minimum(12.0 - np.abs(gap), 215.0 - np.abs(x)).astype(np.float32)
        plane = np.full(shell.shape, _AIR_HU, np.float32)
        blend(plane[None], -640.0, shell[None], self.pixel_mm)
        blend(plane[None], -930.0, (shell - np.float32(1.4))[None], self.pixel_mm)
        hu[:] = plane

    def _lung(self, inner: dict[str, Slab], noise: Slab, part: slice) -> tuple[Slab, Slab]:
        """Return the lungs' HU and the lesions' share."""
        patient, build = self.patient, self.patient.thorax.build
        z, y, x = (a.astype(np.float32) for a in (self.box[0][part], self.box[1], self.box[2]))
        front, back = (corner[1] for corner in patient.thorax.lung_box_mm)
        rise = np.clip((y - front) / (back - front), 0, 1) - 0.5
        hu = (build.parenchyma_hu + build.gradient_hu * rise)[None, :, None] + 9.0 * noise
        hu += 11.0 * inner["fine"]
        if build.dependent_hu:
            hollow = np.clip((y - (back - 55.0)) / 30.0, 0, 1)[None, :, None]
            hu += (build.dependent_hu * hollow) * np.exp(-np.maximum(inner["lung"], 0.0) / np.float32(5.0))
        if build.emphysema:
            self._emphysema(hu, inner["fine"], noise, z)
        self._fissures(hu, z, y, x)
        lesion = np.zeros_like(hu)
        if patient.lesions is not None:
            lesion = self._disease(hu, inner, noise, part)
        return hu, lesion

    def _emphysema(self, hu: Slab, fine: Slab, noise: Slab, z: Float[np.ndarray, " z"]) -> None:
        """Empty small holes, more of them above."""
        low, high = (corner[0] for corner in self.patient.thorax.lung_box_mm)
        upper = np.clip((z - low) / (high - low), 0, 1)[:, None, None]
        holes = np.clip(
            (0.5 * fine + noise - 1.6 + 1.6 * self.patient.thorax.build.emphysema * 4 * upper) * 2.0, 0, 1
        )
        hu += holes * (np.float32(-975.0) - hu)

    def _fissures(
        self,
        hu: Slab,
        z: Float[np.ndarray, " z"],
        y: Float[np.ndarray, " y"],
        x: Float[np.ndarray, " x"],
    ) -> None:
        """Draw the fissures as lines of about one mm."""
        fissures = self.patient.fissures
        points = z[:, None, None], y[None, :, None], x[None, None, :]
        oblique = fissures.oblique(*points)
        thickness, edge = 0.8, max(1.2, self.pixel_mm)
        peak = np.float32(130.0 * min(1.0, thickness / edge * 1.4))
        hu += peak * np.clip(1.0 - np.abs(oblique) / edge, 0, 1)
        right = np.searchsorted(x, 0.0)
        minor = fissures.minor(points[0], points[1], points[2][..., :right])
        line = np.clip(1.0 - np.abs(minor) / edge, 0, 1) * (oblique[..., :right] > 0)
        hu[..., :right] += peak * line

    def _disease(self, hu: Slab, inner: dict[str, Slab], noise: Slab, part: slice) -> Slab:
        """Blend the disease into the lungs and return its share of each voxel."""
        lesions = self.patient.lesions
        if lesions is None:
            raise ValueError("a healthy patient has no disease to draw")
        extent, fine = inner["extent"], inner["fine"]
        share = _share(extent, self.pixel_mm)
        fade = np.clip(extent * np.float32(1.0 / lesions.edge_mm) + np.float32(0.6), 0, 1)
        fade *= fade * (3.0 - 2.0 * fade)
        target = inner["target"]
        softness = np.clip(
            target * np.float32(-1.0 / 450.0), 0.25, 1.2
        )  # dense lung is even, ground glass is not
        target = target + (np.float32(lesions.texture_hu) * softness) * (fine + 1.1 * noise)
        if lesions.septa_hu:
            ridge = np.clip(1.0 - np.abs(noise + 0.35 * fine) * 5.0, 0, 1)
            target += np.float32(lesions.septa_hu) * ridge * (target < -300.0)
        np.minimum(target, 75.0, out=target)
        hu += fade * np.maximum(target - hu, 0.0)
        if self.nodules is not None:
            nodules = self.nodules[part]
            hu += nodules * np.maximum(np.float32(-150.0) - hu, 0.0)
            share = np.maximum(share, nodules)
        return share


def _share(distance_mm: Slab, edge_mm: float) -> Slab:
    """Return the covered share of voxels from a distance at their centers."""
    share = distance_mm * np.float32(1.0 / edge_mm)
    share += np.float32(0.5)
    return np.asarray(np.clip(share, 0.0, 1.0, out=share))
