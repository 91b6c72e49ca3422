# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume
from ucadi.reporting.record import (
    RESEARCH_NOTICE,
    Agreement,
    SegmentationResult,
    describe_probabilities,
    measure_lesions,
    whole_percents,
)


def _measure(hu: np.ndarray, lesion: np.ndarray, lung: np.ndarray, spacing_mm: tuple) -> SegmentationResult:
    volume = Volume(hu, Grid.from_spacing(hu.shape, spacing_mm))
    return measure_lesions(volume, lesion, lung, lung_left_ml=0.0, lung_right_ml=0.0)


def test_a_ball_of_20_mm_radius_measures_33_5_ml() -> None:
    spacing_mm = (2.0, 0.8, 0.8)
    z, y, x = (np.arange(n) * s for n, s in zip((30, 80, 80), spacing_mm, strict=True))
    distance = np.hypot(np.hypot(z[:, None, None] - 29, y[:, None] - 31.6), x - 31.6)
    ball = distance <= 20
    hu = np.full(ball.shape, -500, np.int16)
    result = _measure(hu, ball, np.ones_like(ball), spacing_mm)
    assert result.lesion_ml == pytest.approx(4 / 3 * np.pi * 8, rel=0.01)
    assert result.lesion_count == 1


def test_density_bounds_belong_to_the_denser_class_and_outliers_to_neither() -> None:
    hu = np.array([-751, -750, -301, -300, 150, 151], np.int16).reshape(1, 1, 6)
    lesion = np.ones(hu.shape, bool)
    result = _measure(hu, lesion, lesion, (10.0, 10.0, 10.0))
    assert (result.ground_glass_ml, result.consolidation_ml) == pytest.approx((2.0, 2.0))
    assert result.other_density_ml == pytest.approx(2.0)


def test_share_counts_only_the_lesion_inside_the_lungs() -> None:
    lung, lesion = np.zeros((2, 4, 10, 10), bool)
    lung[:, :, :5] = True  # 200 voxels
    lesion[0, :4, :10] = True  # 20 of its 40 voxels inside
    result = _measure(np.full(lung.shape, -500, np.int16), lesion, lung, (5.0, 1.0, 2.0))
    assert result.lesion_share_percent == pytest.approx(10.0)
    assert (result.lesion_ml, result.lung_ml) == pytest.approx((0.4, 2.0))


def test_pieces_touching_at_a_corner_are_one_lesion_and_specks_are_none() -> None:
    lesion = np.zeros((8, 20, 20), bool)
    lesion[0:2, 0:5, 0:5] = True  # 50 voxels of 0.002 mL
    lesion[2:4, 5:10, 5:10] = True  # joined at a corner
    lesion[6:8, 15:20, 15:20] = True
    lesion[7, 0, 19] = True  # a speck
    result = _measure(np.full(lesion.shape, -500, np.int16), lesion, lesion, (2.0, 1.0, 1.0))
    assert result.lesion_count == 2


def test_an_empty_mask_and_no_lungs_measure_zero() -> None:
    nothing = np.zeros((4, 5, 6), bool)
    result = _measure(np.zeros(nothing.shape, np.int16), nothing, nothing, (1.0, 1.0, 1.0))
    assert result == SegmentationResult(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)


def test_a_mask_of_another_shape_is_refused() -> None:
    lesion = np.zeros((4, 5, 6), bool)
    volume = Volume(np.zeros((4, 5, 7), np.int16), Grid.from_spacing((4, 5, 7), (1.0, 1.0, 1.0)))
    with pytest.raises((ValueError, TypeCheckError)):  # the latter where annotations are checked first
        measure_lesions(volume, lesion, lesion, lung_left_ml=0.0, lung_right_ml=0.0)


