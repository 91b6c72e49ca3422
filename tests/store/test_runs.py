# SPDX-License-Identifier: Apache-2.0
"""Runs in the database: each round exactly once, one driver at a time, and enough to go on after any end."""

import itertools
import json
import logging
import threading
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa

from ucadi.errors import FederationError, StoreError, StoreUnreachableError
from ucadi.federation.plans import RunPlan, TrainingPlan
from ucadi.federation.ports import Wish
from ucadi.federation.records import Progress, RoundRecord
from ucadi.store.audit import Audit
from ucadi.store.database import METADATA, Database
from ucadi.store.run_claims import RunClaims
from ucadi.store.run_events import EventWriter
from ucadi.store.runs import LIVE, KeptRound, Metric, RunState, RunStore, SiteUpdate
from ucadi.types import Task

PLAN = RunPlan(
    "run-1",
    TrainingPlan(Task.CLASSIFIER, "densenet3d", "compact", 4, 2, 0.01),
    rounds=3,
    seed=0,
    sites=("A", "B", "C"),
    client_weights={"A": 0.1},
)

PATHS = {
    RunState.QUEUED: [],
    RunState.RUNNING: [RunState.RUNNING],
    RunState.WAITING: [RunState.WAITING],
    RunState.STOPPED: [RunState.STOPPED],
    RunState.FAILED: [RunState.FAILED],
    RunState.COMPLETED: [RunState.RUNNING, RunState.COMPLETED],
}
"""How a run comes into each state."""

ALLOWED = {
    ("queued", "running"),
    ("queued", "waiting"),
    ("queued", "stopped"),
    ("queued", "failed"),
    ("running", "queued"),
    ("running", "waiting"),
    ("running", "stopped"),
    ("running", "completed"),
    ("running", "failed"),
    ("waiting", "queued"),
    ("waiting", "running"),
    ("waiting", "stopped"),
    ("waiting", "completed"),
    ("waiting", "failed"),
    ("stopped", "queued"),
    ("failed", "queued"),
}


@pytest.fixture
def store(database: Database) -> RunStore:
    """A store with one queued run."""
    runs = RunStore(database)
    runs.submit(PLAN, "hash-0")
    return runs


def record(number: int, validation: float | None = None, **changes) -> RoundRecord:
    """A round of A and B; C refused."""
    metrics = {"A": {"loss": 0.1 + 0.2, "validation": 1 / 3}, "B": {"loss": 2.0}}
    made = RoundRecord(number, ["A", "B"], {"C": "site-paused"}, metrics, validation, 1234)
    return replace(made, **changes)


def keep(store: RunStore, *validations: float | None) -> None:
    for number, validation in enumerate(validations, start=1):
        store.keep_round("run-1", record(number, validation), f"hash-{number}")


def codes(database: Database) -> list[str]:
    return [entry.action for entry in Audit(database).entries()]


# -- runs -------------------------------------------------------------------------------------------------


def test_a_submitted_run_is_queued_with_its_plan_as_it_was(store, database):
    run = store.run("run-1")
    assert (run.plan, run.plan.hash, run.initial_hash) == (PLAN, PLAN.hash, "hash-0")
    assert (run.state, run.reason, run.wish, run.driver) == (RunState.QUEUED, "", Wish.GO_ON, None)
    assert abs(run.created - time.time()) < 60
    assert Audit(database).entries()[0].details == {"plan": PLAN.hash, "model": "hash-0"}


def test_submitting_the_same_again_changes_nothing(store, database):
    assert store.submit(PLAN, "hash-0") == store.run("run-1")
    assert codes(database) == ["run-submitted"]


@pytest.mark.parametrize(("plan", "model"), [(replace(PLAN, rounds=4), "hash-0"), (PLAN, "hash-x")])
def test_another_plan_or_model_under_the_same_name_is_refused(store, plan, model):
    with pytest.raises(FederationError) as caught:
        store.submit(plan, model)
    assert caught.value.code == "run-exists"


def test_runs_are_listed_by_age_and_state(store):
    store.submit(replace(PLAN, run_id="a-later-one"), "hash-0")
    store.set_state("run-1", RunState.RUNNING)
    assert [run.run_id for run in store.runs()] == ["run-1", "a-later-one"]
    assert [run.run_id for run in store.runs(RunState.QUEUED)] == ["a-later-one"]
    assert [run.run_id for run in store.runs(*LIVE)] == ["run-1", "a-later-one"]


