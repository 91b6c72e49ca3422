# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from ucadi.imaging.grid import Grid
from ucadi.imaging.resample import axis_weights, interpolate_linear, resample_linear

sizes = st.integers(1, 12)
spacings = st.floats(0.5, 6)


def upright(shape, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> Grid:
    return Grid.from_spacing(shape, spacing, origin)


def oblique(shape, spacing=(5.0, 0.8, 0.7)) -> Grid:
    """A grid turned about two axes, as a tilted patient gives it."""
    a, b = 0.3, -0.2
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.fliplr(np.eye(3)) @ np.diag(spacing)
    affine[:3, 3] = (-120.0, 30.0, -500.0)
    return Grid(shape, affine)


def interpolated(voxels, grid: Grid, target: Grid) -> np.ndarray:
    """SciPy's linear interpolation at the target's voxel centres, edge values beyond the edge."""
    index = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1).astype(np.float64)
    place = grid.to_index(target.to_world(index))
    return map_coordinates(voxels.astype(np.float64), np.moveaxis(place, -1, 0), order=1, mode="nearest")


@given(st.integers(0, 5), st.tuples(sizes, sizes, sizes), st.tuples(*[st.floats(0.2, 1)] * 3))
def test_to_finer_voxels_it_is_scipys_linear_interpolation(seed, shape, factor):
    voxels = np.random.default_rng(seed).normal(0, 500, shape)
    for grid in (upright(shape, (5.0, 0.8, 0.7), (-300.0, -10.0, 4.0)), oblique(shape)):
        target = grid.with_spacing(tuple(s * f for s, f in zip(grid.spacing_mm, factor, strict=True)))
        np.testing.assert_allclose(
            resample_linear(voxels, grid, target), interpolated(voxels, grid, target), atol=0.5, rtol=1e-3
        )


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64, bool])
def test_onto_its_own_grid_a_volume_is_itself(dtype):
    voxels = (np.random.default_rng(0).random((4, 5, 6)) * 100).astype(dtype)
    for grid in (upright((4, 5, 6), (5.0, 0.8, 0.7)), oblique((4, 5, 6))):
        found = resample_linear(voxels, grid, grid)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, voxels, atol=1e-3)


def test_a_shifted_grid_beyond_the_edge_takes_the_edges_value():
    voxels = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    far = upright((1, 1, 1), origin=(100.0, 100.0, 100.0))
    near = upright((1, 1, 1), origin=(-100.0, -100.0, -100.0))
    assert resample_linear(voxels, upright((2, 2, 2)), far).item() == 7
    assert resample_linear(voxels, upright((2, 2, 2)), near).item() == 0


@given(st.integers(1, 40), st.integers(1, 40), st.floats(-50, 50), st.floats(0.05, 10))
def test_the_weights_of_each_output_are_not_negative_and_sum_to_one(size_in, size_out, start, step):
    weights = axis_weights(size_in, size_out, start, step)
    assert weights.shape == (size_out, size_in)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


@given(st.tuples(sizes, sizes, sizes), st.tuples(spacings, spacings, spacings), st.floats(-1024, 3071))
def test_a_constant_volume_stays_constant(shape, spacing, value):
    grid = upright(shape, (2.5, 0.8, 0.7))
    found = resample_linear(np.full(shape, value, np.float32), grid, grid.with_spacing(spacing))
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-3)


@given(st.integers(0, 20), st.tuples(*[st.integers(1, 12)] * 3), st.tuples(spacings, spacings, spacings))
def test_values_stay_within_the_volumes_range(seed, shape, spacing):
    grid = upright(shape, (2.5, 0.8, 0.7))
    voxels = np.random.default_rng(seed).normal(0, 500, shape).astype(np.float32)
    found = resample_linear(voxels, grid, grid.with_spacing(spacing))
    assert found.min() >= voxels.min() - 0.01
    assert found.max() <= voxels.max() + 0.01


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.9, 1.0, 1.3, 2.0, 2.5, 3.0, 3.7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_linear_ramp_stays_a_linear_ramp_inside(factor, axis):
    shape = (40, 41, 42)
    grid = upright(shape)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = factor
    target = grid.with_spacing(tuple(spacing))
    ramp = np.broadcast_to(np.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(3)]), shape)
    line = np.moveaxis(resample_linear(ramp, grid, target), axis, 0)[:, 3, 3]
    expected = target.to_world(np.eye(3)[axis][None] * np.arange(len(line))[:, None])
    expected = grid.to_index(expected)[:, axis]
    inside = (expected > np.ceil(factor)) & (expected < shape[axis] - 1 - np.ceil(factor))
    assert inside.sum() > 3
    # A triangle of broken width is not quite centred on its samples: 0.06 of an input voxel at most.
    tolerance = 1e-3 if factor <= 1 or factor in (2.0, 3.0) else 0.06
    np.testing.assert_allclose(line[inside], expected[inside], atol=tolerance)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fine_stripes_become_gray_instead_of_coarse_stripes(axis):
    shape = (48, 48, 48)
    index = np.arange(48).reshape([-1 if k == axis else 1 for k in range(3)])
    stripes = np.broadcast_to(np.where(index % 2, 1000.0, 0.0), shape)
    grid = upright(shape)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 4.0
    target = grid.with_spacing(tuple(spacing))
    inside = tuple(slice(1, -1) if k == axis else slice(None) for k in range(3))
    assert np.ptp(interpolated(stripes, grid, target)) >= 0  # what linear interpolation would sample
    np.testing.assert_allclose(resample_linear(stripes, grid, target)[inside], 500, atol=40)


