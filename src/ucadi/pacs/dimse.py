# SPDX-License-Identifier: Apache-2.0
"""Studies over DIMSE, the older protocol that every PACS speaks.

C-ECHO to greet, C-FIND to query, C-STORE to send, C-GET or C-MOVE to pull.
"""

import socket
import ssl
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import build_context, build_role, evt
from pynetdicom.presentation import PresentationContext

from ucadi.errors import DataError, NotAuthorizedError, UcadiError, UnreachableError
from ucadi.io.elements import inflated
from ucadi.io.files import READ_ERRORS
from ucadi.pacs.dimse_contexts import by_contexts, storage_contexts
from ucadi.pacs.dimse_store import (
    MAX_PDU_BYTES,
    VERIFICATION,
    StorageServer,
    bound_connection,
    new_entity,
    server_tls,
    store_handler,
)
from ucadi.pacs.inbox import Inbox
from ucadi.pacs.peer import Peer
from ucadi.pacs.server import (
    MAX_MATCHES,
    Instance,
    Level,
    Match,
    OnProgress,
    Query,
    Rejected,
    Trust,
    clean_text,
    is_uid,
    status_text,
)

__all__ = ["Dimse"]

_FIND, _MOVE, _GET = (UID(f"1.2.840.10008.5.1.4.1.2.2.{k}") for k in (1, 2, 3))  # all from the study down
_FOREIGN_TITLES = (3, 7)  # reasons of a rejection: our title, or theirs, is not known (PS3.8 section 9.3.4)
_NO_DESTINATION = 0xA801
_PENDING = (0xFF00, 0xFF01)


