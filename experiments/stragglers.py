# SPDX-License-Identifier: Apache-2.0
"""Synchronous against buffered aggregation when one site is ten times slower, in virtual time.

    python experiments/stragglers.py --seeds 20

The real coordinator, sites and messages in one process with a virtual clock; the learning task is a convex
one whose optimum is known, so that "as good as" has an exact meaning: least squares on each site's own data,
which differ between the sites (each has its own shift of the inputs and of the true weights). A site does 20
steps of stochastic gradient descent on batches of 8 per call. The error of a model is its excess of the
federation's mean squared error over the least possible, in percent of the initial model's excess. Reported:
virtual seconds until the error is first below a target, and the mean error of the models of the last tenth
of a fixed time, as mean with 95 % intervals (bootstrap over seeds). Prints a Markdown table.

What it does not show: networks that are not convex, and the noise of a real cluster.
"""

import argparse
import sys
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from ucadi.engines.inprocess import InProcessTransport
from ucadi.federation.aggregation import PlaintextCipher, difference
from ucadi.federation.coordinator import Checkpoint
from ucadi.federation.messages import GlobalModel, Phase, Readiness, Update, Validation, decode_call
from ucadi.federation.plans import Aggregation, RoundPlan, RunPlan, TrainingPlan
from ucadi.federation.ports import Exchange, Wish
from ucadi.federation.records import RoundRecord
from ucadi.federation.site import MemoryOutbox, OpenGate, Site
from ucadi.types import Task
from ucadi.workflows.federate import conduct

SITES = tuple(f"site-{k}" for k in range(1, 9))
SLOW = SITES[-1]
DIMENSIONS, STUDIES, STEPS, BATCH = 20, 200, 20, 8
SECONDS, SLOWNESS, LIMIT_S = 10.0, 10.0, 3000.0
TARGETS = (20.0, 5.0)
RATE = 0.01


@dataclass(frozen=True)
class Regression:
    """The sites' data and the best model for all of them together."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    best: np.ndarray
    curvature: np.ndarray

    @classmethod
    def draw(cls, seed: int, difference_between_sites: float) -> "Regression":
        """Draw eight sites' data."""
        rng = np.random.default_rng(seed)
        common = rng.normal(size=DIMENSIONS)
        inputs, outputs = {}, {}
        for site in SITES:
            own = common + difference_between_sites * rng.normal(size=DIMENSIONS)
            x = rng.normal(size=(STUDIES, DIMENSIONS)) + 0.3 * rng.normal(size=DIMENSIONS)
            inputs[site] = x
            outputs[site] = x @ own + 0.5 * rng.normal(size=STUDIES)
        x, y = np.concatenate(list(inputs.values())), np.concatenate(list(outputs.values()))
        best = np.linalg.lstsq(x, y, rcond=None)[0]
        return cls(inputs, outputs, best, x.T @ x / len(x))

    def error(self, weights: np.ndarray) -> float:
        """Return the excess error in percent of the initial model's."""
        away = weights - self.best
        return 100 * float(away @ self.curvature @ away) / float(self.best @ self.curvature @ self.best)


class SgdTrainer:
    """Trains a linear model on one site's data."""

    def __init__(self, name: str, task: Regression) -> None:
        self._name, self._x, self._y = name, task.inputs[name], task.outputs[name]

    def readiness(self, plan: RoundPlan) -> Readiness:
        """Be ready."""
        return Readiness(plan.run_id, plan.round, self._name, STUDIES)

    def train(self, plan: RoundPlan, model: GlobalModel) -> Update:
        """Take steps from the global model."""
        rng = np.random.default_rng([plan.run.seed, plan.round, SITES.index(self._name)])
        weights = model.parameters["w"].astype(np.float64)
        for _ in range(STEPS):
            rows = rng.integers(0, STUDIES, BATCH)
            x, y = self._x[rows], self._y[rows]
            weights = weights - plan.run.training.learning_rate * 2 * x.T @ (x @ weights - y) / BATCH
        delta = difference({"w": weights.astype(np.float32)}, model)
        return Update(plan.run_id, plan.round, self._name, delta, STEPS, 1.0, STUDIES, {})

    def validate(self, plan: RoundPlan, model: GlobalModel) -> Validation:
        """Have nothing to say."""
        return Validation(plan.run_id, plan.round, self._name, {})


