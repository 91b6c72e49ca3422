# SPDX-License-Identifier: Apache-2.0
"""Runs at the coordinator, in real databases that a store fills, here or in another process."""

import json
import subprocess
import sys
import textwrap
import time
from dataclasses import fields, replace

import pytest

from ucadi.errors import CheckpointError, ConfigError, FederationError
from ucadi.federation.plans import Aggregation, RunPlan, TrainingPlan, read_plan
from ucadi.federation.records import Progress, RoundRecord
from ucadi.io.checkpoint import NetworkCard, read_tensors, write_model, write_tensors
from ucadi.reporting.prometheus import FederationNumbers
from ucadi.store.audit import Audit
from ucadi.store.database import Database
from ucadi.store.members import Application, MemberStore
from ucadi.store.run_claims import RunClaims
from ucadi.store.runs import RunState, RunStore
from ucadi.tensors import hash_tensors
from ucadi.types import Task
from ucadi.workflows.plan_file import PlanFile, PlanRunSettings, describe_plan, load_plan
from ucadi.workflows.run_happenings import size_words, time_words
from ucadi.workflows.run_numbers import NumbersReader
from ucadi.workflows.runs import (
    RunReader,
    follow_run,
    initial_parameters,
    look_at_run,
    resume_run,
    stop_run,
    submit_run,
)

PLAN_FILE = """
config_version = 1

[run]
name = "run-1"
rounds = 3
seed = 1
min_sites = 2
{run}
[training]
task = "classifier"
network = "densenet3d"
preset = "compact"
iterations = 16
batch_size = 8
learning_rate = 0.004
"""


@pytest.fixture
def database(tmp_path):
    """An open, empty database."""
    opened = Database.open(f"sqlite:///{tmp_path / 'state.sqlite'}")
    yield opened
    opened.close()


@pytest.fixture
def plan_file(tmp_path):
    """Writes a plan file with further settings of ``[run]``."""

    def write(run=""):
        path = tmp_path / "plan.toml"
        path.write_text(PLAN_FILE.format(run=run))
        return path

    return write


@pytest.fixture
def store(database, make_run_plan):
    """The store with one running run of three rounds at sites A, B and C."""
    runs = RunStore(database)
    runs.submit(make_run_plan(rounds=3), "hash-0")
    runs.set_state("run-1", RunState.RUNNING)
    return runs


def record(number, score=None, sites=("A", "B"), missing=None):
    metrics = {site: {"loss": 0.5} | ({} if score is None else {"validation": score}) for site in sites}
    return RoundRecord(number, list(sites), missing or {}, metrics, score, 1000 * len(sites))


def tell(store, *lines):
    for kind, number, site, *detail in lines:
        store.add_event("run-1", Progress(kind, number, site, *detail))


def admit(database, site):
    """Make a site a member."""
    members = MemberStore(database)
    members.invite(site, f"invitation-{site}", "secret", time.time() + 60, "operator")
    members.apply(f"invitation-{site}", Application(site, "", f"key-{site}", "request", "1.0"))
    members.approve(site, f"key-{site}", "certificate", "operator")
    return members


def states_of(view):
    return {line.site: line.state for line in view.sites}


# -- the plan file ----------------------------------------------------------------------------------------


def test_a_plan_file_reaches_every_field_of_a_plan():
    own = {"run_id": "name", "training": None}
    assert {own.get(f.name, f.name) for f in fields(RunPlan)} - {None} == PlanRunSettings.model_fields.keys()
    training = PlanFile.model_fields["training"].annotation
    assert {f.name for f in fields(TrainingPlan)} == training.model_fields.keys()


def test_a_plan_file_without_more_has_the_plans_own_defaults(plan_file):
    plan = load_plan(plan_file())
    training = TrainingPlan(Task.CLASSIFIER, "densenet3d", "compact", 16, 8, 0.004)
    assert plan == RunPlan("run-1", training, rounds=3, seed=1)
    assert plan.hash == RunPlan("run-1", training, rounds=3, seed=1).hash


