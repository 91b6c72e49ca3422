# SPDX-License-Identifier: Apache-2.0
"""Fit and score either task's network: what local training and a site's round have in common."""

from dataclasses import dataclass

from torch import nn

from ucadi.learning.inference import lesion_dices, mean_dice, score_classifier, study_probabilities
from ucadi.learning.intervals import macro_auc_interval, mean_interval
from ucadi.learning.metrics import macro_auc
from ucadi.learning.samples import ClassifierSamples, SegmentationSamples
from ucadi.learning.supervised import FitSettings, OnStep, train_classifier, train_segmentation
from ucadi.types import Task

__all__ = ["METRIC", "Measured", "Samples", "fit", "measure", "score"]

Samples = ClassifierSamples | SegmentationSamples

METRIC = {Task.CLASSIFIER: "macro_auc", Task.SEGMENTATION: "dice"}
"""The measure by which models of each task are judged; higher is better."""


@dataclass(frozen=True)
class Measured:
    """A score and how sure it is, to four digits.

    Attributes:
        value: The task's measure, in [0, 1].
        studies: On how many studies it rests: those with a lesion in segmentation.
        low: Lower end of its 95 % interval over studies.
        high: Upper end.
    """

    value: float
    studies: int
    low: float
    high: float


def fit(network: nn.Module, samples: Samples, settings: FitSettings, on_step: OnStep) -> float:
    """Train a network in place on samples of its task; return the mean loss."""
    if isinstance(samples, ClassifierSamples):
        return train_classifier(network, samples, settings, on_step)
    return train_segmentation(network, samples, settings, on_step)


def score(network: nn.Module, samples: Samples) -> float | None:
    """Return the task's measure on samples; None when it is not defined on them."""
    if isinstance(samples, ClassifierSamples):
        return score_classifier(network, samples)
    return mean_dice(network, samples)


def measure(network: nn.Module, samples: Samples) -> Measured | None:
    """Return the task's measure with its interval, of one pass over the samples; None as `score`."""
    if isinstance(samples, ClassifierSamples):
        probabilities = study_probabilities(network, samples)
        value, studies = macro_auc(probabilities, samples.labels), len(samples)
        interval = macro_auc_interval(probabilities, samples.labels)
    else:
        dices = lesion_dices(network, samples)
        value, studies = (sum(dices) / len(dices) if dices else None), len(dices)
        interval = mean_interval(dices)
    if value is None or interval is None:
        return None
    low, high = interval
    return Measured(round(value, 4), studies, round(low, 4), round(high, 4))
