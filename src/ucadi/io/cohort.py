# SPDX-License-Identifier: Apache-2.0
"""A cohort: a folder with ``cohort.csv`` and the studies that it names."""

import csv
import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

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
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"patient_key", "study_key", "split", "label", "image"} - set(reader.fieldnames or ())
        if missing:
            raise CohortError("cohort-invalid", f"{path}: column {', '.join(sorted(missing))} is missing.")
        studies = tuple(_parse(row, f"{path} line {line}") for line, row in enumerate(reader, start=2))
    _check(Path(root), studies)
    return Cohort(Path(root), studies)


def _text(value: object) -> str:
    """Write a cell: names for enums, empty for None."""
    if value is None:
        return ""
    if isinstance(value, FindingClass | Severity):
        return value.name
    return str(value)


def _parse(row: dict[str, str], where: str) -> Study:
    """Build a study from a row of the table."""

    def cell(name: str) -> str:
        return (row.get(name) or "").strip()

    try:
        return Study(
            patient_key=cell("patient_key"),
            study_key=cell("study_key"),
            split=Split(cell("split")),
            label=FindingClass[cell("label")],
            severity=Severity[cell("severity")] if cell("severity") else None,
            image=cell("image"),
            dicom=cell("dicom"),
            lesion_mask=cell("lesion_mask"),
            lesion_ml=float(cell("lesion_ml")) if cell("lesion_ml") else None,
        )
    except (KeyError, ValueError) as error:
        allowed = f"label: {', '.join(c.name for c in FindingClass)}; split: {', '.join(Split)}"
        raise CohortError(
            "cohort-invalid", f"{where}: {error} is not allowed.", cure=f"Use {allowed}."
        ) from error


def _check(root: Path, studies: tuple[Study, ...]) -> None:
    """Refuse double studies, patients in two splits and files that are missing or outside the folder."""
    split_of: dict[str, Split] = {}
    seen: set[str] = set()
    for study in studies:
        if study.study_key in seen:
            raise CohortError("cohort-invalid", f"{root}: study {study.study_key} appears twice.")
        seen.add(study.study_key)
        if split_of.setdefault(study.patient_key, study.split) is not study.split:
            raise CohortError("cohort-invalid", f"{root}: patient {study.patient_key} is in two splits.")
        for name in filter(None, (study.image, study.dicom, study.lesion_mask)):
            target = root / name
            if not target.exists() or not target.resolve().is_relative_to(root.resolve()):
                raise CohortError(
                    "cohort-invalid",
                    f"{root}: study {study.study_key} names {name}, which is not in the folder.",
                )