def test_settings_arrive_in_the_plan(plan_file):
    plan = load_plan(
        plan_file(
            'sites = ["A", "B", "C"]\nready_deadline_s = 5\ntrain_deadline_s = 60\npatience_s = 120\n'
            'aggregation = "buffered"\nbuffer_size = 2\nmetrics = ["loss"]\nweighting = "paper_exact"\n'
            "client_weights = { A = 0.5 }\n"
        )
    )
    assert (plan.sites, plan.buffer_size, plan.metrics) == (("A", "B", "C"), 2, ("loss",))
    assert (plan.ready_deadline_s, plan.train_deadline_s, plan.patience_s) == (5, 60, 120)
    assert plan.aggregation is Aggregation.BUFFERED
    assert dict(plan.client_weights) == {"A": 0.5}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('sites = ["A"]', "run.min_sites is 2, but run.sites names 1"),
        ('sites = ["A", "A"]', "run.sites names A twice"),
        ('sites = ["A", "B"]\nclient_weights = { C = 1 }', "run.client_weights names C"),
        ("buffer_size = 2", "run.buffer_size is 2, but run.aggregation is 'synchronous'"),
        ('aggregation = "buffered"', "run.buffer_size must be at least 1"),
        ("patience_s = 0", "run.patience_s"),
        ('metrics = ["accuracy"]', "run.metrics.0"),
        ('protection = "none"', "run.protection"),
        ("round = 3", "run.round: there is no such setting"),
        ('sites = ["../A", "B"]', "sites is out of bounds"),
    ],
)
def test_a_wrong_setting_is_quoted_as_written(plan_file, settings, said):
    with pytest.raises(ConfigError) as caught:
        load_plan(plan_file(settings))
    assert caught.value.code == "config-invalid"
    assert said in caught.value.detail


def test_a_plan_in_words_says_who_can_read_updates_and_what_leaves(make_run_plan):
    words = dict(describe_plan(make_run_plan(metrics=(), sites=(), train_deadline_s=5400.0)))
    assert "the coordinator can read" in words["Protection"]
    assert words["Leaves a site"].endswith("no metric")
    assert "every site of the federation" in words["Sites"]
    assert "90 minutes for its update" in words["Waiting"]
    assert "A 0.1" in dict(describe_plan(make_run_plan(client_weights={"A": 0.1})))["Aggregation"]


# -- submit -----------------------------------------------------------------------------------------------


def test_submitting_writes_the_folder_and_queues_the_run_once(tmp_path, database, plan_file):
    plan = load_plan(plan_file())
    run = submit_run(tmp_path / "runs", database, plan)
    folder = tmp_path / "runs" / "run-1"
    assert (run.state, run.plan) == (RunState.QUEUED, plan)
    assert read_plan(json.loads((folder / "plan.json").read_bytes())) == plan
    assert hash_tensors(read_tensors(folder / "initial.safetensors")[0]) == run.initial_hash
    assert folder.stat().st_mode & 0o777 == 0o700
    before = (folder / "plan.json").stat().st_mtime_ns
    assert submit_run(tmp_path / "runs", database, plan) == run
    assert (folder / "plan.json").stat().st_mtime_ns == before
    assert [entry.action for entry in Audit(database).entries()] == ["run-submitted"]
    with pytest.raises(FederationError) as caught:
        submit_run(tmp_path / "runs", database, replace(plan, rounds=4))
    assert caught.value.code == "run-exists"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run-1"]


def test_the_rest_of_a_killed_submission_is_replaced_but_no_rounds(tmp_path, database, plan_file):
    folder = tmp_path / "runs" / "run-1"
    folder.mkdir(parents=True)
    (folder / "initial.safetensors").write_bytes(b"half")
    plan = load_plan(plan_file())
    submit_run(tmp_path / "runs", database, plan)
    (folder / "rounds").mkdir()
    other = Database.open(f"sqlite:///{tmp_path / 'other.sqlite'}")
    with pytest.raises(FederationError) as caught:
        submit_run(tmp_path / "runs", other, plan)
    other.close()
    assert caught.value.code == "run-exists"
    assert (folder / "rounds").is_dir()


def test_a_run_can_start_from_a_model_of_the_same_network_only(tmp_path, plan_file):
    plan = load_plan(plan_file())
    trained = {name: array + 1 for name, array in initial_parameters(plan, None).items()}

    def release(name, **changes):
        card = NetworkCard(**{**vars(CARD), **changes})
        write_model(
            tmp_path / name,
            name=name,
            trained_on="nothing",
            cards={Task.CLASSIFIER: card},
            parameters={Task.CLASSIFIER: trained if name != "short" else {"w": next(iter(trained.values()))}},
            run={},
        )
        return tmp_path / name

    started = initial_parameters(plan, release("fitting"))
    assert hash_tensors(started) == hash_tensors(trained)
    for folder in (release("other", preset="paper"), release("short"), tmp_path / "nothing"):
        with pytest.raises(CheckpointError):
            initial_parameters(plan, folder)


