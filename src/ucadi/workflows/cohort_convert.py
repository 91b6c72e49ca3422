# SPDX-License-Identifier: Apache-2.0
"""One study of a cohort: from its files to a repaired volume, its mask and a record, or a refusal.

COHORT/studies/KEY.nii.gz          int16 HU in canonical axes
COHORT/studies/KEY_lesion.nii.gz   the mask on its grid, when there is one
COHORT/studies/KEY.json            the record with the loader report; written last, so it stands for the rest
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ucadi import __version__
from ucadi.cohorts.content import check_mask_fits_label, content_hash, read_lesion_mask, to_int16
from ucadi.cohorts.splits import series_pseudonym, source_pseudonym
from ucadi.deid.key import SiteKey
from ucadi.errors import CODES, CohortError, DataError
from ucadi.imaging.volume import Volume
from ucadi.io.checkpoint import write_json
from ucadi.io.nifti import write_nifti
from ucadi.io.reader import LoadedCt
from ucadi.types import FindingClass
from ucadi.workflows.worker_reader import read_guarded

__all__ = ["STUDIES_FOLDER", "ConvertTask", "StudyRecord", "convert_study"]

STUDIES_FOLDER = "studies"

_RECIPE = f"{__version__} 2"
"""With another release or recipe a study is converted again."""

_WORK_PREFIX = ".work-"
_SERIES_KEY = re.compile(r"\b[0-9a-f]{8}\b")


@dataclass(frozen=True)
class ConvertTask:
    """What is to be converted.

    Attributes:
        study_key: Pseudonym, and the files' name.
        files: Absolute paths.
        damaged: Absolute paths of files that may be the study's, but cannot be read.
        mask: Absolute path of the lesion mask; empty when there is none.
        label: The study's class.
        folder: Where the files go.
        work: Folder outside of the cohort that only this user may enter, for what names the patient.
        key: The site's.
    """

    study_key: str
    files: tuple[str, ...]
    damaged: tuple[str, ...]
    mask: str
    label: FindingClass
    folder: Path
    work: Path
    key: SiteKey

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
        source_hash: Stands for the source files' bytes, and for the mask's with its label.
        recipe: What converted it.
        code: "ok", or why the study was refused.
        reason: The refusal in words; empty when ok.
        cure: How to mend it; empty when ok.
        content_hash: `content_hash` of the volume; empty when refused.
        has_mask: Whether a mask was written.
        lesion_ml: The mask's volume.
        damaged: Number of damaged files that were given to the reader with the others.
        loader_report: As JSON, with the site's own pseudonyms of series; empty when reading did not begin.
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
    damaged: int = 0
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
    with _as_input(task) as source:
        loaded = read_guarded(source)
    report, renamed = loaded.report.to_json(), _renamed_series(task, loaded)
    common = {"damaged": len(task.damaged), "loader_report": _rename(report, renamed)}
    try:
        volume, mask = _volumes(task, loaded)
    except DataError as error:
        reason = _rename(error.detail, renamed)
        return StudyRecord(source_hash, code=error.code, reason=reason, cure=error.cure, **common)
    _write(volume, task.image)
    if mask is not None:
        _write(mask, task.lesion_mask)
    return StudyRecord(
        source_hash,
        content_hash=content_hash(volume),
        has_mask=mask is not None,
        lesion_ml=None if mask is None else round(float(mask.voxels.sum()) * mask.grid.voxel_ml, 3),
        **common,
    )


def _renamed_series(task: ConvertTask, loaded: LoadedCt) -> dict[str, str]:
    """Return the site's pseudonym of each DICOM series by its key: a plain hash of a UID leads to a PACS."""
    keys = {series.key for series in loaded.report.series}
    return {key: series_pseudonym(task.key, key) for key in keys if _SERIES_KEY.fullmatch(key)}


def _rename(value: Any, names: dict[str, str]) -> Any:
    """Replace keys of series wherever a part of a JSON document is or quotes one."""
    if isinstance(value, str):
        return _SERIES_KEY.sub(lambda found: names.get(found[0], found[0]), value)
    if isinstance(value, dict):
        return {name: _rename(part, names) for name, part in value.items()}
    return [_rename(part, names) for part in value] if isinstance(value, list | tuple) else value


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
    files = sorted(map(_hash_file, (*task.files, *task.damaged)))
    digest = hashlib.sha256("".join(files).encode())
    if task.mask:
        digest.update(f"{_hash_file(task.mask)} {task.label.name}".encode())
    return source_pseudonym(task.key, digest.hexdigest())


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
    files = task.files + task.damaged
    if len(files) == 1:
        yield Path(files[0])
        return
    parents = {Path(path).parent for path in files}
    if len(parents) == 1 and len(list((folder := parents.pop()).iterdir())) == len(files):
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=task.work) as work:
        for number, path in enumerate(files):
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
