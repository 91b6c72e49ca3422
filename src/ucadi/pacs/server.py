# SPDX-License-Identifier: Apache-2.0
"""What is asked of an image server and what it answers, whichever protocol it speaks."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol, runtime_checkable

from pydicom.filereader import read_file_meta_info
from pydicom.uid import MediaStorageDirectoryStorage

from ucadi.errors import ConfigError, DicomError
from ucadi.io.files import READ_ERRORS, OpenFile, file_of_path, files_of_folder
from ucadi.pacs.inbox import Inbox, raw_text

__all__ = [
    "MAX_MATCHES",
    "Instance",
    "Level",
    "Match",
    "OnProgress",
    "Pacs",
    "Query",
    "Rejected",
    "Trust",
    "clean_text",
    "find_instances",
    "is_loopback",
    "is_uid",
    "status_text",
]

MAX_MATCHES = 10_000
"""Of one query; a server that goes on beyond is cut off."""

OnProgress = Callable[[int, int], None]
"""Called with how many images are done and how many there are (0 when not known)."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_UID = 64  # characters, by the standard
_MAX_TEXT = 128
_META = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
_DATES = re.compile(r"\d{8}(-(\d{8})?)?|-\d{8}")
_MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")


class Level(StrEnum):
    """What a query lists."""

    STUDY = "study"
    SERIES = "series"


@dataclass(frozen=True)
class Query:
    """What to look for; an empty value matches everything.

    Attributes:
        level: Whether studies are listed or the series of one study.
        patient_id: The patient's id at the server; may hold the wildcards of DICOM.
        study_date: YYYYMMDD, or a range as YYYYMMDD-YYYYMMDD with either end left out.
        modality: Such as CT.
        study: UID of a study; needed to list series.

    Raises:
        ConfigError: ``config-invalid``, naming the value.
    """

    level: Level = Level.STUDY
    patient_id: str = field(default="", repr=False)
    study_date: str = ""
    modality: str = ""
    study: str = ""

    def __post_init__(self) -> None:
        if self.level is Level.SERIES and not self.study:
            raise ConfigError("config-invalid", "Series are listed for one study.", cure="Give --study UID.")
        if self.study and not is_uid(self.study):
            raise ConfigError(
                "config-invalid", "The study's UID is not digits and dots.", cure="Mend --study."
            )
        if self.study_date and not _DATES.fullmatch(self.study_date):
            raise ConfigError(
                "config-invalid", "The study date is not a date.", cure="Write 20210131 or 20210101-20210131."
            )
        if self.modality and not _MODALITY.fullmatch(self.modality):
            raise ConfigError("config-invalid", "The modality is not a DICOM code.", cure="Write CT.")
        if len(self.patient_id) > _MAX_UID or "\\" in self.patient_id or not self.patient_id.isprintable():
            raise ConfigError(
                "config-invalid", "The patient's id is no DICOM text.", cure="Mend --patient-id."
            )


@dataclass(frozen=True)
class Match:
    """One study or series that a server holds. Texts are the server's, made printable.

    Attributes:
        study: UID.
        series: UID; empty for a study.
        patient_id: The patient's id at the server.
        study_date: YYYYMMDD.
        modality: One, or several with a slash between.
        description: Of the study or the series.
        images: How many instances the server states; None when it does not.
    """

    study: str
    series: str
    patient_id: str = field(repr=False)
    study_date: str
    modality: str
    description: str = field(repr=False)
    images: int | None


@dataclass(frozen=True)
class Instance:
    """A DICOM file to send, as its file meta information states it."""

    path: Path = field(repr=False)
    sop_class: str
    sop_instance: str
    transfer_syntax: str


@dataclass(frozen=True)
class Rejected:
    """A file that the server did not take.

    Attributes:
        path: The file. Stays on this machine.
        reason: Why, without any value from the file.
    """

    path: Path = field(repr=False)
    reason: str


@dataclass(frozen=True)
class Trust:
    """Whom we trust, and how we show who we are.

    Attributes:
        authorities: PEM file of the authorities that may have signed the server's certificate; None for the
            usual ones.
        certificate: PEM file of our own certificate; None for none.
        key: PEM file of its key.
        allow_plain: Whether the connection may go over a network unencrypted.
    """

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    allow_plain: bool = False


@runtime_checkable
class Pacs(Protocol):
    """An image server. All methods raise `ucadi.errors.UnreachableError` and `NotAuthorizedError`."""

    def check(self) -> None:
        """Greet the server: is it there, and may we in?"""

    def query(self, query: Query) -> tuple[Match, ...]:
        """Return what the server holds, at most `MAX_MATCHES`."""

    def pull(self, study: str, series: str, inbox: Inbox, on_progress: OnProgress) -> None:
        """Bring a study, or one series of it, into an inbox; all of it or an error."""

    def send(self, instances: Sequence[Instance], on_progress: OnProgress) -> tuple[Rejected, ...]:
        """Store files on the server and return those that it did not take."""


def is_uid(text: str) -> bool:
    """Return whether a text is a DICOM UID. Leading zeros, which some devices write, pass."""
    return len(text) <= _MAX_UID and _UID.fullmatch(text) is not None


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def clean_text(value: object) -> str:
    """Return a server's text on one line, without characters that steer a terminal, and not too long."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT]).strip()


def find_instances(paths: Iterable[Path]) -> tuple[Instance, ...]:
    """Return all DICOM files among paths and below folders; other files are passed over.

    A path may be a link. Below folders, links are not followed: what they lead to was not meant to be sent.

    Raises:
        FileNotFoundError: If a path does not exist.
        DicomError: ``dicom-none`` when there is no DICOM file.
        DataError: As `ucadi.io.files.files_of_folder`.
    """
    files = [file for path in paths for file in _files(path)]
    found = {instance.path: instance for file in files if (instance := _read_meta(file))}
    if not found:
        raise DicomError("dicom-none", f"None of {len(files)} files is a DICOM file.")
    return tuple(found.values())


def _files(path: Path) -> list[OpenFile]:
    """Return a file, or all files under a folder in the order of their names."""
    return files_of_folder(path) if path.is_dir() else [file_of_path(path)]


def _read_meta(open_file: OpenFile) -> Instance | None:
    """Return what a file is, or None when it is no DICOM instance."""
    with open_file() as file:
        path = Path(file.name)
        if file.read(132)[128:] != b"DICM":
            return None
    try:
        meta = read_file_meta_info(path)
        uids = [raw_text(meta, name) for name in _META]
    except (*READ_ERRORS, MemoryError):
        return None
    return (
        Instance(path, *uids) if all(map(is_uid, uids)) and uids[0] != MediaStorageDirectoryStorage else None
    )


def status_text(status: int) -> str:
    """Return what a DICOM status or failure reason means (PS3.4 annex B, PS3.7 annex C)."""
    exact = {
        0x0110: "processing failed",
        0x0111: "it has the image already",
        0x0117: "the image's UID is not valid",
        0x0122: "it does not take this kind of image",
        0x0124: "it does not allow it",
        0xC122: "it does not take this compression",
        0xA801: "it does not know where to send the images",
    }
    ranges = {
        0xA700: "it is out of resources",
        0xA900: "the image does not match its kind or the request",
        0xC000: "it cannot process it",
    }
    family = status & (0xF000 if status & 0xF000 == 0xC000 else 0xFF00)
    return f"{exact.get(status) or ranges.get(family) or 'it gave no known reason'} (0x{status:04X})"
