# SPDX-License-Identifier: Apache-2.0
"""The line over FLARE's connections.

FLARE's own tasks are not used: sites would ask for them several times a second, results would pass through
copies and streams without a bound, and any site may hand another one a task. Here each message is one frame
of a few headers and at most `PIECE` bytes, only the coordinator's process is heard at a site, and only
sites of the job at the coordinator. FLARE's server lets nobody send in another's name.
"""

from collections.abc import Collection, Mapping
from typing import Any

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.core_cell import TargetMessage
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.message import Message

from ucadi.engines.flare.line import Handler, Note
from ucadi.logs import event, get_logger

__all__ = ["CellLine"]

_LOG = get_logger("engines.flare")

_CHANNEL = "ucadi"
_NOTE = "ucadi.note"


class CellLine:
    """One process' end of a line.

    Args:
        cell: FLARE's connection of this job's process.
    """

    def __init__(self, cell: Cell) -> None:
        self._core = cell.core_cell

    def listen(self, topic: str, handler: Handler, senders: Collection[str]) -> None:
        """Answer questions of a topic; those of others than ``senders`` are refused."""

        def answer(message: Message) -> Message:
            sender = str(message.get_header(MessageHeaderKey.ORIGIN))
            note = message.get_header(_NOTE)
            if sender not in senders or not isinstance(note, dict):
                event(_LOG, "message refused", topic=topic, sender=sender[:200])
                return Message({MessageHeaderKey.RETURN_CODE: ReturnCode.INVALID_REQUEST})
            reply, piece = handler(sender, note)
            return Message({MessageHeaderKey.RETURN_CODE: ReturnCode.OK, _NOTE: dict(reply)}, piece)

        self._core.register_request_cb(_CHANNEL, topic, answer)

    def ask(
        self, address: str, topic: str, note: Note, timeout_s: float
    ) -> tuple[dict[str, Any], bytes] | None:
        """Return the answer of one process, or None when there is none in time."""
        request = Message({_NOTE: dict(note)}, b"")
        return _read(self._core.send_request(_CHANNEL, topic, address, request, timeout_s, optional=True))

    def ask_all(self, notes: Mapping[str, Note], topic: str, timeout_s: float) -> dict[str, dict[str, Any]]:
        """Ask several processes at once; return the notes of those that answered in time, by address."""
        messages = {
            address: TargetMessage(address, _CHANNEL, topic, Message({_NOTE: dict(note)}, b""))
            for address, note in notes.items()
        }
        replies = self._core.broadcast_multi_requests(messages, timeout_s, optional=True)
        answers = {address: _read(reply) for address, reply in replies.items()}
        return {address: answer[0] for address, answer in answers.items() if answer is not None}

    def tell(self, address: str, topic: str) -> None:
        """Send a hint that may get lost."""
        self._core.fire_and_forget(_CHANNEL, topic, address, Message({_NOTE: {}}, b""), optional=True)


def _read(reply: Message | None) -> tuple[dict[str, Any], bytes] | None:
    """Return an answer's note and bytes if it is a proper one."""
    if reply is None or reply.get_header(MessageHeaderKey.RETURN_CODE) != ReturnCode.OK:
        return None
    note, piece = reply.get_header(_NOTE), reply.payload
    if not isinstance(note, dict) or not isinstance(piece, bytes | bytearray | memoryview | None):
        return None
    return note, bytes(piece or b"")
