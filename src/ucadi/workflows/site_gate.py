# SPDX-License-Identifier: Apache-2.0
"""The site's own decision about plans: its policy, its people, its hours. Asked at every request.

What leaves is one of a few codes. Which rule a plan breaks stays here, in the log and in `ucadi site plans`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from ucadi.cohorts.cohort import COHORT_FILE, read_cohort
from ucadi.config import Hours, Policy
from ucadi.errors import FederationError
from ucadi.federation.plans import Protection, RunPlan
from ucadi.models.registry import NETWORKS
from ucadi.store.site_state import LEFT, PAUSED, Decision, SeenPlan, SiteState
from ucadi.types import Split, Task

__all__ = [
    "MOST_UPDATES_PER_ROUND",
    "OwnData",
    "SiteGate",
    "count_data",
    "is_open",
    "judge",
    "most_answers",
]

MOST_UPDATES_PER_ROUND = 2
"""A coordinator that goes back to an earlier round asks for some rounds again. One that asks a site again and
again, each time with another model, learns more than was approved: scores of models that were made for the
purpose tell, one by one, what the site's studies are."""

_EVALUATED_MODELS = 20
"""So many models more may be measured: those that a run's people compare across its sites."""

_ROUNDING = 1e-9
"""A weight of 0.7 is ten times one of 0.07, whatever the computer's numbers say."""

_POLICY = "policy"
"""Who decided, when it was no person."""

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True)
class OwnData:
    """What a site has for a task.

    Attributes:
        studies: Training studies.
        patients: Patients among them.
    """

    studies: int
    patients: int


def count_data(cohort: Path, task: Task) -> OwnData:
    """Count a cohort's training studies for a task, and their patients.

    Raises:
        CohortError: If the cohort's table cannot be read.
    """
    studies = [
        study
        for study in read_cohort(cohort).of_split(Split.TRAIN)
        if task is Task.CLASSIFIER or study.lesion_mask
    ]
    return OwnData(len(studies), len({study.patient_key for study in studies}))


def judge(policy: Policy, plan: RunPlan, own: OwnData) -> tuple[str, ...]:
    """Return every rule of a policy that a plan breaks, each as a sentence with both values."""
    training, broken = plan.training, []
    for rule, word, allowed in (
        ("tasks", training.task.value, tuple(task.value for task in policy.tasks)),
        ("networks", training.network, policy.networks),
        ("presets", training.preset, policy.presets),
        *(("metrics", metric, policy.metrics) for metric in plan.metrics),
    ):
        if word not in allowed:
            broken.append(f"{rule}: {word[:80]!r} is not among {', '.join(allowed) or 'none'}.")
    entry = NETWORKS.get(training.network)
    if entry is not None and entry.task is not training.task:
        broken.append(f"networks: {training.network} cannot learn {training.task}.")
    ceilings: dict[str, tuple[float, float]] = {
        "max_rounds": (plan.rounds, policy.max_rounds),
        "max_iterations": (training.iterations, policy.max_iterations),
        "max_batch_size": (training.batch_size, policy.max_batch_size),
        "max_learning_rate": (training.learning_rate, policy.max_learning_rate),
        "max_weight_ratio": (plan.weight_ratio, policy.max_weight_ratio * (1 + _ROUNDING)),
    }
    for rule, (value, most) in ceilings.items():
        if value > most:
            broken.append(f"{rule}: the plan has {value:g}, at most {most:g} is allowed.")
    samples = training.iterations * training.batch_size
    if policy.max_epochs is not None and samples > policy.max_epochs * own.studies:
        broken.append(
            f"max_epochs: a round of {samples} samples passes more than {policy.max_epochs:g} times over "
            f"{own.studies} studies."
        )
    floors = {
        "min_sites": (plan.min_sites, policy.min_sites),
        "min_patients": (own.patients, policy.min_patients),
    }
    for rule, (count, fewest) in floors.items():
        if count < fewest:
            broken.append(f"{rule}: there are {count}, at least {fewest} are required.")
    if policy.require_encryption and plan.protection is Protection.PLAINTEXT:
        broken.append("require_encryption: the coordinator could read this site's updates.")
    return tuple(broken)


def most_answers(plan: RunPlan) -> dict[str, int]:
    """Return how many different answers of each kind an approved plan buys."""
    updates = MOST_UPDATES_PER_ROUND * plan.rounds
    # The last model is measured as well, after the rounds.
    return {"update": updates, "validation": updates + MOST_UPDATES_PER_ROUND + _EVALUATED_MODELS}


