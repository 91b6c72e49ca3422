# SPDX-License-Identifier: Apache-2.0
"""What runs inside an NVIDIA FLARE job: a transport at the coordinator, a site at each client.

A job names two classes of the installed package and carries no code. The coordinator's class gets the
folder of the run; the site's class gets nothing at all, so a job cannot pass it anything. Each exchange is
one broadcast task whose only content is the message's bytes.
"""

import math
import queue
from abc import ABC, abstractmethod
from pathlib import Path

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from ucadi.errors import EngineError, UcadiError
from ucadi.federation.messages import Refusal, decode_call, encode_reply
from ucadi.federation.ports import Exchange, OnReply, Transport
from ucadi.federation.site import Site
from ucadi.logs import event, get_logger, log_to_file

__all__ = ["BODY", "CALL", "FlareController", "FlareSite", "FlareTransport", "refuse"]

_LOG = get_logger("engines.flare")

CALL = "call"
"""Name of the only task."""

BODY = "body"
"""Key of the message's bytes in a task and in its result."""

_POLL_S = 0.05
"""How often a waiting exchange looks for replies, its end, and an abort."""


class FlareTransport:
    """Sends each exchange as one broadcast task.

    Replies are handed over in the thread that called `exchange`, never in an engine thread: an exception in
    a FLARE callback would only be logged, and the job would end as completed.

    Args:
        controller: The controller whose communicator carries the tasks.
        fl_ctx: The context of its control flow.
        abort_signal: Set when the job is to end.
    """

    def __init__(self, controller: Controller, fl_ctx: FLContext, abort_signal: Signal) -> None:
        self._controller = controller
        self._fl_ctx = fl_ctx
        self._abort_signal = abort_signal

    def exchange(self, exchange: Exchange, on_reply: OnReply) -> None:
        """Send to the addressed sites that take part in the job; return when they replied or are lost.

        Raises:
            EngineError: ``interrupted`` if the job is aborted meanwhile.
        """
        in_job = {client.name for client in self._fl_ctx.get_engine().get_clients()}
        targets = [site for site in exchange.sites if site in in_job]
        if not targets:
            return
        replies: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()

        def keep(client_task: ClientTask, fl_ctx: FLContext) -> None:  # FLARE calls it by these names
            replies.put((client_task.client.name, _body(client_task.result)))
            client_task.result = None  # else the task would hold all updates until it ends

        task = Task(
            name=CALL,
            # bytes, not bytearray: FLARE deep-copies the data of a broadcast, and bytes copy for nothing
            data=Shareable({BODY: bytes(exchange.body)}),
            timeout=max(1, math.ceil(exchange.deadline_s)),
            result_received_cb=keep,
        )
        self._controller.broadcast(task, self._fl_ctx, targets=targets, min_responses=len(targets))
        self._wait(task, replies, on_reply)

    def _wait(self, task: Task, replies: "queue.SimpleQueue[tuple[str, bytes]]", on_reply: OnReply) -> None:
        """Hand over replies until the task has ended and none is left."""
        while True:
            has_ended = task.completion_status is not None  # before looking: a last reply may come between
            try:
                on_reply(*replies.get(timeout=0 if has_ended else _POLL_S))
            except queue.Empty:
                if has_ended:
                    break
            if self._abort_signal.triggered:
                self._controller.cancel_task(task)
                raise EngineError("interrupted", "The engine aborted the job.")
        event(_LOG, "exchange ended", status=task.completion_status.value)


class FlareController(Controller, ABC):  # type: ignore[misc]  # nvflare ships no types
    """Runs one federated run as a FLARE job's workflow.

    Args:
        run_folder: The run's folder on the coordinator, where the run finds its plan and leaves its outcome.
    """

    def __init__(self, run_folder: str) -> None:
        super().__init__()
        self.run_folder = Path(run_folder)

    @abstractmethod
    def run(self, transport: Transport) -> None:
        """Do the run and leave its outcome in ``run_folder``."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Do the run; any error ends the job as failed."""
        log_to_file(self.run_folder / "coordinator.jsonl")
        try:
            self.run(FlareTransport(self, fl_ctx, abort_signal))
        except UcadiError as error:
            event(_LOG, "run failed", code=error.code, detail=error.detail)
            self.system_panic(error.code, fl_ctx)

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: the control flow does it all."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: an exchange leaves no task behind."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Ignore a reply that comes after its deadline."""


class FlareSite(Executor, ABC):  # type: ignore[misc]  # nvflare ships no types
    """Answers calls at a site. Takes no argument, so that a job cannot pass any."""

    def __init__(self) -> None:
        super().__init__()
        self._name = ""
        self._site: Site | None = None
        self._code = "site-failed"

    @abstractmethod
    def make_site(self, site_name: str, config_folder: Path) -> Site:
        """Build the site from its own local files, never from the job.

        Args:
            site_name: The name in the site's certificate.
            config_folder: The ``local`` folder of the site's kit.
        """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Build the site when the job starts."""
        if event_type != EventType.START_RUN:
            return
        workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
        self._name = fl_ctx.get_identity_name()
        log_to_file(Path(workspace.get_root_dir()) / "logs" / "ucadi.jsonl")
        try:
            self._site = self.make_site(self._name, Path(workspace.get_site_config_dir()))
        except UcadiError as error:
            self._code = error.code
            event(_LOG, "site cannot start", code=error.code, detail=error.detail)
        except Exception:  # the border of the site: nothing but a code may leave it
            _LOG.exception("site cannot start")

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Answer one call with bytes; whatever goes wrong becomes a refusal."""
        body = _body(shareable)
        reply = make_reply(ReturnCode.OK)
        try:
            reply[BODY] = bytes(
                self._site.answer(body) if self._site else refuse(self._name, body, self._code)
            )
        except Exception:  # the border of the site: nothing but a code may leave it
            _LOG.exception("call failed")
            reply[BODY] = bytes(refuse(self._name, body, "site-failed"))
        return reply


def refuse(site: str, body: bytes, code: str) -> bytearray:
    """Return the bytes of a refusal of a call, which may be unreadable."""
    try:
        plan = decode_call(body).plan
    except UcadiError:
        return encode_reply(Refusal("", 0, site, code))
    return encode_reply(Refusal(plan.run_id, plan.round, site, code))


def _body(message: Shareable | None) -> bytes:
    """Return a message's bytes; none when it carries something else, which no decoder accepts."""
    body = message.get(BODY) if message is not None else None
    return bytes(body) if isinstance(body, bytes | bytearray) else b""
