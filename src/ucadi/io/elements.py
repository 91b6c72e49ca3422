# SPDX-License-Identifier: Apache-2.0
"""The elements of a DICOM file that are asked for, without its pixels, and where the pixels lie.

Nearly all CT files are explicit VR, little endian; for them a walk over the first bytes finds the elements by
jumping from length to length. Whatever is unusual is left to pydicom. Values are always pydicom's: the walk
only cuts the bytes out, so both ways give the same.

Use: ``elements = read_elements(file, tags_of([...]) | PIXEL_TAGS)`` once per file; then `ucadi.io.pixels`.
"""

import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, BinaryIO, cast

from pydicom import dcmread
from pydicom.charset import convert_encodings
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32
from pydicom.values import convert_string

from ucadi.io.files import MAX_RATIO, READ_ERRORS
from ucadi.io.framing import MemoryFile

__all__ = ["Elements", "inflated", "read_elements", "tags_of"]

_HEAD = 132  # preamble and "DICM"
_MAGIC = b"DICM"
_BLOCK = 2**14  # most headers fit
_MAX_HEADER = 2**24  # beyond, pydicom reads it
_MAX_INFLATED = 2**29  # 1,000 frames of 512x512
_UNDEFINED = 0xFFFFFFFF
_CHARACTER_SET = 0x00080005
_SOP_CLASS = 0x00020002
_TRANSFER_SYNTAX = 0x00020010
_PIXELS_START = 0x7FE00008  # pixels as floats come first; CT has none
_PIXEL_DATA = 0x7FE00010
_KEPT_ALWAYS = {_SOP_CLASS, _TRANSFER_SYNTAX, _CHARACTER_SET}
_DEFLATED, _PLAIN = (str(uid).encode() for uid in (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian))
_WALKED = {
    str(uid)
    for uid in (
        ExplicitVRLittleEndian,
        RLELossless,
        *JPEGTransferSyntaxes,
        *JPEGLSTransferSyntaxes,
        *JPEG2000TransferSyntaxes,
    )
}
_MAX_REMEMBERED = 128  # bytes of a value
_SHORT = {vr.encode() for vr in EXPLICIT_VR_LENGTH_16}
_LONG = {vr.encode() for vr in EXPLICIT_VR_LENGTH_32}
_START = struct.Struct("<HH2sH")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class Elements:
    """What was read of a file.

    Attributes:
        found: The wanted elements that are there and hold what their kind should, by keyword.
        syntax: Transfer syntax UID; empty when the file states none.
        sop_class: UID of the kind of object, from the file's meta information; empty when not stated.
        offset: Where the pixels' bytes begin in the file (in what it inflates to, for a deflated one); 0 when
            there are none.
        length: Their number; None when it is not stated, as for compressed pixels.
    """

    found: Mapping[str, DataElement]
    syntax: str
    sop_class: str
    offset: int
    length: int | None

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return an element's value, as pydicom converts it."""
        element = self.found.get(keyword)
        return default if element is None else element.value


def tags_of(keywords: Iterable[str]) -> frozenset[int]:
    """Return the tags of DICOM keywords.

    Raises:
        ValueError: If one is no keyword.
    """
    tags = {keyword: tag_for_keyword(keyword) for keyword in keywords}
    if unknown := [keyword for keyword, tag in tags.items() if tag is None]:
        raise ValueError(f"no DICOM keywords: {unknown}")
    return frozenset(tag for tag in tags.values() if tag is not None)


def read_elements(file: BinaryIO, wanted: frozenset[int]) -> Elements:
    """Read a DICOM file up to its pixels.

    Args:
        file: Open at its start.
        wanted: Tags of the data set's elements.

    Raises:
        Exception: One of `ucadi.io.files.READ_ERRORS` when the file is damaged or not DICOM.
    """
    elements = _walk(file, wanted)
    if elements is not None:
        return elements
    file.seek(0)
    plain = inflated(file)
    elements = _with_pydicom(plain, wanted)
    return elements if plain is file else replace(elements, syntax=str(DeflatedExplicitVRLittleEndian))


def inflated(file: BinaryIO) -> BinaryIO:
    """Return a deflated file as a plain one in memory, any other as it is; at its start.

    Raises:
        ValueError: If it expands to more than 512 MiB or 200 times its size.
        Exception: One of `ucadi.io.files.READ_ERRORS` when the file is damaged or not DICOM.
    """
    if file.read(_HEAD)[-len(_MAGIC) :] != _MAGIC:
        raise ValueError("no DICOM file")
    meta = read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag >> 16 != 2
    )
    start = file.tell()
    file.seek(0)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return file
    head = file.read(start)
    stored = file.read()
    limit = min(_MAX_INFLATED, MAX_RATIO * len(stored))
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    data = stream.decompress(stored, limit)
    if not stream.eof:
        raise ValueError(f"expands beyond {limit} bytes, or is cut short")
    # Shorter by three characters, which padding fills: every length stays right.
    return MemoryFile(head.replace(_DEFLATED, _PLAIN.ljust(len(_DEFLATED), b"\0")) + data)


