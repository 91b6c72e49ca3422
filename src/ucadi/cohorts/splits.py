# SPDX-License-Identifier: Apache-2.0
"""Which split a patient is in: a salted hash, so that no patient ever moves when others are added."""

import hmac
from dataclasses import dataclass

from ucadi.deid.key import SiteKey
from ucadi.errors import ConfigError
from ucadi.types import Split

__all__ = ["SplitShares", "series_pseudonym", "source_pseudonym", "split_of", "study_pseudonym"]

_PERCENT = 100
_PLACES = 2**64


@dataclass(frozen=True)
class SplitShares:
    """How many of a hundred patients each split gets, on average.

    Attributes:
        train: For training.
        validation: For the choice of a model.
        test: For its final score.
    """

    train: int = 70
    validation: int = 15
    test: int = 15

    def __post_init__(self) -> None:
        shares = self.train, self.validation, self.test
        if min(shares) < 0 or sum(shares) != _PERCENT:
            raise ConfigError(
                "config-invalid", f"The shares are {self}.", cure="Give three whole numbers with the sum 100."
            )

    def __str__(self) -> str:
        return f"{self.train}/{self.validation}/{self.test}"

    @classmethod
    def from_text(cls, text: str) -> "SplitShares":
        """Read shares as in 70/15/15: training, validation, test.

        Raises:
            ConfigError: If it is anything else.
        """
        try:
            train, validation, test = (int(part) for part in text.split("/"))
        except ValueError:
            raise ConfigError(
                "config-invalid", f"The shares are {text[:40]!r}.", cure="Write them like 70/15/15."
            ) from None
        return cls(train, validation, test)


def split_of(key: SiteKey, patient_key: str, shares: SplitShares) -> Split:
    """Return a patient's split, from the key, the patient and the shares alone.

    HMAC-SHA256 puts the patient at a place in [0, 100): training, then validation, then test. Without the key
    nobody can choose a pseudonym that comes into a certain split.
    """
    digest = hmac.digest(key.secret, b"ucadi cohort split 1\0" + patient_key.encode(), "sha256")
    place = int.from_bytes(digest[:8], "big") * _PERCENT
    if place < shares.train * _PLACES:
        return Split.TRAIN
    return Split.VALIDATION if place < (shares.train + shares.validation) * _PLACES else Split.TEST


def study_pseudonym(key: SiteKey, study_id: str) -> str:
    """Return a study's pseudonym: an S and 20 digits and letters."""
    digest = hmac.digest(key.secret, b"ucadi cohort study 1\0" + study_id.encode(), "sha256")
    return f"S{digest.hex()[:20].upper()}"


def series_pseudonym(key: SiteKey, series_key: str) -> str:
    """Return a series' pseudonym: 8 hex digits, which without the key nobody can find from its UID.

    Args:
        key: The site's.
        series_key: As in a loader report: there it is a plain hash of the UID.
    """
    return hmac.digest(key.secret, b"ucadi cohort series 1\0" + series_key.encode(), "sha256").hex()[:8]


def source_pseudonym(key: SiteKey, source_hash: str) -> str:
    """Return what stands for the hash of a study's files, which without the key nobody can compute."""
    return hmac.digest(key.secret, b"ucadi cohort source 1\0" + source_hash.encode(), "sha256").hex()
