# SPDX-License-Identifier: Apache-2.0
"""The oracle is Alg. 1 of Yang et al. 2021, written out in plain Python numbers."""

import itertools
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.errors import UpdateRejectedError
from ucadi.federation import aggregation, messages
from ucadi.federation.aggregation import PlaintextAccumulator, PlaintextCipher, apply_total, difference
from ucadi.federation.messages import GlobalModel
from ucadi.federation.plans import Weighting
from ucadi.tensors import hash_tensors

finite = st.floats(-100, 100, width=32)


def averaged(model, updates, weighting=Weighting.NORMALIZED):
    """The next global model from some updates, as the coordinator makes it."""
    total = PlaintextCipher().accumulator(model)
    for update in updates:
        total.check(update)
        total.add(update)
    return apply_total(model, total.open(), weighting)


@pytest.fixture(scope="module")
def three(make_update):
    """Three sites with realistic differences: n = 40, 25, 60; w = 1, 0.7, 1.3."""

    def build(size, factors=((40, 1.0), (25, 0.7), (60, 1.3))):
        model = GlobalModel(4, {"a": np.random.default_rng(0).normal(0, 0.05, size).astype(np.float32)})
        updates = []
        for number, (iterations, weight) in enumerate(factors):
            delta = np.random.default_rng(number + 1).normal(0, 1e-3, size).astype(np.float32)
            site = "ABCDEFGH"[number]
            updates.append(
                make_update(
                    model, site, tensors={"a": delta}, iterations=iterations, aggregation_weight=weight
                )
            )
        return model, updates

    return build


@pytest.mark.parametrize("weighting", Weighting)
def test_three_sites_give_the_model_that_algorithm_1_gives_by_hand(make_model, make_update, weighting):
    shapes = {"a": (2,), "b": (1, 2)}
    model = make_model(shapes=shapes)
    deltas = {"A": [0.5, -1.0, 2.0, 0.0], "B": [0.25, 3.0, -2.0, 1.0], "C": [-0.125, 0.0, 4.0, -8.0]}
    n = {"A": 40, "B": 25, "C": 60}
    w = {"A": 1.0, "B": 0.5, "C": 0.25}
    updates = [
        make_update(
            model,
            site,
            tensors={"a": np.float32(deltas[site][:2]), "b": np.float32([deltas[site][2:]])},
            iterations=n[site],
            aggregation_weight=w[site],
        )
        for site in "ABC"
    ]
    made = averaged(model, updates, weighting)

    # normalized: 40 + 12.5 + 15 = 67.5; paper_exact: 40 + 25 + 60 = 125.
    divisor = 67.5 if weighting is Weighting.NORMALIZED else 125.0
    share = {"A": 40.0 / divisor, "B": 12.5 / divisor, "C": 15.0 / divisor}
    before = [float(v) for v in np.concatenate([model.parameters["a"], model.parameters["b"][0]])]
    expected = [
        before[k] + share["A"] * deltas["A"][k] + share["B"] * deltas["B"][k] + share["C"] * deltas["C"][k]
        for k in range(4)
    ]
    found = [*made.parameters["a"], *made.parameters["b"][0]]
    assert found == pytest.approx(expected, rel=1e-6)
    assert made.round == model.round + 1
    assert all(array.dtype == np.float32 for array in made.parameters.values())
    assert {name: array.shape for name, array in made.parameters.items()} == shapes


def test_every_bit_of_the_mean_is_that_of_exact_fractions(three):
    _, updates = three(500, ((40, 1.0), (25, 1.0), (60, 1.0)))
    zero = GlobalModel(4, {"a": np.zeros(500, np.float32)})
    columns = zip(*(update.tensors["a"].tolist() for update in updates), strict=True)
    exact = [(40 * Fraction(a) + 25 * Fraction(b) + 60 * Fraction(c)) / 125 for a, b, c in columns]
    found = averaged(zero, updates).parameters["a"]
    assert found.tolist() == [float(np.float32(float(value))) for value in exact]


def test_paper_exact_shrinks_the_step_when_weights_are_below_one(make_model, make_update):
    model = make_model()
    updates = [make_update(model, site, aggregation_weight=0.5) for site in "AB"]
    start = model.parameters["conv.weight"]
    normalized = averaged(model, updates).parameters["conv.weight"]
    paper = averaged(model, updates, Weighting.PAPER_EXACT).parameters["conv.weight"]
    np.testing.assert_allclose(normalized - start, 1.0, rtol=1e-6)
    np.testing.assert_allclose(paper - start, 0.5, rtol=1e-6)