def _walk(file: BinaryIO, wanted: frozenset[int]) -> Elements | None:
    """Jump from element to element; None for anything but plain explicit VR, little endian."""
    block = file.read(_BLOCK)
    if block[_HEAD - len(_MAGIC) : _HEAD] != _MAGIC:
        return None
    position, last = _HEAD, 0
    found: dict[int, tuple[bytes, int, int]] = {}
    while True:
        if len(block) < position + 12:  # an element's start and an extended length
            if position > _MAX_HEADER:
                return None
            block += file.read(position + _BLOCK - len(block))
            if len(block) < position + 12:
                return None
        group, number, vr, short = _START.unpack_from(block, position)
        tag = group << 16 | number
        if tag <= last:
            return None  # out of order, or there twice
        last = tag
        if tag >= _PIXELS_START:
            break
        value, length = position + 8, short
        if vr in _LONG:
            length = _LENGTH.unpack_from(block, value)[0]
            value += 4
            if length == _UNDEFINED:
                return None
        elif vr not in _SHORT:
            return None
        if tag in wanted or tag in _KEPT_ALWAYS:
            found[tag] = vr, value, length
        position = value + length
    if tag != _PIXEL_DATA or vr not in (b"OB", b"OW"):
        return None
    length = _LENGTH.unpack_from(block, position + 8)[0]
    return _elements(block, found, position + 12, None if length == _UNDEFINED else length)


def _elements(
    block: bytes, places: dict[int, tuple[bytes, int, int]], offset: int, length: int | None
) -> Elements | None:
    """Convert what was found; None when the syntax or the character set is not a usual one."""
    values = {tag: (vr, block[start : start + size]) for tag, (vr, start, size) in places.items()}
    nothing = b"UI", b""
    syntax, sop_class = (_uid(*values.pop(tag, nothing)) for tag in (_TRANSFER_SYNTAX, _SOP_CLASS))
    _, charset = values.pop(_CHARACTER_SET, nothing)
    if syntax not in _WALKED or sop_class is None or _encodings(charset) is None:
        return None
    elements = [
        (_convert_once if len(value) <= _MAX_REMEMBERED else _convert)(tag, vr, value, charset)
        for tag, (vr, value) in values.items()
    ]
    found = {keyword: element for keyword, element in elements if element is not None}
    return Elements(found, syntax, sop_class, offset, length)


@lru_cache(maxsize=16)
def _uid(vr: bytes, value: bytes) -> str | None:
    """Return a UID of the file's meta information; None when the value does not fit its kind."""
    _, element = _convert(_TRANSFER_SYNTAX, vr, value, b"")
    return None if element is None else str(element.value)


@lru_cache(maxsize=16)
def _encodings(charset: bytes) -> tuple[str, ...] | None:
    """Return Python's names of a character set, or None when pydicom has doubts about it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return tuple(convert_encodings(convert_string(charset, True)))
    except (Warning, *READ_ERRORS):
        return None


def _convert(tag: int, vr: bytes, value: bytes, charset: bytes) -> tuple[str, DataElement | None]:
    """Return an element's keyword, and the element as of pydicom; None if the value does not fit."""
    name = vr.decode("ascii")
    empty = cast(bytes | None, empty_value_for_VR(name, raw=True))
    raw = RawDataElement(BaseTag(tag), name, len(value), value or empty, 0, False, True)
    try:
        element = convert_raw_data_element(raw, encoding=list(_encodings(charset) or ()))
    except READ_ERRORS:
        element = None
    return keyword_for_tag(tag), element


_convert_once = lru_cache(maxsize=256)(_convert)
"""Most values are the same in all files of a series, and converting is what takes the time."""


def _with_pydicom(file: BinaryIO, wanted: frozenset[int]) -> Elements:
    """Read a plain file of any syntax, and find its pixels where pydicom stops."""
    dataset = dcmread(file, stop_before_pixels=True, specific_tags=sorted(wanted))
    start = file.tell()
    found = {}
    for tag in wanted & set(dataset.keys()):
        try:
            found[dataset[tag].keyword] = dataset[tag]
        except READ_ERRORS:
            continue
    syntax, sop_class = (
        str(dataset.file_meta.get(name, "")) for name in ("TransferSyntaxUID", "MediaStorageSOPClassUID")
    )
    is_implicit, is_little = dataset.original_encoding
    order = "<" if is_little else ">"
    file.seek(start)
    head = file.read(8 if is_implicit else 12)
    if len(head) < 8 or struct.unpack_from(f"{order}HH", head) != (_PIXEL_DATA >> 16, _PIXEL_DATA & 0xFFFF):
        return Elements(found, syntax, sop_class, 0, 0)
    length = struct.unpack(f"{order}I", head[-4:])[0]
    offset = start + len(head)
    return Elements(found, syntax, sop_class, offset, None if length == _UNDEFINED else length)
