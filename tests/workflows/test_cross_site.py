# SPDX-License-Identifier: Apache-2.0
"""The cross-site evaluation of a run over real sites in this process, and what it leaves on disk."""

import csv
import json

import numpy as np
import pytest

from ucadi.config import Policy, SiteSettings
from ucadi.engines.inprocess import InProcessTransport
from ucadi.errors import ConfigError, EngineError, FederationError, UcadiError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Checkpoint, Coordinator
from ucadi.federation.plans import plan_document
from ucadi.federation.ports import Wish
from ucadi.federation.rounds import run_rounds
from ucadi.imaging.presets import preset_named
from ucadi.io.checkpoint import write_json, write_tensors
from ucadi.learning.samples import ClassifierSamples
from ucadi.models.parameters import parameters_of
from ucadi.models.registry import build_network
from ucadi.store.audit import Audit
from ucadi.store.database import Database
from ucadi.store.evaluations import EvaluationStore
from ucadi.store.runs import RunStore
from ucadi.tensors import hash_tensors
from ucadi.types import Task
from ucadi.workflows.cross_site import (
    evaluate_across_sites,
    evaluate_requested,
    matrix_markdown,
    read_matrix,
    request_evaluation,
    requested_evaluation,
    require_matrix,
)
from ucadi.workflows.kept_models import read_run
from ucadi.workflows.plan_file import load_plan
from ucadi.workflows.release_card import network_record
from ucadi.workflows.site_runtime import LocalTrainer, build_site

SCORES = {"A": (0.2, 0.9, 0.5), "B": (0.1, 0.3, 0.8), "C": (0.4, 0.4, 0.4)}


class Folder:
    """Keeps the rounds of a run in its folder, as a coordinator's desk does."""

    def __init__(self, folder, sites):
        self.folder, self.sites = folder, sites

    def members(self):
        return self.sites

    def wish(self):
        return Wish.GO_ON

    def keep(self, record, model):
        name = self.folder / "rounds" / f"{record.round:04d}"
        if record.participants:
            write_tensors(name.with_suffix(".safetensors"), model.parameters)
        write_json(name.with_suffix(".json"), {**vars(record), "model_hash": model.hash})

    def wait(self, shortfall):
        return False


@pytest.fixture
def make_sites(make_site):
    """Builds the three sites, as each job of an engine does anew."""
    return lambda: {name: make_site(name, scores=scores) for name, scores in SCORES.items()}


@pytest.fixture
def sites(make_sites):
    return make_sites()


@pytest.fixture
def run(tmp_path, make_run_plan, make_model, make_sites):
    """The folder of a real run of two rounds at three sites."""
    folder, plan, model = tmp_path / "run-1", make_run_plan(), make_model()
    write_json(folder / "plan.json", plan_document(plan))
    write_tensors(folder / "initial.safetensors", model.parameters)
    coordinator = Coordinator(plan, Checkpoint.at_start(model), PlaintextCipher())
    sites = make_sites()
    run_rounds(coordinator, InProcessTransport(sites), Folder(folder, sites))
    return folder


def values(matrix):
    return {row.candidate.round: {s: c.value for s, c in row.cells.items()} for row in matrix.rows}


def test_models_of_a_real_run_are_measured_at_all_its_sites(run, sites):
    matrix = evaluate_across_sites(run, InProcessTransport(sites), sites)
    assert values(matrix) == {n: {site: SCORES[site][n] for site in SCORES} for n in range(3)}
    assert [row.candidate.labels for row in matrix.rows] == [
        ("best for C",),
        ("best for A",),
        ("best", "last", "best for B"),
    ]
    assert [row.mean for row in matrix.rows] == [record.validation for record in read_run(run).records]


def test_the_matrix_is_read_back_as_it_was(run, sites):
    matrix = evaluate_across_sites(run, InProcessTransport(sites), sites)
    assert read_matrix(run) == matrix
    assert require_matrix(run) == (matrix, Task.CLASSIFIER)


def test_the_table_for_people_says_that_no_interval_came(run, sites):
    matrix = evaluate_across_sites(run, InProcessTransport(sites), sites, ["best"])
    text = matrix_markdown(matrix, Task.CLASSIFIER)
    assert "| best | 2 | 0.500 | 0.800 | 0.400 | 0.567 |" in text
    assert "No site sent an interval" in text


CERTAIN = ("validation", "validation_studies", "validation_low", "validation_high")


