# SPDX-License-Identifier: Apache-2.0
"""NRRD and MetaImage files to volumes: text headers that are read strictly, and numbers behind them.

Decoded here and not by ITK: a header that is first checked and then read again by another parser can mean
two things, ITK opens whatever file a header names, and it fills in what a header leaves out.
"""

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from ucadi.errors import DataError
from ucadi.imaging.grid import Grid
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.volume import Volume
from ucadi.io.files import READ_ERRORS, OpenFile, opener
from ucadi.io.nifti import check_affine
from ucadi.io.streams import MAX_TRAILING_BYTES, MAX_VOXELS, Inflated, read_numbers

__all__ = ["is_metaimage", "is_nrrd", "read_metaimage", "read_nrrd"]

_MAX_HEADER_BYTES = 2**20
_BUFFER_BYTES = 2**18
_UNIT_TOLERANCE = 1e-3  # of the length of a direction that must be 1
_NRRD_MAGIC = re.compile(rb"NRRD000[1-6]\r?\n")
_META_START = re.compile(rb"(ObjectType|NDims|Comment|ObjectSubType|Name|ID) *=")
_NUMBERS = re.compile(r"[-+.0-9eE \t]*")
_VECTOR = re.compile(r"\(([^()]*)\)")
_THREE_VECTORS = re.compile(r"\s+".join([_VECTOR.pattern] * 3))
_TO_LPS = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "lps": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
"""NRRD's names of patient spaces, and the signs that turn them into LPS."""

_NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_DETACHED = {"data file", "datafile"}
_SPACINGS = {"axis maxs", "axis mins", "space dimension", "spacings"}
_NRRD_READ = {
    *("dimension", "encoding", "endian", "sizes", "type"),
    *("byte skip", "kinds", "line skip", "space", "space directions", "space origin", "space units"),
}
_NRRD_PASSED = {
    *("block size", "centerings", "centers", "content", "labels", "max", "measurement frame", "min"),
    *("number", "old max", "old min", "sample units", "thicknesses", "units"),
}
_NRRD_FIELDS = _NRRD_READ | _NRRD_PASSED | _SPACINGS | _DETACHED
_META_ORDER = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_META_MATRIX = ("Orientation", "Rotation", "TransformMatrix")
_META_ORIGIN = ("Offset", "Origin", "Position")

Header = dict[str, str]


def is_nrrd(head: bytes) -> bool:
    """Tell by its first bytes whether a file is an NRRD header, with or without data."""
    return _NRRD_MAGIC.match(head) is not None


def is_metaimage(head: bytes) -> bool:
    """Tell by its first bytes whether a file is a MetaImage header, with or without data."""
    return _META_START.match(head) is not None


def read_nrrd(source: Path | OpenFile) -> Volume:
    """Read a 3D NRRD volume in canonical axes: int16 when its numbers are whole and fit, else float32.

    Args:
        source: Header and data in one file, raw or gzip, in a patient space (LPS, RAS or LAS); units are mm.

    Raises:
        DataError: ``volume-detached`` when the data are in another file; ``volume-no-orientation`` without a
            space, directions and origin; ``volume-not-3d``, ``input-unsupported`` or ``input-unreadable`` for
            other contents; ``ct-not-hu`` for NaN and infinite values. The message names no file.
    """
    return _read(source, "NRRD", _read_nrrd)


def read_metaimage(source: Path | OpenFile) -> Volume:
    """Read a 3D MetaImage (.mha) in canonical axes: int16 when its numbers are whole and fit, else float32.

    The TransformMatrix decides where the axes point; AnatomicalOrientation is passed over, as ITK does.

    Args:
        source: Header and data in one file, raw or zlib.

    Raises:
        DataError: As `read_nrrd` does.
    """
    return _read(source, "MetaImage", _read_metaimage)


def _read(source: Path | OpenFile, name: str, read: Callable[[BinaryIO], Volume]) -> Volume:
    """Read a file and turn what is raised on damaged ones into a refusal."""
    try:
        with opener(source)() as file:
            return to_canonical(read(file))
    except READ_ERRORS as error:
        raise DataError(
            "input-unreadable", f"The {name} file is damaged or cut short ({type(error).__name__})."
        ) from error


