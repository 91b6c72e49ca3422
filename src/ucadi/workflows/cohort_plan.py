# SPDX-License-Identifier: Apache-2.0
"""What an import would do: the studies found, with pseudonym, label and split, or why one is left out."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ucadi.cohorts.cohort import Problem
from ucadi.cohorts.labels import LabelRow, LabelTable, read_labels
from ucadi.cohorts.splits import SplitShares, split_of, study_pseudonym
from ucadi.cohorts.studies import FileEntry, FoundStudy, find_files, group_studies, index_files
from ucadi.deid.key import SiteKey, make_key_file, read_key_file
from ucadi.errors import CohortError
from ucadi.types import Split
from ucadi.workflows.cohort_places import check_new_key, check_output, check_places
from ucadi.workflows.parallel import OnProgress, run_parallel

__all__ = ["ImportPlan", "ImportSettings", "PlannedStudy", "plan_import"]

_CHUNK = 256  # files that a process looks at in one go


@dataclass(frozen=True)
class ImportSettings:
    """How a site wants its studies imported.

    Attributes:
        source: A folder, searched as deep as it goes, or a CSV table that names the paths.
        labels: The table of labels for a folder; None when the source is the table.
        out: The cohort's folder.
        key_file: The site's key.
        is_new_key: Whether the key file is to be made.
        shares: Of the splits.
        jobs: Number of processes.
    """

    source: Path
    labels: Path | None
    out: Path
    key_file: Path
    is_new_key: bool
    shares: SplitShares
    jobs: int

    @classmethod
    def from_options(
        cls,
        source: Path,
        labels: Path | None,
        out: Path,
        key_file: Path,
        shares: str,
        jobs: int,
        *,
        is_new_key: bool,
    ) -> "ImportSettings":
        """Read the shares as in 70/15/15.

        Raises:
            ConfigError: If they are anything else.
        """
        return cls(source, labels, out, key_file, is_new_key, SplitShares.from_text(shares), jobs)


@dataclass(frozen=True)
class PlannedStudy:
    """One study of the source. Its name and files may identify the patient.

    Attributes:
        name: Where it lies, relative to the source.
        found: Its files.
        study_key: Pseudonym.
        patient_key: Pseudonym.
        split: The patient's.
        row: Its label, severity and mask; None when there is none.
        fault: Code and words when it cannot be imported; else empty.
    """

    name: str
    found: FoundStudy
    study_key: str
    patient_key: str
    split: Split
    row: LabelRow | None
    fault: tuple[str, str]


@dataclass(frozen=True)
class ImportPlan:
    """All that is known before a pixel is read.

    Attributes:
        key: The site's; None when there are problems.
        studies: In the order of their files.
        problems: Of the table of labels; with any, nothing is looked for.
        unused: Lines of the table for which there is no study.
        files: Number of files seen.
        passed_over: Number of files that belong to no study.
        damaged: Files that should be DICOM but cannot be read, relative to the source; those that may belong
            to a study are given to the reader with it.
        without_patient: Number of studies that name no patient; each counts as a patient of its own.
    """

    key: SiteKey | None
    studies: tuple[PlannedStudy, ...] = ()
    problems: tuple[Problem, ...] = ()
    unused: tuple[Problem, ...] = ()
    files: int = 0
    passed_over: int = 0
    damaged: tuple[str, ...] = ()
    without_patient: int = 0

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many studies each split would get of each class."""
        counted = Counter((s.split, s.row.label) for s in self.studies if s.row and not s.fault[0])
        found: dict[str, dict[str, int]] = {split.value: {} for split in Split}
        for (split, label), count in sorted(counted.items(), key=lambda item: item[0][1]):
            found[split.value][label.name] = count
        return found


def plan_import(settings: ImportSettings, on_progress: OnProgress) -> ImportPlan:
    """Look through a source and say what an import would do.

    A new key is made when all settings are checked and all files are found.

    Args:
        settings: The site's.
        on_progress: Progress over the files.

    Raises:
        ConfigError: As `ucadi.workflows.cohort_places` and `ucadi.deid.key.read_key_file`.
        CohortError: If there is no source or no table of labels, or it is no table.
        DataError: ``input-links`` or ``input-unreadable``, as `ucadi.cohorts.studies.find_files`.
    """
    source, labels = settings.source, settings.labels
    table, places = _table_and_places(source, labels)
    check_places(places, settings.out, settings.key_file)
    check_output(settings.out)
    if settings.is_new_key:
        check_new_key(settings.key_file, settings.out)
    key = None if settings.is_new_key else read_key_file(settings.key_file)
    if table.problems:
        return ImportPlan(None, problems=table.problems)
    root = source if source.is_dir() else source.parent
    masks = {row.mask for row in table.rows if row.mask}
    paths = [path for path in find_files(places) if path not in masks]
    key = key or make_key_file(settings.key_file)
    entries = _index(paths, settings.jobs, on_progress)
    found = group_studies(entries)
    rows = _assign(table.rows, found)
    studies = [_plan(root, study, row, key, settings.shares) for study, row in zip(found, rows, strict=True)]
    used = {row.line for row in rows if row is not None}
    words, cure = "no study was found for this line.", "Check the path, the StudyInstanceUID or the patient."
    unused = [
        Problem(row.line, (labels or source).name, "cohort-label", words, cure, is_note=True)
        for row in table.rows
        if row.line not in used
    ]
    taken = {path for study in found for path in (*study.files, study.mask, *study.damaged) if path}
    return ImportPlan(
        key,
        studies=tuple(_without_mixed_lines(studies)),
        unused=tuple(unused),
        files=len(paths),
        passed_over=len(paths) - len(taken),
        damaged=tuple(
            os.path.relpath(entry.path, root.resolve()) for entry in entries if entry.kind == "damaged"
        ),
        without_patient=sum(not _patient_of(s, row)[0] for s, row in zip(found, rows, strict=True)),
    )


