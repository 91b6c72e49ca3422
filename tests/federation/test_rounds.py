# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ucadi.engines.inprocess import InProcessTransport
from ucadi.errors import CohortError, ModelError, QuorumError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.buffered import BufferedCoordinator, staleness_discount
from ucadi.federation.coordinator import Checkpoint, Coordinator
from ucadi.federation.plans import Aggregation
from ucadi.federation.ports import Wish
from ucadi.federation.rounds import run_buffered, run_rounds


class Desk:
    """A desk whose wishes and members are written down beforehand.

    Attributes:
        told: Each kept round with its model.
        shortfalls: What was said at each waiting.
    """

    def __init__(self, members="ABC", wishes=(), patience=0, on_wait=lambda: None):
        self._members = list(members)
        self._wishes = list(wishes)
        self._patience = patience
        self._on_wait = on_wait
        self.told = []
        self.shortfalls = []

    def members(self):
        return self._members

    def wish(self):
        return self._wishes.pop(0) if self._wishes else Wish.GO_ON

    def keep(self, record, model):
        self.told.append((record, model))

    def wait(self, shortfall):
        self.shortfalls.append(shortfall)
        self._on_wait()
        return len(self.shortfalls) <= self._patience


@pytest.fixture
def run(make_run_plan, make_model):
    """Runs a whole federation; returns selected model, coordinator and what was told after each round."""

    def start(sites, **changes):
        desk = Desk()
        start = Checkpoint.at_start(make_model())
        coordinator = Coordinator(make_run_plan(**changes), start, PlaintextCipher())
        transport = InProcessTransport({site.name: site for site in sites})
        assert run_rounds(coordinator, transport, desk) is Wish.GO_ON
        return coordinator.best, coordinator, desk.told

    return start


def test_a_whole_run_adds_each_rounds_mean_and_selects_the_best_model(run, make_site, make_model):
    sites = [
        make_site("A", delta=1.0, scores=(0.1, 0.6, 0.4)),
        make_site("B", delta=2.0, scores=(0.1, 0.8, 0.5)),
        make_site("C", delta=6.0, scores=()),
    ]
    selected, coordinator, told = run(sites)
    start = make_model().parameters["conv.weight"]
    for made, factor in ((selected, 1), (coordinator.model, 2)):
        np.testing.assert_allclose(made.parameters["conv.weight"], start + factor * 3.0, rtol=1e-5)
    assert (selected.round, coordinator.model.round) == (1, 2)
    assert [record.round for record, _ in told] == [1, 2, 3]
    assert [record.participants for record, _ in told] == [["A", "B", "C"], ["A", "B", "C"], []]
    assert [record.validation for record, _ in told] == pytest.approx([0.1, 0.7, 0.45])
    assert [model.round for _, model in told] == [1, 2, 2]


def test_a_run_repeated_gives_the_same_bits(run, make_site):
    hashes = {run([make_site(name, delta=0.1 * k) for k, name in enumerate("ABC")])[0].hash for _ in range(2)}
    assert len(hashes) == 1


def test_a_run_goes_on_without_the_site_that_declines(run, make_site, make_trainer):
    empty = {"readiness": CohortError("cohort-empty", "No study.")}
    selected, coordinator, _ = run([make_site("A"), make_site("B"), make_site("C", faults=empty)])
    assert selected.round == 2
    assert [record.missing for record in coordinator.records] == [{"C": "cohort-empty"}] * 3


def test_a_run_goes_on_without_the_site_that_is_not_there(run, make_site):
    _, coordinator, _ = run([make_site("A"), make_site("B")])
    assert [record.missing for record in coordinator.records] == [{"C": "site-lost"}] * 3


def test_a_run_goes_on_without_the_site_whose_training_fails(run, make_site, make_model):
    fault = {"train": ModelError("site-failed", "The loss became nan.")}
    selected, coordinator, _ = run([make_site("A"), make_site("B", delta=3.0), make_site("C", faults=fault)])
    assert [record.missing for record in coordinator.records] == [{"C": "site-failed"}] * 2 + [{}]
    np.testing.assert_allclose(
        selected.parameters["conv.weight"], make_model().parameters["conv.weight"] + 4.0, rtol=1e-5
    )


def test_a_run_ends_when_too_few_sites_take_part(run, make_site):
    fault = {"train": ModelError("site-failed", "The loss became nan.")}
    with pytest.raises(QuorumError, match=r"B \(site-failed\), C \(site-lost\)"):
        run([make_site("A"), make_site("B", faults=fault)])


def test_a_failed_last_validation_does_not_lose_the_run(run, make_site):
    fault = {"validate": ModelError("site-failed", "Out of memory.")}
    selected, coordinator, _ = run([make_site(name, faults=fault, scores=(0.1, 0.2, 0.3)) for name in "ABC"])
    assert selected.round == 1
    assert coordinator.records[-1].missing == dict.fromkeys("ABC", "site-failed")


def test_a_round_waits_for_the_site_that_comes_back(make_run_plan, make_model, make_site):
    sites = {name: make_site(name) for name in "AB"}
    desk = Desk(patience=3, on_wait=lambda: len(desk.shortfalls) == 3 and sites.update(C=make_site("C")))
    coordinator = Coordinator(
        make_run_plan(min_sites=3), Checkpoint.at_start(make_model()), PlaintextCipher()
    )
    run_rounds(coordinator, InProcessTransport(sites), desk)
    assert ["C (site-lost)" in words for words in desk.shortfalls] == [True] * 3
    assert [record.participants for record in coordinator.records[:2]] == [["A", "B", "C"]] * 2