def _read_nrrd(file: BinaryIO) -> Volume:
    """Read what follows an NRRD file's first line, and its data."""
    header = _nrrd_header(file)
    if _DETACHED & header.keys():
        raise DataError("volume-detached", "The NRRD header names the files that hold the data.")
    if header["dimension"] != "3":
        raise DataError("volume-not-3d", "The NRRD file does not have three dimensions.")
    kinds = set(header.get("kinds", "domain").lower().split())
    if not kinds <= {"domain", "space"}:
        raise DataError("volume-not-3d", "An axis of the NRRD file is not one of space.")
    shape = _shape(header["sizes"])
    stored = next((t for t, names in _NRRD_TYPES.items() if header["type"].lower() in names), None)
    encoding = header["encoding"].lower()
    if stored is None or encoding not in ("raw", "gzip", "gz"):
        raise _unsupported("NRRD file", "raw or gzip encoding")
    if any(header.get(name, "0") != "0" for name in ("line skip", "byte skip")):
        raise _unsupported("NRRD file", "its data right behind the header")
    order = {"little": "<", "big": ">"}[header["endian"].lower()] if stored[1] != "1" else "|"
    affine = _nrrd_affine(header)
    data = file if encoding == "raw" else _inflated(file)
    return _volume(data, np.dtype(order + stored), shape, affine)


def _nrrd_header(file: BinaryIO) -> Header:
    """Return an NRRD header's fields, and leave the file where the data begin."""
    lines = _Lines(file)
    if not is_nrrd(lines.next() + b"\n"):
        raise ValueError("not an NRRD file")
    header: Header = {}
    while line := lines.next().decode("latin-1"):
        if line.startswith("#") or ":=" in line.partition(": ")[0]:
            continue  # a comment, or a key of the writer's own
        name, colon, value = line.partition(": ")
        name = name.lower()
        if not colon or name in header or name not in _NRRD_FIELDS:
            raise ValueError("an unknown or repeated field")
        header[name] = value.strip()
        if name in _DETACHED:
            break  # a list of files may follow
    return header


def _nrrd_affine(header: Header) -> Float[np.ndarray, "4 4"]:
    """Return the affine from (z, y, x) to LPS, or refuse a header that does not state one."""
    signs = _TO_LPS.get(header.get("space", "").lower())
    if signs is None or "space directions" not in header or "space origin" not in header:
        raise DataError(
            "volume-no-orientation",
            "The NRRD header lacks a patient space (left-posterior-superior, for one), directions or origin.",
        )
    if _SPACINGS & header.keys():
        raise DataError("volume-no-orientation", "The NRRD header states spacings beside directions.")
    if set(re.findall(r'[^"\s]+', header.get("space units", "mm"))) != {"mm"}:
        raise DataError("volume-no-orientation", "The NRRD header's unit is not mm.")
    vectors = _THREE_VECTORS.fullmatch(header["space directions"])
    origin = _VECTOR.fullmatch(header["space origin"])
    if vectors is None or origin is None:
        raise DataError(
            "volume-no-orientation", "The NRRD header does not state three directions and a place."
        )
    affine = np.eye(4)
    affine[:3, 2::-1] = np.transpose([_numbers(vector.replace(",", " "), 3) for vector in vectors.groups()])
    affine[:3, 3] = _numbers(origin[1].replace(",", " "), 3)
    affine[:3] *= np.array(signs)[:, None]
    return affine


def _read_metaimage(file: BinaryIO) -> Volume:
    """Read a MetaImage's header and data."""
    header = _meta_header(file)
    if header["ObjectType"] != "Image" or not _is_true(header.get("BinaryData", "True")):
        raise _unsupported("MetaImage", "ObjectType Image and binary data")
    if header["NDims"] != "3" or header.get("ElementNumberOfChannels", "1") != "1":
        raise DataError("volume-not-3d", "The MetaImage is not one volume of three dimensions.")
    scale = [header.get(f"ElementToIntensityFunction{name}") for name in ("Slope", "Offset")]
    if header.get("HeaderSize", "0") != "0" or any(scale) or header["ElementType"] not in _META_TYPES:
        raise _unsupported("MetaImage", "plain whole or floating-point numbers right behind the header")
    orders = {_is_true(header[name]) for name in _META_ORDER if name in header}
    if len(orders) > 1:
        raise ValueError("two byte orders")
    stored = np.dtype(_META_TYPES[header["ElementType"]]).newbyteorder(">" if True in orders else "<")
    affine, start = _meta_affine(header), file.tell()
    data = _inflated(file) if _is_true(header.get("CompressedData", "False")) else file
    volume = _volume(data, stored, _shape(header["DimSize"]), affine)
    taken = file.tell() - start
    if abs(taken - int(header.get("CompressedDataSize", taken))) > MAX_TRAILING_BYTES:
        raise ValueError("another number of compressed bytes than stated")
    return volume


