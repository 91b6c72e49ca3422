# SPDX-License-Identifier: Apache-2.0
"""De-identify a folder of DICOM and NIfTI files into a new folder, whose names say nothing either."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ucadi.deid.files import write_deidentified
from ucadi.deid.key import SiteKey, make_key_file, read_key_file
from ucadi.errors import CODES, ConfigError, DataError
from ucadi.io.files import OpenFile, file_of_path, files_of_folder

__all__ = ["DeidReport", "deidentify", "describe_deid", "make_key"]

_DAMAGED = {"dicom-undecodable", "input-unreadable"}


@dataclass
class DeidReport:
    """What became of an input's files. It holds no name, path, date or identifier of the input.

    Attributes:
        key: The key's fingerprint.
        written: Number of files written, by format.
        patients: Number of files of each patient, by pseudonym; DICOM only.
        without_id: Number of DICOM images without PatientID, whose pseudonym is that of their study.
        left_out: Number of files left out, by error code.
    """

    key: str
    written: Counter[str] = field(default_factory=Counter)
    patients: Counter[str] = field(default_factory=Counter)
    without_id: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def damaged(self) -> int:
        """Number of files that are images but cannot be read."""
        return sum(count for code, count in self.left_out.items() if code in _DAMAGED)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "key": self.key,
            "written": dict(sorted(self.written.items())),
            "patients": dict(sorted(self.patients.items())),
            "without_id": self.without_id,
            "left_out": dict(sorted(self.left_out.items())),
        }


def make_key(path: Path) -> str:
    """Make a site's key file and return the key's fingerprint.

    Raises:
        ConfigError: If the file exists.
    """
    return make_key_file(path).fingerprint


def deidentify(
    source: Path,
    out: Path,
    key_file: Path,
    *,
    new_key: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> DeidReport:
    """De-identify a file, or all files of a folder, into a folder that appears when all is done.

    DICOM images lie in ``patient/study/series/instance.dcm``, NIfTI files at the top.

    Args:
        source: A DICOM or NIfTI file, or a folder with any files; links in it are not followed.
        out: The folder to write; what it holds is replaced, which the caller has to allow first.
        key_file: The site's key, as `make_key` writes it.
        new_key: Make the key file first. It is gone again when nothing could be written.
        on_progress: Called with (done, total) after each file.

    Raises:
        ConfigError: ``output-in-input``, or as `ucadi.deid.key.read_key_file` and `make_key`.
        DataError: ``input-not-found``, ``deid-nothing`` when no file could be written, or as
            `ucadi.io.files.files_of_folder`.
    """
    files = _list_files(source, out)
    old_key = None if new_key else read_key_file(key_file)
    target = out.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".ucadi-deid-") as staging,
        nullcontext(old_key) if old_key else _new_key(key_file) as key,
    ):
        report = DeidReport(key.fingerprint)
        fresh = Path(staging) / "new"
        fresh.mkdir()
        for done, file in enumerate(files, start=1):
            _deidentify_file(file, fresh, key, report)
            if on_progress is not None:
                on_progress(done, len(files))
        if not report.written:
            raise DataError("deid-nothing", f"None of {len(files)} files was written: {_reasons(report)}.")
        if target.exists():
            target.rename(Path(staging) / "old")
        fresh.rename(target)
    return report


def describe_deid(report: DeidReport) -> str:
    """Return a report as a few lines for a person."""
    lines = [
        f"Written   {count} {name} file{'s' * (count != 1)}" for name, count in sorted(report.written.items())
    ]
    if report.patients:
        lines.append(f"Patients  {len(report.patients)}")
    if report.without_id:
        lines.append(f"Warning   {report.without_id} images have no PatientID: one pseudonym per study.")
    lines += [
        f"Left out  {count}: {CODES[code].public_message} ({code})"
        for code, count in report.left_out.most_common()
    ]
    return "\n".join([*lines, f"Key       {report.key}"])


def _reasons(report: DeidReport) -> str:
    """List the codes of what was left out."""
    return ", ".join(f"{count} x {code}" for code, count in report.left_out.most_common()) or "there is none"


def _list_files(source: Path, out: Path) -> list[OpenFile]:
    """Return the files of the input, or refuse it."""
    if not source.exists():
        raise DataError("input-not-found", "There is no file or folder at the given path.")
    if not source.is_dir():
        return [file_of_path(source)]
    if out.resolve().is_relative_to(source.resolve()):
        raise ConfigError("output-in-input", f"{out} lies in {source}.")
    return files_of_folder(source)


@contextmanager
def _new_key(path: Path) -> Iterator[SiteKey]:
    """Make the key file; without results it goes again, so that the mended command can make it."""
    key = make_key_file(path)
    try:
        yield key
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _deidentify_file(file: OpenFile, folder: Path, key: SiteKey, report: DeidReport) -> None:
    """Write one file, or count why it was left out."""
    try:
        written = write_deidentified(file, folder, key)
    except DataError as error:
        report.left_out[error.code] += 1
        return
    report.written[written.format] += 1
    if written.patient:
        report.patients[written.patient] += 1
        report.without_id += not written.has_id