def test_the_two_weightings_agree_when_all_weights_are_one(three):
    model, updates = three(1000, ((40, 1.0), (25, 1.0), (60, 1.0)))
    assert averaged(model, updates).hash == averaged(model, updates, Weighting.PAPER_EXACT).hash


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_two_identical_sites_give_bit_for_bit_the_model_of_one(three, make_update, weight):
    model, (update, *_) = three(100_000, ((37, weight),) * 3)
    twin = make_update(model, "B", tensors=update.tensors, iterations=37, aggregation_weight=weight)
    assert averaged(model, [update, twin]).hash == averaged(model, [update]).hash


@pytest.mark.parametrize("factors", [((40, 1.0), (25, 1.0), (60, 1.0)), ((40, 1.0), (25, 0.7), (60, 1.3))])
def test_the_order_of_arrival_does_not_change_a_bit_of_the_model(three, factors):
    model, updates = three(100_000, factors)
    hashes = {averaged(model, order).hash for order in itertools.permutations(updates)}
    assert len(hashes) == 1


@given(
    deltas=st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=5),
    factors=st.lists(st.tuples(st.integers(1, 1000), st.floats(0.01, 10)), min_size=5, max_size=5),
)
def test_the_mean_stays_within_the_smallest_and_the_largest(make_update, deltas, factors):
    model = GlobalModel(0, {"a": np.zeros(3, np.float32)})
    updates = [
        make_update(model, tensors={"a": np.float32(delta)}, iterations=n, aggregation_weight=w)
        for delta, (n, w) in zip(deltas, factors, strict=False)
    ]
    made = averaged(model, updates).parameters["a"]
    low, high = np.float32(deltas).min(0), np.float32(deltas).max(0)
    assert (np.nextafter(low, -np.inf, dtype=np.float32) <= made).all()
    assert (made <= np.nextafter(high, np.inf, dtype=np.float32)).all()


@given(st.lists(st.lists(finite, min_size=4, max_size=4), min_size=1, max_size=6), st.integers(1, 1000))
def test_equal_weights_give_the_plain_mean(make_update, deltas, iterations):
    model = GlobalModel(0, {"a": np.zeros(4, np.float32)})
    updates = [make_update(model, tensors={"a": np.float32(d)}, iterations=iterations) for d in deltas]
    expected = np.float32(deltas).astype(np.float64).mean(0).astype(np.float32)
    np.testing.assert_allclose(averaged(model, updates).parameters["a"], expected, rtol=1e-6, atol=1e-30)


@given(finite, st.integers(1, 1000), st.floats(0.01, 10))
def test_one_site_alone_gives_its_own_model(make_model, make_update, delta, iterations, weight):
    model = make_model()
    update = make_update(model, delta=delta, iterations=iterations, aggregation_weight=weight)
    for name, old in model.parameters.items():
        expected = old.astype(np.float64) + np.float64(np.float32(delta))
        np.testing.assert_allclose(averaged(model, [update]).parameters[name], expected, rtol=1e-6)


def test_local_parameters_come_back_from_their_difference(make_model, make_update):
    model, local = make_model(seed=1), make_model(seed=2).parameters
    delta = difference(local, model)
    assert list(delta) == list(model.parameters)
    assert all(array.dtype == np.float32 for array in delta.values())
    made = averaged(model, [make_update(model, tensors=delta)])
    for name in local:
        np.testing.assert_allclose(made.parameters[name], local[name], rtol=1e-6)


def test_the_global_model_before_is_left_as_it_was(make_model, make_update):
    model = make_model()
    before = hash_tensors(model.parameters)
    averaged(model, [make_update(model), make_update(model, "B", delta=-3.0)])
    assert hash_tensors(model.parameters) == before


def test_scalars_and_empty_tensors_are_averaged_too(make_model, make_update):
    model = make_model(shapes={"scale": (), "none": (0, 3), "large": (200_001,)})
    made = averaged(model, [make_update(model, delta=2.0)])
    for name, old in model.parameters.items():
        np.testing.assert_allclose(made.parameters[name], old + 2, rtol=1e-6)


def test_memory_does_not_grow_with_the_number_of_sites(make_update):
    model = GlobalModel(0, {"a": np.zeros(1_000_000, np.float32)})

    def peak_bytes(sites: int) -> int:
        total = PlaintextAccumulator(model)
        tracemalloc.start()
        for _ in range(sites):
            update = make_update(model)
            total.check(update)
            total.add(update)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    few, many = peak_bytes(2), peak_bytes(12)
    assert many < few + 1_000_000
    assert many < 3 * 4_000_000  # never more than an update, another that replaces it, and a few blocks


# -- refusals ---------------------------------------------------------------------------------------------


