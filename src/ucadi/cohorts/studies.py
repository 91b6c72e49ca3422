# SPDX-License-Identifier: Apache-2.0
"""The studies in a tree of files: DICOM files grouped by what they say, archives, and single volumes.

Names decide nothing, except that ``NAME_lesion.nii.gz`` is the lesion mask of ``NAME.nii.gz``.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.uid import MediaStorageDirectoryStorage

from ucadi.errors import DataError
from ucadi.io.elements import read_elements, tags_of
from ucadi.io.files import READ_ERRORS, OpenFile, file_of_path, open_zip
from ucadi.io.framing import framed, is_dicom
from ucadi.io.itk_formats import is_metaimage, is_nrrd
from ucadi.io.nifti import is_nifti

__all__ = ["MASK_ENDING", "FileEntry", "FoundStudy", "find_files", "group_studies", "index_files"]

MASK_ENDING = "_lesion"
"""At the end of a mask's name, before .nii or .nii.gz."""

_ZIP_MAGIC = b"PK\x03\x04"
_HEAD_BYTES = 512
_WANTED = tags_of(("PatientID", "IssuerOfPatientID", "StudyInstanceUID"))
_NIFTI_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class FileEntry:
    """One file that belongs to a study. It names the patient, so it stays in memory.

    Attributes:
        path: Absolute.
        kind: "dicom", "archive", "volume", or "damaged" for what cannot be read.
        study_uid: StudyInstanceUID; empty for a volume.
        patients: (PatientID, IssuerOfPatientID) of what the file holds; empty for a volume.
        fault: Code and words when the file cannot be taken; else empty.
    """

    path: str
    kind: str
    study_uid: str = ""
    patients: tuple[tuple[str, str], ...] = ()
    fault: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class FoundStudy:
    """One study of a tree. It names the patient, so it stays in memory.

    Attributes:
        files: Absolute paths: DICOM files, or one archive, or one volume.
        damaged: Absolute paths of DICOM files beside them that cannot be read, so that their study is not
            known. The reader gets them too: else slices would be missing unnoticed.
        kind: As in `FileEntry`.
        study_uid: StudyInstanceUID; empty for a volume.
        patients: (PatientID, IssuerOfPatientID), more than one when the files contradict each other.
        mask: Absolute path of the mask beside a volume; empty when there is none.
        fault: Code and words when the study cannot be taken; else empty.
    """

    files: tuple[str, ...]
    kind: str
    study_uid: str = ""
    patients: tuple[tuple[str, str], ...] = ()
    mask: str = ""
    fault: tuple[str, str] = ("", "")
    damaged: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Absolute path of the only file, or of the folder that holds all files."""
        if len(self.files) == 1 and self.kind != "dicom":
            return self.files[0]
        return os.path.commonpath({str(Path(path).parent) for path in self.files})


def find_files(places: Iterable[Path]) -> list[str]:
    """Return all regular files at or under some places, each once, in the order of their paths.

    A place may be a link. Under it, hidden folders, pipes, sockets and devices are passed over, and so are
    links to what is found anyway.

    Raises:
        DataError: ``input-links`` when a link leads elsewhere: slices could be missing unnoticed;
            ``input-unreadable`` when a folder cannot be listed.
    """
    found: set[str] = set()
    folders: set[str] = set()
    links: set[str] = set()
    for place in places:
        if place.is_file():
            found.add(os.path.realpath(place))
            continue
        for top, below, names in os.walk(os.path.realpath(place), onerror=_refuse_unlisted):
            folders.add(top)
            below[:] = [name for name in below if not name.startswith(".")]
            paths = [Path(top, name) for name in (*names, *below)]
            links.update(str(path) for path in paths if path.is_symlink())
            found.update(str(path) for path in paths if path.is_file() and not path.is_symlink())
    astray = sum(os.path.realpath(link) not in found | folders for link in links)
    if astray:
        raise DataError("input-links", f"{astray} links in the source lead out of it, or nowhere.")
    return sorted(found)


def _refuse_unlisted(error: OSError) -> None:
    """Refuse a source of which a folder cannot be listed."""
    raise DataError(
        "input-unreadable",
        f"A folder in the source cannot be listed ({type(error).__name__}).",
        cure="Check that you may read all folders in it.",
    ) from error


def index_files(paths: Sequence[str]) -> list[FileEntry]:
    """Tell what some files are by their first bytes; files of other kinds are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # pydicom's quote values; what matters is checked when a study is read
        entries = [_index(path) for path in paths]
    return [entry for entry in entries if entry is not None]


