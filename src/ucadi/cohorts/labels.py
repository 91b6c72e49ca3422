# SPDX-License-Identifier: Apache-2.0
"""A site's table of labels: which class, severity and mask a study, a patient or a path has."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ucadi.cohorts.cohort import Problem
from ucadi.errors import CohortError
from ucadi.types import FindingClass, Severity

__all__ = ["KEY_COLUMNS", "LabelRow", "LabelTable", "read_labels"]

KEY_COLUMNS = ("path", "study", "patient")
"""What a row is about, by the first of these columns that is filled."""

_COLUMNS = {*KEY_COLUMNS, "label", "severity", "mask"}
_CLASSES = {re.sub(r"[^A-Z0-9]", "", label.name): label for label in FindingClass}
_MAX_SEEN = 60


@dataclass(frozen=True)
class LabelRow:
    """One line of the table.

    Attributes:
        line: Counted from 1.
        path: Absolute; of a folder, an archive or a volume. Empty when not given.
        study: StudyInstanceUID; empty when not given.
        patient: The patient's identifier at the site; empty when not given.
        label: The class.
        severity: Of COVID-19; None for other classes, or when unknown.
        mask: Absolute path; empty when not given.
    """

    line: int
    path: str
    study: str
    patient: str
    label: FindingClass
    severity: Severity | None
    mask: str


@dataclass(frozen=True)
class LabelTable:
    """All lines that can be used, and what is wrong with the others.

    Attributes:
        rows: In the table's order.
        problems: By line.
    """

    rows: tuple[LabelRow, ...]
    problems: tuple[Problem, ...]


def read_labels(path: Path) -> LabelTable:
    """Read a table of labels; its paths are relative to its own folder.

    Raises:
        CohortError: If it is no CSV table, or lacks its columns.
    """
    rows: list[LabelRow] = []
    problems: list[Problem] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark in front
            first = file.readline()
            file.seek(0)
            # Spreadsheets of many countries separate by semicolons, since their decimals have commas.
            delimiter = ";" if ";" in first and "," not in first else ","
            reader = csv.DictReader(file, strict=True, delimiter=delimiter)
            _check_columns(path, set(reader.fieldnames or ()))
            for cells in reader:
                found = list(_problems(path, reader.line_num, cells))
                problems.extend(found)
                if not found:
                    rows.append(_row(path.parent, reader.line_num, _stripped(cells)))
    except UnicodeDecodeError as error:
        raise CohortError(
            "cohort-label", f"{path} is not in UTF-8.", cure="Save it as CSV in UTF-8."
        ) from error
    except csv.Error as error:
        raise CohortError(
            "cohort-label", f"{path} is not a CSV table: {error}.", cure="Save it as CSV in UTF-8."
        ) from error
    problems.extend(_conflicts(path, rows))
    return LabelTable(tuple(rows), tuple(sorted(problems, key=lambda problem: problem.line)))


def _check_columns(path: Path, columns: set[str]) -> None:
    """Refuse a table without labels, or with columns that nobody would read."""
    if "label" not in columns or not columns & set(KEY_COLUMNS):
        raise CohortError(
            "cohort-label",
            f"{path} lacks the column label, or one of {', '.join(KEY_COLUMNS)}.",
            cure=f"Name the columns in the first line; allowed are {', '.join(sorted(_COLUMNS))}.",
        )
    unknown = sorted(columns - _COLUMNS)
    if unknown:
        raise CohortError(
            "cohort-label",
            f"{path}: column {unknown[0][:_MAX_SEEN]!r} is not known.",
            cure=f"Remove it, or name it one of {', '.join(sorted(_COLUMNS))}.",
        )


def _stripped(cells: dict[str, str]) -> dict[str, str]:
    """Return a line's cells without blanks around them."""
    return {name: (text or "").strip() for name, text in cells.items()}


def _problems(path: Path, line: int, cells: dict[str, str]) -> Iterator[Problem]:
    """Yield what is wrong with a line by itself."""

    def problem(detail: str, cure: str) -> Problem:
        return Problem(line, path.name, "cohort-label", detail, cure)

    if None in cells or None in cells.values():
        yield problem("not as many cells as there are columns.", "Give each column a cell.")
        return
    cells = _stripped(cells)
    if not any(cells.get(name) for name in KEY_COLUMNS):
        yield problem("no study is named.", f"Fill one of {', '.join(KEY_COLUMNS)}.")
    label = _class_named(cells["label"])
    if label is None:
        known = ", ".join(FindingClass.__members__)
        yield problem(f"label {cells['label'][:_MAX_SEEN]!r} is not known.", f"Use {known}.")
    severity = cells.get("severity", "")
    if severity and severity.upper() not in Severity.__members__:
        yield problem(f"severity {severity[:_MAX_SEEN]!r} is not known.", "Use I, II or III.")
    elif severity and label not in (FindingClass.COVID_19, None):
        yield problem(f"severity {severity} with another label than COVID_19.", "Leave it empty.")
    for column in ("path", "mask"):
        name = cells.get(column, "")
        if name and not _exists(path.parent, name):
            yield problem(f"{column} {name[:_MAX_SEEN]!r} does not exist.", "Mend the path.")


def _row(folder: Path, line: int, cells: dict[str, str]) -> LabelRow:
    """Build a row from a line without problems."""
    label = _class_named(cells["label"])
    assert label is not None  # noqa: S101 - such a line has a problem
    severity = cells.get("severity", "").upper()
    return LabelRow(
        line,
        path=_absolute(folder, cells.get("path", "")),
        study=cells.get("study", ""),
        patient=cells.get("patient", ""),
        label=label,
        severity=Severity[severity] if severity else None,
        mask=_absolute(folder, cells.get("mask", "")),
    )


def _conflicts(path: Path, rows: list[LabelRow]) -> Iterator[Problem]:
    """Yield lines that say the same study twice, and a column of patients that is filled in part only."""
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        column = next(name for name in KEY_COLUMNS if getattr(row, name))
        before = first.setdefault((column, getattr(row, column)), row.line)
        if before != row.line:
            detail = f"the same {column} as in line {before}."
            yield Problem(row.line, path.name, "cohort-label", detail, "Keep one of the two lines.")
    named = [row for row in rows if row.path or row.study]
    without = [row for row in named if not row.patient]
    if without and len(without) < len(named):
        # Else one patient could be known by two identifiers, and come into two splits.
        cure = "Fill the column patient in all lines, or in none."
        yield Problem(without[0].line, path.name, "cohort-label", "no patient, as in other lines.", cure)


def _class_named(text: str) -> FindingClass | None:
    """Return the class of a word, whatever its case and hyphens: COVID-19, covid_19."""
    return _CLASSES.get(re.sub(r"[^A-Z0-9]", "", text.upper()))


def _absolute(folder: Path, name: str) -> str:
    """Return an absolute path; empty for an empty name."""
    return str((folder / name).resolve()) if name else ""


def _exists(folder: Path, name: str) -> bool:
    """Tell whether a path leads to something."""
    try:
        return (folder / name).exists()
    except (OSError, ValueError):  # no possible name
        return False
