# SPDX-License-Identifier: Apache-2.0
"""A cohort: a folder with ``cohort.csv`` and the studies that it names."""

import csv
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ucadi.errors import CODES, CohortError
from ucadi.io.checkpoint import write_bytes
from ucadi.types import FindingClass, PathLikeStr, Severity, Split

__all__ = ["COHORT_FILE", "Cohort", "Problem", "Row", "Study", "read_cohort", "read_rows", "write_cohort"]

COHORT_FILE = "cohort.csv"


@dataclass(frozen=True)
class Study:
    """One study of a cohort.

    Attributes:
        patient_key: Pseudonym of the patient.
        study_key: Pseudonym of the study, unique in the cohort.
        split: What the study is used for; the same for all studies of a patient.
        label: The study's class by its reader.
        severity: COVID-19 severity; None for the other classes or when unknown.
        image: NIfTI file in HU, relative to the cohort's folder.
        dicom: DICOM folder, relative to the cohort's folder; empty when there is none.
        lesion_mask: NIfTI mask on the image's grid, relative to the cohort's folder; empty when the site
            has no mask for the study.
        lesion_ml: Volume of the true lesions in mL; None when unknown.
        series: Pseudonym of the series that was read, as in its loader report; empty when unknown.
        content_hash: `ucadi.cohorts.content.content_hash` of the image; empty when unknown.
        verdict: The loader's verdict on what the image was made from; empty when unknown.
    """

    patient_key: str
    study_key: str
    split: Split
    label: FindingClass
    severity: Severity | None
    image: str
    dicom: str = ""
    lesion_mask: str = ""
    lesion_ml: float | None = None
    series: str = ""
    content_hash: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Cohort:
    """A defined set of studies in a folder.

    Attributes:
        root: The cohort's folder.
        studies: In the table's order.
    """

    root: Path
    studies: tuple[Study, ...]

    def of_split(self, split: Split) -> tuple[Study, ...]:
        """Return the studies of one split."""
        return tuple(study for study in self.studies if study.split is split)

    def hash(self) -> str:
        """Return the SHA-256 of the study table: the identity of the data that a run saw."""
        return hashlib.sha256("\n".join(map(repr, self.studies)).encode()).hexdigest()


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a cohort, or that its user should know.

    Attributes:
        line: In the study table, counted from 1; 0 when it concerns no single line.
        file: What to look at, relative to the cohort's folder.
        code: A key of `ucadi.errors.CODES`.
        detail: What is wrong, with the value seen.
        cure: How to mend it; the code's general cure when not given.
        is_note: Whether the cohort can be used all the same.

    Raises:
        ValueError: If the code is not registered.
    """

    line: int
    file: str
    code: str
    detail: str
    cure: str = ""
    is_note: bool = False

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"{self.code!r} is no registered code")
        object.__setattr__(self, "cure", self.cure or CODES[self.code].cure)

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {'note' if self.is_note else self.code}: {self.detail} {self.cure}"


@dataclass(frozen=True)
class Row:
    """One line of a study table.

    Attributes:
        line: Counted from 1; 0 for the table as a whole.
        study: What the line says; None when it cannot be read.
        problems: What is wrong with it, by itself and against the lines before.
    """

    line: int
    study: Study | None
    problems: tuple[Problem, ...]


def write_cohort(root: PathLikeStr, studies: tuple[Study, ...]) -> Cohort:
    """Write ``cohort.csv`` into a folder that holds the named files; it appears complete or not at all."""
    names = [f.name for f in fields(Study)]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows([_text(getattr(study, name)) for name in names] for study in studies)
    write_bytes(Path(root) / COHORT_FILE, text.getvalue().encode())
    return Cohort(Path(root), studies)


def read_cohort(root: PathLikeStr) -> Cohort:
    """Read and check a cohort's table.

    Raises:
        CohortError: The first of `read_rows`' problems. The message names line and column.
    """
    studies = []
    for row in read_rows(root):
        for problem in row.problems:
            where = f"{Path(root) / COHORT_FILE} line {problem.line}, " if problem.line else ""
            raise CohortError(problem.code, f"{where}{problem.detail}", cure=problem.cure)
        if row.study is not None:
            studies.append(row.study)
    return Cohort(Path(root), tuple(studies))


def read_rows(root: PathLikeStr) -> Iterator[Row]:
    """Yield a study table's lines one by one, each with all that is wrong with it.

    A table that is missing, lacks a column or is no CSV table gives a row without a study, and ends there.
    """
    root = Path(root)
    check = _Check(root)
    try:
        with (root / COHORT_FILE).open(newline="", encoding="utf-8-sig") as file:  # spreadsheets mark it
            reader = csv.DictReader(file, strict=True)
            missing = sorted(set(_REQUIRED) - set(reader.fieldnames or ()))
            if missing:
                yield _no_table(f"{root / COHORT_FILE}: column {', '.join(missing)} is missing.")
                return
            for cells in reader:
                yield check.row(reader.line_num, cells)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        yield _no_table(f"There is no {COHORT_FILE} in {root}.", "Give a cohort's folder.")
    except (UnicodeDecodeError, csv.Error) as error:
        yield _no_table(f"{root / COHORT_FILE} is not a CSV table: {error}.", "Save it as CSV in UTF-8.")


def _no_table(detail: str, cure: str = "") -> Row:
    """Return the row that stands for a table that cannot be read any further."""
    return Row(0, None, (Problem(0, COHORT_FILE, "cohort-invalid", detail, cure),))


def _text(value: object) -> str:
    """Write a cell: names for enums, empty for None."""
    if value is None:
        return ""
    if isinstance(value, FindingClass | Severity):
        return value.name
    return str(value)


def _key(text: str) -> str:
    """Read a cell that must not be empty."""
    if not text:
        raise ValueError("empty")
    return text


def _volume(text: str) -> float:
    """Read a volume in mL."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError("out of bounds")
    return value


