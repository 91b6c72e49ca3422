# SPDX-License-Identifier: Apache-2.0
"""A federation's two classes with a toy trainer, importable by the engine's processes in these tests.

The coordinator's ``ucadi.toml`` names the folder of the runs. A run's folder holds ``plan.json``: rounds,
sites, deadlines and the model's size. A site's ``ucadi.toml`` says how it behaves.
"""

import json
import time
import tomllib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ucadi.engines.flare.app import FlareController, FlareSite
from ucadi.errors import DataError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.buffered import BufferedCoordinator
from ucadi.federation.coordinator import Checkpoint, Coordinator
from ucadi.federation.messages import GlobalModel, Readiness, Update, Validation
from ucadi.federation.plans import Aggregation, RoundPlan, RunPlan, TrainingPlan
from ucadi.federation.ports import Transport, Wish
from ucadi.federation.records import RoundRecord
from ucadi.federation.rounds import run_buffered, run_rounds
from ucadi.federation.site import MemoryOutbox, OpenGate, Site
from ucadi.tensors import pack
from ucadi.types import Task

__all__ = ["ToyController", "ToyDesk", "ToyExecutor", "ToyTrainer", "toy_model", "toy_plan", "toy_site"]


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
        letters = [ord(letter) for letter in self._name]
        noise = np.random.default_rng([*letters, plan.round])
        delta = {
            name: noise.random(old.shape, np.float32) + old / np.float32(3)
            for name, old in model.parameters.items()
        }
        iterations = 1 + letters[-1] % 7
        return Update(plan.run_id, plan.round, self._name, delta, iterations, 1.0, 5, {"validation": 0.5})

    def validate(self, plan: RoundPlan, model: GlobalModel) -> Validation:
        return Validation(plan.run_id, plan.round, self._name, {"validation": 0.6})


def toy_site(name: str, seconds: float = 0.0, fault: str = "") -> Site:
    return Site(name, ToyTrainer(name, seconds, fault), PlaintextCipher(), MemoryOutbox(), OpenGate())


def toy_model(size: int) -> GlobalModel:
    return GlobalModel(0, {"a": np.linspace(-1, 1, size, dtype=np.float32), "b": np.ones((2, 3), np.float32)})


def toy_plan(folder: Path) -> tuple[RunPlan, GlobalModel]:
    raw = json.loads((folder / "plan.json").read_text())
    plan = RunPlan(
        folder.name,
        TrainingPlan(Task.CLASSIFIER, "toy", "toy", 10, 2, 0.1),
        raw["rounds"],
        0,
        tuple(raw["sites"]),
        min_sites=raw.get("min_sites", 2),
        ready_deadline_s=raw.get("ready_deadline_s", 30.0),
        train_deadline_s=raw.get("deadline_s", 60.0),
        aggregation=Aggregation.BUFFERED if "buffer_size" in raw else Aggregation.SYNCHRONOUS,
        buffer_size=raw.get("buffer_size", 0),
    )
    return plan, toy_model(raw.get("size", 1000))


class ToyDesk:
    """Keeps each round's model in the run's folder; has no patience."""

    def __init__(self, folder: Path, sites: Collection[str]) -> None:
        self._folder = folder
        self._sites = sites

    def members(self) -> Collection[str]:
        return self._sites

    def wish(self) -> Wish:
        return Wish.GO_ON

    def keep(self, record: RoundRecord, model: GlobalModel) -> None:
        (self._folder / f"round-{model.round}.st").write_bytes(pack(model.parameters))
        self.tell(record)

    def wait(self, shortfall: str) -> bool:
        return False

    def tell(self, happening: object) -> None:
        with (self._folder / "events.txt").open("a") as file:
            file.write(f"{time.time():.2f} {happening}\n")


class ToyController(FlareController):
    """Writes the model of each round, a line per event and the outcome."""

    NEEDS = ()

    def run(self, kit: Path, transport: Transport) -> None:
        settings = tomllib.loads((kit / "local" / "ucadi.toml").read_text())
        folder = Path(settings["runs"]) / self.run_id
        plan, model = toy_plan(folder)
        desk = ToyDesk(folder, plan.sites)
        desk.tell("started")
        start, cipher = Checkpoint.at_start(model), PlaintextCipher()
        coordinator: Coordinator | BufferedCoordinator
        if plan.aggregation is Aggregation.BUFFERED:
            coordinator = BufferedCoordinator(plan, start, cipher, desk.tell)
            run_buffered(coordinator, transport, desk)
        else:
            coordinator = Coordinator(plan, start, cipher, desk.tell)
            run_rounds(coordinator, transport, desk)
        outcome = {"records": [vars(record) for record in coordinator.records]}
        partial = folder / "outcome.part"
        partial.write_text(json.dumps(outcome, default=dict))
        partial.replace(folder / "outcome.json")


class ToyExecutor(FlareSite):
    """A site whose settings come from its own file."""

    NEEDS = ()

    def make_site(self, site_name: str, config_folder: Path) -> Site:
        settings = tomllib.loads((config_folder / "ucadi.toml").read_text())
        return toy_site(site_name, settings.get("seconds", 0.0), settings.get("fault", ""))
