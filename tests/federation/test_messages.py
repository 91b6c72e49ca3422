# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import fields
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.errors import CODES, ProtocolVersionError, UcadiError, UpdateRejectedError
from ucadi.federation import messages
from ucadi.tensors import hash_tensors, pack, unpack
from ucadi.types import Task
from ucadi.versions import WIRE_VERSION

numbers = st.floats(-1e6, 1e6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="session")
def plain(load_plain) -> ModuleType:
    """The messages as they are in use."""
    return load_plain(messages)


TENSORS = {"a": np.arange(3, dtype=np.float32)}
RUN = {
    "run_id": "run-1",
    "training": {
        "task": "classifier",
        "network": "densenet3d",
        "preset": "compact",
        "iterations": 4,
        "batch_size": 2,
        "learning_rate": 0.01,
    },
    "rounds": 2,
    "seed": 3,
    "sites": ["A", "B"],
    "min_sites": 2,
    "ready_deadline_s": 30.0,
    "train_deadline_s": 60.0,
    "patience_s": 600.0,
    "client_weights": {"A": 0.5},
    "weighting": "normalized",
    "protection": "plaintext",
    "aggregation": "synchronous",
    "buffer_size": 0,
    "metrics": ["loss"],
}
CALL = {"phase": "train", "run": RUN, "round": 1, "model_hash": hash_tensors(TENSORS), "model_round": 0}
REPLIES: dict[str, dict[str, Any]] = {
    "readiness": {"run_id": "run-1", "round": 1, "site": "A", "num_studies": 7},
    "update": {
        "run_id": "run-1",
        "round": 1,
        "site": "A",
        "iterations": 4,
        "aggregation_weight": 1.0,
        "num_studies": 7,
        "metrics": {"loss": 0.5},
        "kind": "delta",
    },
    "validation": {"run_id": "run-1", "round": 1, "site": "A", "metrics": {"validation": 0.5}},
    "refusal": {"run_id": "run-1", "round": 1, "site": "A", "code": "cohort-empty"},
}


def written(
    kind: str, body: object, tensors: dict[str, np.ndarray] | None = None, version: str = str(WIRE_VERSION)
) -> bytearray:
    return pack(tensors or {}, {"ucadi": version, "kind": kind, "body": json.dumps(body)})


# -- round trips ------------------------------------------------------------------------------------------


@given(
    phase=st.sampled_from(messages.Phase),
    run_id=st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    rounds=st.integers(1, 100),
    seed=st.integers(0, 2**31 - 1),
    weights=st.dictionaries(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,9}", fullmatch=True), st.floats(0.001, 10), max_size=3
    ),
)
def test_a_request_comes_back_as_it_was_sent(
    make_model, make_round_plan, phase, run_id, rounds, seed, weights
):
    model = make_model()
    plan = make_round_plan(model, run_id=run_id, rounds=rounds, seed=seed, client_weights=weights)
    sent = messages.Call(phase, plan, None if phase is messages.Phase.READY else model)
    read = messages.decode_call(messages.encode_call(sent))
    assert (read.phase, read.plan) == (phase, plan)
    assert read.plan.run.hash == plan.run.hash
    if phase is messages.Phase.READY:
        assert read.model is None
    else:
        assert (read.model.hash, read.model.round) == (model.hash, model.round)
        assert list(read.model.parameters) == list(model.parameters)


@given(
    st.sampled_from(["readiness", "validation", "refusal"]),
    texts,
    st.integers(0, 10**6),
    st.integers(0, 10**9),
    st.dictionaries(texts, numbers, max_size=4),
    st.sampled_from(sorted(CODES)),
)
def test_a_short_reply_comes_back_as_it_was_sent(kind, site, number, studies, metrics, code):
    sent = {
        "readiness": messages.Readiness("run", number, site, studies),
        "validation": messages.Validation("run", number, site, metrics),
        "refusal": messages.Refusal("run", number, site, code),
    }[kind]
    assert messages.decode_reply(messages.encode_reply(sent)) == sent


