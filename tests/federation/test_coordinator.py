# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest

from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Checkpoint, Coordinator
from ucadi.federation.messages import (
    Phase,
    Readiness,
    Refusal,
    Update,
    Validation,
    decode_call,
    encode_reply,
)
from ucadi.federation.ports import Answer
from ucadi.federation.records import Progress
from ucadi.tensors import pack


class Desk:
    """A coordinator with the pen that writes its sites' replies.

    Attributes:
        told: All progress.
    """

    def __init__(self, plan, model, make_update):
        self.told: list[Progress] = []
        self.model = model
        self.coordinator = Coordinator(plan, Checkpoint.at_start(model), PlaintextCipher(), self.told.append)
        self._make_update = make_update

    def call(self, *members):
        """Ask sites, or all."""
        return self.coordinator.call(members or "ABC")

    def ready(self, *sites, lost=None):
        """Ask all, let sites say that they are ready and the others nothing; send the model to those."""
        self.call()
        for site in sites:
            self.say(site, self.readiness(site))
        self.lose(*sorted(set("ABC") - set(sites) if lost is None else lost))
        self.coordinator.close_phase()
        return None if self.coordinator.shortfall else self.call()

    def readiness(self, site, **changes):
        fields = {"run_id": "run-1", "round": self.round, "site": site, "num_studies": 7}
        return Readiness(**{**fields, **changes})

    def update(self, site, delta=1.0, **changes):
        model = self.coordinator.model
        return self._make_update(model, site, delta, **changes)

    def validation(self, site, value, **changes):
        fields = {"run_id": "run-1", "round": self.round, "site": site, "metrics": {"validation": value}}
        return Validation(**{**fields, **changes})

    def say(self, sender, reply):
        self.coordinator.receive(Answer(sender, encode_reply(reply)))

    def lose(self, *sites, why="site-late"):
        """Let the deadline of sites pass."""
        for site in sites:
            self.coordinator.receive(Answer(site, None, why))

    @property
    def round(self):
        return self.coordinator.model.round + 1

    def added(self):
        """What the closed round added to each parameter."""
        before, after = self.model.parameters, self.coordinator.model.parameters
        return float(np.mean([np.mean(after[name] - before[name]) for name in before]))


@pytest.fixture
def desk(make_run_plan, make_model, make_update):
    """Builds a `Desk`; keywords replace the plan's fields."""

    def build(**changes):
        return Desk(make_run_plan(**changes), make_model(), make_update)

    return build


def test_each_round_asks_first_who_is_ready_and_then_sends_the_model_to_those(desk):
    at = desk()
    asked = at.call()
    call = decode_call(asked.body)
    assert (call.phase, call.model, asked.sites) == (Phase.READY, None, ("A", "B", "C"))
    assert asked.deadline_s == 30.0
    sent = at.ready("A", "C")
    call = decode_call(sent.body)
    assert (call.phase, call.model.hash, sent.sites) == (Phase.TRAIN, at.model.hash, ("A", "C"))
    assert sent.deadline_s == 3600.0
    assert (call.plan.round, call.plan.run, call.plan.model_hash) == (1, at.coordinator.plan, at.model.hash)


def test_after_the_last_round_the_model_is_only_validated_and_the_run_ends(desk):
    at = desk(rounds=1, min_sites=1)
    at.ready("A")
    at.say("A", at.update("A"))
    at.coordinator.close_phase()
    call = decode_call(at.ready("A").body)
    assert (call.phase, call.model.round, call.plan.round) == (Phase.VALIDATE, 1, 2)
    at.say("A", at.validation("A", 0.5))
    assert at.coordinator.close_phase().participants == []
    assert at.coordinator.is_done
    assert at.coordinator.model.round == 1


