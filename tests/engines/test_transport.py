# SPDX-License-Identifier: Apache-2.0
"""Both ends of the line in one process, over a line that loses, repeats and delays."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucadi.engines.flare import parcels, transport
from ucadi.engines.flare.line import PIECE
from ucadi.engines.flare.reception import Reception
from ucadi.engines.flare.transport import FlareTransport
from ucadi.errors import EngineError
from ucadi.federation.ports import Answer, Exchange

COORDINATOR = "server.job"


class Network:
    """Connects lines by address; a share of the questions or of their answers is lost, or asked twice."""

    def __init__(self, loss: float = 0.0, seed: int = 0) -> None:
        self.handlers: dict[tuple[str, str], tuple[Callable[..., Any], Collection[str]]] = {}
        self.cut: set[str] = set()
        self._loss = loss
        self._chance = np.random.default_rng(seed)
        self._lock = threading.Lock()

    def carry(self, sender: str, address: str, topic: str, note: Mapping[str, Any]) -> Any:
        handler, senders = self.handlers.get((address, topic), (None, ()))
        with self._lock:
            fate = self._chance.random()
        if handler is None or {sender, address} & self.cut or fate < self._loss:
            return None
        if sender not in senders:
            raise AssertionError(f"{sender} is not heard at {address}")
        answer = handler(sender, dict(note))
        if fate < 1.5 * self._loss:
            return None
        return handler(sender, dict(note)) if fate < 2 * self._loss else answer


class NetworkLine:
    """The `Line` of one address."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address

    def listen(self, topic: str, handler: Callable[..., Any], senders: Collection[str]) -> None:
        self._network.handlers[self._address, topic] = (handler, senders)

    def ask(self, address: str, topic: str, note: Mapping[str, Any], timeout_s: float) -> Any:
        return self._network.carry(self._address, address, topic, note)

    def ask_all(self, notes: Mapping[str, Any], topic: str, timeout_s: float) -> dict[str, dict[str, Any]]:
        answers = {to: self._network.carry(self._address, to, topic, note) for to, note in notes.items()}
        return {to: answer[0] for to, answer in answers.items() if answer}

    def tell(self, address: str, topic: str) -> None:
        self._network.carry(self._address, address, topic, {})


