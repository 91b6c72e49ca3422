# SPDX-License-Identifier: Apache-2.0
"""A run as people see it: put together from what the coordinator's database holds. Reads nothing itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ucadi.federation.plans import RunPlan, plan_document
from ucadi.federation.records import SELECTION_METRIC, RoundRecord, own_best
from ucadi.store.members import Member, MemberState
from ucadi.store.run_rollback import ROLLED_BACK
from ucadi.store.runs import LIVE, KeptRound, Run, RunEvent

__all__ = ["RESUMED", "RunView", "SiteLine", "TimedRound", "view_run"]

RESUMED = "resumed"
"""The kind of the event that a run which had stopped or failed is to go on, at its round."""

_DOING = {"ready": "ready", "update": "sent", "validation": "sent", "missing": "missing"}
"""What a site's last event says about it."""


@dataclass(frozen=True)
class TimedRound:
    """A complete round, and how long it took.

    Attributes:
        record: What happened in it.
        model_hash: The model that it made; for the last, validating round the one that it judged.
        time_s: When it was kept, in seconds since 1970.
        seconds: From the end of the round before, or the run's first event, to its own end.
        phase_seconds: The same in parts: until all were ready, until the last answer, until it was kept;
            empty when not known.
    """

    record: RoundRecord
    model_hash: str
    time_s: float
    seconds: float
    phase_seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a plain object."""
        return {**asdict(self.record), **{k: v for k, v in asdict(self).items() if k != "record"}}


@dataclass(frozen=True)
class SiteLine:
    """One site of a run.

    Attributes:
        site: Its name.
        state: ``joined`` (not yet asked), ``called``, ``ready``, ``training``, ``validating``, ``sent``,
            ``missing``, ``left``, ``revoked`` or ``done``.
        why: The code when it is missing.
        since_s: When the state began, in seconds since 1970; None when not known.
        rounds: Complete rounds that its updates are in.
        validation: Its score of the newest model that it judged.
        connected_s: When it was last connected, in seconds since 1970; None when not known.
    """

    site: str
    state: str
    why: str = ""
    since_s: float | None = None
    rounds: int = 0
    validation: float | None = None
    connected_s: float | None = None


@dataclass(frozen=True)
class RunView:
    """Everything about one run.

    Attributes:
        run: The run as it stands.
        rounds: Complete rounds, in order.
        sites: Sites that have a place in the run, by name.
        events: Everything that happened, in order.
        members: The federation's sites by name.
        waiting: Who is missing while a round waits for sites; else empty.
    """

    run: Run
    rounds: tuple[TimedRound, ...]
    sites: tuple[SiteLine, ...]
    events: tuple[RunEvent, ...]
    members: Mapping[str, Member]
    waiting: str = ""

    @property
    def plan(self) -> RunPlan:
        """The run's plan."""
        return self.run.plan

    @property
    def is_over(self) -> bool:
        """Whether nothing happens any more until somebody acts."""
        return self.run.state not in LIVE

    @property
    def trained_rounds(self) -> int:
        """Complete rounds that made a model."""
        return min(len(self.rounds), self.plan.rounds)

    @property
    def round(self) -> int:
        """The round under way, from 1; one more than planned while the last model is validated."""
        return min(len(self.rounds) + 1, self.plan.rounds + 1)

    @property
    def validations(self) -> tuple[tuple[int, float], ...]:
        """Mean scores with the round whose model they judge; 0 is the initial model."""
        return tuple(
            (kept.record.round - 1, kept.record.validation)
            for kept in self.rounds
            if kept.record.validation is not None
        )

    @property
    def best_round(self) -> int | None:
        """The round whose model scored best, the first of equals; None while none was judged."""
        scores = self.validations
        return min(scores, key=lambda pair: (-pair[1], pair[0]))[0] if scores else None

    @property
    def own_best(self) -> dict[str, int]:
        """For each site the round whose model was best on its own studies."""
        return own_best(kept.record for kept in self.rounds)

    @property
    def upload_bytes(self) -> int:
        """Bytes of all accepted updates."""
        return sum(kept.record.upload_bytes for kept in self.rounds)

    @property
    def began_s(self) -> float | None:
        """When the first thing happened, in seconds since 1970; None before."""
        times = [e.time for e in self.events[:1]] + [kept.time_s for kept in self.rounds[:1]]
        return min(times, default=None)

    @property
    def elapsed_s(self) -> float | None:
        """Seconds from the first thing that happened to the last; None before the first."""
        times = [e.time for e in self.events[-1:]] + [kept.time_s for kept in self.rounds[-1:]]
        return None if self.began_s is None else max(times) - self.began_s

    def to_json(self) -> dict[str, Any]:
        """Return a plain object for JSON, without the events."""
        return {
            "run_id": self.run.run_id,
            "state": self.run.state.value,
            "reason": self.run.reason,
            "wish": self.run.wish.value,
            "plan_hash": self.plan.hash,
            "plan": plan_document(self.plan),
            "submitted_s": self.run.created,
            "complete_rounds": self.trained_rounds,
            "best_round": self.best_round,
            "own_best": self.own_best,
            "upload_bytes": self.upload_bytes,
            "elapsed_s": self.elapsed_s,
            "waiting": self.waiting,
            "sites": [asdict(site) for site in self.sites],
            "rounds": [kept.to_json() for kept in self.rounds],
        }


