# SPDX-License-Identifier: Apache-2.0
"""Jobs of a run at the coordinator, with a real home and database; sites answer in this process."""

import dataclasses
import errno
import json
import shutil
import threading
import time

import pytest

from ucadi.engines.inprocess import InProcessTransport
from ucadi.errors import CheckpointError, EngineError, QuorumError
from ucadi.federation.ports import Wish
from ucadi.federation.records import Progress
from ucadi.store.audit import Audit
from ucadi.store.members import MemberStore
from ucadi.store.runs import RunState, RunStore
from ucadi.tensors import hash_tensors
from ucadi.workflows import coordinate as module
from ucadi.workflows.coordinate import coordinate
from ucadi.workflows.coordinator_home import init_coordinator, settings_from
from ucadi.workflows.federate import RunFolder, prepare_run, read_outcome
from ucadi.workflows.runs import resume_run

APPROVED = frozenset("ABC")


@pytest.fixture(scope="module")
def made_home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "coordinator"
    settings = settings_from(name="test", host="127.0.0.1", port=1, api_port=2, retry_s=0.05)
    return init_coordinator(folder, settings)


class Cut:
    """A transport that ends with the engine before some answer, as when the process is killed there."""

    def __init__(self, inner, answers):
        self._inner, self._left = inner, answers

    def send(self, exchange):
        self._inner.send(exchange)

    def receive(self):
        answer = self._inner.receive()
        if answer is not None:
            if not self._left:
                raise EngineError("interrupted", "killed")
            self._left -= 1
        return answer

    def abandon(self):
        self._inner.abandon()


class Bench:
    """A home with one run, and the sites that answer."""

    def __init__(self, home, plan, make_site, monkeypatch):
        self.home = home
        self.plan = plan
        self.make_site = make_site
        self.database = home.open_database()
        self.runs = RunStore(self.database)
        self.connected = set(APPROVED)
        monkeypatch.setattr(MemberStore, "approved", lambda store: APPROVED)
        monkeypatch.setattr(module._Desk, "_connected", lambda desk: frozenset(self.connected))
        self.runs.submit(plan, prepare_run(home.runs / plan.run_id, plan))

    def sites(self, names="ABC", **behaviour):
        return {
            name: self.make_site(
                name, delta=0.1 * "ABC".index(name), scores=(0.1, 0.7, 0.4, 0.2), **behaviour
            )
            for name in names
        }

    def job(self, transport=None):
        """One job, as the driver starts it."""
        self.runs.set_state(self.plan.run_id, RunState.RUNNING)
        coordinate(
            self.home.kit / "local" / "ucadi.toml",
            self.plan.run_id,
            transport or InProcessTransport(self.sites()),
        )

    @property
    def state(self):
        return self.runs.run(self.plan.run_id).state

    @property
    def outcome(self):
        return read_outcome(self.home.runs / self.plan.run_id)

    def told(self):
        return [event.progress for event in self.runs.events(self.plan.run_id)]


@pytest.fixture
def bench(made_home, make_run_plan, make_site, monkeypatch, request):
    """Builds a bench with a run of its own; keywords replace the plan's fields."""
    benches = []

    def build(**changes):
        name = f"run-{abs(hash(request.node.name)) % 10**9}-{len(benches)}"
        fields = {"rounds": 3, "min_sites": 3, "patience_s": 0.3, "sites": (), **changes}
        plan = make_run_plan(run_id=name, **fields)
        benches.append(Bench(made_home, plan, make_site, monkeypatch))
        return benches[-1]

    yield build
    for each in benches:
        each.database.close()
        shutil.rmtree(made_home.runs / each.plan.run_id)


def test_a_run_is_complete_after_one_undisturbed_job(bench):
    at = bench()
    at.job()
    assert at.state is RunState.COMPLETED
    assert at.outcome.selected_round == 1
    assert [record.participants for record in at.outcome.records] == [["A", "B", "C"]] * 3 + [[]]
    assert [progress.round for progress in at.told() if progress.kind == "round"] == [1, 2, 3, 4]


@pytest.fixture
def undisturbed(bench):
    """The model that a run ends with when nothing happens to it."""
    at = bench()
    at.job()
    return hash_tensors(at.outcome.model)


@pytest.mark.parametrize("answers", range(0, 24, 3))
def test_a_run_whose_jobs_are_killed_anywhere_ends_with_the_same_bits(bench, undisturbed, answers):
    at = bench()
    sites = at.sites()
    while at.state is not RunState.COMPLETED:
        try:
            at.job(Cut(InProcessTransport(sites), answers))
        except EngineError:
            answers += 1  # or it would be killed at the same answer for ever
    assert hash_tensors(at.outcome.model) == undisturbed
    assert RunStore(at.database).verify(at.plan.run_id) is not None
    assert Audit(at.database).verify() > 0


