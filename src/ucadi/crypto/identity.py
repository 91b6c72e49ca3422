# SPDX-License-Identifier: Apache-2.0
"""Who somebody is in a federation: an Ed25519 key made at its owner, and documents signed with it.

A signature covers a purpose beside the document, so that what was signed for one use proves nothing in
another. Documents are signed in one canonical form of JSON; both sides sign and check the same bytes.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from ucadi.errors import ConfigError, NotAuthorizedError

__all__ = [
    "Identity",
    "canonical_json",
    "check_public_key",
    "fingerprint",
    "read_secret",
    "verify",
    "write_secret",
]

_HEAD = b"ucadi signature 1\0"
_KEY_BYTES = 32
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_GROUPS = 8
"""Of four hexadecimal digits: 128 bits, so that nobody finds two keys that read the same."""


class Identity:
    """A private key and what it can do. Its text never shows the key.

    Args:
        key: An Ed25519 private key.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def make(cls, path: Path) -> "Identity":
        """Make a key and write it into a new file that only its owner may read.

        Raises:
            ConfigError: ``output-exists``: a key is never overwritten.
        """
        key = Ed25519PrivateKey.generate()
        write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Read a key.

        Raises:
            ConfigError: ``key-missing``, ``key-exposed`` when others may read it, or ``key-invalid``.
        """
        try:
            key = load_pem_private_key(read_secret(path), None)
        except (ValueError, TypeError) as error:
            raise ConfigError("key-invalid", f"{path} does not hold a key.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError("key-invalid", f"{path} holds a key of another kind, not Ed25519.")
        return cls(key)

    @property
    def public_key(self) -> str:
        """The public key: 32 bytes as base64."""
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.b64encode(raw).decode()

    def sign(self, purpose: str, document: Mapping[str, Any]) -> str:
        """Return the signature of a document for one purpose, as base64.

        Raises:
            ValueError: If the document is not JSON.
        """
        return base64.b64encode(self._key.sign(_message(purpose, document))).decode()


def verify(public_key: str, purpose: str, document: Mapping[str, Any], signature: object) -> None:
    """Return if the owner of a key signed exactly this document for this purpose.

    Args:
        public_key: The signer's key, base64.
        purpose: What the signature is to be good for.
        document: What was signed.
        signature: As it came; may be anything.

    Raises:
        NotAuthorizedError: ``signature-invalid``.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(_decode(public_key))
        if not isinstance(signature, str):
            raise TypeError("no text")
        key.verify(base64.b64decode(signature, validate=True), _message(purpose, document))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise NotAuthorizedError(
            "signature-invalid", f"The signature of the {purpose} does not fit it."
        ) from error


def check_public_key(value: object) -> str:
    """Return a public key that came from outside.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, str):
        raise ValueError("no public key")
    Ed25519PublicKey.from_public_bytes(_decode(value))
    return value


def fingerprint(document: Mapping[str, Any]) -> str:
    """Return what two people can compare by phone: the same for the same document only."""
    digits = hashlib.sha256(b"ucadi fingerprint 1\0" + canonical_json(document)).hexdigest()
    return " ".join(digits[start : start + 4] for start in range(0, 4 * _GROUPS, 4))


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Return the one form of a JSON document that is signed and hashed.

    Raises:
        ValueError: If it holds what JSON has not.
    """
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"not JSON: {error}") from error
    return text.encode()


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that only its owner may read; nobody ever finds it incomplete.

    Raises:
        ConfigError: ``output-exists``.
    """
    draft = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()  # of an earlier attempt that was stopped
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # fails where a rename would overwrite
    except FileExistsError as error:
        raise ConfigError(
            "output-exists", f"{path} exists, and a key is never overwritten.", cure="Choose another folder."
        ) from error
    finally:
        draft.unlink()


def read_secret(path: Path) -> bytes:
    """Read a file that only its owner may read.

    Raises:
        ConfigError: ``key-missing``, or ``key-exposed`` when others may read it.
    """
    if not path.is_file():
        raise ConfigError(
            "key-missing", f"There is no key file {path}.", cure="Restore the key from its backup."
        )
    if os.name == "posix" and path.stat().st_mode & _OTHERS:
        raise ConfigError(
            "key-exposed", f"Others may read the key file {path}.", cure=f"Run `chmod 600 {path}`."
        )
    return path.read_bytes()


def _message(purpose: str, document: Mapping[str, Any]) -> bytes:
    """Return the bytes that are signed."""
    return _HEAD + purpose.encode() + b"\0" + canonical_json(document)


def _decode(public_key: str) -> bytes:
    """Return a public key's bytes."""
    try:
        raw = base64.b64decode(public_key, validate=True)
    except binascii.Error as error:
        raise ValueError("no public key") from error
    if len(raw) != _KEY_BYTES:
        raise ValueError("no public key")
    return raw
