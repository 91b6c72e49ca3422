# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume

angles = st.floats(-np.pi, np.pi)
sizes = st.tuples(*[st.integers(1, 40)] * 3)
spacings = st.tuples(*[st.floats(0.2, 8)] * 3)
origins = st.tuples(*[st.floats(-900, 900)] * 3)


@st.composite
def grids(draw) -> Grid:
    """Grids of any size and spacing, turned about all axes, some mirrored."""
    turn = np.eye(3)
    for axis, angle in enumerate((draw(angles), draw(angles), draw(angles))):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(np.array(draw(spacings)) * [1, 1, draw(st.sampled_from([-1, 1]))])
    affine[:3, 3] = draw(origins)
    return Grid(draw(sizes), affine)


def edges(grid: Grid) -> np.ndarray:
    """World places of the box's two opposite corners, edge to edge."""
    return grid.to_world(np.array([[-0.5] * 3, np.array(grid.shape) - 0.5], dtype=np.float64))


@given(grids(), st.lists(st.tuples(*[st.floats(-50, 50)] * 3), min_size=1, max_size=5))
def test_to_the_world_and_back_is_where_one_was(grid, points):
    index = np.array(points)
    np.testing.assert_allclose(grid.to_index(grid.to_world(index)), index, atol=1e-6)


@given(sizes, spacings, origins)
def test_an_upright_grid_runs_to_head_back_and_left(shape, spacing, origin):
    grid = Grid.from_spacing(shape, spacing, origin)
    assert grid.spacing_mm == pytest.approx(spacing)
    assert grid.origin_mm == pytest.approx(origin)
    z, y, x = origin
    np.testing.assert_allclose(grid.to_world(np.zeros(3)), [x, y, z], atol=1e-9)  # world is L, P, S
    np.testing.assert_allclose(
        grid.to_world(np.ones(3)), [x + spacing[2], y + spacing[1], z + spacing[0]], atol=1e-6
    )
    assert grid.voxel_ml == pytest.approx(spacing[0] * spacing[1] * spacing[2] / 1000)
    assert grid.extent_mm == pytest.approx([n * s for n, s in zip(shape, spacing, strict=True)])


@given(grids())
def test_spacing_extent_and_voxel_volume_do_not_depend_on_the_turn(grid):
    column_lengths = np.sqrt((grid.affine_lps[:3, :3] ** 2).sum(0))
    assert grid.spacing_mm == pytest.approx(column_lengths)
    assert grid.voxel_ml == pytest.approx(np.prod(column_lengths) / 1000, rel=1e-6)


@given(grids(), spacings)
def test_another_spacing_keeps_the_first_edge_and_the_axes(grid, spacing):
    found = grid.with_spacing(spacing)
    assert found.spacing_mm == pytest.approx(spacing)
    np.testing.assert_allclose(edges(found)[0], edges(grid)[0], atol=1e-6)
    directions = grid.affine_lps[:3, :3] / grid.spacing_mm
    np.testing.assert_allclose(found.affine_lps[:3, :3] / found.spacing_mm, directions, atol=1e-6)
    for new, old, step in zip(found.extent_mm, grid.extent_mm, spacing, strict=True):
        assert new == pytest.approx(max(step, new if abs(new - old) <= 0.5 * step * 1.0001 else -1), rel=1e-6)


@given(grids(), st.tuples(*[st.sampled_from([0.25, 0.5, 1.0])] * 3))
def test_a_spacing_that_divides_the_box_keeps_the_whole_box(grid, share):
    found = grid.with_spacing(tuple(s * f for s, f in zip(grid.spacing_mm, share, strict=True)))
    np.testing.assert_allclose(edges(found), edges(grid), atol=1e-6)
    assert found.shape == tuple(round(n / f) for n, f in zip(grid.shape, share, strict=True))


@given(grids())
def test_its_own_spacing_gives_the_same_grid(grid):
    assert grid.with_spacing(grid.spacing_mm).is_close(grid)


@given(grids(), st.data())
def test_a_crop_leaves_every_voxel_where_it_was(grid, data):
    starts = [data.draw(st.integers(0, n - 1)) for n in grid.shape]
    stops = [data.draw(st.integers(s + 1, n)) for s, n in zip(starts, grid.shape, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
    found = grid.crop(box)
    assert found.shape == tuple(b - a for a, b in zip(starts, stops, strict=True))
    np.testing.assert_allclose(found.to_world(np.zeros(3)), grid.to_world(np.float64(starts)), atol=1e-6)
    assert found.spacing_mm == pytest.approx(grid.spacing_mm)


def test_a_cropped_volume_keeps_values_and_places():
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    volume = Volume(voxels, Grid.from_spacing((4, 5, 6), (5.0, 0.8, 0.7), (-300.0, 1.0, 2.0)))
    part = volume.crop((slice(1, 3), slice(2, 5), slice(0, 2)))
    np.testing.assert_array_equal(part.voxels, voxels[1:3, 2:5, 0:2])
    assert part.grid.origin_mm == pytest.approx((-295.0, 2.6, 2.0))


@given(grids())
def test_closeness_is_judged_at_the_far_corners(grid):
    assert grid.is_close(grid)
    affine = grid.affine_lps.copy()
    affine[:3, 3] += (0.0, 0.0, 0.02)
    assert not Grid(grid.shape, affine).is_close(grid)
    assert Grid(grid.shape, affine).is_close(grid, tolerance_mm=0.03)


def test_grids_of_other_shape_or_slightly_other_spacing_are_not_close():
    grid = Grid.from_spacing((10, 512, 512), (5.0, 0.7, 0.7))
    assert not grid.is_close(Grid.from_spacing((11, 512, 512), (5.0, 0.7, 0.7)))
    assert not grid.is_close(Grid.from_spacing((10, 512, 512), (5.0, 0.7, 0.7002)))  # 0.1 mm at the far edge


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, -1, 1)])
def test_a_grid_without_voxels_is_refused(shape):
    with pytest.raises(ValueError, match="three positive sizes"):
        Grid(shape, np.eye(4))


@pytest.mark.parametrize(
    "affine",
    [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 1.0, 0.0, 1.0]), np.diag([1, 1, np.inf, 1])],
)
def test_a_singular_or_infinite_affine_is_refused(affine):
    with pytest.raises(ValueError, match="affine"):
        Grid((2, 2, 2), affine)


def test_a_grid_keeps_its_own_read_only_affine():
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 3] = 5
    assert grid.affine_lps[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine_lps[0, 3] = 1


def test_a_volume_whose_array_does_not_fit_its_grid_is_refused():
    with pytest.raises(ValueError, match="shape"):
        Volume(np.zeros((2, 2, 3)), Grid((2, 2, 2), np.eye(4)))
