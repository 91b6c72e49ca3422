# SPDX-License-Identifier: Apache-2.0
"""A site's side of the coordinator's HTTPS interface.

The only authority that is trusted is the one of the invitation, whatever this machine trusts otherwise.
Proxies are taken from the environment, passwords from nowhere.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from ucadi.crypto.identity import Identity
from ucadi.enrolment.signing import sign_request
from ucadi.errors import (
    CODES,
    FederationError,
    NotAuthorizedError,
    UcadiError,
    UnreachableError,
)

__all__ = ["ApiClient"]

_CONNECT_S = 10.0
_READ_S = 60.0
_MOST_BYTES = 16 * 2**20
_PIECE = 64 * 1024
_NOT_AUTHORIZED = {401, 403}


class ApiClient:
    """Makes requests to one coordinator.

    Args:
        host: Where the coordinator is reached.
        port: Of its HTTPS interface.
        authority: PEM file of the federation's authority.
        coordinator: The coordinator's public key, base64.
        site: The name under which requests are made.
        identity: The site's key, which signs them.
    """

    def __init__(
        self, host: str, port: int, authority: Path, coordinator: str, site: str, identity: Identity
    ) -> None:
        self._base = f"https://{host}:{port}"
        self._authority = str(authority)
        self._coordinator = coordinator
        self._site = site
        self._identity = identity
        self._session = requests.Session()
        self._session.mount("https://", HTTPAdapter(max_retries=0))
        self._session.auth = _no_auth  # else a password of ~/.netrc would be sent

    def __enter__(self) -> "ApiClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def get(self, path: str) -> Mapping[str, Any]:
        """Make a signed request for a JSON object.

        Args:
            path: From the first slash, with the query.

        Raises:
            UnreachableError: If there is no answer.
            NotAuthorizedError: ``coordinator-unproven`` if the other side is not the coordinator, or the code
                with which it refused.
            FederationError: Another code with which the coordinator refused, or ``message-invalid``.
        """
        return _document(self.send("GET", path, b""))

    def post(self, path: str, document: Mapping[str, Any], *, is_signed: bool = True) -> Mapping[str, Any]:
        """Send a JSON object and return the answer's.

        Raises:
            UcadiError: As `get`.
        """
        return _document(self.send("POST", path, json.dumps(document).encode(), is_signed=is_signed))

    def send(
        self, method: str, path: str, body: bytes, *, is_signed: bool = True, most_bytes: int = _MOST_BYTES
    ) -> bytes:
        """Make a request and return the answer's bytes.

        Args:
            method: ``GET`` or ``POST``.
            path: From the first slash, with the query.
            body: What is sent.
            is_signed: Whether to prove who asks.
            most_bytes: A longer answer is refused.

        Raises:
            UcadiError: As `get`.
        """
        with self.open(method, path, body, is_signed=is_signed) as answer:
            content = bytearray()
            try:
                for piece in answer.iter_content(_PIECE):
                    content += piece
                    if len(content) > most_bytes:
                        raise FederationError("message-invalid", f"The answer to {path} is too long.")
            except requests.RequestException as error:
                raise _unreachable(self._base, error) from error
            if not answer.ok:
                raise _refusal(answer.status_code, bytes(content))
            return bytes(content)

    def open(self, method: str, path: str, body: bytes = b"", *, is_signed: bool = True) -> requests.Response:
        """Make a request and return the answer, its content still to come; to be closed by the caller.

        Raises:
            UnreachableError: If there is no answer.
            NotAuthorizedError: ``coordinator-unproven``.
        """
        headers = {"content-type": "application/json"} if body else {}
        if is_signed:
            headers |= sign_request(self._identity, self._site, self._coordinator, method, path, body)
        try:
            return self._session.request(
                method,
                self._base + path,
                data=body or None,
                headers=headers,
                # With each request: a session's own value yields to REQUESTS_CA_BUNDLE.
                verify=self._authority,
                timeout=(_CONNECT_S, _READ_S),
                allow_redirects=False,
                stream=True,
            )
        except requests.exceptions.ProxyError as error:
            raise UnreachableError(
                "unreachable",
                f"The proxy does not lead to {self._base}.",
                cure="Check HTTPS_PROXY, or list the coordinator's host in NO_PROXY.",
            ) from error
        except requests.exceptions.SSLError as error:
            raise NotAuthorizedError(
                "coordinator-unproven", f"{self._base} has no certificate of this federation for its name."
            ) from error
        except (requests.RequestException, OSError) as error:
            raise _unreachable(self._base, error) from error


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Add no password."""
    return request


def _document(content: bytes) -> Mapping[str, Any]:
    """Return an answer's JSON object."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FederationError("message-invalid", "The coordinator's answer is not JSON.") from error
    if not isinstance(document, dict):
        raise FederationError("message-invalid", "The coordinator's answer is not a JSON object.")
    return document


def _refusal(status: int, content: bytes) -> UcadiError:
    """Return the error that the coordinator answered; only registered codes are believed."""
    try:
        code = json.loads(content)["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        code = None
    if not isinstance(code, str) or code not in CODES:
        return UnreachableError("unreachable", f"The coordinator, or a proxy before it, answered {status}.")
    words = f"The coordinator refused: {CODES[code].public_message}"
    if status in _NOT_AUTHORIZED:
        return NotAuthorizedError(code, words)
    return FederationError(code, words)


def _unreachable(base: str, error: Exception) -> UnreachableError:
    """Return the error of a request without an answer; the library's words name internals."""
    return UnreachableError("unreachable", f"{base} does not answer ({type(error).__name__}).")
