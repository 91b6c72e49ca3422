# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from site_homes import make_home, write_policy, write_studies
from ucadi.config import Hours, Policy
from ucadi.errors import ConfigError, FederationError, UcadiError
from ucadi.federation.plans import RunPlan, TrainingPlan
from ucadi.imaging.presets import PRESETS
from ucadi.models.registry import NETWORKS
from ucadi.store.site_state import LEFT, PAUSED, Decision
from ucadi.types import Split, Task
from ucadi.workflows.site_gate import OwnData, SiteGate, count_data, is_open, judge

MONDAY_NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OWN = OwnData(studies=24, patients=12)


class Desk:
    """A site with its gate, and a clock that stands still."""

    def __init__(self, home) -> None:
        self.home = home
        self.state = home.open_state()
        self.now = MONDAY_NOON
        self.gate = SiteGate("A", self.state, home.read_policy, home.folder / "cohort", lambda: self.now)

    def code(self, plan) -> str:
        try:
            self.gate.check(plan)
        except UcadiError as error:
            return error.code
        return ""

    def decide(self, plan, decision, by="ann") -> None:
        assert self.state.decide(self.state.see(plan), decision, by)


@pytest.fixture
def make_desk(tmp_path):
    """Builds a site with lines of a policy."""
    desks = []

    def build(*policy, **settings):
        desks.append(Desk(make_home(tmp_path, *policy, **settings)))
        return desks[-1]

    yield build
    for desk in desks:
        desk.state.close()


# -- decisions --------------------------------------------------------------------------------------------


def test_a_plan_waits_until_a_person_approves_it(make_desk, make_run_plan):
    desk, plan = make_desk(), make_run_plan()
    assert desk.code(plan) == "plan-waiting"
    assert desk.code(plan) == "plan-waiting"
    desk.decide(plan, Decision.APPROVED)
    assert desk.code(plan) == ""
    desk.decide(plan, Decision.REJECTED)
    assert desk.code(plan) == "plan-rejected"
    desk.decide(plan, Decision.APPROVED)
    assert desk.code(plan) == ""


def test_a_plan_within_the_policy_is_approved_at_once_if_the_policy_says_so(make_desk, make_run_plan):
    desk, plan = make_desk('approve = "within-policy"'), make_run_plan()
    assert desk.code(plan) == ""
    seen = desk.state.see(plan)
    assert (seen.decision, seen.decided_by) == (Decision.APPROVED, "policy")


def test_decisions_of_another_process_count_at_the_next_request(make_desk, make_run_plan):
    desk, plan = make_desk(), make_run_plan()
    assert desk.code(plan) == "plan-waiting"
    other = desk.home.open_state()
    assert other.decide(other.find(plan.hash), Decision.APPROVED, "ann")
    assert desk.code(plan) == ""
    other.set_flag(PAUSED, True, "ann")
    assert desk.code(plan) == "site-paused"
    other.set_flag(PAUSED, False, "ann")
    assert desk.code(plan) == ""
    other.close()


def test_a_plan_that_was_changed_after_its_approval_waits_again(make_desk, make_run_plan):
    desk, plan = make_desk(), make_run_plan()
    desk.code(plan)
    desk.decide(plan, Decision.APPROVED)
    for changed in (
        replace(plan, rounds=3),
        replace(plan, metrics=("loss",)),
        replace(plan, client_weights={"A": 2.0}),
        replace(plan, train_deadline_s=7200.0),
        replace(plan, training=replace(plan.training, learning_rate=0.02)),
    ):
        assert desk.code(changed) == "plan-changed"
    assert desk.code(plan) == ""


def test_the_policy_alone_never_approves_another_form_of_a_known_run(make_desk, make_run_plan):
    desk, plan = make_desk('approve = "within-policy"'), make_run_plan()
    assert desk.code(plan) == ""
    changed = replace(plan, rounds=3)
    assert desk.code(changed) == "plan-changed"
    desk.decide(plan, Decision.REJECTED)
    assert desk.code(changed) == "plan-waiting", "a person rejected the run, so a person decides"
    assert desk.code(replace(plan, run_id="run-2")) == ""


