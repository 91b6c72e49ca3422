# SPDX-License-Identifier: Apache-2.0
"""`ucadi coordinator serve`: answers sites, keeps the engine alive and drives the submitted runs.

Everything that counts is in the home. This process and all that it started may be killed at any moment;
started again, it goes on with every run where that stands.
"""

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable

from ucadi.engines.flare.process import FlareServer, Job
from ucadi.enrolment.metrics import metrics_router
from ucadi.enrolment.probe import probe_router
from ucadi.enrolment.releases import release_routes
from ucadi.errors import EngineError, UcadiError, UnreachableError
from ucadi.federation.ports import Wish
from ucadi.logs import event, get_logger, log_to_file
from ucadi.store.database import Database
from ucadi.store.members import MemberStore
from ucadi.store.run_claims import Claim, RunClaims
from ucadi.store.runs import LIVE, Run, RunState, RunStore
from ucadi.workflows.coordinator_home import CoordinatorHome
from ucadi.workflows.cross_site import requested_evaluation
from ucadi.workflows.home_lock import only_one
from ucadi.workflows.membership import api_server, bar_ended
from ucadi.workflows.releases import shelf_of
from ucadi.workflows.run_numbers import NumbersReader
from ucadi.workflows.signals import stop_on_signals

__all__ = ["Driver", "serve"]

_LOG = get_logger("workflows.serve")

_TURN_S = 0.5
_LOOK_S = 2.0
"""How often the engine is asked who is connected: rarely, because each question costs it a thread."""

_SILENT_S = 180.0
"""An engine's process that gave no answer for so long hangs."""

_LONGEST_PAUSE_S = 60.0

OnWords = Callable[[str], None]
"""Told in words what changes."""


def serve(home: CoordinatorHome, on_words: OnWords, stop: threading.Event | None = None) -> None:
    """Serve until stopped by a signal or by an event.

    Raises:
        EngineError: ``home-in-use``, ``port-taken``, or ``engine-failed`` if the interface has ended.
        StoreError: If the state cannot be used at the start.
    """
    ends = stop or stop_on_signals()
    with only_one(home.folder):
        log_to_file(home.folder / "logs" / "coordinator.jsonl")
        database = home.open_database()
        try:
            _serve(home, database, on_words, ends)
        finally:
            database.close()


def _serve(home: CoordinatorHome, database: Database, on_words: OnWords, ends: threading.Event) -> None:
    """Serve with an open state."""
    settings = home.settings
    routers = [
        probe_router(),
        release_routes(shelf_of(home, database)),
        metrics_router(NumbersReader(database).text),
    ]
    bar_ended(home, database)
    server = FlareServer(home.kit, home.driver_kit)
    with api_server(home, database, routers) as api:
        try:
            server.start()  # what fails now, such as a port in use, is for the person at the screen
            on_words(f"{settings.name}: sites reach this coordinator at {settings.host}:{settings.api_port}")
            Driver(home, database, server, on_words).run(ends, api.is_alive)
            on_words("stopping; runs go on when the coordinator serves again")
        finally:
            server.stop()


