# SPDX-License-Identifier: Apache-2.0
import pytest

from ucadi.errors import CODES, CohortError, FederationError, ModelError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.messages import (
    Call,
    GlobalModel,
    Phase,
    Readiness,
    Refusal,
    Update,
    Validation,
    decode_reply,
    encode_call,
)
from ucadi.federation.site import MemoryOutbox, OpenGate, Site
from ucadi.tensors import hash_tensors, pack
from ucadi.versions import WIRE_VERSION


def site_of(trainer, outbox=None, gate=None) -> Site:
    return Site("A", trainer, PlaintextCipher(), outbox or MemoryOutbox(), gate or OpenGate())


@pytest.fixture
def call(make_model, make_round_plan):
    """Writes a request of a phase about a model; keywords replace the plan's fields."""

    def write(phase, model=None, **changes):
        model = model or make_model()
        plan = make_round_plan(model, **changes)
        return encode_call(Call(phase, plan, None if phase is Phase.READY else model))

    return write


@pytest.fixture
def trainer(make_trainer):
    return make_trainer("A", scores=(0.25, 0.5, 0.75))


@pytest.fixture
def site(trainer):
    return site_of(trainer)


def refusal_code(site, body) -> str:
    reply = decode_reply(site.answer(body))
    assert isinstance(reply, Refusal)
    assert reply.site == "A"
    return reply.code


def test_a_site_answers_the_three_phases(site, trainer, call, make_model):
    ready = decode_reply(site.answer(call(Phase.READY)))
    update = decode_reply(site.answer(call(Phase.TRAIN)))
    validation = decode_reply(site.answer(call(Phase.VALIDATE)))
    assert ready == Readiness("run-1", 1, "A", 7)
    assert isinstance(update, Update)
    assert update.metrics == {"loss": 0.5, "validation": 0.25}
    assert {name: array.shape for name, array in update.tensors.items()} == {
        name: array.shape for name, array in make_model().parameters.items()
    }
    assert validation == Validation("run-1", 1, "A", {"validation": 0.25})
    assert trainer.asked == ["readiness", "train", "validate"]


def test_the_same_request_twice_gets_the_same_bytes_and_trains_once(site, trainer, call):
    first = bytes(site.answer(call(Phase.TRAIN)))
    second = bytes(site.answer(call(Phase.TRAIN)))
    assert first == second
    assert trainer.asked == ["train"]


def test_a_later_round_is_answered_anew(site, trainer, call, make_model):
    site.answer(call(Phase.TRAIN))
    update = decode_reply(site.answer(call(Phase.TRAIN, make_model(made_in=2))))
    assert update.round == 3  # round 2 went by without this site
    assert update.metrics["validation"] == 0.75
    assert trainer.asked == ["train", "train"]


def test_an_older_round_is_refused(site, trainer, call, make_model):
    site.answer(call(Phase.TRAIN, make_model(made_in=1)))
    assert refusal_code(site, call(Phase.TRAIN)) == "round-stale"
    assert trainer.asked == ["train"]


def test_another_run_is_refused_once_a_run_has_begun(site, call, make_model):
    site.answer(call(Phase.READY))
    assert refusal_code(site, call(Phase.TRAIN, make_model(made_in=1), run_id="run-2")) == "round-stale"


def test_a_refused_request_does_not_bind_the_site_to_its_run(site, call, make_model):
    assert refusal_code(site, call(Phase.TRAIN, run_id="run-0", model_hash="0" * 64)) == "model-mismatch"
    assert isinstance(decode_reply(site.answer(call(Phase.TRAIN))), Update)


def test_a_model_whose_hash_is_not_the_plans_is_refused(site, trainer, call, make_model):
    altered = dict(make_model().parameters)
    altered["conv.weight"] = altered["conv.weight"] + 1e-6
    body = call(Phase.TRAIN, GlobalModel(0, altered), model_hash=make_model().hash)
    assert refusal_code(site, body) == "model-mismatch"
    assert trainer.asked == []


def test_a_request_to_train_without_a_model_is_refused(site, trainer, make_model, make_round_plan):
    plan = make_round_plan(make_model())
    read = encode_call(Call(Phase.VALIDATE, plan, GlobalModel(0, {})))
    assert refusal_code(site, read) == "model-mismatch"
    assert trainer.asked == []


@pytest.mark.parametrize(
    "body", [b"", b"\x80\x04junk", bytes(1000), pack({}, {"ucadi": str(WIRE_VERSION)})], ids=len
)
def test_bytes_that_are_no_request_are_refused(site, body):
    assert refusal_code(site, body) == "message-invalid"


def test_a_request_of_another_version_is_refused_by_its_code(site):
    assert refusal_code(site, pack({}, {"ucadi": "99", "kind": "call", "body": "{}"})) == "protocol-version"


def test_a_reply_sent_as_a_request_is_refused(site, call):
    assert refusal_code(site, site.answer(call(Phase.READY))) == "message-invalid"


def test_the_trainers_reason_crosses_as_its_code(make_trainer, call):
    trainer = make_trainer("A", faults={"readiness": CohortError("cohort-empty", "3 studies.")})
    site = site_of(trainer)
    assert refusal_code(site, call(Phase.READY)) == "cohort-empty"


