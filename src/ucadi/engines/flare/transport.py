# SPDX-License-Identifier: Apache-2.0
"""The coordinator's end of the line: hands messages to sites, follows them, fetches what comes of them.

A site is told what there is to fetch, and asked every few seconds what has become of it; both questions may
be repeated at any time. A site that gives no sign of life for `LOST_S` is lost, whatever the deadline.
"""

import math
import queue
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucadi.engines.flare.line import Line
from ucadi.engines.flare.parcels import LARGEST_MESSAGE, Label, Parcel, fetch, read_label
from ucadi.errors import EngineError
from ucadi.federation.ports import Answer, Exchange
from ucadi.logs import event, get_logger

__all__ = ["LOST_S", "FlareTransport"]

_LOG = get_logger("engines.flare")

LOST_S = 15.0
"""A site from which nothing was heard for so long is lost."""

_START_S = 90.0
"""How long a site's process may take to start after the job."""

_LOOK_EVERY_S = 2.0
_SITES_PER_S = 200
"""Most sites that are asked per second what has become of their messages."""

_ANSWER_S = 5.0
_PIECE_S = 60.0
_SMALL_REPLY = 1 << 20
"""Bytes up to which a reply is small: it does not wait for the large ones."""

_SMALL_FETCHES = 16
_FETCHES = 3
"""Large replies that are fetched or wait at the same time; they are on disk meanwhile."""

_GRACE_S = 10.0
_SLOWEST = 50_000
"""Bytes per second: a reply that comes more slowly than this may be late, though it was announced in time."""

_POLL_S = 0.2


@dataclass(eq=False)
class _Letter:
    """One message to one site, until its answer is there.

    Attributes:
        id: Of the message, the same for all its sites.
        site: To whom.
        until: When the site's time is over, as a monotonic time in seconds; never while a reply waits for
            its turn to be fetched, which is not the site's fault.
        is_done: The site has a reply, and it is being fetched.
    """

    id: str
    site: str
    until: float
    is_done: bool = False