def test_agreeing_draws_name_the_class_with_percent_and_spread() -> None:
    rows = np.array([[0.03, 0.71, 0.17, 0.09], [0.02, 0.77, 0.13, 0.08], [0.04, 0.65, 0.21, 0.10]])
    result = describe_probabilities(rows)
    assert result.probabilities["COVID-19"] == pytest.approx(0.71)
    assert result.spread["COVID-19"] == pytest.approx(0.06)
    assert (result.draws, result.agreement, result.is_conclusive) == (3, Agreement.HIGH, True)
    assert result.statement == (
        "The model finds COVID-19 pneumonia most likely: 71 % (± 6 points over 3 draws, high agreement)."
    )


@pytest.mark.parametrize(
    ("offset", "words"), [(0.0, "(less than ± 1 point over"), (0.007, "(± 1 point over")]
)
def test_a_small_spread_is_told_in_good_grammar(offset: float, words: str) -> None:
    rows = np.array([[0.1, 0.7 + offset, 0.1, 0.1 - offset], [0.1, 0.7 - offset, 0.1, 0.1 + offset]])
    assert words in describe_probabilities(rows).statement


def test_one_dissenting_draw_of_three_is_moderate_agreement() -> None:
    result = describe_probabilities(
        np.array([[0.1, 0.6, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1], [0.1, 0.4, 0.45, 0.05]])
    )
    assert (result.agreement, result.is_conclusive) == (Agreement.MODERATE, True)


def test_disagreeing_draws_cannot_say() -> None:
    result = describe_probabilities(
        np.array([[0.9, 0.1, 0.0, 0.0], [0.2, 0.8, 0.0, 0.0], [0.8, 0.2, 0.0, 0.0]])
    )
    assert (result.agreement, result.is_conclusive) == (Agreement.LOW, False)
    assert result.statement.startswith("Cannot say: the 3 draws disagree")


def test_a_low_top_probability_cannot_say_even_when_all_draws_agree() -> None:
    result = describe_probabilities(np.tile([0.1, 0.45, 0.25, 0.2], (5, 1)))
    assert (result.agreement, result.is_conclusive) == (Agreement.HIGH, False)
    assert result.statement == "Cannot say: no class reaches 50 % (highest: COVID-19 at 45 %)."


def test_a_single_draw_cannot_say() -> None:
    result = describe_probabilities(np.array([[0.0, 1.0, 0.0, 0.0]]))
    assert (result.draws, result.is_conclusive) == (1, False)
    assert result.statement.startswith("Cannot say: one draw")


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((0, 4)),
        np.full((2, 3), 1 / 3),
        np.array([[0.5, 0.5, 0.5, 0.5]]),
        np.array([[1.2, -0.2, 0.0, 0.0]]),
        np.array([[np.nan, 0.5, 0.3, 0.2]]),
    ],
)
def test_what_is_not_a_distribution_is_refused(rows: np.ndarray) -> None:
    with pytest.raises(ValueError):
        describe_probabilities(rows)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=7))
def test_whole_percents_sum_to_100_and_are_less_than_1_off(weights: list[float]) -> None:
    probabilities = {str(k): weight / sum(weights) for k, weight in enumerate(weights)}
    percents = whole_percents(probabilities)
    assert sum(percents.values()) == 100
    assert all(abs(percents[name] - 100 * p) < 1 + 1e-6 for name, p in probabilities.items())


def test_the_record_is_plain_json_with_notice_and_versions(make_chest) -> None:
    record = make_chest().reading()
    document = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert document["notice"] == RESEARCH_NOTICE
    assert document["model"]["id"] == "0123456789ab"
    assert document["input"]["verdict"] == "warning"
    assert document["classification"]["agreement"] == "high"
    assert document["segmentation"]["lesion_ml"] == pytest.approx(record.segmentation.lesion_ml)
    assert set(document) == {
        *("record_version", "ucadi_version", "notice", "model", "input"),
        *("classification", "segmentation", "files", "seconds"),
    }


def test_a_file_with_its_folder_is_refused(make_chest) -> None:
    with pytest.raises(ValueError, match="plain file names"):
        make_chest().reading(files={"lesion_mask": "ward-3/lesions.nii.gz"})
