# SPDX-License-Identifier: Apache-2.0
"""A run as files: every number is in them, and their manifest names what they are."""

import csv
import hashlib
import json
import warnings

import pytest

from ucadi.errors import CheckpointError, FederationError
from ucadi.federation.plans import read_plan
from ucadi.federation.records import Progress, RoundRecord
from ucadi.io.checkpoint import read_tensors, write_json, write_tensors
from ucadi.store.audit import Audit
from ucadi.store.database import Database
from ucadi.store.runs import RunState, RunStore
from ucadi.tensors import hash_tensors
from ucadi.workflows.run_export import (
    ModelChoice,
    export_run,
    export_to_mlflow,
    export_to_tensorboard,
    measurements_of,
)
from ucadi.workflows.runs import look_at_run

SCORES = (0.25, 0.75, 0.5)
"""Of the models of rounds 0, 1 and 2."""


@pytest.fixture
def models(make_model):
    """The models of rounds 0, 1 and 2."""
    return [make_model(number, seed=number) for number in range(3)]


@pytest.fixture
def home(tmp_path, make_run_plan, models):
    """The folder of all runs and the database, with a complete run of two rounds; site C was missing once."""
    database = Database.open(f"sqlite:///{tmp_path / 'state.sqlite'}")
    folder = tmp_path / "runs" / "run-1"
    store = RunStore(database)
    store.submit(make_run_plan(), models[0].hash)
    store.set_state("run-1", RunState.RUNNING)
    write_tensors(folder / "initial.safetensors", models[0].parameters)
    write_json(folder / "manifest.json", {"ucadi_version": "1.2", "data_hashes": {"A": "ab" * 32}})
    for number in (1, 2, 3):
        sites = ["A", "B"] if number == 1 else ["A", "B", "C"]
        score = SCORES[number - 1]
        metrics = {s: {"validation": score} | ({"loss": 0.5 / number} if number < 3 else {}) for s in sites}
        for site in sites:
            store.add_event("run-1", Progress("ready", number, site))
            store.add_event("run-1", Progress("update", number, site))
        missing = {"C": "site-lost"} if number == 1 else {}
        model = models[min(number, 2)]
        if number < 3:
            write_tensors(folder / "rounds" / f"{number:04d}.safetensors", model.parameters)
        trained = sites if number < 3 else []
        store.keep_round("run-1", RoundRecord(number, trained, missing, metrics, score, 100), model.hash)
    store.set_state("run-1", RunState.COMPLETED)
    yield tmp_path / "runs", database
    database.close()


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_reported_number_is_in_the_table_with_the_model_that_it_judges(home, tmp_path):
    out = tmp_path / "out"
    export_run(*home, "run-1", out)
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 + 3 + 3 + 2 + 3 + 3  # scores, losses and means
    of_c = [(r["round"], r["model_round"], r["name"], float(r["value"])) for r in rows if r["site"] == "C"]
    assert of_c == [("2", "2", "loss", 0.25), ("2", "1", "validation", 0.75), ("3", "2", "validation", 0.5)]
    means = [(int(r["model_round"]), float(r["value"])) for r in rows if r["site"] == ""]
    assert means == list(enumerate(SCORES))
    lines = read_lines(out / "metrics.jsonl")
    assert [{k: str(v) for k, v in line.items()} for line in lines] == rows


def test_the_manifest_names_versions_data_models_and_every_file(home, tmp_path, models):
    out = tmp_path / "out"
    names = export_run(*home, "run-1", out)
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert sorted(names) == sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert manifest["models"] == {str(n): model.hash for n, model in enumerate(models)}
    assert manifest["data_hashes"] == {"A": "ab" * 32}
    assert manifest["made_with"] == {"ucadi_version": "1.2"}
    assert manifest["audit_head"]["hash"] == Audit(home[1]).head().hash
    plan = read_plan(json.loads((out / "plan.json").read_bytes()))
    assert plan.hash == manifest["plan_hash"]
    assert "Protection: plaintext" in (out / "plan.txt").read_text()


