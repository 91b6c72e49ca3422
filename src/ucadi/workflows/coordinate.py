# SPDX-License-Identifier: Apache-2.0
"""One job of a run at the coordinator: go on where the run stands, store each round, end at a boundary.

The process may be killed at any moment. A round counts when its model is on disk and its record in the
database, in this order; the next job goes on from there.
"""

import errno
import time
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from ucadi.errors import CheckpointError, QuorumError
from ucadi.federation.coordinator import Checkpoint
from ucadi.federation.messages import GlobalModel
from ucadi.federation.ports import Transport, Wish
from ucadi.federation.records import OnProgress, Progress, RoundRecord
from ucadi.logs import event, get_logger
from ucadi.store.database import patiently
from ucadi.store.evaluations import EvaluationStore
from ucadi.store.members import MemberStore
from ucadi.store.run_events import EventWriter
from ucadi.store.run_rollback import ROLLED_BACK
from ucadi.store.runs import RunState, RunStore, Standing
from ucadi.workflows.coordinator_home import CoordinatorHome
from ucadi.workflows.cross_site import evaluate_requested
from ucadi.workflows.federate import RunFolder, conduct
from ucadi.workflows.run_view import RESUMED

__all__ = ["coordinate", "home_of"]

_LOG = get_logger("workflows.coordinate")

LOST = "site-lost"
HEARD_S = 12.0
"""A site that the driver heard of since is connected."""

_HAND_OVER_S = 30.0
"""A site that was lost again so soon after a hand-over is no reason for the next one; doubled each time."""

_URGENT_HAND_OVER_S = 5.0
"""The same while the round waits for its quorum."""

_LONGEST_HAND_OVER_S = 1800.0

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_DATABASE_S = 600.0
"""How long a round waits for a database that is gone."""

_ResultT = TypeVar("_ResultT")


def home_of(kit_settings: Path) -> CoordinatorHome:
    """Return the home that a coordinator's kit names."""
    return CoordinatorHome.open(Path(tomllib.loads(kit_settings.read_text(encoding="utf-8"))["home"]))


def coordinate(kit_settings: Path, run_id: str, transport: Transport) -> None:
    """Do a job of a run: go on until it ends or is handed over, or measure models of one that is complete.

    Args:
        kit_settings: The file in the coordinator's kit that names the home.
        run_id: The run.
        transport: Carries messages to the sites of this job.

    Raises:
        UcadiError: If this job cannot go on; the run then goes on with the next one.
    """
    home = home_of(kit_settings)
    database = _patient(home.open_database)
    runs, members = RunStore(database), MemberStore(database)
    standing = _patient(lambda: runs.state(run_id))
    events = EventWriter(runs, run_id)
    started = time.monotonic()
    try:
        if standing.run.state is RunState.COMPLETED:
            sites, scores = _patient(members.approved), EvaluationStore(database)
            evaluate_requested(home.runs / run_id, transport, sites, scores, events)
        else:
            _go_on(home, standing, transport, runs, _Desk(home, runs, members, standing, events))
    finally:
        event(_LOG, "job ends", run=run_id, seconds=round(time.monotonic() - started, 1))
        events.close()
        database.close()


def _go_on(
    home: CoordinatorHome, standing: Standing, transport: Transport, runs: RunStore, desk: "_Desk"
) -> None:
    """Run rounds until the run ends or is handed over, and say in its state how it ended."""
    run, files = standing.run, RunFolder(home.runs / standing.run.run_id)

    def end(state: RunState, reason: str) -> None:
        _patient(lambda: runs.set_state(run.run_id, state, reason, token=run.token))

    try:
        wish, reached = conduct(run.plan, _checkpoint(standing, files), transport, desk, desk.tell)
    except (CheckpointError, QuorumError) as error:  # no later job could do better
        files.fail(error)
        end(RunState.FAILED, f"{error.detail} {error.cure}")
        raise
    if wish is Wish.GO_ON:
        files.complete(reached.best, reached.records, time.time() - run.created)
        end(RunState.COMPLETED, f"round {reached.best.round} selected")
    elif wish is Wish.STOP:
        end(RunState.STOPPED, "stopped by the coordinator")


