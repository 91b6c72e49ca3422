# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.engines.inprocess import InProcessTransport
from ucadi.errors import FederationError
from ucadi.federation.evaluation import (
    Cell,
    Evaluation,
    candidates_of,
    run_evaluation,
)
from ucadi.federation.messages import Phase, Readiness, Refusal, Validation, decode_call, encode_reply
from ucadi.federation.ports import Answer
from ucadi.federation.records import RoundRecord

SCORES = {"A": (0.2, 0.9, 0.5), "B": (0.1, 0.3, 0.8), "C": (0.4, 0.4, 0.4)}


class Recorded(InProcessTransport):
    """Hands messages to real sites in this process and keeps them."""

    def __init__(self, sites):
        super().__init__(sites)
        self.sent = []

    def send(self, exchange):
        self.sent.append(exchange)
        super().send(exchange)


@pytest.fixture
def models(make_model):
    """The models of rounds 0, 1 and 2."""
    return {number: make_model(made_in=number, seed=number) for number in range(3)}


@pytest.fixture
def records():
    """What the run's rounds left: a record's metrics judge the model that its round started from."""
    return [
        RoundRecord(
            number + 1,
            participants=list(SCORES) if number < 2 else [],
            metrics={site: {"validation": scores[number]} for site, scores in SCORES.items()},
            validation=0.5,
        )
        for number in range(3)
    ]


@pytest.fixture
def candidates(models, records):
    hashes = {number: model.hash for number, model in models.items()}
    return candidates_of(records, hashes, ["best", "last", "own"], best=2)


@pytest.fixture
def evaluate(make_run_plan, make_site, models, candidates):
    """Runs an evaluation over real sites and returns it with its transport."""

    def run(*, plan=None, sites=None, lost=(), load=None, **options):
        sites = sites or {name: make_site(name, scores=scores) for name, scores in SCORES.items()}
        transport = Recorded({name: site for name, site in sites.items() if name not in lost})
        options = {"candidates": candidates, **options}
        evaluation = Evaluation(
            plan or make_run_plan(), load=load or models.__getitem__, sites=tuple(sites), **options
        )
        run_evaluation(evaluation, transport)
        return evaluation.matrix, transport

    return run


def answer(evaluation, site, reply, body=None):
    """Hands one reply to an evaluation."""
    evaluation.receive(Answer(site, body or encode_reply(reply)))


# -- which models ------------------------------------------------------------------------------------------


def test_each_model_that_is_asked_for_appears_once_with_all_its_labels(candidates):
    assert [(c.round, c.labels) for c in candidates] == [
        (0, ("best for C",)),
        (1, ("best for A",)),
        (2, ("best", "last", "best for B")),
    ]


def test_rounds_can_be_named_by_number_or_all_be_taken(models, records):
    hashes = {number: model.hash for number, model in models.items()}
    assert [c.round for c in candidates_of(records, hashes, ["1", "01"])] == [1]
    assert [c.round for c in candidates_of(records, hashes, ["all"])] == [0, 1, 2]


def test_rounds_in_which_sites_judged_different_models_have_no_own_best(models, records):
    hashes = {number: model.hash for number, model in models.items()}
    buffered = [dataclasses.replace(record, validation=None) for record in records]
    assert candidates_of(buffered, hashes, ["own"]) == ()


@pytest.mark.parametrize("word", ["7", "best", "newest", "-1", "²", "../1", ""])
def test_a_model_that_the_run_does_not_keep_is_refused(models, records, word):
    with pytest.raises(FederationError) as caught:
        candidates_of(records, {0: models[0].hash}, [word])
    assert caught.value.code == "model-not-kept"


# -- the matrix --------------------------------------------------------------------------------------------


def test_every_model_is_measured_at_every_site(evaluate):
    matrix, _ = evaluate()
    values = {row.candidate.round: {s: c.value for s, c in row.cells.items()} for row in matrix.rows}
    assert values == {number: {site: SCORES[site][number] for site in SCORES} for number in range(3)}
    assert matrix.best.round == 2


