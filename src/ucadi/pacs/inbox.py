# SPDX-License-Identifier: Apache-2.0
"""A folder that takes in DICOM instances from the network, whole or not at all.

Where an instance goes follows from hashes of its UIDs, so that no text of a sender ever names a file:
``FOLDER/<study>/<series>/<instance>.dcm``.
"""

import filecmp
import hashlib
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from pydicom import dcmread
from pydicom.dataset import Dataset

from ucadi.errors import DataError, UcadiError
from ucadi.io.elements import inflated
from ucadi.io.files import MAX_ENTRIES, MAX_ENTRY_BYTES, MAX_TOTAL_BYTES, READ_ERRORS

__all__ = ["Inbox", "Limits", "raw_text"]

_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_KEY_DIGITS = 16
_QUIET = threading.Lock()  # which warnings are shown is one setting for all threads


@dataclass(frozen=True)
class Limits:
    """How much an inbox takes.

    Attributes:
        instances: How many.
        instance_bytes: Size of one.
        total_bytes: Size of all.
        free_bytes: What must stay free on the disk.
    """

    instances: int = MAX_ENTRIES
    instance_bytes: int = MAX_ENTRY_BYTES
    total_bytes: int = MAX_TOTAL_BYTES
    free_bytes: int = 2**30


class Inbox:
    """Takes in instances, from several threads if need be. A context: leaving it removes what is half done.

    Args:
        folder: Where instances go; made when missing, for this user only.
        study: Take only instances of this study; empty for any.
        series: Take only instances of this series; empty for any.
        limits: How much to take.
    """

    def __init__(
        self, folder: Path, *, study: str = "", series: str = "", limits: Limits | None = None
    ) -> None:
        self.folder = folder
        self.limits = limits or Limits()
        self._wanted = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        self._stored: dict[Path, str] = {}  # SOP instance UIDs
        self._bytes = 0
        self._lock = threading.Lock()

    def __enter__(self) -> "Inbox":
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._incoming = tempfile.TemporaryDirectory(prefix=".incoming-", dir=self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._incoming.cleanup()

    def __len__(self) -> int:
        with self._lock:
            return len(self._stored)

    @property
    def received(self) -> frozenset[str]:
        """SOP instance UIDs of all that came."""
        with self._lock:
            return frozenset(self._stored.values())

    def take(self, blocks: Iterable[bytes], *, instance: str = "") -> None:
        """Write one instance, given as the bytes of a DICOM file.

        What lies in the folder is never overwritten; the same bytes once more are taken as a repetition.

        Args:
            blocks: The file, piece by piece.
            instance: The SOP instance UID that the sender announced; empty for none.

        Raises:
            DataError: ``pacs-too-large`` beyond a limit; ``pacs-foreign`` for an instance that was not asked
                for; ``pacs-duplicate`` for one whose UIDs another one has; ``input-unreadable`` for bytes
                that are no DICOM file.
            UcadiError: ``disk-full`` when the disk has no room to spare.
        """
        self.check_room()
        with tempfile.NamedTemporaryFile(dir=self._incoming.name, delete=False) as file:
            part = Path(file.name)
            try:
                size = self._write(file, blocks)
                uids = self._check(part, instance)
                study, series, sop_instance = (_key(uids[key]) for key in _NAMES)
                home = self.folder / study / series
                home.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._place(part, home / f"{sop_instance}.dcm", uids["SOPInstanceUID"], size)
            finally:
                part.unlink(missing_ok=True)  # what is refused must not fill the disk

    def check_room(self) -> None:
        """Make sure that one more instance may come in.

        Raises:
            DataError: ``pacs-too-large`` beyond a limit.
            UcadiError: ``disk-full`` when the disk has no room to spare.
        """
        with self._lock:
            self._check_limits(size=0)
        free, kept = shutil.disk_usage(self.folder).free, self.limits.free_bytes
        if free < kept:
            words = f"{free / 1e9:.1f} GB are free on the disk; {kept / 1e9:.1f} GB are to stay free."
            raise UcadiError("disk-full", words)

    def _check(self, part: Path, instance: str) -> dict[str, str]:
        """Return an instance's UIDs, or refuse one that is not wanted."""
        uids = _read_uids(part)
        wanted = {**self._wanted, "SOPInstanceUID": instance}
        if wrong := [key for key, uid in wanted.items() if uid and uids[key] != uid]:
            raise DataError("pacs-foreign", f"An image came whose {' and '.join(wrong)} was not asked for.")
        return uids

    def _place(self, part: Path, file: Path, uid: str, size: int) -> None:
        """Give an instance its name, unless there is one of that name: the first that came stays."""
        with self._lock:
            if not file.exists():
                self._check_limits(size)  # once more: others may have come meanwhile
                part.rename(file)
                self._note(file, uid, size)
                return
        if not filecmp.cmp(part, file, shallow=False):
            raise DataError("pacs-duplicate", "Another image came under the UIDs of one that is there.")
        with self._lock:
            self._note(file, uid, size)

    def _note(self, file: Path, uid: str, size: int) -> None:
        """Remember an instance that lies in the folder; to be called with the lock."""
        if file not in self._stored:
            self._stored[file] = uid
            self._bytes += size

    def _check_limits(self, size: int) -> None:
        """Refuse one more instance of a size when it is one too many; to be called with the lock."""
        if len(self._stored) >= self.limits.instances:
            raise DataError("pacs-too-large", f"{len(self._stored):,} images came, the limit.")
        if self._bytes + size > self.limits.total_bytes:
            raise DataError("pacs-too-large", f"Images of {self._bytes + size:,} bytes exceed the limit.")

    def _write(self, file: IO[bytes], blocks: Iterable[bytes]) -> int:
        """Write an instance to disk for good and return its size."""
        with self._lock:
            before = self._bytes
        size = 0
        for block in blocks:
            size += len(block)
            if size > self.limits.instance_bytes or before + size > self.limits.total_bytes:
                raise DataError("pacs-too-large", f"An image of {size:,} bytes or more exceeds the limit.")
            file.write(block)
        file.flush()
        os.fsync(file.fileno())  # the sender may delete its copy once told that ours is stored
        return size


def raw_text(dataset: Dataset, keyword: str) -> str:
    """Return an element's ASCII text as it was sent: to convert it would warn, and the warning quote it.

    Raises:
        UnicodeDecodeError: If it is not ASCII.
    """
    value = getattr(dataset.get_item(keyword), "value", None) or b""
    return (value.decode("ascii") if isinstance(value, bytes) else str(value)).strip("\0 ")


def _read_uids(path: Path) -> dict[str, str]:
    """Return the UIDs of study, series and instance."""
    try:
        with _QUIET, warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # pydicom's quote values and the file's name
            dataset = dcmread(inflated(file), stop_before_pixels=True, specific_tags=list(_NAMES))
        uids = {name: raw_text(dataset, name) for name in _NAMES}
    except READ_ERRORS as error:
        raise DataError(
            "input-unreadable", f"An image came that is no DICOM file ({type(error).__name__})."
        ) from error
    if not all(uids.values()):
        raise DataError("input-unreadable", "An image came without the UIDs of study, series and instance.")
    return uids


def _key(uid: str) -> str:
    """Return a name for a UID: hexadecimal digits that nobody chooses."""
    return hashlib.sha256(uid.encode()).hexdigest()[:_KEY_DIGITS]
