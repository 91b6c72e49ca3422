# SPDX-License-Identifier: Apache-2.0
"""Import a site's studies into a cohort, in a few processes, going on where an earlier run stopped.

COHORT/cohort.csv           the study table
COHORT/studies/             volumes, masks and records by pseudonym, see `ucadi.workflows.cohort_convert`
COHORT/import-report.json   key and shares, counts, and what was left out and why

No file names a patient, a UID, a date or a path of the source.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ucadi import __version__
from ucadi.cohorts.cohort import COHORT_FILE, Cohort, Study, read_rows, write_cohort
from ucadi.deid.key import SiteKey
from ucadi.errors import CODES, CohortError, ConfigError
from ucadi.io.checkpoint import write_json
from ucadi.workflows.cohort_convert import STUDIES_FOLDER, ConvertTask, StudyRecord, convert_study
from ucadi.workflows.cohort_places import LOCK_FILE, REPORT_FILE, check_output
from ucadi.workflows.cohort_plan import ImportPlan, ImportSettings, PlannedStudy
from ucadi.workflows.parallel import OnProgress, run_parallel

__all__ = ["ImportResult", "LeftOut", "import_cohort"]


@dataclass(frozen=True)
class LeftOut:
    """A study that is not in the table.

    Attributes:
        study_key: Pseudonym.
        name: Where it lies in the source; for the screen only.
        code: Why, for programs.
        reason: Why, in words.
        cure: How to mend it.
    """

    study_key: str
    name: str
    code: str
    reason: str
    cure: str


@dataclass(frozen=True)
class ImportResult:
    """What came of an import.

    Attributes:
        cohort: All studies of the folder, those of earlier imports too.
        imported: Number of studies of this source that are in the table.
        reused: How many of them had been converted before.
        left_out: The others, in the order of the source.
        damaged: Number of files of the source that should be DICOM but cannot be read.
    """

    cohort: Cohort
    imported: int
    reused: int
    left_out: tuple[LeftOut, ...]
    damaged: int

    def to_json(self) -> dict[str, Any]:
        """Return a plain object without any name of the source."""
        return {
            "studies": len(self.cohort.studies),
            "imported": self.imported,
            "reused": self.reused,
            "damaged_files": self.damaged,
            "left_out_by_code": dict(sorted(Counter(study.code for study in self.left_out).items())),
            "left_out": [
                {name: value for name, value in asdict(study).items() if name != "name"}
                for study in self.left_out
            ],
        }


def import_cohort(plan: ImportPlan, settings: ImportSettings, on_progress: OnProgress) -> ImportResult:
    """Convert all planned studies and write the table; studies of earlier imports stay in it.

    Args:
        plan: Without problems.
        settings: Those of the plan; one study is in each process at a time.
        on_progress: Progress over the studies.

    Raises:
        ConfigError: ``output-exists`` if the folder holds something else.
        CohortError: ``cohort-changed`` if it was made with another key or other shares; ``cohort-empty`` if
            there would be no study in it: then there is no table.
        OSError: If the results cannot be written.
    """
    assert plan.key is not None  # noqa: S101 - a plan with problems is not imported
    folder, key = settings.out, plan.key
    wanted = [study for study in plan.studies if not study.fault[0]]
    if not wanted and not (folder / COHORT_FILE).is_file():
        raise _empty(Counter(study.fault[0] for study in plan.studies))
    made_with = _made_with(key, settings)
    with _claimed(folder):
        before = _open_cohort(folder, made_with)
        records: list[StudyRecord | None] = [None] * len(wanted)
        with _work_folder(folder) as work:
            tasks = (_task(folder, work, key, study) for study in wanted)
            for done, (place, record) in enumerate(
                run_parallel(convert_study, tasks, settings.jobs), start=1
            ):
                records[place] = record
                on_progress("Converting studies", done, len(wanted))
        by_key = {study.study_key: record for study, record in zip(wanted, records, strict=True) if record}
        result = _assemble(folder, before, plan, by_key)
        write_json(folder / REPORT_FILE, {**made_with, **result.to_json()})
        if not result.cohort.studies:
            raise _empty(Counter(study.code for study in result.left_out))
        write_cohort(folder, result.cohort.studies)
    return result


def _empty(codes: Counter[str]) -> CohortError:
    """Say that there is no study that can be used, and why."""
    why = ", ".join(f"{count} x {code}" for code, count in codes.most_common()) or "there is none"
    return CohortError("cohort-empty", f"None of the {codes.total()} studies can be used: {why}.")


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Make the folder for what names patients: outside of the cohort, for this user only, gone afterwards.

    Its name follows from the cohort's, so the next run removes what a killed one has left.
    """
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    work = Path(tempfile.gettempdir(), f"ucadi-import-{os.getuid()}-{name}")
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(mode=0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make the folder, and keep a second import out of it."""
    check_output(folder)
    studies = folder / STUDIES_FOLDER
    studies.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                "output-exists", f"Another import into {folder} is running.", cure="Wait until it has ended."
            ) from error
        _remove_remains(studies)
        yield


def _open_cohort(folder: Path, wanted: dict[str, str]) -> tuple[Study, ...]:
    """Return the studies of earlier imports, after a check that key and shares are still the same."""
    path = folder / REPORT_FILE
    if not path.is_file():
        write_json(path, wanted)
        return ()
    try:
        made_with = json.loads(path.read_bytes())
        same = all(made_with[name] == wanted[name] for name in ("key_fingerprint", "shares"))
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise CohortError(
            "cohort-changed",
            f"{folder} was made with another key file or other shares than {wanted['shares']}; its patients "
            "would get other pseudonyms or splits.",
            cure="Use the same key file and shares, or another folder.",
        )
    return tuple(_studies_before(folder)) if (folder / COHORT_FILE).is_file() else ()


def _studies_before(folder: Path) -> Iterator[Study]:
    """Yield the studies of the table as it is; one whose files were lost may be found again.

    Raises:
        CohortError: If a line cannot be read: to write the table anew would lose it.
    """
    for row in read_rows(folder):
        if row.study is None:
            problem = row.problems[0]
            where = f"{folder / COHORT_FILE} line {problem.line}"
            raise CohortError(problem.code, f"{where}: {problem.detail}", cure=problem.cure)
        yield row.study


def _task(folder: Path, work: Path, key: SiteKey, study: PlannedStudy) -> ConvertTask:
    """Return what a worker needs to know."""
    assert study.row is not None  # noqa: S101 - a study without label has a fault
    return ConvertTask(
        study.study_key,
        study.found.files,
        study.found.damaged,
        study.row.mask or study.found.mask,
        study.row.label,
        folder / STUDIES_FOLDER,
        work,
        key,
    )


def _assemble(
    folder: Path, before: tuple[Study, ...], plan: ImportPlan, records: dict[str, StudyRecord]
) -> ImportResult:
    """Put together the table: earlier studies that were not found again, and all found ones that are fine."""
    found = {study.study_key for study in plan.studies}
    kept = [study for study in before if study.study_key not in found]
    first = {study.content_hash: study for study in kept if study.content_hash}
    added: list[Study] = []
    left_out: list[LeftOut] = []
    reused = 0
    for planned in plan.studies:
        code, reason, cure = _refusal(planned, records.get(planned.study_key))
        if not code:
            study = _study(planned, records[planned.study_key])
            twin = first.setdefault(study.content_hash, study)
            if twin is study:
                added.append(study)
                reused += records[planned.study_key].is_reused
                continue
            code, cure = "cohort-duplicate", CODES["cohort-duplicate"].cure
            same = "the same patient" if twin.patient_key == study.patient_key else "another patient"
            reason = f"The scan is in the cohort as {twin.study_key} of {same}."
        left_out.append(LeftOut(planned.study_key, planned.name, code, reason, cure))
    studies = tuple(sorted([*kept, *added], key=lambda study: (study.patient_key, study.study_key)))
    return ImportResult(Cohort(folder, studies), len(added), reused, tuple(left_out), len(plan.damaged))


def _refusal(planned: PlannedStudy, record: StudyRecord | None) -> tuple[str, str, str]:
    """Return code, reason and cure when a study cannot be in the table; empty when it can."""
    code, reason = planned.fault
    if code or record is None:
        return code, reason, CODES[code].cure
    return ("", "", "") if record.code == "ok" else (record.code, record.reason, record.cure)


def _study(planned: PlannedStudy, record: StudyRecord) -> Study:
    """Return a line of the table."""
    assert planned.row is not None  # noqa: S101 - a study without label has a fault
    key = planned.study_key
    return Study(
        patient_key=planned.patient_key,
        study_key=key,
        split=planned.split,
        label=planned.row.label,
        severity=planned.row.severity,
        image=f"{STUDIES_FOLDER}/{key}.nii.gz",
        lesion_mask=f"{STUDIES_FOLDER}/{key}_lesion.nii.gz" if record.has_mask else "",
        lesion_ml=record.lesion_ml,
        series=record.series,
        content_hash=record.content_hash,
        verdict=record.verdict,
    )


def _made_with(key: SiteKey, settings: ImportSettings) -> dict[str, str]:
    """Return what decides about pseudonyms and splits, and the release."""
    return {
        "ucadi_version": __version__,
        "key_fingerprint": key.fingerprint,
        "shares": str(settings.shares),
    }


def _remove_remains(studies: Path) -> None:
    """Remove what a run left half-done when it was killed."""
    for path in studies.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
