# SPDX-License-Identifier: Apache-2.0
"""A federated run in a folder: plan and initial model in, checkpoints, events and the outcome out.

RUN/plan.json                 the plan
RUN/manifest.json             versions, time and configuration
RUN/initial.safetensors       the model of round 0
RUN/rounds/0001.safetensors   the global model after each round, with 0001.json beside it
RUN/events.jsonl              progress, one line each
RUN/model.safetensors         the selected model
RUN/outcome.json              how it ended; written last
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ucadi.config import RunSettings, SimulateConfig, TrainingSettings
from ucadi.engines.inprocess import InProcessTransport
from ucadi.errors import EngineError, UcadiError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Coordinator, Progress, RoundRecord
from ucadi.federation.messages import GlobalModel, Protection, RunPlan, TrainingPlan, Weighting
from ucadi.federation.ports import Transport
from ucadi.federation.rounds import run_rounds
from ucadi.federation.site import Site
from ucadi.io.checkpoint import read_tensors, write_json, write_tensors
from ucadi.models.parameters import parameters_of
from ucadi.models.registry import build_network
from ucadi.tensors import Tensors, hash_tensors
from ucadi.workflows.manifest import run_manifest

__all__ = [
    "EVENTS_FILE",
    "OUTCOME_FILE",
    "RunOutcome",
    "coordinate",
    "make_plan",
    "prepare_run",
    "read_outcome",
    "simulate",
]

OUTCOME_FILE = "outcome.json"
EVENTS_FILE = "events.jsonl"
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


def prepare_run(folder: Path, plan: RunPlan) -> None:
    """Write the plan and the initial model into an empty run folder."""
    network = build_network(plan.training.network, plan.training.task, plan.seed)
    write_tensors(folder / "initial.safetensors", parameters_of(network))
    document = TypeAdapter(RunPlan).dump_python(plan, mode="json")
    write_json(folder / "manifest.json", run_manifest(config=document, seed=plan.seed, data_hashes={}))
    write_json(folder / "plan.json", document)


def coordinate(folder: Path, transport: Transport) -> None:
    """Run a prepared run over a transport and write its outcome, also when it fails.

    Raises:
        UcadiError: Whatever ended the run, after the outcome was written.
    """
    plan = TypeAdapter(RunPlan).validate_json((folder / "plan.json").read_bytes())
    initial, _ = read_tensors(folder / "initial.safetensors")
    started = time.monotonic()

    def tell(progress: Progress) -> None:
        _append_event(folder, time.monotonic() - started, asdict(progress))

    def keep(record: RoundRecord, model: GlobalModel) -> None:
        if record.participants:  # the last record only validates a model that is kept already
            write_tensors(folder / "rounds" / f"{record.round:04d}.safetensors", model.parameters)
        write_json(
            folder / "rounds" / f"{record.round:04d}.json", {**asdict(record), "model_hash": model.hash}
        )
        _append_event(folder, time.monotonic() - started, {"kind": "round", **asdict(record)})

    coordinator = Coordinator(plan, GlobalModel(0, initial), PlaintextCipher(), tell)
    try:
        selected = run_rounds(coordinator, transport, keep)
    except UcadiError as error:
        write_json(folder / OUTCOME_FILE, {"status": "failed", "code": error.code, "detail": error.detail})
        raise
    write_tensors(folder / _MODEL_FILE, selected.parameters)
    outcome = {
        "status": "completed",
        "selected_round": selected.round,
        "model_hash": selected.hash,
        "records": [asdict(record) for record in coordinator.records],
        "seconds": round(time.monotonic() - started, 3),
    }
    write_json(folder / OUTCOME_FILE, outcome)


def read_outcome(folder: Path) -> RunOutcome:
    """Read how a run ended, and its selected model.

    Raises:
        EngineError: If the run ended without an outcome, failed, or its model is not the one it names.
    """
    path = folder / OUTCOME_FILE
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


def simulate(config: SimulateConfig, folder: Path, make_site: Callable[[str], Site]) -> RunOutcome:
    """Run a whole federation in this process.

    Args:
        config: Plan and sites.
        folder: Empty run folder.
        make_site: Builds a site from its name.
    """
    prepare_run(folder, make_plan(config.run, config.training, tuple(sorted(config.sites))))
    sites: Mapping[str, Site] = {name: make_site(name) for name in sorted(config.sites)}
    coordinate(folder, InProcessTransport(sites))
    return read_outcome(folder)


def _append_event(folder: Path, seconds: float, fields: dict[str, Any]) -> None:
    """Add one line to the run's progress."""
    with (folder / EVENTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"seconds": round(seconds, 3), **fields}) + "\n")