@given(numbers, st.integers(1, 10**6))
def test_an_update_comes_back_bit_for_bit(make_model, make_update, delta, iterations):
    sent = make_update(make_model(), delta=delta, iterations=iterations, metrics={"loss": delta})
    read = messages.decode_reply(messages.encode_reply(sent))
    assert hash_tensors(read.tensors) == hash_tensors(sent.tensors)
    for field in fields(messages.Update):
        if field.name != "tensors":
            assert getattr(read, field.name) == getattr(sent, field.name)


def test_an_update_whose_factors_a_cipher_hides_can_travel(make_model, make_update):
    sent = make_update(make_model(), iterations=None, aggregation_weight=None)
    read = messages.decode_reply(messages.encode_reply(sent))
    assert (read.iterations, read.aggregation_weight) == (None, None)


def test_a_request_to_be_ready_carries_no_model(make_model, make_round_plan):
    body = messages.encode_call(messages.Call(messages.Phase.READY, make_round_plan(make_model())))
    assert unpack(body)[0] == {}
    assert len(body) < 2000


def test_a_refusal_says_in_public_words_what_it_means():
    assert messages.Refusal("run", 1, "A", "cohort-empty").message == CODES["cohort-empty"].public_message


def test_the_written_examples_of_this_file_are_readable(plain):
    assert plain.decode_call(written("call", CALL, TENSORS)).model.round == 0
    for kind, body in REPLIES.items():
        assert plain.decode_reply(written(kind, body, TENSORS if kind == "update" else None)).site == "A"


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0", "1", "99", "1.0", "", "10", "x" * 1000])
def test_another_version_of_the_protocol_is_refused_by_name(version):
    for decode, kind, body in (
        (messages.decode_call, "call", CALL),
        (messages.decode_reply, "update", REPLIES["update"]),
        (messages.decode_reply, "kind of tomorrow", {}),
    ):
        with pytest.raises(ProtocolVersionError) as caught:
            decode(written(kind, body, TENSORS, version))
        assert caught.value.code == "protocol-version"
        assert repr(version[:20]) in caught.value.detail
        assert len(caught.value.detail) < 200


@pytest.mark.parametrize("kind", ["", "call", "Update", "model", "__class__"])
def test_a_reply_of_an_unknown_kind_is_refused(kind):
    with pytest.raises(UpdateRejectedError) as caught:
        messages.decode_reply(written(kind, REPLIES["readiness"]))
    assert caught.value.code == "message-invalid"


@pytest.mark.parametrize("kind", ["", "update", "readiness"])
def test_a_request_of_another_kind_is_refused(kind):
    with pytest.raises(UpdateRejectedError) as caught:
        messages.decode_call(written(kind, CALL, TENSORS))
    assert caught.value.code == "message-invalid"


@pytest.mark.parametrize("kind", REPLIES)
@pytest.mark.parametrize("extra", ["surprise", "tensors", "self", "__class__"])
def test_an_unknown_field_is_refused(plain, kind, extra):
    with pytest.raises(UpdateRejectedError):
        plain.decode_reply(written(kind, {**REPLIES[kind], extra: {}}, TENSORS))


@pytest.mark.parametrize(
    ("kind", "missing"),
    [(kind, name) for kind, body in REPLIES.items() for name in body if (kind, name) not in
     [("update", "metrics"), ("update", "kind")]],
)  # fmt: skip
def test_a_missing_field_is_refused(plain, kind, missing):
    body = {name: value for name, value in REPLIES[kind].items() if name != missing}
    with pytest.raises(UpdateRejectedError):
        plain.decode_reply(written(kind, body, TENSORS))


