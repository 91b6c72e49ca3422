# SPDX-License-Identifier: Apache-2.0
"""A site's side of the protocol: a request's bytes in, a reply's bytes out, no engine and no clock."""

from ucadi.errors import FederationError, UcadiError, UpdateRejectedError
from ucadi.federation.messages import (
    Call,
    Phase,
    Refusal,
    Reply,
    RoundPlan,
    decode_call,
    encode_reply,
)
from ucadi.federation.ports import Cipher, Trainer
from ucadi.logs import event, get_logger

__all__ = ["Site"]

_LOG = get_logger("federation.site")


class Site:
    """Answers requests of one run, each once; a repeated request gets the same bytes again.

    Args:
        name: The site's name, as its certificate states it.
        trainer: Its data and computer.
        cipher: How its updates are hidden.
    """

    def __init__(self, name: str, trainer: Trainer, cipher: Cipher) -> None:
        self.name = name
        self._trainer = trainer
        self._cipher = cipher
        self._run_id: str | None = None
        self._round = 0
        self._answered: dict[Phase, bytearray] = {}

    def answer(self, body: bytes | bytearray | memoryview) -> bytearray:
        """Answer one request. Whatever is wrong becomes a refusal that holds only a registered code."""
        plan: RoundPlan | None = None
        try:
            call = decode_call(body)
            plan = call.plan
            self._enter(call)
            if call.phase not in self._answered:
                self._answered[call.phase] = encode_reply(self._do(call))
            return self._answered[call.phase]
        except UcadiError as error:
            event(_LOG, "request refused", code=error.code, detail=error.detail)
            run_id, number = (plan.run_id, plan.round) if plan else ("", 0)
            return encode_reply(Refusal(run_id, number, self.name, error.code))

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
        if plan.round > self._round:
            self._run_id, self._round, self._answered = plan.run_id, plan.round, {}

    def _do(self, call: Call) -> Reply:
        """Do what the request asks."""
        event(_LOG, "request", phase=call.phase, run=call.plan.run_id, round=call.plan.round)
        if call.model is None:
            return self._trainer.readiness(call.plan)
        if call.phase is Phase.VALIDATE:
            return self._trainer.validate(call.plan, call.model)
        return self._cipher.protect(self._trainer.train(call.plan, call.model), call.plan)
