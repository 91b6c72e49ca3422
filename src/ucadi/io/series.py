# SPDX-License-Identifier: Apache-2.0
"""The series of a DICOM study, from headers alone: told apart, ranked, and one chosen with a reason."""

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ucadi.errors import DicomError
from ucadi.io.files import READ_ERRORS, OpenFile
from ucadi.io.headers import Header, Plane, read_header
from ucadi.io.report import SeriesReport

__all__ = ["MIN_SLICES", "Series", "Study", "read_study"]

MIN_SLICES = 16
"""The classifier draws 16 slices; the published code asks for more than 15."""

_FEW_SLICES = 20
_CHEST_MM = 150.0
_AXIAL = 0.8  # cosine between slice normal and body axis; a gantry tilts by up to 30 degrees
_PLANES = ("sagittal", "coronal", "axial")
_SCOUT_TYPES = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
_NO_SLICE_TYPES = {"DOSE_INFO", "MIP", "MINIP", "MNIP", "PROJECTION IMAGE", "SCREEN SAVE", "VOLUME RENDERING"}


@dataclass(frozen=True)
class Series:
    """Images of one SeriesInstanceUID with the same size and orientation.

    Attributes:
        headers: In the order of the files.
        fault: Code of the error that keeps the series from being read; empty for a candidate.
        reason: The fault in words.
    """

    headers: tuple[Header, ...]
    fault: str
    reason: str

    @property
    def key(self) -> str:
        """Pseudonym: the same series has the same key on every machine."""
        return hashlib.sha256(self.headers[0].series_uid.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """How messages call the series."""
        number = self.headers[0].number
        return f"Series {self.key}" if number is None else f"Series {number} ({self.key})"

    @property
    def slices(self) -> int:
        """Number of images; frames for multi-frame files."""
        return sum(header.frames for header in self.headers)

    @property
    def planes(self) -> list[Plane]:
        """Where the images lie, in the order of the headers; without those that do not say."""
        return [header.plane for header in self.headers if header.plane is not None]

    @property
    def coverage_mm(self) -> float:
        """Distance between the outermost slices."""
        heights = [plane.height_mm for plane in self.planes]
        return max(heights) - min(heights) if heights else 0.0

    @property
    def rank(self) -> tuple[bool, bool, bool, int]:
        """Larger is better: original, a full stack, a chest's height, many slices."""
        is_original = "ORIGINAL" in self.headers[0].image_type
        return is_original, self.slices >= _FEW_SLICES, self.coverage_mm >= _CHEST_MM, self.slices

    def report(self, *, is_chosen: bool, reason: str) -> SeriesReport:
        """Return what the loader report says about the series."""
        first = self.headers[0]
        shape = spacing = None
        if not self.fault:
            step_mm = self.coverage_mm / (self.slices - 1)
            shape, spacing = (self.slices, *first.size), (step_mm, *self.planes[0].pixel_mm)
        return SeriesReport(
            self.key, first.number, first.modality, self.slices, shape, spacing, is_chosen, reason
        )


@dataclass(frozen=True)
class Study:
    """All series of an input, the best first.

    Attributes:
        series: Candidates by rank, then the others.
        damaged: Number of DICOM files whose header cannot be read.
        files: Number of files of any kind.
    """

    series: tuple[Series, ...]
    damaged: int
    files: int

    def reports(self) -> tuple[SeriesReport, ...]:
        """Return every series with what was decided and why."""
        best = self.series[0] if self.series and not self.series[0].fault else None
        return tuple(
            series.report(is_chosen=series is best, reason=_reason(series, best)) for series in self.series
        )

    def ties(self) -> tuple[Series, ...]:
        """Return the candidates that are as good as the best one."""
        return tuple(s for s in self.series[1:] if not s.fault and s.rank == self.series[0].rank)

    def choose(self) -> Series:
        """Return the best candidate.

        Raises:
            DicomError: If there is none, with the fault of the series that came nearest.
        """
        if not self.series:
            if self.damaged:
                raise DicomError("input-unreadable", f"All {self.damaged} DICOM files are damaged.")
            raise DicomError("dicom-none", f"None of the {self.files} files is a DICOM image.")
        best = self.series[0]
        if best.fault:
            raise DicomError(best.fault, f"{best.name}: {best.reason}.")
        others = [s for s in self.series[1:] if s.headers[0].series_uid == best.headers[0].series_uid]
        if any(not s.fault or s.fault == "dicom-too-few-slices" for s in others):
            raise DicomError(
                "dicom-mixed-geometry",
                f"{best.name} holds axial images of {1 + len(others)} sizes or orientations.",
            )
        return best


def read_study(files: Sequence[OpenFile]) -> Study:
    """Read the headers of all files and tell the series apart; files that are not DICOM are passed over."""
    headers: list[Header] = []
    damaged = 0
    for open_file in files:
        try:
            header = read_header(open_file)
        except READ_ERRORS:
            damaged += 1
            continue
        if header is not None:
            headers.append(header)
    series = [_judge(group) for group in _group(headers)]
    series.sort(key=lambda s: (s.headers[0].number or 0, s.key))  # decides between equals
    series.sort(key=lambda s: (not s.fault, s.headers[0].modality == "CT", *s.rank), reverse=True)
    return Study(tuple(series), damaged, len(files))


def _group(headers: Iterable[Header]) -> list[list[Header]]:
    """Tell images apart by series, kind, size and direction."""
    groups: dict[Hashable, list[list[Header]]] = {}
    for header in headers:
        kind = header.image_type & (_SCOUT_TYPES | _NO_SLICE_TYPES), header.is_plain, header.is_enhanced
        alike = groups.setdefault((header.series_uid, header.modality, header.size, kind), [])
        group = next((g for g in alike if _is_same_direction(g[0].plane, header.plane)), None)
        if group is None:
            alike.append([header])
        else:
            group.append(header)
    return [group for alike in groups.values() for group in alike]


def _is_same_direction(one: Plane | None, other: Plane | None) -> bool:
    """Tell whether two images are turned alike, or both do not say."""
    if one is None or other is None:
        return one is other
    return one.is_parallel(other)


def _judge(headers: Sequence[Header]) -> Series:
    """Tell whether images can be the axial CT series, and if not, why."""
    fault, reason = _fault(headers)
    return Series(tuple(headers), fault, reason)


def _fault(headers: Sequence[Header]) -> tuple[str, str]:
    """Return the code and the words of the first fault, empty for none."""
    first = headers[0]
    if first.modality != "CT":
        return "dicom-not-ct", f"modality {first.modality}, not CT"
    if first.image_type & _SCOUT_TYPES:
        return "dicom-localizer", "a localizer (scout view)"
    if first.is_enhanced:
        return "dicom-enhanced", "enhanced multi-frame CT, which this version does not read"
    if min(first.size) < 1 or not first.is_plain or first.image_type & _NO_SLICE_TYPES:
        return "dicom-not-ct", "no plain CT slices (a screen capture, projection or dose report)"
    if first.plane is None or any(h.plane is None for h in headers):
        return "dicom-no-geometry", "slices without position, orientation or pixel spacing"
    direction = int(np.abs(first.plane.normal).argmax())
    if direction != 2 or first.plane.normal[2] < _AXIAL:
        return "dicom-not-axial", f"{_PLANES[direction] if direction != 2 else 'oblique'}, not axial"
    if len(headers) < MIN_SLICES:
        return (
            "dicom-too-few-slices",
            f"{len(headers)} slice{'s' * (len(headers) != 1)}, {MIN_SLICES} or more are needed",
        )
    return "", ""


def _reason(series: Series, best: Series | None) -> str:
    """Return in words why a series was chosen or dropped."""
    if series.fault or best is None:
        return series.reason
    if series is best:
        kind = "original" if series.rank[0] else "derived"
        return f"axial CT, {kind}, {series.slices} slices over {series.coverage_mm:.0f} mm"
    better = zip(best.rank, series.rank, _CRITERIA, strict=True)
    return next((words for ours, theirs, words in better if ours != theirs), "as good as the chosen series")


_CRITERIA = (
    "derived images; the chosen series is original",
    "few slices",
    "covers less than a chest",
    "fewer slices than the chosen series",
)
"""What a candidate lacks, in the order of `Series.rank`."""