def test_one_message_goes_out_per_model_and_it_asks_for_nothing_but_validation(evaluate, models):
    _, transport = evaluate()
    calls = [decode_call(exchange.body) for exchange in transport.sent]
    assert [call.phase for call in calls] == [Phase.VALIDATE] * 3
    assert [call.model.hash for call in calls] == [models[number].hash for number in range(3)]


def test_the_mean_is_weighted_as_the_runs_own_validation_is(evaluate, make_run_plan):
    matrix, _ = evaluate(plan=make_run_plan(client_weights={"A": 2.0, "B": 1.0, "C": 1.0}))
    assert matrix.rows[2].mean == pytest.approx((2 * 0.5 + 0.8 + 0.4) / 4)


def test_a_site_that_is_lost_leaves_a_gap_with_its_reason(evaluate):
    matrix, _ = evaluate(lost=("B",))
    row = matrix.rows[0]
    assert row.cells["B"] == Cell(reason="site-lost")
    assert not row.is_complete
    assert row.mean == pytest.approx((0.2 + 0.4) / 2)
    assert matrix.best is None, "rows with gaps are not compared"


def test_a_site_that_cannot_measure_is_said_to_have_not(evaluate, make_site):
    sites = {"A": make_site("A", scores=SCORES["A"]), "B": make_site("B")}
    matrix, _ = evaluate(sites=sites)
    assert {row.cells["B"].reason for row in matrix.rows} == {"not-measured"}


def test_a_sites_refusal_is_kept_as_its_code(evaluate, make_site):
    fault = FederationError("site-declined", "no")
    sites = {"A": make_site("A", scores=SCORES["A"]), "B": make_site("B", faults={"validate": fault})}
    matrix, _ = evaluate(sites=sites)
    assert matrix.rows[0].cells["B"].reason == "site-declined"


def test_what_is_known_of_an_earlier_evaluation_is_not_asked_again(evaluate, models):
    known = {(models[number].hash, site): Cell(0.25) for number in (0, 1) for site in SCORES}
    known[models[1].hash, "B"] = Cell(reason="site-lost")
    loaded = []
    matrix, transport = evaluate(known=known, load=lambda number: loaded.append(number) or models[number])
    assert [exchange.sites for exchange in transport.sent] == [("B",), ("A", "B", "C")]
    assert loaded == [1, 2]
    assert matrix.rows[0].cells["A"].value == 0.25
    assert matrix.rows[1].cells["B"].value == SCORES["B"][1]


def test_a_plan_without_the_validation_metric_allows_no_evaluation(evaluate, make_run_plan):
    with pytest.raises(FederationError) as caught:
        evaluate(plan=make_run_plan(metrics=("loss",)))
    assert caught.value.code == "evaluation-not-agreed"


def test_a_model_that_changed_on_disk_is_not_sent(evaluate, make_model):
    with pytest.raises(FederationError) as caught:
        evaluate(load=lambda number: make_model(made_in=number, seed=99))
    assert caught.value.code == "model-mismatch"


# -- answers that do not fit -------------------------------------------------------------------------------


@pytest.fixture
def ask(make_run_plan, models, candidates):
    """Starts an evaluation under a plan with given metrics: the initial model is sent."""

    def start(**plan):
        evaluation = Evaluation(make_run_plan(**plan), candidates, models.__getitem__, ("A", "B", "C"))
        evaluation.next_exchange()
        return evaluation

    return start


@pytest.fixture
def asked(ask):
    """An evaluation that has sent the initial model."""
    return ask()