def test_an_unknown_run_is_named(store):
    for ask in (store.run, store.rounds, store.state, store.events, store.metrics, store.wish):
        with pytest.raises(FederationError, match="run-9") as caught:
            ask("run-9")
        assert caught.value.code == "run-unknown"


def test_a_plan_that_was_changed_in_the_database_is_damage(store, database):
    changed = json.dumps({**json.loads(plan_text(database)), "rounds": 4})
    with database.begin() as connection:
        connection.execute(METADATA.tables["runs"].update().values(plan=changed))
    with pytest.raises(StoreError) as caught:
        store.run("run-1")
    assert caught.value.code == "store-damaged"


def plan_text(database: Database) -> str:
    with database.read() as connection:
        return connection.execute(sa.select(METADATA.tables["runs"].c.plan)).scalar_one()


# -- states and wishes ------------------------------------------------------------------------------------


def test_only_sensible_changes_of_state_are_possible(store, database):
    for before, after in itertools.permutations(RunState, 2):
        run_id = f"{before}-{after}"
        store.submit(replace(PLAN, run_id=run_id), "hash-0")
        for state in PATHS[before]:
            store.set_state(run_id, state)
        told = Audit(database).head()
        if (before, after) in ALLOWED:
            store.set_state(run_id, after, "because")
            run = store.run(run_id)
            assert (run.state, run.reason) == (after, "because")
            details = Audit(database).entries(told.seq)[0].details
            assert details == {"from": before, "to": after, "reason": "because"}
        else:
            with pytest.raises(StoreError) as caught:
                store.set_state(run_id, after)
            assert caught.value.code == "store-conflict"
            assert store.run(run_id).state == before
            assert Audit(database).head() == told


def test_the_same_state_again_changes_the_reason_only(store, database):
    store.set_state("run-1", RunState.WAITING, "A is missing")
    store.set_state("run-1", RunState.WAITING, "B is\nmissing\x00")
    assert store.run("run-1").reason == "B is missing "
    assert codes(database) == ["run-submitted", "run-state"]


def test_a_wish_to_stop_outlasts_all_others_until_the_run_is_queued_again(store):
    store.set_state("run-1", RunState.RUNNING)
    assert store.set_wish("run-1", Wish.HAND_OVER)
    assert store.set_wish("run-1", Wish.GO_ON)
    assert store.set_wish("run-1", Wish.STOP, actor="somebody")
    assert not store.set_wish("run-1", Wish.HAND_OVER)
    assert store.wish("run-1") == Wish.STOP
    store.set_state("run-1", RunState.STOPPED)
    with pytest.raises(StoreError) as caught:
        store.set_wish("run-1", Wish.STOP)
    assert caught.value.code == "store-conflict"
    store.set_state("run-1", RunState.QUEUED)
    assert store.wish("run-1") == Wish.GO_ON


# -- rounds -----------------------------------------------------------------------------------------------


def test_a_round_comes_back_exactly_as_it_was_kept(store):
    kept = record(1, 0.1 + 0.2)
    assert store.keep_round("run-1", kept, "hash-1", update_bytes={"A": 700})
    assert [(k.record, k.model_hash) for k in store.rounds("run-1")] == [(kept, "hash-1")]
    assert isinstance(store.rounds("run-1")[0], KeptRound)
    assert store.updates("run-1") == [
        SiteUpdate(1, "A", True, 700, ""),
        SiteUpdate(1, "B", True, None, ""),
        SiteUpdate(1, "C", False, None, "site-paused"),
    ]
    assert store.metrics("run-1") == [
        Metric(1, "A", "loss", 0.1 + 0.2),
        Metric(1, "A", "validation", 1 / 3),
        Metric(1, "B", "loss", 2.0),
    ]


def test_the_same_round_again_changes_nothing(store, database):
    keep(store, None)
    told = codes(database)
    assert not store.keep_round("run-1", record(1), "hash-1")
    assert codes(database) == told
    assert len(store.rounds("run-1")) == 1


