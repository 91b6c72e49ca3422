# SPDX-License-Identifier: Apache-2.0
"""Quality measures: Dice and the area under the ROC curve."""

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.stats import rankdata

__all__ = ["dice", "macro_auc", "roc_auc"]


def dice(predicted: Bool[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]) -> float:
    """Return 2·TP / (2·TP + FP + FN); 1 when both are empty."""
    size = int(predicted.sum()) + int(truth.sum())
    return 2.0 * int((predicted & truth).sum()) / size if size else 1.0


def roc_auc(scores: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]) -> float | None:
    """Return the probability that a positive scores higher than a negative; ties count half.

    None when there is no positive or no negative.
    """
    positives = int(is_positive.sum())
    negatives = len(scores) - positives
    if not positives or not negatives:
        return None
    rank_sum = float(rankdata(scores)[is_positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def macro_auc(
    probabilities: Float[np.ndarray, "n classes"], labels: Integer[np.ndarray, " n"]
) -> float | None:
    """Return the mean one-against-rest AUC over the classes that occur; None when none can be computed."""
    classes = range(probabilities.shape[1])
    values = [roc_auc(probabilities[:, k], labels == k) for k in classes]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