def test_the_mean_is_of_the_accepted_updates(desk):
    at = desk()
    at.ready("A", "B", "C")
    at.say("A", at.update("A", 1.0, iterations=1))
    at.say("B", at.update("B", 4.0, iterations=3))
    record = at.coordinator.close_phase()
    assert record.participants == ["A", "B"]
    assert at.added() == pytest.approx((1 * 1.0 + 3 * 4.0) / 4)
    assert record.upload_bytes > 0


@pytest.mark.parametrize("why", ["site-late", "site-lost"])
def test_a_silent_site_is_missing_with_its_reason(desk, why):
    at = desk()
    at.ready("A", "B")  # C says nothing
    at.say("A", at.update("A"))
    at.lose("B", why=why)
    assert at.coordinator.close_phase() is None
    assert f"B ({why}), C (site-late)" in at.coordinator.shortfall
    assert Progress("missing", 1, "C", "site-late") in at.told
    assert Progress("waiting", 1, "", at.coordinator.shortfall) in at.told


def test_a_site_of_the_plan_that_is_not_connected_is_missing_and_not_called(desk):
    at = desk()
    assert at.call("A", "B").sites == ("A", "B")
    for site in "AB":
        at.say(site, at.readiness(site))
    at.coordinator.close_phase()
    at.call("A", "B")
    for site in "AB":
        at.say(site, at.update(site))
    assert at.coordinator.close_phase().missing == {"C": "site-lost"}


def test_a_plan_without_names_calls_every_member_and_one_with_names_nobody_else(desk):
    assert desk(sites=()).call("D", "A").sites == ("A", "D")
    assert desk().call("D", "A").sites == ("A",)


def test_a_site_that_joins_is_called_in_the_next_round(desk):
    at = desk(sites=())
    for members in ("AB", "ABD"):
        at.call(*members)
        for site in members:
            at.say(site, at.readiness(site))
        at.coordinator.close_phase()
        assert at.call("A", "B", "D").sites == tuple(members)  # who was not ready in time waits
        for site in members:
            at.say(site, at.update(site))
        assert at.coordinator.close_phase().participants == list(members)


@pytest.mark.parametrize("number", [1, 2])
def test_a_site_that_declines_is_noted_in_each_round(desk, number):
    at = desk()
    for _ in range(number):
        at.call()
        at.say("C", Refusal("run-1", at.round, "C", "cohort-empty"))
        assert at.ready("A", "B", lost=()).sites == ("A", "B")
        at.say("A", at.update("A"))
        at.say("B", at.update("B"))
        assert at.coordinator.close_phase().missing == {"C": "cohort-empty"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"delta": np.nan}, "update-not-finite"),
        ({"tensors": {}}, "update-missing-tensor"),
        ({"tensors": {"x": np.zeros(1, np.float32)}}, "update-unknown-tensor"),
        ({"iterations": 0}, "update-bad-weight"),
        ({"aggregation_weight": -1.0}, "update-bad-weight"),
        ({"round": 2}, "round-stale"),
        ({"round": 0}, "round-stale"),
        ({"run_id": "run-0"}, "round-stale"),
        ({"site": "B"}, "site-unknown"),
        ({"site": "Z"}, "site-unknown"),
    ],
    ids=str,
)
def test_a_refused_update_is_noted_with_its_code_and_the_others_mean_is_right(desk, changes, code):
    at = desk()
    at.ready("A", "B", "C")
    at.say("A", at.update("A", 1.0))
    at.say("C", at.update(**{"site": "C", **changes}))
    at.say("B", at.update("B", 3.0))
    record = at.coordinator.close_phase()
    assert record.participants == ["A", "B"]
    assert record.missing == {"C": code}
    assert at.added() == pytest.approx(2.0)


def test_damaged_bytes_are_noted_and_the_round_goes_on(desk):
    at = desk()
    at.ready("A", "B", "C")
    at.coordinator.receive(Answer("C", b"\x80\x04junk"))
    at.say("A", at.update("A"))
    at.say("B", at.update("B"))
    assert at.coordinator.close_phase().missing == {"C": "message-invalid"}


