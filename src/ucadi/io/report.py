# SPDX-License-Identifier: Apache-2.0
"""The loader report: what was found in an input, what was chosen or refused, and why."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ucadi.errors import UcadiError
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
        key: Pseudonym, first 8 hex digits of the hash of the series' UID; "nifti" for a NIfTI file.
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