class Driver:
    """Gives the engine one job after the other, so that every submitted run comes to its end.

    Args:
        home: The coordinator's.
        database: Its state.
        server: The engine's process at the coordinator.
        on_words: Told what changes.
    """

    def __init__(
        self, home: CoordinatorHome, database: Database, server: FlareServer, on_words: OnWords
    ) -> None:
        self._home = home
        self._runs = RunStore(database)
        self._claims = RunClaims(database)
        self._members = MemberStore(database)
        self._server = server
        self._on_words = on_words
        # The same after every start: the engine's kit lets only one process serve a home at a time.
        place = hashlib.sha256(str(home.folder).encode()).hexdigest()[:8]
        self._owner = f"{socket.gethostname()}/{place}"
        self._connected: frozenset[str] = frozenset()
        self._job: Job | None = None
        self._claim: Claim | None = None
        self._rounds_before = 0
        self._failures = 0
        self._look_at = self._start_at = self._submit_at = self._watch_at = 0.0
        self._heard_at = time.monotonic()
        self._short_since: dict[str, float] = {}
        self._said: dict[str, str] = {}

    def run(self, ends: threading.Event, is_served: Callable[[], bool]) -> None:
        """Drive until told to end. What goes wrong is said, and tried again after a pause.

        Args:
            ends: Set when all is to end.
            is_served: Tells whether the sites' interface answers; when not, only a new start helps.

        Raises:
            EngineError: If the interface has ended.
        """
        while not ends.wait(_TURN_S):
            if not is_served():
                raise EngineError("engine-failed", "The sites' interface has ended.")
            try:
                if self._is_engine_up() and self._look():
                    self._drive()
            except UcadiError as error:
                self._say("engine", f"waiting: {error.detail} {error.cure}")
                ends.wait(self._home.settings.retry_s)
            except OSError as error:  # a full disk, no more processes: may be over soon
                self._say("engine", f"waiting: {error.strerror or error}")
                ends.wait(self._home.settings.retry_s)
        self._end_job("stopped")

    def _is_engine_up(self) -> bool:
        """Start the engine's process when it is not there, with pauses that grow while it fails."""
        if self._server.is_alive():
            return True
        if self._look_at:  # it was up before
            self._say("engine", "its process ended and is started again")
            self._job = None  # its run goes on in the next one
        if time.monotonic() < self._start_at:
            return False
        self._start_at = time.monotonic() + self._home.settings.retry_s
        self._connected, self._look_at = frozenset(), 0.0
        self._server.start()
        self._heard_at = time.monotonic()
        return True

    def _look(self) -> bool:
        """Ask who is connected, now and then; tell whether the engine answers."""
        if time.monotonic() < self._look_at:
            return True
        try:
            self._server.bar(self._members.barred())
            connected = frozenset(self._server.connected()) & self._members.approved()
        except UnreachableError:  # it has just started, or ends; a dead process is noticed in the next turn
            if time.monotonic() - self._heard_at > _SILENT_S:
                self._say("engine", "its process does not answer and is started again")
                self._server.stop()
            return False
        self._heard_at = time.monotonic()
        self._look_at = self._heard_at + _LOOK_S
        self._members.note_connected(connected)
        for words, sites in (
            ("connected", connected - self._connected),
            ("lost", self._connected - connected),
        ):
            for site in sorted(sites):
                self._say(site, words)
        self._connected = connected
        return True

    def _drive(self) -> None:
        """Watch the job under way, or begin the next one."""
        if self._job is not None:
            if time.monotonic() >= self._watch_at:
                self._watch_at = time.monotonic() + _LOOK_S
                self._watch(self._job)
        elif time.monotonic() >= self._submit_at:
            # The oldest first; one whose sites are away holds up no other.
            self._submit_at = time.monotonic() + _LOOK_S
            has_begun = any(self._begins(run) for run in self._runs.runs(*LIVE))
            if not has_begun:
                self._evaluate()

    def _begins(self, run: Run) -> bool:
        """Submit a job of a run for the sites that are there, if they are enough."""
        claim = self._claims.claim(run.run_id, self._owner)  # from here on, no older job can store a round
        if claim is None:
            return False
        if run.wish is Wish.STOP:
            self._set_state(claim, RunState.STOPPED, "stopped by the coordinator")
            return False
        there = frozenset(site for site in self._connected if run.plan.calls(site))
        if len(there) < run.plan.min_sites:
            self._wait_for_sites(claim, run, there)
            return False
        self._short_since.pop(run.run_id, None)
        self._rounds_before = len(self._runs.rounds(run.run_id))
        self._set_state(claim, RunState.RUNNING)
        self._job, self._claim = self._server.submit(run.run_id, there), claim
        self._say(run.run_id, f"goes on with {', '.join(sorted(there))}")
        return True

    def _wait_for_sites(self, claim: Claim, run: Run, there: frozenset[str]) -> None:
        """Say that too few sites are connected; end the run when its patience is over."""
        reason = (
            f"{len(there)} sites are connected, {run.plan.min_sites} are needed. "
            f"Connected: {', '.join(sorted(there)) or 'none'}."
        )
        waited_s = time.monotonic() - self._short_since.setdefault(run.run_id, time.monotonic())
        is_over = waited_s > run.plan.patience_s
        self._set_state(claim, RunState.FAILED if is_over else RunState.WAITING, reason)
        self._say(run.run_id, f"{'ends' if is_over else 'waits'}: {reason}")

    def _set_state(self, claim: Claim, state: RunState, reason: str = "") -> None:
        """Change the state of a run that this process drives."""
        self._runs.set_state(claim.run_id, state, reason, token=claim.token)

    def _evaluate(self) -> None:
        """Submit a job that measures a complete run's models, if somebody asked for it."""
        for run in self._runs.runs(RunState.COMPLETED):
            there = frozenset(site for site in self._connected if run.plan.calls(site))
            if there and requested_evaluation(self._home.runs / run.run_id):
                self._job, self._claim = self._server.submit(run.run_id, there), None
                self._say(run.run_id, f"its models are measured at {', '.join(sorted(there))}")
                return

    def _watch(self, job: Job) -> None:
        """Notice the end of a job, and what it means for the run."""
        if self._claim is not None and not self._claims.renew(self._claim):
            self._say(job.run_id, "is driven by another process")
            self._end_job("claimed by another process")
            return
        status = self._server.status(job.id)
        if not status.startswith("FINISHED"):
            return
        run = self._runs.run(job.run_id)
        self._job = None
        if status != "FINISHED:COMPLETED":
            self._pause(progress=len(self._runs.rounds(job.run_id)) > self._rounds_before)
            self._say(job.run_id, f"a job ended as {status}")
        if run.state not in LIVE:
            self._say(job.run_id, f"{run.state}: {run.reason}")

    def _pause(self, *, progress: bool) -> None:
        """Wait before the next job, longer each time while jobs fail without completing a round."""
        self._failures = 0 if progress else self._failures + 1
        pause_s = min(_LONGEST_PAUSE_S, (2**self._failures - 1) * self._home.settings.retry_s)
        self._submit_at = time.monotonic() + pause_s

    def _end_job(self, why: str) -> None:
        """End the job under way; its run goes on from the last complete round."""
        if self._job is not None:
            event(_LOG, "job given up", job=self._job.id, run=self._job.run_id, why=why)
            with contextlib.suppress(UcadiError):
                self._server.abort(self._job)
            self._job = None
        if self._claim is not None:
            with contextlib.suppress(UcadiError):
                self._claims.release(self._claim)
            self._claim = None

    def _say(self, about: str, words: str) -> None:
        """Say something new about a site, a run or the engine, to people and to the log."""
        if self._said.get(about) != words:
            self._said[about] = words
            event(_LOG, words, about=about)
            self._on_words(f"{about}: {words}")
