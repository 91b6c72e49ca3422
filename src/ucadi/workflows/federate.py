# SPDX-License-Identifier: Apache-2.0
"""A federated run in a folder: plan and initial model in, checkpoints, events and the outcome out.

RUN/plan.json                 the plan
RUN/manifest.json             versions, time and configuration
RUN/initial.safetensors       the model of round 0
RUN/rounds/0001.safetensors   the global model after each round, with 0001.json beside it
RUN/model.safetensors         the selected model
RUN/outcome.json              how it ended; written last
"""

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ucadi.config import RunSettings, SimulateConfig, TrainingSettings
from ucadi.engines.inprocess import InProcessTransport
from ucadi.errors import EngineError, UcadiError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.buffered import BufferedCoordinator
from ucadi.federation.coordinator import Checkpoint, Coordinator
from ucadi.federation.messages import GlobalModel
from ucadi.federation.plans import (
    Aggregation,
    Protection,
    RunPlan,
    TrainingPlan,
    Weighting,
    plan_document,
    read_plan,
)
from ucadi.federation.ports import Desk, Transport, Wish
from ucadi.federation.records import OnProgress, Progress, RoundRecord
from ucadi.federation.rounds import run_buffered, run_rounds
from ucadi.federation.site import Site
from ucadi.io.checkpoint import read_tensors, write_json, write_tensors
from ucadi.models.parameters import parameters_of
from ucadi.models.registry import build_network
from ucadi.tensors import Tensors, hash_tensors
from ucadi.workflows.manifest import run_manifest

__all__ = [
    "RunFolder",
    "RunOutcome",
    "conduct",
    "make_plan",
    "prepare_run",
    "read_outcome",
    "simulate",
]

_OUTCOME_FILE = "outcome.json"
_MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        records: One per round, then one that only validates the last model.
        selected_round: The round whose model was selected.
        model: The selected parameters.
        seconds: Wall time of the rounds.
    """

    records: tuple[RoundRecord, ...]
    selected_round: int
    model: Tensors
    seconds: float


class RunFolder:
    """The files of one run. Each is replaced as a whole, so a reader never sees half of one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def plan(self) -> RunPlan:
        """What was submitted."""
        return read_plan(json.loads((self._folder / "plan.json").read_bytes()))

    def model(self, number: int) -> GlobalModel:
        """Read the model of a round; 0 is the initial one.

        Raises:
            CheckpointError: If it is missing or damaged.
        """
        name = Path("rounds") / f"{number:04d}.safetensors" if number else Path("initial.safetensors")
        parameters, _ = read_tensors(self._folder / name)
        return GlobalModel(number, parameters)

    def keep(self, record: RoundRecord, model: GlobalModel) -> None:
        """Write a complete round; returns when it is on disk."""
        stem = self._folder / "rounds" / f"{record.round:04d}"
        if model.round == record.round:  # the last record only validates a model that is kept already
            write_tensors(stem.with_suffix(".safetensors"), model.parameters)
        write_json(stem.with_suffix(".json"), {**asdict(record), "model_hash": model.hash})

    def complete(self, selected: GlobalModel, records: Collection[RoundRecord], seconds: float) -> None:
        """Write the selected model and, last, the outcome."""
        write_tensors(self._folder / _MODEL_FILE, selected.parameters)
        outcome = {
            "status": "completed",
            "selected_round": selected.round,
            "model_hash": selected.hash,
            "records": [asdict(record) for record in records],
            "seconds": round(seconds, 3),
        }
        write_json(self._folder / _OUTCOME_FILE, outcome)

    def fail(self, error: UcadiError) -> None:
        """Write why the run ended without a model."""
        outcome = {"status": "failed", "code": error.code, "detail": error.detail}
        write_json(self._folder / _OUTCOME_FILE, outcome)


def make_plan(
    run: RunSettings,
    training: TrainingSettings,
    sites: tuple[str, ...],
    *,
    ready_deadline_s: float = 900.0,
    train_deadline_s: float = 3600.0,
) -> RunPlan:
    """Turn settings into a plan."""
    return RunPlan(
        run_id=run.name,
        training=TrainingPlan(**training.model_dump()),
        rounds=run.rounds,
        seed=run.seed,
        sites=sites,
        min_sites=run.min_sites,
        ready_deadline_s=ready_deadline_s,
        train_deadline_s=train_deadline_s,
        client_weights=run.client_weights,
        weighting=Weighting(run.weighting),
        protection=Protection.PLAINTEXT,
    )


