# SPDX-License-Identifier: Apache-2.0
"""Training losses."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["CLASS_WEIGHTS", "dice_cross_entropy", "soft_dice_loss", "weighted_cross_entropy"]

CLASS_WEIGHTS = (0.2, 0.2, 0.4, 0.2)
"""Cross-entropy weights in the order of `FindingClass` (released code of Xu et al. 2020)."""


def weighted_cross_entropy(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Tensor:
    """Return the weighted mean of −log p(label), weights by class as in the study's code."""
    return cross_entropy(logits, labels, weight=logits.new_tensor(CLASS_WEIGHTS))


def soft_dice_loss(
    probabilities: Float[Tensor, "batch z y x"], lesion_mask: Float[Tensor, "batch z y x"]
) -> Tensor:
    """Return 1 − 2·Σyŷ / (Σy² + Σŷ²), sums over the whole batch.

    Summing over the batch keeps patches without lesion from dominating.

    Source: Yang et al. 2021, Eq. 1 (y is ``lesion_mask``, ŷ ``probabilities``).
    """
    overlap = (lesion_mask * probabilities).sum()
    size = lesion_mask.square().sum() + probabilities.square().sum()
    return 1.0 - (2.0 * overlap + 1.0) / (size + 1.0)  # +1 keeps an empty batch finite


def dice_cross_entropy(
    logits: Float[Tensor, "batch 2 z y x"], lesion_mask: Float[Tensor, "batch z y x"]
) -> Tensor:
    """Return the soft Dice loss plus the mean cross entropy of background and lesion.

    The Dice loss alone hardly moves while predictions overlap nothing; the cross entropy gives each voxel a
    gradient from the first step on.

    Source: the sum is Isensee et al. 2021 (nnU-Net), loss function; the Dice term Yang et al. 2021, Eq. 1.
    """
    dice = soft_dice_loss(logits.softmax(1)[:, 1], lesion_mask)
    return dice + cross_entropy(logits, lesion_mask.long())