def is_open(hours: Hours | None, now: datetime) -> bool:
    """Tell whether a site takes part at a moment.

    Args:
        hours: The site's; None means always.
        now: With a time zone.

    Raises:
        ValueError: If the moment has no time zone.
    """
    if hours is None:
        return True
    if now.tzinfo is None:
        raise ValueError("the moment has no time zone")
    local = now.astimezone(ZoneInfo(hours.time_zone) if hours.time_zone else None)
    clock = local.time()
    yesterday = _DAYS[(local - timedelta(days=1)).weekday()]
    today = _DAYS[local.weekday()]
    if hours.start < hours.end:
        return today in hours.days and hours.start <= clock < hours.end
    return (today in hours.days and clock >= hours.start) or (yesterday in hours.days and clock < hours.end)


def _now() -> datetime:
    """Return this moment."""
    return datetime.now().astimezone()


class SiteGate:
    """Lets a plan pass when policy, people and hours agree; reads all of them anew for each request.

    Args:
        site: The site's name in the federation.
        state: The site's memory.
        read_policy: Reads the policy's file.
        cohort: The cohort's folder.
        now: Tells the time.
    """

    def __init__(
        self,
        site: str,
        state: SiteState,
        read_policy: Callable[[], Policy],
        cohort: Path,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._site = site
        self._state = state
        self._read_policy = read_policy
        self._now = now
        self._data = _CountedData(cohort)

    def check(self, plan: RunPlan) -> None:
        """Return if the site takes part in the plan now.

        Raises:
            FederationError: ``plan-waiting``, ``plan-changed``, ``plan-rejected``, ``plan-forbidden``,
                ``plan-spent``, ``site-paused``, ``site-closed``, or ``site-unknown`` when the site has left
                the federation or the plan has no place for it.
            ConfigError: If the policy cannot be read.
            CohortError: If the cohort cannot be read.
        """
        if self._state.flag(LEFT) or not plan.calls(self._site):
            raise FederationError("site-unknown", f"Run {plan.run_id!r} has no place for this site.")
        if self._state.flag(PAUSED):
            raise FederationError("site-paused", f"Run {plan.run_id!r} is asked for while the site pauses.")
        policy = self._read_policy()
        seen = self._settle(plan, policy)
        words = f"plan {seen.short} of run {plan.run_id!r}"
        if seen.decision is Decision.APPROVED:
            for kind, most in most_answers(plan).items():
                spent = self._state.answers_sent(plan.run_id, kind)
                if spent >= most:
                    raise FederationError(
                        "plan-spent",
                        f"{spent} different {kind}s left for the {plan.rounds} rounds of {words}, "
                        f"which buys {most}.",
                    )
            if not is_open(policy.hours, self._now()):
                raise FederationError("site-closed", f"Run {plan.run_id!r} waits for the site's hours.")
            return
        if seen.decision is Decision.REJECTED:
            raise FederationError(
                "plan-rejected", f"The {words} was rejected by {seen.decided_by}: {seen.reason}."
            )
        if seen.decision is Decision.FORBIDDEN:
            raise FederationError("plan-forbidden", f"The {words}: {seen.reason}")
        for other in self._state.other_forms(plan):
            if other.decision is Decision.APPROVED:
                raise FederationError(
                    "plan-changed",
                    f"The {words} is not the one that {other.decided_by} approved, which is {other.short}.",
                )
        raise FederationError("plan-waiting", f"The {words} waits for a decision.")

    def _settle(self, plan: RunPlan, policy: Policy) -> SeenPlan:
        """Return what is decided about a plan after the policy has had its say."""
        seen = self._state.see(plan)
        if seen.decision is Decision.REJECTED:
            return seen
        broken = judge(policy, plan, self._data.of(plan.training.task))
        by_policy = policy.approve == "within-policy"
        if broken:
            decision = Decision.FORBIDDEN
        elif seen.decision is Decision.APPROVED and (by_policy or seen.decided_by != _POLICY):
            return seen
        elif by_policy and not self._state.other_forms(plan):
            decision = Decision.APPROVED
        else:  # also what the policy approved or forbade before it changed, and another form of a known run
            decision = Decision.WAITING
        reason = " ".join(broken)
        if (decision, reason) == (seen.decision, seen.reason):
            return seen
        self._state.decide(seen, decision, "" if decision is Decision.WAITING else _POLICY, reason)
        return self._state.see(plan)


class _CountedData:
    """Counts a cohort again only when its table changed."""

    def __init__(self, cohort: Path) -> None:
        self._cohort = cohort
        self._counted: dict[Task, tuple[object, OwnData]] = {}

    def of(self, task: Task) -> OwnData:
        """Return what the site has for a task."""
        try:
            found = (self._cohort / COHORT_FILE).stat()
            stamp: object = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            stamp = None  # reading it will say what is wrong
        if task not in self._counted or self._counted[task][0] != stamp:
            self._counted[task] = stamp, count_data(self._cohort, task)
        return self._counted[task][1]
