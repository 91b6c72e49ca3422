# SPDX-License-Identifier: Apache-2.0
"""The coordinator's side of the protocol as a state machine: replies' bytes in, requests out.

A run is a sequence of rounds. Each round asks who is ready, sends the global model to those, adds their
updates as they arrive and makes the next global model. Sites measure each model on their own validation
studies when they receive it; the best one is selected by their mean.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ucadi.errors import QuorumError, UcadiError, UpdateRejectedError
from ucadi.federation.aggregation import apply_total
from ucadi.federation.messages import (
    Call,
    GlobalModel,
    Phase,
    Readiness,
    Refusal,
    Reply,
    RoundPlan,
    RunPlan,
    Update,
    Validation,
    decode_reply,
    encode_call,
)
from ucadi.federation.ports import Cipher, Exchange
from ucadi.logs import event, get_logger

__all__ = ["SELECTION_METRIC", "Coordinator", "OnProgress", "Progress", "RoundRecord"]

_LOG = get_logger("federation.coordinator")

SELECTION_METRIC = "validation"
"""Name of the metric by which sites judge the global model that they received; in [0, 1], 1 is best."""

NO_ANSWER = "no-answer"
"""Why a site is missing when it did not reply in time."""


@dataclass(frozen=True)
class Progress:
    """Something that a person who follows the run wants to know.

    Attributes:
        kind: ``ready``, ``update``, ``validation`` or ``missing``.
        round: From 1.
        site: Whom it is about.
        detail: The reason when a site is missing.
    """

    kind: str
    round: int
    site: str
    detail: str = ""


OnProgress = Callable[[Progress], None]


@dataclass
class RoundRecord:
    """What happened in one round.

    Attributes:
        round: From 1.
        participants: Sites whose updates are in the sum.
        missing: Why the others are not: a registered code, or ``no-answer``.
        metrics: What each participant reported.
        validation: Mean of the participants' selection metric for the model that the round started from.
        upload_bytes: Bytes of all accepted updates.
    """

    round: int
    participants: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Mapping[str, float]] = field(default_factory=dict)
    validation: float | None = None
    upload_bytes: int = 0


class Coordinator:
    """Plans rounds and aggregates. It holds the current global model and no update.

    Args:
        plan: The run.
        model: The initial model (round 0), or the last one when a run goes on.
        cipher: How updates are hidden.
        on_progress: Told of each accepted reply and of each missing site.
    """

    def __init__(
        self,
        plan: RunPlan,
        model: GlobalModel,
        cipher: Cipher,
        on_progress: OnProgress = lambda progress: None,
    ) -> None:
        self.plan = plan
        self.model = model
        self.best = model
        self.best_validation: float | None = None
        self.records: list[RoundRecord] = []
        self._cipher = cipher
        self._on_progress = on_progress
        self._phase = Phase.READY
        self._ready: dict[str, int] = {}
        self._is_done = False
        self._open_round()

    def next_exchange(self) -> Exchange | None:
        """Return the next messages to send, or None when the run has ended."""
        if self._is_done:
            return None
        targets = self.plan.sites if self._phase is Phase.READY else tuple(self._ready)
        model = None if self._phase is Phase.READY else self.model
        deadline = self.plan.ready_deadline_s if self._phase is Phase.READY else self.plan.train_deadline_s
        return Exchange(encode_call(Call(self._phase, self._round_plan(), model)), targets, deadline)

    def receive(self, site: str, body: bytes | bytearray | memoryview) -> None:
        """Take one reply; a wrong one is refused with a reason and changes nothing else.

        Args:
            site: The sender's authenticated name.
            body: The reply's bytes.
        """
        try:
            reply = decode_reply(body)
            self._check_sender(site, reply)
            if site in self._answered:
                event(_LOG, "second answer ignored", site=site, round=self._round)
            elif isinstance(reply, Refusal):
                self._miss(site, reply.code)
            elif isinstance(reply, Readiness):
                self._ready[site] = reply.num_studies
                self._tell("ready", site)
            elif isinstance(reply, Validation):
                self._record.metrics[site] = reply.metrics
                self._tell("validation", site)
            else:
                self._add(site, reply, len(body))
                self._tell("update", site)
        except UcadiError as error:
            self._miss(site, error.code)
            event(_LOG, "reply refused", site=site, round=self._round, code=error.code, detail=error.detail)

    def close_phase(self) -> RoundRecord | None:
        """End the phase with the replies that came; return the record when a round or the run is complete.

        Raises:
            QuorumError: If fewer than the plan's ``min_sites`` are ready or sent an acceptable update.
        """
        for site in self.plan.sites if self._phase is Phase.READY else self._ready:
            if site not in self._answered and site not in self._record.missing:
                self._miss(site, NO_ANSWER)
        if self._phase is Phase.READY:
            self._require_quorum(len(self._ready), "are ready")
            # After the last round the model is only validated.
            self._phase = Phase.TRAIN if self.model.round < self.plan.rounds else Phase.VALIDATE
            return None
        return self._close_round() if self._phase is Phase.TRAIN else self._close_validation()

    def _tell(self, kind: str, site: str, detail: str = "") -> None:
        """Pass on progress."""
        self._on_progress(Progress(kind, self._round, site, detail))

    def _miss(self, site: str, why: str) -> None:
        """Note why a site is not in the round."""
        self._record.missing[site] = why
        self._tell("missing", site, why)

    @property
    def _answered(self) -> Mapping[str, object]:
        """The sites whose answer of this phase was accepted."""
        return self._ready if self._phase is Phase.READY else self._record.metrics

    @property
    def _round(self) -> int:
        """The current round, from 1; one more than ``rounds`` while the last model is validated."""
        return self.model.round + 1

    def _open_round(self) -> None:
        """Start the next round with empty hands."""
        self._phase = Phase.READY
        self._ready = {}
        self._record = RoundRecord(self._round)
        self._sum = self._cipher.accumulator(self.model)

    def _round_plan(self) -> RoundPlan:
        """Return what the sites are told about the round."""
        plan = self.plan
        return RoundPlan(
            run_id=plan.run_id,
            round=self._round,
            rounds=plan.rounds,
            seed=plan.seed,
            training=plan.training,
            aggregation_weights=plan.client_weights,
            protection=plan.protection,
            model_hash=self.model.hash,
        )

    def _check_sender(self, site: str, reply: Reply) -> None:
        """Check that the reply is from whom it says, for this round and phase, and the first one."""
        expected = {Phase.READY: Readiness, Phase.TRAIN: Update, Phase.VALIDATE: Validation}[self._phase]
        if site not in self.plan.sites or reply.site != site:
            raise UpdateRejectedError("site-unknown", f"{site!r} sent a reply in the name of {reply.site!r}.")
        if isinstance(reply, Refusal) and not reply.run_id:
            return  # the site could not read the request, so it does not know the round either
        if (reply.run_id, reply.round) != (self.plan.run_id, self._round):
            raise UpdateRejectedError(
                "round-stale",
                f"{site} answered round {reply.round} of run {reply.run_id!r}, "
                f"this is round {self._round} of run {self.plan.run_id!r}.",
            )
        if not isinstance(reply, Refusal | expected):
            raise UpdateRejectedError("message-invalid", f"{site} sent a {type(reply).__name__} out of turn.")
        if isinstance(reply, Update | Validation):
            score = reply.metrics.get(SELECTION_METRIC, 0.0)
            if not 0.0 <= score <= 1.0:  # one site could decide the selection with a number of its own
                raise UpdateRejectedError("message-invalid", f"{site} reports a validation score of {score}.")
        if self._phase is not Phase.READY and site not in self._ready:
            raise UpdateRejectedError("site-unknown", f"{site} did not say that it is ready.")

    def _add(self, site: str, update: Update, size: int) -> None:
        """Add an update to the sum."""
        self._check_factors(site, update)
        self._sum.check(update)
        self._sum.add(update)
        self._record.participants.append(site)
        self._record.metrics[site] = update.metrics
        self._record.upload_bytes += size

    def _check_factors(self, site: str, update: Update) -> None:
        """Refuse factors beyond the plan's, or a site could own the mean by claiming them."""
        most, weight = self.plan.training.iterations, self.plan.client_weights.get(site, 1.0)
        if (update.iterations or 0) > most or update.aggregation_weight not in (None, weight):
            raise UpdateRejectedError(
                "update-bad-weight",
                f"{site} claims {update.iterations} iterations with weight {update.aggregation_weight}; "
                f"the plan has at most {most} with weight {weight}.",
            )

    def _close_round(self) -> RoundRecord:
        """Make the next global model from the sum."""
        record = self._finish_record()
        self._require_quorum(len(record.participants), "sent an update")
        self.model = apply_total(self.model, self._sum.open(), self.plan.weighting)
        if self.best_validation is None:  # no site can measure: the last model is the one to keep
            self.best = self.model
        self._open_round()
        return record

    def _close_validation(self) -> RoundRecord:
        """End the run."""
        record = self._finish_record()
        self._is_done = True
        return record

    def _finish_record(self) -> RoundRecord:
        """Complete the record and select the model that it judges when it is the best so far."""
        record = self._record
        record.participants.sort()
        for site in record.metrics:
            record.missing.pop(site, None)
        scores = [m[SELECTION_METRIC] for m in record.metrics.values() if SELECTION_METRIC in m]
        if scores:
            # The exact sum: a last bit that depends on who answered first would decide between equal models.
            record.validation = math.fsum(scores) / len(scores)
            if self.best_validation is None or record.validation > self.best_validation:
                self.best, self.best_validation = self.model, record.validation
        self.records.append(record)
        event(
            _LOG, "round closed", round=record.round, participants=record.participants, missing=record.missing
        )
        return record

    def _require_quorum(self, count: int, what: str) -> None:
        """End the run when too few sites take part."""
        if count < self.plan.min_sites:
            reasons = ", ".join(f"{site} ({why})" for site, why in sorted(self._record.missing.items()))
            raise QuorumError(
                "quorum-missed",
                f"Round {self._round}: {count} of {len(self.plan.sites)} sites {what}, "
                f"{self.plan.min_sites} are needed. Missing: {reasons or 'none'}.",
            )
