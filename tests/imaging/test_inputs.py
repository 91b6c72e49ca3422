# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.errors import ConfigError
from ucadi.imaging.grid import Grid
from ucadi.imaging.inputs import lesion_grid, mask_on_grid, slices_for_classifier, volume_for_segmentation
from ucadi.imaging.presets import PRESETS, InputPreset, preset_named
from ucadi.imaging.stacks import CT_MEAN_HU, CT_SD_HU, normalize_hu, span_indices
from ucadi.imaging.volume import Volume

BOX = (slice(3, 27), slice(10, 50), slice(5, 69))
PRESET = InputPreset(
    stack_slices=16,
    stack_size=32,
    draws=5,
    spacing_mm=(5.0, 3.0, 3.0),
    patch=(16, 64, 64),
    window=(16, 64, 64),
    overlap=0.25,
)


@pytest.fixture
def ct():
    """A ramp along y, with metal and padding in opposite corners of the box."""
    grid = Grid.from_spacing((30, 60, 80), (2.5, 1.2, 1.1), (-400.0, -30.0, -40.0))
    voxels = np.broadcast_to(np.linspace(-1000, 500, 60).reshape(1, -1, 1), grid.shape).astype(np.int16)
    voxels[:4, :11, :6] = 30_000
    voxels[-4:, -11:, -12:] = -30_000
    return Volume(voxels, grid)


def test_the_classifier_gets_every_slice_of_the_lung_box_at_the_presets_size(ct):
    found = slices_for_classifier(ct, BOX, PRESET)
    assert found.shape == (24, 32, 32)
    assert found.dtype == np.int16
    middle = found[12, :, 16].astype(float)
    # The ramp across the box, from its first to its last row, seen at the 32 centres of equal parts.
    expected = np.interp(
        (np.arange(32) + 0.5) * 40 / 32 - 0.5 + 10, np.arange(60), np.linspace(-1000, 500, 60)
    )
    np.testing.assert_allclose(middle[1:-1], expected[1:-1], atol=4)


def test_metal_and_padding_are_clipped_before_they_are_averaged(ct):
    for found, low, high in (
        (slices_for_classifier(ct, BOX, PRESET), -1200, 600),
        (volume_for_segmentation(ct, BOX, PRESET), -1024, 3071),
    ):
        assert found.min() >= low
        assert found.max() <= high


def test_the_segmentations_volume_lies_on_its_grid(ct):
    grid = lesion_grid(ct.grid, BOX, PRESET)
    found = volume_for_segmentation(ct, BOX, PRESET)
    assert found.shape == grid.shape == (12, 16, 23)
    assert found.dtype == np.int16
    assert grid.spacing_mm == pytest.approx(PRESET.spacing_mm)
    rows = grid.to_index(ct.grid.to_world(np.array([[15.0, 30.0, 40.0]])))[0]
    value = np.interp(rows[1], np.arange(grid.shape[1]), found[6, :, 12].astype(float))
    assert value == pytest.approx(ct.voxels[15, 30, 40], abs=15)


def test_a_mask_comes_to_the_segmentations_grid_where_the_lesion_lies(ct):
    z, y, x = np.indices(ct.grid.shape)
    lesion = ((z - 15) / 6) ** 2 + ((y - 30) / 12) ** 2 + ((x - 35) / 16) ** 2 < 1
    target = lesion_grid(ct.grid, BOX, PRESET)
    found = mask_on_grid(Volume(lesion, ct.grid), target)
    assert found.shape == target.shape
    assert found.dtype == bool
    assert found.sum() * target.voxel_ml == pytest.approx(lesion.sum() * ct.grid.voxel_ml, rel=0.05)
    places = target.to_world(np.argwhere(found).astype(float)).mean(0)
    np.testing.assert_allclose(places, ct.grid.to_world(np.argwhere(lesion).astype(float)).mean(0), atol=1.0)


def test_an_empty_and_a_full_mask_stay_empty_and_full(ct):
    target = lesion_grid(ct.grid, BOX, PRESET)
    assert not mask_on_grid(Volume(np.zeros(ct.grid.shape, bool), ct.grid), target).any()
    assert mask_on_grid(Volume(np.ones(ct.grid.shape, bool), ct.grid), target).all()


@given(st.integers(1, 300), st.integers(1, 32), st.floats(0, 1, exclude_max=True))
def test_slices_are_spread_over_the_whole_depth(depth, slices, offset):
    found = span_indices(depth, slices, offset)
    assert found.shape == (slices,)
    assert found.min() >= 0
    assert found.max() < depth
    assert (np.diff(found) >= 0).all()
    if depth >= slices:
        parts = found * slices // depth  # one slice of each equal part
        np.testing.assert_allclose(parts, np.arange(slices), atol=1)
        assert len(set(found)) == slices


def test_offsets_of_all_draws_together_reach_every_slice():
    found = {int(i) for draw in range(5) for i in span_indices(80, 16, (draw + 0.5) / 5)}
    assert found == set(range(80))


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=20))
def test_normalizing_clips_to_the_window_and_keeps_the_order(values):
    hu = np.sort(np.int16(values))
    found = normalize_hu(hu)
    assert found.dtype == np.float32
    expected = (np.clip(hu.astype(float), -1200, 600) - CT_MEAN_HU) / CT_SD_HU
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_its_name(name):
    assert preset_named(name) is PRESETS[name]


def test_the_papers_sizes_are_the_papers():
    paper = preset_named("paper")
    assert (paper.stack_slices, paper.stack_size, paper.draws) == (16, 128, 5)
    assert (paper.spacing_mm, paper.patch) == ((5.0, 0.8, 0.8), (32, 160, 160))


def test_an_unknown_preset_is_refused_with_what_there_is():
    with pytest.raises(ConfigError) as caught:
        preset_named("x" * 1000)
    assert caught.value.code == "config-invalid"
    assert all(name in caught.value.detail for name in PRESETS)
    assert len(caught.value.detail) < 300