@pytest.fixture
def trained(tmp_path, make_run_plan, monkeypatch):
    """Real sites with noise for patients, and the folder of a run that asks how sure they are."""
    counts = {"A": (6, 6), "B": (9, 5), "C": (8, 2)}

    def samples(self, training, split):
        labels = np.repeat([0, 1], counts[self._name])
        rng = np.random.default_rng(ord(self._name))
        slices = tuple(rng.integers(-1000, 200, (12, 24, 24)).astype(np.int16) for _ in labels)
        return ClassifierSamples(slices, labels, preset_named("compact"))

    monkeypatch.setattr(LocalTrainer, "_load_samples", samples)
    settings = SiteSettings(cohort=tmp_path, cache=tmp_path, min_studies=8, min_class_studies=5)
    folder, plan = tmp_path / "run-1", make_run_plan(metrics=CERTAIN)
    write_json(folder / "plan.json", plan_document(plan))
    parameters = parameters_of(build_network(plan.training.network, plan.training.task, plan.seed))
    write_tensors(folder / "initial.safetensors", parameters)
    return folder, {name: build_site(name, settings) for name in counts}


def test_real_sites_report_intervals_where_the_plan_asks(trained):
    folder, sites = trained
    matrix = evaluate_across_sites(folder, InProcessTransport(sites), sites, ["last"])
    cells = matrix.rows[0].cells
    for site, studies in (("A", 12), ("B", 14)):
        cell = cells[site]
        assert cell.studies == studies
        assert 0 <= cell.low < cell.value < cell.high <= 1
        assert (cell.low, cell.value, cell.high) == tuple(
            round(v, 4) for v in (cell.low, cell.value, cell.high)
        )
    assert cells["C"].reason == "not-measured", "two studies of a class are too few to speak of"
    text = matrix_markdown(matrix, Task.CLASSIFIER)
    assert f"{cells['A'].value:.3f} [{cells['A'].low:.3f}, {cells['A'].high:.3f}] (n = 12)" in text
    assert "No site sent an interval" not in text
    assert read_matrix(folder) == matrix


def test_the_card_quotes_what_sites_reported_in_a_round(run, make_run_plan):
    path = run / "rounds" / "0003.json"  # judges the model of round 2
    document = json.loads(path.read_bytes())
    certain = {"validation_studies": 20.0, "validation_low": 0.4, "validation_high": 0.6}
    document["metrics"]["A"].update(certain)
    document["metrics"]["B"].update(certain)  # its score of 0.8 is not in there
    write_json(path, document)
    sites = network_record(read_run(run), 2, None)["sites"]
    assert (sites["A"]["interval_95"], sites["A"]["validation_studies"]) == ([0.4, 0.6], 20)
    assert (sites["B"]["interval_95"], sites["B"]["validation"]) == (None, 0.8)


PLAN = """
config_version = 1
[run]
name = "run-1"
rounds = 2
seed = 0
metrics = {metrics}
[training]
task = "classifier"
network = "densenet3d"
preset = "compact"
iterations = 4
batch_size = 2
learning_rate = 0.01
"""


def test_a_plan_file_may_ask_for_intervals(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN.format(metrics=list(CERTAIN)))
    assert load_plan(tmp_path / "plan.toml").metrics == CERTAIN


@pytest.mark.parametrize("metrics", [["validation", "validation_low"], ["loss", "validation_studies"]])
def test_a_plan_file_that_asks_for_half_of_it_is_refused(tmp_path, metrics):
    (tmp_path / "plan.toml").write_text(PLAN.format(metrics=metrics))
    with pytest.raises(ConfigError) as caught:
        load_plan(tmp_path / "plan.toml")
    assert "run.metrics names" in str(caught.value)


def test_nobody_agrees_to_more_numbers_than_before_without_a_word(make_run_plan):
    assert make_run_plan().metrics == Policy().metrics == ("loss", "validation")