class _Desk:
    """Membership, wishes and storage of one run, as the coordinator's home has them."""

    def __init__(
        self,
        home: CoordinatorHome,
        runs: RunStore,
        members: MemberStore,
        standing: Standing,
        events: OnProgress,
    ) -> None:
        self._retry_s = home.settings.retry_s
        self._files = RunFolder(home.runs / standing.run.run_id)
        self._runs = runs
        self._members = members
        self._events = events
        self._run = standing.run
        self._token = standing.run.token
        self._round = len(standing.records) + 1
        self._lost: set[str] = set()
        self._is_waiting = False
        self._waited_s = 0.0
        self._waits_since: float | None = None
        self._handed_over: dict[str, tuple[int, float]] = {}
        self._remember()

    def tell(self, progress: Progress) -> None:
        """Pass progress on, and remember who is lost to this job."""
        self._events(progress)
        if progress.kind == "missing" and progress.detail == LOST:
            self._lost.add(progress.site)
        elif progress.kind != "missing" and progress.site:
            self._lost.discard(progress.site)
            self._handed_over.pop(progress.site, None)

    def members(self) -> Collection[str]:
        """Return the approved sites: who was revoked or left is not called any more."""
        return _patient(self._members.approved)

    def wish(self) -> Wish:
        """Tell what the coordinator's people wish, or that lost or new sites are there for the next job."""
        wish = _patient(lambda: self._runs.wish(self._run.run_id))
        if wish is not Wish.GO_ON:
            return wish
        waiting = {site for site in self._lost & self._connected() if self._is_due(site)}
        for site in sorted(waiting):
            self._events(Progress("hand-over", self._round, site))
        return Wish.HAND_OVER if waiting else Wish.GO_ON

    def _is_due(self, site: str) -> bool:
        """Tell whether a job may end for a lost site; ever more rarely if no new job brings it back."""
        count, last = self._handed_over.get(site, (0, 0.0))
        if count == 0:
            return True
        base = _URGENT_HAND_OVER_S if self._is_waiting else _HAND_OVER_S
        pause_s = min(_LONGEST_HAND_OVER_S, base * 2 ** (count - 1))
        return not 0 <= time.time() - last < pause_s  # a clock that was set back must not keep a site out

    def keep(self, record: RoundRecord, model: GlobalModel) -> None:
        """Store a complete round: first the model, then the record that counts."""
        self._write(lambda: self._files.keep(record, model))
        _patient(lambda: self._runs.keep_round(self._run.run_id, record, model.hash, token=self._token))
        self._events(Progress("round", record.round, ""))
        self._round = record.round + 1
        self._waited_s, self._waits_since = 0.0, None
        self._set_waiting("")

    def wait(self, shortfall: str) -> bool:
        """Wait a moment and look again who is there."""
        self._set_waiting(shortfall)
        now = time.monotonic()
        if self._waits_since is not None:
            self._waited_s += now - self._waits_since
        self._waits_since = now
        time.sleep(self._retry_s)
        return self._waited_s < self._run.plan.patience_s

    def _write(self, action: Callable[[], None]) -> None:
        """Write files; while the disk is full, say so and try again."""
        while True:
            try:
                action()
                return
            except OSError as error:
                if error.errno not in DISK_ERRORS:
                    raise
                self._set_waiting(f"The coordinator's disk cannot be written: {error.strerror}.")
                time.sleep(self._retry_s)

    def _connected(self) -> frozenset[str]:
        """Return the approved sites of which the driver heard just now."""
        since = time.time() - HEARD_S
        sites = _patient(self._members.sites)
        approved = _patient(self._members.approved)
        return frozenset(s.name for s in sites if s.name in approved and (s.last_connected or 0.0) > since)

    def _set_waiting(self, reason: str) -> None:
        """Say in the run's state whether it waits."""
        self._is_waiting = bool(reason)
        state = RunState.WAITING if reason else RunState.RUNNING
        _patient(lambda: self._runs.set_state(self._run.run_id, state, reason, token=self._token))

    def _remember(self) -> None:
        """Learn from the run's progress what earlier jobs knew: how long it waits, and for whom it ended.

        Nobody waits while the coordinator is off, and a clock may be set: a pause between two signs of
        waiting counts as no longer than one attempt can take.
        """
        plan, last = self._run.plan, None
        longest_s = plan.ready_deadline_s + plan.train_deadline_s + self._retry_s
        for line in _patient(lambda: self._runs.events(self._run.run_id)):
            kind, site = line.progress.kind, line.progress.site
            if kind in ("round", RESUMED, ROLLED_BACK):
                self._waited_s, last = 0.0, None
            elif kind == "waiting":
                self._waited_s += min(max(0.0, line.time - last), longest_s) if last else 0.0
                last = line.time
            elif kind == "hand-over":
                self._handed_over[site] = (self._handed_over.get(site, (0, 0.0))[0] + 1, line.time)
            elif kind != "missing":
                self._handed_over.pop(site, None)


def _checkpoint(standing: Standing, files: RunFolder) -> Checkpoint:
    """Return where a run stands, with its models read and verified."""

    def read(number: int) -> GlobalModel:
        model = files.model(number)
        if model.hash != standing.model_hashes[number]:
            raise CheckpointError(
                "model-mismatch",
                f"The model of round {number} on disk is not the one that the database names.",
                cure=f"Go on from an earlier round: ucadi run resume {standing.run.run_id} "
                f"--from-round {max(0, number - 1)}.",
            )
        return model

    model = read(standing.last_round)
    best = model if standing.best_round == standing.last_round else read(standing.best_round)
    return Checkpoint(model, best, standing.best_validation, standing.records)


def _patient(action: Callable[[], _ResultT]) -> _ResultT:
    """Do something with the database, as long as a round may wait for it."""
    return patiently(action, _DATABASE_S)