def _table_and_places(source: Path, labels: Path | None) -> tuple[LabelTable, list[Path]]:
    """Return the table of labels, and where to look for studies."""
    if source.is_dir():
        if labels is None:
            raise CohortError(
                "cohort-label",
                f"{source} is a folder, and no table of labels was given.",
                cure="Give --labels with a CSV table: path, study or patient, and label.",
            )
        return read_labels(labels), [source]
    if not source.is_file():
        raise CohortError("input-not-found", f"{source} does not exist.")
    if labels is not None:
        raise CohortError(
            "cohort-label", f"{source} is a table itself.", cure="Leave --labels out, or give a folder."
        )
    table = read_labels(source)
    if any(not row.path for row in table.rows):
        line = next(row.line for row in table.rows if not row.path)
        raise CohortError(
            "cohort-label",
            f"{source} line {line}: no path.",
            cure="Name each study's path, or import a folder.",
        )
    return table, [Path(row.path) for row in table.rows]


def _index(paths: list[str], jobs: int, on_progress: OnProgress) -> list[FileEntry]:
    """Tell what all files are."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    entries: list[list[FileEntry]] = [[] for _ in chunks]
    done = 0
    for place, found in run_parallel(index_files, chunks, jobs if len(chunks) > 1 else 1):
        entries[place] = found
        done += len(chunks[place])
        on_progress("Looking at files", done, len(paths))
    return [entry for chunk in entries for entry in chunk]


def _assign(rows: Iterable[LabelRow], studies: Iterable[FoundStudy]) -> list[LabelRow | None]:
    """Return each study's row: by its path or a folder above it, else by its UID, else by its patient."""
    rows = list(rows)
    by_path = {row.path: row for row in rows if row.path}
    by_study = {row.study: row for row in rows if not row.path and row.study}
    by_patient = {row.patient: row for row in rows if not row.path and not row.study}
    return [
        next((by_path[place] for place in _places(study) if place in by_path), None)
        or by_study.get(study.study_uid)
        or next((by_patient[p] for p, _ in study.patients if p in by_patient), None)
        for study in studies
    ]


def _places(study: FoundStudy) -> list[str]:
    """Return a study's own place and all folders above it."""
    single = [study.files[0]] if len(study.files) == 1 else []
    return [*single, study.place, *map(str, Path(study.place).parents)]


def _plan(
    root: Path, found: FoundStudy, row: LabelRow | None, key: SiteKey, shares: SplitShares
) -> PlannedStudy:
    """Give a study its pseudonyms and its split, and say whether it can be imported."""
    is_single = len(found.files) == 1
    name = os.path.relpath(found.files[0] if is_single else found.place, root.resolve())
    study_id = found.study_uid or f"path {name}"
    patient_id, issuer = _patient_of(found, row)
    patient_key = key.patient(patient_id, issuer) if patient_id else key.patient_of_study(study_id)
    if not is_single:
        name = f"{name} ({len(found.files)} files)"
    fault = found.fault
    if not fault[0] and len(found.patients) > 1:
        fault = "cohort-leak", f"The study's files name {len(found.patients)} patients."
    if not fault[0] and row is None:
        fault = "cohort-label", "The study has no label."
    split = split_of(key, patient_key, shares)
    return PlannedStudy(name, found, study_pseudonym(key, study_id), patient_key, split, row, fault)


def _patient_of(found: FoundStudy, row: LabelRow | None) -> tuple[str, str]:
    """Return identifier and issuer of a study's patient, the table's before the header's; empty for none."""
    if row is not None and row.patient:
        issuers = [issuer for patient, issuer in found.patients if patient == row.patient]
        return row.patient, issuers[0] if issuers else ""
    return found.patients[0] if found.patients else ("", "")


def _without_mixed_lines(studies: list[PlannedStudy]) -> list[PlannedStudy]:
    """Leave out studies whose line of the table fits several patients: its label cannot be all theirs."""
    patients: dict[int, set[str]] = {}
    for study in studies:
        if study.row is not None:
            patients.setdefault(study.row.line, set()).add(study.patient_key)
    mixed = {line for line, keys in patients.items() if len(keys) > 1}
    return [
        replace(study, fault=("cohort-label", f"Line {study.row.line} of the labels fits several patients."))
        if study.row is not None and study.row.line in mixed and not study.fault[0]
        else study
        for study in studies
    ]
