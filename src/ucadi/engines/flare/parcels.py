# SPDX-License-Identifier: Apache-2.0
"""Large messages in pieces: the receiver fetches them one by one, so nothing comes that it did not ask for.

Each side knows size and hash before the first piece. Pieces may be asked for again, may come twice and in
any order; a lost connection costs the pieces under way and no more. What waits on the way is a few pieces
per receiver, however slow its link.
"""

import hashlib
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ucadi.engines.flare.line import PIECE
from ucadi.errors import EngineError

__all__ = ["LARGEST_MESSAGE", "Label", "Parcel", "fetch", "read_label"]

LARGEST_MESSAGE = 4 << 30
"""Bytes beyond which a message is refused before anything of it is fetched."""

_UNDER_WAY = 3
"""Pieces asked for at the same time: covers a round trip of half a second at 20 Mbit/s."""

_RETRY_S = 0.5
_SPOOL_FROM = 8 << 20
"""Bytes from which a message is collected on disk instead of in memory, where a folder is given."""

_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Label:
    """What the receiver knows before it fetches.

    Attributes:
        size: Bytes.
        sha256: Of all bytes, as hexadecimal text.
    """

    size: int
    sha256: str

    @property
    def num_pieces(self) -> int:
        """Number of pieces; at least one."""
        return max(1, -(-self.size // PIECE))

    def size_of(self, index: int) -> int:
        """Return the bytes of one piece."""
        return min(PIECE, self.size - index * PIECE)


def read_label(note: Mapping[str, Any], most: int = LARGEST_MESSAGE) -> Label:
    """Return the label that a note carries.

    Args:
        note: What was announced.
        most: Bytes beyond which the message is refused.

    Raises:
        EngineError: ``message-too-large`` or ``message-invalid``.
    """
    size, digest = note.get("size"), note.get("sha256")
    if type(size) is not int or size < 0 or not isinstance(digest, str) or len(digest) != 64:
        raise EngineError("message-invalid", f"A message of size {size!r:.40} is announced.")
    if size > most:
        raise EngineError("message-too-large", f"{size} bytes are announced, {most} are allowed.")
    return Label(size, digest)


class Parcel:
    """A message that is ready to be fetched.

    Args:
        body: Its bytes, which must not change any more.
    """

    def __init__(self, body: bytes | bytearray | memoryview) -> None:
        self._body = memoryview(body).cast("B")
        self.label = Label(len(self._body), hashlib.sha256(self._body).hexdigest())

    @property
    def note(self) -> dict[str, Any]:
        """The label for sending."""
        return {"size": self.label.size, "sha256": self.label.sha256}

    def piece(self, index: object) -> bytes:
        """Return one piece; nothing for an index that does not exist."""
        if type(index) is not int or not 0 <= index < self.label.num_pieces:
            return b""
        return bytes(self._body[index * PIECE : (index + 1) * PIECE])


def fetch(
    label: Label,
    ask: Callable[[int], bytes | None],
    goes_on: Callable[[], bool],
    spool: Path | None = None,
) -> bytes | memoryview:
    """Fetch all pieces of a message.

    Args:
        label: What was announced.
        ask: Returns one piece by its index, or None when it did not come; called from several threads.
        goes_on: Tells whether to try on; asked before each piece.
        spool: Folder on disk for large messages; None keeps everything in memory.

    Raises:
        EngineError: ``message-too-large`` if there is no room, ``message-invalid`` if the hash differs from
            the one announced, ``interrupted`` if ``goes_on`` says so.
    """
    basket = _DiskBasket(label.size, spool) if spool and label.size >= _SPOOL_FROM else _Basket(label.size)
    is_lost = threading.Event()

    def take(index: int) -> None:
        while not is_lost.is_set():
            if not goes_on():
                is_lost.set()
                return
            piece = ask(index)
            if piece is not None and len(piece) == label.size_of(index):
                basket.put(index * PIECE, piece)
                return
            time.sleep(_RETRY_S)

    if label.num_pieces == 1:
        take(0)
    else:
        with ThreadPoolExecutor(_UNDER_WAY) as pool:
            for _ in pool.map(take, range(label.num_pieces)):
                pass  # an error of a piece ends the fetching
    if is_lost.is_set():
        raise EngineError("interrupted", "The message did not come to its end.")
    body = basket.close()
    if hashlib.sha256(body).hexdigest() != label.sha256:
        raise EngineError("message-invalid", "The message's bytes are not those that were announced.")
    return body


class _Basket:
    """Collects pieces in memory."""

    def __init__(self, size: int) -> None:
        available = psutil.virtual_memory().available
        if size > _MEMORY_SHARE * available:
            raise EngineError("message-too-large", f"{size} bytes are announced, {available} are free.")
        self._bytes = bytearray(size)

    def put(self, offset: int, piece: bytes) -> None:
        """Keep a piece."""
        self._bytes[offset : offset + len(piece)] = piece

    def close(self) -> memoryview:
        """Return all bytes."""
        return memoryview(self._bytes)


class _DiskBasket:
    """Collects pieces in a file that has no name, so that memory does not grow with the senders."""

    def __init__(self, size: int, folder: Path) -> None:
        self._size = size
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed in `close`
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)  # a full disk shows here
        except OSError as error:
            self._file.close()
            raise EngineError("message-too-large", f"No room for {size} bytes on disk: {error}.") from error

    def put(self, offset: int, piece: bytes) -> None:
        """Keep a piece."""
        os.pwrite(self._file.fileno(), piece, offset)

    def close(self) -> memoryview:
        """Return all bytes; their pages leave memory when it is needed elsewhere."""
        with self._file:
            return memoryview(mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_READ))