def _meta_header(file: BinaryIO) -> Header:
    """Return a MetaImage header's fields, and leave the file where the data begin."""
    lines = _Lines(file)
    header: Header = {}
    while "ElementDataFile" not in header:
        name, equals, value = lines.next().decode("latin-1").partition("=")
        name = name.strip(" \t")
        if not equals or name in header:
            raise ValueError("a line without a value, or a repeated field")
        header[name] = value.strip()
    if header["ElementDataFile"].upper() != "LOCAL":
        raise DataError("volume-detached", "The MetaImage header names the files that hold the data.")
    return header


def _meta_affine(header: Header) -> Float[np.ndarray, "4 4"]:
    """Return the affine from (z, y, x) to LPS, or refuse a header that does not state one."""
    matrices = [header[name] for name in _META_MATRIX if name in header]
    origins = [header[name] for name in _META_ORIGIN if name in header]
    if len(matrices) != 1 or len(origins) != 1 or "ElementSpacing" not in header:
        raise DataError(
            "volume-no-orientation",
            "The MetaImage header does not state one TransformMatrix, Offset and ElementSpacing.",
        )
    if header.get("DistanceUnits", "mm") not in ("mm", "?"):
        raise DataError("volume-no-orientation", "The MetaImage header's unit is not mm.")
    directions = np.reshape(_numbers(matrices[0], 9), (3, 3)).T  # stated axis by axis
    spacing = np.array(_numbers(header["ElementSpacing"], 3))
    if not (spacing > 0).all() or not np.allclose(
        np.linalg.norm(directions, axis=0), 1.0, rtol=0, atol=_UNIT_TOLERANCE
    ):
        raise DataError("volume-no-orientation", "The MetaImage's directions are no unit vectors.")
    affine = np.eye(4)
    affine[:3, 2::-1] = directions * spacing
    affine[:3, 3] = _numbers(origins[0], 3)
    return affine


class _Lines:
    """The lines of a header, of which there may not be too many."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MAX_HEADER_BYTES

    def next(self) -> bytes:
        """Return the next line without its end.

        Raises:
            EOFError: If the header has no end.
        """
        line = self._file.readline(self._left)
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise EOFError("the header has no end")
        return line.removesuffix(b"\n").removesuffix(b"\r")


def _shape(text: str) -> tuple[int, int, int]:
    """Return the shape in the file's order (x, y, z), or refuse."""
    sizes = _numbers(text, 3)
    if any(not n.is_integer() or n < 1 for n in sizes) or math.prod(sizes) > MAX_VOXELS:
        raise DataError("volume-not-3d", "The header states no size that a chest CT has.")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _numbers(text: str, count: int) -> list[float]:
    """Return a given number of finite numbers.

    Raises:
        ValueError: If there are not as many, or something else.
    """
    if not _NUMBERS.fullmatch(text):  # Python's own words for numbers and blanks are wider
        raise ValueError("something else than numbers")
    numbers = [float(word) for word in text.split()]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError("not as many numbers as expected")
    return numbers


def _is_true(text: str) -> bool:
    """Read a MetaImage's truth value."""
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _inflated(file: BinaryIO) -> BinaryIO:
    """Return the expanded content of what follows in a file."""
    return io.BufferedReader(Inflated(file), _BUFFER_BYTES)


def _volume(
    file: BinaryIO, stored: np.dtype[Any], shape: tuple[int, int, int], affine: Float[np.ndarray, "4 4"]
) -> Volume:
    """Read the numbers into a volume; the first axis of the file runs fastest."""
    check_affine(affine, "volume-no-orientation")
    x, y, z = shape
    numbers = read_numbers(file, stored, x * y * z)
    return Volume(numbers.reshape(z, y, x), Grid((z, y, x), affine))


def _unsupported(what: str, wanted: str) -> DataError:
    """Refuse a form that is not read, and say which one is."""
    return DataError(
        "input-unsupported",
        f"The {what} is in a form that ucadi does not read.",
        cure=f"Write it again with {wanted}.",
    )