def test_the_table_for_programs_has_a_line_per_model_and_site(run, sites):
    evaluate_across_sites(run, InProcessTransport(sites), sites, ["all"])
    with (run / "evaluation" / "matrix.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 9
    assert {(line["round"], line["site"]): float(line["value"]) for line in lines}["1", "B"] == 0.3


class Breaking(InProcessTransport):
    """Ends after some answers, as an engine does that is stopped."""

    left = 4

    def receive(self):
        self.left -= 1
        if self.left < 0:
            raise EngineError("interrupted", "The engine stopped.")
        return super().receive()


def test_an_evaluation_that_was_broken_off_asks_only_for_the_rest(run, sites, make_site):
    with pytest.raises(EngineError):
        evaluate_across_sites(run, Breaking(sites), sites)
    broken = read_matrix(run)
    known = sum(cell.value is not None for row in broken.rows for cell in row.cells.values())
    assert known == 3
    again = {name: make_site(name, scores=(0.0, *scores[1:])) for name, scores in SCORES.items()}
    matrix = evaluate_across_sites(run, InProcessTransport(again), again)
    assert values(matrix)[0] == {site: SCORES[site][0] for site in SCORES}, "the first row was known"


def test_a_damaged_matrix_is_made_again(run, sites):
    evaluate_across_sites(run, InProcessTransport(sites), sites)
    for damage in ("{", "[]", '{"rows": [3]}'):
        (run / "evaluation" / "matrix.json").write_text(damage)
        assert read_matrix(run) is None
        assert len(evaluate_across_sites(run, InProcessTransport(sites), sites).rows) == 3


def test_sites_that_the_plan_does_not_call_are_not_asked(run, sites, make_site):
    document = json.loads((run / "plan.json").read_bytes())
    document.update(sites=["A", "B"], min_sites=2)
    (run / "plan.json").write_text(json.dumps(document))
    assert evaluate_across_sites(run, InProcessTransport(sites), sites).sites == ("A", "B")


@pytest.fixture
def store(run, tmp_path):
    """The scores of a database that knows the run."""
    database = Database.open(f"sqlite:///{tmp_path / 'store.sqlite'}")
    kept = read_run(run)
    RunStore(database).submit(kept.plan, kept.hashes[0])
    yield EvaluationStore(database)
    database.close()


def test_the_scores_are_kept_among_the_runs_numbers_and_audited(run, make_sites, store, tmp_path):
    for _ in range(2):
        sites = make_sites()
        evaluate_across_sites(run, InProcessTransport(sites), sites, store=store)
    scores = store.scores("run-1")
    assert {(score.round, score.site): score.value for score in scores} == {
        (n, site): SCORES[site][n] for n in range(3) for site in SCORES
    }
    assert {score.model_hash for score in scores} == set(read_run(run).hashes.values())
    database = Database.open(f"sqlite:///{tmp_path / 'store.sqlite'}")
    assert [e.action for e in Audit(database).entries()].count("models-evaluated") == 2
    database.close()


def test_a_request_is_written_down_met_once_and_closed(run, sites, store):
    assert evaluate_requested(run, InProcessTransport(sites), sites, store) is None
    candidates = request_evaluation(run, ["best", "1"])
    assert [candidate.round for candidate in candidates] == [1, 2]
    assert requested_evaluation(run) == ("best", "1")
    there = {name: site for name, site in sites.items() if name != "C"}
    matrix = evaluate_requested(run, InProcessTransport(there), sites, store)
    assert [row.cells["C"].reason for row in matrix.rows] == ["site-lost"] * 2
    assert requested_evaluation(run) is None
    assert len(store.scores("run-1")) == 4


def test_a_request_outlives_an_engine_that_ends(run, sites, make_sites, store):
    request_evaluation(run, ["all"])
    with pytest.raises(EngineError):
        evaluate_requested(run, Breaking(sites), sites, store)
    assert requested_evaluation(run) == ("all",)
    matrix = evaluate_requested(run, InProcessTransport(make_sites()), sites, store)
    assert all(row.is_complete for row in matrix.rows)
    assert requested_evaluation(run) is None


def test_a_request_that_cannot_be_met_is_closed_with_its_reason(run, sites, store, make_model):
    request_evaluation(run, ["1"])
    write_tensors(run / "rounds" / "0001.safetensors", make_model(seed=5).parameters)
    with pytest.raises(FederationError) as caught:
        evaluate_requested(run, InProcessTransport(sites), sites, store)
    assert caught.value.code == "model-mismatch"
    assert requested_evaluation(run) is None


def test_a_request_for_a_model_that_is_not_kept_is_refused_at_once(run):
    with pytest.raises(FederationError) as caught:
        request_evaluation(run, ["9"])
    assert caught.value.code == "model-not-kept"
    assert requested_evaluation(run) is None


@pytest.mark.parametrize("damage", ["{", "[]", '{"wanted": "all"}', '{"wanted": [1]}'])
def test_a_damaged_request_is_refused_in_plain_words(run, damage):
    request_evaluation(run, ["best"])
    (run / "evaluation" / "wanted.json").write_text(damage)
    with pytest.raises(UcadiError) as caught:
        requested_evaluation(run)
    assert caught.value.code == "checkpoint-invalid"


def test_a_run_without_a_matrix_says_how_to_get_one(run):
    with pytest.raises(FederationError) as caught:
        require_matrix(run)
    assert caught.value.code == "evaluation-missing"
    assert "ucadi model evaluate" in str(caught.value)


def test_only_the_runs_own_models_travel(run, sites, make_model):
    write_tensors(run / "rounds" / "0001.safetensors", make_model(seed=5).parameters)
    with pytest.raises(FederationError) as caught:
        evaluate_across_sites(run, InProcessTransport(sites), sites, ["1"])
    assert caught.value.code == "model-mismatch"
    assert hash_tensors(make_model(seed=5).parameters) not in read_run(run).hashes.values()
