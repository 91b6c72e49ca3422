# SPDX-License-Identifier: Apache-2.0
"""A site's end of the line: takes calls, fetches them, answers one after the other, keeps the replies."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ucadi.engines.flare.line import Line
from ucadi.engines.flare.parcels import Label, Parcel, fetch, read_label
from ucadi.errors import EngineError
from ucadi.logs import event, get_logger

__all__ = ["Reception"]

_LOG = get_logger("engines.flare")

_MOST_CALLS = 16
"""Calls that may wait; an honest coordinator has one or two."""

_MOST_REPLIES = 4
"""Replies that are kept for the coordinator; it drops them, unless it has died. Asked again for one that
is gone, the site answers again."""

_PIECE_S = 60.0


@dataclass(eq=False)
class _Call:
    """A call that the coordinator has not dropped yet.

    Attributes:
        label: Of the request; None when it cannot be fetched.
        code: Why it is refused without fetching it.
        reply: The reply's bytes, once there.
    """

    label: Label | None
    code: str = ""
    reply: Parcel | None = None


class Reception:
    """Answers calls in its own thread, so that the site gives signs of life while it trains.

    Args:
        line: The site's end.
        coordinator: Address of the coordinator's process in this job; nobody else is heard.
        answer: Returns the reply to a request's bytes; must not raise.
        refuse: Returns the bytes of a refusal with a code.
    """

    def __init__(
        self,
        line: Line,
        coordinator: str,
        answer: Callable[[bytes | memoryview], bytes | bytearray],
        refuse: Callable[[str], bytes | bytearray],
    ) -> None:
        self._line = line
        self._coordinator = coordinator
        self._answer = answer
        self._refuse = refuse
        self._calls: dict[str, _Call] = {}
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._is_closed = threading.Event()

    def open(self, prepare: Callable[[], None]) -> None:
        """Listen, and say that the site is there.

        Args:
            prepare: Called first in the answering thread.
        """
        for topic, handler in (("look", self._look), ("call", self._take), ("piece", self._give_piece)):
            self._line.listen(topic, handler, {self._coordinator})
        threading.Thread(target=self._work, args=[prepare], name="answer", daemon=True).start()
        self._line.tell(self._coordinator, "hint")

    def close(self) -> None:
        """Stop after what is being done."""
        self._is_closed.set()
        self._calls.clear()
        self._waiting.put(None)

    def _look(self, sender: str, note: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Tell what has become of the calls that the coordinator names; drop those that it is done with."""
        for number in _texts(note.get("drop")):
            self._calls.pop(number, None)
        states: dict[str, Any] = {}
        for number in _texts(note.get("open")):
            call = self._calls.get(number)
            if call is not None:
                states[number] = call.reply.note if call.reply else "working"
        return states, b""

    def _take(self, sender: str, note: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Take a call; the same one again changes nothing."""
        number = note.get("id")
        if not isinstance(number, str) or number in self._calls or self._is_closed.is_set():
            return {}, b""
        if len(self._calls) >= _MOST_CALLS:
            event(_LOG, "call refused", detail=f"{_MOST_CALLS} calls wait already.")
            return {}, b""
        try:
            self._calls[number] = _Call(read_label(note))
        except EngineError as error:
            event(_LOG, "call refused", code=error.code, detail=error.detail)
            self._calls[number] = _Call(None, error.code)
        self._waiting.put(number)
        return {}, b""

    def _give_piece(self, sender: str, note: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Hand over a piece of a reply."""
        call = self._calls.get(str(note.get("id")))
        return {}, call.reply.piece(note.get("index")) if call and call.reply else b""

    def _work(self, prepare: Callable[[], None]) -> None:
        """Answer calls until closed."""
        prepare()
        while (number := self._waiting.get()) is not None:
            call = self._calls.get(number)
            if call is None:
                continue  # dropped while it waited
            body = self._reply_to(number, call)
            if body is not None:
                call.reply = Parcel(body)
                self._let_go_of_old_replies()
                self._line.tell(self._coordinator, "hint")

    def _let_go_of_old_replies(self) -> None:
        """Keep the latest few."""
        replied = [number for number, call in list(self._calls.items()) if call.reply]
        for number in replied[:-_MOST_REPLIES]:
            self._calls.pop(number, None)

    def _reply_to(self, number: str, call: _Call) -> bytes | bytearray | None:
        """Fetch a call and answer it; None when the coordinator dropped it meanwhile."""
        if call.label is None:
            return self._refuse(call.code)

        def ask(index: int) -> bytes | None:
            answer = self._line.ask(self._coordinator, "piece", {"id": number, "index": index}, _PIECE_S)
            return answer[1] if answer else None

        try:
            body = fetch(call.label, ask, lambda: self._calls.get(number) is call)
        except EngineError as error:
            event(_LOG, "call not fetched", code=error.code, detail=error.detail)
            return None if error.code == "interrupted" else self._refuse(error.code)
        return self._answer(body)


def _texts(value: object) -> list[str]:
    """Return the texts of a list that may be anything."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
