# SPDX-License-Identifier: Apache-2.0
"""The seams of the federation: what trains, what hides, what carries. Implementations live elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ucadi.federation.messages import GlobalModel, Readiness, RoundPlan, Update, Validation
from ucadi.tensors import Tensors

__all__ = ["Accumulator", "Cipher", "Exchange", "OnReply", "Total", "Trainer", "Transport"]


@runtime_checkable  # for the type checks at test time
class Trainer(Protocol):
    """A site's own data and computer. Raises `UcadiError` for what it cannot or will not do."""

    def readiness(self, plan: RoundPlan) -> Readiness:
        """Tell that the site can do what the plan asks, or raise."""

    def train(self, plan: RoundPlan, model: GlobalModel) -> Update:
        """Train from the global model and return the difference in plaintext."""

    def validate(self, plan: RoundPlan, model: GlobalModel) -> Validation:
        """Measure the global model on the site's validation studies."""


@dataclass(frozen=True, eq=False)
class Total:
    """The opened sum over the sites of a round.

    Attributes:
        weighted_delta: Σ n_i·w_i·Δθ_i by name, float64.
        weight: Σ n_i·w_i.
        iterations: Σ n_i.
    """

    weighted_delta: Tensors
    weight: float
    iterations: float


@runtime_checkable  # for the type checks at test time
class Accumulator(Protocol):
    """A sum that grows as updates arrive; its memory does not depend on their number."""

    def check(self, update: Update) -> None:
        """Refuse an update that cannot be added, before anything changes."""

    def add(self, update: Update) -> None:
        """Add a checked update and let go of it."""

    def open(self) -> Total:
        """Return the sum in plaintext."""


@runtime_checkable  # for the type checks at test time
class Cipher(Protocol):
    """How updates are hidden: `protect` runs at a site, `accumulator` at the coordinator."""

    def protect(self, update: Update, plan: RoundPlan) -> Update:
        """Return the update as it may leave the site."""

    def accumulator(self, model: GlobalModel) -> Accumulator:
        """Return an empty sum for updates of a model."""


@dataclass(frozen=True)
class Exchange:
    """One message for several sites, and how long to wait for their replies."""

    body: bytearray
    sites: tuple[str, ...]
    deadline_s: float


OnReply = Callable[[str, bytes | bytearray | memoryview], None]
"""Called with the site's authenticated name and its reply's bytes, one reply at a time."""


@runtime_checkable  # for the type checks at test time
class Transport(Protocol):
    """Carries messages between the coordinator and its sites."""

    def exchange(self, exchange: Exchange, on_reply: OnReply) -> None:
        """Send, hand over each reply as it comes; return when all replied or the deadline passed."""
