# SPDX-License-Identifier: Apache-2.0
"""A site's side of the protocol: a request's bytes in, a reply's bytes out, no engine and no clock."""

import dataclasses
from typing import TypeVar

from ucadi.errors import FederationError, UcadiError, UpdateRejectedError
from ucadi.federation.messages import (
    Call,
    Phase,
    Refusal,
    Reply,
    Update,
    Validation,
    decode_call,
    encode_reply,
)
from ucadi.federation.plans import RoundPlan, RunPlan
from ucadi.federation.ports import Cipher, Gate, Outbox, ReplyKey, Trainer
from ucadi.logs import event, get_logger

__all__ = ["MemoryOutbox", "OpenGate", "Site"]

_LOG = get_logger("federation.site")

ReportT = TypeVar("ReportT", Update, Validation)

_KINDS = {Phase.READY: "readiness", Phase.TRAIN: "update", Phase.VALIDATE: "validation"}


class Site:
    """Answers requests; one that is repeated gets the same bytes again.

    Args:
        name: The site's name, as its certificate states it.
        trainer: Its data and computer.
        cipher: How its updates are hidden.
        outbox: Keeps what is sent.
        gate: Decides which plans the site takes part in.
    """

    def __init__(self, name: str, trainer: Trainer, cipher: Cipher, outbox: Outbox, gate: Gate) -> None:
        self.name = name
        self._trainer = trainer
        self._cipher = cipher
        self._outbox = outbox
        self._gate = gate
        self._run_id: str | None = None
        self._round = 0

    def answer(self, body: bytes | bytearray | memoryview) -> bytes | bytearray:
        """Answer one request. Whatever is wrong becomes a refusal that holds only a registered code."""
        plan: RoundPlan | None = None
        try:
            call = decode_call(body)
            plan = call.plan
            self._enter(call)
            self._gate.check(plan.run)
            kind, reply = _KINDS[call.phase], self._recall_or_do(call)
            self._gate.check(plan.run)  # again: training takes long, and people may have changed their mind
        except UcadiError as error:
            event(_LOG, "request refused", code=error.code, detail=error.detail)
            kind, reply = "refusal", self.refuse(plan, error.code)
        self._outbox.note(kind, plan, reply)
        return reply

    def refuse(self, plan: RoundPlan | None, code: str) -> bytearray:
        """Return the bytes of a refusal; of no run when the request could not be read."""
        run_id, number = (plan.run_id, plan.round) if plan else ("", 0)
        return encode_reply(Refusal(run_id, number, self.name, code))

    def _enter(self, call: Call) -> None:
        """Check that the request belongs to this run and to this or a later round."""
        plan = call.plan
        if self._run_id not in (None, plan.run_id) or plan.round < self._round:
            raise UpdateRejectedError(
                "round-stale",
                f"The request is for round {plan.round} of run {plan.run_id!r}, "
                f"this site is at round {self._round} of run {self._run_id!r}.",
            )
        if call.phase is not Phase.READY and (call.model is None or call.model.hash != plan.model_hash):
            raise FederationError("model-mismatch", "The model's hash is not the one in the plan.")
        if not plan.run.calls(self.name):
            raise FederationError("site-unknown", f"The plan names other sites: {', '.join(plan.run.sites)}.")
        self._run_id, self._round = plan.run_id, plan.round

    def _recall_or_do(self, call: Call) -> bytes | bytearray:
        """Return the kept reply to a request, or do what it asks and keep the reply before it leaves."""
        plan = call.plan
        if call.phase is Phase.READY:  # costs nothing, and what it says may change
            return encode_reply(self._do(call))
        key = ReplyKey(plan.run_id, plan.round, call.phase, plan.model_hash, plan.run.hash)
        kept = self._outbox.recall(key)
        if kept is not None:
            event(_LOG, "reply repeated", phase=call.phase, run=plan.run_id, round=plan.round)
            return kept
        reply = encode_reply(self._do(call))
        self._outbox.keep(key, reply)
        return reply

    def _do(self, call: Call) -> Reply:
        """Do what the request asks; report only what the plan names."""
        event(_LOG, "request", phase=call.phase, run=call.plan.run_id, round=call.plan.round)
        if call.model is None:
            return self._trainer.readiness(call.plan)
        if call.phase is Phase.VALIDATE:
            return _only_asked(self._trainer.validate(call.plan, call.model), call.plan.run)
        update = _only_asked(self._trainer.train(call.plan, call.model), call.plan.run)
        return self._cipher.protect(update, call.plan)


def _only_asked(reply: ReportT, plan: RunPlan) -> ReportT:
    """Return a reply without metrics that the plan does not name."""
    metrics = {name: value for name, value in reply.metrics.items() if name in plan.metrics}
    return dataclasses.replace(reply, metrics=metrics)


class OpenGate:
    """Takes part in every plan: for simulation on one's own machine."""

    def check(self, plan: RunPlan) -> None:
        """Agree."""


class MemoryOutbox:
    """Keeps the replies of the current round in memory: for simulation."""

    def __init__(self) -> None:
        self._kept: dict[ReplyKey, bytes | bytearray] = {}

    def recall(self, key: ReplyKey) -> bytes | None:
        """Return the reply that was kept for a request, or None."""
        kept = self._kept.get(key)
        return None if kept is None else bytes(kept)

    def keep(self, key: ReplyKey, body: bytes | bytearray) -> None:
        """Keep a reply; those of other rounds are forgotten."""
        self._kept = {k: v for k, v in self._kept.items() if (k.run_id, k.round) == (key.run_id, key.round)}
        self._kept[key] = body

    def note(self, kind: str, plan: RoundPlan | None, body: bytes | bytearray) -> None:
        """Nothing leaves this process."""
