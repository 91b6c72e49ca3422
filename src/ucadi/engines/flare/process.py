# SPDX-License-Identifier: Apache-2.0
"""FLARE's processes, each started from a kit: the coordinator's and a site's. None outlives its starter."""

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from nvflare.fuel.common.excepts import ConfigError
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InternalError,
    InvalidJobDefinition,
    JobNotFound,
    NoConnection,
    SessionClosed,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from ucadi.engines.flare.guard import JOB_NAME
from ucadi.engines.flare.job import write_job
from ucadi.engines.flare.kit import ADMIN, KitCard, barred_sites, check_kit
from ucadi.errors import EngineError, NotAuthorizedError, UnreachableError
from ucadi.logs import event, get_logger, rotate

__all__ = ["FlareClient", "FlareServer", "Job", "KitProcess", "check_port", "end_all", "free_port"]

_LOG = get_logger("engines.flare")

_MARK = "UCADI_KIT"
"""Environment variable by which all processes of a kit are found again, those without a parent included."""

_LEFTOVERS_S = 10.0
_SESSION_S = 10.0
_POLL_S = 0.1


class KitProcess:
    """One FLARE process with the processes of its jobs.

    Args:
        kit: Its kit, checked at every start.
        env: Settings for the processes, such as ``OMP_NUM_THREADS``; added to this program's own.
    """

    def __init__(self, kit: Path, env: Mapping[str, str] | None = None) -> None:
        self.kit = kit.resolve()
        # A module in the working folder must not shadow an installed one.
        self._env = {**os.environ, "PYTHONSAFEPATH": "1", **(env or {}), _MARK: str(self.kit)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> KitCard:
        """Start; what an earlier start left behind is cleared first.

        Raises:
            EngineError: ``site-kit-altered``, or ``engine-failed`` if another program runs this kit.
        """
        card = check_kit(self.kit)
        if not self.is_alive():
            self.forget()
        self._end_leftovers()
        self.clear_stale_jobs()
        rotate(self.kit / "logs" / "engine.log")
        with (self.kit / "logs" / "engine.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.kit,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        event(_LOG, "process started", kit=card.name, pid=self._process.pid)
        return card

    def command(self) -> list[str]:
        """Return the command that starts the process."""
        return [sys.executable, "-m", "ucadi.engines.flare.start", str(self.kit)]

    def is_alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End all processes of the kit: ask, then force. Safe to call again."""
        end_all([self])

    def disconnect(self) -> None:
        """Close this program's own connection to the process, if it has one."""

    def forget(self) -> None:
        """Let go of a process that has ended."""
        if self._process is not None:
            if self._process.stdin:
                self._process.stdin.close()
            self._process.wait()
            self._process = None

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of the kit."""
        mine = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_mine = process.environ().get(_MARK) == str(self.kit)
                if is_mine and process.status() != psutil.STATUS_ZOMBIE:
                    mine.append(process)
        return mine

    def clear_stale_jobs(self) -> None:
        """Remove what jobs left in the kit. Only while no process of it lives.

        A job whose process was killed together with the coordinator stays in state running forever: FLARE
        2.9 can neither end nor delete it.
        """
        for path in self.kit.iterdir():
            if path.name in {"jobs", "snapshots", "transfer"} or JOB_NAME.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _end_leftovers(self) -> None:
        """Wait for processes of an earlier start, which end with their starter; end the rest.

        Raises:
            EngineError: ``engine-failed`` if they have a living starter.
        """
        until = time.monotonic() + _LEFTOVERS_S
        while left := self.processes():
            if time.monotonic() > until:
                break
            time.sleep(_POLL_S)
        if any("ucadi.engines.flare.start" in process.cmdline() for process in left):
            raise EngineError("engine-failed", f"Another program runs the kit {self.kit}.")
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=2)


class FlareClient(KitProcess):
    """A site's process: connects to the coordinator, again and again, and starts the site's jobs."""


@dataclass(frozen=True)
class Job:
    """A part of a run between two changes of the members.

    Attributes:
        id: FLARE's name for it.
        run_id: Name of the run.
        sites: Who takes part.
    """

    id: str
    run_id: str
    sites: frozenset[str]


class FlareServer(KitProcess):
    """The coordinator's process, and the driver's connection to it.

    Args:
        kit: The coordinator's kit.
        admin: The driver's kit.
        env: Settings for the processes.
    """

    def __init__(self, kit: Path, admin: Path, env: Mapping[str, str] | None = None) -> None:
        super().__init__(kit, env)
        self._admin = admin.resolve()
        self._session: Session | None = None
        self._port = 0
        self._jobs: list[Job] = []
        self._barred: frozenset[str] = frozenset()

    def start(self) -> KitCard:
        """Start listening. Sites that were connected come back by themselves.

        Raises:
            EngineError: ``port-taken``, ``site-kit-altered``, ``engine-failed``.
        """
        self._end_leftovers()
        check_port(check_kit(self.kit).port)
        self._barred = barred_sites(self.kit)
        card = super().start()
        self._port = card.port
        self._jobs = []
        return card

    def disconnect(self) -> None:
        """Log out."""
        self._close_session()

    def forget(self) -> None:
        """Let go of a process that has ended, and of the connection to it."""
        self.disconnect()
        super().forget()

    def connected(self) -> set[str]:
        """Return the names of the sites that the coordinator hears from.

        Raises:
            UnreachableError: While it starts, or when it has ended.
        """
        with self._session_or_error() as session:
            clients = session.check_status("server").get("clients", [])
        return {str(client["client_name"]) for client in clients}

    def bar(self, names: Collection[str]) -> None:
        """Refuse exactly these sites from now on; whoever is among them and connected is let go.

        The engine keeps the list for its next start. It is asked only about what has changed, so this may
        be called as often as one likes.

        Raises:
            UnreachableError: While it starts, or when it has ended; ask again later.
        """
        wanted = frozenset(names)
        for site in sorted(wanted ^ self._barred):
            with self._session_or_error() as session:
                (session.disable_client if site in wanted else session.enable_client)(site)
            self._barred ^= {site}
            event(_LOG, "site barred" if site in wanted else "site let in again", site=site)

    def submit(self, run_id: str, sites: Collection[str]) -> Job:
        """Start a job of a run for exactly these sites.

        Raises:
            EngineError: If the engine refuses the job.
        """
        with tempfile.TemporaryDirectory() as folder:
            job = Path(folder) / "job"
            write_job(job, check_kit(self.kit).app, run_id, sites)
            number = self.submit_folder(job)
        self._forget_old_jobs()
        self._jobs.append(Job(number, run_id, frozenset(sites)))
        return self._jobs[-1]

    def submit_folder(self, job_folder: Path) -> str:
        """Sign a job's folder as the driver and submit it; return the job's id."""
        with self._session_or_error() as session:
            return str(session.submit_job(str(job_folder)))

    def status(self, job_id: str) -> str:
        """Return the engine's word for a job's state. It says nothing about what the run achieved."""
        with self._session_or_error() as session:
            return str(session.get_job_meta(job_id)["status"])

    def abort(self, job: Job) -> None:
        """End a job now."""
        with self._session_or_error() as session:
            session.abort_job(job.id)

    def _forget_old_jobs(self) -> None:
        """Delete ended jobs here and at the sites."""
        for job in list(self._jobs):
            with contextlib.suppress(EngineError):
                if self.status(job.id).startswith("FINISHED"):
                    with self._session_or_error() as session:
                        session.delete_job(job.id)
                    self._jobs.remove(job)

    @contextlib.contextmanager
    def _session_or_error(self) -> Iterator[Session]:
        """Give the open session, or open one; say the engine's errors in our words."""
        try:
            if self._session is None:
                self._session = self._open_session()
            yield self._session
        except (AuthorizationError, InvalidJobDefinition) as error:
            raise EngineError("engine-failed", f"The engine refused: {error}.") from error
        except AuthenticationError as error:
            self._close_session()
            raise NotAuthorizedError(
                "not-authorized", f"The coordinator refused the driver: {error}."
            ) from error
        except JobNotFound as error:
            raise EngineError("engine-failed", f"The engine does not know the job: {error}.") from error
        except (NoConnection, SessionClosed, InternalError, ConfigError, RuntimeError) as error:
            self._close_session()
            raise UnreachableError("unreachable", f"The coordinator's engine fails: {error}.") from error

    def _open_session(self) -> Session:
        """Log in as the driver."""
        if not self.is_alive() or not _is_listening(self._port):
            raise NoConnection("it is not listening")
        with contextlib.redirect_stdout(io.StringIO()):  # FLARE prints a greeting
            return new_secure_session(ADMIN, str(self._admin), timeout=_SESSION_S)

    def _close_session(self) -> None:
        """Log out, if possible."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(Exception):  # the coordinator may be gone already
                session.close()


def end_all(parts: Collection[KitProcess]) -> None:
    """End all processes of several kits at the same time."""
    for part in parts:
        part.disconnect()
    for signal in ("terminate", "kill", "kill"):
        left = [process for part in parts for process in part.processes()]
        for process in left:
            with contextlib.suppress(psutil.Error):
                getattr(process, signal)()
        psutil.wait_procs(left, timeout=2)
    for part in parts:
        part.forget()


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raise ``port-taken`` when another program listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EngineError("port-taken", f"Port {port} of this machine is in use.") from error


def _is_listening(port: int) -> bool:
    """Tell whether something accepts connections."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
