# SPDX-License-Identifier: Apache-2.0
"""What a site's certificate says: whose it is, who signed it, until when, and whether the key is its own."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from ucadi.errors import NotAuthorizedError

__all__ = ["ChainFacts", "issuer_of", "read_chain"]


@dataclass(frozen=True)
class ChainFacts:
    """A certificate, its key and the authority that should have signed it.

    Attributes:
        name: The common name that the certificate states.
        not_before: When it becomes valid, in UTC.
        not_after: When it ends, in UTC.
        authority_ends: When the authority's own certificate ends, in UTC.
        authority_fingerprint: SHA-256 of the authority's certificate in hexadecimal.
        is_signed: Whether the authority signed it.
        is_key_right: Whether the private key is that of the certificate.
    """

    name: str
    not_before: datetime
    not_after: datetime
    authority_ends: datetime
    authority_fingerprint: str
    is_signed: bool
    is_key_right: bool


def read_chain(authority: Path, certificate: Path, key: Path) -> ChainFacts:
    """Read a certificate with its authority and its private key, all PEM files.

    Raises:
        NotAuthorizedError: If one of them is missing or cannot be read; names the file.
    """
    root, own = _certificate(authority), _certificate(certificate)
    try:
        own.verify_directly_issued_by(root)
        is_signed = True
    except (InvalidSignature, ValueError, TypeError):
        is_signed = False
    names = own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return ChainFacts(
        name=str(names[0].value) if names else "",
        not_before=own.not_valid_before_utc,
        not_after=own.not_valid_after_utc,
        authority_ends=root.not_valid_after_utc,
        authority_fingerprint=root.fingerprint(hashes.SHA256()).hex(),
        is_signed=is_signed,
        is_key_right=_public_bytes(own) == _key_bytes(key),
    )


def issuer_of(der: bytes) -> str:
    """Return who signed a certificate that came: tells a proxy that opens TLS from a coordinator."""
    return x509.load_der_x509_certificate(der).issuer.rfc4514_string()


def _certificate(path: Path) -> x509.Certificate:
    """Read one certificate."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise NotAuthorizedError("not-authorized", f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise NotAuthorizedError("not-authorized", f"{path} holds no certificate.") from error


def _public_bytes(certificate: x509.Certificate) -> bytes:
    """Return a certificate's public key."""
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _key_bytes(path: Path) -> bytes:
    """Return the public half of a private key."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise NotAuthorizedError("not-authorized", f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise NotAuthorizedError(
            "not-authorized", f"{path} holds no private key without password."
        ) from error
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
