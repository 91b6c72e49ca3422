# SPDX-License-Identifier: Apache-2.0
import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest
import sqlalchemy as sa

from ucadi.errors import ConfigError, StoreError
from ucadi.store.database import Database
from ucadi.store.site_state import PAUSED, Decision, KeptReply, SiteState

HASH = hashlib.sha256(b"body").hexdigest()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/state.sqlite"


@pytest.fixture
def open_state(url):
    """Opens the same site's memory anew, as another process would."""
    opened = []

    def start():
        opened.append(SiteState(Database.open(url)))
        return opened[-1]

    yield start
    for state in opened:
        state.close()


@pytest.fixture
def state(open_state):
    return open_state()


def execute(url, statement, **values):
    """Changes the database behind the state's back."""
    database = Database.open(url)
    with database.begin() as conn:
        conn.execute(sa.text(statement), values)
    database.close()


def test_a_plan_waits_when_it_is_first_seen_and_is_seen_once(state, open_state, make_run_plan):
    plan = make_run_plan()
    first = state.see(plan)
    assert (first.decision, first.decided_by, first.decided_at) == (Decision.WAITING, "", None)
    assert open_state().see(plan) == first
    assert state.plans() == (first,)
    assert first.plan == plan


def test_a_decision_is_seen_by_every_process(state, open_state, make_run_plan):
    seen = state.see(make_run_plan())
    assert open_state().decide(seen, Decision.REJECTED, "ann", "no such study here")
    now = state.see(make_run_plan())
    assert (now.decision, now.decided_by, now.reason) == (Decision.REJECTED, "ann", "no such study here")
    assert now.decided_at is not None


def test_of_two_decisions_at_the_same_moment_only_the_first_counts(state, make_run_plan):
    seen = state.see(make_run_plan())
    assert state.decide(seen, Decision.REJECTED, "ann")
    assert not state.decide(seen, Decision.APPROVED, "bob")
    assert state.find(seen.short).decision is Decision.REJECTED


def test_only_one_form_of_a_run_is_approved_at_a_time(state, make_run_plan):
    old, new = make_run_plan(), make_run_plan(rounds=9)
    assert state.decide(state.see(old), Decision.APPROVED, "ann")
    key = KeptReply("name", "run-1", 1, HASH, 1.0)
    state.keep_reply(key)
    assert [seen.plan for seen in state.other_forms(new)] == [old]
    assert state.decide(state.see(new), Decision.APPROVED, "ann")
    assert state.see(old).decision is Decision.REJECTED
    assert "another form" in state.see(old).reason
    assert state.kept_reply("name") is None, "what was made for the other form is not sent"
    assert state.other_forms(make_run_plan(run_id="run-2")) == ()


def test_a_plan_is_found_by_the_beginning_of_its_hash(state, make_run_plan):
    seen = state.see(make_run_plan())
    for n in range(16):
        state.see(make_run_plan(seed=n + 1))
    assert state.find(seen.short) == seen
    assert state.find(seen.hash.upper()[:20]) == seen
    for unknown in ("", "zz", "0" * 64, "%"):
        with pytest.raises(ConfigError) as caught:
            state.find(unknown)
        assert caught.value.code == "plan-unknown"
    first_digits = [plan.hash[0] for plan in state.plans()]
    twice = next(digit for digit in first_digits if first_digits.count(digit) > 1)
    with pytest.raises(ConfigError, match="There are"):
        state.find(twice)


def test_a_coordinator_cannot_fill_the_memory_with_plans(state, make_run_plan, monkeypatch):
    monkeypatch.setattr("ucadi.store.site_state._MOST_WAITING", 20)
    for seed in range(23):
        assert state.see(make_run_plan(seed=seed)).decision is Decision.WAITING
    assert len(state.plans()) == 20
    last = state.see(make_run_plan(seed=22))
    assert not state.decide(last, Decision.APPROVED, "ann"), "what is not written down cannot be approved"
    assert state.decide(state.find(make_run_plan(seed=0).hash), Decision.REJECTED, "ann")
    assert state.decide(state.see(make_run_plan(seed=22)), Decision.APPROVED, "ann")


