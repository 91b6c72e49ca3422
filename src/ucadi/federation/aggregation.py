# SPDX-License-Identifier: Apache-2.0
"""Weighted federated averaging of updates (Yang et al. 2021, Alg. 1), as a streaming sum.

Sums are kept in float64: with float32 addends and whole-number weights of up to ten bits, three addends of
similar size add without any rounding, so the result does not depend on the order of arrival and every
engine gives the same bits. ``benchmarks/aggregate.py`` measures what this costs against float32.
"""

import numpy as np
from jaxtyping import Float

from ucadi.errors import UpdateRejectedError
from ucadi.federation.messages import GlobalModel, Update
from ucadi.federation.plans import RoundPlan, Weighting
from ucadi.federation.ports import Total
from ucadi.tensors import Tensors

__all__ = ["PlaintextAccumulator", "PlaintextCipher", "apply_total", "difference"]

_BLOCK = 65_536
"""Elements per step: 0.5 MiB of float64, which stays in a core's cache."""

_LARGEST_DELTA = 1e30
"""Beyond any training, and far enough from float32's end that no mean of such differences reaches it."""

_LARGEST_FACTOR = 1e9
"""Bound of n_i and of w_i, so that their product and sums stay finite."""


class PlaintextCipher:
    """Hides nothing: for one's own machines, tests, and as the twin of every real cipher."""

    def protect(self, update: Update, plan: RoundPlan) -> Update:
        """Return the update unchanged."""
        return update

    def accumulator(self, model: GlobalModel) -> "PlaintextAccumulator":
        """Return an empty sum."""
        return PlaintextAccumulator(model)


class PlaintextAccumulator:
    """Σ n_i·w_i·Δθ_i with Σ n_i·w_i and Σ n_i. Memory: two times the model, whatever the number of sites."""

    def __init__(self, model: GlobalModel) -> None:
        self._shapes = {name: array.shape for name, array in model.parameters.items()}
        self._sums = {name: np.zeros(shape, np.float64) for name, shape in self._shapes.items()}
        self._weight = 0.0
        self._iterations = 0.0

    def check(self, update: Update) -> None:
        """Refuse an update whose names, shapes, values or factors are wrong.

        Raises:
            UpdateRejectedError: With the first tensor that is wrong and what was expected.
        """
        missing = [name for name in self._shapes if name not in update.tensors]
        unknown = [name for name in update.tensors if name not in self._shapes]
        if unknown:
            raise UpdateRejectedError(
                "update-unknown-tensor", f"{len(unknown)} unknown tensors, the first is {unknown[0][:80]!r}."
            )
        if missing:
            raise UpdateRejectedError(
                "update-missing-tensor", f"{len(missing)} tensors are missing, the first is {missing[0]!r}."
            )
        for name, array in update.tensors.items():
            if array.shape != self._shapes[name] or array.dtype != np.float32:
                raise UpdateRejectedError(
                    "update-wrong-shape",
                    f"{name} is {array.dtype} {array.shape}, expected float32 {self._shapes[name]}.",
                )
            if not all(np.abs(block).max(initial=0.0) <= _LARGEST_DELTA for block in _blocks(array)):
                raise UpdateRejectedError("update-not-finite", f"{name} holds NaN, infinite or huge values.")
        _factor(update)

    def add(self, update: Update, discount: float = 1.0) -> None:
        """Add a checked update.

        A discount shrinks the update but not its weight in the mean, so the step shrinks with it, as in
        buffered aggregation.
        """
        weight = _factor(update)
        factor = weight * discount
        for name, array in update.tensors.items():
            for total, block in zip(_blocks(self._sums[name]), _blocks(array), strict=True):
                total += np.multiply(block, factor, dtype=np.float64)
        self._weight += weight
        self._iterations += float(update.iterations or 0)

    def open(self) -> Total:
        """Return the sums."""
        return Total(self._sums, self._weight, self._iterations)


def apply_total(model: GlobalModel, total: Total, weighting: Weighting) -> GlobalModel:
    """Return θ_t = θ_{t−1} + Σ ŵ_i·Δθ_i (Alg. 1 lines 7-9).

    ``normalized``: ŵ_i = n_i·w_i / Σ n·w. ``paper_exact``: ŵ_i = n_i·w_i / Σ n.
    """
    divisor = total.weight if weighting is Weighting.NORMALIZED else total.iterations
    parameters: dict[str, np.ndarray] = {}
    for name, old in model.parameters.items():
        parameters[name] = np.asarray(old + total.weighted_delta[name] / divisor, np.float32)
    return GlobalModel(model.round + 1, parameters)


def difference(local: Tensors, model: GlobalModel) -> dict[str, np.ndarray]:
    """Return Δθ = θ_local − θ_global by name, float32, in manifest order."""
    return {name: local[name] - old for name, old in model.parameters.items()}


def _factor(update: Update) -> float:
    """Return n_i·w_i after checking both."""
    n, w = update.iterations, update.aggregation_weight
    if (
        type(n) is not int  # a bool is no number here
        or (type(w) is not int and type(w) is not float)
        or not 1 <= n <= _LARGEST_FACTOR
        or not 0 < w <= _LARGEST_FACTOR
    ):
        raise UpdateRejectedError(
            "update-bad-weight", f"iterations {n!r} and aggregation_weight {w!r} must be positive numbers."
        )
    return n * float(w)


def _blocks(array: Float[np.ndarray, "..."]) -> list[np.ndarray]:
    """Return cache-sized flat views of a C-contiguous array."""
    flat = array.reshape(-1)
    return [flat[low : low + _BLOCK] for low in range(0, max(flat.size, 1), _BLOCK)]
