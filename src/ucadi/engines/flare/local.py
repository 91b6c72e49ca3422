# SPDX-License-Identifier: Apache-2.0
"""A whole federation on this machine: the coordinator's and every site's processes, from start to stop."""

import contextlib
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import psutil

from ucadi.engines.flare.kit import Kits
from ucadi.engines.flare.process import FlareClient, FlareServer, Job, KitProcess, end_all
from ucadi.errors import EngineError, UnreachableError

__all__ = ["FlareFederation"]

_POLL_S = 0.25
_STATUS_EVERY_S = 5.0
"""How often the engine is asked for a job's state: rarely, because each question costs it a thread."""


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
        self.server = FlareServer(kits.coordinator, kits.admin, env)
        self.clients = {site: FlareClient(folder, env) for site, folder in kits.sites.items()}
        self._start_timeout_s = start_timeout_s
        self._on_progress = on_progress

    def __enter__(self) -> "FlareFederation":
        """Start everything and wait until all sites are connected.

        Raises:
            EngineError: ``port-taken``, ``site-kit-altered``, or ``engine-failed`` when a process ends or
                the time is over.
        """
        try:
            for name, part in {"coordinator": self.server, **self.clients}.items():
                part.start()
                self._on_progress(f"{name} started")
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

    def submit(self, run_id: str, min_sites: int = 1) -> Job:
        """Start a run at all connected sites.

        Raises:
            EngineError: If fewer than ``min_sites`` are connected or the engine refuses the job.
        """
        connected = self.server.connected()
        if len(connected) < min_sites:
            raise EngineError(
                "engine-failed", f"{len(connected)} sites are connected, {min_sites} are needed."
            )
        return self.server.submit(run_id, connected)

    def wait(
        self,
        job: Job,
        is_done: Callable[[], bool],
        on_poll: Callable[[], None] = lambda: None,
        *,
        timeout_s: float = 86400.0,
    ) -> None:
        """Wait until a job's result is there.

        Args:
            job: What was submitted.
            is_done: Tells that the result is there.
            on_poll: Called several times a second.
            timeout_s: How long to wait.

        Raises:
            EngineError: ``engine-failed`` if the job or a process ended without a result.
        """
        start = asked = time.monotonic()
        while not is_done():
            self._check_alive({"coordinator": self.server})
            if time.monotonic() - asked > _STATUS_EVERY_S:
                asked = time.monotonic()
                status = self.server.status(job.id)
                if status.startswith("FINISHED") and not is_done():
                    raise EngineError("engine-failed", f"The job ended without a result: {status}.")
            if time.monotonic() - start > timeout_s:
                raise EngineError("engine-failed", f"The run did not end within {timeout_s:.0f} s.")
            on_poll()
            time.sleep(_POLL_S)

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of this federation, those that lost their parent included."""
        return [process for part in (self.server, *self.clients.values()) for process in part.processes()]

    def stop(self) -> None:
        """End every process. Safe to call again."""
        end_all([*self.clients.values(), self.server])

    def _check_alive(self, parts: Mapping[str, KitProcess]) -> None:
        """Raise when one of the processes has ended."""
        for name, part in parts.items():
            if not part.is_alive():
                raise EngineError("engine-failed", f"The process of {name} ended; see engine.log in its kit.")

    def _await_sites(self) -> None:
        """Wait until every site is connected."""
        until = time.monotonic() + self._start_timeout_s
        seen: set[str] = set()
        while seen < set(self.clients):
            connected = set()
            with contextlib.suppress(UnreachableError):  # it may not listen yet
                connected = self.server.connected()
            for site in sorted(connected - seen):
                self._on_progress(f"{site} connected")
            seen |= connected
            self._check_alive({"coordinator": self.server, **self.clients})
            if time.monotonic() > until:
                missing = ", ".join(sorted(set(self.clients) - seen))
                raise UnreachableError("unreachable", f"Not connected in time: {missing}.")
            time.sleep(_POLL_S)