def test_records_updates_and_events_are_complete(home, tmp_path):
    out = tmp_path / "out"
    export_run(*home, "run-1", out)
    rounds = read_lines(out / "rounds.jsonl")
    assert [r["round"] for r in rounds] == [1, 2, 3]
    assert rounds[0]["missing"] == {"C": "site-lost"}
    updates = (out / "updates.csv").read_text().splitlines()
    assert updates[0] == "round,site,is_accepted,bytes,reason"
    assert "1,C,False,,site-lost" in updates
    kinds = [line["kind"] for line in read_lines(out / "events.jsonl")]
    assert [kinds.count(kind) for kind in ("ready", "update", "round", "state")] == [8, 8, 3, 1]
    document = json.loads((out / "run.json").read_bytes())
    assert (document["state"], document["best_round"]) == ("completed", 1)
    assert document["own_best"] == {"A": 1, "B": 1, "C": 1}


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [(ModelChoice.NONE, []), (ModelChoice.BEST, [1]), (ModelChoice.LAST, [2]), (ModelChoice.ALL, [0, 1, 2])],
)
def test_the_models_asked_for_are_there_as_the_database_names_them(home, tmp_path, models, choice, numbers):
    export_run(*home, "run-1", tmp_path / "out", choice)
    found = {int(p.stem): read_tensors(p)[0] for p in (tmp_path / "out").glob("models/*.safetensors")}
    assert {n: hash_tensors(tensors) for n, tensors in found.items()} == {n: models[n].hash for n in numbers}


def test_a_model_that_was_changed_is_not_exported(home, tmp_path, models):
    write_tensors(home[0] / "run-1" / "rounds" / "0001.safetensors", models[2].parameters)
    with pytest.raises(CheckpointError):
        export_run(*home, "run-1", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_unknown_run_is_refused(home, tmp_path):
    with pytest.raises(FederationError) as caught:
        export_run(*home, "run-2", tmp_path / "out")
    assert caught.value.code == "run-unknown"
    assert not (tmp_path / "out").exists()


def test_a_measurement_stands_at_the_round_of_the_model_it_judges(home):
    found = {}
    for m in measurements_of(look_at_run(home[1], "run-1")):
        found.setdefault(m.series, []).append((m.step, m.value))
    assert found["validation/mean"] == list(enumerate(SCORES))
    assert found["validation/site/C"] == [(1, 0.75), (2, 0.5)]
    assert found["loss/site/A"] == [(1, 0.5), (2, 0.25)]
    assert found["round/missing"] == [(1, 1.0), (2, 0.0)]
    assert found["round/upload_bytes"] == [(1, 100.0), (2, 100.0)]
    assert {step for step, _ in found["round/seconds"]} == {1, 2}


def test_tensorboard_shows_the_run(home, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = export_to_tensorboard(home[1], "run-1", tmp_path / "logs")
    assert path.parent == tmp_path / "logs" / "run-1"
    events = EventAccumulator(str(path.parent)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("validation/mean")] == list(enumerate(SCORES))


@pytest.mark.slow
def test_mlflow_shows_the_run_its_plan_and_that_it_is_complete(home, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that MLflow uses
        from mlflow.tracking import MlflowClient

        own_id = export_to_mlflow(home[1], "run-1", str(tmp_path / "tracking"))
        client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'tracking' / 'mlflow.db'}")
        run = client.get_run(own_id)
        history = client.get_metric_history(own_id, "validation/mean")
    assert (run.info.run_name, run.info.status) == ("run-1", "FINISHED")
    assert (run.data.params["training.network"], run.data.params["sites"]) == ("densenet3d", "A, B, C")
    assert sorted((m.step, m.value) for m in history) == list(enumerate(SCORES))
    assert "Protection: plaintext" in run.data.tags["mlflow.note.content"]
