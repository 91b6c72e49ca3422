# SPDX-License-Identifier: Apache-2.0
"""The federation's own certificate authority, and the requests that it answers.

Certificates are of the kind that NVIDIA FLARE's ``nvflare cert approve`` makes: RSA keys, the name as common
name, the organization, for the driver its role as unstructured name. Nothing but the public key is taken
from a request: names, uses and dates are the authority's.
"""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ucadi.crypto.identity import read_secret, write_secret
from ucadi.errors import ConfigError, FederationError

__all__ = [
    "Authority",
    "CertificateUse",
    "check_request",
    "load_tls_key",
    "make_request",
    "make_tls_key",
    "public_key_of",
    "public_pem",
]

_KEY_BITS = 3072
_MOST_KEY_BITS = 8192  # checking larger ones takes long, and nobody needs them
_AUTHORITY_DAYS = 3650
_DAYS = 1095
_BACKDATED = datetime.timedelta(hours=1)  # clocks differ
_ROLE_OF_DRIVER = "lead"


class CertificateUse(StrEnum):
    """What a certificate is good for."""

    COORDINATOR = "coordinator"
    SITE = "site"
    DRIVER = "driver"
    API = "api"


@dataclass(frozen=True)
class Authority:
    """The key with which the federation signs its members' certificates.

    Only the commands that admit a site need it; the running coordinator does not.
    """

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate

    def __repr__(self) -> str:
        return f"Authority({_common_name(self.certificate.subject)!r})"

    @classmethod
    def make(cls, folder: Path, federation: str) -> "Authority":
        """Make ``authority.key`` and ``authority.crt`` in a folder.

        Raises:
            ConfigError: ``output-exists``.
        """
        key = make_tls_key(folder / "authority.key")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, federation)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            _builder(name, name, key.public_key(), key, now, now + datetime.timedelta(days=_AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_authority=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_secret(folder / "authority.crt", certificate.public_bytes(Encoding.PEM))
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """Read both files.

        Raises:
            ConfigError: ``key-missing``, ``key-exposed`` or ``key-invalid``.
        """
        key = load_tls_key(folder / "authority.key")
        try:
            certificate = x509.load_pem_x509_certificate((folder / "authority.crt").read_bytes())
        except ValueError as error:
            raise ConfigError("key-invalid", f"{folder / 'authority.crt'} is no certificate.") from error
        if certificate.public_key() != key.public_key():
            raise ConfigError("key-invalid", f"{folder / 'authority.key'} is not the key of authority.crt.")
        return cls(key, certificate)

    @property
    def pem(self) -> str:
        """The authority's own certificate."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(
        self, public_key: rsa.RSAPublicKey, use: CertificateUse, name: str, hosts: Sequence[str] = ()
    ) -> str:
        """Sign a certificate.

        Args:
            public_key: Whose certificate it is.
            use: What it is good for.
            name: The common name; the organization follows from it.
            hosts: Names and addresses at which the owner is reached; its name if it is not.

        Returns:
            The certificate as PEM.
        """
        now = datetime.datetime.now(datetime.UTC)
        until = min(now + datetime.timedelta(days=_DAYS), self.certificate.not_valid_after_utc)
        attributes = [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, re.sub(r"\W", "_", name)),
        ]
        if use is CertificateUse.DRIVER:
            attributes.append(x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, _ROLE_OF_DRIVER))
        names = [_alternative_name(host) for host in hosts or (name,)]
        return (
            _builder(x509.Name(attributes), self.certificate.subject, public_key, self.key, now, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_uses(use)), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
            .decode()
        )


def make_tls_key(path: Path) -> rsa.RSAPrivateKey:
    """Make an RSA key, which is what FLARE signs with, in a new file that only its owner may read.

    Raises:
        ConfigError: ``output-exists``.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    return key


def load_tls_key(path: Path) -> rsa.RSAPrivateKey:
    """Read an RSA key.

    Raises:
        ConfigError: ``key-missing``, ``key-exposed`` or ``key-invalid``.
    """
    try:
        # Written by us and read by us alone: testing its primes again would take most of a command's time.
        key = load_pem_private_key(read_secret(path), None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("key-invalid", f"{path} does not hold a key.") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError("key-invalid", f"{path} holds a key of another kind, not RSA.")
    return key


def make_request(key: rsa.RSAPrivateKey, name: str) -> str:
    """Return a certificate request as PEM: the public key and the name, signed with the private key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def check_request(request: str, name: str) -> rsa.RSAPublicKey:
    """Return the public key of a request that came from outside.

    Raises:
        FederationError: ``application-invalid`` if it is not signed with its own key, is for another name,
            or its key is of another kind or size.
    """
    try:
        parsed = x509.load_pem_x509_csr(request.encode())
        key, is_signed, asked = parsed.public_key(), parsed.is_signature_valid, _common_name(parsed.subject)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise FederationError("application-invalid", "The certificate request cannot be read.") from error
    if not is_signed or asked != name:
        raise FederationError("application-invalid", f"The certificate request is not one of {name}.")
    if not isinstance(key, rsa.RSAPublicKey) or not _KEY_BITS <= key.key_size <= _MOST_KEY_BITS:
        raise FederationError("application-invalid", "The certificate request's key is not RSA of 3072 bits.")
    return key


def public_pem(key: rsa.RSAPrivateKey) -> str:
    """Return the public half of a key as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def public_key_of(pem: str) -> str:
    """Return the public key of a certificate or a request as PEM.

    Raises:
        ValueError: If the text is neither.
    """
    data = pem.encode()
    owner = (
        x509.load_pem_x509_csr(data) if "CERTIFICATE REQUEST" in pem else x509.load_pem_x509_certificate(data)
    )
    return owner.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: rsa.RSAPublicKey,
    signer: rsa.RSAPrivateKey,
    start: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    """Return what all our certificates share."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    """Return the operations that a key may do."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not is_authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _uses(use: CertificateUse) -> list[x509.ObjectIdentifier]:
    """Return the ends of a connection at which a certificate may stand.

    FLARE's coordinator also opens connections, to itself; a site never takes one.
    """
    if use is CertificateUse.COORDINATOR:
        return [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    if use is CertificateUse.API:
        return [ExtendedKeyUsageOID.SERVER_AUTH]
    return [ExtendedKeyUsageOID.CLIENT_AUTH]


def _alternative_name(host: str) -> x509.GeneralName:
    """Return a host's name or address as certificates state it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _common_name(name: x509.Name) -> str:
    """Return the common name, empty if there is none or several."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""
