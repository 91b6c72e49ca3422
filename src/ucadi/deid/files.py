# SPDX-License-Identifier: Apache-2.0
"""One file of any format to a file without its patient, under a name that follows from the key."""

import logging
import os
import uuid
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread

from ucadi.deid.dataset import deidentify_dicom
from ucadi.deid.key import SiteKey
from ucadi.deid.nifti import deidentify_nifti, is_gzip
from ucadi.errors import DataError
from ucadi.io.elements import inflated
from ucadi.io.files import MAX_ENTRY_BYTES, READ_ERRORS, OpenFile
from ucadi.io.nifti import is_nifti

__all__ = ["CleanFile", "write_deidentified"]

_GZIP_LEVEL = 1  # as `ucadi.io.nifti.write_nifti`
_GZIP_WINDOW = 31  # zlib's word for a gzip container, with the largest window
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


def write_deidentified(source: OpenFile, folder: Path, key: SiteKey) -> CleanFile:
    """Write a file without its patient into a folder.

    A DICOM image goes to ``patient/study/series/instance.dcm``, a NIfTI file to the top.

    Args:
        source: Opens a file of any format.
        folder: Where results go.
        key: The site's key.

    Raises:
        DataError: Saying by its code why the file is left out: ``input-unsupported``, ``input-unreadable``,
            ``deid-convert``, ``deid-duplicate``, or as `deidentify_dicom` and `deidentify_nifti`.
        OSError: If the disk or a permission fails.
    """
    try:
        with source() as file, _quiet_libraries():
            head = file.read(_PREAMBLE_BYTES + len(_DICOM_MARK))
            file.seek(0)
            if head[_PREAMBLE_BYTES:] == _DICOM_MARK:
                return _write_dicom(file, folder, key)
            if is_nifti(source):
                return _write_nifti(file, folder, key)
    except (*READ_ERRORS, MemoryError) as error:
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


def _write_dicom(opened: BinaryIO, folder: Path, key: SiteKey) -> CleanFile:
    """Write a DICOM image under its new identifiers; a deflated one is written expanded."""
    size = os.fstat(opened.fileno()).st_size
    if size > MAX_ENTRY_BYTES:
        raise DataError("input-unreadable", f"A file of {size:,} bytes is no CT image.")
    source = dcmread(inflated(opened))
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


def _write_nifti(opened: BinaryIO, folder: Path, key: SiteKey) -> CleanFile:
    """Write a NIfTI file under a name that follows from its content."""
    is_compressed = is_gzip(opened)
    part = folder / ".part"
    try:
        with part.open("wb") as target:
            name = key.name(_written(deidentify_nifti(opened), target, is_compressed=is_compressed))
        file = folder / f"{name}.nii{'.gz' * is_compressed}"
        if file.exists():
            raise DataError("deid-duplicate", "Another file has the same content.")
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)
    return CleanFile("NIfTI")


def _written(pieces: Iterator[bytes], target: BinaryIO, *, is_compressed: bool) -> Iterator[bytes]:
    """Pass on what is written at the same time; the container states no name and no time."""
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW) if is_compressed else None
    for piece in pieces:
        target.write(packer.compress(piece) if packer else piece)
        yield piece
    if packer:
        target.write(packer.flush())


def _digits(uid: str) -> str:
    """Return a new UID as 32 hexadecimal digits."""
    return uuid.UUID(int=int(uid.removeprefix("2.25."))).hex