def test_a_new_form_takes_the_place_of_the_old_one(make_desk, make_run_plan):
    desk, plan = make_desk(), make_run_plan()
    changed = replace(plan, rounds=3)
    for form in (plan, changed):
        desk.code(form)
        desk.decide(form, Decision.APPROVED)
        assert desk.code(form) == ""
    assert desk.code(plan) == "plan-rejected"


def test_what_the_policy_forbids_is_forbidden_whoever_approved_it(make_desk, make_run_plan):
    desk, plan = make_desk("min_sites = 2"), make_run_plan()
    desk.code(plan)
    desk.decide(plan, Decision.APPROVED)
    assert desk.code(plan) == ""
    write_policy(desk.home, "min_sites = 3")
    assert desk.code(plan) == "plan-forbidden"
    assert "min_sites: there are 2, at least 3 are required." in desk.state.see(plan).reason
    write_policy(desk.home, "min_sites = 2")
    assert desk.code(plan) == "plan-waiting", "an approval does not outlive a policy that forbade the plan"


def test_what_the_policy_approved_waits_when_the_policy_asks_again(make_desk, make_run_plan):
    desk, plan = make_desk('approve = "within-policy"'), make_run_plan()
    assert desk.code(plan) == ""
    write_policy(desk.home, 'approve = "ask"')
    assert desk.code(plan) == "plan-waiting"
    write_policy(desk.home, 'approve = "within-policy"')
    assert desk.code(plan) == ""


def test_a_rejection_holds_whatever_the_policy_says(make_desk, make_run_plan):
    desk, plan = make_desk(), make_run_plan()
    desk.code(plan)
    desk.decide(plan, Decision.REJECTED)
    write_policy(desk.home, 'approve = "within-policy"')
    assert desk.code(plan) == "plan-rejected"


@pytest.mark.parametrize("line", ["approve = 5", "min_site = 3", "[", 'networks = ["resnet"]'])
def test_with_a_policy_that_cannot_be_read_the_site_takes_part_in_nothing(make_desk, make_run_plan, line):
    desk, plan = make_desk('approve = "within-policy"'), make_run_plan()
    assert desk.code(plan) == ""
    write_policy(desk.home, line)
    assert desk.code(plan) == "config-invalid"
    desk.home.policy_file.unlink()
    assert desk.code(plan) == "config-invalid"


def test_a_site_that_left_or_is_not_named_takes_part_in_nothing(make_desk, make_run_plan):
    desk = make_desk('approve = "within-policy"')
    assert desk.code(make_run_plan(sites=("B", "C"))) == "site-unknown"
    assert desk.state.plans() == (), "a plan of others is none of our business"
    assert desk.code(make_run_plan(sites=())) == ""
    desk.state.set_flag(LEFT, True, "ann")
    assert desk.code(make_run_plan(sites=())) == "site-unknown"


def test_outside_of_its_hours_the_site_waits_with_what_is_approved(make_desk, make_run_plan):
    hours = ("[policy.hours]", 'start = "19:00"', 'end = "07:00"', 'time_zone = "UTC"')
    desk, plan = make_desk('approve = "within-policy"', *hours), make_run_plan()
    assert desk.code(plan) == "site-closed"
    desk.now += timedelta(hours=8)
    assert desk.code(plan) == ""
    desk.decide(plan, Decision.REJECTED)
    desk.now = MONDAY_NOON
    assert desk.code(plan) == "plan-rejected", "what will never be allowed is said at once"


def test_a_coordinator_that_asks_for_ever_more_updates_gets_none(make_desk, make_run_plan):
    desk, plan = make_desk('approve = "within-policy"'), make_run_plan(rounds=3)
    assert desk.code(plan) == ""
    for number in range(5):
        for _ in range(4):  # repeated bytes tell nothing new
            desk.state.note_sent("update", 9, f"{number}" * 64, run_id="run-1", round_number=1)
        desk.state.note_sent("validation", 9, f"{number}" * 64, run_id="run-1", round_number=1)
    assert desk.code(plan) == ""
    desk.state.note_sent("update", 9, "f" * 64, run_id="run-1", round_number=2)
    assert desk.code(plan) == "plan-spent"
    assert desk.code(replace(plan, run_id="run-2")) == ""


