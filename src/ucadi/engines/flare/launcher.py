# SPDX-License-Identifier: Apache-2.0
"""How a site starts the process of a job."""

from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher

__all__ = ["SiteLauncher"]


class SiteLauncher(ClientProcessJobLauncher):  # type: ignore[misc]  # nvflare ships no types
    """Keeps a crash at one site from ending the run of all.

    FLARE 2.9 reports a job process that was killed or ran out of memory as a failed job, and the coordinator
    then ends the job everywhere. With an unknown status it goes on and soon counts the site as lost.
    """

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        """Start the process."""
        return _Handle(super().launch_job(job_meta, fl_ctx))


class _Handle(JobHandleSpec):  # type: ignore[misc]  # nvflare ships no types
    """A job process whose failure has no name."""

    def __init__(self, process: JobHandleSpec) -> None:
        self._process = process

    def terminate(self) -> None:
        """Kill the process."""
        self._process.terminate()

    def poll(self) -> int:
        """Return the process' status."""
        status = int(self._process.poll())
        return int(JobReturnCode.UNKNOWN) if status == JobReturnCode.EXECUTION_ERROR else status

    def wait(self) -> None:
        """Wait for the process to end."""
        self._process.wait()