WRONG: dict[str, list[Any]] = {
    "run_id": [None, 1, [], {}, True],
    "round": [None, "1", 1.0, True, -1, [1], float("nan")],
    "site": [None, 1, ["A"], {}],
    "num_studies": [None, "7", 7.0, True, -1, [7]],
    "metrics": [None, 5, [], "loss", {"a": "b"}, {"a": None}, {"a": True}, {"a": [1]}, {"a": float("nan")},
                {"a": float("inf")}, {"a": 10**400}, {"a": 1e300}],
    "code": [None, 1, "no-such-code", ["cohort-empty"], {}, ""],
    "kind": [None, "full", 1, ["delta"]],
    "iterations": [],  # may be hidden by a cipher: who adds checks them, see test_aggregation
    "aggregation_weight": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(kind, name, value) for kind, body in REPLIES.items() for name in body for value in WRONG[name]],
)
def test_a_reply_with_a_wrong_value_in_any_field_is_refused(plain, kind, field, value):
    with pytest.raises(UpdateRejectedError) as caught:
        plain.decode_reply(
            written(kind, {**REPLIES[kind], field: value}, TENSORS if kind == "update" else None)
        )
    assert caught.value.code == "message-invalid"


WRONG_IN_PLAN: dict[str, list[Any]] = {
    "run_id": [None, 1, [], "", "A run", "../x", "x" * 64],
    "rounds": [None, "2", 2.5, True, 0, 10_001],
    "seed": [None, "3", 3.5, True, -1, 2**31],
    "training": [None, [], "x", {}],
    "sites": [None, "AB", {}, [1], ["A", "A"], ["../B"], ["A"]],  # the last: fewer than min_sites
    "min_sites": [None, "2", 2.5, True, 0, 3],
    "ready_deadline_s": [None, "1", True, -1.0, float("nan"), float("inf"), 10**9],
    "train_deadline_s": [None, [], True, -1.0, float("nan")],
    "patience_s": [None, {}, True, -1.0, float("inf")],
    "client_weights": [None, "x", *({"A": wrong} for wrong in ("b", None, True, 0, float("nan"))),
                       {"../A": 1.0}],
    "weighting": [None, "mean", 1],
    "protection": [None, "none", 1, []],
    "aggregation": [None, "buffered", 1],  # buffered needs a buffer
    "buffer_size": [None, "0", 1, -1, True],
    "metrics": [None, "loss", ["names"], [1], {}],
}  # fmt: skip
WRONG_IN_TRAINING: dict[str, list[Any]] = {
    "task": [None, "surgery", 1],
    "network": [None, 1, ["densenet3d"]],
    "preset": [None, 1, ["compact"]],
    "iterations": [None, "4", 4.5, True, 0, 100_001, 10**400],
    "batch_size": [None, "2", 2.5, True, 0, 1025],
    "learning_rate": [None, "0.1", True, -0.1, 10.1, float("nan"), float("inf"), 10**400],
}


@pytest.mark.parametrize("field", RUN)
def test_a_plan_without_a_field_or_with_another_is_refused(plain, field):
    for run in ({name: value for name, value in RUN.items() if name != field}, {**RUN, f"{field}x": 1}):
        with pytest.raises(UpdateRejectedError):
            plain.decode_call(written("call", {**CALL, "run": run}, TENSORS))


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG_IN_PLAN.items() for v in values])
def test_a_plan_with_a_wrong_value_in_any_field_is_refused(plain, field, value):
    with pytest.raises(UpdateRejectedError) as caught:
        plain.decode_call(written("call", {**CALL, "run": {**RUN, field: value}}, TENSORS))
    assert caught.value.code == "message-invalid"


@pytest.mark.parametrize(
    ("buffer_size", "min_sites", "sites", "said"),
    [
        (1, 2, [], "buffer_size is 1, less than min_sites, which is 2"),
        (1, 2, ["A", "B"], "buffer_size is 1, less than min_sites, which is 2"),
        (3, 2, ["A", "B"], "buffer_size is 3, but there are 2 sites"),
        (2, 2, ["A", "B"], ""),
        (9, 2, [], ""),
    ],
)
def test_a_buffer_holds_the_updates_of_enough_sites_and_can_be_full(
    plain, buffer_size, min_sites, sites, said
):
    buffer = {"aggregation": "buffered", "buffer_size": buffer_size, "min_sites": min_sites, "sites": sites}
    body = written("call", {**CALL, "run": {**RUN, **buffer}}, TENSORS)
    if said:
        with pytest.raises(UpdateRejectedError) as caught:
            plain.decode_call(body)
        assert said in caught.value.detail
    else:
        assert plain.decode_call(body).plan.run.buffer_size == buffer_size


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in WRONG_IN_TRAINING.items() for v in values]
)
def test_a_plan_with_a_wrong_training_value_is_refused(plain, field, value):
    run = {**RUN, "training": {**RUN["training"], field: value}}
    with pytest.raises(UpdateRejectedError) as caught:
        plain.decode_call(written("call", {**CALL, "run": run}, TENSORS))
    assert caught.value.code == "message-invalid"


