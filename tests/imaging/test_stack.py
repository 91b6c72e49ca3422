# SPDX-License-Identifier: Apache-2.0
"""Slices of analytic bodies, sampled where a scanner would have measured them, become regular volumes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ucadi.errors import GeometryError
from ucadi.imaging.stack import Stack, plan_stack

ROW, COLUMN = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
SIZE, PIXEL = (96, 96), (1.25, 1.25)
CENTER, RADII = np.array([60.0, 55.0, 80.0]), np.array([34.0, 28.0, 40.0])
TRUTH_ML = 4.0 / 3.0 * np.pi * RADII.prod() / 1000.0


def ball(points: np.ndarray) -> np.ndarray:
    """HU of an ellipsoid in air with an edge four millimeters wide, as slices of that thickness show it."""
    radius = np.sqrt((((points - CENTER) / RADII) ** 2).sum(axis=-1))
    inside = np.clip((1.0 - radius) * RADII.mean() / 4.0 + 0.5, 0.0, 1.0)
    return np.rint(-1000.0 + 1000.0 * inside).astype(np.int16)


def scan(positions: np.ndarray, row=ROW, column=COLUMN) -> tuple[Stack, np.ndarray]:
    """Plan a stack, decode the ellipsoid's slices into its buffer, and finish it."""
    stack = plan_stack(positions, row, column, PIXEL, SIZE)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] * np.array(PIXEL)[:, None, None]
    buffer = np.zeros(stack.buffer_shape, np.int16)
    for slot, position in zip(stack.slots, positions, strict=True):
        buffer[slot] = ball(position + y[..., None] * column + x[..., None] * row)
    return stack, stack.finish(buffer, -1000)


def volume_ml(stack: Stack, voxels: np.ndarray) -> float:
    return float(np.count_nonzero(voxels > -500) * stack.grid.voxel_ml)


def worst_hu(stack: Stack, voxels: np.ndarray) -> float:
    """99th percentile of the difference from the truth at the voxels' own places."""
    index = np.stack(np.mgrid[tuple(slice(n) for n in voxels.shape)], axis=-1).astype(float)
    return float(np.percentile(np.abs(voxels - ball(stack.grid.to_world(index)).astype(float)), 99))


def upright(heights) -> np.ndarray:
    return np.stack([np.zeros(len(heights)), np.zeros(len(heights)), np.asarray(heights, float)], axis=1)


EVEN = np.arange(0.0, 161.0, 2.5)


def test_an_even_stack_is_returned_without_a_copy() -> None:
    stack = plan_stack(upright(EVEN), ROW, COLUMN, PIXEL, SIZE)
    buffer = np.zeros(stack.buffer_shape, np.int16)
    assert stack.finish(buffer, -1024) is buffer
    assert stack.repairs == ()
    assert stack.missing == ()
    assert stack.grid.spacing_mm == pytest.approx((2.5, 1.25, 1.25))


@pytest.mark.parametrize("lost", [[20], [20, 21], [10, 40]])
def test_one_or_two_missing_slices_are_interpolated_and_marked(lost) -> None:
    stack, voxels = scan(upright(np.delete(EVEN, lost)))
    assert stack.missing == tuple(lost)
    assert [remark.code for remark in stack.repairs] == ["slices-interpolated"]
    assert all(f"{EVEN[z]:.1f}" in stack.repairs[0].text for z in lost)
    assert stack.grid.spacing_mm[0] == pytest.approx(2.5)
    assert volume_ml(stack, voxels) == pytest.approx(TRUTH_ML, rel=0.01)


@pytest.mark.parametrize("lost", [[20, 21, 22], [5, 20, 40]])
def test_three_missing_slices_are_refused_with_the_place(lost) -> None:
    with pytest.raises(GeometryError, match=r"3 slices are missing") as caught:
        scan(upright(np.delete(EVEN, lost)))
    assert caught.value.code == "dicom-uneven-spacing"
    assert f"z = {EVEN[lost[0] - 1]:.1f} mm" in caught.value.detail


