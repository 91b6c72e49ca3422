# SPDX-License-Identifier: Apache-2.0
"""Supervised training: one function per task, used alone, pooled and within a federated round alike.

Source: Xu et al. 2020 (classifier) and Yang et al. 2021, Alg. 1 ClientUpdate (segmentation).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor, nn

from ucadi.errors import ModelError
from ucadi.learning.losses import dice_cross_entropy, weighted_cross_entropy
from ucadi.learning.precision import as_input, autocast, to_fast_layout
from ucadi.learning.samples import ClassifierSamples, SegmentationSamples

__all__ = ["FitSettings", "OnStep", "cosine_rate", "train_classifier", "train_segmentation"]

OnStep = Callable[[int, float], None]
"""Called after each optimizer step with its number, from 1, and its loss."""


@dataclass(frozen=True)
class FitSettings:
    """Numbers of one training.

    Attributes:
        iterations: Optimizer steps.
        batch_size: Samples per step.
        learning_rate: Step size of Adam.
        seed: Seed of the sample order and the augmentation.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    seed: int


def cosine_rate(peak: float, number: int, total: int) -> float:
    """Return the learning rate of one round, falling from the peak along half a cosine.

    Args:
        peak: Rate of the first round.
        number: Round, from 1.
        total: Number of rounds.

    Source: the schedule of Xu et al. 2020's released code, per round here instead of per step.
    """
    return peak * 0.5 * (1.0 + math.cos(math.pi * (number - 1) / total))


def train_classifier(
    network: nn.Module, samples: ClassifierSamples, settings: FitSettings, on_step: OnStep
) -> float:
    """Train in place with weighted cross entropy; return the mean loss.

    Raises:
        ModelError: If the loss is no longer finite.
    """

    def loss_of(rng: np.random.Generator, order: Integer[np.ndarray, " batch"]) -> Tensor:
        stacks, labels = samples.draw(rng, order)
        with autocast(stacks.shape[1]):
            logits = network(as_input(torch.from_numpy(stacks), layout))
        return weighted_cross_entropy(logits.float(), torch.from_numpy(labels.astype(np.int64)))

    layout = to_fast_layout(network)
    return _descend(network, len(samples), settings, loss_of, on_step)


def train_segmentation(
    network: nn.Module, samples: SegmentationSamples, settings: FitSettings, on_step: OnStep
) -> float:
    """Train in place with Dice loss and cross entropy; return the mean loss.

    Raises:
        ModelError: If the loss is no longer finite.
    """

    def loss_of(rng: np.random.Generator, order: Integer[np.ndarray, " batch"]) -> Tensor:
        patches, masks = samples.draw(rng, order)
        with autocast(patches.shape[1]):
            logits = network(as_input(torch.from_numpy(patches), layout))
        return dice_cross_entropy(logits.float(), torch.from_numpy(masks))

    layout = to_fast_layout(network)
    return _descend(network, len(samples), settings, loss_of, on_step)


def _descend(
    network: nn.Module,
    studies: int,
    settings: FitSettings,
    loss_of: Callable[[np.random.Generator, Integer[np.ndarray, " batch"]], Tensor],
    on_step: OnStep,
) -> float:
    """Take Adam steps over shuffled studies; return the mean loss."""
    rng = np.random.default_rng(settings.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    network.train()
    total = 0.0
    batches = _batches(studies, settings.batch_size, rng)
    for step in range(1, settings.iterations + 1):
        loss = loss_of(rng, next(batches))
        value = float(loss.detach())
        if not np.isfinite(value):
            raise ModelError(
                "site-failed", f"The loss became {value} at step {step}.", cure="Lower learning_rate."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += value
        on_step(step, value)
    return total / settings.iterations


def _batches(
    studies: int, batch_size: int, rng: np.random.Generator
) -> Iterator[Integer[np.ndarray, " batch"]]:
    """Yield batches of study numbers, each study once per pass, passes joined without a gap."""
    queue = np.empty(0, np.intp)
    while True:
        while len(queue) < batch_size:
            queue = np.concatenate([queue, rng.permutation(studies)])
        yield queue[:batch_size]
        queue = queue[batch_size:]