def test_a_site_of_another_release_is_noted_as_such(desk):
    at = desk()
    at.call()
    at.coordinator.receive(Answer("C", pack({}, {"ucadi": "99", "kind": "refusal", "body": "{}"})))
    at.ready("A", "B", lost=())
    at.say("A", at.update("A"))
    at.say("B", at.update("B"))
    assert at.coordinator.close_phase().missing == {"C": "protocol-version"}


def test_a_site_that_could_not_read_the_request_is_noted_with_its_reason(desk, make_site):
    at = desk()
    at.call()
    at.coordinator.receive(Answer("C", make_site("C").answer(b"junk")))
    at.ready("A", "B", lost=())
    at.say("A", at.update("A"))
    at.say("B", at.update("B"))
    assert at.coordinator.close_phase().missing == {"C": "message-invalid"}


def test_a_site_outside_the_plan_is_refused(desk):
    at = desk()
    at.call()
    at.say("Z", at.readiness("Z"))
    assert at.ready("A", "B").sites == ("A", "B")


def test_an_impostor_cannot_spoil_the_site_whose_name_it_takes(desk):
    at = desk()
    at.ready("A", "B", "C")
    at.say("C", at.update("A", 100.0))
    at.say("A", at.update("A", 1.0))
    at.say("B", at.update("B", 3.0))
    record = at.coordinator.close_phase()
    assert (record.participants, record.missing) == (["A", "B"], {"C": "site-unknown"})
    assert at.added() == pytest.approx(2.0)


def test_a_site_whose_first_answer_was_refused_may_answer_again(desk):
    at = desk()
    at.ready("A", "B")
    at.say("A", at.update("A", np.nan))
    at.say("A", at.update("A", 1.0))
    at.say("B", at.update("B", 3.0))
    record = at.coordinator.close_phase()
    assert (record.participants, record.missing) == (["A", "B"], {"C": "site-late"})
    assert at.added() == pytest.approx(2.0)


@pytest.mark.parametrize("second", ["same", "other", "refusal", "damaged"])
def test_the_first_update_of_a_site_counts(desk, second):
    at = desk()
    at.ready("A", "B")
    first = at.update("A", 1.0)
    at.say("A", first)
    if second == "damaged":
        at.coordinator.receive(Answer("A", b"junk"))
    else:
        at.say(
            "A",
            {
                "same": first,
                "other": at.update("A", 100.0, metrics={"validation": 1.0}),
                "refusal": Refusal("run-1", 1, "A", "site-failed"),
            }[second],
        )
    at.say("B", at.update("B", 3.0))
    record = at.coordinator.close_phase()
    assert (record.participants, record.missing) == (["A", "B"], {"C": "site-late"})
    assert record.metrics["A"] == {}
    assert at.added() == pytest.approx(2.0)
    assert [p.kind for p in at.told if p.site == "A"].count("update") == 1


def test_the_first_validation_of_a_site_counts(desk):
    at = desk(rounds=1, min_sites=1)
    at.ready("A")
    at.say("A", at.update("A"))
    at.coordinator.close_phase()
    at.ready("A")
    at.say("A", at.validation("A", 0.5))
    at.say("A", at.validation("A", 0.9))
    assert at.coordinator.close_phase().validation == 0.5


def test_a_reply_out_of_turn_is_refused(desk):
    at = desk()
    at.call()
    at.say("A", at.update("A"))
    at.say("B", at.validation("B", 1.0))
    at.ready("A", "B", "C")
    at.say("C", at.readiness("C"))
    at.say("A", at.update("A"))
    at.say("B", at.update("B"))
    record = at.coordinator.close_phase()
    assert record.participants == ["A", "B"]
    assert record.missing == {"C": "message-invalid"}
    assert record.metrics == {"A": {}, "B": {}}


