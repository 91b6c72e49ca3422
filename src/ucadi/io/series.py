# SPDX-License-Identifier: Apache-2.0
"""The series of a DICOM study, from headers alone: told apart, ranked, and one chosen with a reason."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ucadi.errors import DicomError, GeometryError
from ucadi.imaging.stack import Stack, plan_stack
from ucadi.io.acquisitions import MIN_SLICES, Acquisition, split_acquisitions
from ucadi.io.files import READ_ERRORS, OpenFile
from ucadi.io.framing import is_blank
from ucadi.io.headers import Header, Plane, read_headers
from ucadi.io.report import SeriesReport

__all__ = ["Series", "Study", "read_study"]

_FEW_SLICES = 20
"""A series with fewer slices comes after all others."""

_CHEST_MM = 150.0
"""A series that covers less comes after those that cover a chest."""

_AXIAL = 0.8
"""Least cosine between the slices' normal and the body's axis; a gantry tilts by up to 30 degrees."""

_SAME_STEP_MM = 0.05
"""Series whose slices' distances differ by less are equally thin."""

_PLANES = ("sagittal", "coronal", "axial")
_SCOUT_TYPES = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
_NO_SLICE_TYPES = {"DOSE_INFO", "MIP", "MINIP", "MNIP", "PROJECTION IMAGE", "SCREEN SAVE", "VOLUME RENDERING"}


@dataclass(frozen=True, eq=False)
class Series:
    """Images of one SeriesInstanceUID that belong together: one size, direction, kernel and acquisition.

    Attributes:
        headers: Without copies; in the order of their places when the series is a candidate.
        copies: Images left out because another one with equal pixels is there.
        stack: How the slices become a volume; None when the series cannot be read.
        fault: Code of the error that keeps the series from being read; empty for a candidate.
        reason: The fault in words.
        part: Counts the series that came of one SeriesInstanceUID, from 1.
    """

    headers: tuple[Header, ...]
    copies: int
    stack: Stack | None
    fault: str
    reason: str
    part: int = 1

    @property
    def uid(self) -> str:
        """SeriesInstanceUID; stays in memory."""
        return self.headers[0].series_uid

    @property
    def key(self) -> str:
        """Pseudonym: the same images have the same key on every machine."""
        key = hashlib.sha256(self.uid.encode()).hexdigest()[:8]
        return key if self.part == 1 else f"{key}-{self.part}"

    @property
    def name(self) -> str:
        """How messages call the series."""
        number = self.headers[0].number
        return f"Series {self.key}" if number is None else f"Series {number} ({self.key})"

    @property
    def slices(self) -> int:
        """Number of images; frames for multi-frame files."""
        return sum(header.images for header in self.headers)

    @property
    def coverage_mm(self) -> float:
        """Distance between the outermost slices."""
        heights = [header.plane.height_mm for header in self.headers if header.plane is not None]
        return max(heights) - min(heights) if heights else 0.0

    @property
    def rank(self) -> tuple[bool, bool, bool, int, bool, int]:
        """Larger is better; what each place means is in `_CRITERIA`."""
        step_mm = self.stack.grid.spacing_mm[0] if self.stack else np.inf
        return (
            "ORIGINAL" in self.headers[0].image_type,
            self.slices >= _FEW_SLICES,
            self.coverage_mm >= _CHEST_MM,
            -round(step_mm / _SAME_STEP_MM) if self.stack else 0,
            self.stack is not None and not self.stack.repairs,
            self.slices,
        )

    def report(self, *, is_chosen: bool, reason: str) -> SeriesReport:
        """Return what the loader report says about the series."""
        first = self.headers[0]
        shape, spacing = (self.stack.grid.shape, self.stack.grid.spacing_mm) if self.stack else (None, None)
        return SeriesReport(
            self.key, first.number, first.modality, self.slices, shape, spacing, is_chosen, reason
        )


_CRITERIA = (
    "derived images; the chosen series is original",
    "few slices",
    "covers less than a chest",
    "thicker slices than the chosen series",
    "needs repair; the chosen series does not",
    "fewer slices than the chosen series",
)
"""What a candidate lacks, in the order of `Series.rank`."""