CARD = NetworkCard("densenet3d", "compact", "", 1, ("A",), "plaintext", {})


# -- look -------------------------------------------------------------------------------------------------


def test_a_sites_state_follows_what_it_says(database, store):
    tell(store, ("ready", 1, "A"))
    assert states_of(look_at_run(database, "run-1")) == {"A": "ready", "B": "joined", "C": "joined"}
    tell(store, ("ready", 1, "B"), ("missing", 1, "C", "site-lost"))
    view = look_at_run(database, "run-1")
    assert states_of(view) == {"A": "training", "B": "training", "C": "missing"}
    assert [line.why for line in view.sites] == ["", "", "site-lost"]
    tell(store, ("update", 1, "A"))
    assert states_of(look_at_run(database, "run-1"))["A"] == "sent"
    store.keep_round("run-1", record(1, 0.25, missing={"C": "site-lost"}), "hash-1")
    view = look_at_run(database, "run-1")
    assert states_of(view) == dict.fromkeys("ABC", "called")
    assert [line.rounds for line in view.sites] == [1, 1, 0]
    assert (view.round, view.validations, view.best_round) == (2, ((0, 0.25),), 0)


def test_the_last_models_round_is_validating(database, store):
    for number in (1, 2, 3):
        store.keep_round("run-1", record(number, number / 10), f"hash-{number}")
    tell(store, *[("ready", 4, site) for site in "ABC"], ("validation", 4, "B"))
    view = look_at_run(database, "run-1")
    assert states_of(view) == {"A": "validating", "B": "sent", "C": "validating"}
    assert (view.trained_rounds, view.round) == (3, 4)
    store.keep_round("run-1", record(4, 0.15), "hash-3")
    store.set_state("run-1", RunState.COMPLETED)
    view = look_at_run(database, "run-1")
    assert (view.best_round, view.own_best) == (2, {"A": 2, "B": 2})
    assert states_of(view) == dict.fromkeys("ABC", "done")
    assert view.upload_bytes == 8000


def test_a_site_that_joins_and_one_that_is_revoked_are_seen(database, make_run_plan):
    runs = RunStore(database)
    runs.submit(make_run_plan(sites=()), "hash-0")
    reader = RunReader(database, "run-1")
    reader.look()
    members = admit(database, "D")
    look = reader.look()
    assert states_of(look.view) == {"D": "joined"}
    assert "D joined the federation" in [h.words for h in look.happenings]
    members.revoke("D", "lost laptop", "operator")
    look = reader.look()
    assert states_of(look.view) == {}
    assert [(h.kind, h.fields["state"]) for h in look.happenings] == [("member", "revoked")]
    runs.set_state("run-1", RunState.RUNNING)
    runs.keep_round("run-1", record(1, sites=("D", "E")), "hash-1")
    assert states_of(reader.look().view) == {"D": "revoked", "E": "called"}


def test_waiting_says_who_is_missing_until_something_happens(database, store):
    tell(store, ("ready", 1, "A"), ("waiting", 1, "", "Round 1: 1 sites take part, 2 are needed."))
    assert look_at_run(database, "run-1").waiting.startswith("Round 1: 1 sites")
    tell(store, ("ready", 1, "B"))
    assert look_at_run(database, "run-1").waiting == ""


def test_a_round_is_timed_from_the_end_of_the_one_before_in_three_parts(database, store):
    began = time.time()
    lines = [("ready", "A", 1), ("ready", "B", 2), ("update", "A", 5), ("update", "B", 7)]
    store.add_events("run-1", [(began - 10 + at, Progress(kind, 1, site)) for kind, site, at in lines])
    store.keep_round("run-1", record(1), "hash-1")
    (kept,) = look_at_run(database, "run-1").rounds
    assert kept.phase_seconds["ready"] == pytest.approx(1)
    assert kept.phase_seconds["train"] == pytest.approx(5)
    assert kept.seconds == pytest.approx(sum(kept.phase_seconds.values()))


