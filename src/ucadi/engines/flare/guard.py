# SPDX-License-Identifier: Apache-2.0
"""What a site's FLARE process lets itself be told: by the coordinator only, and exactly the job that we know.

FLARE 2.9 takes a job's name for a folder's: told to delete the run ``/data``, it deletes ``/data``. It checks
an app's signature, which a coordinator that was taken over can make, and lets any site of the federation
command any other. So every command passes here first, and what is not known is refused and logged.
"""

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from ucadi.errors import EngineError
from ucadi.logs import event, get_logger

__all__ = ["JOB_NAME", "NEEDED_COMMANDS", "check_app", "close_commands", "hear_coordinator_only"]

_LOG = get_logger("engines.flare")

NEEDED_COMMANDS = frozenset(
    {
        "AbortAppProcessor",
        "AbortTaskProcessor",
        "CancelResourceProcessor",
        "CheckResourceProcessor",
        "ClientInfoProcessor",
        "ClientStatusProcessor",
        "DeleteRunNumberProcessor",
        "DeployProcessor",
        "NotifyJobStatusProcessor",
        "ScopeInfoProcessor",
        "ShutdownClientProcessor",
        "StartJobProcessor",
    }
)
"""What a coordinator may ask of a site: to deploy, start, stop and describe a job."""

JOB_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The only names of jobs: no folder has one by chance."""

_CONFIG = "config/config_fed_client.json"
_SIGNATURES = re.compile(r"(config/)?\.?__nvfl_[a-z_]{1,30}\.(json|crt)")
_LARGEST_APP = 1 << 20
_MOST_FILES = 20


def close_commands(executor: str) -> None:
    """Take all commands but the needed ones from FLARE's client, and guard those.

    Its authorization file is read only when the coordinator's message asks for it, so against a hostile
    coordinator it does not protect: a shell command such as ``cat`` would run. What is not there cannot.

    Args:
        executor: Full name of the only class that a job may name.

    Raises:
        EngineError: If this FLARE names its commands otherwise; then nothing is known to be closed.
    """
    from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

    offered = {type(command).__name__: command for command in ClientRequestProcessors.request_processors}
    if not offered.keys() >= NEEDED_COMMANDS:
        raise EngineError("site-kit-altered", "The engine's commands are not those of the pinned release.")
    kept = [offered[name] for name in sorted(NEEDED_COMMANDS)]
    for command in kept:
        command.process = _guarded(command.process, type(command).__name__, executor)
    ClientRequestProcessors.request_processors[:] = kept


def hear_coordinator_only() -> None:
    """Refuse what other sites of the federation send; FLARE's server would hand it on.

    Raises:
        EngineError: If this FLARE is built otherwise; then nothing is known to be closed.
    """
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell
    from nvflare.fuel.f3.cellnet.defs import ReturnCode
    from nvflare.fuel.f3.cellnet.utils import make_reply

    process = getattr(CoreCell, "_process_request", None)
    if process is None:
        raise EngineError("site-kit-altered", "The engine's messages are not those of the pinned release.")

    def heard(self: Any, origin: str, message: Any) -> Any:
        if _is_family(origin, self.get_fqcn()):
            return process(self, origin, message)
        event(_LOG, f"message refused: it is from {origin[:100]!r}")
        return make_reply(ReturnCode.INVALID_REQUEST)

    CoreCell._process_request = heard


def check_app(body: object, executor: str) -> None:
    """Refuse a job's app that is not exactly the one that we write.

    Args:
        body: The app's zip file.
        executor: Full name of the only class that it may name.

    Raises:
        EngineError: ``job-refused``, with what is wrong.
    """
    if not isinstance(body, bytes | bytearray | memoryview) or len(body) > _LARGEST_APP:
        raise EngineError("job-refused", "The job's app is no file, or too large.")
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as app:
            entries = [entry for entry in app.infolist() if not entry.is_dir()]
            names = [entry.filename for entry in entries]
            foreign = [name for name in names if name != _CONFIG and not _SIGNATURES.fullmatch(name)]
            if foreign or len(names) > _MOST_FILES or sum(e.file_size for e in entries) > _LARGEST_APP:
                raise EngineError("job-refused", f"The job brings {foreign[-3:] or len(names)}.")
            config = json.loads(app.read(_CONFIG))
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError) as error:
        raise EngineError("job-refused", f"The job's app cannot be read: {error}.") from error
    _check_config(config, executor)


def _check_config(config: object, executor: str) -> None:
    """Allow one class without arguments, and numbers."""
    if not isinstance(config, dict):
        raise EngineError("job-refused", "The job's configuration is no object.")
    expected: Mapping[str, object] = {
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
        "executors": [{"tasks": ["none"], "executor": {"path": executor, "args": {}}}],
    }
    for name, value in expected.items():
        if config.get(name) != value:
            raise EngineError("job-refused", f"The job's {name} are {config.get(name)!r:.300}.")
    for name, value in config.items():
        if name not in expected and type(value) not in (int, float):
            raise EngineError("job-refused", f"The job sets {name[:100]!r} to {value!r:.100}.")


def _guarded(process: Callable[..., Any], name: str, executor: str) -> Callable[..., Any]:
    """Return a command that checks what it is told to do first."""

    def guarded(request: Any, app_ctx: Any) -> Any:
        from nvflare.private.admin_defs import error_reply
        from nvflare.private.defs import RequestHeader

        job = request.get_header(RequestHeader.JOB_ID)
        try:
            if job not in (None, "") and not (isinstance(job, str) and JOB_NAME.fullmatch(job)):
                raise EngineError("job-refused", f"{job!r:.200} is no job's name.")
            if name == "DeployProcessor":
                check_app(request.body, executor)
        except EngineError as error:
            event(_LOG, f"command refused: {name}: {error.detail}", code=error.code)
            return error_reply(error.code)
        return process(request, app_ctx)

    return guarded


def _is_family(origin: object, me: str) -> bool:
    """Tell whether a sender is the coordinator, above, or one of my own processes."""
    if not isinstance(origin, str):
        return False
    mine, other = me.split("."), origin.split(".")
    shorter = min(len(mine), len(other))
    return other[0] == "server" or mine[:shorter] == other[:shorter]
