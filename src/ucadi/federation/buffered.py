# SPDX-License-Identifier: Apache-2.0
"""Buffered asynchronous aggregation: slow sites hold nobody up (Nguyen et al. 2022, FedBuff).

Every site trains from the newest model as soon as it is free. Each ``buffer_size`` updates become the next
model. An update that started τ models ago counts with s(τ) = 1/√(1+τ), so the step shrinks for stale ones.
"""

from collections.abc import Collection

from ucadi.errors import UcadiError, UpdateRejectedError
from ucadi.federation.aggregation import apply_total
from ucadi.federation.coordinator import Checkpoint, check_factors, check_reply
from ucadi.federation.messages import Call, Phase, Refusal, Reply, Update, decode_reply, encode_call
from ucadi.federation.plans import RoundPlan, RunPlan
from ucadi.federation.ports import Answer, Cipher, Exchange
from ucadi.federation.records import OnProgress, Progress, RoundRecord
from ucadi.logs import event, get_logger

__all__ = ["BufferedCoordinator", "staleness_discount"]

_LOG = get_logger("federation.buffered")


def staleness_discount(models_since: int) -> float:
    """Return s(τ) = 1/√(1+τ) (Nguyen et al. 2022, section 5)."""
    return float((1 + models_since) ** -0.5)


class BufferedCoordinator:
    """Calls free sites one by one and makes a model of every ``buffer_size`` updates.

    The last model is the selected one: scores of sites that started from different models do not compare.

    Args:
        plan: The run, with ``aggregation`` buffered.
        state: Where the run stands.
        cipher: How updates are hidden.
        on_progress: Told of each accepted update and of each missing site.
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
        self.records = list(state.records)
        self._cipher = cipher
        self._on_progress = on_progress
        self._started: dict[str, int] = {}
        self._resting: dict[str, str] = {}
        self._open_buffer()

    @property
    def is_trained(self) -> bool:
        """Tell whether all models were made."""
        return self.model.round >= self.plan.rounds

    @property
    def shortfall(self) -> str:
        """Say why nobody trains."""
        there = sorted(self._record.participants)
        reasons = ", ".join(f"{site} ({why})" for site, why in sorted(self._resting.items()))
        return (
            f"Round {self.model.round + 1}: {len(there)} of {self.plan.buffer_size} updates have come "
            f"({', '.join(there) or 'none'}). Missing: {reasons or 'no other site is connected'}."
        )

    def calls(self, members: Collection[str]) -> list[Exchange]:
        """Return a message for each site that is free, all with the newest model.

        A site is asked once per model: one whose update is in the buffer waits for the next model.
        """
        free = [
            site
            for site in sorted(members)
            if self.plan.calls(site)
            and site not in self._started
            and site not in self._resting
            and site not in self._record.participants
        ]
        if not free:
            return []
        plan = RoundPlan(self.plan, self.model.round + 1, self.model.hash)
        body = encode_call(Call(Phase.TRAIN, plan, self.model))
        self._started.update(dict.fromkeys(free, plan.round))
        return [Exchange(body, (site,), self.plan.train_deadline_s) for site in free]

    def receive(self, answer: Answer) -> RoundRecord | None:
        """Take what came of one message; return a record when it completed a model."""
        site, started = answer.site, self._started.pop(answer.site, 0)
        try:
            if answer.body is None:
                self._rest(site, answer.reason)
                return None
            reply = decode_reply(answer.body)
            self._check(site, started, reply)
            if isinstance(reply, Update):
                self._add(reply, len(answer.body))
            elif isinstance(reply, Refusal):
                self._rest(site, reply.code)
        except UcadiError as error:
            self._rest(site, error.code)
            event(_LOG, "reply refused", site=site, code=error.code, detail=error.detail)
        return self._close() if len(self._record.participants) >= self.plan.buffer_size else None

    def ask_again(self) -> None:
        """Let sites that refused or were lost be called again."""
        self._resting.clear()

    def checkpoint(self) -> Checkpoint:
        """Return where the run stands. The newest model is the selected one."""
        return Checkpoint(self.model, self.model, None, tuple(self.records))

    def _open_buffer(self) -> None:
        """Start the next model with an empty sum."""
        self._record = RoundRecord(self.model.round + 1)
        self._sum = self._cipher.accumulator(self.model)

    def _rest(self, site: str, why: str) -> None:
        """Leave a site alone until the next model."""
        self._resting[site] = self._record.missing[site] = why
        self._on_progress(Progress("missing", self._record.round, site, why))

    def _check(self, site: str, started: int, reply: Reply) -> None:
        """Refuse a reply that is not the one to the call under way."""
        if isinstance(reply, Refusal) and not reply.run_id and reply.site == site:
            return
        check_reply(self.plan, site, reply)
        if reply.round != started:
            raise UpdateRejectedError("round-stale", f"{site} answered round {reply.round}, not {started}.")
        if not isinstance(reply, Update | Refusal):
            raise UpdateRejectedError("message-invalid", f"{site} sent a {type(reply).__name__} out of turn.")

    def _add(self, update: Update, size: int) -> None:
        """Add an update, weighted down by the number of models made since it started."""
        check_factors(self.plan, update.site, update)
        self._sum.check(update)
        self._sum.add(update, staleness_discount(self._record.round - update.round))
        self._record.missing.pop(update.site, None)
        self._record.participants.append(update.site)
        self._record.metrics[update.site] = update.metrics
        self._record.studies[update.site] = update.num_studies
        self._record.upload_bytes += size
        self._on_progress(Progress("update", self._record.round, update.site))

    def _close(self) -> RoundRecord:
        """Make the next model of the buffer."""
        record = self._record
        record.participants.sort()
        self.model = apply_total(self.model, self._sum.open(), self.plan.weighting)
        self.records.append(record)
        self._resting.clear()
        self._open_buffer()
        return record
