# SPDX-License-Identifier: Apache-2.0
"""A federation's two classes with a toy trainer, importable by the engine's processes in these tests.

The run folder holds ``plan.json``: rounds, sites, deadlines and the initial value. A site's ``ucadi.toml``
holds its name and how long it trains.
"""

import json
import time
import tomllib
from pathlib import Path

import numpy as np

from ucadi.engines.flare.app import FlareController, FlareSite
from ucadi.errors import DataError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Coordinator
from ucadi.federation.messages import (
    GlobalModel,
    Readiness,
    RoundPlan,
    RunPlan,
    TrainingPlan,
    Update,
    Validation,
)
from ucadi.federation.ports import Transport
from ucadi.federation.rounds import run_rounds
from ucadi.federation.site import Site
from ucadi.tensors import pack
from ucadi.types import Task

__all__ = ["ToyController", "ToyExecutor", "ToyTrainer", "toy_model", "toy_plan"]


class ToyTrainer:
    """Trains by adding noise that depends on the site, the round and the model, so that a mix-up shows."""

    def __init__(self, name: str, seconds: float = 0.0, fault: str = "") -> None:
        self._name = name
        self._seconds = seconds
        self._fault = fault

    def readiness(self, plan: RoundPlan) -> Readiness:
        if self._fault == "decline":
            raise DataError("site-declined", "secret detail")
        return Readiness(plan.run_id, plan.round, self._name, 5)

    def train(self, plan: RoundPlan, model: GlobalModel) -> Update:
        if self._fault == "crash":
            raise RuntimeError("patient-4711 is in this message")
        time.sleep(self._seconds)
        seed = [ord(letter) for letter in self._name] + [plan.round]
        noise = np.random.default_rng(seed)
        delta = {
            name: (noise.normal(size=old.shape) + old / 3).astype(np.float32)
            for name, old in model.parameters.items()
        }
        iterations = 1 + seed[-2] % 7
        return Update(plan.run_id, plan.round, self._name, delta, iterations, 1.0, 5, {"validation": 0.5})

    def validate(self, plan: RoundPlan, model: GlobalModel) -> Validation:
        return Validation(plan.run_id, plan.round, self._name, {"validation": 0.6})


def toy_model(size: int) -> GlobalModel:
    return GlobalModel(0, {"a": np.linspace(-1, 1, size, dtype=np.float32), "b": np.ones((2, 3), np.float32)})


def toy_plan(folder: Path) -> tuple[RunPlan, GlobalModel]:
    raw = json.loads((folder / "plan.json").read_text())
    training = TrainingPlan(Task.CLASSIFIER, "toy", "toy", 7, 2, 0.1)
    plan = RunPlan(
        folder.name,
        training,
        raw["rounds"],
        0,
        tuple(raw["sites"]),
        min_sites=raw.get("min_sites", 2),
        ready_deadline_s=raw.get("ready_deadline_s", 30.0),
        train_deadline_s=raw.get("deadline_s", 60.0),
    )
    return plan, toy_model(raw.get("size", 1000))


class ToyController(FlareController):
    """Writes the model of each round, a line per event and the outcome."""

    def run(self, transport: Transport) -> None:
        plan, model = toy_plan(self.run_folder)
        events = self.run_folder / "events.txt"

        def tell(progress: object) -> None:
            with events.open("a") as file:
                file.write(f"{time.time():.2f} {progress}\n")

        def keep(record: object, made: GlobalModel) -> None:
            (self.run_folder / f"round-{made.round}.st").write_bytes(pack(made.parameters))
            tell(record)

        coordinator = Coordinator(plan, model, PlaintextCipher(), on_progress=tell)
        run_rounds(coordinator, transport, keep)
        outcome = {"records": [vars(record) for record in coordinator.records]}
        partial = self.run_folder / "outcome.part"
        partial.write_text(json.dumps(outcome, default=dict))
        partial.replace(self.run_folder / "outcome.json")


class ToyExecutor(FlareSite):
    """A site whose settings come from its own file."""

    def make_site(self, site_name: str, config_folder: Path) -> Site:
        settings = tomllib.loads((config_folder / "ucadi.toml").read_text())
        if settings.get("heavy"):
            import torch  # noqa: F401 - to measure
        trainer = ToyTrainer(site_name, settings.get("seconds", 0.0), settings.get("fault", ""))
        return Site(site_name, trainer, PlaintextCipher())
