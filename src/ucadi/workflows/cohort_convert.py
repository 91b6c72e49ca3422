# SPDX-License-Identifier: Apache-2.0
"""One study of a cohort: from its files to a repaired volume, its mask and a record, or a refusal.

COHORT/studies/KEY.nii.gz          int16 HU in canonical axes
COHORT/studies/KEY_lesion.nii.gz   the mask on its grid, when there is one
COHORT/studies/KEY.json            the record with the loader report; written last, so it stands for the rest
"""

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ucadi import __version__
from ucadi.cohorts.content import check_mask_fits_label, content_hash, read_lesion_mask, to_int16
from ucadi.errors import CODES, CohortError, DataError
from ucadi.imaging.volume import Volume
from ucadi.io.checkpoint import write_json
from ucadi.io.guard import GuardedReader
from ucadi.io.nifti import write_nifti
from ucadi.io.reader import LoadedCt
from ucadi.types import FindingClass

__all__ = ["STUDIES_FOLDER", "ConvertTask", "StudyRecord", "convert_study"]

STUDIES_FOLDER = "studies"

_RECIPE = f"{__version__} 1"
"""With another release or recipe a study is converted again."""

_WORK_PREFIX = ".work-"


@dataclass(frozen=True)
class ConvertTask:
    """What is to be converted.

    Attributes:
        study_key: Pseudonym, and the files' name.
        files: Absolute paths.
        mask: Absolute path of the lesion mask; empty when there is none.
        label: The study's class.
        folder: Where the files go.
    """

    study_key: str
    files: tuple[str, ...]
    mask: str
    label: FindingClass
    folder: Path

    @property
    def image(self) -> Path:
        """The converted volume."""
        return self.folder / f"{self.study_key}.nii.gz"

    @property
    def lesion_mask(self) -> Path:
        """The converted mask."""
        return self.folder / f"{self.study_key}_lesion.nii.gz"

    @property
    def record(self) -> Path:
        """The record."""
        return self.folder / f"{self.study_key}.json"


@dataclass(frozen=True)
class StudyRecord:
    """What came of a study. It holds no name, date, path or UID.

    Attributes:
        source_hash: SHA-256 over the source files' bytes, and over the mask's with its label.
        recipe: What converted it.
        code: "ok", or why the study was refused.
        reason: The refusal in words; empty when ok.
        cure: How to mend it; empty when ok.
        content_hash: `content_hash` of the volume; empty when refused.
        has_mask: Whether a mask was written.
        lesion_ml: The mask's volume.
        loader_report: As JSON; empty when reading did not begin.
        is_reused: Whether the files were there already; not written.
    """

    source_hash: str
    recipe: str = _RECIPE
    code: str = "ok"
    reason: str = ""
    cure: str = ""
    content_hash: str = ""
    has_mask: bool = False
    lesion_ml: float | None = None
    loader_report: dict[str, Any] = field(default_factory=dict)
    is_reused: bool = False

    @property
    def verdict(self) -> str:
        """The loader's verdict."""
        return str(self.loader_report.get("verdict", ""))

    @property
    def series(self) -> str:
        """Pseudonym of the series that was read."""
        chosen = [s["key"] for s in self.loader_report.get("series", ()) if s["chosen"]]
        return str(chosen[0]) if chosen else ""


def convert_study(task: ConvertTask) -> StudyRecord:
    """Convert a study unless that was done already, and return what came of it.

    Raises:
        OSError: If the results cannot be written; faults of the input are in the record.
    """
    try:
        source_hash = _hash_source(task)
    except OSError as error:  # not recorded: it may be there next time
        cure = "Check that all files of the study can be read."
        reason = f"A file cannot be read ({type(error).__name__})."
        return StudyRecord("", code="file-error", reason=reason, cure=cure)
    done = _read_record(task, source_hash)
    if done is not None:
        return replace(done, is_reused=True)
    task.record.unlink(missing_ok=True)
    record = _convert(task, source_hash)
    document = {name: value for name, value in asdict(record).items() if name != "is_reused"}
    write_json(task.record, document)
    return record


def _convert(task: ConvertTask, source_hash: str) -> StudyRecord:
    """Read, check and write one study."""
    report: dict[str, Any] = {}
    try:
        with _as_input(task) as source:
            loaded = _reader().load(source)
        report = loaded.report.to_json()
        volume, mask = _volumes(task, loaded)
    except DataError as error:
        return StudyRecord(
            source_hash, code=error.code, reason=error.detail, cure=error.cure, loader_report=report
        )
    _write(volume, task.image)
    if mask is not None:
        _write(mask, task.lesion_mask)
    return StudyRecord(
        source_hash,
        content_hash=content_hash(volume),
        has_mask=mask is not None,
        lesion_ml=None if mask is None else round(float(mask.voxels.sum()) * mask.grid.voxel_ml, 3),
        loader_report=report,
    )


@cache
def _reader() -> GuardedReader:
    """Return this process' reader, which keeps its own helper process for one study after the other."""
    reader = GuardedReader()
    atexit.register(reader.__exit__, None, None, None)
    return reader


def _volumes(task: ConvertTask, loaded: LoadedCt) -> tuple[Volume, Volume | None]:
    """Return the volume and the mask on its grid.

    Raises:
        DataError: If the image was refused, or the mask does not fit.
    """
    volume, _ = loaded.require()
    volume = Volume(to_int16(volume.voxels), volume.grid)
    if not task.mask:
        return volume, None
    try:
        mask = read_lesion_mask(Path(task.mask), volume.grid)
        check_mask_fits_label(mask, task.label)
    except DataError as error:
        raise CohortError("cohort-mask", f"The lesion mask: {error.detail}", cure=error.cure) from error
    return volume, mask


def _hash_source(task: ConvertTask) -> str:
    """Return the hash of all that decides the result; the order of the files does not count."""
    digest = hashlib.sha256("".join(sorted(map(_hash_file, task.files))).encode())
    if task.mask:
        digest.update(f"{_hash_file(task.mask)} {task.label.name}".encode())
    return digest.hexdigest()


def _hash_file(path: str) -> str:
    """Return the SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_record(task: ConvertTask, source_hash: str) -> StudyRecord | None:
    """Return what an earlier run made of the same files; None when it has to be done."""
    try:
        record = StudyRecord(**json.loads(task.record.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    if (record.source_hash, record.recipe) != (source_hash, _RECIPE) or record.code not in {"ok", *CODES}:
        return None
    needed = [task.image] * (record.code == "ok") + [task.lesion_mask] * record.has_mask
    return record if all(path.is_file() for path in needed) else None


@contextmanager
def _as_input(task: ConvertTask) -> Iterator[Path]:
    """Give one path that holds the study's files and no others."""
    if len(task.files) == 1:
        yield Path(task.files[0])
        return
    parents = {Path(path).parent for path in task.files}
    if len(parents) == 1 and len(list((folder := parents.pop()).iterdir())) == len(task.files):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=_WORK_PREFIX, dir=task.folder) as work:
        for number, path in enumerate(task.files):
            _link_or_copy(path, Path(work, f"{number:06d}"))
        yield Path(work)


def _link_or_copy(source: str, target: Path) -> None:
    """Give a file a second name, or copy it to another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write(volume: Volume, path: Path) -> None:
    """Write a volume so that it appears complete or not at all."""
    temporary = path.with_name(f"{_WORK_PREFIX}{os.getpid()}-{path.name}")
    try:
        write_nifti(volume, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
