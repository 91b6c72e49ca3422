# SPDX-License-Identifier: Apache-2.0
"""A cohort: a folder with ``cohort.csv`` and the studies that it names."""

import csv
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ucadi.errors import CohortError
from ucadi.types import FindingClass, PathLikeStr, Severity, Split

__all__ = ["COHORT_FILE", "Cohort", "Study", "read_cohort", "write_cohort"]

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


def write_cohort(root: PathLikeStr, studies: tuple[Study, ...]) -> Cohort:
    """Write ``cohort.csv`` into a folder that holds the named files."""
    names = [f.name for f in fields(Study)]
    with (Path(root) / COHORT_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for study in studies:
            writer.writerow([_text(getattr(study, name)) for name in names])
    return Cohort(Path(root), studies)


def read_cohort(root: PathLikeStr) -> Cohort:
    """Read and check a cohort's table.

    Raises:
        CohortError: If the table is missing, a cell is invalid, a file that it names does not exist, a study
            appears twice, or a patient is in two splits. The message names line and column.
    """
    path = Path(root) / COHORT_FILE
    if not path.is_file():
        raise CohortError(
            "cohort-invalid", f"There is no {COHORT_FILE} in {root}.", cure="Give a cohort's folder."
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark in front
            reader = csv.DictReader(file, strict=True)
            missing = set(_REQUIRED) - set(reader.fieldnames or ())
            if missing:
                raise CohortError(
                    "cohort-invalid", f"{path}: column {', '.join(sorted(missing))} is missing."
                )
            rows = [(f"{path} line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise CohortError(
            "cohort-invalid", f"{path} is not a CSV table: {error}.", cure="Save it as CSV in UTF-8."
        ) from error
    parsed = [(where, _parse(row, where)) for where, row in rows]
    _check(Path(root), parsed)
    return Cohort(Path(root), tuple(study for _, study in parsed))


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
}
"""How a column's cell is read, and what it may hold; a column that is not required may be empty."""


def _parse(row: dict[str, Any], where: str) -> Study:
    """Build a study from a row of the table."""
    if None in row or None in row.values():
        raise CohortError("cohort-invalid", f"{where} has not as many cells as there are columns.")
    values: dict[str, Any] = {"severity": None}
    for name, (read, wanted) in _COLUMNS.items():
        text = row.get(name, "").strip()
        if not text and name not in _REQUIRED:
            continue
        try:
            values[name] = read(text)
        except (KeyError, ValueError) as error:
            raise CohortError(
                "cohort-invalid",
                f"{where}, column {name}: {text[:80]!r} is not allowed.",
                cure=f"Use {wanted}.",
            ) from error
    return Study(**values)


def _check(root: Path, rows: Iterable[tuple[str, Study]]) -> None:
    """Refuse double studies, patients in two splits and files that are missing or outside the folder."""
    split_of: dict[str, Split] = {}
    seen: set[str] = set()
    for where, study in rows:
        if study.study_key in seen:
            raise CohortError("cohort-invalid", f"{where}: study_key {study.study_key} appears twice.")
        seen.add(study.study_key)
        if split_of.setdefault(study.patient_key, study.split) is not study.split:
            raise CohortError("cohort-invalid", f"{where}: patient_key {study.patient_key} is in two splits.")
        for column in ("image", "dicom", "lesion_mask"):
            name = getattr(study, column)
            if name and not _is_inside(root, name):
                raise CohortError(
                    "cohort-invalid", f"{where}, column {column}: {name[:80]!r} is not in the folder."
                )


def _is_inside(root: Path, name: str) -> bool:
    """Tell whether a name leads to something in the folder, links followed."""
    try:
        return (root / name).resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, ValueError):  # not there, or no possible name
        return False