def view_run(
    run: Run, rounds: Sequence[KeptRound], events: Sequence[RunEvent], members: Sequence[Member]
) -> RunView:
    """Put together what is known of a run.

    Args:
        run: The run as it stands.
        rounds: Complete rounds, in order.
        events: Everything that happened, in order.
        members: The federation's sites; the run's view leaves out those that were never approved.
    """
    timed = tuple(_time_rounds(rounds, events, run.created))
    now = _under_way(events, len(rounds) + 1)
    is_waiting = bool(now) and now[-1].progress.kind == "waiting" and run.state in LIVE
    by_name = {member.name: member for member in members}
    return RunView(
        run=run,
        rounds=timed,
        sites=tuple(_site_lines(run, timed, now, by_name)),
        events=tuple(events),
        members=by_name,
        waiting=now[-1].progress.detail if is_waiting else "",
    )


def _time_rounds(
    rounds: Sequence[KeptRound], events: Sequence[RunEvent], start_s: float
) -> Iterable[TimedRound]:
    """Yield rounds with the time that each took. A round that was repeated counts from its first try."""
    of_round: dict[int, list[RunEvent]] = {}
    for event in events:
        of_round.setdefault(event.progress.round, []).append(event)
    before = events[0].time if events else start_s
    for kept in rounds:
        own = [e for e in of_round.get(kept.record.round, ()) if before <= e.time <= kept.time]
        # While the run was stopped, nobody worked on the round.
        before = max([before, *(e.time for e in own if e.progress.kind == RESUMED)])
        own = [e for e in own if before <= e.time]
        ready = max((e.time for e in own if e.progress.kind == "ready"), default=None)
        answers = (e.time for e in own if e.progress.kind in ("update", "validation"))
        last = max(answers, default=None)
        parts: dict[str, float] = {}
        if ready is not None and last is not None and ready <= last:
            parts = {"ready": ready - before, "train": last - ready, "aggregate": kept.time - last}
        seconds = max(kept.time - before, 0.0)  # a clock may have been set back
        yield TimedRound(kept.record, kept.model_hash, kept.time, seconds, parts)
        before = kept.time


def _under_way(events: Sequence[RunEvent], number: int) -> list[RunEvent]:
    """Return the events of the round under way; those before the run was set back are past."""
    found: list[RunEvent] = []
    for event in reversed(events):
        if event.progress.kind == ROLLED_BACK or event.progress.round < number:
            break
        if event.progress.round == number and event.progress.kind != "round":
            found.append(event)
    return found[::-1]


def _site_lines(
    run: Run, rounds: Sequence[TimedRound], now: Sequence[RunEvent], members: Mapping[str, Member]
) -> Iterable[SiteLine]:
    """Yield the sites that have or had a place in the run."""
    plan = run.plan
    last = {e.progress.site: e for e in now if e.progress.site and e.progress.kind in _DOING}
    took_part = {site for kept in rounds for site in kept.record.participants}
    seen = took_part | {site for kept in rounds for site in kept.record.missing}
    approved = {m.name for m in members.values() if m.state is MemberState.APPROVED and plan.calls(m.name)}
    previous = set(rounds[-1].record.participants) if rounds else approved
    is_asked = (set(plan.sites) or previous) <= set(last)
    for site in sorted(seen | set(plan.sites) | approved | set(last)):
        event = last.get(site)
        scores = [k.record.metrics[site] for k in rounds if site in k.record.metrics]
        judged = [metrics[SELECTION_METRIC] for metrics in scores if SELECTION_METRIC in metrics]
        state = "called" if site in seen else "joined"
        if event is not None:
            state = _DOING[event.progress.kind]
            if state == "ready" and is_asked:
                state = "training" if event.progress.round <= plan.rounds else "validating"
        member = members.get(site)
        since = None if event is None else event.time
        if run.state not in LIVE:
            state, since = "done", None
        if member is not None and member.state in (MemberState.REVOKED, MemberState.LEFT):
            state, since = member.state.value, member.since
        yield SiteLine(
            site=site,
            state=state,
            why=event.progress.detail if event is not None and state == "missing" else "",
            since_s=since,
            rounds=sum(site in kept.record.participants for kept in rounds),
            validation=judged[-1] if judged else None,
            connected_s=member.last_connected if member is not None else None,
        )