def test_a_coordinator_that_asks_for_the_scores_of_ever_more_models_gets_none(make_desk, make_run_plan):
    desk, plan = make_desk('approve = "within-policy"'), make_run_plan(rounds=3)
    most = 2 * (3 + 1) + 20
    for number in range(most):
        assert desk.code(plan) == "", f"{number} scores left"
        for _ in range(2):  # a request that is repeated tells nothing new
            desk.state.note_sent("validation", 9, f"{number}" * 32, run_id="run-1", request=f"{number}")
    assert desk.code(plan) == "plan-spent"


def test_two_models_with_the_same_score_are_two_answers(make_desk, make_run_plan):
    desk, plan = make_desk('approve = "within-policy"'), make_run_plan(rounds=1)
    for number in range(2):
        assert desk.code(plan) == ""
        desk.state.note_sent("update", 9, "ab" * 32, run_id="run-1", request=f"{number}")
    assert desk.code(plan) == "plan-spent"


def test_the_reason_stays_at_the_site(make_desk, make_run_plan):
    desk = make_desk("max_rounds = 1")
    with pytest.raises(FederationError) as caught:
        desk.gate.check(make_run_plan())
    assert "max_rounds: the plan has 2, at most 1 is allowed." in caught.value.detail
    assert "1" not in caught.value.public_message


# -- the policy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        ({"tasks": ("segmentation",)}, "tasks"),
        ({"networks": ("unet3d",)}, "networks"),
        ({"networks": ()}, "networks"),
        ({"presets": ("paper",)}, "presets"),
        ({"metrics": ("loss",)}, "metrics"),
        ({"require_encryption": True}, "require_encryption"),
        ({"min_sites": 3}, "min_sites"),
        ({"min_patients": 13}, "min_patients"),
        ({"max_rounds": 1}, "max_rounds"),
        ({"max_iterations": 3}, "max_iterations"),
        ({"max_batch_size": 1}, "max_batch_size"),
        ({"max_learning_rate": 0.009}, "max_learning_rate"),
        ({"max_epochs": 0.3}, "max_epochs"),
        ({"max_weight_ratio": 1.9}, "max_weight_ratio"),
    ],
)
def test_every_rule_is_kept_and_named(make_run_plan, policy, rule):
    plan = make_run_plan(client_weights={"A": 2.0})
    assert judge(Policy(), plan, OWN) == ()
    (broken,) = judge(Policy(**policy), plan, OWN)
    assert broken.startswith(f"{rule}: ")


@pytest.mark.parametrize(
    "change",
    [
        {"network": "os.system"},
        {"network": "unet3d"},
        {"network": "../densenet3d"},
        {"preset": "huge"},
        {"iterations": 100_000},
        {"batch_size": 1024},
        {"learning_rate": 10.0},
    ],
)
def test_a_hostile_plan_is_forbidden_by_the_widest_policy_that_is_the_default(
    make_desk, make_run_plan, change
):
    desk = make_desk('approve = "within-policy"')
    plan = make_run_plan()
    hostile = replace(plan, training=replace(plan.training, **change))
    assert desk.code(hostile) == "plan-forbidden"
    assert len(desk.state.see(hostile).reason) < 1000


