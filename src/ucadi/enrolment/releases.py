# SPDX-License-Identifier: Apache-2.0
"""Released models over the coordinator's HTTPS interface: routes at one end, a download at the other.

Files travel in pieces, each one a signed request, so that a download goes on where a broken connection ended
it. Nothing that comes is trusted here: the release's own signed statement is checked by whoever installs it.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from ucadi.enrolment.api import SignedSite
from ucadi.enrolment.client import ApiClient
from ucadi.errors import FederationError, UnreachableError
from ucadi.logs import event, get_logger

__all__ = ["PIECE_BYTES", "ReleaseDownload", "ReleaseShelf", "list_releases", "release_routes"]

_LOG = get_logger("enrolment.releases")

PIECE_BYTES = 8 * 2**20
"""How much of a file one answer holds; a shorter piece is the last one."""

_PAUSES_S = (1.0, 2.0, 5.0, 15.0, 30.0)
_PATH = "/v1/releases"


@runtime_checkable  # for the type checks at test time
class ReleaseShelf(Protocol):
    """A coordinator's releases, as far as sites may see them."""

    def listing(self) -> Mapping[str, Any]:
        """Return all releases and which one is current."""

    def file(self, name: str, file: str) -> Path:
        """Return where a file of a release is; raise `UcadiError` for all that is no such file."""


def release_routes(shelf: ReleaseShelf) -> APIRouter:
    """Return the routes by which approved sites list and download releases."""
    router = APIRouter(prefix=_PATH)

    @router.get("")
    def listing(site: SignedSite) -> Response:
        return JSONResponse(dict(shelf.listing()))

    @router.get("/{name}/{file}")
    def piece(site: SignedSite, name: str, file: str, offset: str = "0") -> Response:
        if not (offset.isascii() and offset.isdigit() and len(offset) <= 15):
            raise FederationError("message-invalid", f"{site.name} asks from {offset[:20]!r} on.")
        path = shelf.file(name, file)
        if offset == "0":
            event(_LOG, "release file requested", site=site.name, release=name, file=file)
        return Response(_read(path, int(offset)), media_type="application/octet-stream")

    return router


def list_releases(client: ApiClient) -> Mapping[str, Any]:
    """Ask the coordinator for its releases.

    Raises:
        UcadiError: As `ApiClient.get`.
    """
    return client.get(_PATH)


class ReleaseDownload:
    """The files of a release at the coordinator.

    Args:
        client: Asks in a site's name.
        name: The release's name.
        pauses_s: How long to wait before each further try when the connection breaks.
    """

    def __init__(self, client: ApiClient, name: str, pauses_s: Sequence[float] = _PAUSES_S) -> None:
        self._client = client
        self._name = name
        self._pauses_s = pauses_s

    def names(self) -> None:
        """Nothing is known beforehand: only what the statement names is asked for."""

    def blocks(self, name: str) -> Iterator[bytes]:
        """Return a file piece by piece.

        Raises:
            UcadiError: As `ApiClient.get`, after all tries.
        """
        offset = 0
        while True:
            piece = self._piece(name, offset)
            yield piece
            offset += len(piece)
            if len(piece) < PIECE_BYTES:
                return

    def _piece(self, name: str, offset: int) -> bytes:
        """Ask for one piece, again after a pause when the connection breaks."""
        path = f"{_PATH}/{quote(self._name, safe='')}/{quote(name, safe='')}?offset={offset}"
        for pause_s in self._pauses_s:
            try:
                return self._client.send("GET", path, b"", most_bytes=PIECE_BYTES)
            except UnreachableError as error:
                event(_LOG, "download interrupted", file=name, offset=offset, detail=error.detail)
                time.sleep(pause_s)
        return self._client.send("GET", path, b"", most_bytes=PIECE_BYTES)


def _read(path: Path, offset: int) -> bytes:
    """Return a piece of a plain file; links are not followed."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)