def test_a_failed_training_is_tried_again_when_asked_again(make_trainer, call):
    trainer = make_trainer("A", faults={"train": ModelError("site-failed", "The loss became nan.")})
    site = site_of(trainer)
    assert refusal_code(site, call(Phase.TRAIN)) == "site-failed"
    trainer.faults.clear()
    assert isinstance(decode_reply(site.answer(call(Phase.TRAIN))), Update)


def test_a_metric_that_is_not_a_number_is_refused_at_the_site(make_trainer, call):
    site = site_of(make_trainer("A", scores=(float("nan"),)))
    assert refusal_code(site, call(Phase.VALIDATE)) == "message-invalid"


PLANTED = "DOE^JANE-19570412"


@pytest.mark.parametrize("phase", ["readiness", "train", "validate"])
def test_nothing_of_an_errors_text_leaves_the_site(make_trainer, call, phase):
    fault = CohortError(
        "cohort-invalid",
        f"/data/{PLANTED}/cohort.csv line 3: study {PLANTED} is not allowed.",
        cure=f"Ask {PLANTED}.",
    )
    site = site_of(make_trainer("A", faults={phase: fault}))
    body = {"readiness": Phase.READY, "train": Phase.TRAIN, "validate": Phase.VALIDATE}[phase]
    left = bytes(site.answer(call(body)))
    assert b"cohort-invalid" in left
    for part in (PLANTED, "DOE", "JANE", "19570412", "/data", "cohort.csv", "line 3"):
        assert part.encode() not in left


def test_a_refusal_tells_the_same_few_bytes_whatever_went_wrong(make_trainer, call):
    lengths = set()
    for detail in ("short", "long " * 1000):
        trainer = make_trainer("A", faults={"readiness": CohortError("cohort-empty", detail)})
        lengths.add(len(site_of(trainer).answer(call(Phase.READY))))
    assert len(lengths) == 1


def test_public_messages_hold_no_place_for_values():
    for code, entry in CODES.items():
        assert "{" not in entry.public_message, code
        assert "%" not in entry.public_message, code


def test_training_leaves_the_received_model_as_it_was(site, call, make_model):
    model = make_model()
    before = hash_tensors(model.parameters)
    site.answer(call(Phase.TRAIN, model))
    assert hash_tensors(model.parameters) == before


# -- what a site keeps and decides ------------------------------------------------------------------------


class Ledger(MemoryOutbox):
    """Remembers what left."""

    def __init__(self):
        super().__init__()
        self.left = []

    def note(self, kind, plan, body):
        self.left.append((kind, plan.round if plan else None, len(body)))


class Closed:
    """A gate with a code."""

    def __init__(self, code="plan-waiting"):
        self.code = code

    def check(self, plan):
        if self.code:  # a registered one, as all that may leave
            raise FederationError(self.code, f"The plan {plan.run_id} waits at {PLANTED}.")


def test_a_site_that_was_killed_after_training_sends_the_same_bytes_again(make_trainer, call):
    outbox, first, second = MemoryOutbox(), make_trainer("A"), make_trainer("A", delta=9.0)
    sent = bytes(site_of(first, outbox).answer(call(Phase.TRAIN)))
    assert bytes(site_of(second, outbox).answer(call(Phase.TRAIN))) == sent
    assert (first.asked, second.asked) == (["train"], [])


def test_a_kept_reply_is_for_its_model_only(make_trainer, call, make_model):
    outbox, trainer = MemoryOutbox(), make_trainer("A")
    site_of(trainer, outbox).answer(call(Phase.TRAIN))
    site_of(trainer, outbox).answer(call(Phase.TRAIN, make_model(seed=1)))
    assert trainer.asked == ["train", "train"]


def test_everything_that_leaves_is_noted_refusals_and_repetitions_too(make_trainer, call):
    outbox = Ledger()
    site = site_of(make_trainer("A", faults={"validate": ModelError("site-failed", "x")}), outbox)
    bodies = [site.answer(call(phase)) for phase in (Phase.READY, Phase.TRAIN, Phase.TRAIN, Phase.VALIDATE)]
    bodies.append(site.answer(b"junk"))
    assert [kind for kind, _, _ in outbox.left] == ["readiness", "update", "update", "refusal", "refusal"]
    assert [number for _, number, _ in outbox.left] == [1, 1, 1, 1, None]
    assert [size for _, _, size in outbox.left] == [len(body) for body in bodies]


@pytest.mark.parametrize("phase", list(Phase))
def test_nothing_is_done_or_sent_again_for_a_plan_that_the_site_has_not_approved(make_trainer, call, phase):
    trainer, outbox, gate = make_trainer("A"), MemoryOutbox(), Closed("")
    site = site_of(trainer, outbox, gate)
    site.answer(call(phase))
    asked = list(trainer.asked)
    gate.code = "site-paused"
    assert refusal_code(site, call(phase)) == "site-paused"
    assert trainer.asked == asked


def test_a_plan_that_names_other_sites_is_refused(site, call):
    assert refusal_code(site, call(Phase.READY, sites=("B", "C"))) == "site-unknown"


def test_a_metric_that_the_plan_does_not_name_stays_at_the_site(site, call):
    update = decode_reply(site.answer(call(Phase.TRAIN, metrics=("loss",))))
    validation = decode_reply(site.answer(call(Phase.VALIDATE, metrics=("loss",))))
    assert (update.metrics, validation.metrics) == ({"loss": 0.5}, {})