def test_the_time_in_which_a_run_was_stopped_belongs_to_no_round(database, store):
    now = time.time()
    lines = [("ready", "A", -1000), ("resumed", "", -3), ("ready", "A", -2), ("update", "A", -1)]
    store.add_events("run-1", [(now + at, Progress(kind, 1, site)) for kind, site, at in lines])
    store.keep_round("run-1", record(1), "hash-1")
    (kept,) = look_at_run(database, "run-1").rounds
    assert kept.seconds == pytest.approx(3, abs=0.5)
    assert kept.phase_seconds["ready"] == pytest.approx(1)


def test_each_happening_is_told_once_and_in_order(database, store):
    reader = RunReader(database, "run-1")
    assert [h.kind for h in reader.look().happenings] == ["submitted", "state"]
    tell(store, ("ready", 1, "A"), ("missing", 1, "B", "site-failed"))
    store.keep_round("run-1", record(1, 0.5, missing={"B": "site-failed"}), "hash-1")
    told = reader.look().happenings
    assert [h.kind for h in told] == ["ready", "missing", "round"]
    assert "B is missing (site-failed): The site's training failed." in told[1].words
    assert "missing B (site-failed); 2.0 kB; the initial model scores 0.500" in told[2].words
    assert reader.look().happenings == ()
    for happening in told:
        json.dumps(happening.to_json(), allow_nan=False)


def test_following_ends_with_the_run_and_misses_nothing_another_process_writes(tmp_path, database, store):
    code = """
        import sys, time
        from ucadi.federation.records import Progress, RoundRecord
        from ucadi.store.database import Database
        from ucadi.store.runs import RunState, RunStore

        store = RunStore(Database.open(sys.argv[1]))
        for number in (1, 2, 3, 4):
            for site in "AB":
                store.add_event("run-1", Progress("ready", number, site))
                store.add_event("run-1", Progress("update" if number < 4 else "validation", number, site))
                time.sleep(0.01)
            metrics = {site: {"validation": number / 10} for site in "AB"}
            record = RoundRecord(number, ["A", "B"], {}, metrics, number / 10, 7)
            store.keep_round("run-1", record, f"hash-{number}")
        store.set_state("run-1", RunState.COMPLETED)
    """
    url = f"sqlite:///{tmp_path / 'state.sqlite'}"
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), url]) as child:
        told = [h for look in follow_run(database, "run-1", poll_s=0.02) for h in look.happenings]
        assert child.wait() == 0
    kinds = [h.kind for h in told]
    assert [h.fields["round"] for h in told if h.kind == "round"] == [1, 2, 3, 4]
    assert [kinds.count(kind) for kind in ("ready", "update", "validation")] == [8, 6, 2]
    assert [h.fields["state"] for h in told if h.kind == "state"] == ["running", "completed"]
    assert kinds[-1] == "state"


def test_a_watcher_holds_nobody_up_and_survives_a_database_that_is_away(tmp_path, database, store):
    looks = follow_run(database, "run-1", poll_s=0.01)
    next(looks)
    path = tmp_path / "state.sqlite"
    writer = Database.open(f"sqlite:///{path}")
    with writer.begin():
        assert next(looks).happenings == ()  # a writer's open transaction is not waited for
    writer.close()
    path.rename(tmp_path / "away")
    assert [h.kind for h in next(looks).happenings] == ["database"]
    assert next(looks).happenings == ()
    (tmp_path / "away").rename(path)
    store.set_state("run-1", RunState.FAILED, "Too few sites.")
    rest = list(looks)
    assert rest[-1].view.run.state is RunState.FAILED
    assert rest[-1].happenings[-1].words == "the run is failed: Too few sites."


# -- stop and resume --------------------------------------------------------------------------------------


def test_a_run_that_nobody_drives_stops_at_once_and_another_at_its_boundary(database, make_run_plan):
    runs = RunStore(database)
    runs.submit(make_run_plan(), "hash-0")
    assert stop_run(database, "run-1").state is RunState.STOPPED
    with pytest.raises(FederationError) as caught:
        stop_run(database, "run-1")
    assert caught.value.code == "run-state"
    runs.submit(make_run_plan(run_id="run-2"), "hash-0")
    RunClaims(database).claim("run-2", "driver")
    stopped = stop_run(database, "run-2")
    assert (stopped.state, stopped.wish.value) == (RunState.QUEUED, "stop")