@pytest.mark.parametrize(
    ("changed", "model"),
    [(record(1), "hash-x"), (record(1, 0.5), "hash-1"), (record(1, missing={}), "hash-1")],
)
def test_another_content_for_a_kept_round_is_refused(store, changed, model):
    keep(store, None)
    with pytest.raises(StoreError) as caught:
        store.keep_round("run-1", changed, model)
    assert caught.value.code == "store-conflict"
    assert store.rounds("run-1")[0].record == record(1)


@pytest.mark.parametrize("number", [0, 3, 5, -1])
def test_rounds_out_of_order_are_refused(store, number):
    keep(store, None)
    with pytest.raises(StoreError) as caught:
        store.keep_round("run-1", record(number), "hash-1")
    assert caught.value.code == "store-conflict"


def test_nothing_follows_the_round_that_validates_the_last_model(store):
    keep(store, None, None, None, None)
    with pytest.raises(StoreError) as caught:
        store.keep_round("run-1", record(5), "hash-5")
    assert caught.value.code == "store-conflict"


@pytest.mark.parametrize("state", [RunState.STOPPED, RunState.FAILED])
def test_a_run_that_ended_takes_no_further_round_but_knows_the_last_one(store, state):
    keep(store, None)
    store.set_state("run-1", state)
    assert not store.keep_round("run-1", record(1), "hash-1")
    with pytest.raises(StoreError) as caught:
        store.keep_round("run-1", record(2), "hash-2")
    assert caught.value.code == "store-conflict"


def test_a_metric_whose_name_is_no_word_does_not_end_the_run(store):
    metrics = {"A": {"loss": 1.0, "a\x00": 2.0, "\ud800": 3.0, "x" * 1000: 4.0}}
    kept = record(1, metrics=metrics)
    store.keep_round("run-1", kept, "hash-1")
    assert store.metrics("run-1") == [Metric(1, "A", "loss", 1.0)]
    assert store.rounds("run-1")[0].record == kept


@pytest.mark.parametrize(
    ("validations", "last", "best", "score", "is_validated"),
    [
        ((), 0, 0, None, False),
        ((None,), 1, 1, None, False),
        ((0.5,), 1, 0, 0.5, False),
        ((0.5, 0.7, 0.7), 3, 1, 0.7, False),
        ((None, 0.7, 0.8, 0.75), 3, 2, 0.8, True),
        ((0.1, 0.2, 0.3, 0.4), 3, 3, 0.4, True),
    ],
)
def test_the_standing_tells_from_where_to_go_on(store, validations, last, best, score, is_validated):
    keep(store, *validations)
    standing = store.state("run-1")
    assert [r.validation for r in standing.records] == list(validations)
    assert standing.model_hashes == {n: f"hash-{n}" for n in range(last + 1)}
    assert (standing.last_round, standing.best_round, standing.best_validation, standing.is_validated) == (
        last,
        best,
        score,
        is_validated,
    )


def test_rounds_are_checked_against_the_audit_log(store, database):
    keep(store, None, 0.5)
    assert store.verify("run-1") == 2
    rounds = METADATA.tables["rounds"]
    with database.begin() as connection:
        connection.execute(rounds.update().where(rounds.c.round == 2).values(model_hash="hash-x"))
    with pytest.raises(StoreError, match="Round 2 ") as caught:
        store.verify("run-1")
    assert caught.value.code == "audit-broken"


def test_a_round_is_not_kept_when_it_cannot_be_audited(store, database, monkeypatch):
    def fail(*_: object) -> None:
        raise StoreUnreachableError("store-unreachable", "Gone.")

    monkeypatch.setattr(store._audit, "append", fail)
    with pytest.raises(StoreError):
        keep(store, None)
    assert RunStore(database).rounds("run-1") == []
    assert RunStore(database).metrics("run-1") == []


# -- events -----------------------------------------------------------------------------------------------


def test_events_are_read_from_where_one_stopped(store):
    lines = [Progress("update", 1, site) for site in "ABC"]
    for line in lines:
        store.add_event("run-1", line)
    store.submit(replace(PLAN, run_id="run-2"), "hash-0")
    store.add_event("run-2", Progress("missing", 1, "A", "site-\nlost\x00"))
    found = store.events("run-1")
    assert [each.progress for each in found] == lines
    assert [each.progress.site for each in store.events("run-1", after=found[0].seq, limit=1)] == ["B"]
    assert store.events("run-2")[0].progress.detail == "site- lost "