@pytest.mark.parametrize("wish", [Wish.HAND_OVER, Wish.STOP])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_ended_by_a_wish_goes_on_from_its_checkpoint_to_the_same_bits(
    run, make_run_plan, make_model, make_site, wish, after
):
    def sites():
        return {name: make_site(name, delta=0.3 * k, scores=(0.1, 0.9, 0.5)) for k, name in enumerate("ABC")}

    expected, whole, _ = run(list(sites().values()))
    plan, start = make_run_plan(), Checkpoint.at_start(make_model())
    first = Coordinator(plan, start, PlaintextCipher())
    # asked at the start and after each round
    assert run_rounds(first, InProcessTransport(sites()), Desk(wishes=[Wish.GO_ON] * after + [wish])) is wish
    assert len(first.records) == after
    second = Coordinator(plan, first.checkpoint(), PlaintextCipher())
    assert run_rounds(second, InProcessTransport(sites()), Desk()) is Wish.GO_ON
    assert second.best.hash == expected.hash
    assert second.checkpoint().records == whole.checkpoint().records


def test_client_weights_of_the_plan_reach_the_mean(run, make_site, make_model):
    _, coordinator, _ = run(
        [make_site("A", delta=1.0), make_site("B", delta=5.0)],
        rounds=1, client_weights={"A": 3.0, "B": 1.0},
    )  # fmt: skip
    added = coordinator.model.parameters["conv.weight"] - make_model().parameters["conv.weight"]
    np.testing.assert_allclose(added, (3 * 1.0 + 1 * 5.0) / 4, rtol=1e-5)


# -- buffered ---------------------------------------------------------------------------------------------


@pytest.fixture
def run_as_they_come(make_run_plan, make_model, make_site):
    """Runs buffered aggregation; site C takes ten times longer."""

    def start(sites=None, seconds=None, desk=None, **changes):
        plan = {
            "aggregation": Aggregation.BUFFERED,
            "buffer_size": 2,
            "min_sites": 1,
            "rounds": 12,
            **changes,
        }
        sites = sites or [make_site(name) for name in "ABC"]
        transport = InProcessTransport(
            {site.name: site for site in sites}, seconds or {"A": 1.0, "B": 1.0, "C": 10.0}
        )
        desk = desk or Desk()
        coordinator = BufferedCoordinator(
            make_run_plan(**plan), Checkpoint.at_start(make_model()), PlaintextCipher()
        )
        run_buffered(coordinator, transport, desk)
        return coordinator, transport, desk

    return start


def test_a_slow_site_holds_nobody_up_and_still_contributes(run_as_they_come):
    coordinator, transport, desk = run_as_they_come()
    assert transport.now < 14  # in rounds it would be 120
    who = [record.participants for record in coordinator.records]
    assert who.count(["A", "B"]) >= 10
    assert any("C" in participants for participants in who)
    assert [model.round for _, model in desk.told] == list(range(1, 13))


def test_a_stale_update_counts_less(run_as_they_come, make_model, make_site):
    sites = [make_site("A", delta=0.0), make_site("B", delta=0.0), make_site("C", delta=1.0)]
    _, _, desk = run_as_they_come(sites)
    with_slow = [number for number, (record, _) in enumerate(desk.told) if "C" in record.participants]
    number = with_slow[0]
    before = desk.told[number - 1][1].parameters["conv.weight"]
    added = desk.told[number][1].parameters["conv.weight"] - before
    # C started from the initial model; half of the buffer is its update
    np.testing.assert_allclose(added, staleness_discount(number) / 2, rtol=1e-5)


def test_an_update_of_the_newest_model_counts_in_full():
    assert staleness_discount(0) == 1.0
    assert staleness_discount(3) == 0.5


def test_no_site_is_twice_in_a_buffer(run_as_they_come):
    coordinator, _, _ = run_as_they_come(seconds={"A": 0.1, "B": 3.0, "C": 3.0}, rounds=6)
    assert all(len(set(record.participants)) == 2 for record in coordinator.records)


def test_a_site_that_refuses_is_left_alone_until_the_next_model(run_as_they_come, make_site):
    fault = {"train": ModelError("site-failed", "The loss became nan.")}
    sites = [make_site("A"), make_site("B"), make_site("C", faults=fault)]
    coordinator, _, _ = run_as_they_come(sites, seconds={"A": 1.0, "B": 1.0}, rounds=3)
    assert [record.participants for record in coordinator.records] == [["A", "B"]] * 3
    assert [record.missing for record in coordinator.records] == [{"C": "site-failed"}] * 3


def test_a_buffer_that_nobody_fills_ends_when_patience_is_over(run_as_they_come, make_site):
    with pytest.raises(QuorumError, match=r"B \(site-lost\), C \(site-lost\)"):
        run_as_they_come([make_site("A")])


def test_a_buffered_run_hands_over_between_answers(run_as_they_come):
    coordinator, transport, _ = run_as_they_come(desk=Desk(wishes=[Wish.GO_ON] * 5 + [Wish.HAND_OVER]))
    assert not coordinator.is_trained
    assert transport.receive() is None  # what was under way is forgotten
    assert coordinator.checkpoint().model.round == len(coordinator.records)
