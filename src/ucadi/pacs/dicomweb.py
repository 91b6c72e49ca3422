# SPDX-License-Identifier: Apache-2.0
"""Studies over DICOMweb: QIDO-RS to query, WADO-RS to pull, STOW-RS to send.

Queries go through dicomweb-client. Images do not: it holds whole messages in memory, writes each image anew
and does not notice a message that is cut short (docs/decisions/0008). Both use one session, which allows no
redirect, no endless answer and no unchecked certificate. What a server says is never quoted: it may hold a
patient's data.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from dicomweb_client import DICOMwebClient
from pydicom.uid import generate_uid

from ucadi.errors import ConfigError, DataError, NotAuthorizedError, UcadiError, UnreachableError
from ucadi.io.files import MAX_TOTAL_BYTES
from ucadi.pacs.dicom_json import ODD_ANSWER, failed_instances, match_of, stored_instances, uid_of
from ucadi.pacs.inbox import Inbox
from ucadi.pacs.multipart import MultipartBody, TruncatedError, boundary_of, read_parts
from ucadi.pacs.server import (
    MAX_MATCHES,
    Instance,
    Level,
    Match,
    OnProgress,
    Query,
    Rejected,
    Trust,
    is_loopback,
)

__all__ = ["Credentials", "DicomWeb"]

_CONNECT_S, _READ_S = 10.0, 60.0
_ATTEMPTS = 3
_BACKOFF_S = 0.5  # before the second attempt; doubles with each
_PASSING = (502, 503, 504)  # the server or a gateway is there, but not ready
_MAX_JSON_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**18
_BATCH_BYTES = 32 * 2**20  # of one message to the server
_BATCH_FILES = 100
_PAGE = 500  # matches asked for at a time
_HTTP_CONFLICT = 409  # STOW-RS: some or all images were not stored, and the answer tells which
_JSON = "application/dicom+json"
_ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as stored: no transcoding

_BROKEN = (requests.exceptions.ChunkedEncodingError, TruncatedError)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Credentials:
    """Who we are: a user with a password, or a bearer token, or nobody."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def __call__(self, request: Any) -> Any:
        """Put the credentials into a request. An object, even an empty one, keeps a netrc file out."""
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        elif self.user:
            pair = b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.headers["Authorization"] = f"Basic {pair}"
        return request


