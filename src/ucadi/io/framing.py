# SPDX-License-Identifier: Apache-2.0
"""DICOM files with and without their preamble: some old exports hold the bare data set."""

import io
import struct

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import VR

from ucadi.io.files import MAX_ENTRY_BYTES, OpenFile

__all__ = ["HEAD_BYTES", "MemoryFile", "framed", "is_blank", "is_dicom"]

HEAD_BYTES = 132
"""The preamble and the mark after it."""

_MAGIC = b"DICM"
_BLANK_BYTES = 4096
_META_GROUP = b"\x02\x00"
_FIRST_TAGS = tuple(
    struct.pack("<HH", 0x0008, element) for element in (0x0000, 0x0001, 0x0005, 0x0008, 0x0016)
)
"""A bare data set begins with a group length, length to end, character set, image type or SOP class."""
_VRS = {str(vr).encode() for vr in VR if len(str(vr)) == 2}


class MemoryFile(io.BytesIO):
    """A file that lies in memory, with what an open file has besides its content."""

    name = ""
    mode = "rb"


def is_dicom(head: bytes) -> bool:
    """Tell by its first `HEAD_BYTES` bytes whether a file is DICOM, with or without a preamble."""
    return head[HEAD_BYTES - len(_MAGIC) : HEAD_BYTES] == _MAGIC or _is_bare(head)


def is_blank(open_file: OpenFile) -> bool:
    """Tell whether a file is empty or begins with zeros only, as after a copy that failed."""
    with open_file() as file:
        return not any(file.read(_BLANK_BYTES))


def framed(open_file: OpenFile) -> OpenFile | None:
    """Return a DICOM file with its preamble, added in memory when it lacks; None for any other file."""
    with open_file() as file:
        head = file.read(HEAD_BYTES)
    if head[HEAD_BYTES - len(_MAGIC) :] == _MAGIC:
        return open_file
    if not _is_bare(head):
        return None
    front = bytes(HEAD_BYTES - len(_MAGIC)) + _MAGIC + _meta(head)

    def open_framed() -> MemoryFile:
        with open_file() as file:
            content = file.read(MAX_ENTRY_BYTES + 1)
        if len(content) > MAX_ENTRY_BYTES:
            raise ValueError(f"more than {MAX_ENTRY_BYTES} bytes without a preamble")
        return MemoryFile(front + content)

    return open_framed


def _is_bare(head: bytes) -> bool:
    """Tell whether a file begins with an element as a bare data set does."""
    return head.startswith(_FIRST_TAGS) or (head.startswith(_META_GROUP) and head[4:6] == b"UL")


def _meta(head: bytes) -> bytes:
    """Return the meta information that a bare data set lacks: its transfer syntax, by its first element."""
    if head.startswith(_META_GROUP):
        return b""
    syntax = _padded(ExplicitVRLittleEndian if head[4:6] in _VRS else ImplicitVRLittleEndian)
    element = struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(syntax)) + syntax
    return struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(element)) + element


def _padded(uid: UID) -> bytes:
    """Return a UID as bytes of even number."""
    return uid.encode() + b"\0" * (len(uid) % 2)