@pytest.fixture
def stopped(tmp_path, database, make_run_plan, make_model):
    """The folder of all runs, with a run that stopped after its third round."""
    runs, models = RunStore(database), [make_model(n, seed=n) for n in range(4)]
    runs.submit(make_run_plan(rounds=5), models[0].hash)
    runs.set_state("run-1", RunState.RUNNING)
    folder = tmp_path / "runs" / "run-1"
    write_tensors(folder / "initial.safetensors", models[0].parameters)
    for number in (1, 2, 3):
        write_tensors(folder / "rounds" / f"{number:04d}.safetensors", models[number].parameters)
        (folder / "rounds" / f"{number:04d}.json").write_text("{}")
        runs.keep_round("run-1", record(number, number / 10), models[number].hash)
    (folder / "outcome.json").write_text("{}")
    runs.set_state("run-1", RunState.STOPPED)
    return tmp_path / "runs"


def test_resuming_goes_on_from_the_last_round(database, stopped):
    assert resume_run(stopped, database, "run-1") == 0
    standing = RunStore(database).state("run-1")
    assert (standing.run.state, standing.last_round) == (RunState.QUEUED, 3)
    assert not (stopped / "run-1" / "outcome.json").exists()
    with pytest.raises(FederationError) as caught:
        resume_run(stopped, database, "run-1")
    assert caught.value.code == "run-state"


def test_going_back_keeps_later_rounds_aside_as_they_were(database, stopped):
    folder = stopped / "run-1"
    before = {path.name: path.read_bytes() for path in (folder / "rounds").iterdir()}
    reader = RunReader(database, "run-1")
    reader.look()
    assert resume_run(stopped, database, "run-1", from_round=1) == 2
    left = sorted(path.name for path in (folder / "rounds").iterdir())
    assert left == ["0001.json", "0001.safetensors"]
    (aside,) = (folder / "aside").iterdir()
    put = {path.name: path.read_bytes() for path in aside.iterdir() if path.name != "outcome.json"}
    assert put == {name: data for name, data in before.items() if name not in left}
    look = reader.look()
    assert len(look.view.rounds) == 1
    assert [h.kind for h in look.happenings] == ["rolled-back", "resumed", "state"]
    assert [e.action for e in Audit(database).entries()][-2:] == ["run-rolled-back", "run-state"]


def test_a_damaged_model_or_a_missing_round_is_refused_before_anything_changes(database, stopped):
    path = stopped / "run-1" / "rounds" / "0003.safetensors"
    path.write_bytes((stopped / "run-1" / "rounds" / "0002.safetensors").read_bytes())
    with pytest.raises(CheckpointError):
        resume_run(stopped, database, "run-1")
    with pytest.raises(FederationError) as caught:
        resume_run(stopped, database, "run-1", from_round=4)
    assert caught.value.code == "round-unknown"
    assert RunStore(database).run("run-1").state is RunState.STOPPED
    assert not (stopped / "run-1" / "aside").exists()
    assert resume_run(stopped, database, "run-1", from_round=2) == 1


# -- numbers ----------------------------------------------------------------------------------------------


def test_prometheus_gets_runs_sites_and_the_last_round(database, store):
    admit(database, "D")
    tell(store, ("ready", 1, "A"), ("update", 1, "A"))
    store.keep_round("run-1", record(1, 0.5, missing={"B": "site-lost", "C": "site-lost"}), "hash-1")
    reader = NumbersReader(database)
    numbers = reader.numbers()
    assert isinstance(numbers, FederationNumbers)
    (run,) = numbers.runs
    assert (run.round, run.participants, run.missing) == (1, 2, {"site-lost": 2})
    assert (run.validation, run.site_validation) == (0.5, {"A": 0.5, "B": 0.5})
    assert numbers.sites_by_state["approved"] == 1
    store.set_state("run-1", RunState.FAILED)
    assert reader.numbers().runs == reader.numbers().runs
    text = reader.text().decode()
    assert 'ucadi_runs{state="failed"} 1.0' in text
    assert 'ucadi_run_upload_bytes_total{run="run-1"} 2000.0' in text


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (48_300_000, "48.3 MB"), (2e15, "2000.0 TB")],
)
def test_sizes_are_said_in_decimal_units(size, words):
    assert size_words(int(size)) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.25, "0.2 s"), (59.9, "59.9 s"), (3661.0, "1:01:01")])
def test_times_are_said_shortly(seconds, words):
    assert time_words(seconds) == words
