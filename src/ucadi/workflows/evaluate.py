# SPDX-License-Identifier: Apache-2.0
"""Score a model on a cohort."""

from pathlib import Path

from ucadi.cohorts.cohort import Cohort
from ucadi.io.checkpoint import NetworkCard
from ucadi.models.parameters import load_parameters
from ucadi.models.registry import build_network
from ucadi.tensors import Tensors
from ucadi.types import Split, Task
from ucadi.workflows.fit import Measured, measure
from ucadi.workflows.prepare import prepare_samples

__all__ = ["measure_on_cohort"]


def measure_on_cohort(
    task: Task, card: NetworkCard, parameters: Tensors, cohort: Cohort, cache: Path, split: Split = Split.TEST
) -> Measured | None:
    """Return a model's measure (macro AUC or mean Dice) on one split of a cohort, with its interval.

    Args:
        task: Which of a model's networks.
        card: Its names of network and preset.
        parameters: Its parameters.
        cohort: Studies with labels, and masks for the segmentation.
        cache: Folder for preprocessed studies.
        split: Which studies.
    """
    samples = prepare_samples([cohort], split, task, card.preset, cache, lambda ready, total: None)
    network = build_network(card.network, task, seed=0)
    load_parameters(network, parameters)
    return measure(network, samples)
