# SPDX-License-Identifier: Apache-2.0
"""A run as files that other programs read, and in TensorBoard's and MLflow's own forms.

OUT/run.json        state, best rounds, sites, rounds
OUT/plan.json       the plan; plan.txt says it in words
OUT/rounds.jsonl    one record per complete round
OUT/metrics.csv     every reported number: the round, the round whose model it judges, site, name, value
OUT/metrics.jsonl   the same
OUT/updates.csv     who was in each round with how many bytes, and why others were not
OUT/events.jsonl    everything that happened
OUT/models/         models by choice, as safetensors
OUT/manifest.json   versions, hashes of data, models and all these files; written last
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ucadi.errors import CheckpointError
from ucadi.federation.plans import RunPlan, plan_document
from ucadi.federation.records import SELECTION_METRIC
from ucadi.io.checkpoint import read_tensors, write_bytes, write_json
from ucadi.reporting.tracking import Measurement, write_mlflow, write_tensorboard
from ucadi.store.audit import Audit
from ucadi.store.database import Database
from ucadi.store.runs import RunStore, Standing
from ucadi.tensors import hash_tensors
from ucadi.versions import RECORD_VERSION
from ucadi.workflows.plan_file import describe_plan
from ucadi.workflows.run_happenings import happenings_between
from ucadi.workflows.run_view import RunView
from ucadi.workflows.runs import look_at_run

__all__ = [
    "ModelChoice",
    "export_run",
    "export_to_mlflow",
    "export_to_tensorboard",
    "measurements_of",
]


class ModelChoice(StrEnum):
    """Which models an export holds."""

    NONE = "none"
    BEST = "best"
    LAST = "last"
    ALL = "all"


@dataclass(frozen=True)
class _Number:
    """One reported number as a row."""

    round: int
    model_round: int
    site: str
    name: str
    value: float


def export_run(
    folder: Path, database: Database, run_id: str, out: Path, models: ModelChoice = ModelChoice.BEST
) -> list[str]:
    """Write a run's files; return their names.

    Args:
        folder: The home's folder of all runs.
        database: The coordinator's state.
        run_id: The run.
        out: Where the files go; earlier ones of the same names are replaced.
        models: Which models are among them.

    Raises:
        FederationError: ``run-unknown``.
        CheckpointError: If a model is not the one that the database names.
    """
    view = look_at_run(database, run_id)
    store = RunStore(database)
    numbers = _numbers(view)
    chosen = _chosen(store.state(run_id), models)
    written = {
        "run.json": _json(view.to_json()),
        "plan.json": _json(plan_document(view.plan)),
        "plan.txt": plan_text(view.plan).encode(),
        "rounds.jsonl": _lines(kept.to_json() for kept in view.rounds),
        "metrics.csv": _csv([asdict(number) for number in numbers], list(_Number.__dataclass_fields__)),
        "metrics.jsonl": _lines(asdict(number) for number in numbers),
        "updates.csv": _csv(
            [asdict(update) for update in store.updates(run_id)],
            ["round", "site", "is_accepted", "bytes", "reason"],
        ),
        "events.jsonl": _lines(h.to_json() for h in happenings_between(None, view)),
    }
    for name, data in written.items():
        write_bytes(out / name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in written.items()}
    for number, model_hash in chosen.items():
        name = f"models/{number:04d}.safetensors"
        data = _read_model_file(folder / run_id, number, model_hash)
        write_bytes(out / name, data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    write_json(out / "manifest.json", _manifest(folder / run_id, database, view, hashes))
    return [*hashes, "manifest.json"]


def export_to_tensorboard(database: Database, run_id: str, log_folder: Path) -> Path:
    """Write a run for TensorBoard into its own folder of a log folder; return the event file.

    Raises:
        FederationError: ``run-unknown``.
        ConfigError: ``extra-missing``.
    """
    view = look_at_run(database, run_id)
    return write_tensorboard(log_folder / run_id, measurements_of(view), plan_text(view.plan))


def export_to_mlflow(database: Database, run_id: str, where: str) -> str:
    """Write a run into MLflow, or bring an earlier export up to date; return MLflow's identifier.

    Args:
        database: The coordinator's state.
        run_id: The run.
        where: Address of a tracking server or database, or a folder for a local one.

    Raises:
        FederationError: ``run-unknown``.
        ConfigError: ``extra-missing``.
        EngineError: ``tracking-failed``.
    """
    view = look_at_run(database, run_id)
    tags = {"ucadi.run": run_id, "ucadi.plan": view.plan.hash, "mlflow.note.content": plan_text(view.plan)}
    parameters = {name: str(value) for name, value in _flat(plan_document(view.plan))}
    state = view.run.state.value
    return write_mlflow(where, run_id, measurements_of(view), parameters, tags=tags, state=state)


def measurements_of(view: RunView) -> list[Measurement]:
    """Return a run's numbers as series over rounds.

    Scores stand at the round whose model they judge, from 0 for the initial model; all else at its own round.
    """
    found = []
    for kept in view.rounds:
        record, time_s = kept.record, kept.time_s
        for site, metrics in record.metrics.items():
            for name, value in metrics.items():
                step = record.round - 1 if name == SELECTION_METRIC else record.round
                found.append(Measurement(f"{name}/site/{site}", step, float(value), time_s))
        if record.validation is not None:
            found.append(Measurement("validation/mean", record.round - 1, record.validation, time_s))
        if record.round > view.plan.rounds:
            continue  # it only validated a model
        of_round: Mapping[str, float] = {
            "participants": len(record.participants),
            "missing": len(record.missing),
            "upload_bytes": record.upload_bytes,
            "seconds": kept.seconds,
            **{f"seconds_{phase}": seconds for phase, seconds in kept.phase_seconds.items()},
        }
        found += [Measurement(f"round/{n}", record.round, float(v), time_s) for n, v in of_round.items()]
    return found


def plan_text(plan: RunPlan) -> str:
    """Return the plan in plain words, one line each."""
    return "".join(f"{heading}: {words}.\n" for heading, words in describe_plan(plan))


def _numbers(view: RunView) -> list[_Number]:
    """Return every number that sites reported, and the means, by round, site and name."""
    rows = []
    for kept in view.rounds:
        record = kept.record
        for site, metrics in sorted(record.metrics.items()):
            for name, value in sorted(metrics.items()):
                judged = record.round - 1 if name == SELECTION_METRIC else record.round
                rows.append(_Number(record.round, judged, site, name, float(value)))
        if record.validation is not None:
            rows.append(_Number(record.round, record.round - 1, "", SELECTION_METRIC, record.validation))
    return rows


def _chosen(standing: Standing, models: ModelChoice) -> dict[int, str]:
    """Return the hashes of the models that an export holds, by round."""
    hashes = standing.model_hashes
    wanted = {
        ModelChoice.NONE: [],
        ModelChoice.BEST: [standing.best_round],
        ModelChoice.LAST: [standing.last_round],
        ModelChoice.ALL: sorted(hashes),
    }[models]
    return {number: hashes[number] for number in wanted}


def _read_model_file(folder: Path, number: int, model_hash: str) -> bytes:
    """Return a model's file, checked."""
    path = folder / "rounds" / f"{number:04d}.safetensors" if number else folder / "initial.safetensors"
    if hash_tensors(read_tensors(path)[0]) != model_hash:
        raise CheckpointError("checkpoint-invalid", f"{path} is not the model that the database names.")
    return path.read_bytes()


