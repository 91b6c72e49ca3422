# SPDX-License-Identifier: Apache-2.0
"""The coordinator's side of the protocol as a state machine: answers in, requests out.

A run is a sequence of rounds. Each round asks who is ready, sends the global model to those, adds their
updates as they arrive and makes the next global model. Sites measure each model on their own validation
studies when they receive it; the best one is selected by their mean. A round with too few sites is asked
again from its start: sites answer what they were asked before with the bytes they kept, so nothing is
trained twice and the outcome does not depend on how often a round was repeated.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ucadi.errors import UcadiError, UpdateRejectedError
from ucadi.federation.aggregation import apply_total
from ucadi.federation.messages import (
    Call,
    GlobalModel,
    Phase,
    Readiness,
    Refusal,
    Reply,
    Update,
    Validation,
    decode_reply,
    encode_call,
)
from ucadi.federation.plans import RoundPlan, RunPlan
from ucadi.federation.ports import Answer, Cipher, Exchange
from ucadi.federation.records import SELECTION_METRIC, OnProgress, Progress, RoundRecord
from ucadi.logs import event, get_logger

__all__ = ["Checkpoint", "Coordinator", "check_factors", "check_reply", "validation_of"]

_LOG = get_logger("federation.coordinator")

_EXPECTED = {Phase.READY: Readiness, Phase.TRAIN: Update, Phase.VALIDATE: Validation}

LOST = "site-lost"
"""Why a site is missing that the plan names and that is not connected."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands between two rounds: all that is needed to go on with it.

    Attributes:
        model: The current global model; its round is the last complete one.
        best: The model with the best validation so far.
        best_validation: Its score; None while no site could measure any model.
        records: One per complete round.
    """

    model: GlobalModel
    best: GlobalModel
    best_validation: float | None = None
    records: tuple[RoundRecord, ...] = ()

    @classmethod
    def at_start(cls, model: GlobalModel) -> "Checkpoint":
        """Return the state before the first round."""
        return cls(model, model)


class Coordinator:
    """Plans rounds and aggregates. It holds the current global model and no update.

    Args:
        plan: The run.
        state: Where the run stands.
        cipher: How updates are hidden.
        on_progress: Told of each accepted reply and of each missing site.
    """

    def __init__(
        self,
        plan: RunPlan,
        state: Checkpoint,
        cipher: Cipher,
        on_progress: OnProgress = lambda progress: None,
    ) -> None:
        self.plan = plan
        self.model = state.model
        self.best = state.best
        self.best_validation = state.best_validation
        self.records = list(state.records)
        self.shortfall = ""
        """Who is missing and why, when the last phase ended with too few sites; else empty."""
        self._cipher = cipher
        self._on_progress = on_progress
        self._phase = Phase.READY
        self._called: tuple[str, ...] = ()
        self._ready: dict[str, int] = {}
        self._record = RoundRecord(self._round)
        self._sum = cipher.accumulator(self.model)

    @property
    def is_done(self) -> bool:
        """Tell whether the last model has been validated."""
        return len(self.records) > self.plan.rounds

    @property
    def is_between_rounds(self) -> bool:
        """Tell whether nothing of the current round has begun."""
        return self._phase is Phase.READY

    def checkpoint(self) -> Checkpoint:
        """Return where the run stands."""
        return Checkpoint(self.model, self.best, self.best_validation, tuple(self.records))

    def call(self, members: Collection[str]) -> Exchange:
        """Return the next message to send.

        Args:
            members: The sites that may be called now. Who is ready stays in the round, though.
        """
        if self._phase is Phase.READY:
            self._called = tuple(sorted(site for site in members if self.plan.calls(site)))
            for site in sorted(set(self.plan.sites) - set(self._called)):
                self._miss(site, LOST)
            deadline, model = self.plan.ready_deadline_s, None
        else:
            self._called = tuple(sorted(self._ready))
            deadline, model = self.plan.train_deadline_s, self.model
        round_plan = RoundPlan(self.plan, self._round, self.model.hash)
        return Exchange(encode_call(Call(self._phase, round_plan, model)), self._called, deadline)

    def receive(self, answer: Answer) -> None:
        """Take what came of one message; a wrong reply is refused with a reason and changes nothing else."""
        site, body = answer.site, answer.body
        if site in self._answered:
            event(_LOG, "second answer ignored", site=site, round=self._round)
            return
        if body is None:
            self._miss(site, answer.reason)
            return
        try:
            reply = decode_reply(body)
            self._check(site, reply)
            if isinstance(reply, Refusal):
                self._miss(site, reply.code)
            elif isinstance(reply, Readiness):
                self._ready[site] = reply.num_studies
                self._accept("ready", site)
            elif isinstance(reply, Validation):
                self._record.metrics[site] = reply.metrics
                self._accept("validation", site)
            else:
                self._add(site, reply, len(body))
                self._accept("update", site)
        except UcadiError as error:
            self._miss(site, error.code)
            event(_LOG, "reply refused", site=site, round=self._round, code=error.code, detail=error.detail)

    def close_phase(self) -> RoundRecord | None:
        """End the phase with the replies that came; return the record when a round is complete.

        With fewer than ``min_sites`` the round begins anew and `shortfall` says who is missing.
        """
        phase, self.shortfall = self._phase, ""
        if not self._has_quorum():
            self._say_shortfall()
            self._open_round()
            return None
        if phase is Phase.READY:
            # After the last round the model is only validated.
            self._phase = Phase.TRAIN if self.model.round < self.plan.rounds else Phase.VALIDATE
            self._called = ()
            return None
        record = self._finish_record()
        if phase is Phase.TRAIN:
            self.model = apply_total(self.model, self._sum.open(), self.plan.weighting)
            if self.best_validation is None:  # no site can measure: the last model is the one to keep
                self.best = self.model
        self._open_round()
        return record

    @property
    def _answered(self) -> Collection[str]:
        """The sites whose answer of this phase was accepted."""
        return self._ready if self._phase is Phase.READY else self._record.metrics

    @property
    def _round(self) -> int:
        """The current round, from 1; one more than ``rounds`` while the last model is validated."""
        return self.model.round + 1

    def _open_round(self) -> None:
        """Start the next round with empty hands."""
        self._phase = Phase.READY
        self._called = ()
        self._ready = {}
        self._record = RoundRecord(self._round)
        self._sum = self._cipher.accumulator(self.model)

    def _accept(self, kind: str, site: str) -> None:
        """Note an accepted reply; an earlier refusal of the same site is forgotten."""
        self._record.missing.pop(site, None)
        self._on_progress(Progress(kind, self._round, site))

    def _miss(self, site: str, why: str) -> None:
        """Note why a site is not in the round."""
        self._record.missing[site] = why
        self._on_progress(Progress("missing", self._round, site, why))

    def _check(self, site: str, reply: Reply) -> None:
        """Refuse a reply that does not fit this phase."""
        if site not in self._called:
            raise UpdateRejectedError("site-unknown", f"{site!r} was not asked.")
        if isinstance(reply, Refusal) and not reply.run_id and reply.site == site:
            return  # the site could not read the request, so it does not know the round either
        check_reply(self.plan, site, reply)
        if reply.round != self._round:
            raise UpdateRejectedError(
                "round-stale", f"{site} answered round {reply.round}, this is round {self._round}."
            )
        if not isinstance(reply, Refusal | _EXPECTED[self._phase]):
            raise UpdateRejectedError("message-invalid", f"{site} sent a {type(reply).__name__} out of turn.")

    def _add(self, site: str, update: Update, size: int) -> None:
        """Add an update to the sum."""
        check_factors(self.plan, site, update)
        self._sum.check(update)
        self._sum.add(update)
        self._record.participants.append(site)
        self._record.metrics[site] = update.metrics
        self._record.studies[site] = update.num_studies
        self._record.upload_bytes += size

    def _has_quorum(self) -> bool:
        """Tell whether enough sites took part in the phase.

        A site that declines to validate has answered, so a model that no site can measure ends a run well;
        one that is lost has not, because its score could decide the selection.
        """
        silent = [site for site in self._called if self._record.missing.get(site) in (LOST, "site-late")]
        counts = {
            Phase.READY: len(self._ready),
            Phase.TRAIN: len(self._record.participants),
            Phase.VALIDATE: len(self._called) - len(silent),
        }
        return counts[self._phase] >= self.plan.min_sites

    def _say_shortfall(self) -> None:
        """Put into words who is missing."""
        reasons = ", ".join(f"{site} ({why})" for site, why in sorted(self._record.missing.items()))
        self.shortfall = (
            f"Round {self._round}: {len(self._answered)} sites take part, {self.plan.min_sites} are needed. "
            f"Missing: {reasons or 'no site is connected'}."
        )
        self._on_progress(Progress("waiting", self._round, "", self.shortfall))

    def _finish_record(self) -> RoundRecord:
        """Complete the record and select the model that it judges when it is the best so far."""
        record = self._record
        record.participants.sort()
        record.metrics = dict(sorted(record.metrics.items()))
        record.studies = dict(sorted(record.studies.items()))
        record.validation = validation_of(self.plan, record)
        best = self.best_validation
        if record.validation is not None and (best is None or record.validation > best):
            self.best, self.best_validation = self.model, record.validation
        self.records.append(record)
        event(
            _LOG, "round closed", round=record.round, participants=record.participants, missing=record.missing
        )
        return record


def check_reply(plan: RunPlan, site: str, reply: Reply) -> None:
    """Refuse a reply in another's name, of another run, or with metrics that nobody asked for.

    Raises:
        UpdateRejectedError: With the field at fault.
    """
    if reply.site != site:
        raise UpdateRejectedError("site-unknown", f"{site!r} sent a reply in the name of {reply.site!r}.")
    if reply.run_id != plan.run_id:
        raise UpdateRejectedError(
            "round-stale", f"{site} answered run {reply.run_id!r}, this is {plan.run_id!r}."
        )
    if isinstance(reply, Update | Validation):
        if unasked := sorted(set(reply.metrics) - set(plan.metrics)):
            raise UpdateRejectedError("message-invalid", f"{site} reports {unasked[0][:40]!r} unasked.")
        score = reply.metrics.get(SELECTION_METRIC, 0.0)
        if not 0.0 <= score <= 1.0:  # one site could decide the selection with a number of its own
            raise UpdateRejectedError("message-invalid", f"{site} reports a validation score of {score}.")


def check_factors(plan: RunPlan, site: str, update: Update) -> None:
    """Refuse factors beyond the plan's, or a site could own the mean by claiming them.

    Raises:
        UpdateRejectedError: With both factors.
    """
    most, weight = plan.training.iterations, plan.client_weights.get(site, 1.0)
    if (update.iterations or 0) > most or update.aggregation_weight not in (None, weight):
        raise UpdateRejectedError(
            "update-bad-weight",
            f"{site} claims {update.iterations} iterations with weight {update.aggregation_weight}; "
            f"the plan has at most {most} with weight {weight}.",
        )


def validation_of(plan: RunPlan, record: RoundRecord) -> float | None:
    """Return the mean of the sites' selection metric, weighted by w_i; None when no site could measure.

    Sums are exact: a last bit that depends on who answered first would decide between equal models.
    """
    scores = {site: m[SELECTION_METRIC] for site, m in record.metrics.items() if SELECTION_METRIC in m}
    if not scores:
        return None
    weights: Sequence[float] = [plan.client_weights.get(site, 1.0) for site in scores]
    weighted = [weight * score for weight, score in zip(weights, scores.values(), strict=True)]
    return math.fsum(weighted) / math.fsum(weights)
