# SPDX-License-Identifier: Apache-2.0
"""An invitation: one signed file with which one named site joins once, until a date.

It pins whom the site will trust from then on: the federation's authority and the coordinator's key. Who gets
hold of the file can apply in the site's place, which is why the fingerprint is compared before approval.
"""

import hashlib
import json
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from ucadi.crypto.identity import Identity, check_public_key, fingerprint, verify
from ucadi.enrolment.authority import public_key_of
from ucadi.errors import FederationError, NotAuthorizedError

__all__ = [
    "SITE_NAME",
    "Federation",
    "Invitation",
    "application_fingerprint",
    "check_expiry",
    "new_invitation",
    "read_invitation",
    "secret_hash",
]

SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
"""Names that a site can have: they stand in certificates, paths and commands."""

_FORMAT = "ucadi-invitation-1"
_PURPOSE = "invitation"
_MOST_BYTES = 64 * 1024
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Federation:
    """What everybody in a federation knows of it.

    Attributes:
        name: In plain words without blanks.
        host: Where the sites reach the coordinator: a name or an IPv4 address.
        port: Of the engine.
        api_port: Of the HTTPS interface.
        coordinator: The common name in the coordinator's certificate.
        authority: The certificate of the federation's authority, PEM.
        identity: The coordinator's Ed25519 public key, base64.
    """

    name: str
    host: str
    port: int
    api_port: int
    coordinator: str
    authority: str
    identity: str

    def __post_init__(self) -> None:
        for name in ("name", "coordinator"):
            if not isinstance(getattr(self, name), str) or not SITE_NAME.fullmatch(getattr(self, name)):
                raise ValueError(f"the federation's {name} is not of letters, digits, '-' and '_'")
        if not isinstance(self.host, str) or not _HOST.fullmatch(self.host):
            raise ValueError("the coordinator's host is no name or IPv4 address")
        for port in (self.port, self.api_port):
            if type(port) is not int or not 1 <= port <= 65535:
                raise ValueError("no port")
        x509.load_pem_x509_certificate(self.authority.encode())
        check_public_key(self.identity)


@dataclass(frozen=True)
class Invitation:
    """What the file says.

    Attributes:
        id: Tells invitations apart.
        site: The only name under which it can be used.
        secret: Proves that the applicant holds the file; the coordinator keeps its hash only.
        created: Seconds since 1970.
        expires: Seconds since 1970.
        federation: Whom the site will trust.
    """

    id: str
    site: str
    secret: str
    created: int
    expires: int
    federation: Federation

    def __repr__(self) -> str:
        return f"Invitation({self.id!r}, site={self.site!r})"


def new_invitation(
    federation: Federation, site: str, days: float, identity: Identity
) -> tuple[Invitation, dict[str, Any]]:
    """Return a new invitation, and the document that is handed over.

    Args:
        federation: As the site is to know it.
        site: Its name.
        days: How long the invitation can be used.
        identity: The coordinator's key, which signs.
    """
    now = int(time.time())
    invitation = Invitation(
        id=secrets.token_hex(8),
        site=site,
        secret=secrets.token_urlsafe(32),
        created=now,
        expires=now + round(days * 86400),
        federation=federation,
    )
    document = {"format": _FORMAT, **asdict(invitation)}
    return invitation, {**document, "signature": identity.sign(_PURPOSE, document)}


def read_invitation(path: Path) -> Invitation:
    """Read an invitation and check its signature, not its date.

    Raises:
        FederationError: ``invitation-invalid`` if it is damaged or altered.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise FederationError(
            "invitation-invalid", f"There is no file {path}.", cure="Check the path."
        ) from error
    if len(text) > _MOST_BYTES:
        raise FederationError("invitation-invalid", f"{path} is too long to be an invitation.")
    try:
        document = dict(json.loads(text))
        signature, kind = document.pop("signature"), document.pop("format")
        invitation = Invitation(**{**document, "federation": Federation(**document["federation"])})
        _check_types(invitation)
        verify(invitation.federation.identity, _PURPOSE, {"format": kind, **document}, signature)
        if kind != _FORMAT:
            raise ValueError(f"a format {kind!r:.40} is not known")
    except NotAuthorizedError as error:
        raise FederationError("invitation-invalid", f"{path} was altered after it was signed.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FederationError("invitation-invalid", f"{path} is not an invitation ({error}).") from error
    return invitation


def check_expiry(invitation: Invitation) -> None:
    """Return if an invitation can still be used, by this machine's clock.

    Raises:
        FederationError: ``invitation-expired``.
    """
    if time.time() >= invitation.expires:
        day = time.strftime("%Y-%m-%d %H:%M", time.gmtime(invitation.expires))
        raise FederationError("invitation-expired", f"The invitation could be used until {day} UTC.")


def application_fingerprint(federation: Federation, site: str, identity: str, tls_public_key: str) -> str:
    """Return what site and coordinator compare by phone.

    It covers both sides' keys: neither a stolen invitation nor an exchanged one gives the same digits at
    both ends.

    Args:
        federation: As this side knows it.
        site: The site's name.
        identity: The site's Ed25519 public key, base64.
        tls_public_key: The public key of the site's certificate request, PEM.
    """
    return fingerprint(
        {
            "federation": federation.name,
            "authority": public_key_of(federation.authority),
            "coordinator": federation.identity,
            "site": site,
            "identity": identity,
            "tls_public_key": tls_public_key,
        }
    )


def secret_hash(secret: str) -> str:
    """Return what the coordinator keeps of an invitation's secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _check_types(invitation: Invitation) -> None:
    """Refuse fields of another type; dataclasses take anything."""
    texts = (invitation.id, invitation.site, invitation.secret)
    if not all(isinstance(text, str) for text in texts) or not SITE_NAME.fullmatch(invitation.site):
        raise ValueError("a field is no text, or the site's name cannot be one")
    if type(invitation.created) is not int or type(invitation.expires) is not int:
        raise ValueError("a date is no number")