def refused(total, update) -> UpdateRejectedError:
    """The reason for a refusal, which must leave the sum as it was."""
    before = total.open()
    seen = (hash_tensors(before.weighted_delta), before.weight, before.iterations)
    with pytest.raises(UpdateRejectedError) as caught:
        total.check(update)
    after = total.open()
    assert (hash_tensors(after.weighted_delta), after.weight, after.iterations) == seen
    return caught.value


@pytest.fixture
def total(make_model, make_update):
    """A sum that holds one update."""
    model = make_model()
    total = PlaintextAccumulator(model)
    total.add(make_update(model))
    return total


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70_000, 199_999])
def test_a_value_that_is_not_finite_is_refused_wherever_it_stands(make_update, value, place):
    model = GlobalModel(0, {"a": np.zeros(200_000, np.float32)})
    delta = np.zeros(200_000, np.float32)
    delta[place] = value
    error = refused(PlaintextAccumulator(model), make_update(model, tensors={"a": delta}))
    assert error.code == "update-not-finite"
    assert error.detail.startswith("a ")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 2), np.float32),
        np.zeros(6, np.float32),
        np.zeros((2, 3, 1), np.float32),
        np.zeros((2, 3), np.float64),
        np.zeros((2, 3), np.int32),
        np.zeros((2, 3), bool),
        np.array(1, np.float32),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_another_shape_or_type_is_refused(make_model, make_update, total, array):
    model = make_model()
    update = make_update(model, "B", tensors={**make_update(model).tensors, "conv.weight": array})
    error = refused(total, update)
    assert error.code == "update-wrong-shape"
    assert "conv.weight" in error.detail
    assert "(2, 3)" in error.detail


def test_a_missing_tensor_is_refused_by_name(make_model, make_update, total):
    update = make_update(make_model(), "B", tensors={"conv.weight": np.zeros((2, 3), np.float32)})
    error = refused(total, update)
    assert error.code == "update-missing-tensor"
    assert "norm.running_mean" in error.detail


def test_an_unknown_tensor_is_refused_by_a_shortened_name(make_model, make_update, total):
    model = make_model()
    update = make_update(
        model, "B", tensors={**make_update(model).tensors, "x" * 5000: np.zeros(1, np.float32)}
    )
    error = refused(total, update)
    assert error.code == "update-unknown-tensor"
    assert len(error.detail) < 200


def test_an_update_without_tensors_is_refused(make_model, make_update, total):
    assert refused(total, make_update(make_model(), "B", tensors={})).code == "update-missing-tensor"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", 0), ("iterations", -1), ("iterations", None), ("iterations", True),
        ("iterations", 4.0), ("iterations", "4"), ("iterations", 10**400), ("iterations", [4]),
        ("aggregation_weight", 0), ("aggregation_weight", -1.0), ("aggregation_weight", None),
        ("aggregation_weight", float("nan")), ("aggregation_weight", float("inf")),
        ("aggregation_weight", True), ("aggregation_weight", "1"), ("aggregation_weight", 10**400),
        ("aggregation_weight", 1e300), ("aggregation_weight", [1.0]),
    ],
)  # fmt: skip
def test_iterations_and_weight_must_be_positive_numbers(load_plain, make_model, field, value):
    model = make_model()
    fields = {
        "run_id": "run-1",
        "round": 1,
        "site": "A",
        "tensors": {name: np.ones_like(old) for name, old in model.parameters.items()},
        "iterations": 4,
        "aggregation_weight": 1.0,
        "num_studies": 7,
    }
    update = load_plain(messages).Update(**{**fields, field: value})
    error = refused(load_plain(aggregation).PlaintextAccumulator(model), update)
    assert error.code == "update-bad-weight"


def test_a_refused_update_does_not_change_the_others_mean(make_model, make_update):
    model = make_model()
    good, bad = make_update(model, delta=1.0), make_update(model, "B", delta=np.inf)
    total = PlaintextAccumulator(model)
    total.add(good)
    refused(total, bad)
    assert apply_total(model, total.open(), Weighting.NORMALIZED).hash == averaged(model, [good]).hash


def test_an_update_that_drives_the_model_beyond_float32_is_refused(make_update):
    model = GlobalModel(0, {"a": np.full(3, 3e38, np.float32)})
    assert refused(PlaintextAccumulator(model), make_update(model, delta=3e38)).code == "update-not-finite"


def test_the_plaintext_cipher_changes_nothing(make_model, make_update, make_round_plan):
    model = make_model()
    update = make_update(model)
    assert PlaintextCipher().protect(update, make_round_plan(model)) is update
