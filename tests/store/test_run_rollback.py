# SPDX-License-Identifier: Apache-2.0
"""Setting a run back: only what stopped, nothing is erased, and who drove it before is shut out."""

import pytest

from ucadi.errors import FederationError, StoreError
from ucadi.federation.plans import RunPlan, TrainingPlan
from ucadi.federation.records import RoundRecord
from ucadi.store.audit import Audit
from ucadi.store.run_claims import RunClaims
from ucadi.store.run_rollback import ROLLED_BACK, roll_back
from ucadi.store.runs import RunState, RunStore
from ucadi.types import Task

PLAN = RunPlan("run-1", TrainingPlan(Task.CLASSIFIER, "densenet3d", "compact", 4, 2, 0.01), rounds=3, seed=0)


def record(number, score=0.5):
    return RoundRecord(number, ["A", "B"], {"C": "site-lost"}, {"A": {"validation": score}}, score, 10)


@pytest.fixture
def store(database):
    """A run that drove three rounds and stopped."""
    runs = RunStore(database)
    runs.submit(PLAN, "hash-0")
    runs.set_state("run-1", RunState.RUNNING)
    for number in (1, 2, 3):
        runs.keep_round("run-1", record(number), f"hash-{number}")
    runs.set_state("run-1", RunState.STOPPED)
    return runs


def test_later_rounds_leave_the_run_and_stay_in_the_audit_log(database, store):
    assert roll_back(database, "run-1", 1, actor="operator") == 2
    standing = store.state("run-1")
    assert (standing.last_round, dict(standing.model_hashes)) == (1, {0: "hash-0", 1: "hash-1"})
    assert {u.round for u in store.updates("run-1")} == {m.round for m in store.metrics("run-1")} == {1}
    assert [(e.progress.kind, e.progress.round) for e in store.events("run-1")] == [(ROLLED_BACK, 1)]
    entry = Audit(database).entries()[-1]
    assert (entry.actor, entry.action, entry.subject) == ("operator", "run-rolled-back", "run-1")
    assert entry.details == {"to": 1, "aside": {"2": "hash-2", "3": "hash-3"}}
    Audit(database).verify()


def test_the_run_goes_on_with_other_rounds_and_can_be_set_back_again(database, store):
    for _ in range(2):
        roll_back(database, "run-1", 1)
        store.set_state("run-1", RunState.QUEUED)
        store.set_state("run-1", RunState.RUNNING)
        store.keep_round("run-1", record(2, score=0.9), "hash-other")
        assert store.state("run-1").best_validation == 0.9
        assert store.verify("run-1") == 2
        store.set_state("run-1", RunState.STOPPED)


def test_setting_back_to_where_it_stands_changes_nothing(database, store):
    assert roll_back(database, "run-1", 3) == 0
    assert not store.events("run-1")


def test_whoever_drove_the_run_before_can_write_no_more(database, store):
    store.set_state("run-1", RunState.QUEUED)
    claim = RunClaims(database).claim("run-1", "driver")
    store.set_state("run-1", RunState.STOPPED, token=claim.token)
    roll_back(database, "run-1", 0)
    store.set_state("run-1", RunState.QUEUED)
    with pytest.raises(StoreError) as caught:
        store.keep_round("run-1", record(1), "hash-late", token=claim.token)
    assert caught.value.code == "store-conflict"


@pytest.mark.parametrize("number", [-1, 4])
def test_a_round_that_is_not_there_is_refused(database, store, number):
    with pytest.raises(FederationError) as caught:
        roll_back(database, "run-1", number)
    assert caught.value.code == "round-unknown"
    assert store.state("run-1").last_round == 3


def test_a_run_that_goes_on_or_is_complete_is_not_set_back(database, store):
    for state in (RunState.QUEUED, RunState.RUNNING, RunState.COMPLETED):
        store.set_state("run-1", state)
        with pytest.raises(FederationError) as caught:
            roll_back(database, "run-1", 1)
        assert caught.value.code == "run-state"
    with pytest.raises(FederationError) as caught:
        roll_back(database, "run-2", 1)
    assert caught.value.code == "run-unknown"
