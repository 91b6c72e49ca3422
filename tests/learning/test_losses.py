# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ucadi.learning.losses import CLASS_WEIGHTS, dice_cross_entropy, soft_dice_loss, weighted_cross_entropy
from ucadi.types import FindingClass

shapes = hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=5)


def dice_of(probabilities, mask) -> float:
    return float(soft_dice_loss(torch.as_tensor(probabilities), torch.as_tensor(mask)))


@given(st.data(), shapes)
def test_the_soft_dice_loss_is_equation_1_over_the_whole_batch(data, shape):
    y = data.draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 1.0])))
    p = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    expected = 1 - (2 * (y * p).astype(np.float64).sum() + 1) / (
        (y.astype(np.float64) ** 2).sum() + (p.astype(np.float64) ** 2).sum() + 1
    )
    assert dice_of(p, y) == pytest.approx(expected, abs=1e-5)


def test_a_perfect_outline_costs_nothing_and_a_disjoint_one_costs_all():
    mask = torch.zeros(2, 8, 16, 16)
    mask[:, 2:6, 4:12, 4:12] = 1
    elsewhere = torch.roll(mask, 8, dims=3)
    assert float((mask * elsewhere).sum()) == 0
    assert dice_of(mask, mask) == 0.0
    assert dice_of(elsewhere, mask) == pytest.approx(1.0, abs=1e-3)
    assert dice_of(torch.zeros_like(mask), mask) == pytest.approx(1.0, abs=2e-3)


def test_an_empty_batch_without_lesion_is_finite_and_costs_nothing():
    assert dice_of(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)) == 0.0


def test_the_soft_dice_gradient_raises_lesion_and_lowers_the_rest():
    mask = torch.zeros(1, 2, 4, 4)
    mask[0, :, :2] = 1
    probabilities = torch.full_like(mask, 0.5, requires_grad=True)
    soft_dice_loss(probabilities, mask).backward()
    assert (probabilities.grad[mask == 1] < 0).all()
    assert (probabilities.grad[mask == 0] > 0).all()


def test_the_weighted_cross_entropy_equals_a_hand_computation():
    logits = [[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    labels = [0, 2]
    terms, weights = [], []
    for row, label in zip(logits, labels, strict=True):
        log_p = row[label] - math.log(sum(math.exp(v) for v in row))
        terms.append(-CLASS_WEIGHTS[label] * log_p)
        weights.append(CLASS_WEIGHTS[label])
    expected = sum(terms) / sum(weights)  # (0.2·0.3407 + 0.4·0.7437) / 0.6
    found = float(weighted_cross_entropy(torch.tensor(logits), torch.tensor(labels)))
    assert found == pytest.approx(expected, rel=1e-6)
    assert found == pytest.approx(0.6093, abs=2e-4)


def test_other_viral_pneumonia_counts_double():
    assert dict(zip(FindingClass, CLASS_WEIGHTS, strict=True)) == {
        FindingClass.HEALTHY: 0.2,
        FindingClass.COVID_19: 0.2,
        FindingClass.OTHER_VIRAL: 0.4,
        FindingClass.BACTERIAL: 0.2,
    }


def test_dice_and_cross_entropy_add_up():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 2, 3, 4, 5))
    mask = (rng.random((2, 3, 4, 5)) < 0.3).astype(np.float32)
    lesion = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    entropy = -np.mean(np.where(mask > 0, np.log(lesion), np.log(1 - lesion)))
    dice = 1 - (2 * (mask * lesion).sum() + 1) / ((mask**2).sum() + (lesion**2).sum() + 1)
    found = dice_cross_entropy(torch.from_numpy(logits).float(), torch.from_numpy(mask))
    assert float(found) == pytest.approx(entropy + dice, rel=1e-5)
