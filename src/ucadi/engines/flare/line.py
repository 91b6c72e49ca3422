# SPDX-License-Identifier: Apache-2.0
"""A line between the processes of one job: short questions and answers, each at most one piece long."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

__all__ = ["PIECE", "Handler", "Line", "Note"]

PIECE = 1 << 19
"""Most bytes of one message."""

Note = Mapping[str, Any]
"""A message's few words: numbers, short texts, and lists and mappings of them."""

Handler = Callable[[str, dict[str, Any]], tuple[Note, bytes]]
"""Answers a question: gets the sender's address and the note; must return at once."""


@runtime_checkable  # for the type checks at test time
class Line(Protocol):
    """One process' end of a line. Questions and answers may get lost, and a question may come twice."""

    def listen(self, topic: str, handler: Handler, senders: Collection[str]) -> None:
        """Answer questions of a topic; those of others than ``senders`` are refused."""

    def ask(
        self, address: str, topic: str, note: Note, timeout_s: float
    ) -> tuple[dict[str, Any], bytes] | None:
        """Return the answer of one process, or None when there is none in time."""

    def ask_all(self, notes: Mapping[str, Note], topic: str, timeout_s: float) -> dict[str, dict[str, Any]]:
        """Ask several processes at once; return the notes of those that answered in time, by address."""

    def tell(self, address: str, topic: str) -> None:
        """Send a hint."""
