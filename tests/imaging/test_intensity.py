# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.errors import DataError
from ucadi.imaging.intensity import LESION_WINDOW_HU, apply_window, check_hu


@given(st.lists(st.integers(-3000, 3000), min_size=2, max_size=20))
def test_window_is_monotone_and_within_0_and_1(values) -> None:
    scaled = apply_window(np.array(sorted(values), np.int16), LESION_WINDOW_HU)
    assert scaled.dtype == np.float32
    assert (np.diff(scaled) >= 0).all()
    assert scaled.min() >= 0
    assert scaled.max() <= 1


def test_window_ends_map_to_0_and_1_and_its_middle_to_a_half() -> None:
    scaled = apply_window(np.array([-1000, -500, 0], np.int16), (-1000.0, 0.0))
    assert scaled.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("window", [(0.0, 0.0), (1.0, 0.0), (float("nan"), 0.0), (0.0, float("inf"))])
def test_window_without_order_is_a_wrong_call(window) -> None:
    with pytest.raises(ValueError, match="low < high"):
        apply_window(np.zeros(3), window)


def test_chest_in_hu_is_accepted(make_ct) -> None:
    assert check_hu(make_ct().voxels) == ()
    assert check_hu(make_ct().voxels.astype(np.float32)) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hu: hu + 1024, "Air is missing.*add -1024"),
        (lambda hu: np.where(hu < -990, -2000, hu + 1024), "add -1024"),
        (lambda hu: -hu, "MONOCHROME1"),
        (lambda hu: 3071 - hu, "MONOCHROME1"),
        (lambda hu: np.clip(hu, -160, 240), "clipped to a window.* -160 or 240"),
        (lambda hu: np.minimum(hu, 20), "cut off at 20 HU"),
        (lambda hu: (hu + 1024) * 8.0, "16-bit"),
        (lambda hu: (hu + 1024) / 4095.0, "scaled to 0 to 1"),
        (lambda hu: np.where(hu > 300, np.nan, hu), "no numbers"),
        (lambda hu: np.clip((hu + 1350) / 1500 * 255, 0, 255), "8-bit"),
        (lambda hu: (hu > 0).astype(np.uint8), "mask"),
        (lambda hu: np.where(hu < -900, -1024, hu + 1024), "air and lung"),
        (lambda hu: hu + 300, "air and lung"),
        (lambda hu: np.where(hu > -200, hu + 180, hu), "180|2[0-9]0"),
        (lambda hu: np.minimum(hu, -800), "soft tissue"),
        (lambda hu: np.full_like(hu, -1024), "air and lung"),
    ],
)
def test_values_that_are_not_hu_are_refused(make_ct, change, words) -> None:
    with pytest.raises(DataError, match=words) as caught:
        check_hu(change(make_ct().voxels.astype(np.int32)))
    assert caught.value.code == "ct-not-hu"


@pytest.mark.parametrize(
    ("window", "end"), [((-1000, 400), " 400 HU from above"), ((-900, 3000), " -900 HU from below")]
)
def test_window_that_spares_lung_and_soft_tissue_is_warned_of(make_ct, window, end) -> None:
    hu = make_ct().voxels.copy()
    hu[:, 54:56, 30:34] = 1600
    (remark,) = check_hu(np.clip(hu, *window))
    assert remark.code == "hu-clipped"
    assert end in remark.text


def test_values_that_a_scanner_stores_as_lowest_are_not_taken_for_clipped(make_ct) -> None:
    hu = make_ct().voxels
    for lowest in (-1000, -1024, -2000):
        assert check_hu(np.where(hu < -980, lowest, hu)) == ()


def test_picture_of_8_bits_scaled_back_is_warned_of(make_ct) -> None:
    steps = np.round((make_ct().voxels.astype(np.float64) + 1024) / 8.0) * 8.0 - 1024
    assert [remark.code for remark in check_hu(steps)] == ["hu-coarse"]


@given(st.floats(1.5, 400.0), st.integers(0, 3))
def test_values_of_another_kind_are_never_taken_for_hu(scale, seed) -> None:
    values = np.random.default_rng(seed).random((8, 32, 32)) * scale
    with pytest.raises(DataError) as caught:
        check_hu(values)
    assert caught.value.code == "ct-not-hu"