@pytest.mark.parametrize(
    ("weights", "sites", "is_allowed"),
    [
        ({}, (), True),
        ({"A": 10.0}, ("A", "B"), True),
        ({"A": 10.1}, ("A", "B"), False),
        ({"A": 0.7, "B": 0.07}, ("A", "B"), True),
        ({"A": 1e6, "B": 1e6}, ("A", "B"), True),
        ({"A": 1e6, "B": 1e6}, ("A", "B", "C"), False),
        ({"A": 1e6, "B": 1e6}, (), False),
        ({"A": 0.05}, (), False),
        ({"D": 1e6}, ("A", "B"), True),
    ],
)
def test_no_sites_weight_drowns_the_others(make_run_plan, weights, sites, is_allowed):
    plan = make_run_plan(client_weights=weights, sites=sites)
    broken = judge(Policy(), plan, OWN)
    assert [words.split(":")[0] for words in broken] == ([] if is_allowed else ["max_weight_ratio"])


def test_all_broken_rules_are_named_at_once(make_run_plan):
    broken = judge(Policy(min_sites=9, max_rounds=1, presets=("paper",)), make_run_plan(), OWN)
    assert [words.split(":")[0] for words in broken] == ["presets", "max_rounds", "min_sites"]


def lists(names):
    return st.sets(st.sampled_from(names)).map(sorted)


# Plain values: type checks of lists draw at random, which strategies must not.
PLANS = st.fixed_dictionaries(
    {
        "task": st.sampled_from(Task),
        "network": st.sampled_from([*NETWORKS, "other"]),
        "preset": st.sampled_from([*PRESETS, "other"]),
        "iterations": st.integers(1, 60),
        "batch_size": st.integers(1, 12),
        "learning_rate": st.floats(0.001, 0.2),
        "rounds": st.integers(1, 12),
        "min_sites": st.integers(1, 5),
        "metrics": lists(["loss", "validation"]),
        "client_weights": st.dictionaries(st.sampled_from("ABC"), st.floats(0.01, 100)),
    }
)
OWNS = st.tuples(st.integers(0, 40), st.integers(0, 20))
POLICIES = st.fixed_dictionaries(
    {
        "approve": st.sampled_from(["ask", "within-policy"]),
        "tasks": lists(list(Task)),
        "networks": lists(list(NETWORKS)),
        "presets": lists(list(PRESETS)),
        "metrics": lists(["loss", "validation"]),
        "require_encryption": st.booleans(),
        "min_sites": st.integers(1, 5),
        "min_patients": st.integers(1, 20),
        "max_rounds": st.integers(1, 12),
        "max_iterations": st.integers(1, 60),
        "max_epochs": st.none() | st.floats(0.1, 20),
        "max_batch_size": st.integers(1, 12),
        "max_learning_rate": st.floats(0.001, 0.2),
        "max_weight_ratio": st.floats(1, 1000),
    }
)


def broken_rules(policy, plan, own) -> set[str]:
    """Names of the rules that a plan of plain values breaks."""
    of_run = {"rounds", "min_sites", "metrics", "client_weights"}
    training = TrainingPlan(**{name: value for name, value in plan.items() if name not in of_run})
    run = RunPlan(
        "run-1",
        training,
        rounds=plan["rounds"],
        seed=0,
        min_sites=plan["min_sites"],
        metrics=tuple(plan["metrics"]),
        client_weights=plan["client_weights"],
    )
    return {words.split(":")[0] for words in judge(Policy(**policy), run, OwnData(*own))}


def loosest(first, second):
    """What either of two policies allows."""
    joined = {}
    for name in Policy.model_fields.keys() - {"hours"}:
        values = [first[name], second[name]]
        if name == "approve":
            joined[name] = max(values)  # "within-policy" comes after "ask"
        elif isinstance(values[0], list):
            joined[name] = [*values[0], *values[1]]
        elif name == "require_encryption":
            joined[name] = all(values)
        elif name.startswith("min_"):
            joined[name] = min(values)
        else:
            joined[name] = None if None in values else max(values)
    return joined


@given(POLICIES, POLICIES, PLANS, OWNS)
def test_no_plan_passes_a_policy_and_fails_a_looser_one(strict, other, plan, own):
    loose = loosest(strict, other)
    assert broken_rules(loose, plan, own) <= broken_rules(strict, plan, own)