@dataclass
class Stopwatch:
    """A desk that writes down each model's error and its virtual time, and stops at the limit."""

    transport: InProcessTransport
    task: Regression
    times: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def members(self) -> Collection[str]:
        """Return all sites."""
        return SITES

    def wish(self) -> Wish:
        """Stop when the time is over."""
        return Wish.STOP if self.transport.now > LIMIT_S else Wish.GO_ON

    def keep(self, record: RoundRecord, model: GlobalModel) -> None:
        """Measure the model."""
        self.times.append(self.transport.now)
        self.errors.append(self.task.error(model.parameters["w"].astype(np.float64)))

    def wait(self, shortfall: str) -> bool:
        """Nobody will come later."""
        return False

    def time_to(self, target: float) -> float:
        """Return when the error was first below a target; nan if never."""
        return next(
            (time for time, e in zip(self.times, self.errors, strict=True) if e < target), float("nan")
        )

    def last_error(self) -> float:
        """Return the mean error of the last models."""
        return float(np.mean([e for t, e in zip(self.times, self.errors, strict=True) if t > 0.9 * LIMIT_S]))


class TrainingTime(InProcessTransport):
    """Lets time pass for training only: to say that one is ready takes none."""

    def send(self, exchange: Exchange) -> None:
        """Start to send a message."""
        seconds, is_training = self._seconds, decode_call(exchange.body).phase is Phase.TRAIN
        self._seconds = seconds if is_training else {}
        super().send(exchange)
        self._seconds = seconds


def run(task: Regression, seed: int, mode: str) -> Stopwatch:
    """Run one federation for the limit of time."""
    sites = {
        name: Site(name, SgdTrainer(name, task), PlaintextCipher(), MemoryOutbox(), OpenGate())
        for name in SITES
    }
    buffered = mode.startswith("buffered")
    seconds = {site: SECONDS * (SLOWNESS if site == SLOW else 1.0) for site in SITES}
    transport = TrainingTime(sites, seconds)
    plan = RunPlan(
        "stragglers",
        TrainingPlan(Task.CLASSIFIER, "linear", "none", STEPS, BATCH, RATE),
        10_000,
        seed,
        SITES,
        min_sites=1 if buffered or "deadline" in mode else len(SITES),
        ready_deadline_s=1e6,
        train_deadline_s=3 * SECONDS if "deadline" in mode else 1e6,
        aggregation=Aggregation.BUFFERED if buffered else Aggregation.SYNCHRONOUS,
        buffer_size=int(mode.split()[-1]) if buffered else 0,
        metrics=(),
    )
    watch = Stopwatch(transport, task)
    start = Checkpoint.at_start(GlobalModel(0, {"w": np.zeros(DIMENSIONS, np.float32)}))
    conduct(plan, start, transport, watch, lambda progress: None)
    return watch


def interval(values: list[float]) -> str:
    """Write a mean with its 95 % interval; how many never got there is said."""
    known = np.array([value for value in values if not np.isnan(value)])
    if not known.size:
        return "never"
    rng = np.random.default_rng(0)
    means = rng.choice(known, (2000, known.size)).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    text = f"{known.mean():.3g} ({low:.3g} to {high:.3g})"
    return text if known.size == len(values) else f"{text}, {len(values) - known.size} never"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    out = sys.stdout.write
    out(
        f"{len(SITES)} sites, one {SLOWNESS:g} times slower, {options.seeds} seeds, {LIMIT_S:g} virtual s\n\n"
    )
    heads = ["sites differ", "aggregation", "models", *(f"s to {t:g} %" for t in TARGETS), "error at end, %"]
    out(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n")
    for between in (0.1, 1.0):
        for mode in ("synchronous", "synchronous, deadline", "buffered 2", "buffered 4"):
            runs = [run(Regression.draw(seed, between), seed, mode) for seed in range(options.seeds)]
            cells = [
                f"{between:g}",
                mode,
                f"{np.mean([len(r.times) for r in runs]):.0f}",
                *(interval([r.time_to(target) for r in runs]) for target in TARGETS),
                interval([r.last_error() for r in runs]),
            ]
            out(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