@dataclass(frozen=True, eq=False)
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

    def reports(self, chosen: Series | None) -> tuple[SeriesReport, ...]:
        """Return every series with what was decided and why."""
        return tuple(
            series.report(is_chosen=series is chosen, reason=_reason(series, chosen))
            for series in self.series
        )

    def candidates(self) -> tuple[Series, ...]:
        """Return the series that can be read."""
        return tuple(series for series in self.series if not series.fault)

    def rivals(self, chosen: Series) -> tuple[Series, ...]:
        """Return the other candidates that are as good as the chosen one."""
        return tuple(s for s in self.candidates() if s is not chosen and s.rank == chosen.rank)

    def siblings(self, chosen: Series) -> int:
        """Return how many other images share the chosen one's UID, without scout views and captures."""
        ours = [s for s in self.series if s is not chosen and s.uid == chosen.uid]
        return sum(
            s.slices for s in ours if not (s.headers[0].image_type & _BESIDE or s.headers[0].layout is None)
        )

    def choose(self, wanted: str = "") -> Series:
        """Return the best candidate.

        Args:
            wanted: SeriesInstanceUID, key or number of the series to take; empty for the best one.

        Raises:
            DicomError: If there is none, with the fault of the series that came nearest; if the wanted one is
                not there; or if several studies have candidates and none is named.
        """
        if not self.series:
            if self.damaged:
                raise DicomError("input-unreadable", f"All {self.damaged} DICOM files are damaged.")
            raise DicomError("dicom-none", f"None of the {self.files} files is a DICOM image.")
        named = [s for s in self.series if not wanted or wanted in (s.uid, s.key, str(s.headers[0].number))]
        if len({s.uid for s in named}) > 1 and wanted:
            raise DicomError("series-not-found", f"{len(named)} series have the number {wanted}.")
        named = [s for s in named if s.key == wanted] or named
        if not named:
            keys = ", ".join(dict.fromkeys(s.key for s in self.series))
            raise DicomError("series-not-found", f"There is no such series; the keys are {keys}.")
        best = named[0]
        if best.fault:
            raise DicomError(best.fault, f"{best.name}: {best.reason}.")
        ours = [s for s in self.series if s.uid == best.uid]
        if patients := len({s.headers[0].patient for s in ours}) - 1:
            raise DicomError("dicom-mixed-patients", f"{best.name} holds images of {patients + 1} patients.")
        if burned := sum(s.slices for s in ours if s.fault == "dicom-burned-in"):
            raise DicomError("dicom-burned-in", f"{best.name} holds {burned} images with text burned in.")
        studies = {(s.headers[0].study_uid, s.headers[0].patient) for s in self.candidates()}
        if not wanted and len(studies) > 1:
            raise DicomError("dicom-many-studies", f"The input holds chest series of {len(studies)} studies.")
        return best


_BESIDE = _SCOUT_TYPES | _NO_SLICE_TYPES


def read_study(files: Sequence[OpenFile]) -> Study:
    """Read the headers of all files and tell the series apart; files that are not DICOM are passed over."""
    headers: list[Header] = []
    damaged = blank = 0
    for open_file in files:
        try:
            found = read_headers(open_file)
            blank += not found and is_blank(open_file)
            headers.extend(found)
        except PermissionError as error:
            raise DicomError("input-forbidden", "A file of the input may not be read.") from error
        except READ_ERRORS:
            damaged += 1
    series = [one for group in _group(headers) for one in _judge(group)]
    series.sort(key=lambda s: (s.headers[0].number or 0, s.key))  # decides between equals
    series.sort(key=lambda s: (not s.fault, s.headers[0].modality == "CT", *s.rank), reverse=True)
    # Among images, a file of nothing but zeros was one; elsewhere it may be anything.
    return Study(tuple(_numbered(series)), damaged + blank * bool(headers), len(files))