@given(POLICIES, PLANS, OWNS)
def test_a_site_with_more_data_is_never_forbidden_more(policy, plan, own):
    more = (own[0] + 5, own[1] + 3)
    assert broken_rules(policy, plan, more) <= broken_rules(policy, plan, own)


# -- own data ---------------------------------------------------------------------------------------------


def test_patients_are_counted_in_the_training_split_and_for_the_task(tmp_path):
    write_studies(tmp_path, 7)
    assert count_data(tmp_path, Task.CLASSIFIER) == OwnData(studies=14, patients=7)
    assert count_data(tmp_path, Task.SEGMENTATION) == OwnData(0, 0), "there are no masks"
    write_studies(tmp_path, 7, Split.TEST)
    assert count_data(tmp_path, Task.CLASSIFIER) == OwnData(0, 0)


def test_a_cohort_that_grew_is_counted_anew(make_desk, make_run_plan):
    desk = make_desk('approve = "within-policy"', "min_patients = 13")
    assert desk.code(make_run_plan()) == "plan-forbidden"
    write_studies(desk.home.folder / "cohort", 13)
    assert desk.code(make_run_plan()) == ""
    (desk.home.folder / "cohort" / "cohort.csv").unlink()
    assert desk.code(make_run_plan()) == "cohort-invalid"


# -- hours ------------------------------------------------------------------------------------------------

NIGHTS = Hours(start=time(19), end=time(7), days=("fri", "sat"), time_zone="UTC")
OFFICE = Hours(start=time(9), end=time(17, 30), time_zone="Europe/Rome")


@pytest.mark.parametrize(
    ("hours", "moment", "expected"),
    [
        (NIGHTS, datetime(2026, 11, 27, 18, 59), False),  # Friday
        (NIGHTS, datetime(2026, 11, 27, 19, 0), True),
        (NIGHTS, datetime(2026, 11, 28, 6, 59), True),
        (NIGHTS, datetime(2026, 11, 28, 7, 0), False),
        (NIGHTS, datetime(2026, 11, 29, 6, 59), True),  # Saturday's night ends on Sunday
        (NIGHTS, datetime(2026, 11, 29, 23, 0), False),
        (NIGHTS, datetime(2026, 11, 27, 6, 0), False),  # Thursday's night is no night of ours
        (OFFICE, datetime(2026, 11, 23, 8, 0), True),  # 9:00 in Rome in winter
        (OFFICE, datetime(2026, 11, 23, 7, 59), False),
        (OFFICE, datetime(2026, 11, 23, 16, 30), False),
        (OFFICE, datetime(2026, 7, 6, 7, 0), True),  # 9:00 in Rome in summer
        (OFFICE, datetime(2026, 7, 6, 15, 30), False),
        (None, datetime(2026, 7, 6, 15, 30), True),
    ],
)
def test_the_hours_are_those_of_the_sites_own_clock(hours, moment, expected):
    moment = moment.replace(tzinfo=UTC)
    assert is_open(hours, moment) is expected
    assert is_open(hours, moment.astimezone(timezone(timedelta(hours=-9)))) is expected


def test_equal_start_and_end_mean_the_whole_day():
    whole = Hours(start=time(6), end=time(6), time_zone="UTC")
    assert all(is_open(whole, MONDAY_NOON + timedelta(hours=hour)) for hour in range(24))


def test_a_moment_without_a_time_zone_is_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="time zone"):
        is_open(NIGHTS, datetime(2026, 11, 27, 18, 59))


def test_hours_are_written_as_times_of_day():
    assert Hours(start="19:00", end="07:00:30").end == time(7, 0, 30)
    for wrong in (19, "7pm", "25:00", "19:00+01:00", None, True):
        with pytest.raises(ValueError):
            Hours(start=wrong, end="07:00")
    with pytest.raises(ValueError, match="time zone"):
        Hours(start="19:00", end="07:00", time_zone="Mars/Base")


def test_a_policy_that_cannot_be_read_names_the_rule(make_desk):
    desk = make_desk("min_sites = 0")
    with pytest.raises(ConfigError, match=r"policy\.min_sites"):
        desk.home.read_policy()
