# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from ucadi.imaging.grid import Grid
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.planes import mask_on_plane, values_on_plane
from ucadi.imaging.volume import Volume


@dataclass(frozen=True)
class Plane:
    position_mm: np.ndarray
    row: np.ndarray
    column: np.ndarray
    pixel_mm: tuple[float, float]

    def moved(self, *by_mm: float) -> "Plane":
        return Plane(self.position_mm + np.array(by_mm), self.row, self.column, self.pixel_mm)


def planes_of(grid: Grid) -> list[Plane]:
    """The planes of a stack as a scanner would state them: along the first axis of any grid."""
    _, dy, dx = grid.spacing_mm
    step = grid.affine_lps[:3, :3]
    return [
        Plane(grid.to_world(np.array([k, 0.0, 0.0])), step[:, 2] / dx, step[:, 1] / dy, (dy, dx))
        for k in range(grid.shape[0])
    ]


@given(
    order=st.sampled_from(list(permutations(range(3)))),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    seed=st.integers(0, 9),
    angle=st.floats(-0.5, 0.5),
)
def test_a_stack_in_any_order_and_direction_comes_back_voxel_for_voxel(order, signs, spacing, seed, angle):
    rng = np.random.default_rng(seed)
    voxels = rng.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ (np.eye(3)[:, list(order)] * np.array(signs)) * np.array(spacing)
    affine[:3, 3] = rng.normal(0, 100, 3)
    stack = Volume(voxels, Grid((5, 6, 7), affine))
    canonical = to_canonical(stack)
    for k, plane in enumerate(planes_of(stack.grid)):
        back = values_on_plane(canonical.voxels, canonical.grid, plane, (6, 7))
        assert back.dtype == np.int16
        assert np.array_equal(back, voxels[k])


def test_jitter_within_the_readers_tolerance_does_not_blur():
    rng = np.random.default_rng(0)
    mask = rng.random((4, 5, 6)) > 0.5
    grid = Grid.from_spacing((4, 5, 6), (5.0, 0.7, 0.7))
    for k, plane in enumerate(planes_of(grid)):
        assert np.array_equal(mask_on_plane(mask, grid, plane.moved(0, 0, 0.09), (5, 6)), mask[k])


def test_what_lies_outside_the_volume_is_empty():
    mask = np.ones((4, 5, 6), np.bool_)
    grid = Grid.from_spacing((4, 5, 6), (5.0, 1.0, 1.0))
    plane = planes_of(grid)[1]
    above = plane.moved(0, 0, 100.0)
    assert not mask_on_plane(mask, grid, above, (5, 6)).any()
    aside = plane.moved(2.0, -1.0, 0)
    seen = mask_on_plane(mask, grid, aside, (5, 6))
    assert seen.sum() == 4 * 4
    assert not seen[0].any()
    assert not seen[:, 4:].any()
    between = plane.moved(0.5, 0, 30.0)
    assert not mask_on_plane(mask, grid, between, (5, 6)).any()


@given(shift=st.tuples(*[st.floats(-0.45, 0.45)] * 3), tilt=st.floats(-0.4, 0.4), seed=st.integers(0, 9))
def test_between_voxels_values_are_those_of_an_independent_interpolation(shift, tilt, seed):
    rng = np.random.default_rng(seed)
    voxels = rng.normal(size=(8, 9, 10)).astype(np.float32)
    grid = Grid.from_spacing((8, 9, 10), (2.0, 1.5, 1.25), (10.0, -20.0, 30.0))
    column = np.array([0.0, np.cos(tilt), np.sin(tilt)])
    position = grid.to_world(np.array([3.0, 1.0, 1.0]) + shift)
    plane = Plane(position, np.array([1.0, 0.0, 0.0]), column, (1.1, 1.3))
    found = values_on_plane(voxels, grid, plane, (6, 7))
    down, right = np.mgrid[:6, :7]
    world = position + down[..., None] * column * 1.1 + right[..., None] * plane.row * 1.3
    index, last = grid.to_index(world), np.array(voxels.shape) - 1
    oracle = RegularGridInterpolator([np.arange(n) for n in voxels.shape], voxels.astype(np.float64))
    expected = oracle(np.clip(index, 0, last))
    is_inside = ((index >= -0.5) & (index <= last + 0.5)).all(axis=-1)
    assert np.allclose(found, np.where(is_inside, expected, 0), atol=1e-5)


@pytest.mark.parametrize("tilt_degrees", [0.0, 7.5, 15.0, -22.0])
@pytest.mark.parametrize("step_mm", [1.0, 2.3])
def test_a_balls_volume_survives_tilted_planes_within_one_percent(tilt_degrees, step_mm):
    spacing, radius = (1.5, 0.9, 0.9), 20.0
    grid = Grid.from_spacing((60, 90, 90), spacing)
    center = grid.to_world(np.array([29.3, 44.6, 44.2]))
    z, y, x = (np.arange(n, dtype=float) for n in grid.shape)
    world = grid.to_world(np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1))
    ball = np.linalg.norm(world - center, axis=-1) < radius
    angle = np.radians(tilt_degrees)
    row, column = np.array([1.0, 0.0, 0.0]), np.array([0.0, np.cos(angle), np.sin(angle)])
    pixel_mm, size = (0.8, 0.75), (80, 80)
    normal = np.cross(row, column)
    marked = 0
    for height in np.arange(-25.0, 25.0, step_mm):
        corner = center + height * normal - 0.5 * 80 * (row * pixel_mm[1] + column * pixel_mm[0])
        marked += int(mask_on_plane(ball, grid, Plane(corner, row, column, pixel_mm), size).sum())
    seen_ml = marked * pixel_mm[0] * pixel_mm[1] * step_mm / 1000
    true_ml = ball.sum() * grid.voxel_ml
    assert true_ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.01)
    assert seen_ml == pytest.approx(true_ml, rel=0.01)


def test_a_constant_stays_constant_up_to_half_a_voxel_beyond_the_outermost_slices():
    voxels = np.full((3, 4, 5), 7.0, np.float32)
    grid = Grid.from_spacing((3, 4, 5), (5.0, 1.0, 1.0))
    plane = planes_of(grid)[2]
    moved = plane.moved(0.3, 0.3, 2.4)
    assert np.allclose(values_on_plane(voxels, grid, moved, (4, 5)), 7.0)


def test_half_way_between_slices_a_mask_neither_shrinks_nor_swells():
    mask = np.zeros((20, 8, 8), np.bool_)
    mask[5:15, 2:6, 2:6] = True
    grid = Grid.from_spacing(mask.shape, (5.0, 1.0, 1.0))
    between = [plane.moved(0, 0, 2.5) for plane in planes_of(grid)]
    assert sum(mask_on_plane(mask, grid, plane, (8, 8)).sum() for plane in between) == mask.sum()