GOOD = Validation("run-1", 1, "A", {"validation": 0.5})


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (dataclasses.replace(GOOD, site="B"), "site-unknown"),
        (dataclasses.replace(GOOD, run_id="run-2"), "round-stale"),
        (dataclasses.replace(GOOD, round=2), "round-stale"),
        (dataclasses.replace(GOOD, metrics={"validation": 1.5}), "message-invalid"),
        (dataclasses.replace(GOOD, metrics={"patients": 12.0}), "message-invalid"),
        (dataclasses.replace(GOOD, metrics={"loss": 0.5}), "not-measured"),
        (Readiness("run-1", 1, "A", 7), "message-invalid"),
        (Refusal("", 0, "A", "protocol-version"), "protocol-version"),
        (Refusal("", 0, "B", "protocol-version"), "site-unknown"),
    ],
)
def test_an_answer_that_does_not_fit_leaves_a_gap_with_its_code(asked, reply, code):
    answer(asked, "A", reply)
    assert asked.matrix.rows[0].cells["A"] == Cell(reason=code)


def test_damaged_bytes_leave_a_gap(asked):
    answer(asked, "A", None, b"\x00" * 40)
    assert asked.matrix.rows[0].cells["A"].reason == "message-invalid"


def test_a_second_answer_and_a_strangers_answer_change_nothing(asked):
    answer(asked, "A", GOOD)
    answer(asked, "A", dataclasses.replace(GOOD, metrics={"validation": 0.9}))
    answer(asked, "Z", dataclasses.replace(GOOD, site="Z"))
    assert asked.matrix.rows[0].cells["A"].value == 0.5
    assert asked.matrix.sites == ("A", "B", "C")


def test_a_late_answer_to_the_model_before_is_not_taken_for_this_one(asked):
    asked.next_exchange()
    answer(asked, "A", GOOD)
    assert asked.matrix.rows[0].cells["A"].reason == "site-late"
    assert asked.matrix.rows[1].cells["A"].reason == "round-stale"


@pytest.fixture
def asked_for_intervals(ask):
    """The same, under a plan that lets sites say how sure they are."""
    return ask(metrics=("validation", "validation_studies", "validation_low", "validation_high"))


def test_a_site_may_send_its_interval_and_number_of_studies(asked_for_intervals):
    metrics = {"validation": 0.5, "validation_studies": 9.0, "validation_low": 0.4, "validation_high": 0.7}
    answer(asked_for_intervals, "A", dataclasses.replace(GOOD, metrics=metrics))
    assert asked_for_intervals.matrix.rows[0].cells["A"] == Cell(0.5, 9, 0.4, 0.7)


def test_an_interval_that_the_plan_does_not_name_is_refused(asked):
    metrics = {"validation": 0.5, "validation_low": 0.4, "validation_high": 0.7}
    answer(asked, "A", dataclasses.replace(GOOD, metrics=metrics))
    assert asked.matrix.rows[0].cells["A"] == Cell(reason="message-invalid")


@pytest.mark.parametrize(
    "odd",
    [
        {"validation_low": 0.4},
        {"validation_low": 0.6, "validation_high": 0.7},
        {"validation_low": -0.1, "validation_high": 0.7},
        {"validation_studies": 0.0},
        {"validation_studies": 2.5},
    ],
)
def test_an_interval_or_a_count_that_cannot_be_is_refused(asked_for_intervals, odd):
    answer(asked_for_intervals, "A", dataclasses.replace(GOOD, metrics={"validation": 0.5, **odd}))
    assert asked_for_intervals.matrix.rows[0].cells["A"].reason == "message-invalid"


@given(st.permutations(["A", "B", "C"]))
def test_the_matrix_does_not_depend_on_who_answers_first(make_run_plan, make_model, order):
    model = make_model()
    candidates = candidates_of([], {0: model.hash}, ["last"])
    evaluation = Evaluation(make_run_plan(), candidates, lambda number: model, ("C", "A", "B"))
    evaluation.next_exchange()
    for site in order:
        value = {"A": 0.1, "B": 0.2, "C": 0.3}[site]
        answer(evaluation, site, Validation("run-1", 1, site, {"validation": value}))
    assert list(evaluation.matrix.rows[0].cells) == ["A", "B", "C"]
    assert evaluation.matrix.rows[0].mean == math.fsum([0.1, 0.2, 0.3]) / 3
