# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ucadi.learning.metrics import dice, macro_auc, roc_auc

scores_and_classes = st.integers(2, 25).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, n, elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])),  # ties are common
        hnp.arrays(bool, n),
    )
)


def counted_auc(scores, is_positive) -> float:
    """The share of positive-negative pairs in the right order, pair by pair."""
    pairs = [(p, q) for p in scores[is_positive] for q in scores[~is_positive]]
    return sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs) / len(pairs)


@given(scores_and_classes)
def test_the_auc_is_the_share_of_pairs_in_the_right_order(case):
    scores, is_positive = case
    if is_positive.all() or not is_positive.any():
        assert roc_auc(scores, is_positive) is None
    else:
        assert roc_auc(scores, is_positive) == pytest.approx(counted_auc(scores, is_positive))


@given(scores_and_classes)
def test_reversed_scores_give_the_complement(case):
    scores, is_positive = case
    value = roc_auc(scores, is_positive)
    if value is not None:
        assert roc_auc(-scores, is_positive) == pytest.approx(1 - value)


@given(hnp.arrays(bool, (3, 4)), hnp.arrays(bool, (3, 4)))
def test_the_dice_is_twice_the_overlap_over_both_sizes(left, right):
    a = {tuple(i) for i in np.argwhere(left)}
    b = {tuple(i) for i in np.argwhere(right)}
    expected = 1.0 if not a and not b else 2 * len(a & b) / (len(a) + len(b))
    assert dice(left, right) == pytest.approx(expected)
    assert dice(left, right) == dice(right, left)


def test_the_dice_of_equal_disjoint_and_empty_masks():
    mask = np.array([True, True, False, False])
    assert dice(mask, mask) == 1.0
    assert dice(mask, ~mask) == 0.0
    assert dice(mask, np.zeros(4, bool)) == 0.0
    assert dice(np.zeros(4, bool), np.zeros(4, bool)) == 1.0


def test_the_macro_auc_is_the_mean_over_the_classes_that_occur():
    labels = np.array([0, 0, 1, 1, 1])  # classes 2 and 3 do not occur
    probabilities = np.array(
        [[0.9, 0.1, 0, 0], [0.2, 0.5, 0.3, 0], [0.3, 0.6, 0.1, 0], [0.1, 0.8, 0, 0.1], [0.5, 0.4, 0, 0.1]],
        np.float32,
    )
    by_class = [counted_auc(probabilities[:, k], labels == k) for k in (0, 1)]
    assert macro_auc(probabilities, labels) == pytest.approx(sum(by_class) / 2)


@pytest.mark.parametrize("labels", [[2, 2, 2], [0]])
def test_the_macro_auc_of_one_class_alone_is_not_defined(labels):
    probabilities = np.full((len(labels), 4), 0.25, np.float32)
    assert macro_auc(probabilities, np.array(labels)) is None
