# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from ucadi.config import SimulateConfig
from ucadi.errors import CheckpointError, CohortError, EngineError, ModelError, QuorumError
from ucadi.federation.plans import Weighting
from ucadi.io.checkpoint import read_tensors, write_tensors
from ucadi.models.parameters import parameters_of
from ucadi.models.registry import build_network
from ucadi.tensors import hash_tensors
from ucadi.types import Task
from ucadi.workflows.federate import RunFolder, make_plan, prepare_run, read_outcome, simulate

PLANTED = "DOE^JANE-19570412"


@pytest.fixture(scope="session")
def config():
    """A run of two rounds at sites A, B and C; keywords replace settings of the run."""

    def build(**run):
        site = {"cohort": f"/data/{PLANTED}", "cache": "cache"}
        return SimulateConfig.model_validate(
            {
                "config_version": 1,
                "run": {"name": "run-1", "rounds": 2, "seed": 5, **run},
                "training": {
                    "task": "classifier",
                    "network": "densenet3d",
                    "preset": "compact",
                    "iterations": 4,
                    "batch_size": 2,
                    "learning_rate": 0.01,
                },
                "sites": dict.fromkeys("CAB", site),
            }
        )

    return build


@pytest.fixture(scope="module")
def finished(config, make_site, tmp_path_factory):
    """A completed run's folder and outcome: every site adds 1, 2 or 3 a round; round 1 is the best."""
    folder = tmp_path_factory.mktemp("run") / "run"
    outcome = simulate(
        config(), folder, lambda name: make_site(name, delta="ABC".index(name) + 1.0, scores=(0.1, 0.7, 0.4))
    )
    return folder, outcome


@pytest.fixture
def copy(finished, tmp_path):
    """A completed run's folder that a test may spoil."""
    for path in finished[0].iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_run_leaves_plan_models_rounds_and_outcome(finished):
    folder, _ = finished
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "initial.safetensors",
        "manifest.json",
        "model.safetensors",
        "outcome.json",
        "plan.json",
        "rounds/0001.json",
        "rounds/0001.safetensors",
        "rounds/0002.json",
        "rounds/0002.safetensors",
        "rounds/0003.json",
    ]


def test_the_outcome_tells_every_round_and_the_selected_model(finished):
    folder, outcome = finished
    assert outcome.selected_round == 1
    assert [record.participants for record in outcome.records] == [["A", "B", "C"], ["A", "B", "C"], []]
    assert [record.validation for record in outcome.records] == pytest.approx([0.1, 0.7, 0.4])
    initial, _ = read_tensors(folder / "initial.safetensors")
    for name, array in outcome.model.items():
        np.testing.assert_allclose(array, initial[name] + 2.0, rtol=1e-5)
    assert outcome.seconds > 0


def test_the_outcome_read_again_is_the_same(finished):
    folder, outcome = finished
    again = read_outcome(folder)
    assert (again.records, again.selected_round, again.seconds) == (
        outcome.records, outcome.selected_round, outcome.seconds
    )  # fmt: skip
    assert hash_tensors(again.model) == hash_tensors(outcome.model)


def test_the_selected_model_is_the_one_of_its_round(finished):
    folder, outcome = finished
    kept, _ = read_tensors(folder / "rounds" / "0001.safetensors")
    assert hash_tensors(kept) == hash_tensors(outcome.model)
    told = json.loads((folder / "rounds" / "0001.json").read_bytes())
    assert told["model_hash"] == hash_tensors(kept)
    assert told["participants"] == ["A", "B", "C"]


def test_the_initial_model_is_the_networks_of_the_runs_seed(finished):
    initial, _ = read_tensors(finished[0] / "initial.safetensors")
    expected = parameters_of(build_network("densenet3d", Task.CLASSIFIER, seed=5))
    assert hash_tensors(initial) == hash_tensors(expected)


def test_a_run_tells_what_happens_in_its_order(config, make_site, tmp_path):
    told = []
    simulate(config(rounds=1), tmp_path, make_site, told.append)
    happened = [(progress.kind, progress.site) for progress in told]
    assert happened[:7] == [(kind, site) for kind in ("ready", "update") for site in "ABC"] + [("round", "")]


def test_nothing_in_a_run_folder_names_a_sites_paths(finished):
    for path in finished[0].rglob("*"):
        if path.is_file():
            assert PLANTED.encode() not in path.read_bytes()


def test_the_plan_is_made_of_the_settings_and_survives_the_folder(config, tmp_path):
    settings = config(min_sites=3, client_weights={"A": 0.5}, weighting="paper_exact")
    plan = make_plan(settings.run, settings.training, ("A", "B", "C"), train_deadline_s=7.0)
    assert (plan.run_id, plan.rounds, plan.min_sites, plan.weighting) == (
        "run-1",
        2,
        3,
        Weighting.PAPER_EXACT,
    )
    prepare_run(tmp_path, plan)
    assert RunFolder(tmp_path).plan == plan


def test_the_same_run_again_gives_the_same_bits(config, make_site, finished, tmp_path):
    again = simulate(
        config(),
        tmp_path,
        lambda name: make_site(name, delta="ABC".index(name) + 1.0, scores=(0.1, 0.7, 0.4)),
    )
    assert hash_tensors(again.model) == hash_tensors(finished[1].model)


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("readiness", CohortError("cohort-empty", f"No study in /data/{PLANTED}.")),
        ("train", ModelError("site-failed", f"Loss of {PLANTED} became nan.")),
    ],
)
def test_a_failed_run_leaves_an_outcome_with_the_reason(config, make_site, tmp_path, method, fault):
    def build(name):
        return make_site(name, faults={} if name == "A" else {method: fault})

    with pytest.raises(QuorumError):
        simulate(config(), tmp_path, build)
    outcome = json.loads((tmp_path / "outcome.json").read_bytes())
    assert (outcome["status"], outcome["code"]) == ("failed", "quorum-missed")
    assert f"B ({fault.code}), C ({fault.code})" in outcome["detail"]
    assert PLANTED not in (tmp_path / "outcome.json").read_text()
    with pytest.raises(EngineError, match="Missing: B") as caught:
        read_outcome(tmp_path)
    assert caught.value.code == "quorum-missed"
    assert not (tmp_path / "model.safetensors").exists()


def test_an_outcome_whose_model_was_changed_is_refused(copy):
    model, _ = read_tensors(copy / "model.safetensors")
    write_tensors(copy / "model.safetensors", {name: array + 1e-6 for name, array in model.items()})
    with pytest.raises(EngineError) as caught:
        read_outcome(copy)
    assert caught.value.code == "model-mismatch"


def test_an_outcome_whose_model_is_missing_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        read_outcome(copy)


def test_a_run_without_an_outcome_is_refused(tmp_path):
    with pytest.raises(EngineError) as caught:
        read_outcome(tmp_path)
    assert caught.value.code == "engine-failed"
