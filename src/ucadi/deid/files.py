# SPDX-License-Identifier: Apache-2.0
"""One file of any format to a file without its patient, under a name that follows from the key."""

import gzip
import logging
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread

from ucadi.deid.dataset import deidentify_dicom
from ucadi.deid.key import SiteKey
from ucadi.deid.nifti import deidentify_nifti
from ucadi.errors import DataError
from ucadi.io.files import READ_ERRORS
from ucadi.io.nifti import is_nifti

__all__ = ["CleanFile", "write_deidentified"]

_GZIP_LEVEL = 1  # as `ucadi.io.nifti.write_nifti`
_PREAMBLE_BYTES, _DICOM_MARK = 128, b"DICM"
_FOLDER_DIGITS = 16  # of 32; two studies of a patient never share 64 bits by chance


@dataclass(frozen=True)
class CleanFile:
    """A file that was written.

    Attributes:
        format: ``DICOM`` or ``NIfTI``.
        patient: The patient's pseudonym; empty for NIfTI, which names no patient.
        has_id: Whether the pseudonym follows from the patient's id.
    """

    format: str
    patient: str = ""
    has_id: bool = True


def write_deidentified(path: Path, folder: Path, key: SiteKey) -> CleanFile:
    """Write a file without its patient into a folder.

    A DICOM image goes to ``patient/study/series/instance.dcm``, a NIfTI file to the top.

    Args:
        path: A file of any format.
        folder: Where results go.
        key: The site's key.

    Raises:
        DataError: Saying by its code why the file is left out: ``input-unsupported``, ``input-unreadable``,
            ``deid-convert``, ``deid-duplicate``, or as `deidentify_dicom` and `deidentify_nifti`.
        OSError: If the disk or a permission fails.
    """
    with path.open("rb") as file:
        head = file.read(_PREAMBLE_BYTES + len(_DICOM_MARK))
    try:
        with _quiet_libraries():
            if head[_PREAMBLE_BYTES:] == _DICOM_MARK:
                return _write_dicom(path, folder, key)
            if is_nifti(path):
                return _write_nifti(path, folder, key)
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a disk or a permission, not the file's content
        raise DataError("input-unreadable", f"The file is damaged ({type(error).__name__}).") from error
    if head.startswith((b"NRRD", b"ObjectType", b"NDims")):
        raise DataError("deid-convert", "NRRD and MetaImage headers are not cleaned.")
    raise DataError("input-unsupported", "It is neither DICOM nor NIfTI.")


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the libraries from quoting odd values of headers in warnings and logs."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_dicom(path: Path, folder: Path, key: SiteKey) -> CleanFile:
    """Write a DICOM image under its new identifiers."""
    source = dcmread(path)
    image = deidentify_dicom(source, key)
    patient = str(image.PatientID)
    study, series, instance = (
        _digits(str(uid)) for uid in (image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID)
    )
    file = folder / patient / study[:_FOLDER_DIGITS] / series[:_FOLDER_DIGITS] / f"{instance}.dcm"
    if file.exists():
        raise DataError("deid-duplicate", "Another file has the same SOPInstanceUID.")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        image.save_as(file, enforce_file_format=True)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return CleanFile("DICOM", patient, has_id=bool(str(source.get("PatientID") or "").strip(" \0")))


def _write_nifti(path: Path, folder: Path, key: SiteKey) -> CleanFile:
    """Write a NIfTI file under a name that follows from its content."""
    content, is_compressed = deidentify_nifti(path)
    file = folder / f"{key.name(content)}.nii{'.gz' * is_compressed}"
    if file.exists():
        raise DataError("deid-duplicate", "Another file has the same content.")
    # Without a name and a time stamp in the container.
    file.write_bytes(gzip.compress(content, _GZIP_LEVEL, mtime=0) if is_compressed else content)
    return CleanFile("NIfTI")


def _digits(uid: str) -> str:
    """Return a new UID as 32 hexadecimal digits."""
    return uuid.UUID(int=int(uid.removeprefix("2.25."))).hex
