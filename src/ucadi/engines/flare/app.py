# SPDX-License-Identifier: Apache-2.0
"""What runs inside an NVIDIA FLARE job: a transport at the coordinator, a site at each client.

A job names two classes of the installed package and carries no code. The coordinator's class gets the name
of the run; the site's class gets nothing at all, so a job cannot pass it anything.
"""

from abc import ABC, abstractmethod
from pathlib import Path

from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from ucadi.engines.flare.cell_line import CellLine
from ucadi.engines.flare.reception import Reception
from ucadi.engines.flare.transport import FlareTransport
from ucadi.errors import UcadiError
from ucadi.federation.messages import Refusal, decode_call, encode_reply
from ucadi.federation.ports import Transport
from ucadi.federation.site import Site
from ucadi.logs import event, get_logger, log_to_file

__all__ = ["FlareController", "FlareSite", "refuse"]

_LOG = get_logger("engines.flare")


class FlareController(Controller, ABC):  # type: ignore[misc]  # nvflare ships no types
    """Runs one federated run as a FLARE job's workflow.

    Args:
        run_id: Name of the run. Where its files are, the coordinator's own settings say.
    """

    NEEDS: tuple[str, ...] = ()
    """Modules that a run imports: they are imported beforehand."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id

    @abstractmethod
    def run(self, kit: Path, transport: Transport) -> None:
        """Do the run, or a part of it until the members change, and store what came of it.

        Args:
            kit: The coordinator's kit; its ``local/ucadi.toml`` says where its home is.
            transport: Carries messages to the sites of this job.
        """

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Do the run; any error ends the job as failed."""
        workspace, engine = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT), fl_ctx.get_engine()
        kit, job = Path(workspace.get_root_dir()), fl_ctx.get_job_id()
        log_to_file(kit / "logs" / "ucadi.jsonl")
        addresses = {client.name: FQCN.join([client.get_fqcn(), job]) for client in engine.get_clients()}
        event(_LOG, "job started", run=self.run_id, job=job, sites=sorted(addresses))
        transport = FlareTransport(
            CellLine(engine.get_cell()),
            addresses,
            Path(workspace.get_run_dir(job)),
            lambda: bool(abort_signal.triggered),
        )
        try:
            self.run(kit, transport)
        except UcadiError as error:
            event(_LOG, "run failed", code=error.code, detail=error.detail)
            self.system_panic(error.code, fl_ctx)
        finally:
            transport.close()

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: the control flow does it all."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: there are no tasks."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Ignore what nobody asked for."""


class FlareSite(Executor, ABC):  # type: ignore[misc]  # nvflare ships no types
    """Answers calls at a site. Takes no argument, so that a job cannot pass any."""

    NEEDS: tuple[str, ...] = ()
    """Modules that the site imports: they are imported beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self._name = ""
        self._kit = Path()
        self._site: Site | None = None
        self._code = "site-failed"
        self._reception: Reception | None = None

    @abstractmethod
    def make_site(self, site_name: str, config_folder: Path) -> Site:
        """Build the site from its own local files, never from the job.

        Args:
            site_name: The name in the site's certificate.
            config_folder: The ``local`` folder of the site's kit.
        """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Open the site when the job starts, close it when it ends."""
        if event_type == EventType.START_RUN:
            workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
            self._name = fl_ctx.get_identity_name()
            self._kit = Path(workspace.get_root_dir())
            log_to_file(self._kit / "logs" / "ucadi.jsonl")
            coordinator = FQCN.join([FQCN.ROOT_SERVER, fl_ctx.get_job_id()])
            line = CellLine(fl_ctx.get_engine().get_cell())
            self._reception = Reception(line, coordinator, self._answer, self._refuse)
            self._reception.open(self._prepare)
        elif event_type == EventType.END_RUN and self._reception:
            self._reception.close()

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Refuse: calls come on the line. A task could be another site's, and its result would go there."""
        event(_LOG, "task refused", task=task_name[:200])
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _prepare(self) -> None:
        """Build the site."""
        try:
            self._site = self.make_site(self._name, self._kit / "local")
        except UcadiError as error:
            self._code = error.code
            event(_LOG, "site cannot start", code=error.code, detail=error.detail)
        except Exception:  # the border of the site: nothing but a code may leave it
            _LOG.exception("site cannot start")

    def _answer(self, body: bytes | memoryview) -> bytes | bytearray:
        """Answer one call; whatever goes wrong becomes a refusal."""
        try:
            return self._site.answer(body) if self._site else refuse(self._name, body, self._code)
        except Exception:  # the border of the site: nothing but a code may leave it
            _LOG.exception("call failed")
            return refuse(self._name, body, "site-failed")

    def _refuse(self, code: str) -> bytearray:
        """Refuse a call that was not fetched."""
        return encode_reply(Refusal("", 0, self._name, code))


def refuse(site: str, body: bytes | memoryview, code: str) -> bytearray:
    """Return the bytes of a refusal of a call, which may be unreadable."""
    try:
        plan = decode_call(body).plan
    except UcadiError:
        return encode_reply(Refusal("", 0, site, code))
    return encode_reply(Refusal(plan.run_id, plan.round, site, code))
