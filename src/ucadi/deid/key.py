# SPDX-License-Identifier: Apache-2.0
"""A site's key for de-identification, and what follows from it: pseudonyms, UIDs, date shifts and names.

All are HMAC-SHA256 of the original under a key per purpose (HKDF-Expand, RFC 5869; the site's key is random,
so the extract step is not needed). The same key gives the same results on every day and machine, without a
table of patients that could leak; who lacks the key can neither go back nor test a guess.
"""

import hmac
import os
import secrets
import stat
import unicodedata
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import config
from pydicom.uid import UID

from ucadi.errors import ConfigError

__all__ = ["SiteKey", "make_key_file", "read_key_file"]

_KEY_BYTES = 32
_HEAD = "# ucadi key for de-identification. It stays at this site; without it no pseudonym can be made again."
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MAX_SHIFT_DAYS = 3652  # ten years: long enough that no one can guess the true date from the shifted one


@dataclass(frozen=True)
class SiteKey:
    """The secret of one site.

    Attributes:
        secret: 32 random bytes; never shown.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != _KEY_BYTES:
            raise ValueError(f"a key has {_KEY_BYTES} bytes, not {len(self.secret)}")

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without telling anything about them."""
        return self._digest("fingerprint", b"").hex()[:8]

    def patient(self, patient_id: str, issuer: str = "") -> str:
        """Return a patient's pseudonym: the same for the same id, however it is padded or written.

        Args:
            patient_id: PatientID; not empty.
            issuer: IssuerOfPatientID; two issuers' equal ids are two patients.
        """
        return self._pseudonym("patient", f"{_normal(issuer)}\0{_normal(patient_id)}")

    def patient_of_study(self, study_uid: str) -> str:
        """Return a pseudonym for a patient without id: one per study."""
        return self._pseudonym("study", study_uid.strip())

    def uid(self, uid: str) -> str:
        """Return the UID that stands for another; those of the DICOM standard stay as they are."""
        uid = uid.strip(" \0")
        if UID(uid, config.IGNORE).name != uid:
            return uid
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid.encode())[:16], version=4).int}"

    def shift_days(self, pseudonym: str) -> int:
        """Return by how many days a patient's dates are moved: 1 to 3652 back."""
        return -1 - int.from_bytes(self._digest("days", pseudonym.encode())[:8], "big") % _MAX_SHIFT_DAYS

    def name(self, content: Iterable[bytes]) -> str:
        """Return a file's name from its cleaned content, given piece by piece."""
        digest = hmac.new(self._key("name"), digestmod="sha256")
        for piece in content:
            digest.update(piece)
        return digest.hexdigest()[:32]

    def _pseudonym(self, purpose: str, text: str) -> str:
        """Return a P and 20 digits and letters."""
        return f"P{self._digest(purpose, text.encode()).hex()[:20].upper()}"

    def _digest(self, purpose: str, data: bytes) -> bytes:
        """Hash under the purpose's own key."""
        return hmac.digest(self._key(purpose), data, "sha256")

    def _key(self, purpose: str) -> bytes:
        """Return the key of a purpose."""
        return hmac.digest(self.secret, b"ucadi deid 1 " + purpose.encode() + b"\1", "sha256")


def make_key_file(path: Path) -> SiteKey:
    """Write a new random key into a file that only its owner may read.

    Raises:
        ConfigError: ``output-exists``: a key is never overwritten, for its pseudonyms would be lost.
    """
    secret = secrets.token_bytes(_KEY_BYTES)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    except FileExistsError as error:
        raise ConfigError(
            "output-exists", f"{path} exists, and a key is never overwritten.", cure="Choose another file."
        ) from error
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{_HEAD}\n{secret.hex()}\n")
    return SiteKey(secret)


def read_key_file(path: Path) -> SiteKey:
    """Read a key.

    Raises:
        ConfigError: ``key-missing``, ``key-exposed`` when others may read it, or ``key-invalid``.
    """
    if not path.is_file():
        raise ConfigError("key-missing", f"There is no key file {path}.")
    if os.name == "posix" and path.stat().st_mode & _OTHERS:
        raise ConfigError(
            "key-exposed", f"Others may read the key file {path}.", cure=f"Run `chmod 600 {path}`."
        )
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return SiteKey(bytes.fromhex("".join(line for line in lines if not line.startswith("#"))))
    except ValueError as error:
        raise ConfigError("key-invalid", f"{path} does not hold a key of 64 hexadecimal digits.") from error


def _normal(text: str) -> str:
    """Return an identifier without the differences that one and the same has between exports."""
    return unicodedata.normalize("NFKC", text.strip(" \0")).casefold()