def _numbered(series: Iterable[Series]) -> Iterator[Series]:
    """Count the parts of each SeriesInstanceUID, the best first."""
    parts: Counter[str] = Counter()
    for one in series:
        parts[one.uid] += 1
        yield replace(one, part=parts[one.uid])


def _group(headers: Iterable[Header]) -> list[list[Header]]:
    """Tell images apart by patient, series, frame, kind, kernel, size, pixel spacing and direction."""
    groups: dict[Hashable, list[list[Header]]] = {}
    for header in headers:
        kind = header.image_type & (_SCOUT_TYPES | _NO_SLICE_TYPES), header.is_plain, header.is_burned
        spacing = None if header.plane is None else tuple(round(mm, 3) for mm in header.plane.pixel_mm)
        told_by = header.patient, header.study_uid, header.series_uid, header.frame_uid, header.modality
        values = "ORIGINAL" in header.image_type, header.is_rescaled, header.kernel
        alike = groups.setdefault((told_by, header.size, spacing, values, kind), [])
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


def _judge(headers: Sequence[Header]) -> list[Series]:
    """Tell whether images can be the axial CT series, and if not, why; one for each acquisition."""
    fault, reason = _fault(headers)
    if fault:
        return [Series(tuple(headers), 0, None, fault, reason)]
    return [_stacked(acquisition) for acquisition in split_acquisitions(headers)]


def _stacked(acquisition: Acquisition) -> Series:
    """Tell whether the slices of an acquisition form a volume."""
    headers, copies = acquisition.headers, acquisition.copies
    if len(headers) < MIN_SLICES:
        count = f"{len(headers)} slice{'s' * (len(headers) != 1)}"
        return Series(
            headers, copies, None, "dicom-too-few-slices", f"{count}, {MIN_SLICES} or more are needed"
        )
    if acquisition.clash_mm is not None:
        reason = f"several slices with different pixels lie at z = {acquisition.clash_mm:.1f} mm"
        return Series(headers, copies, None, "dicom-duplicate-slices", reason)
    planes = [header.plane for header in headers if header.plane is not None]
    positions = np.array([plane.position_mm for plane in planes])
    first = planes[0]
    try:
        stack = plan_stack(positions, first.row, first.column, first.pixel_mm, headers[0].size)
    except GeometryError as error:
        return Series(headers, copies, None, error.code, error.detail.rstrip("."))
    return Series(headers, copies, stack, "", "")


def _fault(headers: Sequence[Header]) -> tuple[str, str]:
    """Return the code and the words of the first fault that a header tells, empty for none."""
    first = headers[0]
    if first.modality != "CT":
        return "dicom-not-ct", f"modality {first.modality}, not CT"
    if first.image_type & _SCOUT_TYPES:
        return "dicom-localizer", "a localizer (scout view)"
    if min(first.size) < 1 or not first.is_plain or first.image_type & _NO_SLICE_TYPES:
        return "dicom-not-ct", "no plain CT slices (a screen capture, projection or dose report)"
    if first.is_burned:
        return "dicom-burned-in", "text is burned into the images, which may name the patient"
    if first.plane is None or any(h.plane is None for h in headers):
        return "dicom-no-geometry", "slices without position, orientation or pixel spacing"
    direction = int(np.abs(first.plane.normal).argmax())
    if direction != 2 or first.plane.normal[2] < _AXIAL:
        return "dicom-not-axial", f"{_PLANES[direction] if direction != 2 else 'oblique'}, not axial"
    return "", ""


def _reason(series: Series, chosen: Series | None) -> str:
    """Return in words why a series was chosen or dropped."""
    if series.fault or chosen is None:
        return series.reason or "not chosen"
    if series is chosen:
        kind = "original" if series.rank[0] else "derived"
        return f"axial CT, {kind}, {series.slices} slices over {series.coverage_mm:.0f} mm"
    pairs = zip(chosen.rank, series.rank, _CRITERIA, strict=True)
    lacks = next(((ours, theirs, words) for ours, theirs, words in pairs if ours != theirs), None)
    if lacks is None:
        return "as good as the chosen series"
    return lacks[2] if lacks[0] > lacks[1] else "better ranked, but another series was asked for"
