# SPDX-License-Identifier: Apache-2.0
"""How sure a score is: 95 % intervals of the macro AUC and of a mean, by bootstrap over studies.

Studies are drawn anew with replacement, within each class as often as the class has studies (for a mean
there is one class), and the measure is taken of each draw; the interval lies between the percentiles 2.5 and
97.5 (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13). The draws depend on the seed
and the classes only, so the same studies are drawn for every model and intervals can be compared.

Two limits. Studies of one patient are drawn as if they were independent, so with several per patient the
interval is too narrow. A draw holds nothing that was not seen: of a perfect score, or of a handful of
studies, the interval is too narrow as well.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.stats import rankdata

from ucadi.learning.metrics import macro_auc

__all__ = ["DRAWS", "Interval", "macro_auc_interval", "mean_interval"]

Interval = tuple[float, float]
"""Lower and upper end."""

DRAWS = 500
"""How often the studies are drawn: the ends then vary by a few percent of the interval's length."""

_PERCENTILES = (2.5, 97.5)


def macro_auc_interval(
    probabilities: Float[np.ndarray, "n classes"],
    labels: Integer[np.ndarray, " n"],
    seed: int = 0,
) -> Interval | None:
    """Return the 95 % interval of `macro_auc`; None when that is not defined.

    Args:
        probabilities: Of each study.
        labels: Class numbers; each draw has as many studies of each class.
        seed: Of the draws.
    """
    value = macro_auc(probabilities, labels)
    if value is None:
        return None
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = np.concatenate([rng.choice(members, (DRAWS, len(members))) for members in classes], axis=1)
    places = np.sort(labels)  # the class at each place is the same in every draw
    occurring = [label for label in np.unique(labels) if label < probabilities.shape[1]]
    aucs = [_aucs(probabilities[drawn, label], places == label) for label in occurring]
    return _around(value, np.mean(aucs, axis=0))


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Return the 95 % interval of a mean; None without values.

    Args:
        values: One per study.
        seed: Of the draws.
    """
    if not values:
        return None
    seen = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).choice(seen, (DRAWS, len(seen)))
    return _around(sum(values) / len(values), drawn.mean(axis=1))


def _aucs(
    scores: Float[np.ndarray, "draws n"], is_positive: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " draws"]:
    """Return `roc_auc` of every draw at once."""
    positives = int(is_positive.sum())
    rank_sums = rankdata(scores, axis=1)[:, is_positive].sum(axis=1)
    aucs: np.ndarray = (rank_sums - positives * (positives + 1) / 2) / (positives * int((~is_positive).sum()))
    return aucs


def _around(value: float, draws: Float[np.ndarray, " draws"]) -> Interval:
    """Return the interval of a score's draws; it holds the score itself whatever was drawn."""
    low, high = np.percentile(draws, _PERCENTILES)
    return min(value, float(low)), max(value, float(high))
