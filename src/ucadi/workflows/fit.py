# SPDX-License-Identifier: Apache-2.0
"""Fit and score either task's network: what local training and a site's round have in common."""

from torch import nn

from ucadi.learning.inference import mean_dice, score_classifier
from ucadi.learning.samples import ClassifierSamples, SegmentationSamples
from ucadi.learning.supervised import FitSettings, OnStep, train_classifier, train_segmentation
from ucadi.types import Task

__all__ = ["METRIC", "Samples", "fit", "score"]

Samples = ClassifierSamples | SegmentationSamples

METRIC = {Task.CLASSIFIER: "macro_auc", Task.SEGMENTATION: "dice"}
"""The measure by which models of each task are judged; higher is better."""


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
