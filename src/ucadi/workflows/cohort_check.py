# SPDX-License-Identifier: Apache-2.0
"""Everything that is wrong with a cohort, and what is in it.

Studies are read one after the other and forgotten: what stays is a hash and a few words of each.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ucadi.cohorts.cohort import COHORT_FILE, Problem, Study, read_cohort, read_rows
from ucadi.cohorts.content import check_mask_fits_label, content_hash, read_lesion_mask
from ucadi.errors import DataError
from ucadi.types import FindingClass, Split
from ucadi.workflows.parallel import OnProgress, run_parallel
from ucadi.workflows.worker_reader import read_guarded

__all__ = ["FEW_STUDIES", "CheckResult", "CohortSummary", "check_cohort", "summarize_cohort"]

FEW_STUDIES = 5
"""With fewer studies of a class in a split, its measures say little."""

Numbered = tuple[int, Study]


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        studies: Number of lines that can be read.
        problems: By line; those of the whole table last.
    """

    studies: int
    problems: tuple[Problem, ...]

    @property
    def is_fine(self) -> bool:
        """Whether there is nothing but notes."""
        return all(problem.is_note for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return a plain object."""
        problems = [asdict(problem) for problem in self.problems]
        return {"studies": self.studies, "is_fine": self.is_fine, "problems": problems}


@dataclass(frozen=True)
class CohortSummary:
    """How many studies of each kind a cohort has.

    Attributes:
        name: Of the cohort's folder.
        studies: All.
        patients: All.
        masks: Studies with a lesion mask.
        by_class: Number of studies by split and class.
        by_severity: Number of studies by split and COVID-19 severity.
        by_verdict: Number of studies by the loader's verdict.
    """

    name: str
    studies: int
    patients: int
    masks: int
    by_class: dict[str, dict[str, int]]
    by_severity: dict[str, dict[str, int]]
    by_verdict: dict[str, int]


def check_cohort(
    root: Path,
    *,
    is_quick: bool = False,
    jobs: int = 1,
    on_progress: OnProgress = lambda words, done, total: None,
) -> CheckResult:
    """Find every problem of a cohort's table and files.

    Args:
        root: The cohort's folder.
        is_quick: Whether to leave images and masks unread.
        jobs: Number of processes.
        on_progress: Progress over the studies.
    """
    problems: list[Problem] = []
    studies: list[Numbered] = []
    readable: list[Numbered] = []
    for row in read_rows(root):
        problems.extend(row.problems)
        if row.study is not None:
            studies.append((row.line, row.study))
            if not any(problem.file != COHORT_FILE for problem in row.problems):  # no file is missing
                readable.append((row.line, row.study))
    hashes = {line: study.content_hash for line, study in studies if study.content_hash}
    if not is_quick:
        look = partial(_look_at, root)
        looked = run_parallel(look, readable, jobs)
        for done, (place, (found, content)) in enumerate(looked, start=1):
            problems.extend(found)
            if content:
                hashes[readable[place][0]] = content
            on_progress("Checking studies", done, len(readable))
    problems.extend(_twins(studies, hashes))
    if not any(problem.line == 0 for problem in problems):
        problems.extend(_gaps([study for _, study in studies]))
    problems.sort(key=lambda problem: (problem.line == 0, problem.line, problem.file, problem.code))
    return CheckResult(len(studies), tuple(problems))


def summarize_cohort(root: Path) -> CohortSummary:
    """Count a cohort's studies.

    Raises:
        CohortError: If its table is not valid.
    """
    studies = read_cohort(root).studies
    severities = [(s.split.value, s.severity.name) for s in studies if s.severity is not None]
    return CohortSummary(
        name=root.resolve().name,
        studies=len(studies),
        patients=len({study.patient_key for study in studies}),
        masks=sum(bool(study.lesion_mask) for study in studies),
        by_class=_nested((study.split.value, study.label.name) for study in studies),
        by_severity=_nested(severities),
        by_verdict=dict(sorted(Counter(s.verdict or "unknown" for s in studies).items())),
    )


def _nested(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Count pairs, by their first and then by their second part."""
    counted = Counter(pairs)
    return {
        split.value: {name: count for (part, name), count in counted.items() if part == split.value}
        for split in Split
    }


def _look_at(root: Path, numbered: Numbered) -> tuple[list[Problem], str]:
    """Read one study's files; return what is wrong with them, and the image's content hash."""
    line, study = numbered
    loaded = read_guarded(root / study.image)
    report = loaded.report
    if loaded.volume is None:
        return [Problem(line, study.image, report.code, report.reason, report.cure)], ""
    problems = []
    content = content_hash(loaded.volume)
    if study.content_hash not in ("", content):
        detail = "The image is not the one that was imported: its content hash differs."
        problems.append(Problem(line, study.image, "cohort-changed", detail))
    if study.lesion_mask:
        try:
            mask = read_lesion_mask(root / study.lesion_mask, loaded.volume.grid)
            check_mask_fits_label(mask, study.label)
        except DataError as error:
            problems.append(Problem(line, study.lesion_mask, error.code, error.detail, error.cure))
    return problems, content


def _twins(studies: Iterable[Numbered], hashes: dict[int, str]) -> Iterator[Problem]:
    """Yield studies whose image is that of an earlier line."""
    first: dict[str, Numbered] = {}
    for line, study in studies:
        content = hashes.get(line)
        if content is None:
            continue
        other_line, other = first.setdefault(content, (line, study))
        if other is study:
            continue
        whose = "the same patient" if other.patient_key == study.patient_key else "another patient"
        detail = f"The scan is that of line {other_line} ({other.study_key}), of {whose}"
        if other.split is study.split:
            yield Problem(line, study.image, "cohort-duplicate", f"{detail}.")
        else:
            detail = f"{detail} and in another split ({other.split}, here {study.split})."
            yield Problem(line, study.image, "cohort-leak", detail, "Keep one of the two studies.")


def _gaps(studies: list[Study]) -> Iterator[Problem]:
    """Yield notes on splits and classes that are empty or small; the user may want it so."""
    counted = Counter((study.split, study.label) for study in studies)
    labels = [label for label in FindingClass if any(study.label is label for study in studies)]
    for split in Split:
        in_split = sum(counted[split, label] for label in labels)
        if not in_split:
            yield _note(f"There is no {split} study.")
            continue
        for label in labels:
            count = counted[split, label]
            if count < FEW_STUDIES:
                yield _note(f"Studies of {label.name} in {split}: {count}, fewer than {FEW_STUDIES}.")
    for label in FindingClass:
        if label not in labels and studies:
            yield _note(f"There is no study of {label.name}.")


def _note(detail: str) -> Problem:
    """Return a note on the whole table."""
    return Problem(0, COHORT_FILE, "cohort-balance", detail, is_note=True)
