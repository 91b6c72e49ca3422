# SPDX-License-Identifier: Apache-2.0
"""Toy federations for all tests: a model of two tensors, plans, updates, and trainers that do as told."""

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch: small arrays, steady times

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from ucadi.errors import UcadiError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.messages import GlobalModel, Readiness, Update, Validation
from ucadi.federation.plans import RoundPlan, RunPlan, TrainingPlan
from ucadi.federation.ports import Gate, Outbox
from ucadi.federation.site import MemoryOutbox, OpenGate, Site
from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume
from ucadi.types import Task

pytest_plugins = ["dicom_series", "postgres_server"]

# No deadline: machines differ. The same examples each time: a red test stays red until it is mended.
settings.register_profile(
    "ucadi", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ucadi")

TRAINING = TrainingPlan(Task.CLASSIFIER, "densenet3d", "compact", 4, 2, 0.01)


@dataclass
class ToyTrainer:
    """A site whose answers are written down beforehand.

    Attributes:
        name: The site's name.
        delta: What it adds to every parameter.
        iterations: n_i that it reports.
        scores: Its validation of the model of each round, from round 0; none beyond the list.
        faults: What it raises, by method name.
        asked: Which methods were called, in order.
    """

    name: str
    delta: float = 1.0
    iterations: int = 4
    scores: tuple[float, ...] = ()
    faults: dict[str, UcadiError] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def readiness(self, plan: RoundPlan) -> Readiness:
        self._enter("readiness")
        return Readiness(plan.run_id, plan.round, self.name, 7)

    def train(self, plan: RoundPlan, model: GlobalModel) -> Update:
        self._enter("train")
        return Update(
            run_id=plan.run_id,
            round=plan.round,
            site=self.name,
            tensors={name: np.full_like(old, self.delta) for name, old in model.parameters.items()},
            iterations=self.iterations,
            aggregation_weight=plan.run.client_weights.get(self.name, 1.0),
            num_studies=7,
            metrics={"loss": 0.5, **self._score(model)},
        )

    def validate(self, plan: RoundPlan, model: GlobalModel) -> Validation:
        self._enter("validate")
        return Validation(plan.run_id, plan.round, self.name, self._score(model))

    def _enter(self, method: str) -> None:
        self.asked.append(method)
        if method in self.faults:
            raise self.faults[method]

    def _score(self, model: GlobalModel) -> dict[str, float]:
        return {"validation": self.scores[model.round]} if model.round < len(self.scores) else {}


@pytest.fixture(autouse=True)
def _keep_logging_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("ucadi")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    for handler in set(logger.handlers) - set(before[2]):
        handler.close()
    logger.level, logger.propagate, logger.handlers[:] = before
    logger.manager._clear_cache()


@pytest.fixture(scope="session")
def make_trainer() -> type[ToyTrainer]:
    """Builds a `ToyTrainer`."""
    return ToyTrainer


@pytest.fixture(scope="session")
def make_site() -> Callable[..., Site]:
    """Builds a site with a `ToyTrainer`: its name, and what the trainer does; remembers and agrees."""

    def build(name: str, outbox: Outbox | None = None, gate: Gate | None = None, **behaviour: Any) -> Site:
        trainer = ToyTrainer(name, **behaviour)
        return Site(name, trainer, PlaintextCipher(), outbox or MemoryOutbox(), gate or OpenGate())

    return build


@pytest.fixture(scope="session")
def make_model() -> Callable[..., GlobalModel]:
    """Builds a model of two small float32 tensors, or of given shapes."""

    def build(
        made_in: int = 0, seed: int = 0, shapes: dict[str, tuple[int, ...]] | None = None
    ) -> GlobalModel:
        rng = np.random.default_rng(seed)
        shapes = shapes or {"conv.weight": (2, 3), "norm.running_mean": (4,)}
        return GlobalModel(made_in, {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()})

    return build


@pytest.fixture(scope="session")
def make_run_plan() -> Callable[..., RunPlan]:
    """Builds a run of two rounds at sites A, B and C; keywords replace fields."""

    def build(**changes: Any) -> RunPlan:
        fields = {"run_id": "run-1", "training": TRAINING, "rounds": 2, "seed": 0, "sites": ("A", "B", "C")}
        return RunPlan(**{**fields, **changes})

    return build


@pytest.fixture(scope="session")
def make_round_plan(make_run_plan: Callable[..., RunPlan]) -> Callable[..., RoundPlan]:
    """Builds what a site is told about the round after a model's; keywords replace fields of either plan."""

    def build(model: GlobalModel, **changes: Any) -> RoundPlan:
        own = {name: changes.pop(name) for name in ("round", "model_hash") if name in changes}
        run = make_run_plan(**{"rounds": 3, **changes})
        return RoundPlan(**{"run": run, "round": model.round + 1, "model_hash": model.hash, **own})

    return build


@pytest.fixture(scope="session")
def make_update() -> Callable[..., Update]:
    """Builds an update for a model's first round: one value everywhere, or given tensors."""

    def build(model: GlobalModel, site: str = "A", delta: float = 1.0, **changes: Any) -> Update:
        fields = {
            "run_id": "run-1",
            "round": model.round + 1,
            "site": site,
            "tensors": {name: np.full_like(old, delta) for name, old in model.parameters.items()},
            "iterations": 4,
            "aggregation_weight": 1.0,
            "num_studies": 7,
            "metrics": {},
        }
        return Update(**{**fields, **changes})

    return build


@pytest.fixture(scope="session")
def make_ct() -> Callable[..., Volume]:
    """Builds a chest-like CT: body, spine, two lungs over a diaphragm, noise; int16 HU.

    The left lung is smaller and holds a lesion, so that no flip or turn maps the chest onto itself.
    """

    def build(
        shape: tuple[int, int, int] = (36, 64, 64), spacing_mm: tuple[float, float, float] = (5.0, 5.5, 5.5)
    ) -> Volume:
        grid = Grid.from_spacing(shape, spacing_mm, origin_mm=(-700.0, -170.0, -180.0))
        middle = (np.array(shape) - 1) / 2
        z, y, x = ((np.arange(n) - m) * mm for n, m, mm in zip(shape, middle, spacing_mm, strict=True))
        z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]

        def ellipsoid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
            (cz, cy, cx), (rz, ry, rx) = center, radii
            return ((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1

        hu = np.full(shape, -1000.0)
        hu[np.broadcast_to((y / 110) ** 2 + (x / 155) ** 2 < 1, shape)] = 45
        hu[np.broadcast_to((y - 85) ** 2 + x**2 < 18**2, shape)] = 400
        for side, width in ((-1, 56.0), (1, 50.0)):
            lung = ellipsoid((-15.0, 0.0, side * 75.0), (90.0, 75.0, width))
            lung &= (z > -75.0) & ~ellipsoid((-90.0, 0.0, side * 75.0), (60.0, 66.0, width - 6.0))
            hu[lung] = -850
        hu[ellipsoid((10.0, 25.0, 80.0), (15.0, 18.0, 18.0))] = -300
        hu += np.random.default_rng(0).normal(0.0, 15.0, shape)
        return Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), grid)

    return build


@pytest.fixture(scope="session")
def awkward_ct(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Reads an awkward series by its name, slices of 64x64; each only once."""
    from awkward_cases import make_cases

    from ucadi.io.reader import load_ct  # here: most tests read no scan

    cases = {case.name: case for case in make_cases(64)}

    @cache
    def read(name: str) -> Any:
        folder = tmp_path_factory.mktemp("awkward")
        cases[name].write(folder)
        loaded = load_ct(folder / cases[name].input)
        loaded.require()
        return loaded

    return read


@pytest.fixture(scope="session")
def dicom_complaints() -> Callable[[Path], list[str]]:
    """What dicom3tools' validator says against a file, but for our own code scheme, which it cannot know."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")

    def validate(path: Path) -> list[str]:
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
        lines = [line for line in said.splitlines() if line.startswith(("Error", "Warning"))]
        known = "Warning - Unrecognized defined term <99UCADI>"
        return [line for line in lines if not line.startswith(known)]

    return validate
