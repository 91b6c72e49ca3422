# SPDX-License-Identifier: Apache-2.0
"""A whole federation on this machine, made and run by the same steps and processes as a real one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ucadi.config import SiteSettings
from ucadi.engines.flare.process import free_port
from ucadi.errors import EngineError, UnreachableError
from ucadi.federation.plans import RunPlan
from ucadi.store.members import MemberStore
from ucadi.store.runs import LIVE, RunEvent, RunStore
from ucadi.workflows.coordinator_home import CoordinatorHome, init_coordinator, settings_from
from ucadi.workflows.federate import RunOutcome, prepare_run, read_outcome
from ucadi.workflows.join import init_site, join, read_membership
from ucadi.workflows.membership import approve, invite, look_at
from ucadi.workflows.site_home import POLICY_TEXT, SiteHome, site_text

__all__ = ["LocalFederation", "local_federation"]

_POLL_S = 0.25
_START_S = 90.0
_GRACE_S = 15.0

OnWords = Callable[[str], None]
OnEvent = Callable[[RunEvent], None]


class LocalFederation:
    """A coordinator and its sites, each in processes of their own.

    Attributes:
        home: The coordinator's home.
    """

    def __init__(self, home: CoordinatorHome, check: Callable[[], None]) -> None:
        self.home = home
        self._check = check

    def run(self, plan: RunPlan, on_event: OnEvent) -> RunOutcome:
        """Submit a plan and follow it to its end.

        Raises:
            EngineError: If the run failed or was stopped, with its reason, or a process ended.
        """
        database = self.home.open_database()
        try:
            runs, folder, seen = RunStore(database), self.home.runs / plan.run_id, 0
            runs.submit(plan, prepare_run(folder, plan))
            while True:
                is_live = runs.run(plan.run_id).state in LIVE  # before looking: a last event may come between
                for event in runs.events(plan.run_id, seen):
                    seen = event.seq
                    on_event(event)
                if not is_live:
                    return read_outcome(folder)
                self._check()
                time.sleep(_POLL_S)
        finally:
            database.close()


@contextmanager
def local_federation(
    folder: Path,
    sites: Mapping[str, SiteSettings],
    env: Mapping[str, str],
    *,
    port: int | None,
    on_words: OnWords,
) -> Iterator[LocalFederation]:
    """Make homes, let every site join and be approved, start all processes; stop them at the end.

    Args:
        folder: For the homes.
        sites: Each site's own settings. Their policies approve every plan within the defaults.
        env: Added to the environment of all processes.
        port: Where the coordinator's engine listens on the loopback; None takes a free one.
        on_words: Told what has been done.

    Raises:
        EngineError: If a process ends or is not ready in time.
    """
    children: dict[str, subprocess.Popen[bytes]] = {}
    settings = settings_from(
        name="local", host="127.0.0.1", port=port or free_port(), api_port=free_port(), retry_s=1.0
    )

    def check() -> None:
        for name, child in children.items():
            if child.poll() is not None:
                raise EngineError(
                    "engine-failed", _last_words(folder / f"{name}.log", name, child.returncode)
                )

    try:
        home = init_coordinator(folder / "coordinator", settings)
        on_words("coordinator's keys and certificates made")
        children["coordinator"] = _start(("coordinator", "serve", "--home", str(home.folder)), folder, env)
        for name, own in sites.items():
            site = _admit(home, folder / name, name, own, check)
            on_words(f"{name} joined and was approved")
            children[name] = _start(("site", "start", "--home", str(site.folder)), folder, env)
        _await_sites(home, frozenset(sites), check, on_words)
        yield LocalFederation(home, check)
    finally:
        for name in reversed(children):
            _stop(children[name])


def _admit(
    home: CoordinatorHome, folder: Path, name: str, settings: SiteSettings, check: Callable[[], None]
) -> SiteHome:
    """Go the way of a hospital: make keys, join with an invitation, be approved, fetch the certificate."""
    invitation = folder.with_suffix(".invitation.json")
    invite(home, name, 1.0, invitation)
    site = init_site(folder, name)
    site.settings_file.write_text(site_text(settings), encoding="utf-8")
    site.policy_file.write_text(_agreeable(POLICY_TEXT), encoding="utf-8")
    until = time.monotonic() + _START_S
    while True:
        try:
            join(site, invitation)
            break
        except UnreachableError:  # the coordinator's interface has not started yet
            check()
            if time.monotonic() > until:
                raise
            time.sleep(_POLL_S)
    approve(home, look_at(home, name))
    join(site, None)
    if read_membership(site).federation is None:
        raise EngineError("engine-failed", f"{name} was approved but has no certificate.")
    return site


def _agreeable(policy: str) -> str:
    """Return a policy that approves by itself what it allows."""
    return policy.replace('approve = "ask"', 'approve = "within-policy"').replace(
        "min_patients = 10", "min_patients = 0"
    )


def _await_sites(
    home: CoordinatorHome, names: frozenset[str], check: Callable[[], None], on_words: OnWords
) -> None:
    """Wait until the coordinator hears every site's engine."""
    database = home.open_database()
    try:
        members, seen, began = MemberStore(database), frozenset[str](), time.time()
        while not names <= seen:
            heard = frozenset(m.name for m in members.sites() if (m.last_connected or 0.0) >= began)
            for name in sorted(heard - seen):
                on_words(f"{name} connected")
            seen |= heard
            check()
            if time.time() - began > _START_S:
                missing = ", ".join(sorted(names - seen))
                raise UnreachableError("unreachable", f"Not connected in time: {missing}.")
            time.sleep(_POLL_S)
    finally:
        database.close()


def _start(arguments: tuple[str, ...], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one of ucadi's own commands in a session of its own."""
    name = Path(arguments[-1]).name
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ucadi", *arguments],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask a process to end; it ends those that it started."""
    child.terminate()
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _last_words(log: Path, name: str, status: int) -> str:
    """Return why a process ended, as far as it said so."""
    tail = log.read_text(encoding="utf-8", errors="replace").strip()[-500:] if log.is_file() else ""
    return f"The process of {name} ended with status {status}: {tail}"
