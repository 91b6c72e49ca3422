# SPDX-License-Identifier: Apache-2.0
"""The files that a DICOMDIR, the index of a CD or an export, lists."""

from collections.abc import Sequence
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import MediaStorageDirectoryStorage

from ucadi.errors import DicomError
from ucadi.io.files import MAX_ENTRIES, READ_ERRORS, OpenFile, file_of_path

__all__ = ["files_of_dicomdir"]

_MAX_BYTES = 64 * 2**20
_WANTED = ["DirectoryRecordSequence", "ReferencedFileID"]


def files_of_dicomdir(path: Path) -> tuple[list[OpenFile], int] | None:
    """Return the files that an index lists, and how many more are not there; None for any other file.

    Names are taken only when they lead, without links, to a file in the index's own folder: an index is not
    trusted to name any other. Upper and lower case count as equal, as on a CD.

    Raises:
        DicomError: ``input-unreadable`` when the index is damaged; ``dicom-none`` when no file that it lists
            is there; ``input-too-costly`` when it lists more than `MAX_ENTRIES`.
    """
    try:
        with file_of_path(path)() as file:
            meta = dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
        if meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
            return None
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("an index of more than 64 MiB")
        with file_of_path(path)() as file:
            records = dcmread(file, specific_tags=list(_WANTED)).get("DirectoryRecordSequence") or []
        names = [name for record in records if (name := _name(record))]
    except READ_ERRORS as error:
        raise DicomError("input-unreadable", f"The DICOMDIR is damaged ({type(error).__name__}).") from error
    listed: dict[Path, dict[str, Path]] = {}
    if len(names) > MAX_ENTRIES:
        raise DicomError(
            "input-too-costly", f"The DICOMDIR lists {len(names)} files, more than {MAX_ENTRIES}."
        )
    targets = (_resolve(path.parent, parts, listed) for parts in names)
    found = [target for target in targets if target is not None]
    if not found:
        raise DicomError(
            "dicom-none",
            f"The DICOMDIR lists {len(names)} files, none of which is there.",
            cure="Copy the whole CD or export, not the DICOMDIR alone.",
        )
    return [file_of_path(target) for target in found], len(names) - len(found)


def _name(record: Dataset) -> tuple[str, ...]:
    """Return the parts of a record's file name; empty for records without a file."""
    parts = record.get("ReferencedFileID") or ()
    return (parts,) if isinstance(parts, str) else tuple(str(part) for part in parts)


def _resolve(folder: Path, parts: Sequence[str], listed: dict[Path, dict[str, Path]]) -> Path | None:
    """Find a listed file, part by part, by names that are really there; folders are listed once."""
    here = folder
    for part in parts:
        if here not in listed:
            listed[here] = {child.name.lower(): child for child in here.iterdir()}
        match = listed[here].get(part.strip().lower())
        if match is None or match.is_symlink():
            return None
        here = match
        if not here.is_dir():
            break
    return here if here.is_file() else None