def test_a_writer_of_events_keeps_their_order_and_writes_all(store):
    writer = EventWriter(store, "run-1")
    for number in range(1, 501):
        writer(Progress("update", number, "A"))
    writer.close()
    assert [each.progress.round for each in store.events("run-1")] == list(range(1, 501))


def test_a_writer_of_events_lets_nobody_wait_while_the_database_is_gone(store, monkeypatch):
    written, is_gone = store.add_events, threading.Event()
    is_gone.set()

    def add_events(run_id: str, lines: list[tuple[float, Progress]]) -> None:
        if is_gone.is_set():
            raise StoreUnreachableError("store-unreachable", "Gone.")
        written(run_id, lines)

    monkeypatch.setattr(store, "add_events", add_events)
    writer = EventWriter(store, "run-1")
    started = time.monotonic()
    for number in range(1, 11):
        writer(Progress("update", number, "A"))
    assert time.monotonic() - started < 0.5
    time.sleep(0.3)
    is_gone.clear()
    deadline = time.monotonic() + 20
    while len(store.events("run-1")) < 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    writer.close()
    assert [each.progress.round for each in store.events("run-1")] == list(range(1, 11))


def test_a_writer_of_events_ends_also_when_the_database_stays_away(store, monkeypatch, caplog):
    def add_events(*_: object) -> None:
        raise StoreUnreachableError("store-unreachable", "Gone.")

    monkeypatch.setattr(store, "add_events", add_events)
    caplog.set_level(logging.INFO, "ucadi")
    writer = EventWriter(store, "run-1")
    writer(Progress("update", 1, "A"))
    started = time.monotonic()
    writer.close()
    assert time.monotonic() - started < 5
    assert "progress was lost" in [each.getMessage() for each in caplog.records]


# -- drivers ----------------------------------------------------------------------------------------------


def test_a_run_has_one_driver(store, database):
    mine, other = RunClaims(database), RunClaims(database)
    claim = mine.claim("run-1", "me")
    assert claim is not None
    assert store.run("run-1").driver == "me"
    assert other.claim("run-1", "you") is None
    assert mine.renew(claim)
    assert mine.release(claim)
    assert store.run("run-1").driver is None
    assert other.claim("run-1", "you") is not None
    assert not mine.renew(claim)
    assert not mine.release(claim)


def test_a_silent_driver_loses_the_run_and_cannot_write_any_more(store, database):
    dead, heir = RunClaims(database), RunClaims(database)
    old = dead.claim("run-1", "dead")
    assert heir.claim("run-1", "heir", 0.3) is None
    time.sleep(0.2)
    assert dead.renew(old)
    time.sleep(0.2)
    assert heir.claim("run-1", "heir", 0.3) is None, "it gave a sign"
    time.sleep(0.4)
    new = heir.claim("run-1", "heir", 0.3)
    assert new is not None
    assert new.token > old.token
    assert not dead.renew(old)
    for write in (
        lambda token: store.set_state("run-1", RunState.RUNNING, token=token),
        lambda token: store.set_wish("run-1", Wish.HAND_OVER, token=token),
        lambda token: store.keep_round("run-1", record(1), "hash-1", token=token),
    ):
        with pytest.raises(StoreError) as caught:
            write(old.token)
        assert caught.value.code == "store-conflict"
        write(new.token)


def test_a_jump_of_the_clock_takes_no_run_away(store, database, monkeypatch):
    mine, other = RunClaims(database), RunClaims(database)
    claim = mine.claim("run-1", "me")
    assert other.claim("run-1", "you", 20.0) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    assert other.claim("run-1", "you", 20.0) is None
    assert mine.renew(claim)


def test_the_same_driver_gets_its_run_back_at_once_and_is_audited_once(database, store):
    before = RunClaims(database).claim("run-1", "home-1")
    after = RunClaims(database).claim("run-1", "home-1")
    assert after is not None
    assert after.token > before.token
    assert store.run("run-1").token == after.token
    assert codes(database) == ["run-submitted", "run-claimed"]