@pytest.mark.parametrize("place", range(20))
def test_no_slice_is_skipped_on_the_way_to_thick_slices(place):
    voxels = np.zeros((20, 2, 2), np.int16)
    voxels[place] = 1000
    grid = upright(voxels.shape)
    found = resample_linear(voxels, grid, grid.with_spacing((5.0, 1.0, 1.0)))
    assert 100 < found.max() <= 600


@pytest.mark.parametrize("spacing", [(5.0, 0.8, 0.8), (5.0, 3.0, 3.0), (2.0, 2.0, 2.0), (1.0, 0.5, 0.5)])
@pytest.mark.parametrize("made", [(1.0, 0.7, 0.7), (2.5, 1.1, 0.9), (5.0, 1.4, 1.4)])
def test_the_volume_of_a_mask_is_kept_within_a_few_percent(made, spacing):
    shape = tuple(int(90 / s) for s in made)
    grid = upright(shape, made)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    center = (np.array(shape) - 1) / 2
    distance = (index - center) * made / np.array([30.0, 22.0, 26.0])
    mask = (distance**2).sum(-1) < 1
    target = grid.with_spacing(spacing)
    found = (resample_linear(mask, grid, target) >= 0.5).sum() * target.voxel_ml
    assert found == pytest.approx(mask.sum() * grid.voxel_ml, rel=0.04)
    assert found == pytest.approx(4 / 3 * np.pi * 30 * 22 * 26 / 1000, rel=0.06)


def test_the_source_is_left_as_it_was():
    voxels = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    voxels.flags.writeable = False
    grid = upright(voxels.shape)
    resample_linear(voxels, grid, grid.with_spacing((2.0, 0.5, 1.0)))


@pytest.mark.parametrize("turn", ["axes swapped", "axis reversed", "tilted"])
def test_grids_whose_axes_differ_are_refused(turn):
    grid = upright((4, 4, 4))
    affine = grid.affine_lps.copy()
    if turn == "axes swapped":
        affine = affine[:, [1, 0, 2, 3]]
    elif turn == "axis reversed":
        affine[:3, 0] *= -1
    else:
        affine[:3, 0] += (0.01, 0.0, 0.0)
    with pytest.raises(ValueError, match="same axes"):
        resample_linear(np.zeros(grid.shape, np.float32), grid, Grid((4, 4, 4), affine))


# -- interpolate_linear: the value at each place ----------------------------------------------------------


@given(
    st.integers(0, 5),
    st.tuples(sizes, sizes, sizes),
    st.tuples(*[st.floats(0.2, 4)] * 3),
    st.tuples(*[st.floats(-9, 9)] * 3),
)
def test_interpolation_is_scipys_at_any_spacing_and_shift(seed, shape, factor, shift_mm):
    voxels = np.random.default_rng(seed).integers(-1024, 3072, shape, dtype=np.int16)
    for grid in (upright(shape, (5.0, 0.8, 0.7), (-300.0, -10.0, 4.0)), oblique(shape)):
        target = grid.with_spacing(tuple(s * f for s, f in zip(grid.spacing_mm, factor, strict=True)))
        affine = target.affine_lps.copy()
        affine[:3, 3] += shift_mm
        target = Grid(target.shape, affine)
        found = interpolate_linear(voxels, grid, target)
        np.testing.assert_allclose(found, interpolated(voxels, grid, target), atol=0.01)


def test_interpolation_is_simpleitks_within_a_hundredth_hu():
    voxels = np.random.default_rng(0).integers(-1024, 3072, (40, 50, 60), dtype=np.int16)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((0.7, 0.7, 0.8))
    shape, spacing = (6, 43, 52), (5.0, 0.8, 0.8)
    placed = (shape[::-1], SimpleITK.Transform(), SimpleITK.sitkLinear, (0.0, 0.0, 0.0), spacing[::-1])
    resampled = SimpleITK.Resample(image, *placed, image.GetDirection(), 0.0, SimpleITK.sitkFloat32)
    found = interpolate_linear(voxels, upright(voxels.shape, (0.8, 0.7, 0.7)), upright(shape, spacing))
    np.testing.assert_allclose(found, SimpleITK.GetArrayFromImage(resampled), atol=0.01)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64, bool])
def test_onto_its_own_grid_interpolation_changes_nothing(dtype):
    voxels = (np.random.default_rng(0).random((4, 5, 6)) * 100).astype(dtype)
    for grid in (upright((4, 5, 6), (5.0, 0.8, 0.7)), oblique((4, 5, 6))):
        found = interpolate_linear(voxels, grid, grid)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, voxels, atol=1e-3)


def test_interpolation_does_not_touch_slices_that_it_does_not_need():
    voxels = np.zeros((25, 3, 3), np.float32)
    voxels[[2, 3, 4, 8, 9, 14, 15, 21, 22]] = np.nan  # centers at 0, 6.25, 12.5, 18.75
    grid = upright(voxels.shape, (0.8, 1.0, 1.0))
    assert np.isfinite(interpolate_linear(voxels, grid, upright((4, 3, 3), (5.0, 1.0, 1.0)))).all()


def test_to_finer_voxels_both_ways_of_resampling_agree():
    voxels = np.random.default_rng(0).integers(-1024, 3072, (8, 9, 10), dtype=np.int16)
    grid = upright(voxels.shape, (5.0, 0.8, 0.7))
    target = grid.with_spacing((2.1, 0.5, 0.6))
    found = interpolate_linear(voxels, grid, target)
    np.testing.assert_allclose(found, resample_linear(voxels, grid, target), atol=0.05)


def test_interpolation_to_a_grid_with_other_axes_is_refused():
    with pytest.raises(ValueError, match="same axes"):
        interpolate_linear(np.zeros((4, 4, 4)), upright((4, 4, 4)), oblique((4, 4, 4), (1.0, 1.0, 1.0)))
