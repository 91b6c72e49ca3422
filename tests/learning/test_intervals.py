# SPDX-License-Identifier: Apache-2.0
"""Intervals of scores: against formulas that are exact or known to be good, and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, rankdata

from ucadi.learning.intervals import DRAWS, macro_auc_interval, mean_interval
from ucadi.learning.metrics import macro_auc, roc_auc

shares = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40)


def two_classes(positives, negatives, distance, seed):
    """Normal scores of two classes, as probabilities of a classifier."""
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(distance, 1, positives), rng.normal(0, 1, negatives)])
    probability = 1 / (1 + np.exp(-scores))
    labels = np.repeat([1, 0], [positives, negatives])
    return np.stack([1 - probability, probability], axis=1), labels


def delong(scores, is_positive):
    """The standard error of one AUC (DeLong et al. 1988), from the placements of each study."""
    x, y = scores[is_positive], scores[~is_positive]
    ranks = rankdata(np.concatenate([x, y]))
    above = (ranks[: len(x)] - rankdata(x)) / len(y)
    below = 1 - (ranks[len(x) :] - rankdata(y)) / len(x)
    return np.sqrt(above.var(ddof=1) / len(x) + below.var(ddof=1) / len(y))


# -- the macro AUC -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positives", "negatives", "distance"), [(60, 90, 1.0), (200, 40, 0.5), (50, 50, 0.0)]
)
def test_the_interval_of_one_auc_is_as_delongs(positives, negatives, distance):
    probabilities, labels = two_classes(positives, negatives, distance, seed=3)
    low, high = macro_auc_interval(probabilities, labels)
    expected = 2 * 1.96 * delong(probabilities[:, 1], labels == 1)
    assert high - low == pytest.approx(expected, rel=0.12)
    middle = roc_auc(probabilities[:, 1], labels == 1)
    assert (low + high) / 2 == pytest.approx(middle, abs=0.1 * expected)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    truth = 0.7602  # of two unit normals one apart: Phi(1 / sqrt 2)
    held = 0
    for seed in range(200):
        low, high = macro_auc_interval(*two_classes(40, 40, 1.0, seed))
        held += low <= truth <= high
    assert 0.90 <= held / 200 <= 0.985


def test_it_lies_between_the_percentiles_of_the_scores_of_all_draws():
    rng = np.random.default_rng(8)
    labels = np.array([2, 0, 0, 1, 2, 1, 0, 2, 2])
    probabilities = rng.dirichlet(np.ones(4), len(labels)).round(1)
    draws = np.random.default_rng(0)
    drawn = [draws.choice(np.flatnonzero(labels == k), (DRAWS, (labels == k).sum())) for k in range(3)]
    scores = [macro_auc(probabilities[one], labels[one]) for one in np.concatenate(drawn, axis=1)]
    assert macro_auc_interval(probabilities, labels) == pytest.approx(np.percentile(scores, [2.5, 97.5]))


def test_more_studies_make_it_narrower():
    widths = [np.diff(macro_auc_interval(*two_classes(n, n, 1.0, seed=1)))[0] for n in (20, 80, 320)]
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2]


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 3), min_size=2, max_size=24))
def test_it_holds_the_score_lies_within_its_bounds_and_is_the_same_each_time(seed, labels):
    classes = np.array(labels)
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(4), len(labels)).round(1)  # ties are common
    value, interval = macro_auc(probabilities, classes), macro_auc_interval(probabilities, classes)
    if value is None:
        assert interval is None
    else:
        assert 0 <= interval[0] <= value <= interval[1] <= 1
        assert interval == macro_auc_interval(probabilities, classes)


def test_each_draw_keeps_every_class_however_rare():
    labels = np.array([0] * 50 + [1])
    probabilities = np.stack([np.r_[np.linspace(1, 0, 50), 0.5], np.r_[np.linspace(0, 1, 50), 0.5]], axis=1)
    low, high = macro_auc_interval(probabilities, labels)
    assert 0.3 < low < 0.5 < high < 0.7, "drawn without regard to class, a third of the draws had one class"


def test_only_what_ranks_studies_matters_not_how_far_apart_they_are():
    probabilities, labels = two_classes(15, 20, 1.0, seed=2)
    assert macro_auc_interval(probabilities, labels) == macro_auc_interval(probabilities**3, labels)


# -- a mean ------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_as_scipys_and_as_students():
    values = np.random.default_rng(0).beta(4, 2, 60)
    low, high = mean_interval(values.tolist())
    theirs = bootstrap((values,), np.mean, n_resamples=20000, method="percentile", random_state=1)
    ends = theirs.confidence_interval
    length = ends.high - ends.low
    assert (low, high) == pytest.approx((ends.low, ends.high), abs=0.1 * length)
    assert high - low == pytest.approx(2 * 2.0 * values.std(ddof=1) / np.sqrt(60), rel=0.12)


@given(shares)
def test_the_interval_of_a_mean_holds_it_and_lies_within_what_was_seen(values):
    low, high = mean_interval(values)
    mean = sum(values) / len(values)
    assert low <= mean <= high
    assert low >= min(values) - 1e-9
    assert high <= max(values) + 1e-9


@given(shares, st.floats(-1, 1, width=32), st.floats(0.125, 4, width=32))
def test_the_interval_of_a_mean_moves_and_stretches_with_the_values(values, shift, scale):
    low, high = mean_interval(values)
    moved = mean_interval([scale * value + shift for value in values])
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-9)


def test_without_studies_there_is_no_interval_and_of_one_study_it_is_that_study():
    assert mean_interval([]) is None
    assert mean_interval([0.25]) == (0.25, 0.25)


def test_another_seed_moves_the_ends_little():
    values = np.random.default_rng(5).random(50).tolist()
    ends = np.array([mean_interval(values, seed) for seed in range(20)])
    assert len(np.unique(ends[:, 0])) > 10
    assert ends.std(axis=0).max() < 0.06 * np.diff(ends.mean(axis=0))[0]
    assert DRAWS == 500
