# SPDX-License-Identifier: Apache-2.0
"""Whatever is lost, repeated, reordered, damaged or killed: a run that ends has the undisturbed run's model.

The machine below is the world between one coordinator and three sites. A site's outbox and the last stored
checkpoint survive a kill, nothing else does.
"""

import hashlib
from dataclasses import replace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Checkpoint, Coordinator
from ucadi.federation.messages import GlobalModel, Readiness, Update, Validation
from ucadi.federation.plans import RoundPlan, RunPlan, TrainingPlan
from ucadi.federation.ports import Answer
from ucadi.federation.records import RoundRecord
from ucadi.federation.site import MemoryOutbox, OpenGate, Site
from ucadi.types import Task

SITES = ("A", "B", "C")
PLAN = RunPlan(
    "law", TrainingPlan(Task.CLASSIFIER, "densenet3d", "compact", 4, 2, 0.01), 3, 0, SITES, min_sites=3
)
SITE = st.sampled_from(SITES)


class Trainer:
    """Trains by noise that depends on everything that training may depend on; counts what it did."""

    def __init__(self, name: str, trained: list[tuple[str, int]]) -> None:
        self._name = name
        self._trained = trained

    def readiness(self, plan: RoundPlan) -> Readiness:
        return Readiness(plan.run_id, plan.round, self._name, 5)

    def train(self, plan: RoundPlan, model: GlobalModel) -> Update:
        self._trained.append((self._name, plan.round))
        noise = self._noise(plan.round, model)
        delta = {
            name: noise.normal(size=old.shape).astype(np.float32) for name, old in model.parameters.items()
        }
        iterations = 1 + SITES.index(self._name)
        metrics = {"loss": 1.0, "validation": float(noise.random())}
        return Update(plan.run_id, plan.round, self._name, delta, iterations, 1.0, 5, metrics)

    def validate(self, plan: RoundPlan, model: GlobalModel) -> Validation:
        score = float(self._noise(plan.round, model).random())
        return Validation(plan.run_id, plan.round, self._name, {"validation": score})

    def _noise(self, number: int, model: GlobalModel) -> np.random.Generator:
        digest = hashlib.sha256(f"{self._name}/{number}/{model.hash}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def initial() -> Checkpoint:
    return Checkpoint.at_start(GlobalModel(0, {"w": np.linspace(-1, 1, 5, dtype=np.float32)}))


def checkpoint_of(coordinator: Coordinator) -> Checkpoint:
    return Checkpoint(
        coordinator.model, coordinator.best, coordinator.best_validation, tuple(coordinator.records)
    )


def summary(state: Checkpoint) -> tuple[object, ...]:
    """All that must not depend on what went wrong; who was missing in between may."""
    records = [replace(record, missing={}) for record in state.records]
    return state.model.hash, state.best.hash, state.best_validation, records


def undisturbed() -> tuple[object, ...]:
    coordinator = Coordinator(PLAN, initial(), PlaintextCipher())
    sites = {
        name: Site(name, Trainer(name, []), PlaintextCipher(), MemoryOutbox(), OpenGate()) for name in SITES
    }
    while not coordinator.is_done:
        exchange = coordinator.call(SITES)
        for name in exchange.sites:
            coordinator.receive(Answer(name, sites[name].answer(exchange.body)))
        coordinator.close_phase()
    return summary(checkpoint_of(coordinator))


REFERENCE = undisturbed()


class World(RuleBasedStateMachine):
    """Rules are what can happen between two steps of the protocol."""

    @initialize()
    def begin(self) -> None:
        self.stored = initial()
        self.coordinator = Coordinator(PLAN, self.stored, PlaintextCipher())
        self.outboxes = {name: MemoryOutbox() for name in SITES}
        self.trained: list[tuple[str, int]] = []
        self.sites = {name: self.site(name) for name in SITES}
        self.calls: dict[str, bytearray] = {}
        self.old_calls: list[tuple[str, bytes]] = []
        self.old_replies: list[tuple[str, bytes]] = []

    def site(self, name: str) -> Site:
        trainer = Trainer(name, self.trained)
        return Site(name, trainer, PlaintextCipher(), self.outboxes[name], OpenGate())

    # -- the protocol's own steps -------------------------------------------------------------------------

    @precondition(lambda self: not self.calls and not self.coordinator.is_done)
    @rule(members=st.sets(SITE, min_size=2))
    def ask(self, members: set[str]) -> None:
        exchange = self.coordinator.call(members)
        self.calls = dict.fromkeys(exchange.sites, exchange.body)
        self.old_calls += [(name, bytes(exchange.body)) for name in exchange.sites]

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.calls)))
        self.coordinator.receive(Answer(name, self.reply(name, self.calls.pop(name))))
        self.close()

    @precondition(lambda self: not self.coordinator.is_done)
    @rule(phases=st.integers(1, 3))
    def go_well_for_a_while(self, phases: int) -> None:
        for _ in range(phases):
            if not self.calls and not self.coordinator.is_done:
                self.ask(set(SITES))
            for name in sorted(self.calls):
                self.coordinator.receive(Answer(name, self.reply(name, self.calls.pop(name))))
                self.close()

    @precondition(lambda self: not self.calls and not self.coordinator.is_done)
    @rule(first=SITE)
    def ask_and_get_one_answer(self, first: str) -> None:
        self.ask(set(SITES))
        if first in self.calls:
            self.coordinator.receive(Answer(first, self.reply(first, self.calls.pop(first))))
            self.close()

    def reply(self, name: str, body: bytes | bytearray) -> bytes:
        made = bytes(self.sites[name].answer(body))
        self.old_replies.append((name, made))
        return made

    def close(self, is_stored: bool = True) -> None:
        """End the phase when nothing is under way, as the loop over the transport does."""
        if not self.calls:
            record: RoundRecord | None = self.coordinator.close_phase()
            if record is not None and is_stored:
                self.stored = checkpoint_of(self.coordinator)

    # -- what goes wrong ----------------------------------------------------------------------------------

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), was_done=st.booleans(), reason=st.sampled_from(["site-lost", "site-late"]))
    def lose(self, data: st.DataObject, was_done: bool, reason: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.calls)))
        body = self.calls.pop(name)
        if was_done:  # the reply is lost, or comes later as an old one; else the call never arrived
            self.reply(name, body)
        self.coordinator.receive(Answer(name, None, reason))
        self.close()

    @precondition(lambda self: len(self.calls) > 1)
    @rule(data=st.data())
    def answer_twice(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.calls)))
        made = self.reply(name, self.calls.pop(name))
        for _ in range(2):
            self.coordinator.receive(Answer(name, made))

    @precondition(lambda self: self.calls and self.old_replies)
    @rule(back=st.integers(0, 20))
    def repeat_an_old_reply(self, back: int) -> None:
        newest_first = self.old_replies[::-1]
        self.coordinator.receive(Answer(*newest_first[back % len(newest_first)]))

    @precondition(lambda self: self.calls)
    @rule(name=SITE, data=st.data())
    def repeat_an_old_update(self, name: str, data: st.DataObject) -> None:
        updates = [made for site, made in self.old_replies if site == name and b'"update"' in made[:80]]
        if updates:
            self.coordinator.receive(Answer(name, data.draw(st.sampled_from(updates))))

    @precondition(lambda self: self.calls and self.old_replies)
    @rule(back=st.integers(0, 20), thief=SITE)
    def send_an_old_reply_as_another_site(self, back: int, thief: str) -> None:
        newest_first = self.old_replies[::-1]
        self.coordinator.receive(Answer(thief, newest_first[back % len(newest_first)][1]))

    @precondition(lambda self: self.old_calls)
    @rule(data=st.data())
    def repeat_an_old_call(self, data: st.DataObject) -> None:
        self.reply(*data.draw(st.sampled_from(self.old_calls)))

    @precondition(lambda self: self.calls and self.coordinator.model.round < PLAN.rounds)
    @rule(data=st.data(), cut=st.integers(0, 2000))
    def damage_a_reply(self, data: st.DataObject, cut: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.calls)))
        whole = self.reply(name, self.calls.pop(name))
        self.coordinator.receive(Answer(name, whole[: min(cut, len(whole) - 1)]))
        self.close()

    @rule(name=SITE)
    def kill_a_site(self, name: str) -> None:
        self.sites[name] = self.site(name)
        # It would train again for a call of an earlier round: harmless, but not the law's business.
        self.old_calls = [call for call in self.old_calls if call[0] != name]

    @rule()
    def kill_the_coordinator(self) -> None:
        self.coordinator = Coordinator(PLAN, self.stored, PlaintextCipher())
        self.calls = {}

    @precondition(lambda self: len(self.calls) == 1)
    @rule()
    def kill_the_coordinator_before_it_stored_what_it_made(self) -> None:
        name, body = self.calls.popitem()
        self.coordinator.receive(Answer(name, self.reply(name, body)))
        self.close(is_stored=False)
        self.kill_the_coordinator()

    # -- what holds ---------------------------------------------------------------------------------------

    @invariant()
    def no_site_trained_twice(self) -> None:
        assert len(set(self.trained)) == len(self.trained)

    def teardown(self) -> None:
        """From here on all goes well: the run ends as if nothing had happened."""
        if not hasattr(self, "calls"):
            return
        for _ in range(40):
            for name in sorted(self.calls):
                self.coordinator.receive(Answer(name, self.reply(name, self.calls.pop(name))))
                self.close()
            if self.coordinator.is_done:
                break
            self.ask(set(SITES))
        assert summary(checkpoint_of(self.coordinator)) == REFERENCE
        assert summary(self.stored) == REFERENCE


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=80, stateful_step_count=40)
