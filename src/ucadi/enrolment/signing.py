# SPDX-License-Identifier: Apache-2.0
"""Requests that a site signs: what is covered, and how far it may be off.

TLS proves the coordinator to the site; the signature proves the site to the coordinator, through any proxy
that ends TLS on the way. It names the coordinator's key, so that it is good at no other.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ucadi.crypto.identity import Identity, verify
from ucadi.errors import NotAuthorizedError

__all__ = ["MOST_SKEW_S", "Signed", "read_headers", "sign_request", "verify_request"]

MOST_SKEW_S = 300
"""How far the clocks of site and coordinator may differ."""

_PURPOSE = "request"
_SITE, _TIME, _NONCE, _SIGNATURE = (f"x-ucadi-{name}" for name in ("site", "time", "nonce", "signature"))
_LONGEST = 200


@dataclass(frozen=True)
class Signed:
    """The headers of a signed request, as they came.

    Attributes:
        site: Who says that they made it.
        sent: When, by their clock, seconds since 1970.
        nonce: What makes it unique.
        signature: Over all that and the request.
    """

    site: str
    sent: int
    nonce: str
    signature: str


def sign_request(
    identity: Identity, site: str, coordinator: str, method: str, path: str, body: bytes
) -> dict[str, str]:
    """Return the headers that prove who makes a request.

    Args:
        identity: The site's key.
        site: Its name.
        coordinator: The coordinator's public key, base64.
        method: ``GET`` or ``POST``.
        path: With the query, from the first slash.
        body: What is sent.
    """
    sent, nonce = int(time.time()), secrets.token_hex(16)
    document = _document(site, coordinator, method, path, sent, nonce, body)
    signature = identity.sign(_PURPOSE, document)
    return {_SITE: site, _TIME: str(sent), _NONCE: nonce, _SIGNATURE: signature}


def read_headers(headers: Mapping[str, str]) -> Signed:
    """Return what a request says about its maker; nothing of it is proven yet.

    Raises:
        NotAuthorizedError: ``signature-invalid`` if something is missing.
    """
    try:
        site, sent, nonce, signature = (headers[name] for name in (_SITE, _TIME, _NONCE, _SIGNATURE))
        if max(map(len, (site, sent, nonce, signature))) > _LONGEST or not sent.isdecimal():
            raise ValueError("too long")
        return Signed(site, int(sent), nonce, signature)
    except (KeyError, ValueError) as error:
        raise NotAuthorizedError("signature-invalid", "The request is not signed.") from error


def verify_request(
    signed: Signed, public_key: str, coordinator: str, method: str, path: str, body: bytes
) -> None:
    """Return if the owner of a key made this request just now. Replays are the caller's to find.

    Raises:
        NotAuthorizedError: ``signature-invalid``, or ``clock-skewed`` if it is too old or from the future.
    """
    document = _document(signed.site, coordinator, method, path, signed.sent, signed.nonce, body)
    verify(public_key, _PURPOSE, document, signed.signature)
    skew_s = signed.sent - time.time()
    if abs(skew_s) > MOST_SKEW_S:
        raise NotAuthorizedError(
            "clock-skewed", f"The clock of {signed.site} is {skew_s:+.0f} s off the coordinator's."
        )


def _document(
    site: str, coordinator: str, method: str, path: str, sent: int, nonce: str, body: bytes
) -> dict[str, str | int]:
    """Return what is signed."""
    return {
        "site": site,
        "coordinator": coordinator,
        "method": method,
        "path": path,
        "time": sent,
        "nonce": nonce,
        "body": hashlib.sha256(body).hexdigest(),
    }
