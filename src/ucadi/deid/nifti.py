# SPDX-License-Identifier: Apache-2.0
"""One NIfTI file without its patient: a new header of what the voxels need, and the voxels.

Everything else goes: descriptions, names, intents, extensions, unused bytes, what stands after the voxels.
"""

import io
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import nibabel as nib
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from ucadi.errors import NiftiError
from ucadi.io.streams import MAX_TRAILING_BYTES, MAX_VOXELS, Inflated, skip

__all__ = ["deidentify_nifti", "is_gzip"]

_KEPT = (
    *("dim", "datatype", "bitpix", "pixdim", "scl_slope", "scl_inter", "xyzt_units"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)
_GZIP = b"\x1f\x8b"
_HEADER_1_BYTES, _HEADER_2_BYTES = 348, 540
_MAX_START_BYTES = 2**28  # extensions may hold a DICOM header of each slice
_STEP_BYTES = 2**18


def is_gzip(file: BinaryIO) -> bool:
    """Return whether a file's first bytes say gzip; the file is at its start before and after."""
    head = file.read(len(_GZIP))
    file.seek(0)
    return head == _GZIP


def deidentify_nifti(file: BinaryIO) -> Iterator[bytes]:
    """Yield a NIfTI file's cleaned content, not compressed, piece by piece: no more memory is taken.

    What was yielded is worth nothing when an error follows.

    Args:
        file: A single-file NIfTI-1 or NIfTI-2 volume of numbers, plain or compressed; at its start.

    Raises:
        NiftiError: ``nifti-not-3d`` for anything but one volume of numbers, ``input-unreadable`` when the
            file holds more than its header states.
        Exception: One of `ucadi.io.files.READ_ERRORS` when the file is damaged or holds less.
    """
    content = io.BufferedReader(Inflated(file), _STEP_BYTES) if is_gzip(file) else file
    try:
        old = _read_header(content)
        shape = _shape(old)
        header = _clean_header(old, len(shape))
    except (HeaderDataError, HeaderTypeError, WrapStructError) as error:
        raise NiftiError("input-unreadable", f"The header is damaged ({type(error).__name__}).") from error
    yield header
    missing = math.prod(shape) * old.get_data_dtype().itemsize
    while missing:
        piece = content.read(min(missing, _STEP_BYTES))
        if not piece:
            raise NiftiError("input-unreadable", f"The last {missing} bytes of the voxels are missing.")
        missing -= len(piece)
        yield piece
    if len(content.read(MAX_TRAILING_BYTES + 1)) > MAX_TRAILING_BYTES:
        raise NiftiError("input-unreadable", "The file holds more data than its header states.")


def _read_header(file: BinaryIO) -> Any:
    """Read the header and go on to where the voxels begin."""
    head = file.read(_HEADER_1_BYTES)
    is_second = head[4:8] == b"n+2\0"
    if is_second:
        head += file.read(_HEADER_2_BYTES - _HEADER_1_BYTES)
    kind: Any = nib.Nifti2Header if is_second else nib.Nifti1Header
    # From the bare bytes: extensions behind the header are passed over, never parsed.
    header = kind(head, check=False)
    if header["magic"].item()[:3] not in (b"n+1", b"n+2"):
        raise NiftiError("nifti-not-3d", "The header stands apart from its voxels.")
    start = int(header["vox_offset"])
    if not len(head) <= start <= _MAX_START_BYTES:
        raise NiftiError("input-unreadable", f"The voxels cannot begin at byte {start}.")
    skip(file, start - len(head))
    return header


def _shape(header: Any) -> list[int]:
    """Return the shape in the file's order, or refuse what is not one volume of numbers."""
    shape = [int(n) for n in header.get_data_shape()]
    is_one = len(shape) >= 3 and all(n == 1 for n in shape[3:]) and min(shape) >= 1
    if header.get_data_dtype().kind not in "iuf" or not is_one or math.prod(shape) > MAX_VOXELS:
        raise NiftiError("nifti-not-3d", f"It holds {header.get_data_dtype()} in shape {shape}.")
    return shape


def _clean_header(old: Any, dimensions: int) -> bytes:
    """Return a new header with what the voxels need, up to where they begin."""
    new = type(old)(endianness=old.endianness)
    for field in _KEPT:
        new[field] = old[field]
    new["dim"][dimensions + 1 :] = 1
    new["pixdim"][dimensions + 1 :] = 0
    new["vox_offset"] = new.single_vox_offset
    header: bytes = new.binaryblock
    return header.ljust(new.single_vox_offset, b"\0")
