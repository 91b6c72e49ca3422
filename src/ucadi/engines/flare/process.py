# SPDX-License-Identifier: Apache-2.0
"""A whole federation on this machine: the coordinator's and every site's processes, from start to stop."""

import contextlib
import io
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

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

from ucadi.engines.flare.job import write_job
from ucadi.engines.flare.kit import ADMIN, Kits, check_kit
from ucadi.errors import EngineError, NotAuthorizedError, UnreachableError

__all__ = ["OUTCOME", "FlareFederation", "Job", "check_port", "free_port"]

OUTCOME = "outcome.json"
"""The file in a run's folder whose presence says that the run ended by itself, well or not."""

_MARK = "UCADI_FEDERATION"
"""Environment variable by which the processes of one federation are found again."""

_POLL_S = 0.25
_STATUS_EVERY_S = 5.0
"""How often the engine is asked for a job's state: rarely, because each question costs it a thread."""


@dataclass(frozen=True)
class Job:
    """A submitted run."""

    id: str
    run_folder: Path


class FlareFederation:
    """Starts all processes on entry and leaves none on exit, whatever happens in between.

    Args:
        kits: The federation's kits, checked before anything starts.
        env: Settings for all processes, such as ``OMP_NUM_THREADS``; added to this program's own.
        start_timeout_s: How long the start may take.
        on_progress: Told in words what has started.
    """

    def __init__(
        self,
        kits: Kits,
        env: Mapping[str, str] | None = None,
        *,
        start_timeout_s: float = 60.0,
        on_progress: Callable[[str], None] = lambda words: None,
    ) -> None:
        self.kits = kits
        self._mark = secrets.token_hex(8)
        # A module in the working folder must not shadow an installed one.
        self._env = {**os.environ, "PYTHONSAFEPATH": "1", **(env or {}), _MARK: self._mark}
        self._start_timeout_s = start_timeout_s
        self._on_progress = on_progress
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._session: Session | None = None

    def __enter__(self) -> "FlareFederation":
        """Start everything and wait until all sites are connected.

        Raises:
            EngineError: ``port-taken``, ``site-kit-altered``, or ``engine-failed`` when a process ends or
                the time is over.
        """
        try:
            check_port(check_kit(self.kits.coordinator).port)
            self._start("coordinator", self.kits.coordinator)
            for site, folder in self.kits.sites.items():
                self._start(site, folder)
            self._connect()
            self._await_sites()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything."""
        self.stop()

    def submit(self, run_folder: Path, min_sites: int) -> Job:
        """Start a run at all connected sites.

        Args:
            run_folder: The run's folder; the coordinator's class gets its path.
            min_sites: Fewer connected sites are refused.

        Raises:
            EngineError: If too few sites are connected or the engine refuses the job.
        """
        connected = self.connected()
        if len(connected) < min_sites:
            raise EngineError(
                "engine-failed", f"{len(connected)} sites are connected, {min_sites} are needed."
            )
        with tempfile.TemporaryDirectory() as folder:
            write_job(Path(folder) / "job", self.kits.app, run_folder, len(connected))
            return Job(self.submit_folder(Path(folder) / "job"), run_folder)

    def submit_folder(self, job_folder: Path) -> str:
        """Sign a job's folder as the driver and submit it; return the job's id."""
        with self._engine_errors():
            return str(self._admin.submit_job(str(job_folder)))

    def status(self, job_id: str) -> str:
        """Return the engine's word for a job's state. It says nothing about what the run achieved."""
        with self._engine_errors():
            return str(self._admin.get_job_meta(job_id)["status"])

    def wait(
        self, job: Job, on_poll: Callable[[], None] = lambda: None, *, timeout_s: float = 86400.0
    ) -> None:
        """Wait until the run has left its outcome.

        Raises:
            EngineError: ``engine-failed`` if the job or a process ended without an outcome.
        """
        start = asked = time.monotonic()
        outcome = job.run_folder / OUTCOME
        while not outcome.exists():
            self._check_alive("coordinator")
            if time.monotonic() - asked > _STATUS_EVERY_S:
                asked = time.monotonic()
                status = self.status(job.id)
                if status.startswith("FINISHED") and not outcome.exists():
                    raise EngineError("engine-failed", f"The job ended without a result: {status}.")
            if time.monotonic() - start > timeout_s:
                raise EngineError("engine-failed", f"The run did not end within {timeout_s:.0f} s.")
            on_poll()
            time.sleep(_POLL_S)

    def abort(self, job: Job) -> None:
        """End a run early."""
        with self._engine_errors():
            self._admin.abort_job(job.id)

    def connected(self) -> set[str]:
        """Return the names of the sites that the coordinator hears from."""
        with self._engine_errors():
            clients = self._admin.check_status("server").get("clients", [])
        return {client["client_name"] for client in clients}

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of this federation, those that lost their parent included."""
        mine = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_mine = process.environ().get(_MARK) == self._mark
                if is_mine and process.status() != psutil.STATUS_ZOMBIE:
                    mine.append(process)
        return mine

    def stop(self) -> None:
        """End every process: ask, then force. Safe to call again."""
        if self._session is not None:
            with contextlib.suppress(Exception):  # the coordinator may be gone already
                self._session.close()
            self._session = None
        for signal in ("terminate", "kill", "kill"):
            left = self.processes()
            for process in left:
                with contextlib.suppress(psutil.Error):
                    getattr(process, signal)()
            psutil.wait_procs(left, timeout=2)
        for started in self._processes.values():
            if started.stdin:
                started.stdin.close()
            started.wait()
        self._processes.clear()

    def _start(self, name: str, folder: Path) -> None:
        """Start one kit's process; it checks its kit by itself as well."""
        check_kit(folder)
        with (folder / "logs" / "engine.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "ucadi.engines.flare.start", str(folder)],
                cwd=folder,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._on_progress(f"{name} started")

    def _check_alive(self, *names: str) -> None:
        """Raise when one of the processes has ended."""
        for name in names:
            status = self._processes[name].poll()
            if status is not None:
                raise EngineError(
                    "engine-failed",
                    f"The process of {name} ended with status {status}; see engine.log in its kit.",
                )

    def _connect(self) -> None:
        """Open the driver's session as soon as the coordinator answers."""
        until = time.monotonic() + self._start_timeout_s
        port = check_kit(self.kits.admin).port
        while not _is_listening(port):
            self._check_alive("coordinator")
            if time.monotonic() > until:
                raise UnreachableError("unreachable", "The coordinator did not start in time.")
            time.sleep(_POLL_S)
        with contextlib.redirect_stdout(io.StringIO()), self._engine_errors():  # FLARE prints a greeting
            self._session = new_secure_session(ADMIN, str(self.kits.admin), timeout=self._start_timeout_s)
        self._on_progress("coordinator connected")

    def _await_sites(self) -> None:
        """Wait until every site is connected."""
        until = time.monotonic() + self._start_timeout_s
        seen: set[str] = set()
        while seen < set(self.kits.sites):
            connected = self.connected()
            for site in sorted(connected - seen):
                self._on_progress(f"{site} connected")
            seen |= connected
            self._check_alive(*self._processes)
            if time.monotonic() > until:
                missing = ", ".join(sorted(set(self.kits.sites) - seen))
                raise UnreachableError("unreachable", f"Not connected in time: {missing}.")
            time.sleep(_POLL_S)

    @property
    def _admin(self) -> Session:
        """The open session."""
        if self._session is None:
            raise EngineError("engine-failed", "The federation is not running.")
        return self._session

    @contextlib.contextmanager
    def _engine_errors(self) -> Iterator[None]:
        """Say the engine's errors in our words."""
        try:
            yield
        except (AuthorizationError, InvalidJobDefinition) as error:
            raise EngineError("engine-failed", f"The engine refused the job: {error}.") from error
        except AuthenticationError as error:
            raise NotAuthorizedError(
                "not-authorized", f"The coordinator refused the driver: {error}."
            ) from error
        except (NoConnection, SessionClosed) as error:
            raise UnreachableError("unreachable", "The coordinator does not answer.") from error
        except (ConfigError, InternalError, JobNotFound, RuntimeError) as error:
            raise EngineError("engine-failed", f"The engine failed: {error}.") from error


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