def _manifest(folder: Path, database: Database, view: RunView, files: Mapping[str, str]) -> dict[str, Any]:
    """Return what is needed to know what an export is: versions and hashes."""
    path = folder / "manifest.json"
    made_with = json.loads(path.read_bytes()) if path.is_file() else {}
    head = Audit(database).head()
    hashes = {kept.record.round: kept.model_hash for kept in view.rounds[: view.plan.rounds]}
    return {
        "record_version": RECORD_VERSION,
        "run_id": view.run.run_id,
        "state": view.run.state.value,
        "plan_hash": view.plan.hash,
        "models": {"0": view.run.initial_hash, **{str(n): h for n, h in hashes.items()}},
        "sites": {
            line.site: {
                "rounds": line.rounds,
                "ucadi_version": member.version if (member := view.members.get(line.site)) else None,
                "identity": member.identity if member else None,
            }
            for line in view.sites
        },
        "data_hashes": made_with.get("data_hashes", {}),
        "made_with": {name: value for name, value in made_with.items() if name != "data_hashes"},
        "audit_head": asdict(head),
        "files": dict(files),
    }


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the values of nested objects under dotted names."""
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else value


def _json(document: Mapping[str, Any]) -> bytes:
    """Return a JSON document's bytes; refuses NaN."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def _lines(documents: Iterable[Mapping[str, Any]]) -> bytes:
    """Return JSON lines."""
    return "".join(json.dumps(document, allow_nan=False) + "\n" for document in documents).encode()


def _csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bytes:
    """Return a table with a head line; no value is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
