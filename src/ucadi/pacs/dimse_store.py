# SPDX-License-Identifier: Apache-2.0
"""The receiving side of DIMSE: C-STORE into an inbox, from whoever may call.

pynetdicom reads whatever length a peer announces into memory and queues messages without an end, so both are
bounded here, on the connection.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt

from ucadi.errors import UcadiError
from ucadi.io.files import MAX_ENTRY_BYTES
from ucadi.pacs.inbox import Inbox
from ucadi.pacs.server import Trust

__all__ = [
    "MAX_PDU_BYTES",
    "VERIFICATION",
    "StorageServer",
    "bound_connection",
    "new_entity",
    "server_tls",
    "store_handler",
]

VERIFICATION = UID("1.2.840.10008.1.1")
"""What a C-ECHO asks for."""

MAX_PDU_BYTES = 2**17
"""What we ask peers to send at a time; pynetdicom's 16 KiB cost time."""

_MAX_READ_BYTES = 2**20  # of one PDU: ours, or a request for an association with all its contexts
_MAX_PENDING_BYTES = MAX_ENTRY_BYTES + 2**26  # received and not yet stored, with the wrapping
_SYNTAXES = [uid for uid in ALL_TRANSFER_SYNTAXES if uid != DeflatedExplicitVRLittleEndian]
_MAX_ASSOCIATIONS = 4
_STALL_S = 30.0  # a peer may be silent between messages, but not within one
_STATUS = {
    "pacs-too-large": 0xA700,
    "disk-full": 0xA700,
    "pacs-foreign": 0xA900,
    "pacs-duplicate": 0x0111,
    "input-unreadable": 0xC000,
}

# pynetdicom logs data sets, with patients in them, unless it is told not to.
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
_config.STORE_SEND_CHUNKED_DATASET = True  # files go out as they are, and not through memory


@dataclass
class _Meter:
    """Counts what has come in over one connection and is not stored yet."""

    pending: int = 0


def new_entity(title: str, *, network_s: float = 120.0) -> AE:
    """Return an application entity with our limits.

    Args:
        title: Its AE title.
        network_s: After how long a silent connection is closed.
    """
    entity = AE(title)
    entity.maximum_pdu_size = MAX_PDU_BYTES
    entity.connection_timeout = 10.0
    entity.acse_timeout = 30.0
    entity.dimse_timeout = entity.network_timeout = network_s
    return entity


def bound_connection(event: Any) -> None:
    """Handle a new connection: answer without delay, and end it when a peer sends without measure."""
    connection = event.assoc.dul.socket
    raw: socket.socket = connection.socket
    raw.settimeout(_STALL_S)
    # A message ends in a small packet, which the system would hold back for the peer's acknowledgement.
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    receive: Callable[[int], bytearray] = connection.recv
    meter = event.assoc.meter = _Meter()

    def receive_bounded(size: int) -> bytearray:
        meter.pending += size
        is_too_much = size > _MAX_READ_BYTES or meter.pending > _MAX_PENDING_BYTES
        try:
            data = bytearray() if is_too_much else receive(size)
        except OSError:  # broken, or silent for too long
            data = bytearray()
        if len(data) < size:
            raw.close()  # pynetdicom waits for the peer to do so
            raise ConnectionAbortedError
        return data

    connection.recv = receive_bounded
    # pynetdicom leaves a socket open that its peer has closed.
    event.assoc.bind(evt.EVT_CONN_CLOSE, lambda _: raw.close())


def store_handler(inbox: Inbox, on_stored: Callable[[], None]) -> Callable[[Any], int]:
    """Return what answers C-STORE requests: takes an image in and gives its status."""

    def handle(event: Any) -> int:
        data = event.encoded_dataset()
        try:
            inbox.take([data], instance=str(event.request.AffectedSOPInstanceUID))
        except UcadiError as error:
            return _STATUS.get(error.code, 0x0110)
        except OSError:  # the disk's, such as no space left
            return 0xA700
        finally:
            event.assoc.meter.pending -= len(data)
        event.assoc.has_stored = True
        on_stored()
        return 0x0000

    return handle


class _LazyTls(ssl.SSLContext):
    """Shakes hands when first read from, in the connection's own thread: a silent caller stops no other."""

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:  # type: ignore[override]
        """Wrap a socket without a word."""
        return super().wrap_socket(sock, **options, do_handshake_on_connect=False)


def server_tls(trust: Trust) -> ssl.SSLContext | None:
    """Return how others reach us encrypted: with our certificate; None without one.

    Args:
        trust: With ``authorities``, callers have to show a certificate that one of them signed.
    """
    if trust.certificate is None:
        return None
    context = _LazyTls(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trust.certificate, trust.key)
    if trust.authorities:
        context.load_verify_locations(trust.authorities)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class StorageServer:
    """Takes in images that others send. A context: it listens while entered.

    Args:
        inbox: Where images go; entered by the caller.
        address: Host and port to listen at; port 0 for any that is free.
        title: Our AE title; calls for another are refused.
        allow: Titles that may call; empty for any.
        tls: For encrypted connections; None for plain ones.
        on_stored: Called after each image, in a thread of its own.

    Raises:
        UcadiError: ``port-taken`` when entered and the port is in use.
    """

    def __init__(
        self,
        inbox: Inbox,
        address: tuple[str, int],
        title: str,
        *,
        allow: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
        on_stored: Callable[[], None] = lambda: None,
    ) -> None:
        self._address, self._tls = address, tls
        self._delivered = threading.Event()
        self._entity = new_entity(title)
        self._entity.maximum_associations = _MAX_ASSOCIATIONS
        self._entity.require_called_aet = True
        self._entity.require_calling_aet = list(allow)
        self._entity.add_supported_context(VERIFICATION)
        for context in AllStoragePresentationContexts:
            self._entity.add_supported_context(UID(context.abstract_syntax or ""), _SYNTAXES)
        self._handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, bound_connection),
            (evt.EVT_C_STORE, store_handler(inbox, on_stored)),
            (evt.EVT_CONN_CLOSE, self._note_end),
        ]

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def wait(self, seconds: float) -> bool:
        """Wait until a sender that has stored something hangs up; return whether one has."""
        return self._delivered.wait(seconds)

    def __enter__(self) -> "StorageServer":
        try:
            self._server: Any = self._entity.start_server(
                self._address, block=False, ssl_context=self._tls, evt_handlers=self._handlers
            )
        except OSError as error:
            raise UcadiError(
                "port-taken", f"Port {self._address[1]} cannot be listened at: {error.strerror or error}."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for association in self._entity.active_associations:
            if association.is_established:
                association.abort()
            elif connection := association.dul.socket:
                connection.close()  # there is nothing to abort yet, and pynetdicom would fail at it
        self._server.shutdown()

    def _note_end(self, event: Any) -> None:
        """Remember that a delivery has ended."""
        if getattr(event.assoc, "has_stored", False):
            self._delivered.set()