def test_a_kill_between_model_and_record_costs_nothing(bench, undisturbed, monkeypatch):
    at = bench()
    kept = RunStore.keep_round
    monkeypatch.setattr(RunStore, "keep_round", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        at.job()
    monkeypatch.setattr(RunStore, "keep_round", kept)
    at.job()
    assert hash_tensors(at.outcome.model) == undisturbed


def test_a_lost_site_that_is_back_ends_the_job_and_is_in_the_next(bench, undisturbed):
    at = bench()
    sites = at.sites("AB")  # C is in no job yet
    at.connected = {"A", "B"}
    ends = threading.Timer(0.1, lambda: at.connected.add("C"))
    ends.start()
    at.job(InProcessTransport(sites))
    assert at.state is RunState.WAITING
    assert Progress("hand-over", 1, "C") in at.told()
    at.job()
    assert hash_tensors(at.outcome.model) == undisturbed


def test_a_run_without_its_quorum_fails_when_its_patience_is_over(bench):
    at = bench()
    at.connected = {"A", "B"}
    with pytest.raises(QuorumError):
        at.job(InProcessTransport(at.sites("AB")))
    run = at.runs.run(at.plan.run_id)
    assert run.state is RunState.FAILED
    assert "C (site-lost)" in run.reason
    assert json.loads((at.home.runs / at.plan.run_id / "outcome.json").read_text())["code"] == "quorum-missed"


@pytest.mark.parametrize(
    ("ago_s", "attempts"),
    [((9.0, 5.0), 1), ((9e9, -9e9), 7)],
    ids=["earlier jobs waited", "the clock was set"],
)
def test_patience_counts_over_the_jobs_and_not_by_the_clock(bench, ago_s, attempts):
    at = bench(ready_deadline_s=1.0, train_deadline_s=1.0)
    at.connected = {"A", "B"}
    lines = [(time.time() - ago, Progress("waiting", 1, "", "C")) for ago in ago_s]
    at.runs.add_events(at.plan.run_id, lines)
    with pytest.raises(QuorumError):
        at.job(InProcessTransport(at.sites("AB")))
    assert [p.kind for p in at.told()].count("waiting") - 2 <= attempts
    assert at.state is RunState.FAILED


def test_a_site_that_no_new_job_brings_back_ends_jobs_ever_more_rarely(bench):
    at = bench(patience_s=60.0)
    now = time.time()
    lines = [(now - ago, Progress("hand-over", 1, "C")) for ago in (30.0, 20.0, 1.0)]
    at.runs.add_events(at.plan.run_id, lines)
    desk = module._Desk(
        at.home, at.runs, MemberStore(at.database), at.runs.state(at.plan.run_id), lambda progress: None
    )
    desk.tell(Progress("missing", 1, "C", "site-lost"))
    assert desk.wish() is Wish.GO_ON
    desk._handed_over["C"] = (3, now - 200.0)
    assert desk.wish() is Wish.HAND_OVER
    desk._handed_over["C"] = (3, now + 1e6)  # the clock was set back since
    assert desk.wish() is Wish.HAND_OVER
    desk.tell(Progress("ready", 1, "C"))
    assert desk.wish() is Wish.GO_ON


def test_a_full_disk_holds_a_round_up_and_is_named(bench, undisturbed, monkeypatch):
    at = bench(patience_s=60.0)
    keep, failures = RunFolder.keep, [OSError(errno.ENOSPC, "No space left on device")] * 3
    seen = []

    def full(files, record, model):
        if failures:
            seen.append(at.state)
            raise failures.pop()
        keep(files, record, model)

    monkeypatch.setattr(RunFolder, "keep", full)
    at.job()
    assert seen == [RunState.RUNNING, RunState.WAITING, RunState.WAITING]
    assert hash_tensors(at.outcome.model) == undisturbed


def test_a_wish_to_stop_is_met_at_the_next_boundary_and_the_run_can_go_on(bench, undisturbed):
    at = bench()
    at.runs.set_wish(at.plan.run_id, Wish.STOP)
    at.job()
    assert at.state is RunState.STOPPED
    at.runs.set_state(at.plan.run_id, RunState.QUEUED)
    at.job()
    assert hash_tensors(at.outcome.model) == undisturbed


def test_a_checkpoint_that_is_not_the_one_in_the_database_is_named_with_its_cure(bench):
    at = bench()
    with pytest.raises(EngineError):
        at.job(Cut(InProcessTransport(at.sites()), 9))
    files = RunFolder(at.home.runs / at.plan.run_id)
    model = files.model(1)
    record = at.runs.rounds(at.plan.run_id)[0].record
    altered = {name: array + 1 for name, array in model.parameters.items()}
    files.keep(record, dataclasses.replace(model, parameters=altered))
    with pytest.raises(CheckpointError, match="round 1") as caught:
        at.job()
    assert "--from-round 0" in caught.value.cure
    assert at.state is RunState.FAILED
    assert resume_run(at.home.runs, at.database, at.plan.run_id, from_round=0) == 1
    at.job()
    assert at.state is RunState.COMPLETED


def test_a_database_that_is_gone_for_a_while_delays_a_round_and_loses_nothing(bench, undisturbed):
    at = bench()
    state, away = at.home.folder / "state.sqlite", at.home.folder / "elsewhere"

    def hide():
        state.rename(away)
        threading.Timer(0.5, lambda: away.rename(state)).start()

    sites = at.sites()
    sites["A"]._trainer.train = _after(sites["A"]._trainer.train, hide)
    at.job(InProcessTransport(sites))
    assert hash_tensors(at.outcome.model) == undisturbed


def _after(function, action):
    """A function that does something before its first call."""
    todo = [action]

    def call(*arguments):
        if todo:
            todo.pop()()
        return function(*arguments)

    return call