class Dimse:
    """A PACS. See `ucadi.pacs.server.Pacs` for the methods.

    Args:
        peer: The PACS.
        title: Our own AE title.
        trust: Whom we trust, for TLS.
        move_port: Our port for images to come in by C-MOVE; None to ask for them by C-GET instead, over the
            same connection.
    """

    def __init__(
        self, peer: Peer, title: str, trust: Trust | None = None, *, move_port: int | None = None
    ) -> None:
        self._peer, self._title, self._move_port = peer, title, move_port
        self._trust = trust or Trust()
        self._place = f"The image server {peer.host}:{peer.port}"

    def check(self) -> None:
        """Send a C-ECHO."""
        with self._associate([build_context(VERIFICATION)]) as association:
            self._accept(association.send_c_echo())

    def query(self, query: Query) -> tuple[Match, ...]:
        """Return the studies, or the series of one study, that match."""
        wanted = _identifier(query)
        found: list[Match] = []
        with self._associate([build_context(_FIND)]) as association:
            for status, item in association.send_c_find(wanted, _FIND):
                if not self._is_pending(status):
                    break
                found.append(self._match(item, query))
                if len(found) == MAX_MATCHES:
                    association.abort()
                    break
        return tuple(found)

    def pull(self, study: str, series: str, inbox: Inbox, on_progress: OnProgress) -> None:
        """Bring a study or a series in, by C-GET or by C-MOVE."""
        total = self._count(study, series)
        wanted = Dataset()
        wanted.QueryRetrieveLevel = "SERIES" if series else "STUDY"
        wanted.StudyInstanceUID = study
        if series:
            wanted.SeriesInstanceUID = series

        def tell() -> None:
            on_progress(len(inbox), total)

        if self._move_port is None:
            sent = self._get(wanted, inbox, tell)
        else:
            sent = self._move(wanted, inbox, tell, self._move_port)
        if not (sent or len(inbox)):
            raise self._nothing()
        if missing := max(sent, total) - len(inbox):
            inbox.check_room()  # when we had none, the fault is ours
            raise UcadiError(
                "pacs-incomplete",
                f"{missing} of {max(sent, total)} images of {self._place} did not come, or not as asked for.",
            )

    def send(self, instances: Sequence[Instance], on_progress: OnProgress) -> tuple[Rejected, ...]:
        """Store files as they are; nothing is compressed or decompressed on the way."""
        rejected: list[Rejected] = []
        done = 0
        for group, contexts in by_contexts(instances):
            with self._associate(contexts) as association:
                accepted = {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
                for instance in group:
                    if (instance.sop_class, instance.transfer_syntax) in accepted:
                        reason = self._store(association, instance)
                    else:
                        reason = "it does not take this kind of image, or its compression"
                    if reason:
                        rejected.append(Rejected(instance.path, reason))
                    done += 1
                    on_progress(done, len(instances))
        return tuple(rejected)

    def _count(self, study: str, series: str) -> int:
        """Return how many images there are, 0 when the server does not say; raise when there is nothing."""
        if series:
            found = [m for m in self.query(Query(Level.SERIES, study=study)) if m.series == series]
        else:
            found = [m for m in self.query(Query(study=study)) if m.study == study]
        if not found:
            raise self._nothing()
        return found[0].images or 0

    def _nothing(self) -> DataError:
        """Return the error for a UID that the server does not have."""
        return DataError("pacs-no-match", f"{self._place} has no image of that UID.")

    def _store(self, association: Any, instance: Instance) -> str:
        """Send one file and return why it was not taken; empty when it was."""
        try:
            with instance.path.open("rb") as file:
                inflated(file)  # refuses what pynetdicom would expand without a limit
        except (*READ_ERRORS, MemoryError) as error:
            return f"the file cannot be sent ({type(error).__name__})"
        try:
            status = association.send_c_store(instance.path)
        except (AttributeError, ValueError) as error:
            return f"the file cannot be sent ({type(error).__name__})"
        code = self._code(status)
        return "" if code == 0 or code & 0xF000 == 0xB000 else status_text(code)

    def _get(self, wanted: Dataset, inbox: Inbox, tell: Any) -> int:
        """Ask for images over the same connection and return how many were announced."""
        model = _GET
        contexts = storage_contexts()
        roles = [build_role(uid, scp_role=True) for uid in {str(c.abstract_syntax) for c in contexts}]
        handlers = [(evt.EVT_C_STORE, store_handler(inbox, tell))]
        with self._associate([build_context(model), *contexts], roles, handlers) as association:
            return self._follow(association.send_c_get(wanted, model))

    def _move(self, wanted: Dataset, inbox: Inbox, tell: Any, port: int) -> int:
        """Have images sent to a port of ours and return how many were announced."""
        model = _MOVE
        with self._associate([build_context(model)]) as association:
            # Only the way that leads to the PACS is listened at.
            address = association.requestor.address_info.address
            tls = server_tls(self._trust) if self._peer.is_encrypted else None
            with StorageServer(inbox, (address, port), self._title, tls=tls, on_stored=tell):
                return self._follow(association.send_c_move(wanted, self._title, model))

    def _follow(self, answers: Iterable[tuple[Dataset, Dataset | None]]) -> int:
        """Follow a retrieval to its end and return of how many images it told."""
        sent = 0
        for status, _ in answers:
            counts = ("Completed", "Failed", "Warning", "Remaining")
            told = [int(status.get(f"NumberOf{name}Suboperations") or 0) for name in counts]
            sent = max(sent, sum(told))
            code = self._code(status)
            if code == _NO_DESTINATION:
                raise UcadiError(
                    "pacs-answer",
                    f"{self._place} does not know where {self._title} is.",
                    cure=f"Enter {self._title} with this machine's address and port at the PACS.",
                )
            # That some images failed shows in the counts.
            if code not in _PENDING and not (sent and code >> 8 in (0xA7, 0xB0)):
                self._accept(status)
        return sent

    def _match(self, item: Dataset | None, query: Query) -> Match:
        """Return a match, or refuse an answer that is none."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom's quote values
                return _match(item or Dataset(), query)
        except READ_ERRORS as error:
            raise UcadiError(
                "pacs-answer", f"{self._place} answered with a match that cannot be read."
            ) from error

    @contextmanager
    def _associate(
        self,
        contexts: list[PresentationContext],
        roles: list[Any] | None = None,
        handlers: Sequence[Any] = (),
    ) -> Iterator[Any]:
        """Open a connection for some services and close it in the end."""
        entity = new_entity(self._title)
        connected: list[Any] = []
        tls = (_client_tls(self._trust), self._peer.host) if self._peer.is_encrypted else None
        association = entity.associate(
            self._address(),
            self._peer.port,
            contexts,
            self._peer.title,
            MAX_PDU_BYTES,
            roles,
            tls_args=tls,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, bound_connection),
                (evt.EVT_CONN_OPEN, connected.append),
                *handlers,
            ],
        )
        if not association.is_established:
            raise self._closed_door(association, is_connected=bool(connected))
        try:
            yield association
        except BaseException:
            association.abort()  # answers may still be under way
            raise
        if association.is_established:
            association.release()

    def _address(self) -> str:
        """Return the peer's numeric address."""
        try:
            found = socket.getaddrinfo(self._peer.host, self._peer.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UnreachableError("pacs-unreachable", f"{self._place} has no known address.") from error
        return str(found[0][4][0])

    def _closed_door(self, association: Any, *, is_connected: bool) -> UcadiError:
        """Return why there is no association."""
        answer = association.acceptor.primitive
        if association.is_rejected and answer is not None:
            if answer.result_source == 1 and answer.diagnostic in _FOREIGN_TITLES:
                return NotAuthorizedError(
                    "pacs-not-authorized",
                    f"{self._place} does not know the title {self._title} or {self._peer.title}.",
                )
            return UnreachableError("pacs-unreachable", f"{self._place} takes no calls now.")
        if association.is_established or is_connected:
            return UnreachableError(
                "pacs-unreachable", f"{self._place} hung up, or offers none of the services."
            )
        hint = " or its certificate is not trusted" if self._peer.is_encrypted else ""
        return UnreachableError("pacs-unreachable", f"{self._place} does not answer{hint}.")

    def _code(self, status: Dataset) -> int:
        """Return a status; raise when the connection broke and there is none."""
        if "Status" not in status:
            raise UnreachableError("pacs-unreachable", f"{self._place} broke off the connection.")
        return int(status.Status)

    def _accept(self, status: Dataset) -> None:
        """Raise unless a request succeeded."""
        if code := self._code(status):
            raise UcadiError("pacs-answer", f"{self._place} refused the request: {status_text(code)}.")

    def _is_pending(self, status: Dataset) -> bool:
        """Return whether more answers follow; raise when the request failed."""
        is_pending = self._code(status) in _PENDING
        if not is_pending:
            self._accept(status)
        return is_pending


def _client_tls(trust: Trust) -> ssl.SSLContext:
    """Return how we reach others encrypted: their certificate is checked, ours is shown when there is one."""
    context = ssl.create_default_context(cafile=trust.authorities)
    if trust.certificate:
        context.load_cert_chain(trust.certificate, trust.key)
    return context


def _identifier(query: Query) -> Dataset:
    """Return what a C-FIND asks: values to match, and empty elements to be told."""
    out = Dataset()
    out.SpecificCharacterSet = "ISO_IR 192"
    out.QueryRetrieveLevel = query.level.upper()
    out.StudyInstanceUID = query.study
    out.PatientID, out.StudyDate = query.patient_id, query.study_date
    if query.level is Level.SERIES:
        out.Modality = query.modality
        out.SeriesInstanceUID = out.SeriesDescription = ""
        out.NumberOfSeriesRelatedInstances = None
    else:
        out.ModalitiesInStudy, out.StudyDescription = query.modality, ""
        out.NumberOfStudyRelatedInstances = None
    return out


def _match(item: Dataset, query: Query) -> Match:
    """Return a study or series of a C-FIND's answer."""
    is_series = query.level is Level.SERIES
    kind = "Series" if is_series else "Study"
    modality = item.get("Modality" if is_series else "ModalitiesInStudy") or ""
    count = item.get(f"NumberOf{kind}RelatedInstances")
    study = clean_text(item.get("StudyInstanceUID")) or query.study
    series = clean_text(item.get("SeriesInstanceUID")) if is_series else ""
    if not is_uid(study) or (is_series and not is_uid(series)):
        raise ValueError("no UID")
    return Match(
        study=study,
        series=series,
        patient_id=clean_text(item.get("PatientID")),
        study_date=clean_text(item.get("StudyDate")),
        modality=clean_text(modality if isinstance(modality, str) else "/".join(modality)),
        description=clean_text(item.get(f"{kind}Description")),
        images=None if count is None else int(count),
    )