def test_an_update_of_a_site_that_did_not_say_ready_is_refused(desk):
    at = desk()
    at.ready("A", "B")
    at.say("C", at.update("C", 100.0))
    at.say("A", at.update("A"))
    at.say("B", at.update("B"))
    record = at.coordinator.close_phase()
    assert record.participants == ["A", "B"]
    assert at.added() == pytest.approx(1.0)


@pytest.mark.parametrize("phase", ["ready", "train"])
def test_a_round_below_its_quorum_begins_anew_and_says_who_is_missing(desk, phase):
    at = desk(min_sites=3)
    at.call()
    if phase == "train":
        at.ready("A", "B", "C")
        at.say("A", at.update("A"))
    else:
        at.say("A", at.readiness("A"))
    at.say("B", Refusal("run-1", 1, "B", "site-failed"))
    at.lose("C")
    assert at.coordinator.close_phase() is None
    assert "Round 1: 1 sites take part, 3 are needed" in at.coordinator.shortfall
    assert "B (site-failed), C (site-late)" in at.coordinator.shortfall
    assert at.coordinator.model is at.model
    assert at.coordinator.is_between_rounds
    assert at.coordinator.records == []


def test_a_repeated_round_forgets_the_updates_of_its_first_attempt(desk):
    at = desk(min_sites=3)
    at.ready("A", "B", "C")
    at.say("A", at.update("A", 100.0))
    at.lose("B", "C")
    at.coordinator.close_phase()
    at.ready("A", "B", "C")
    assert at.coordinator.shortfall == ""
    for site in "ABC":
        at.say(site, at.update(site, 1.0))
    record = at.coordinator.close_phase()
    assert (record.participants, record.missing) == (["A", "B", "C"], {})
    assert at.added() == pytest.approx(1.0)


def test_the_last_validation_waits_for_lost_sites_but_not_for_those_that_cannot_measure(desk):
    at = desk(rounds=1, min_sites=3)
    at.ready("A", "B", "C")
    for site in "ABC":
        at.say(site, at.update(site))
    at.coordinator.close_phase()
    for how, is_done in (("lost", False), ("refused", True)):
        at.ready("A", "B", "C")
        at.say("A", at.validation("A", 0.5))
        at.say("B", at.validation("B", 0.5))
        if how == "lost":
            at.lose("C", why="site-lost")
        else:
            at.say("C", Refusal("run-1", 2, "C", "site-failed"))
        at.coordinator.close_phase()
        assert at.coordinator.is_done == is_done


def test_a_run_goes_on_from_its_state_as_if_nothing_had_happened(desk, make_run_plan, make_model):
    whole, first = desk(rounds=3), desk(rounds=3)
    for at in (whole, first):
        run_round(at, 1.0, 0.5)
        run_round(at, 2.0, 0.7)
    state = Checkpoint(
        first.coordinator.model,
        first.coordinator.best,
        first.coordinator.best_validation,
        tuple(first.coordinator.records),
    )
    first.coordinator = Coordinator(first.coordinator.plan, state, PlaintextCipher())
    for at in (whole, first):
        run_round(at, 3.0, 0.6)
    assert first.coordinator.model.hash == whole.coordinator.model.hash
    assert first.coordinator.best.hash == whole.coordinator.best.hash
    assert first.coordinator.best.round == 1
    assert [vars(r) for r in first.coordinator.records] == [vars(r) for r in whole.coordinator.records]


def run_round(at, delta, score):
    at.ready("A", "B")
    for site in "AB":
        at.say(site, at.update(site, delta, metrics={"validation": score}))
    at.coordinator.close_phase()


def test_a_metric_that_was_not_asked_for_is_refused(desk):
    at = desk(metrics=("loss",))
    at.ready("A", "B", "C")
    at.say("A", at.update("A", metrics={"validation": 0.5}))
    at.say("B", at.update("B", metrics={"loss": 0.5}))
    at.say("C", at.update("C"))
    assert at.coordinator.close_phase().missing == {"A": "message-invalid"}