@pytest.mark.parametrize("state", [RunState.STOPPED, RunState.FAILED, RunState.COMPLETED])
def test_a_run_that_ended_has_no_driver(store, database, state):
    for each in PATHS[state]:
        store.set_state("run-1", each)
    assert RunClaims(database).claim("run-1", "me") is None


CLAIM = """
import sys, time
from ucadi.store.database import Database
from ucadi.store.run_claims import RunClaims
claims = RunClaims(Database.open(sys.argv[1]))
claim = claims.claim("run-1", sys.argv[2], 1.0)
print("driver" if claim else "no", flush=True)
while claim and claims.renew(claim):
    time.sleep(0.1)
"""


@pytest.mark.e2e
def test_of_processes_that_want_a_run_at_once_one_gets_it_and_its_heir_follows(
    store, database, database_url, start_child
):
    children = {name: start_child(CLAIM, database_url, name) for name in ("one", "two", "three")}
    said = {name: child.stdout.readline() for name, child in children.items()}
    assert sorted(said.values()) == ["driver\n", "no\n", "no\n"]
    driver = store.run("run-1").driver
    assert said[driver] == "driver\n"
    claims = RunClaims(database)
    for _ in range(15):
        assert claims.claim("run-1", "heir", 1.0) is None
        time.sleep(0.1)
    children[driver].kill()
    children[driver].wait()
    killed = time.monotonic()
    while claims.claim("run-1", "heir", 1.0) is None:
        assert time.monotonic() - killed < 20
        time.sleep(0.1)
    assert time.monotonic() - killed > 0.8


KEEP = """
import sys
from ucadi.federation.records import RoundRecord
from ucadi.store.database import Database
from ucadi.store.runs import RunStore
store = RunStore(Database.open(sys.argv[1]))
while (number := store.state("run-1").last_round + 1) <= 60:
    record = RoundRecord(number, ["A"], {}, {"A": {"loss": number / 7}}, None, 1)
    store.keep_round("run-1", record, f"hash-{number}")
    print(number, flush=True)
"""


@pytest.mark.e2e
def test_processes_that_are_killed_while_they_keep_rounds_lose_none(database_url, start_child):
    database = Database.open(database_url)
    store = RunStore(database)
    store.submit(replace(PLAN, rounds=60), "hash-0")
    for stop_at in (10, 25, 40, None):
        child = start_child(KEEP, database_url)
        for line in child.stdout:
            if int(line) == stop_at:
                child.kill()
        child.wait()
        standing = store.state("run-1")
        assert standing.last_round >= (stop_at or 60), "what was reported is kept"
        assert [r.round for r in standing.records] == list(range(1, standing.last_round + 1))
    assert store.verify("run-1") == 60
    assert [m.value for m in store.metrics("run-1")] == [n / 7 for n in range(1, 61)]
    database.check()
    database.close()


PATIENT = """
import sys, time
from functools import partial
from ucadi.federation.records import Progress, RoundRecord
from ucadi.store.database import Database, patiently
from ucadi.store.run_events import EventWriter
from ucadi.store.runs import RunStore
store = RunStore(Database.open(sys.argv[1]))
tell = EventWriter(store, "run-1")
for number in range(1, 61):
    record = RoundRecord(number, ["A"], {}, {"A": {"loss": number / 7}}, None, 1)
    tell(Progress("round", number, ""))
    patiently(partial(store.keep_round, "run-1", record, f"hash-{number}"), 120.0)
    print(number, flush=True)
    time.sleep(0.05)
tell.close(60.0)
"""


@pytest.mark.e2e
def test_a_run_outlasts_a_database_that_goes_and_comes_back(database_url, start_child, outage):
    database = Database.open(database_url)
    store = RunStore(database)
    store.submit(replace(PLAN, rounds=60), "hash-0")
    child = start_child(PATIENT, database_url)
    for line in child.stdout:
        if int(line) in (5, 20, 40):
            with outage():
                time.sleep(1.0)
    assert child.communicate(timeout=60) == ("", "")
    assert [kept.record.round for kept in store.rounds("run-1")] == list(range(1, 61))
    assert [each.progress.round for each in store.events("run-1")] == list(range(1, 61))
    assert store.verify("run-1") == 60
    database.close()
