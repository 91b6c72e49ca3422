# SPDX-License-Identifier: Apache-2.0
"""The loader report: what was found in an input, what was chosen or refused, and why."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ucadi.errors import CODES, UcadiError
from ucadi.imaging.remarks import Remark
from ucadi.types import Triple
from ucadi.versions import RECORD_VERSION

__all__ = ["LoaderReport", "SeriesReport", "Verdict"]


class Verdict(StrEnum):
    """Whether a result may rest on the input."""

    OK = "ok"
    WARNING = "warning"
    REFUSED = "refused"


@dataclass(frozen=True)
class SeriesReport:
    """One series found in the input.

    Attributes:
        key: Pseudonym, first 8 hex digits of the hash of the series' UID; the format's name for other files.
        number: SeriesNumber, when given.
        modality: "CT", or what was found.
        slices: Number of images.
        shape: (z, y, x), when it forms a volume.
        spacing_mm: (z, y, x), when it forms a volume.
        chosen: Whether this is the series that was read.
        reason: Why it was chosen or dropped, in words.
    """

    key: str
    number: int | None
    modality: str
    slices: int
    shape: tuple[int, int, int] | None
    spacing_mm: Triple | None
    chosen: bool
    reason: str


@dataclass(frozen=True)
class LoaderReport:
    """Everything that was decided on the way from an input to a volume.

    It holds no name, date, path or UID, so it may travel with a result.

    Attributes:
        verdict: ok, warning or refused.
        code: The error's code when refused; "ok" otherwise.
        reason: What is wrong, with the value seen; empty when ok.
        cure: How to mend it; empty when ok.
        shape: (z, y, x) of the volume that was read; None when refused before.
        spacing_mm: (z, y, x) in mm.
        repairs: What was changed on the way.
        warnings: What a reader of the result should know.
        interpolated_slices: Indices along z of slices that no scanner measured.
        lungs_ml: Volume of the right and of the left lung; None when refused before.
        series: Every series found.
    """

    verdict: Verdict
    code: str = "ok"
    reason: str = ""
    cure: str = ""
    shape: tuple[int, int, int] | None = None
    spacing_mm: Triple | None = None
    repairs: tuple[Remark, ...] = ()
    warnings: tuple[Remark, ...] = ()
    interpolated_slices: tuple[int, ...] = ()
    lungs_ml: tuple[float, float] | None = None
    series: tuple[SeriesReport, ...] = field(default=())

    @classmethod
    def refusal(cls, error: UcadiError, series: tuple[SeriesReport, ...] = ()) -> "LoaderReport":
        """Build the report of a refused input from the error that refused it."""
        return cls(Verdict.REFUSED, error.code, error.detail, error.cure, series=series)

    def to_json(self) -> dict[str, Any]:
        """Return a plain object for JSON."""
        return {"record_version": RECORD_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "LoaderReport":
        """Build a report from what `to_json` gave, checked field by field.

        Raises:
            ValueError: If a field is missing, of another kind or out of bounds.
        """
        try:
            if document["record_version"] != RECORD_VERSION or document["code"] not in {"ok", *CODES}:
                raise ValueError("another version, or an unknown code")
            lungs_ml = document["lungs_ml"]
            return cls(
                Verdict(document["verdict"]),
                document["code"],
                _text(document["reason"]),
                _text(document["cure"]),
                _shape(document["shape"]),
                _spacing(document["spacing_mm"]),
                tuple(_remark(each) for each in document["repairs"]),
                tuple(_remark(each) for each in document["warnings"]),
                tuple(_whole(each) for each in document["interpolated_slices"]),
                None if lungs_ml is None else (_number(lungs_ml[0]), _number(lungs_ml[1])),
                tuple(_series(each) for each in document["series"]),
            )
        except (AttributeError, LookupError, TypeError, OverflowError) as error:
            raise ValueError(f"no loader report ({type(error).__name__})") from error


_MAX_CHARACTERS = 2000  # of one sentence, in which a report of another process could hide a flood


def _text(value: Any) -> str:
    """Return a sentence."""
    if not isinstance(value, str) or len(value) > _MAX_CHARACTERS:
        raise ValueError("not a sentence")
    return value


def _whole(value: Any) -> int:
    """Return a whole number that counts something."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("not a count")
    return value


def _number(value: Any) -> float:
    """Return a finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("not a number")
    return float(value)


def _shape(value: Any) -> tuple[int, int, int] | None:
    """Return a shape, or None."""
    if value is None:
        return None
    z, y, x = value
    return _whole(z), _whole(y), _whole(x)


def _spacing(value: Any) -> Triple | None:
    """Return three distances, or None."""
    if value is None:
        return None
    z, y, x = value
    return _number(z), _number(y), _number(x)


def _remark(document: Mapping[str, Any]) -> Remark:
    """Return a repair or a warning, which must be registered."""
    return Remark(_text(document["code"]), _text(document["text"]))


def _series(document: Mapping[str, Any]) -> SeriesReport:
    """Return one series of a report."""
    if type(document["chosen"]) is not bool:
        raise ValueError("neither chosen nor dropped")
    return SeriesReport(
        _text(document["key"]),
        None if document["number"] is None else _whole(document["number"]),
        _text(document["modality"]),
        _whole(document["slices"]),
        _shape(document["shape"]),
        _spacing(document["spacing_mm"]),
        document["chosen"],
        _text(document["reason"]),
    )