class Sites:
    """Three sites; each answers with its name and the request, after as long as is set for it."""

    def __init__(self, network: Network) -> None:
        self.seconds: dict[str, float] = {}
        self.extra = 0
        self.asked: list[tuple[str, bytes]] = []
        self.receptions = {}
        for name in ("a", "b", "c"):
            line = NetworkLine(network, f"{name}.job")
            answer, refuse = self._answering(name)
            self.receptions[name] = Reception(line, COORDINATOR, answer, refuse)

    def _answering(self, name: str) -> tuple[Callable[[Any], bytes], Callable[[str], bytes]]:
        def answer(body: bytes | memoryview) -> bytes:
            self.asked.append((name, bytes(body)))
            time.sleep(self.seconds.get(name, 0.0))
            return name.encode() + bytes(body) + bytes(self.extra)

        return answer, lambda code: f"{name} refuses: {code}".encode()

    def open(self, *names: str) -> None:
        for name in names or self.receptions:
            self.receptions[name].open(lambda: None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(transport, "_POLL_S", 0.02)
    monkeypatch.setattr(transport, "LOST_S", 0.6)
    monkeypatch.setattr(transport, "_PIECE_S", 0.2)
    monkeypatch.setattr(transport, "_START_S", 1.5)
    monkeypatch.setattr(parcels, "_RETRY_S", 0.01)


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def sites(network: Network) -> Iterator[Sites]:
    made = Sites(network)
    yield made
    for reception in made.receptions.values():
        reception.close()  # or its threads would fetch forever, and the tests never end


@pytest.fixture
def coordinator(network: Network, tmp_path: Path) -> Iterator[FlareTransport]:
    yield from opened(network, tmp_path)


def opened(network: Network, spool: Path) -> Iterator[FlareTransport]:
    addresses = {name: f"{name}.job" for name in ("a", "b", "c")}
    line = NetworkLine(network, COORDINATOR)
    made = FlareTransport(line, addresses, spool, lambda: False)
    yield made
    made.close()


def exchange(body: bytes, sites: str = "abc", deadline_s: float = 20.0) -> Exchange:
    return Exchange(bytearray(body), tuple(sites), deadline_s)


def all_answers(coordinator: FlareTransport) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    while (answer := coordinator.receive()) is not None:
        assert answer.site not in found, "second answer"
        found[answer.site] = answer
    return found


def bodies(answers: Mapping[str, Answer]) -> dict[str, object]:
    return {site: a.reason if a.body is None else bytes(a.body) for site, a in answers.items()}


def test_each_site_answers_each_message_once(coordinator: FlareTransport, sites: Sites) -> None:
    sites.open()
    for text in (b"one", b"two"):
        coordinator.send(exchange(text))
        assert bodies(all_answers(coordinator)) == {"a": b"a" + text, "b": b"b" + text, "c": b"c" + text}
    assert coordinator.receive() is None


def test_several_messages_are_under_way_at_once(coordinator: FlareTransport, sites: Sites) -> None:
    sites.open()
    sites.seconds = {"a": 0.5}
    coordinator.send(exchange(b"1", "a"))
    coordinator.send(exchange(b"2", "b"))
    first = coordinator.receive()
    coordinator.send(exchange(b"3", "b"))
    second, third = coordinator.receive(), coordinator.receive()
    assert [answer and bytes(answer.body or b"") for answer in (first, second, third)] == [
        b"b2",
        b"b3",
        b"a1",
    ]
    assert coordinator.receive() is None


def test_message_to_a_site_that_starts_later_arrives(coordinator: FlareTransport, sites: Sites) -> None:
    coordinator.send(exchange(b"x", "a"))
    time.sleep(0.3)
    sites.open("a")
    assert bodies(all_answers(coordinator)) == {"a": b"ax"}


def test_site_that_is_not_in_the_job_is_lost_at_once(coordinator: FlareTransport, sites: Sites) -> None:
    sites.open()
    begin = time.monotonic()
    coordinator.send(exchange(b"x", "az"))
    assert bodies(all_answers(coordinator)) == {"a": b"ax", "z": "site-lost"}
    assert time.monotonic() - begin < 0.5


def test_site_that_never_starts_is_lost(coordinator: FlareTransport, sites: Sites) -> None:
    sites.open("a", "b")
    coordinator.send(exchange(b"x"))
    assert bodies(all_answers(coordinator)) == {"a": b"ax", "b": b"bx", "c": "site-lost"}


def test_cut_off_site_is_lost_long_before_its_deadline(
    coordinator: FlareTransport, sites: Sites, network: Network
) -> None:
    sites.open()
    sites.seconds = {"b": 0.3}
    coordinator.send(exchange(b"x", deadline_s=1000.0))
    time.sleep(0.1)
    network.cut = {"b.job"}
    assert bodies(all_answers(coordinator)) == {"a": b"ax", "b": "site-lost", "c": b"cx"}
    network.cut = set()
    coordinator.send(exchange(b"y"))  # it is back
    assert bodies(all_answers(coordinator)) == {"a": b"ay", "b": b"by", "c": b"cy"}


def test_short_cut_costs_nothing(coordinator: FlareTransport, sites: Sites, network: Network) -> None:
    sites.open()
    sites.seconds = {"b": 0.2}
    coordinator.send(exchange(b"x"))
    time.sleep(0.1)
    network.cut = {"b.job"}
    time.sleep(0.3)
    network.cut = set()
    assert bodies(all_answers(coordinator)) == {"a": b"ax", "b": b"bx", "c": b"cx"}


def test_slow_site_is_late_and_its_late_reply_is_nobodys(coordinator: FlareTransport, sites: Sites) -> None:
    sites.open()
    sites.seconds = {"b": 0.6}
    coordinator.send(exchange(b"x", deadline_s=0.3))
    assert bodies(all_answers(coordinator)) == {"a": b"ax", "b": "site-late", "c": b"cx"}
    sites.seconds = {}
    coordinator.send(exchange(b"y"))
    assert bodies(all_answers(coordinator)) == {"a": b"ay", "b": b"by", "c": b"cy"}


def test_abandoned_messages_are_never_answered(coordinator: FlareTransport, sites: Sites) -> None:
    sites.open()
    sites.seconds = {"a": 0.3, "b": 0.3}
    coordinator.send(exchange(b"x"))
    coordinator.send(exchange(b"y", "a"))
    coordinator.abandon()
    assert coordinator.receive() is None
    coordinator.send(exchange(b"z"))
    assert bodies(all_answers(coordinator)) == {"a": b"az", "b": b"bz", "c": b"cz"}
    assert ("a", b"y") not in sites.asked  # it waited there, and was dropped


def test_end_of_the_job_ends_the_waiting(network: Network, sites: Sites, tmp_path: Path) -> None:
    is_over = threading.Event()
    line = NetworkLine(network, COORDINATOR)
    made = FlareTransport(line, {"a": "a.job"}, tmp_path, is_over.is_set)
    made.send(exchange(b"x", "a"))
    is_over.set()
    with pytest.raises(EngineError) as caught:
        made.receive()
    assert caught.value.code == "interrupted"
    made.close()


@pytest.mark.parametrize("seed", range(4))
def test_lossy_line_loses_and_doubles_nothing(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions and answers get lost or come twice; large messages, and more of them than fit at a time."""
    monkeypatch.setattr(transport, "LOST_S", 30.0)
    monkeypatch.setattr(parcels, "_SPOOL_FROM", 2 * PIECE)
    network = Network(loss=0.2, seed=seed)
    sites = Sites(network)
    sites.open()
    body = np.random.default_rng(seed).bytes(3 * PIECE + 17)
    for coordinator in opened(network, tmp_path):
        for number in range(3):
            text = bytes([number]) + body
            coordinator.send(exchange(text))
            assert bodies(all_answers(coordinator)) == {s: s.encode() + text for s in "abc"}
    assert sorted(name for name, _ in sites.asked) == sorted("abc" * 3)  # nothing was done twice


def test_oversized_call_is_refused_by_the_site(network: Network, sites: Sites) -> None:
    sites.open("a")
    note = {"id": "1", "size": 1 << 60, "sha256": "0" * 64}
    network.carry(COORDINATOR, "a.job", "call", note)
    time.sleep(0.1)
    (states, _) = network.carry(COORDINATOR, "a.job", "look", {"open": ["1"], "drop": []})
    (_, piece) = network.carry(COORDINATOR, "a.job", "piece", {"id": "1", "index": 0})
    assert states["1"]["size"] == len(piece)
    assert piece == b"a refuses: message-too-large"


def test_flood_of_calls_is_bounded_at_the_site(network: Network, sites: Sites) -> None:
    sites.open("a")
    for number in range(100):
        note = {"id": str(number), "size": 1 << 20, "sha256": "0" * 64}
        network.carry(COORDINATOR, "a.job", "call", note)
    numbers = [str(number) for number in range(100)]
    (states, _) = network.carry(COORDINATOR, "a.job", "look", {"open": numbers, "drop": []})
    assert len(states) == 16


@pytest.mark.parametrize("topic", ["call", "look", "piece"])
@pytest.mark.parametrize(
    "note", [{}, {"id": [1], "open": 5, "drop": {"x": 1}}, {"id": {}, "open": [1, None]}]
)
def test_nonsense_is_answered_with_nothing(network: Network, sites: Sites, topic: str, note: dict) -> None:
    sites.open("a")
    assert network.carry(COORDINATOR, "a.job", topic, note) == ({}, b"")


def test_call_without_a_name_is_answered_and_so_are_the_next_ones(network: Network, sites: Sites) -> None:
    sites.open("a")
    for number in ("", "2"):
        note = {"id": number, "size": 1 << 60, "sha256": "0" * 64}
        network.carry(COORDINATOR, "a.job", "call", note)
    time.sleep(0.1)
    (states, _) = network.carry(COORDINATOR, "a.job", "look", {"open": ["", "2"], "drop": []})
    assert [states[number]["size"] > 0 for number in ("", "2")] == [True, True]


def test_replies_that_nobody_drops_do_not_pile_up(network: Network, sites: Sites) -> None:
    sites.open("a")
    numbers = [str(number) for number in range(10)]
    for number in numbers:
        network.carry(COORDINATOR, "a.job", "call", {"id": number, "size": 1 << 60, "sha256": "0" * 64})
    time.sleep(0.1)
    (states, _) = network.carry(COORDINATOR, "a.job", "look", {"open": numbers, "drop": []})
    assert list(states) == numbers[-4:]


# -- broken sites -----------------------------------------------------------------------------------------


def announce(network: Network, site: str, size: int, give: Callable[[int], bytes]) -> None:
    """A site that has a reply of a size to whatever it is asked, and hands over what it likes."""

    def look(sender: str, note: dict[str, Any]) -> Any:
        return {number: {"size": size, "sha256": "0" * 64} for number in note["open"]}, b""

    allowed = {COORDINATOR}
    network.handlers[f"{site}.job", "look"] = (look, allowed)
    network.handlers[f"{site}.job", "piece"] = (lambda _, note: ({}, give(note["index"])), allowed)


@pytest.mark.parametrize("size", [4 << 30, (1 << 20) + 3])
def test_reply_that_is_far_larger_than_its_message_is_refused_before_it_is_fetched(
    coordinator: FlareTransport, network: Network, sites: Sites, size: int
) -> None:
    sites.open("a", "b")
    announce(network, "c", size, lambda index: pytest.fail("asked"))
    coordinator.send(exchange(b"x", deadline_s=1000.0))
    assert bodies(all_answers(coordinator)) == {"a": b"ax", "b": b"bx", "c": "message-too-large"}


def test_reply_of_twice_its_message_and_a_bit_arrives(coordinator: FlareTransport, sites: Sites) -> None:
    sites.open("a")
    body = bytes(3 * PIECE)
    sites.extra = len(body) + (1 << 20) - 1
    coordinator.send(exchange(body, "a"))
    (answer,) = all_answers(coordinator).values()
    assert len(answer.body or b"") == 2 * len(body) + (1 << 20)


@pytest.mark.parametrize("size", [10, 3 * PIECE], ids=["small", "large"])
def test_site_that_announces_a_reply_and_drips_it_is_late(
    coordinator: FlareTransport, network: Network, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(transport, "_GRACE_S", 0.2)
    monkeypatch.setattr(transport, "_SLOWEST", 1e9)
    monkeypatch.setattr(transport, "_PIECE_S", 100.0)
    announce(network, "a", size, lambda index: b"")
    begin = time.monotonic()
    coordinator.send(exchange(bytes(size), "a", deadline_s=0.5))
    assert bodies(all_answers(coordinator)) == {"a": "site-late"}
    assert 0.5 < time.monotonic() - begin < 2


def test_site_that_gives_signs_of_life_but_no_pieces_is_lost_long_before_its_deadline(
    coordinator: FlareTransport, network: Network
) -> None:
    announce(network, "a", 3 * PIECE, lambda index: b"")
    coordinator.send(exchange(bytes(3 * PIECE), "a", deadline_s=1000.0))
    assert bodies(all_answers(coordinator)) == {"a": "site-lost"}


def test_small_replies_pass_while_broken_sites_hold_the_room_of_large_ones(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_PIECE_S", 100.0)
    broken = ("x", "y", "z")
    for site in broken:
        announce(network, site, 3 * PIECE, lambda index: b"")
    sites = Sites(network)
    sites.open("a")
    addresses = {name: f"{name}.job" for name in ("a", *broken)}
    made = FlareTransport(NetworkLine(network, COORDINATOR), addresses, tmp_path, lambda: False)
    try:
        made.send(exchange(bytes(3 * PIECE), "xyz", deadline_s=1000.0))
        time.sleep(0.3)
        begin = time.monotonic()
        made.send(exchange(b"!", "a"))
        answer = made.receive()
        assert answer is not None
        assert bytes(answer.body or b"") == b"a!"
        assert time.monotonic() - begin < 1
    finally:
        made.close()
        sites.receptions["a"].close()
