# SPDX-License-Identifier: Apache-2.0
"""The seams of the federation: what trains, hides, carries, decides and remembers. All else is elsewhere."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from ucadi.federation.messages import GlobalModel, Phase, Readiness, Update, Validation
from ucadi.federation.plans import RoundPlan, RunPlan
from ucadi.federation.records import RoundRecord
from ucadi.tensors import Tensors

__all__ = [
    "Accumulator",
    "Answer",
    "Cipher",
    "Desk",
    "Exchange",
    "Gate",
    "Outbox",
    "ReplyKey",
    "Total",
    "Trainer",
    "Transport",
    "Wish",
]

# -- at a site --------------------------------------------------------------------------------------------


@runtime_checkable  # for the type checks at test time
class Trainer(Protocol):
    """A site's own data and computer. Raises `UcadiError` for what it cannot or will not do."""

    def readiness(self, plan: RoundPlan) -> Readiness:
        """Tell that the site can do what the plan asks, or raise."""

    def train(self, plan: RoundPlan, model: GlobalModel) -> Update:
        """Train from the global model and return the difference in plaintext."""

    def validate(self, plan: RoundPlan, model: GlobalModel) -> Validation:
        """Measure the global model on the site's validation studies."""


@runtime_checkable  # for the type checks at test time
class Gate(Protocol):
    """The site's own decision about a plan."""

    def check(self, plan: RunPlan) -> None:
        """Return if the site takes part in the plan now; raise otherwise.

        Raises:
            FederationError: ``plan-waiting`` until somebody decided, ``plan-rejected``, ``plan-forbidden``
                by the site's policy, ``site-paused``, or another code that may leave the site.
        """


@dataclass(frozen=True)
class ReplyKey:
    """What a reply answers. A site that is asked the same again sends the same bytes again.

    The plan's hash is part of it: what was made under one plan never leaves under another.
    """

    run_id: str
    round: int
    phase: Phase
    model_hash: str
    plan_hash: str


@runtime_checkable  # for the type checks at test time
class Outbox(Protocol):
    """What a site is about to send and what it has sent. Written before anything leaves."""

    def recall(self, key: ReplyKey) -> bytes | None:
        """Return the reply that was kept for a request, or None."""

    def keep(self, key: ReplyKey, body: bytes | bytearray) -> None:
        """Keep a reply, so that it survives this process and is never made twice."""

    def note(self, kind: str, plan: RoundPlan | None, body: bytes | bytearray) -> None:
        """Write down that a message leaves the site: called for each, repeated ones and refusals too.

        Args:
            kind: ``readiness``, ``update``, ``validation`` or ``refusal``.
            plan: The round; None when the request could not be read.
            body: The message's bytes.
        """


# -- between site and coordinator -------------------------------------------------------------------------


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

    def add(self, update: Update, discount: float = 1.0) -> None:
        """Add a checked update and let go of it.

        Args:
            update: What a site sent.
            discount: Factor below 1 for an update that started from an older model.
        """

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


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of one message to one site.

    Attributes:
        site: The site's authenticated name.
        body: Its reply's bytes; None when there will be none.
        reason: Why there is none: ``site-lost`` (not connected) or ``site-late`` (its deadline passed).
    """

    site: str
    body: bytes | bytearray | memoryview | None
    reason: str = ""


@runtime_checkable  # for the type checks at test time
class Transport(Protocol):
    """Carries messages between the coordinator and its sites."""

    def send(self, exchange: Exchange) -> None:
        """Start to send a message; returns at once. Several may be under way, to different sites."""

    def receive(self) -> Answer | None:
        """Wait for what comes of any message under way; None when none is.

        Every addressed site gives exactly one answer to each message.

        Raises:
            EngineError: ``interrupted`` if the engine ends meanwhile.
        """

    def abandon(self) -> None:
        """Forget all messages under way; nothing more is told of them."""


# -- at the coordinator -----------------------------------------------------------------------------------


class Wish(StrEnum):
    """What is to become of a run at the next boundary.

    ``hand_over`` ends this engine's job only: the next job goes on with other members.
    """

    GO_ON = "go_on"
    HAND_OVER = "hand_over"
    STOP = "stop"


@runtime_checkable  # for the type checks at test time
class Desk(Protocol):
    """The world around a run at the coordinator: membership, wishes, storage and time."""

    def members(self) -> Collection[str]:
        """Return the sites that may be called now."""

    def wish(self) -> Wish:
        """Tell what is to happen; asked between rounds and while a round waits for its quorum."""

    def keep(self, record: RoundRecord, model: GlobalModel) -> None:
        """Store a complete round, so that the run can go on from it. Returns when it is safe on disk."""

    def wait(self, shortfall: str) -> bool:
        """Wait a moment because too few sites take part; tell whether the run's patience lasts.

        Args:
            shortfall: Who is missing and why, for the person who watches.
        """
