# SPDX-License-Identifier: Apache-2.0
"""The tables of the coordinator's runs, and the records that they hold."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from ucadi.errors import FederationError, StoreError
from ucadi.federation.plans import RunPlan, read_plan
from ucadi.federation.ports import Wish
from ucadi.federation.records import Progress, RoundRecord
from ucadi.store.database import METADATA

__all__ = [
    "EVENTS",
    "LIVE",
    "METRICS",
    "ROUNDS",
    "RUNS",
    "UPDATES",
    "KeptRound",
    "Metric",
    "Run",
    "RunEvent",
    "RunState",
    "SiteUpdate",
    "Standing",
    "change_run",
    "check_token",
    "find_run",
    "plain_text",
    "read_run",
]

RUNS = sa.Table(
    "runs",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False, unique=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("plan_hash", sa.Text, nullable=False),
    sa.Column("initial_hash", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("wish", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("changed", sa.Double, nullable=False),
    sa.Column("driver", sa.Text),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("beat", sa.Integer, nullable=False),
)

ROUNDS = sa.Table(
    "rounds",
    METADATA,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.seq"), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("model_hash", sa.Text, nullable=False),
)


def _round_key() -> sa.ForeignKeyConstraint:
    """Return the tie of a row to its round."""
    return sa.ForeignKeyConstraint(["run", "round"], ["rounds.run", "rounds.round"])


UPDATES = sa.Table(
    "updates",
    METADATA,
    sa.Column("run", sa.Integer, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("site", sa.Text, primary_key=True),
    sa.Column("is_accepted", sa.Boolean, nullable=False),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("reason", sa.Text, nullable=False),
    _round_key(),
)

METRICS = sa.Table(
    "metrics",
    METADATA,
    sa.Column("run", sa.Integer, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("site", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Double, nullable=False),
    _round_key(),
)

EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.seq"), nullable=False),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("site", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Index("events_by_run", "run", "seq"),
    sqlite_autoincrement=True,  # a number that was seen is never given again
)

_LONGEST_TEXT = 2000


class RunState(StrEnum):
    """What is being done about a run."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"


LIVE = frozenset({RunState.QUEUED, RunState.RUNNING, RunState.WAITING})
"""States in which a run goes on. Stopped and failed ones go on after they are queued again."""


@dataclass(frozen=True)
class Run:
    """A run as it stands.

    Attributes:
        run_id: Its name.
        plan: What was submitted.
        initial_hash: Hash of the model of round 0.
        state: What is being done about it.
        reason: Why it is in that state, for people.
        wish: What is to become of it at the next boundary.
        created: When it was submitted, in seconds since 1970.
        changed: When its state, reason or wish changed last, in seconds since 1970.
        driver: Who drives it; None for nobody.
        token: Of the newest claim on it; 0 before the first.
    """

    run_id: str
    plan: RunPlan
    initial_hash: str
    state: RunState
    reason: str
    wish: Wish
    created: float
    changed: float
    driver: str | None
    token: int


@dataclass(frozen=True)
class KeptRound:
    """A complete round.

    Attributes:
        record: What happened in it.
        model_hash: Hash of the model that it made; of the last model when the round only validated it.
        time: When it was kept, in seconds since 1970.
    """

    record: RoundRecord
    model_hash: str
    time: float


@dataclass(frozen=True)
class SiteUpdate:
    """What a round has from one site.

    Attributes:
        round: From 1.
        site: Its name.
        is_accepted: Whether its update is in the sum.
        bytes: Size of the update; None when it was not noted.
        reason: Why there is none, as a code; empty when accepted.
    """

    round: int
    site: str
    is_accepted: bool
    bytes: int | None
    reason: str


@dataclass(frozen=True)
class Metric:
    """One number that a site reported in a round, about the model that the round started from."""

    round: int
    site: str
    key: str
    value: float


@dataclass(frozen=True)
class RunEvent:
    """One line of a run's progress; ``seq`` rises over all runs, ``time`` is in seconds since 1970."""

    seq: int
    time: float
    progress: Progress


@dataclass(frozen=True)
class Standing:
    """All that a run needs to go on where it was.

    Attributes:
        run: The run.
        records: Of all complete rounds, in order.
        model_hashes: By round; 0 is the initial model.
        last_round: The round that made the newest model; 0 when none is complete.
        best_round: The round whose model is best by validation so far; the last one when no site can measure.
        best_validation: Its validation; None when no site can measure.
        is_validated: Whether the last model was measured too, so that nothing is left to do.
    """

    run: Run
    records: tuple[RoundRecord, ...]
    model_hashes: Mapping[int, str]
    last_round: int
    best_round: int
    best_validation: float | None
    is_validated: bool


def find_run(connection: sa.Connection, run_id: str) -> dict[str, Any]:
    """Return a run's row."""
    row = connection.execute(sa.select(RUNS).where(RUNS.c.run_id == run_id)).mappings().one_or_none()
    if row is None:
        raise FederationError("run-unknown", f"There is no run {run_id!r:.80}.")
    return dict(row)


def change_run(connection: sa.Connection, row: Mapping[str, Any], **values: Any) -> None:
    """Change a run's row."""
    connection.execute(RUNS.update().where(RUNS.c.seq == row["seq"]).values(**values))


def read_run(row: Mapping[str, Any]) -> Run:
    """Return a run from its row."""
    try:
        plan = read_plan(json.loads(row["plan"]))
        if plan.hash != row["plan_hash"]:
            raise ValueError("the plan is not the one that was submitted")
        state, wish = RunState(row["state"]), Wish(row["wish"])
    except (ValueError, RecursionError) as error:
        raise StoreError("store-damaged", f"Run {row['run_id']!r} cannot be read: {error}.") from error
    return Run(
        row["run_id"],
        plan,
        row["initial_hash"],
        state,
        row["reason"],
        wish,
        row["created"],
        row["changed"],
        row["driver"],
        row["token"],
    )


def check_token(row: Mapping[str, Any], token: int | None) -> None:
    """Refuse who was replaced as a run's driver."""
    if token is not None and token != row["token"]:
        raise StoreError("store-conflict", f"Another process drives run {row['run_id']!r} since.")


def plain_text(text: str) -> str:
    """Return a text as every database can keep it: short, without control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:_LONGEST_TEXT])