def test_a_stored_plan_that_was_changed_is_not_believed(state, url, make_run_plan):
    seen = state.see(make_run_plan())
    execute(url, "UPDATE site_plans SET document = replace(document, '\"rounds\": 2', '\"rounds\": 999')")
    changed = state.find(seen.short)
    assert changed.document["rounds"] == 999
    with pytest.raises(StoreError) as caught:
        _ = changed.plan
    assert caught.value.code == "store-damaged"
    with pytest.raises(StoreError):
        _ = replace(seen, document={"rounds": 1}).plan


def test_everything_that_leaves_is_listed_in_its_order(state, open_state):
    state.note_sent("join", 10, HASH, recipient="hub")
    state.note_sent("update", 2**40, HASH, run_id="run-1", round_number=3, protection="plaintext")
    open_state().note_sent("refusal", 5, HASH, run_id="run-2", round_number=1)
    rows = open_state().sent()
    assert [row.number for row in rows] == [1, 2, 3]
    assert [(row.kind, row.run_id, row.round, row.size_bytes) for row in rows] == [
        ("join", "", 0, 10),
        ("update", "run-1", 3, 2**40),
        ("refusal", "run-2", 1, 5),
    ]
    assert rows[0].recipient == "hub"
    assert state.sent(run_id="run-1") == rows[1:2]
    assert state.sent(after=2) == rows[2:]
    assert state.sent(last=2) == rows[1:]


def test_the_list_of_what_left_is_checked_against_the_hash_chain(state):
    for size in range(5):
        state.note_sent("update", size, HASH, run_id="run-1", round_number=1)
    state.set_flag(PAUSED, True, "ann")
    assert state.verify() == 6


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE site_sent SET size_bytes = 7 WHERE number = 2",
        "UPDATE site_sent SET sha256 = 'x' WHERE number = 3",
        "DELETE FROM site_sent WHERE number = 1",
        "DELETE FROM site_sent WHERE number = 3",
        "UPDATE audit SET details = replace(details, 'run-1', 'run-2')",
        "DELETE FROM audit WHERE seq = 2",
        "INSERT INTO site_sent SELECT 9, time, kind, run_id, round, size_bytes, sha256, protection, recipient"
        " FROM site_sent WHERE number = 1",
    ],
)
def test_a_list_that_was_changed_afterwards_is_noticed(state, url, change):
    for size in range(3):
        state.note_sent("update", size, HASH, run_id="run-1", round_number=1)
    execute(url, change)
    with pytest.raises(StoreError) as caught:
        state.verify()
    assert caught.value.code == "audit-broken"


def test_flags_and_status_are_seen_by_every_process(state, open_state):
    other = open_state()
    assert not other.flag(PAUSED)
    state.set_flag(PAUSED, True, "ann")
    assert other.flag(PAUSED)
    state.set_flag(PAUSED, False, "ann")
    assert not other.flag(PAUSED)
    state.set_status("connection", "lost")
    state.set_status("connection", {"state": "connected"})
    value, when = other.status()["connection"]
    assert value == {"state": "connected"}
    assert when > 1.7e9
    assert set(other.status()) == {"connection"}, "flags are no status"


def test_old_replies_are_those_of_earlier_rounds_and_those_that_are_old(state):
    state.keep_reply(KeptReply("a", "run-1", 1, HASH, 100.0))
    state.keep_reply(KeptReply("b", "run-1", 2, HASH, 100.0))
    state.keep_reply(KeptReply("c", "run-2", 1, HASH, 100.0))
    assert [reply.name for reply in state.old_replies("run-1", 2, 0.0)] == ["a"]
    assert {reply.name for reply in state.old_replies("run-1", 1, 200.0)} == {"a", "b", "c"}
    state.drop_reply("a")
    assert state.reply_names() == {"b", "c"}


WRITE_TWENTY = """
import sys
from ucadi.store.database import Database
from ucadi.store.site_state import SiteState

state = SiteState(Database.open(sys.argv[1]))
for size in range(20):
    state.note_sent("update", size, "00")
state.close()
"""


def test_several_processes_write_one_unbroken_list(state, url):
    writers = [subprocess.Popen([sys.executable, "-c", WRITE_TWENTY, url]) for _ in range(2)]
    for size in range(20):
        state.note_sent("update", size, HASH)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [row.number for row in state.sent()] == list(range(1, 61))
    assert state.verify() == 60
