# SPDX-License-Identifier: Apache-2.0
"""Plans as a site's people read and decide about them: in plain words, with what the policy says."""

from dataclasses import asdict, dataclass
from typing import Any

from ucadi.errors import ConfigError, UcadiError
from ucadi.federation.plans import Protection, RunPlan, TrainingPlan
from ucadi.federation.records import SELECTION_METRIC
from ucadi.store.site_state import Decision, SeenPlan, SiteState
from ucadi.workflows.plan_file import describe_plan
from ucadi.workflows.preflight_checks import readable_bytes
from ucadi.workflows.site_gate import MOST_UPDATES_PER_ROUND, OwnData, count_data, judge, most_answers
from ucadi.workflows.site_home import SiteHome

__all__ = ["PlanView", "SeenPlan", "approve_plan", "list_plans", "reject_plan", "update_bytes", "view_plan"]


@dataclass(frozen=True)
class PlanView:
    """A plan with everything that a person needs to decide.

    Attributes:
        seen: The plan and what is decided.
        lines: Headings and sentences.
        broken: Every rule of the site's policy that the plan breaks.
        is_readable: Whether the coordinator can read this site's updates.
    """

    seen: SeenPlan
    lines: tuple[tuple[str, str], ...]
    broken: tuple[str, ...]
    is_readable: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **asdict(self.seen),
            "short": self.seen.short,
            "words": dict(self.lines),
            "broken": list(self.broken),
        }


def list_plans(state: SiteState) -> tuple[SeenPlan, ...]:
    """Return all plans, those that wait for a decision first, then the newest first."""
    return tuple(sorted(state.plans(), key=lambda seen: seen.decision is not Decision.WAITING))


def view_plan(home: SiteHome, state: SiteState, short: str) -> PlanView:
    """Return a plan in plain words.

    Args:
        home: The site's home.
        state: Its memory.
        short: The id, or the beginning of it.

    Raises:
        ConfigError: ``plan-unknown``, or what is wrong with settings or policy.
    """
    seen = state.find(short)
    plan = seen.plan
    lines = dict(describe_plan(plan))
    try:
        own = count_data(home.read_settings().site.cohort, plan.training.task)
        has = f"{own.studies} training studies of {own.patients} patients; {_passes(plan, own)}"
    except UcadiError as error:
        own, has = OwnData(0, 0), f"cannot be counted: {error.detail}"
    broken = judge(home.read_policy(), plan, own)
    lines |= {
        "Own data": has,
        "Size": _size(plan),
        "Scores": _scores(plan),
        "Policy": " ".join(broken) or "the plan keeps to this site's policy.toml",
        "Decision": _decision(seen),
    }
    others = [other for other in state.other_forms(plan) if other.decision is Decision.APPROVED]
    if others:
        lines["Changed"] = "; ".join(
            f"this run was approved in another form, {other.short}: {_difference(other.plan, plan)}"
            for other in others
        )
    return PlanView(seen, tuple(lines.items()), broken, plan.protection is Protection.PLAINTEXT)


def approve_plan(state: SiteState, view: PlanView, by: str) -> None:
    """Approve a plan in a person's name.

    Raises:
        ConfigError: ``plan-forbidden`` with every rule of the policy that the plan breaks.
    """
    if view.broken:
        raise ConfigError(
            "plan-forbidden",
            f"Plan {view.seen.short} breaks the site's policy. {' '.join(view.broken)}",
            cure="Reject the plan, or change policy.toml first.",
        )
    _decide(state, view.seen, Decision.APPROVED, by, "")


def reject_plan(state: SiteState, seen: SeenPlan, by: str, reason: str) -> None:
    """Reject a plan in a person's name; a run that has begun goes on without this site.

    Raises:
        ConfigError: ``plan-unknown`` if somebody else decided at the same moment.
    """
    _decide(state, seen, Decision.REJECTED, by, reason)


def update_bytes(training: TrainingPlan) -> int:
    """Return the size of one update in plaintext: the network's parameters.

    Raises:
        ModelError: If the network is not registered.
    """
    # Imported here: torch takes seconds, and most commands about plans need no size.
    from ucadi.models.parameters import parameters_of
    from ucadi.models.registry import build_network

    parameters = parameters_of(build_network(training.network, training.task, 0))
    return sum(array.nbytes for array in parameters.values())


def _decide(state: SiteState, seen: SeenPlan, decision: Decision, by: str, reason: str) -> None:
    """Write a person's decision down."""
    if not state.decide(seen, decision, by, reason):
        raise ConfigError(
            "plan-unknown",
            f"Somebody decided about plan {seen.short} at this very moment.",
            cure="Look at it again with `ucadi site plans`.",
        )


def _passes(plan: RunPlan, own: OwnData) -> str:
    """Say how often a round goes over the site's studies."""
    if not own.studies:
        return "it cannot take part"
    passes = plan.training.iterations * plan.training.batch_size / own.studies
    return f"a round passes {passes:.1f} times over them"


def _size(plan: RunPlan) -> str:
    """Say how much leaves."""
    try:
        size = update_bytes(plan.training)
    except UcadiError as error:
        return f"unknown: {error.detail}"
    each, total = readable_bytes(float(size)), readable_bytes(float(size * plan.rounds))
    return (
        f"{each} per round, {total} in all {plan.rounds} rounds, and as much comes in; rounds that are asked "
        f"again never make it more than {MOST_UPDATES_PER_ROUND} times that"
    )


def _scores(plan: RunPlan) -> str:
    """Say how often the site's validation studies are asked."""
    if SELECTION_METRIC not in plan.metrics:
        return "none leave: the plan asks for none"
    most = most_answers(plan)
    return f"of at most {most['update'] + most['validation']} models, each rounded to four digits"


def _decision(seen: SeenPlan) -> str:
    """Say what is decided."""
    words = str(seen.decision) + (f" by {seen.decided_by}" if seen.decided_by else "")
    return f"{words}: {seen.reason}" if seen.reason else words


def _difference(old: RunPlan, new: RunPlan) -> str:
    """Say in which fields two plans of a run differ."""
    before, after = asdict(old), asdict(new)
    before |= before.pop("training")
    after |= after.pop("training")
    changes = [
        f"{name} was {before[name]}, is {after[name]}" for name in after if before[name] != after[name]
    ]
    return ", ".join(changes)
