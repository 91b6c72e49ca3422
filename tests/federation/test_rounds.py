# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ucadi.engines.inprocess import InProcessTransport
from ucadi.errors import CohortError, ModelError, QuorumError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Coordinator
from ucadi.federation.rounds import run_rounds


@pytest.fixture
def run(make_run_plan, make_model):
    """Runs a whole federation; returns selected model, coordinator and what was told after each round."""

    def start(sites, **changes):
        told = []
        coordinator = Coordinator(make_run_plan(**changes), make_model(), PlaintextCipher())
        transport = InProcessTransport({site.name: site for site in sites})
        selected = run_rounds(coordinator, transport, lambda record, model: told.append((record, model)))
        return selected, coordinator, told

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
    assert [record.missing for record in coordinator.records] == [{"C": "no-answer"}] * 3


def test_a_run_goes_on_without_the_site_whose_training_fails(run, make_site, make_model):
    fault = {"train": ModelError("site-failed", "The loss became nan.")}
    selected, coordinator, _ = run([make_site("A"), make_site("B", delta=3.0), make_site("C", faults=fault)])
    assert [record.missing for record in coordinator.records] == [{"C": "site-failed"}] * 2 + [{}]
    np.testing.assert_allclose(
        selected.parameters["conv.weight"], make_model().parameters["conv.weight"] + 4.0, rtol=1e-5
    )


def test_a_run_ends_when_too_few_sites_take_part(run, make_site):
    fault = {"train": ModelError("site-failed", "The loss became nan.")}
    with pytest.raises(QuorumError, match=r"B \(site-failed\), C \(no-answer\)"):
        run([make_site("A"), make_site("B", faults=fault)])


def test_a_failed_last_validation_does_not_lose_the_run(run, make_site):
    fault = {"validate": ModelError("site-failed", "Out of memory.")}
    selected, coordinator, _ = run([make_site(name, faults=fault, scores=(0.1, 0.2, 0.3)) for name in "ABC"])
    assert selected.round == 1
    assert coordinator.records[-1].missing == dict.fromkeys("ABC", "site-failed")


def test_client_weights_of_the_plan_reach_the_mean(run, make_site, make_model):
    _, coordinator, _ = run(
        [make_site("A", delta=1.0), make_site("B", delta=5.0)],
        rounds=1, client_weights={"A": 3.0, "B": 1.0},
    )  # fmt: skip
    added = coordinator.model.parameters["conv.weight"] - make_model().parameters["conv.weight"]
    np.testing.assert_allclose(added, (3 * 1.0 + 1 * 5.0) / 4, rtol=1e-5)