@pytest.mark.parametrize("second", [1.25, 4.0, 5.0, 7.5])
def test_spacing_that_changes_half_way_is_resampled_from_the_true_positions(second) -> None:
    heights = np.concatenate([np.arange(0.0, 80.0, 2.5), np.arange(80.0, 161.0, second)])
    stack, voxels = scan(upright(heights))
    assert [remark.code for remark in stack.repairs] == ["spacing-resampled"]
    assert volume_ml(stack, voxels) == pytest.approx(TRUTH_ML, rel=0.01)
    assert stack.grid.extent_mm[0] == pytest.approx(heights[-1] + stack.grid.spacing_mm[0], rel=0.01)


def test_a_gap_wider_than_a_lesion_in_an_uneven_stack_is_refused() -> None:
    heights = np.concatenate([np.arange(0.0, 80.0, 2.5), np.arange(80.0, 161.0, 12.0)])
    with pytest.raises(GeometryError) as caught:
        scan(upright(heights))
    assert caught.value.code == "dicom-uneven-spacing"


def test_small_steps_in_one_direction_are_not_taken_for_jitter() -> None:
    heights = EVEN + np.maximum(0, np.arange(len(EVEN)) - 30) * 0.09
    stack, _ = scan(upright(heights))
    assert [remark.code for remark in stack.repairs] == ["spacing-resampled"]


def test_jitter_of_the_table_is_ignored() -> None:
    stack, _ = scan(upright(EVEN + 0.04 * (-1.0) ** np.arange(len(EVEN))))
    assert stack.repairs == ()


@settings(max_examples=10, deadline=None)
@given(degrees=st.floats(-30.0, 30.0), step=st.floats(1.5, 5.0))
def test_a_tilted_gantry_keeps_volume_and_place(degrees, step) -> None:
    angle = np.radians(degrees)
    column = np.array([0.0, np.cos(angle), np.sin(angle)])
    table = np.arange(-40.0, 201.0, step)
    positions = upright(table) - np.array([0.0, 0.0, 60.0 * np.sin(angle)])
    stack, voxels = scan(positions, column=column)
    assert volume_ml(stack, voxels) == pytest.approx(TRUTH_ML, rel=0.01)
    assert stack.grid.spacing_mm[0] == pytest.approx(step * np.cos(angle))
    if abs(degrees) > 1.0:
        assert stack.repairs[0].code == "tilt-corrected"
        assert float(stack.repairs[0].text.split()[3]) == pytest.approx(abs(degrees), abs=0.051)
        assert worst_hu(stack, voxels) < 150.0


def test_a_tilted_stack_with_a_missing_slice_and_another_spacing_keeps_its_volume() -> None:
    column = np.array([0.0, np.cos(0.2), np.sin(0.2)])
    table = np.delete(np.concatenate([np.arange(-10.0, 80.0, 2.5), np.arange(80.0, 190.0, 4.0)]), 30)
    stack, voxels = scan(upright(table), column=column)
    assert volume_ml(stack, voxels) == pytest.approx(TRUTH_ML, rel=0.01)


def test_more_tilt_than_a_gantry_has_is_refused() -> None:
    column = np.array([0.0, np.cos(0.8), np.sin(0.8)])
    with pytest.raises(GeometryError) as caught:
        scan(upright(EVEN), column=column)
    assert caught.value.code == "dicom-tilted"
    assert "46 degrees" in caught.value.detail


def test_slices_that_jump_sideways_are_refused() -> None:
    positions = upright(EVEN)
    positions[30:, 0] += 40.0
    with pytest.raises(GeometryError) as caught:
        scan(positions)
    assert caught.value.code == "dicom-mixed-geometry"


def test_measured_slices_stay_exact_beside_interpolated_ones() -> None:
    whole, _ = scan(upright(EVEN))
    stack, voxels = scan(upright(np.delete(EVEN, 20)))
    assert stack.grid.is_close(whole.grid)
    kept = np.delete(np.arange(len(EVEN)), 20)
    assert np.array_equal(voxels[kept], scan(upright(EVEN))[1][kept])