class FlareTransport:
    """Carries messages to the sites of one job. Answers are handed over in the caller's thread only.

    Args:
        line: The coordinator's end.
        addresses: Address of each site's process in this job, by the site's name.
        spool: Folder on disk where large replies are kept until they are added.
        is_over: Tells whether the job is to end.
    """

    def __init__(
        self, line: Line, addresses: Mapping[str, str], spool: Path, is_over: Callable[[], bool]
    ) -> None:
        self._line = line
        self._addresses = dict(addresses)
        self._names = {address: site for site, address in self._addresses.items()}
        self._spool = spool
        self._is_over = is_over
        self._lock = threading.Lock()
        self._letters: list[_Letter] = []
        self._parcels: dict[str, Parcel] = {}
        self._drops: defaultdict[str, set[str]] = defaultdict(set)
        start = time.monotonic()
        self._heard = dict.fromkeys(self._addresses, start + _START_S - LOST_S)
        self._seen: set[str] = set()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._room = threading.Semaphore(_FETCHES)
        self._is_holding = False
        self._hints: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._is_closed = False
        self._fetcher = ThreadPoolExecutor(_FETCHES, "fetch")
        self._small_fetcher = ThreadPoolExecutor(_SMALL_FETCHES, "fetch-small")
        line.listen("piece", self._give_piece, self._names)
        line.listen("hint", self._take_hint, self._names)
        for work in (self._look_often, self._look_at_silent, self._follow_hints):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def send(self, exchange: Exchange) -> None:
        """Start to send a message; sites that are not in the job are lost at once."""
        number = secrets.token_hex(16)
        parcel = Parcel(exchange.body)
        until = time.monotonic() + exchange.deadline_s
        with self._lock:
            for site in exchange.sites:
                if site in self._addresses:
                    self._letters.append(_Letter(number, site, until))
                    self._parcels[number] = parcel
                else:
                    self._answers.put(Answer(site, None, "site-lost"))
        self._wake.set()

    def receive(self) -> Answer | None:
        """Wait for the next answer; None when no message is under way.

        Raises:
            EngineError: ``interrupted`` if the job is to end.
        """
        self._let_go()
        while True:
            if self._is_over():
                raise EngineError("interrupted", "The engine ends the job.")
            with self._lock:
                is_idle = not self._letters and self._answers.empty()
            if is_idle:
                return None
            try:
                answer = self._answers.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            self._is_holding = _has_room(answer)
            return answer

    def abandon(self) -> None:
        """Forget all messages under way, here and at the sites."""
        with self._lock:
            for letter in list(self._letters):
                self._close(letter)
            while not self._answers.empty():
                if _has_room(self._answers.get()):
                    self._room.release()
        self._let_go()

    def close(self) -> None:
        """End the threads; nothing is under way any more."""
        self.abandon()
        self._is_closed = True
        self._wake.set()
        self._hints.put("")
        for fetcher in (self._fetcher, self._small_fetcher):
            fetcher.shutdown(wait=False, cancel_futures=True)

    def _let_go(self) -> None:
        """The caller is through with the last body."""
        if self._is_holding:
            self._is_holding = False
            self._room.release()

    # -- what sites ask -----------------------------------------------------------------------------------

    def _give_piece(self, sender: str, note: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Hand a site a piece of a message to it."""
        self._hear(self._names[sender])
        parcel = self._parcels.get(str(note.get("id")))
        return {}, parcel.piece(note.get("index")) if parcel else b""

    def _take_hint(self, sender: str, note: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Look at a site out of turn: it has started, or has a reply."""
        self._hints.put(self._names[sender])
        return {}, b""

    def _hear(self, site: str) -> None:
        """Note a sign of life."""
        self._heard[site] = max(self._heard[site] if site in self._seen else 0.0, time.monotonic())
        self._seen.add(site)

    # -- following ----------------------------------------------------------------------------------------

    def _look_often(self) -> None:
        """Ask all sites that have a message; end letters whose time is over."""
        while not self._is_closed:
            self._wake.clear()
            self._end_late()
            sites = self._concerned()
            self._look({site for site in sites if not self._is_silent(site)})
            self._wake.wait(max(_LOOK_EVERY_S, len(sites) / _SITES_PER_S))

    def _look_at_silent(self) -> None:
        """Ask the sites that did not answer: apart, because a lost one costs the whole waiting time."""
        while not self._is_closed:
            self._look({site for site in self._concerned() if self._is_silent(site)})
            time.sleep(_LOOK_EVERY_S)

    def _concerned(self) -> set[str]:
        """Return the sites that have a message, or are to drop one."""
        with self._lock:
            return {letter.site for letter in self._letters} | self._drops.keys()

    def _is_silent(self, site: str) -> bool:
        """Tell whether a site has not started yet, or missed a question."""
        return site not in self._seen or time.monotonic() - self._heard[site] > 2 * _LOOK_EVERY_S

    def _follow_hints(self) -> None:
        """Look at the sites that gave a hint."""
        while site := self._hints.get():
            sites = {site}
            while not self._hints.empty():
                sites.add(self._hints.get())
            self._look(sites - {""})

    def _look(self, sites: Collection[str]) -> None:
        """Ask sites what has become of their messages, and act on it."""
        with self._lock:
            notes = {
                self._addresses[site]: {
                    "open": [x.id for x in self._letters if x.site == site and not x.is_done],
                    "drop": sorted(self._drops.get(site, ())),
                }
                for site in sites
            }
        if not notes:
            return
        replies = self._line.ask_all(notes, "look", _ANSWER_S)
        calls = {}
        for address, note in notes.items():
            site = self._names[address]
            if address in replies:
                self._hear(site)
                self._forget_drops(site, note["drop"])
                if call := self._act(site, replies[address]):
                    calls[address] = call
            elif time.monotonic() - self._heard[site] > LOST_S:
                self._lose(site)
        if calls:
            self._line.ask_all(calls, "call", _ANSWER_S)

    def _act(self, site: str, states: Mapping[str, Any]) -> dict[str, Any]:
        """Fetch what is done; return what the site is to be told of because it does not know it."""
        unknown = {}
        with self._lock:
            for letter in [x for x in self._letters if x.site == site and not x.is_done]:
                state = states.get(letter.id)
                if state is None:
                    unknown = {"id": letter.id, **self._parcels[letter.id].note}
                elif isinstance(state, dict):
                    self._begin_fetch(letter, state)
        return unknown

    def _begin_fetch(self, letter: _Letter, state: Mapping[str, Any]) -> None:
        """Fetch a reply if it can be one, each kind in its own threads; the lock is held.

        An update is about as large as the model that it answers, everything else is small.
        """
        most = min(LARGEST_MESSAGE, 2 * self._parcels[letter.id].label.size + _SMALL_REPLY)
        try:
            label = read_label(state, most)
        except EngineError as error:
            event(_LOG, "reply refused", site=letter.site, code=error.code, detail=error.detail)
            self._close(letter, Answer(letter.site, None, error.code))
            return
        letter.is_done = True
        if label.size > _SMALL_REPLY:
            deadline, letter.until = letter.until, math.inf
            self._fetcher.submit(self._fetch_large, letter, label, deadline)
        else:
            letter.until += _GRACE_S
            self._small_fetcher.submit(self._fetch, letter, label)

    def _forget_drops(self, site: str, numbers: Collection[str]) -> None:
        """The site has dropped these messages."""
        with self._lock:
            self._drops[site].difference_update(numbers)
            if not self._drops[site]:
                del self._drops[site]

    def _end_late(self) -> None:
        """End letters whose site had its time."""
        now = time.monotonic()
        with self._lock:
            for letter in [x for x in self._letters if now > x.until]:
                # A process that never came up is no straggler: only another job brings the site back.
                reason = "site-late" if letter.site in self._seen else "site-lost"
                self._close(letter, Answer(letter.site, None, reason))

    def _lose(self, site: str) -> None:
        """End all letters to a site of which nothing is heard."""
        with self._lock:
            self._drops.pop(site, None)
            for letter in [x for x in self._letters if x.site == site]:
                self._close(letter, Answer(site, None, "site-lost"))

    def _close(self, letter: _Letter, answer: Answer | None = None) -> None:
        """End a letter; the lock is held."""
        if letter not in self._letters:
            return
        self._letters.remove(letter)
        self._drops[letter.site].add(letter.id)
        if not any(other.id == letter.id for other in self._letters):
            self._parcels.pop(letter.id, None)
        if answer is not None:
            if answer.body is None:
                event(_LOG, "no answer", site=letter.site, reason=answer.reason)
            self._answers.put(answer)

    # -- fetching -----------------------------------------------------------------------------------------

    def _fetch_large(self, letter: _Letter, label: Label, deadline: float) -> None:
        """Fetch a large reply when there is room."""
        while not self._room.acquire(timeout=_POLL_S):
            if letter not in self._letters:
                return
        letter.until = max(deadline, time.monotonic()) + _GRACE_S + label.size / _SLOWEST
        self._fetch(letter, label)

    def _fetch(self, letter: _Letter, label: Label) -> None:
        """Fetch a reply."""
        address = self._addresses[letter.site]
        last = time.monotonic()

        def ask(index: int) -> bytes | None:
            nonlocal last
            answer = self._line.ask(address, "piece", {"id": letter.id, "index": index}, _PIECE_S)
            if answer is None:
                return None
            self._hear(letter.site)
            if answer[1]:
                last = time.monotonic()
            return answer[1]

        def goes_on() -> bool:
            return letter in self._letters and time.monotonic() - last < _PIECE_S + LOST_S

        try:
            answer = Answer(letter.site, fetch(label, ask, goes_on, self._spool))
        except EngineError as error:
            event(_LOG, "reply not fetched", site=letter.site, code=error.code, detail=error.detail)
            reason = "site-lost" if error.code == "interrupted" else error.code
            answer = Answer(letter.site, None, reason)
        except Exception:  # a thread's error would be seen by nobody
            _LOG.exception("reply not fetched")
            answer = Answer(letter.site, None, "site-lost")
        with self._lock:
            if label.size > _SMALL_REPLY and (letter not in self._letters or answer.body is None):
                self._room.release()
            self._close(letter, answer)


def _has_room(answer: Answer) -> bool:
    """Tell whether an answer takes one of the places of large ones."""
    return answer.body is not None and len(answer.body) > _SMALL_REPLY