def group_studies(entries: Iterable[FileEntry]) -> list[FoundStudy]:
    """Group files into studies, in the order of their first files.

    A damaged file goes with each DICOM study that has files in its folder; when there is none, with those
    whose files lie in several folders around it.
    """
    entries = list(entries)
    damaged = [entry.path for entry in entries if entry.kind == "damaged"]
    entries = [entry for entry in entries if entry.kind != "damaged"]
    volumes = {entry.path for entry in entries if entry.kind == "volume"}
    mask_of = {path: mask for path in volumes if (mask := _mask_name(path)) in volumes}
    masks = set(mask_of.values())
    loose: dict[str, list[FileEntry]] = {}
    studies: list[FoundStudy] = []
    for entry in entries:
        if entry.kind == "dicom":
            loose.setdefault(entry.study_uid, []).append(entry)
    seen = set(loose)
    for entry in entries:
        if entry.kind == "dicom":
            group = loose.pop(entry.study_uid, [])
            if group:
                studies.append(_join(group))
        elif entry.path not in masks:
            study = FoundStudy((entry.path,), entry.kind, entry.study_uid, entry.patients, fault=entry.fault)
            if entry.study_uid and entry.study_uid in seen:
                words = "The archive holds a study that was found elsewhere too."
                study = replace(study, fault=("cohort-duplicate", words))
            seen.add(entry.study_uid)
            studies.append(replace(study, mask=mask_of.get(entry.path, "")))
    return _with_damaged(studies, damaged)


def _with_damaged(studies: list[FoundStudy], damaged: list[str]) -> list[FoundStudy]:
    """Give each study the damaged files that may be its own."""
    if not damaged:
        return studies
    beside: dict[str, list[int]] = {}
    below: dict[str, list[int]] = {}
    for number, study in enumerate(studies):
        if study.kind == "dicom":
            below.setdefault(study.place, []).append(number)
            for folder in {str(Path(path).parent) for path in study.files}:
                beside.setdefault(folder, []).append(number)
    given: dict[int, list[str]] = {}
    for path in damaged:
        folders = [str(folder) for folder in Path(path).parents]
        around = (below[folder] for folder in folders if folder in below)
        for number in beside.get(folders[0]) or next(around, []):
            given.setdefault(number, []).append(path)
    return [replace(study, damaged=tuple(given.get(n, ()))) for n, study in enumerate(studies)]


def _join(group: list[FileEntry]) -> FoundStudy:
    """Return the study of some DICOM files."""
    patients = tuple(sorted({patient for entry in group for patient in entry.patients}))
    return FoundStudy(tuple(entry.path for entry in group), "dicom", group[0].study_uid, patients)


def _mask_name(path: str) -> str:
    """Return what the mask beside a volume would be called; empty for other formats than NIfTI."""
    ending = next((e for e in _NIFTI_ENDINGS if path.endswith(e)), "")
    return f"{path.removesuffix(ending)}{MASK_ENDING}{ending}" if ending else ""


def _index(path: str) -> FileEntry | None:
    """Return what one file is; None for a file that is no part of a study."""
    open_file = file_of_path(Path(path))
    head = None
    try:
        with open_file() as file:
            head = file.read(_HEAD_BYTES)
        if head.startswith(_ZIP_MAGIC):
            return _index_archive(path)
        if is_nrrd(head) or is_metaimage(head) or is_nifti(open_file):
            return FileEntry(path, "volume")
        identity = _identity(open_file)
    except READ_ERRORS:
        return FileEntry(path, "damaged") if head is None or is_dicom(head) else None
    if identity is None:
        return None
    study_uid, patient = identity
    return FileEntry(path, "dicom", study_uid, (patient,))


def _index_archive(path: str) -> FileEntry | None:
    """Return what a zip archive holds; None when there is no DICOM in it."""
    studies: dict[str, set[tuple[str, str]]] = {}
    try:
        with open_zip(Path(path)) as files:
            for open_file in files:
                try:
                    identity = _identity(open_file)
                except READ_ERRORS:
                    continue
                if identity is not None:
                    studies.setdefault(identity[0], set()).add(identity[1])
    except DataError as error:
        return FileEntry(path, "archive", fault=(error.code, error.detail))
    if len(studies) > 1:
        words = f"The archive holds {len(studies)} studies."
        return FileEntry(path, "archive", fault=("archive-many-studies", words))
    for study_uid, patients in studies.items():
        return FileEntry(path, "archive", study_uid, tuple(sorted(patients)))
    return None


def _identity(open_file: OpenFile) -> tuple[str, tuple[str, str]] | None:
    """Return StudyInstanceUID and (PatientID, issuer) of a DICOM image; None for other files.

    Raises:
        Exception: One of `READ_ERRORS` when the file is damaged.
    """
    dicom = framed(open_file)
    if dicom is None:
        return None
    with dicom() as file:
        elements = read_elements(file, _WANTED)
    if elements.sop_class == MediaStorageDirectoryStorage:
        return None
    patient_id, issuer = (str(elements.get(name) or "") for name in ("PatientID", "IssuerOfPatientID"))
    study = str(elements.get("StudyInstanceUID") or "")
    if not study:
        raise ValueError("no study is named")
    return study, (patient_id.strip(), issuer.strip())
