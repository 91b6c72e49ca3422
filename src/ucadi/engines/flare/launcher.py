# SPDX-License-Identifier: Apache-2.0
"""How the coordinator and a site start the process of a job."""

import json
import os
import shlex
import subprocess
import sys
import threading
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobLauncherSpec, JobReturnCode, add_launcher
from nvflare.utils.job_launcher_utils import (
    generate_client_command,
    generate_server_command,
    get_credential_env,
)

__all__ = ["CoordinatorLauncher", "SiteLauncher"]

_RETURN_CODES = {0: JobReturnCode.SUCCESS, 9: JobReturnCode.ABORTED}


class _Launcher(JobLauncherSpec):  # type: ignore[misc]  # nvflare ships no types
    """Keeps one process ready between jobs, so that a job starts without waiting for imports.

    While a job runs there is none, since its imports take memory. The process ends with this one. No folder
    of a job gets onto its import path.

    Args:
        app_class: Full name of the class that jobs build here.
    """

    PROGRAM = ""
    FAILURE = JobReturnCode.EXECUTION_ERROR

    def __init__(self, app_class: str) -> None:
        super().__init__()
        self._app_class = app_class
        self._spare: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def command(self, fl_ctx: FLContext) -> str:
        """Return FLARE's command line for a job."""
        raise NotImplementedError

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Make the first process ready when all has started; offer to launch jobs."""
        if event_type == EventType.SYSTEM_START:
            self._make_spare()
        elif event_type == EventType.BEFORE_JOB_LAUNCH:
            add_launcher(self, fl_ctx)

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        """Hand the job to the ready process."""
        words = shlex.split(self.command(fl_ctx))
        arguments = words[words.index(self.PROGRAM) + 1 :]
        env = get_credential_env(fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS) or {})
        order = json.dumps({"args": arguments, "env": env}).encode() + b"\n"
        with self._lock:
            process, self._spare = self._spare, None
        try:
            busy = _hand(process or self._start(), order)
        except OSError:  # the ready process was killed
            busy = _hand(self._start(), order)
        threading.Thread(target=self._follow, args=[busy], daemon=True).start()
        return _Handle(busy, self.FAILURE)

    def _follow(self, busy: subprocess.Popen[bytes]) -> None:
        """Make the next process ready when a job's has ended."""
        busy.wait()
        self._make_spare()

    def _make_spare(self) -> None:
        """Start the next process."""
        with self._lock:
            if self._spare is None or self._spare.poll() is not None:
                self._spare = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a process that waits for its job."""
        command = [sys.executable, "-m", "ucadi.engines.flare.work", self.PROGRAM, self._app_class]
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=dict(os.environ))


class CoordinatorLauncher(_Launcher):
    """Starts the coordinator's process of a job."""

    PROGRAM = "nvflare.private.fed.app.server.runner_process"

    def command(self, fl_ctx: FLContext) -> str:
        """Return FLARE's command line."""
        return str(generate_server_command(fl_ctx))


class SiteLauncher(_Launcher):
    """Starts a site's process of a job, and keeps a crash at one site from ending the run of all.

    FLARE 2.9 reports a job process that was killed or ran out of memory as a failed job, and the coordinator
    then ends the job everywhere. With an unknown status it goes on and the site is soon counted as lost.
    """

    PROGRAM = "nvflare.private.fed.app.client.worker_process"
    FAILURE = JobReturnCode.UNKNOWN

    def command(self, fl_ctx: FLContext) -> str:
        """Return FLARE's command line."""
        return str(generate_client_command(fl_ctx))


def _hand(process: subprocess.Popen[bytes], order: bytes) -> subprocess.Popen[bytes]:
    """Give a waiting process its job; its standard input stays open as long as this process lives."""
    if process.stdin is None or process.poll() is not None:
        raise OSError("the process has ended")
    process.stdin.write(order)
    process.stdin.flush()
    return process


class _Handle(JobHandleSpec):  # type: ignore[misc]  # nvflare ships no types
    """The process of a job.

    Args:
        process: The process.
        failure: What a crash is reported as.
    """

    def __init__(self, process: subprocess.Popen[bytes], failure: int) -> None:
        self._process = process
        self._failure = failure

    def terminate(self) -> None:
        """Kill the process."""
        self._process.kill()

    def poll(self) -> int:
        """Return the process' status."""
        status = self._process.poll()
        return int(JobReturnCode.UNKNOWN if status is None else _RETURN_CODES.get(status, self._failure))

    def wait(self) -> None:
        """Wait for the process to end."""
        self._process.wait()
