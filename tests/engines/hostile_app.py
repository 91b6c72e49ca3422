# SPDX-License-Identifier: Apache-2.0
"""What the process of a job at a coordinator that was taken over may try against its sites.

It writes what came of each attempt to ``attacks.json`` in the run's folder.
"""

import json
import time
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.private.admin_defs import Message as Command
from nvflare.private.defs import CellChannel, RequestHeader, TrainingTopic, new_cell_message

from ucadi.engines.flare.cell_line import CellLine

__all__ = ["HostileController"]

SITE = "site-1"


class HostileController(Controller):
    """Tries everything, one after the other."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        workspace, engine = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT), fl_ctx.get_engine()
        settings = tomllib.loads((Path(workspace.get_root_dir()) / "local" / "ucadi.toml").read_text())
        self.folder = Path(settings["runs"]) / self.run_id
        self.target = json.loads((self.folder / "target.json").read_text())
        self.core, self.line = engine.get_cell().core_cell, CellLine(engine.get_cell())
        self.job = f"{SITE}.{fl_ctx.get_job_id()}"
        while self.line.ask(self.job, "look", {"open": [], "drop": []}, 5.0) is None:
            time.sleep(0.2)
        results = {}
        for attempt in (
            self.oversized_call,
            self.pickle,
            self.task,
            self.commands,
            self.traversal,
            self.frame,
        ):
            try:
                results[attempt.__name__] = attempt(engine, fl_ctx)
            except Exception as error:  # what the test then shows
                results[attempt.__name__] = f"{type(error).__name__}: {error}"
        (self.folder / "attacks.json").write_text(json.dumps(results, default=str))

    def oversized_call(self, engine: Any, fl_ctx: FLContext) -> object:
        """Announce a petabyte."""
        self.line.ask(self.job, "call", {"id": "big", "size": 1 << 50, "sha256": "0" * 64}, 5.0)
        return self._reply("big")

    def pickle(self, engine: Any, fl_ctx: FLContext) -> object:
        """Send Python's own serialization, which runs what it says when it is read."""
        body = b"cposix\nsystem\n(S'touch " + self.target["marker"].encode() + b"'\ntR."
        self.line.listen("piece", lambda sender, note: ({}, body), [self.job])
        from ucadi.engines.flare.parcels import Parcel

        self.line.ask(self.job, "call", {"id": "pickle", **Parcel(body).note}, 5.0)
        foreign = Message({"ucadi.note": {}, MessageHeaderKey.PAYLOAD_ENCODING: "fobs"}, body)
        reply = self.core.send_request("ucadi", "look", self.job, foreign, 5.0, optional=True)
        return [self._reply("pickle"), str(reply.payload)]

    def task(self, engine: Any, fl_ctx: FLContext) -> object:
        """Use FLARE's own way to hand out work, as any site can."""
        request = Shareable()
        request.set_header(ReservedHeaderKey.TASK_NAME, "none")
        request.set_header(ReservedHeaderKey.TASK_ID, "1")
        reply = engine.send_aux_request([SITE], "__do_task__", request, 5.0, fl_ctx)[SITE]
        return reply.get_return_code()

    def commands(self, engine: Any, fl_ctx: FLContext) -> object:
        """Ask the site's main process for what an administrator may ask with FLARE's defaults."""
        answers = {}
        for topic in ("sys.info", "scheduler.report_resources", "train.restart", "report.env", "shell", "x"):
            answers[topic] = self._command(topic, "ls /", {})
        return answers

    def traversal(self, engine: Any, fl_ctx: FLContext) -> object:
        """Name folders of the site as jobs, and ship files that leave the job's folder."""
        packed = BytesIO()
        with zipfile.ZipFile(packed, "w") as app:
            app.writestr("../../../evil.py", "evil")
        headers = {RequestHeader.JOB_META: {"name": "x"}, RequestHeader.APP_NAME: "../../evil"}
        answers = []
        for name in (self.target["folder"], "../../precious", "startup", "."):
            job = {RequestHeader.JOB_ID: name}
            answers.append(self._command(TrainingTopic.DELETE_RUN, "", job))
            answers.append(self._command(TrainingTopic.DEPLOY, packed.getvalue(), {**headers, **job}))
        right_name = {RequestHeader.JOB_ID: "12345678-1234-1234-1234-123456789012"}
        answers.append(self._command(TrainingTopic.DEPLOY, packed.getvalue(), {**headers, **right_name}))
        answers.append(self._command(TrainingTopic.DEPLOY, b"\0" * (2 << 20), {**headers, **right_name}))
        return answers

    def frame(self, engine: Any, fl_ctx: FLContext) -> object:
        """Send 100 MB in one frame to the site's main process."""
        message = Message({"ucadi.note": {}}, bytes(100 << 20))
        reply = self.core.send_request("ucadi", "look", SITE, message, 5.0, optional=True)
        return str(reply.get_header(MessageHeaderKey.RETURN_CODE))

    def _command(self, topic: str, body: object, headers: dict[str, object]) -> str:
        command = Command(topic=topic, body=body)
        for name, value in headers.items():
            command.set_header(name, value)
        reply = self.core.send_request(
            CellChannel.CLIENT_MAIN, topic, SITE, new_cell_message({}, command), 5.0, optional=True
        )
        answer = reply.payload
        return f"{reply.get_header(MessageHeaderKey.RETURN_CODE)} {getattr(answer, 'body', answer)}"

    def _reply(self, number: str) -> str:
        for _ in range(50):
            answer = self.line.ask(self.job, "look", {"open": [number], "drop": []}, 5.0)
            if answer and isinstance(answer[0].get(number), dict):
                piece = self.line.ask(self.job, "piece", {"id": number, "index": 0}, 5.0)
                return piece[1].decode(errors="replace") if piece else ""
            time.sleep(0.1)
        return "no reply"

    def start_controller(self, fl_ctx: FLContext) -> None:
        pass

    def stop_controller(self, fl_ctx: FLContext) -> None:
        pass

    def process_result_of_unknown_task(self, client, task_name, client_task_id, result, fl_ctx) -> None:  # type: ignore[no-untyped-def]
        pass
