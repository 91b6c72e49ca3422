# SPDX-License-Identifier: Apache-2.0
"""The plan of a run: the document that a coordinator submits, a site approves and every call carries.

A plan names registered networks and numbers, never code. Its hash is what a site approves, so whatever the
coordinator changes afterwards is another plan.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import Any

from ucadi.types import Task

__all__ = [
    "REPORTABLE_METRICS",
    "Aggregation",
    "Protection",
    "RoundPlan",
    "RunPlan",
    "TrainingPlan",
    "Weighting",
    "plan_document",
    "read_plan",
]

REPORTABLE_METRICS = ("loss", "validation", "validation_studies", "validation_low", "validation_high")
"""What a site can report: its mean training loss; its score of the model that it received, on how many
studies that rests, and the ends of its 95 % interval."""

_RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_LONGEST_S = 366 * 86400.0


class Protection(StrEnum):
    """How an update is hidden from the coordinator."""

    PLAINTEXT = "plaintext"


class Weighting(StrEnum):
    """How the factors n_i·w_i are scaled.

    ``normalized`` divides by their sum. ``paper_exact`` divides by the sum of n_i alone (Yang et al. 2021,
    Alg. 1 line 7), so the global step shrinks when weights are below 1.
    """

    NORMALIZED = "normalized"
    PAPER_EXACT = "paper_exact"


class Aggregation(StrEnum):
    """When updates become the next global model.

    ``synchronous``: once per round, of all participants. ``buffered``: as soon as ``buffer_size`` updates
    have come, each weighted down by the number of models that were made since the one that it started from
    (Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation").
    """

    SYNCHRONOUS = "synchronous"
    BUFFERED = "buffered"


@dataclass(frozen=True)
class TrainingPlan:
    """What one site does in one round: registered names and numbers only.

    Attributes:
        task: What is learned.
        network: Name in the network register.
        preset: Name in the register of input presets.
        iterations: Optimizer steps per round (n_i of Alg. 1), the same for all sites.
        batch_size: Samples per step.
        learning_rate: Step size of the first round, falling along half a cosine over the rounds.
    """

    task: Task
    network: str
    preset: str
    iterations: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        _require(isinstance(self.task, Task), "task", self.task)
        for name in ("network", "preset"):
            _require(isinstance(getattr(self, name), str), name, getattr(self, name))
        _require(_is_count(self.iterations, 1, 100_000), "iterations", self.iterations)
        _require(_is_count(self.batch_size, 1, 1024), "batch_size", self.batch_size)
        _require(_is_number(self.learning_rate, 0.0, 10.0), "learning_rate", self.learning_rate)


@dataclass(frozen=True)
class RunPlan:
    """A whole federated run. Sites approve exactly this, by its hash.

    Attributes:
        run_id: Name of the run: lower case letters, digits and hyphens.
        training: What a site does in a round.
        rounds: Number of rounds, counted from 1.
        seed: Seed of the initial model and, with site and round, of local training.
        sites: Who may take part; none named means every site of the federation.
        min_sites: A round with fewer ready sites or updates is asked again until ``patience_s`` is over.
        ready_deadline_s: How long a site may take to say that it is ready.
        train_deadline_s: How long a site may take to train.
        patience_s: How long a round may wait for ``min_sites`` before the run ends.
        client_weights: w_i of Alg. 1 by site; 1 when not named.
        weighting: How n_i·w_i are scaled.
        protection: How updates are hidden.
        aggregation: When updates become the next model.
        buffer_size: Updates per model in buffered aggregation, at least ``min_sites``; 0 in synchronous.
        metrics: What sites report besides their update, of `REPORTABLE_METRICS`.
    """

    run_id: str
    training: TrainingPlan
    rounds: int
    seed: int
    sites: tuple[str, ...] = ()
    min_sites: int = 2
    ready_deadline_s: float = 30.0
    train_deadline_s: float = 3600.0
    patience_s: float = 7 * 86400.0
    client_weights: Mapping[str, float] = field(default_factory=dict)
    weighting: Weighting = Weighting.NORMALIZED
    protection: Protection = Protection.PLAINTEXT
    aggregation: Aggregation = Aggregation.SYNCHRONOUS
    buffer_size: int = 0
    metrics: tuple[str, ...] = ("loss", "validation")

    def __post_init__(self) -> None:
        _require(isinstance(self.run_id, str) and bool(_RUN_ID.fullmatch(self.run_id)), "run_id", self.run_id)
        _require(isinstance(self.training, TrainingPlan), "training", self.training)
        _require(_is_count(self.rounds, 1, 10_000), "rounds", self.rounds)
        _require(_is_count(self.seed, 0, 2**31 - 1), "seed", self.seed)
        _require(_are_names(self.sites) and len(set(self.sites)) == len(self.sites), "sites", self.sites)
        _require(_is_count(self.min_sites, 1, 100_000), "min_sites", self.min_sites)
        _require(not self.sites or self.min_sites <= len(self.sites), "min_sites", self.min_sites)
        for name in ("ready_deadline_s", "train_deadline_s", "patience_s"):
            _require(_is_number(getattr(self, name), 0.0, _LONGEST_S), name, getattr(self, name))
        weights = self.client_weights
        _require(
            isinstance(weights, Mapping)
            and _are_names(tuple(weights))
            and all(_is_number(w, 1e-6, 1e6) for w in weights.values()),
            "client_weights",
            weights,
        )
        for name, kind in (
            ("weighting", Weighting),
            ("protection", Protection),
            ("aggregation", Aggregation),
        ):
            _require(isinstance(getattr(self, name), kind), name, getattr(self, name))
        is_buffered = self.aggregation is Aggregation.BUFFERED
        _require(_is_count(self.buffer_size, int(is_buffered), 100_000), "buffer_size", self.buffer_size)
        _require(is_buffered or self.buffer_size == 0, "buffer_size", self.buffer_size)
        if is_buffered:
            self._check_buffer()
        _require(
            isinstance(self.metrics, tuple) and set(self.metrics) <= set(REPORTABLE_METRICS),
            "metrics",
            self.metrics,
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the plan's document: what a site approves."""
        text = json.dumps(plan_document(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def weight_ratio(self) -> float:
        """How many times the heaviest site's update counts as much as the lightest one's."""
        if self.sites:
            weights = [self.client_weights.get(site, 1.0) for site in self.sites]
        else:
            weights = [1.0, *self.client_weights.values()]
        return max(weights) / min(weights)

    def _check_buffer(self) -> None:
        """Refuse a buffer that makes a model of fewer sites than promised, or that can never be full."""
        if self.buffer_size < self.min_sites:
            raise ValueError(
                f"buffer_size is {self.buffer_size}, less than min_sites, which is {self.min_sites}"
            )
        if self.sites and self.buffer_size > len(self.sites):
            raise ValueError(
                f"buffer_size is {self.buffer_size}, but there are {len(self.sites)} sites, "
                "each of which gives one update per model"
            )

    def calls(self, site: str) -> bool:
        """Tell whether the plan has a place for a site."""
        return not self.sites or site in self.sites


@dataclass(frozen=True)
class RoundPlan:
    """What a site is told about one round.

    Attributes:
        run: The run's plan, as it was approved.
        round: This round, from 1; one more than ``run.rounds`` when only the last model is validated.
        model_hash: Identity of the global model that the round starts from.
    """

    run: RunPlan
    round: int
    model_hash: str

    def __post_init__(self) -> None:
        _require(isinstance(self.run, RunPlan), "run", self.run)
        _require(isinstance(self.model_hash, str), "model_hash", self.model_hash)
        _require(_is_count(self.round, 1, self.run.rounds + 1), "round", self.round)

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.run.run_id


def plan_document(plan: RunPlan) -> dict[str, Any]:
    """Return the plan as plain JSON values."""
    document = asdict(plan)
    document.update(sites=list(plan.sites), metrics=list(plan.metrics))
    return document


def read_plan(document: object) -> RunPlan:
    """Return the plan of a document, as strictly as if it came from an enemy.

    Raises:
        ValueError: With the field that is missing, unknown or out of bounds, and the value seen.
    """
    try:
        given = dict(document)  # type: ignore[call-overload]  # a TypeError is an answer here
        if missing := sorted({field.name for field in fields(RunPlan)} - given.keys()):
            raise KeyError(missing[0])
        training = dict(given["training"])
        return RunPlan(
            **{
                **given,
                "training": TrainingPlan(**{**training, "task": Task(training["task"])}),
                "sites": _tuple(given["sites"]),
                "metrics": _tuple(given["metrics"]),
                "client_weights": dict(given["client_weights"]),
                "weighting": Weighting(given["weighting"]),
                "protection": Protection(given["protection"]),
                "aggregation": Aggregation(given["aggregation"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"the plan cannot be read: {error}") from error


def _tuple(value: object) -> tuple[Any, ...]:
    """Return a list's items; a string is no list."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.60} is not a list")
    return tuple(value)


def _are_names(values: object) -> bool:
    """Tell whether all are names that a site can have."""
    return isinstance(values, tuple) and all(isinstance(v, str) and _SITE.fullmatch(v) for v in values)


def _is_count(value: object, low: int, high: int) -> bool:
    """Tell whether a value is a whole number within bounds; a bool is none."""
    return type(value) is int and low <= value <= high


def _is_number(value: object, low: float, high: float) -> bool:
    """Tell whether a value is a finite number within bounds; a bool is none."""
    return (type(value) is int or type(value) is float) and math.isfinite(value) and low <= value <= high


def _require(condition: bool, name: str, value: object) -> None:
    """Refuse a field."""
    if not condition:
        raise ValueError(f"{name} is out of bounds: {value!r:.80}")
