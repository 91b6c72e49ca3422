# SPDX-License-Identifier: Apache-2.0
from toy_app import toy_model, toy_site

from ucadi.engines.inprocess import InProcessTransport
from ucadi.federation.messages import Call, Phase, encode_call
from ucadi.federation.plans import RoundPlan, RunPlan, TrainingPlan
from ucadi.federation.ports import Exchange
from ucadi.types import Task

TRAINING = TrainingPlan(Task.CLASSIFIER, "toy", "toy", 10, 2, 0.1)


def message(*sites: str, deadline_s: float = 100.0) -> Exchange:
    model = toy_model(5)
    plan = RoundPlan(RunPlan("run", TRAINING, 3, 0), 1, model.hash)
    return Exchange(encode_call(Call(Phase.TRAIN, plan, model)), sites, deadline_s)


def made(**seconds: float) -> InProcessTransport:
    return InProcessTransport({name: toy_site(name) for name in ("a", "b", "c")}, seconds)


def outcomes(transport: InProcessTransport) -> list[tuple[str, str]]:
    found = []
    while (answer := transport.receive()) is not None:
        found.append((answer.site, answer.reason or "reply"))
    return found


def test_without_times_answers_come_in_the_order_of_the_sites() -> None:
    transport = made()
    transport.send(message("c", "a", "b"))
    assert outcomes(transport) == [("c", "reply"), ("a", "reply"), ("b", "reply")]


def test_faster_sites_answer_first() -> None:
    transport = made(a=30.0, b=10.0, c=20.0)
    transport.send(message("a", "b", "c"))
    assert [site for site, _ in outcomes(transport)] == ["b", "c", "a"]
    assert transport.now == 30.0


def test_straggler_is_late_at_its_deadline() -> None:
    transport = made(a=5.0, b=50.0)
    transport.send(message("a", "b", deadline_s=20.0))
    assert outcomes(transport) == [("a", "reply"), ("b", "site-late")]
    assert transport.now == 20.0


def test_unknown_site_is_lost() -> None:
    transport = made()
    transport.send(message("a", "x"))
    assert outcomes(transport) == [("a", "reply"), ("x", "site-lost")]


def test_site_does_one_thing_at_a_time() -> None:
    transport = made(a=10.0)
    transport.send(message("a"))
    transport.send(message("a"))
    assert transport.receive()
    assert transport.now == 10.0
    assert transport.receive()
    assert transport.now == 20.0


def test_message_may_be_sent_while_others_are_under_way() -> None:
    transport = made(a=10.0, b=3.0)
    transport.send(message("a", "b"))
    order = []
    while (answer := transport.receive()) is not None:
        order.append((answer.site, transport.now))
        if answer.site == "b" and transport.now < 9.5:
            transport.send(message("b"))
    assert order == [("b", 3.0), ("b", 6.0), ("b", 9.0), ("a", 10.0), ("b", 12.0)]


def test_abandoned_messages_are_not_answered() -> None:
    transport = made(a=10.0, b=3.0)
    transport.send(message("a", "b"))
    transport.receive()
    transport.abandon()
    assert transport.receive() is None
