# SPDX-License-Identifier: Apache-2.0
"""One NIfTI file without its patient: a new header of what the voxels need, and the voxels.

Everything else goes: descriptions, names, intents, extensions, unused bytes, what stands after the voxels.
"""

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ucadi.errors import NiftiError
from ucadi.io.nifti import MAX_VOXELS

__all__ = ["deidentify_nifti"]

_KEPT = (
    *("dim", "datatype", "bitpix", "pixdim", "scl_slope", "scl_inter", "xyzt_units"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)
_GZIP = b"\x1f\x8b"
_GZIP_LEVEL = 1  # as `ucadi.io.nifti.write_nifti`
_MAX_BYTES = MAX_VOXELS * 8 + 2**20


def deidentify_nifti(path: Path) -> tuple[bytes, bool]:
    """Return a NIfTI file's cleaned content, not compressed, and whether the original was compressed.

    Args:
        path: A single-file NIfTI-1 or NIfTI-2 volume of numbers.

    Raises:
        NiftiError: ``nifti-not-3d`` for anything but one volume of numbers.
        Exception: One of `ucadi.io.files.READ_ERRORS` when the file is damaged.
    """
    with path.open("rb") as file:
        is_compressed = file.read(len(_GZIP)) == _GZIP
    with gzip.open(path) if is_compressed else path.open("rb") as file:
        content = file.read(_MAX_BYTES)
    kind: Any = nib.Nifti2Header if content[4:8] == b"n+2\0" else nib.Nifti1Header
    old = kind.from_fileobj(io.BytesIO(content), check=False)
    if old["magic"].item()[:3] not in (b"n+1", b"n+2"):
        raise NiftiError("nifti-not-3d", "The header stands apart from its voxels.")
    shape = [int(n) for n in old.get_data_shape()]
    if (
        old.get_data_dtype().kind not in "iuf"
        or len(shape) < 3
        or any(n != 1 for n in shape[3:])
        or min(shape) < 1
    ):
        raise NiftiError("nifti-not-3d", f"It holds {old.get_data_dtype()} in shape {shape}.")
    size = int(np.prod(shape, dtype=np.int64)) * old.get_data_dtype().itemsize
    start = int(old["vox_offset"])
    voxels = content[start : start + size]
    if start < int(old["sizeof_hdr"]) or len(voxels) < size:
        raise NiftiError("input-unreadable", f"There are {len(voxels)} bytes of voxels instead of {size}.")
    new = kind(endianness=old.endianness)
    for field in _KEPT:
        new[field] = old[field]
    used = len(shape) + 1
    new["dim"][used:] = 1
    new["pixdim"][used:] = 0
    new["vox_offset"] = new.single_vox_offset
    header: bytes = new.binaryblock
    return header + bytes(new.single_vox_offset - len(header)) + voxels, is_compressed
