# SPDX-License-Identifier: Apache-2.0
"""ucadi's two classes of a job with a trainer that takes no time, importable by the engine's processes."""

import time
import tomllib
from collections.abc import Collection
from functools import cache
from pathlib import Path

import numpy as np

from ucadi.engines.flare.app import FlareController, FlareSite
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Checkpoint, Coordinator
from ucadi.federation.messages import GlobalModel, Readiness, Update, Validation
from ucadi.federation.plans import RoundPlan, RunPlan, TrainingPlan
from ucadi.federation.ports import Transport, Wish
from ucadi.federation.records import RoundRecord
from ucadi.federation.rounds import run_rounds
from ucadi.federation.site import MemoryOutbox, OpenGate, Site
from ucadi.tensors import pack
from ucadi.types import Task

__all__ = ["Controller", "Executor", "delta_of", "model_of"]


@cache
def delta_of(site: str, size: int) -> dict[str, np.ndarray]:
    """Return what a site sends in every round: made once, so that it costs nothing afterwards."""
    noise = np.random.default_rng([ord(letter) for letter in site])
    return {f"layer{k}": noise.random(size // 20, np.float32) * np.float32(1e-3) for k in range(20)}


def model_of(size: int) -> dict[str, np.ndarray]:
    """Return the model of round 0."""
    noise = np.random.default_rng(0)
    return {f"layer{k}": noise.random(size // 20, np.float32) for k in range(20)}


class _Trainer:
    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size

    def readiness(self, plan: RoundPlan) -> Readiness:
        return Readiness(plan.run_id, plan.round, self._name, 5)

    def train(self, plan: RoundPlan, model: GlobalModel) -> Update:
        delta = delta_of(self._name, self._size)
        return Update(plan.run_id, plan.round, self._name, delta, 10, 1.0, 5, {"loss": 1.0})

    def validate(self, plan: RoundPlan, model: GlobalModel) -> Validation:
        return Validation(plan.run_id, plan.round, self._name, {})


class _Desk:
    """Stores each round's model as a coordinator does, and writes down when that was done."""

    def __init__(self, folder: Path, sites: Collection[str]) -> None:
        self._folder, self._sites = folder, sites

    def members(self) -> Collection[str]:
        return self._sites

    def wish(self) -> Wish:
        return Wish.GO_ON

    def keep(self, record: RoundRecord, model: GlobalModel) -> None:
        (self._folder / "model.st").write_bytes(pack(model.parameters))
        with (self._folder / "rounds.txt").open("a") as file:
            file.write(f"{time.time()}\n")

    def wait(self, shortfall: str) -> bool:
        return False


def _settings(kit: Path) -> dict[str, object]:
    return tomllib.loads((kit / "local" / "ucadi.toml").read_text())


class Controller(FlareController):
    """Runs rounds over what the kit's settings say: sites, rounds, parameters."""

    NEEDS = ()

    def run(self, kit: Path, transport: Transport) -> None:
        settings = _settings(kit)
        sites, size = tuple(settings["sites"]), int(settings["size"])
        training = TrainingPlan(Task.CLASSIFIER, "toy", "toy", 10, 2, 0.1)
        plan = RunPlan(self.run_id, training, int(settings["rounds"]), 0, sites, min_sites=len(sites))
        model = GlobalModel(0, model_of(size))
        coordinator = Coordinator(plan, Checkpoint.at_start(model), PlaintextCipher())
        run_rounds(coordinator, transport, _Desk(Path(settings["folder"]), sites))


class Executor(FlareSite):
    """A site that has trained before it was asked."""

    NEEDS = ()

    def make_site(self, site_name: str, config_folder: Path) -> Site:
        size = int(_settings(config_folder.parent)["size"])
        delta_of(site_name, size)
        return Site(site_name, _Trainer(site_name, size), PlaintextCipher(), MemoryOutbox(), OpenGate())
