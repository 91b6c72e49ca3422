# SPDX-License-Identifier: Apache-2.0
"""Scores with their intervals, of real networks, and the card that quotes them."""

import numpy as np
import pytest

from ucadi.imaging.presets import preset_named
from ucadi.io.checkpoint import ModelFolder, NetworkCard
from ucadi.learning.samples import ClassifierSamples, SegmentationSamples
from ucadi.models.registry import build_network
from ucadi.types import Task
from ucadi.workflows.fit import Measured, measure, score
from ucadi.workflows.model_card import write_model_card

COMPACT = preset_named("compact")


def noise(count, shape):
    rng = np.random.default_rng(1)
    return tuple(rng.integers(-1000, 200, shape).astype(np.int16) for _ in range(count))


def classifier_samples(labels):
    return ClassifierSamples(noise(len(labels), (12, 24, 24)), np.array(labels), COMPACT)


def segmentation_samples(has_lesion):
    masks = tuple(np.zeros((16, 48, 48), bool) for _ in has_lesion)
    for number, mask in enumerate(masks):
        mask[4:8, 10 : 20 + 5 * number, 10:30] = has_lesion[number]
    return SegmentationSamples(noise(len(masks), (16, 48, 48)), masks, COMPACT)


@pytest.mark.parametrize(
    ("task", "network", "samples", "studies"),
    [
        (Task.CLASSIFIER, "densenet3d", classifier_samples([0, 1, 0, 1, 2, 1]), 6),
        (Task.SEGMENTATION, "unet3d", segmentation_samples([True, False, True, True]), 3),
    ],
)
def test_a_measured_score_is_the_score_and_lies_in_its_interval(task, network, samples, studies):
    built = build_network(network, task, 0)
    measured = measure(built, samples)
    assert measured.value == round(score(built, samples), 4)
    assert measured.studies == studies
    assert 0 <= measured.low < measured.value < measured.high <= 1


@pytest.mark.parametrize(
    ("task", "network", "samples"),
    [
        (Task.CLASSIFIER, "densenet3d", classifier_samples([1, 1])),
        (Task.SEGMENTATION, "unet3d", segmentation_samples([False])),
    ],
)
def test_where_the_score_is_not_defined_nothing_is_measured(task, network, samples):
    assert measure(build_network(network, task, 0), samples) is None


def test_a_model_card_quotes_intervals_and_what_is_not_in_them(tmp_path):
    card = NetworkCard("unet3d", "compact", "0" * 64, 3, ("A", "B"), "plaintext", {})
    model = ModelFolder("0" * 12, "a model", "phantoms", {Task.SEGMENTATION: card}, {}, {})
    scores = {"global": Measured(0.61, 18, 0.5512, 0.67), "A": Measured(0.4, 18, 0.31, 0.5)}
    write_model_card(tmp_path, model, {Task.SEGMENTATION: scores})
    text = (tmp_path / "model_card.md").read_text()
    assert "| segmentation | dice | **federated** | 0.610 | 0.551 to 0.670 | 18 |" in text
    assert "| segmentation | dice | site A alone | 0.400 | 0.310 to 0.500 | 18 |" in text
    assert "another run or seed would give is not in them" in text