def test_a_rounds_validation_is_weighted_by_client(desk):
    at = desk(client_weights={"A": 3.0})
    at.ready("A", "B")
    at.say("A", at.update("A", aggregation_weight=3.0, metrics={"validation": 0.2}))
    at.say("B", at.update("B", metrics={"validation": 0.6}))
    assert at.coordinator.close_phase().validation == pytest.approx((3 * 0.2 + 0.6) / 4)


def run_with_scores(at, scores):
    """Run all rounds with one site that reports these scores."""
    while not at.coordinator.is_done:
        at.ready("A")
        score = scores[at.coordinator.model.round]
        metrics = {} if score is None else {"validation": score}
        if at.coordinator.model.round < at.coordinator.plan.rounds:
            at.say("A", at.update("A", metrics=metrics))
        else:
            at.say("A", at.validation("A", 0.0, metrics=metrics))
        at.coordinator.close_phase()


@pytest.mark.parametrize(
    "scores", [*itertools.permutations([0.2, 0.5, 0.9]), (0.5, 0.5, 0.5), (None, 0.1, None)]
)
def test_the_selected_model_is_the_first_of_the_best_validated_rounds(desk, scores):
    at = desk(min_sites=1)
    run_with_scores(at, scores)
    known = [score for score in scores if score is not None]
    assert at.coordinator.best.round == scores.index(max(known))
    assert at.coordinator.best_validation == max(known)
    assert [record.validation for record in at.coordinator.records] == list(scores)


def test_without_any_validation_the_last_model_is_selected(desk):
    at = desk(min_sites=1)
    run_with_scores(at, (None, None, None))
    assert at.coordinator.best.round == 2


def test_the_validation_of_a_round_is_the_mean_of_those_who_could_measure(desk):
    at = desk()
    at.ready("A", "B", "C")
    at.say("A", at.update("A", metrics={"validation": 0.2}))
    at.say("B", at.update("B", metrics={"loss": 9.0}))
    at.say("C", at.update("C", metrics={"validation": 0.6}))
    assert at.coordinator.close_phase().validation == pytest.approx(0.4)


@pytest.mark.parametrize("order", list(itertools.permutations("ABC")))
def test_the_validation_of_a_round_does_not_depend_on_who_answers_first(desk, order):
    at = desk()
    at.ready("A", "B", "C")
    scores = {"A": 0.1, "B": 0.2, "C": 0.3}  # these sum to 0.6 or to 0.6000000000000001, as one adds them
    for site in order:
        at.say(site, at.update(site, metrics={"validation": scores[site]}))
    assert at.coordinator.close_phase().validation == math.fsum(scores.values()) / 3


def test_a_refused_updates_metrics_do_not_count(desk):
    at = desk()
    at.ready("A", "B", "C")
    at.say("A", at.update("A", metrics={"validation": 0.2}))
    at.say("B", at.update("B", metrics={"validation": 0.4}))
    at.say("C", at.update("C", np.nan, metrics={"validation": 1.0}))
    record = at.coordinator.close_phase()
    assert record.validation == pytest.approx(0.3)
    assert sorted(record.metrics) == ["A", "B"]


def test_progress_tells_who_is_ready_who_sent_and_who_is_missing(desk):
    at = desk()
    at.ready("A", "B")
    at.say("A", at.update("A"))
    at.say("B", at.update("B"))
    assert [(p.kind, p.site, p.detail) for p in at.told] == [
        ("ready", "A", ""),
        ("ready", "B", ""),
        ("missing", "C", "site-late"),
        ("update", "A", ""),
        ("update", "B", ""),
    ]


def test_an_update_record_is_not_kept(desk):
    at = desk()
    at.ready("A", "B")
    at.say("A", at.update("A"))
    kept = [value for value in vars(at.coordinator).values() if isinstance(value, Update)]
    assert kept == []