def prepare_run(folder: Path, plan: RunPlan, initial: Tensors | None = None) -> str:
    """Write the plan and the initial model into an empty run folder; return the model's hash.

    Args:
        folder: Where the run will be.
        plan: What to do.
        initial: Parameters to start from; without them, the network's of the plan's seed.
    """
    if initial is None:
        initial = parameters_of(build_network(plan.training.network, plan.training.task, plan.seed))
    write_tensors(folder / "initial.safetensors", initial)
    document = plan_document(plan)
    write_json(folder / "manifest.json", run_manifest(config=document, seed=plan.seed, data_hashes={}))
    write_json(folder / "plan.json", document)
    return hash_tensors(initial)


def conduct(
    plan: RunPlan, checkpoint: Checkpoint, transport: Transport, desk: Desk, on_progress: OnProgress
) -> tuple[Wish, Checkpoint]:
    """Run a plan from where it stands; return how that ended, and where the run stands then.

    Raises:
        QuorumError: If too few sites take part for longer than the run's patience.
    """
    cipher = PlaintextCipher()
    if plan.aggregation is Aggregation.BUFFERED and checkpoint.model.round < plan.rounds:
        buffered = BufferedCoordinator(plan, checkpoint, cipher, on_progress)
        wish = run_buffered(buffered, transport, desk)
        if wish is not Wish.GO_ON:
            return wish, buffered.checkpoint()
        checkpoint = buffered.checkpoint()
    coordinator = Coordinator(plan, checkpoint, cipher, on_progress)
    return run_rounds(coordinator, transport, desk), coordinator.checkpoint()


def read_outcome(folder: Path) -> RunOutcome:
    """Read how a run ended, and its selected model.

    Raises:
        EngineError: If the run ended without an outcome, failed, or its model is not the one it names.
    """
    path = folder / _OUTCOME_FILE
    if not path.is_file():
        raise EngineError("engine-failed", "The run ended without an outcome.")
    outcome = json.loads(path.read_bytes())
    if outcome["status"] != "completed":
        raise EngineError(outcome["code"], outcome["detail"])
    model, _ = read_tensors(folder / _MODEL_FILE)
    if hash_tensors(model) != outcome["model_hash"]:
        raise EngineError("model-mismatch", f"{_MODEL_FILE} is not the model that the outcome names.")
    records = tuple(RoundRecord(**record) for record in outcome["records"])
    return RunOutcome(records, outcome["selected_round"], model, outcome["seconds"])


def simulate(
    config: SimulateConfig,
    folder: Path,
    make_site: Callable[[str], Site],
    on_progress: OnProgress = lambda progress: None,
) -> RunOutcome:
    """Run a whole federation in this process.

    Args:
        config: Plan and sites.
        folder: Empty run folder.
        make_site: Builds a site from its name.
        on_progress: Told what happens.

    Raises:
        UcadiError: Whatever ended the run, after the outcome was written.
    """
    names = tuple(sorted(config.sites))
    plan = make_plan(config.run, config.training, names)
    prepare_run(folder, plan)
    sites: Mapping[str, Site] = {name: make_site(name) for name in names}
    files, started = RunFolder(folder), time.monotonic()
    desk = _SimulationDesk(names, files, on_progress)
    try:
        start = Checkpoint.at_start(files.model(0))
        _, ended = conduct(plan, start, InProcessTransport(sites), desk, on_progress)
    except UcadiError as error:
        files.fail(error)
        raise
    files.complete(ended.best, ended.records, time.monotonic() - started)
    return read_outcome(folder)


class _SimulationDesk:
    """All sites are there all the time, and nobody wishes anything."""

    def __init__(self, sites: Collection[str], files: RunFolder, on_progress: OnProgress) -> None:
        self._sites = sites
        self._files = files
        self._on_progress = on_progress

    def members(self) -> Collection[str]:
        """Return all sites."""
        return self._sites

    def wish(self) -> Wish:
        """Go on."""
        return Wish.GO_ON

    def keep(self, record: RoundRecord, model: GlobalModel) -> None:
        """Write the round."""
        self._files.keep(record, model)
        self._on_progress(Progress("round", record.round, ""))

    def wait(self, shortfall: str) -> bool:
        """Nobody will come later."""
        return False
