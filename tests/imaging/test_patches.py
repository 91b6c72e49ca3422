# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.imaging.patches import blend_windows, draw_patch_box, pad_to, plan_windows

windows = st.tuples(*[st.integers(1, 8)] * 3)
shapes = st.tuples(*[st.integers(1, 20)] * 3)
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.9])


@given(shapes, windows, overlaps)
def test_windows_lie_inside_cover_every_voxel_and_overlap_enough(extra, window, overlap):
    shape = tuple(w + e - 1 for w, e in zip(window, extra, strict=True))
    covered = np.zeros(shape, int)
    boxes = plan_windows(shape, window, overlap)
    for box in boxes:
        assert covered[box].shape == window
        covered[box] += 1
    assert covered.min() >= 1
    for axis, width in enumerate(window):
        starts = sorted({box[axis].start for box in boxes})
        assert starts[0] == 0
        steps = np.diff(starts)
        assert (steps <= max(1, int(width * (1 - overlap)))).all()
        assert np.ptp(steps) <= 1 if len(steps) else True  # equally spread


def test_a_volume_of_one_windows_size_needs_one_window():
    assert plan_windows((4, 5, 6), (4, 5, 6), 0.5) == [(slice(0, 4), slice(0, 5), slice(0, 6))]


@given(shapes, windows, overlaps, st.integers(0, 3))
def test_blending_what_was_cut_gives_the_volume_back(shape, window, overlap, seed):
    voxels = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    found = blend_windows(voxels, window, overlap, lambda patch: patch)
    assert found.shape == shape
    np.testing.assert_allclose(found, voxels, rtol=1e-4, atol=1e-5)


def test_where_windows_disagree_the_nearer_center_counts_more():
    seen = []

    def numbered(patch):
        seen.append(patch)
        return np.full(patch.shape, len(seen) - 1, np.float32)

    found = blend_windows(np.zeros((4, 4, 12), np.float32), (4, 4, 8), 0.5, numbered)[1, 1]
    assert len(seen) == 2
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0.0
    assert found[-1] == 1.0
    assert found[5] < 0.5 < found[6]


@given(shapes, windows)
def test_padding_reaches_the_shape_and_remembers_where_the_volume_lies(shape, wanted):
    voxels = np.arange(1, np.prod(shape) + 1).reshape(shape)
    padded, inner = pad_to(voxels, wanted)
    assert padded.shape == tuple(max(a, b) for a, b in zip(shape, wanted, strict=True))
    np.testing.assert_array_equal(padded[inner], voxels)
    assert padded.sum() == voxels.sum()
    for box, size, total in zip(inner, shape, padded.shape, strict=True):
        assert abs(box.start - (total - size - box.start)) <= 1  # equally on both sides


def test_a_volume_that_is_large_enough_is_not_copied():
    voxels = np.zeros((3, 4, 5))
    assert pad_to(voxels, (3, 4, 1))[0] is voxels


@given(shapes, windows, st.booleans(), st.data())
def test_a_drawn_box_lies_inside_and_holds_a_lesion_when_asked(extra, patch, on_lesion, data):
    shape = tuple(p + e - 1 for p, e in zip(patch, extra, strict=True))
    mask = np.zeros(shape, bool)
    mask[tuple(data.draw(st.integers(0, n - 1)) for n in shape)] = True
    box = draw_patch_box(
        mask, patch, np.random.default_rng(data.draw(st.integers(0, 99))), on_lesion=on_lesion
    )
    assert mask[box].shape == patch
    if on_lesion:
        assert mask[box].any()


def test_without_a_lesion_a_box_is_drawn_anywhere():
    rng = np.random.default_rng(0)
    mask = np.zeros((4, 4, 40), bool)
    starts = {draw_patch_box(mask, (4, 4, 8), rng, on_lesion=True)[2].start for _ in range(500)}
    assert starts == set(range(33))  # both ends included


def test_a_lesion_lands_anywhere_in_the_patch():
    rng = np.random.default_rng(0)
    mask = np.zeros((1, 1, 50), bool)
    mask[0, 0, 25] = True
    places = {25 - draw_patch_box(mask, (1, 1, 8), rng, on_lesion=True)[2].start for _ in range(300)}
    assert places == set(range(8))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_generator_draws_the_same_boxes(seed):
    mask = np.ones((9, 9, 9), bool)
    drawn = [
        [draw_patch_box(mask, (3, 3, 3), rng, on_lesion=k % 2 == 0) for k in range(5)]
        for rng in (np.random.default_rng(seed), np.random.default_rng(seed))
    ]
    assert drawn[0] == drawn[1]