@pytest.mark.parametrize(
    "change",
    [{"phase": "surgery"}, {"phase": None}, {"run": None}, {"run": []}, {"model_hash": None}, {"round": None},
     {"round": "1"}, {"round": 1.5}, {"round": True}, {"round": 0}, {"round": 4}, {"model_round": None},
     {"model_round": "0"}, {"model_round": 0.5}, {"model_round": float("inf")}, {"model_round": -1},
     {"model_round": True}],
    ids=str,
)  # fmt: skip
def test_a_request_with_a_wrong_value_is_refused(plain, change):
    with pytest.raises(UpdateRejectedError) as caught:
        plain.decode_call(written("call", {**CALL, **change}, TENSORS))
    assert caught.value.code == "message-invalid"


@pytest.mark.parametrize("body", ["5", "[]", '"x"', "null", "{", "[" * 100_000, "9" * 5000])
def test_a_body_that_is_no_object_is_refused(body):
    for kind, decode in (("call", messages.decode_call), ("readiness", messages.decode_reply)):
        with pytest.raises(UpdateRejectedError):
            decode(pack({}, {"ucadi": str(WIRE_VERSION), "kind": kind, "body": body}))


@pytest.mark.parametrize("absent", ["ucadi", "kind", "body"])
def test_a_buffer_without_a_message_in_it_is_refused(absent):
    words = {"ucadi": str(WIRE_VERSION), "kind": "call", "body": json.dumps(CALL)}
    del words[absent]
    with pytest.raises(UpdateRejectedError) as caught:
        messages.decode_call(pack(TENSORS, words))
    assert caught.value.code == "message-invalid"


def test_a_number_that_is_not_finite_never_leaves():
    with pytest.raises(UcadiError) as caught:
        messages.encode_reply(messages.Validation("run", 1, "A", {"validation": float("nan")}))
    assert caught.value.code == "message-invalid"


# -- fuzz -------------------------------------------------------------------------------------------------


def only_ucadi_errors(plain: ModuleType, buffer: bytes | bytearray) -> None:
    for decode in (plain.decode_call, plain.decode_reply):
        try:
            decode(buffer)
        except UcadiError:
            continue


@given(st.data())
def test_damaged_bytes_raise_nothing_but_an_error_of_ours(plain, data):
    kind = data.draw(st.sampled_from(["call", *REPLIES]))
    buffer = written(kind, CALL if kind == "call" else REPLIES[kind], TENSORS)
    for _ in range(data.draw(st.integers(1, 6))):
        buffer[data.draw(st.integers(0, len(buffer) - 1))] = data.draw(st.integers(0, 255))
    only_ucadi_errors(plain, buffer[: data.draw(st.integers(0, len(buffer)))])


@given(st.data())
def test_any_json_in_any_place_raises_nothing_but_an_error_of_ours(plain, data):
    kind = data.draw(st.sampled_from(["call", *REPLIES]))
    body = json.loads(json.dumps(CALL if kind == "call" else REPLIES[kind]))
    place = body
    if kind == "call" and data.draw(st.booleans()):
        place = body["run"] if data.draw(st.booleans()) else body["run"]["training"]
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(json_values)
    only_ucadi_errors(plain, written(kind, body, TENSORS))


def test_what_is_read_names_no_code_to_run():
    call = messages.decode_call(written("call", CALL, TENSORS))
    assert call.plan.run.training.task is Task.CLASSIFIER
    assert all(isinstance(value, str | int | float) for value in vars(call.plan.run.training).values())
