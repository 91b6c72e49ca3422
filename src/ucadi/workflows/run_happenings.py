# SPDX-License-Identifier: Apache-2.0
"""What happens in a run, one line each: in words for people, as an object for programs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from ucadi.errors import CODES
from ucadi.federation.ports import Wish
from ucadi.store.members import MemberState
from ucadi.store.run_rollback import ROLLED_BACK
from ucadi.store.runs import RunEvent
from ucadi.workflows.run_view import RESUMED, RunView, TimedRound

__all__ = ["Happening", "happenings_between", "size_words", "time_words"]

_MEMBERSHIP = {
    MemberState.INVITED: "is invited to the federation",
    MemberState.PENDING: "asks to join the federation",
    MemberState.APPROVED: "joined the federation",
    MemberState.REVOKED: "was revoked",
    MemberState.LEFT: "left the federation",
}


@dataclass(frozen=True)
class Happening:
    """One thing that happened.

    Attributes:
        time_s: When, in seconds since 1970.
        kind: ``submitted``, ``state``, ``wish``, ``member``, ``round``, or the kind of a stored event.
        words: In words.
        fields: What a program wants to know besides.
    """

    time_s: float
    kind: str
    words: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a plain object."""
        return {"time_s": round(self.time_s, 3), "kind": self.kind, **self.fields}


def happenings_between(before: RunView | None, now: RunView) -> list[Happening]:
    """Return what happened between two looks at a run, in order.

    Args:
        before: The earlier look; None to get everything since the run was submitted.
        now: The later look.
    """
    plan = now.plan
    last = before.events[-1].seq if before is not None and before.events else 0
    known = {(kept.record.round, kept.time_s) for kept in before.rounds} if before is not None else set()
    found = [_of_event(e, plan.rounds) for e in now.events if e.seq > last and e.progress.kind != "round"]
    found += [_of_round(k, plan.rounds) for k in now.rounds if (k.record.round, k.time_s) not in known]
    if before is not None:
        changed = [m for m in now.members.values() if _state_of(before, m.name) != m.state]
        found += [
            Happening(
                m.since,
                "member",
                f"{m.name} {_MEMBERSHIP[m.state]}",
                {"site": m.name, "state": m.state.value},
            )
            for m in changed
        ]
    run = now.run
    if before is None:
        hashes = {"run": run.run_id, "plan_hash": run.plan.hash}
        found.append(Happening(run.created, "submitted", "the run was submitted", hashes))
    elif before.run.wish != run.wish and run.wish is Wish.STOP:
        found.append(Happening(run.changed, "wish", "the run is to stop", {"wish": run.wish.value}))
    found.sort(key=lambda happening: happening.time_s)
    if before is None or (before.run.state, before.run.reason) != (run.state, run.reason):
        fields = {"run": run.run_id, "state": run.state.value, "reason": run.reason}
        words = f"the run is {run.state}" + (f": {run.reason}" if run.reason else "")
        found.append(Happening(run.changed, "state", words, fields))  # last, whatever the clocks say
    return found


def _state_of(view: RunView, site: str) -> MemberState | None:
    """Return what a site was to the federation."""
    member = view.members.get(site)
    return None if member is None else member.state


def _of_event(event: RunEvent, rounds: int) -> Happening:
    """Return a stored event."""
    told = event.progress
    where = f"round {told.round}" if told.round <= rounds else "last model"
    code = CODES.get(told.detail)
    words = {
        "ready": f"{where}: {told.site} is ready",
        "update": f"{where}: {told.site} sent its update",
        "validation": f"{where}: {told.site} sent its validation",
        "missing": f"{where}: {told.site} is missing ({told.detail})"
        + (f": {code.public_message}" if code else ""),
        "waiting": f"waiting. {told.detail}",
        "hand-over": f"{where}: {told.site} is back; the next job takes it in",
        RESUMED: f"the run goes on at {where}",
        ROLLED_BACK: f"the run was set back to round {told.round}. {told.detail}".rstrip(),
    }.get(told.kind, f"{where}: {told.kind} {told.site} {told.detail}".rstrip())
    fields = {"round": told.round, "site": told.site, "detail": told.detail}
    return Happening(event.time, told.kind, words, fields)


def _of_round(kept: TimedRound, rounds: int) -> Happening:
    """Return a complete round."""
    record = kept.record
    judged = "initial model" if record.round == 1 else f"model of round {record.round - 1}"
    score = "" if record.validation is None else f"; the {judged} scores {record.validation:.3f}"
    if record.round > rounds:
        return Happening(kept.time_s, "round", f"the last model is validated{score}", kept.to_json())
    took = f" in {time_words(kept.seconds)}"
    missing = ", ".join(f"{site} ({why})" for site, why in sorted(record.missing.items()))
    words = (
        f"round {record.round} is complete{took}: {', '.join(record.participants)}"
        + (f"; missing {missing}" if missing else "")
        + f"; {size_words(record.upload_bytes)}{score}"
    )
    return Happening(kept.time_s, "round", words, kept.to_json())


def size_words(size: int) -> str:
    """Return a number of bytes for people, in decimal units."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def time_words(seconds: float) -> str:
    """Return a time for people: seconds below a minute, else hours, minutes and seconds."""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