_REQUIRED = ("patient_key", "study_key", "split", "label", "image")

_COLUMNS: dict[str, tuple[Callable[[str], object], str]] = {
    "patient_key": (_key, "a pseudonym"),
    "study_key": (_key, "a pseudonym"),
    "split": (Split, ", ".join(Split)),
    "label": (FindingClass.__getitem__, ", ".join(FindingClass.__members__)),
    "severity": (Severity.__getitem__, ", ".join(Severity.__members__)),
    "image": (_key, "a file in the folder"),
    "dicom": (_key, "a folder in the cohort's folder"),
    "lesion_mask": (_key, "a file in the folder"),
    "lesion_ml": (_volume, "a volume in mL with a decimal point"),
    "series": (_key, "a pseudonym"),
    "content_hash": (_key, "a hash"),
    "verdict": (_key, "a word"),
}
"""How a column's cell is read, and what it may hold; only required columns must be there and filled."""

_FILES = ("image", "dicom", "lesion_mask")


class _Check:
    """Judges lines against themselves, the folder and the lines before."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._line_of: dict[str, int] = {}
        self._split_of: dict[str, tuple[Split, int]] = {}

    def row(self, line: int, cells: dict[Any, Any]) -> Row:
        """Return one line with all its problems."""
        if None in cells or None in cells.values():
            return self._bad(line, ["has not as many cells as there are columns."])
        values: dict[str, Any] = {"severity": None}
        bad: list[Problem] = []
        for name, (read, wanted) in _COLUMNS.items():
            text = cells.get(name, "").strip()
            if not text and name not in _REQUIRED:
                continue
            try:
                values[name] = read(text)
            except (KeyError, ValueError):
                detail = f"column {name}: {text[:80]!r} is not allowed."
                bad.append(Problem(line, COHORT_FILE, "cohort-invalid", detail, f"Use {wanted}."))
        if bad:
            return Row(line, None, tuple(bad))
        study = Study(**values)
        return Row(line, study, tuple(self._problems(line, study)))

    def _bad(self, line: int, details: list[str]) -> Row:
        """Return a line that cannot be read."""
        return Row(line, None, tuple(Problem(line, COHORT_FILE, "cohort-invalid", d) for d in details))

    def _problems(self, line: int, study: Study) -> Iterator[Problem]:
        """Yield what is wrong with a line that can be read."""
        first = self._line_of.setdefault(study.study_key, line)
        if first != line:
            detail = f"study_key {study.study_key} appears twice (first in line {first})."
            yield Problem(line, COHORT_FILE, "cohort-invalid", detail)
        split, first = self._split_of.setdefault(study.patient_key, (study.split, line))
        if split is not study.split:
            where = f"{study.split} here, {split} in line {first}"
            detail = f"patient_key {study.patient_key} is in two splits: {where}."
            yield Problem(line, COHORT_FILE, "cohort-leak", detail)
        if study.severity is not None and study.label is not FindingClass.COVID_19:
            detail = f"column severity: {study.severity.name} with label {study.label.name}."
            yield Problem(
                line, COHORT_FILE, "cohort-invalid", detail, "Leave it empty: only COVID_19 has a severity."
            )
        for column in _FILES:
            name = getattr(study, column)
            if name and not _is_inside(self._root, name):
                detail = f"column {column}: {name[:80]!r} is not in the folder."
                yield Problem(
                    line, name[:80], "cohort-invalid", detail, "Put the file there, or mend the name."
                )


def _is_inside(root: Path, name: str) -> bool:
    """Tell whether a name leads to something in the folder, links followed."""
    try:
        return (root / name).resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, ValueError):  # not there, or no possible name
        return False