class DicomWeb:
    """A DICOMweb server. See `ucadi.pacs.server.Pacs` for the methods.

    Args:
        url: Root of the services, such as ``https://pacs.example.org/dicom-web``.
        credentials: Who we are.
        trust: Whom we trust.

    Raises:
        ConfigError: ``pacs-address`` for a URL that is none or that holds a password; ``pacs-insecure`` for
            plain HTTP to another machine.
    """

    def __init__(self, url: str, credentials: Credentials | None = None, trust: Trust | None = None) -> None:
        trust = trust or Trust()
        self._root = _check_url(url, trust).rstrip("/")
        host = urlsplit(url).hostname or ""
        self._place = f"The image server {host}"
        self._session = requests.Session()
        self._session.auth = credentials or Credentials()
        self._session.verify = str(trust.authorities) if trust.authorities else True
        if trust.certificate:
            self._session.cert = (str(trust.certificate), str(trust.key or trust.certificate))
        # Of the environment, only proxies count: its certificates would outweigh those named here. None for
        # this machine, as the way there may be unencrypted.
        self._session.trust_env = False
        self._session.proxies = {} if is_loopback(host) else requests.utils.get_environ_proxies(url)
        self._session.max_redirects = 0
        self._session.hooks = {"response": [self._check_response]}
        self._client = DICOMwebClient(
            self._root, self._session, timeout=(_CONNECT_S, _READ_S), permissive_uid=True
        )
        self._client.set_http_retry_params(retry=False)  # as below, after broken connections too

    def check(self) -> None:
        """Ask for a study that nobody has."""
        self.query(Query(study=generate_uid()))

    def query(self, query: Query) -> tuple[Match, ...]:
        """Return the studies, or the series of one study, that match."""
        filters = {"PatientID": query.patient_id, "StudyDate": query.study_date}
        if query.level is Level.SERIES:
            filters["Modality"] = query.modality
            fields = ["SeriesDescription", "NumberOfSeriesRelatedInstances"]
        else:
            filters |= {"ModalitiesInStudy": query.modality, "StudyInstanceUID": query.study}
            fields = ["StudyDescription", "ModalitiesInStudy", "NumberOfStudyRelatedInstances"]

        def ask(offset: int) -> Any:
            page: dict[str, Any] = {
                "limit": _PAGE,
                "offset": offset,
                "fields": fields,
                "search_filters": {name: value for name, value in filters.items() if value},
            }
            if query.level is Level.SERIES:
                return self._client.search_for_series(query.study, **page)
            return self._client.search_for_studies(**page)

        key = "SeriesInstanceUID" if query.level is Level.SERIES else "StudyInstanceUID"
        with self._asking():
            return tuple(match_of(item, query) for item in self._all_pages(ask, key).values())

    def pull(self, study: str, series: str, inbox: Inbox, on_progress: OnProgress) -> None:
        """Bring a study or a series in, one message per series, and make sure that nothing is missing."""
        listed = [series] if series else [m.series for m in self.query(Query(Level.SERIES, study=study))]
        expected = {key: self._instances(study, key) for key in listed}
        wanted = {uid for uids in expected.values() for uid in uids}
        if not wanted:
            raise DataError("pacs-no-match", f"{self._place} has no image of that UID.")
        for key in listed:
            if expected[key]:
                self._retry(partial(self._pull_series, study, key, inbox, len(wanted), on_progress))
        if missing := len(wanted - inbox.received):
            raise UcadiError(
                "pacs-incomplete", f"{missing} of {len(wanted)} images of {self._place} did not come."
            )

    def send(self, instances: Sequence[Instance], on_progress: OnProgress) -> tuple[Rejected, ...]:
        """Store files, several in a message."""
        rejected: list[Rejected] = []
        done = 0
        for batch in _batches(instances):
            rejected += self._send_batch(batch)
            done += len(batch)
            on_progress(done, len(instances))
        return tuple(rejected)

    def _instances(self, study: str, series: str) -> set[str]:
        """Return the SOP instance UIDs of a series."""

        def ask(offset: int) -> Any:
            return self._client.search_for_instances(study, series, limit=_PAGE, offset=offset)

        return set(self._all_pages(ask, "SOPInstanceUID"))

    def _all_pages(self, ask: Callable[[int], Any], key: str) -> dict[str, dict[str, Any]]:
        """Ask page by page until one brings nothing new, as a server may ignore where a page should begin."""
        found: dict[str, dict[str, Any]] = {}

        def ask_on() -> dict[str, dict[str, Any]]:
            with self._asking():
                page = ask(len(found))
                return {uid: item for item in page if (uid := uid_of(item, key)) not in found}

        while len(found) < MAX_MATCHES and (new := self._retry(ask_on)):
            found |= new
        return found

    def _pull_series(
        self, study: str, series: str, inbox: Inbox, total: int, on_progress: OnProgress
    ) -> None:
        """Bring one series in."""
        url = f"{self._root}/studies/{study}/series/{series}"
        with (
            self._asking(),
            self._session.get(
                url, headers={"Accept": _ANY_SYNTAX}, stream=True, timeout=(_CONNECT_S, _READ_S)
            ) as response,
        ):
            for part in self._parts(response):
                inbox.take(part)
                on_progress(len(inbox), total)

    def _parts(self, response: Any) -> Iterator[Iterator[bytes]]:
        """Yield the images of an answer."""
        content_type = response.headers.get("Content-Type", "")
        kind = content_type.partition(";")[0].strip().lower()
        blocks = _capped(response.iter_content(_BLOCK_BYTES), MAX_TOTAL_BYTES)
        if kind == "multipart/related" and (boundary := boundary_of(content_type)):
            yield from read_parts(blocks, boundary)
        elif kind == "application/dicom":  # against the standard, but met: one image without a wrapping
            yield blocks
        else:
            raise ValueError("neither a multipart message nor an image")

    def _send_batch(self, batch: Sequence[Instance]) -> list[Rejected]:
        """Store some files in one message."""
        body = MultipartBody([instance.path for instance in batch])
        headers = {"Content-Type": body.content_type, "Accept": _JSON}
        try:
            with self._asking():
                response = self._session.post(
                    f"{self._root}/studies", data=body, headers=headers, timeout=(_CONNECT_S, _READ_S)
                )
                answer = response.json() if _JSON in response.headers.get("Content-Type", "") else {}
                reasons = failed_instances(answer)
                stored = stored_instances(answer)
        except UnreachableError:
            self.check()  # a server may close the connection on a stranger before it has said why
            raise
        if response.ok and not answer:
            return []
        silent = "it stored it not and gave no reason"
        return [
            Rejected(instance.path, reasons.get(instance.sop_instance, silent))
            for instance in batch
            if instance.sop_instance in reasons or instance.sop_instance not in stored
        ]

    def _retry(self, work: Callable[[], Result]) -> Result:
        """Do again what failed on the way; safe for what only reads."""
        for attempt in range(_ATTEMPTS - 1):
            try:
                return work()
            except UnreachableError as error:
                if error.code != "pacs-unreachable":
                    raise
                time.sleep(_BACKOFF_S * 2**attempt)
        return work()

    def _check_response(self, response: Any, **request: Any) -> None:
        """Turn a failed answer into an error, before anything of it is read; keep an answer from growing."""
        if error := self._refusal(response.status_code, response.request.method):
            response.close()
            raise error
        if not request.get("stream"):
            response.raw = _CappedBody(response.raw)

    def _refusal(self, status: int, method: str) -> UcadiError | None:
        """Return the error that a status means; None for none."""
        if status in (401, 403, 407):
            return NotAuthorizedError("pacs-not-authorized", f"{self._place} refused access (HTTP {status}).")
        if status == 404:
            return DataError("pacs-no-match", f"{self._place} has nothing at that address (HTTP 404).")
        if status in _PASSING:
            return UnreachableError("pacs-unreachable", f"{self._place} is not ready (HTTP {status}).")
        is_refused_store = status == _HTTP_CONFLICT and method == "POST"
        if 200 <= status < 300 or is_refused_store:
            return None
        moved = ": it sends elsewhere; give the final URL" if 300 <= status < 400 else ""
        return UcadiError("pacs-answer", f"{self._place} failed (HTTP {status}{moved}).")

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn whatever goes wrong with a server into an error that quotes nothing of it."""
        try:
            yield
        except UcadiError:
            raise
        except requests.exceptions.SSLError as error:
            raise UnreachableError(
                "pacs-certificate", f"{self._place} did not prove who it is: the TLS handshake failed."
            ) from error
        except (requests.ConnectionError, requests.Timeout, *_BROKEN) as error:
            raise UnreachableError(
                "pacs-unreachable",
                f"{self._place} did not answer, or not to the end ({type(error).__name__}).",
            ) from error
        except (requests.RequestException, *ODD_ANSWER) as error:
            raise UcadiError(
                "pacs-answer", f"{self._place} answered, but not in DICOMweb ({type(error).__name__})."
            ) from error


def _check_url(url: str, trust: Trust) -> str:
    """Return a URL that may be used as it is."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError("pacs-address", "The URL is not one of a DICOMweb service.")
    if parts.username or parts.password:
        raise ConfigError(
            "pacs-address",
            "The URL holds a user or a password.",
            cure="Give --user and --password-file; other users of this machine see its command lines.",
        )
    if parts.scheme == "http" and not (is_loopback(parts.hostname) or trust.allow_plain):
        raise ConfigError("pacs-insecure", f"The way to {parts.hostname} is not encrypted.")
    return url


def _batches(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Yield instances in groups that fit a message."""
    batch: list[Instance] = []
    size = 0
    for instance in instances:
        more = instance.path.stat().st_size
        if batch and (size + more > _BATCH_BYTES or len(batch) == _BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(instance)
        size += more
    yield batch


def _capped(blocks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Pass a message on, but not beyond a limit."""
    size = 0
    for block in blocks:
        size += len(block)
        if size > limit:
            raise DataError("pacs-too-large", f"An answer of more than {limit:,} bytes came.")
        yield block


class _CappedBody:
    """The body of an answer that is read at once: stands before urllib3's and counts what comes."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def stream(self, size: int, **options: Any) -> Iterator[bytes]:
        """Yield the body, decompressed, up to the limit."""
        try:
            yield from _capped(self._body.stream(size, **options), _MAX_JSON_BYTES)
        finally:
            self._body.close()  # read to the end, the connection is no more its own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)
