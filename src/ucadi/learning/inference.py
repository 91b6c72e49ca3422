# SPDX-License-Identifier: Apache-2.0
"""Applying trained networks: class probabilities and lesion probability volumes."""

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from ucadi.imaging.patches import blend_windows
from ucadi.imaging.presets import InputPreset
from ucadi.learning.metrics import dice, macro_auc
from ucadi.learning.precision import as_input, autocast, to_fast_layout
from ucadi.learning.samples import ClassifierSamples, SegmentationSamples

__all__ = [
    "class_probabilities",
    "lesion_dices",
    "lesion_probabilities",
    "mean_dice",
    "score_classifier",
    "study_probabilities",
]


def class_probabilities(
    network: nn.Module, samples: ClassifierSamples, study: int
) -> Float[np.ndarray, "draws classes"]:
    """Return the probabilities of each of the preset's draws of one study."""
    draws = samples.preset.draws
    stacks = np.stack([samples.stack(study, (draw + 0.5) / draws) for draw in range(draws)])
    layout = to_fast_layout(network)
    network.eval()
    with torch.inference_mode(), autocast(stacks.shape[1]):
        logits = network(as_input(torch.from_numpy(stacks), layout))
    probabilities: np.ndarray = logits.float().softmax(1).numpy()
    return probabilities


def study_probabilities(network: nn.Module, samples: ClassifierSamples) -> Float[np.ndarray, "n classes"]:
    """Return each study's class probabilities, averaged over draws (Xu et al. 2020, inference)."""
    return np.stack([class_probabilities(network, samples, study).mean(0) for study in range(len(samples))])


def score_classifier(network: nn.Module, samples: ClassifierSamples) -> float | None:
    """Return the macro AUC over studies."""
    return macro_auc(study_probabilities(network, samples), samples.labels)


def lesion_probabilities(
    network: nn.Module, window: Float[np.ndarray, "z y x"], preset: InputPreset
) -> Float[np.ndarray, "z y x"]:
    """Return the lesion probability of each voxel, blended over sliding windows.

    Args:
        network: Two-channel segmentation network.
        window: Network input in [0, 1] at the preset's spacing.
        preset: Window size and overlap.
    """
    layout = to_fast_layout(network)
    network.eval()

    def predict(patch: Float[np.ndarray, "wz wy wx"]) -> Float[np.ndarray, "wz wy wx"]:
        with torch.inference_mode(), autocast(patch.shape[0]):
            logits = network(as_input(torch.from_numpy(patch[None].copy()), layout))
        probabilities: np.ndarray = logits.float().softmax(1)[0, 1].numpy()
        return probabilities

    return blend_windows(window, preset.window, preset.overlap, predict)


def lesion_dices(network: nn.Module, samples: SegmentationSamples) -> list[float]:
    """Return the Dice of each study that has a lesion, on the network's grid."""
    values = []
    for study in range(len(samples)):
        truth = samples.lesion_masks[study]
        if truth.any():
            probabilities = lesion_probabilities(network, samples.window(study), samples.preset)
            values.append(dice(probabilities > 0.5, truth))
    return values


def mean_dice(network: nn.Module, samples: SegmentationSamples) -> float | None:
    """Return the mean Dice over the studies that have a lesion; None without any."""
    values = lesion_dices(network, samples)
    return sum(values) / len(values) if values else None
