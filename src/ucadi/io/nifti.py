# SPDX-License-Identifier: Apache-2.0
"""NIfTI files to volumes and back. The only place that knows RAS."""

import gzip
import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from jaxtyping import Float
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from ucadi.errors import DataError, NiftiError
from ucadi.imaging.grid import Grid
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.volume import Volume
from ucadi.io.checkpoint import write_bytes
from ucadi.io.files import READ_ERRORS, OpenFile, opener
from ucadi.io.streams import MAX_VOXELS, Inflated, read_numbers, skip

__all__ = ["MAX_VOXELS", "check_affine", "is_nifti", "read_nifti", "write_nifti"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_XYZ_TO_ZYX = np.eye(4)[[2, 1, 0, 3]]
_GZIP_LEVEL = 1  # several times as fast as the default level, and CT hardly gets smaller at higher ones
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = 540  # of NIfTI-2, the longer one
_HEADER_1_BYTES = 348
_FLAG_BYTES = 4  # behind the header; they say whether extensions follow
_BUFFER_BYTES = 2**18
_MAX_CONFLICT_MM = 1.0  # between the places that sform and qform give a corner
_MAX_SHEAR = 1e-3  # cosine between two axes
_MAX_SPACING_CONFLICT = 0.01  # relative, between the affine's and the header's voxel size
_MIN_SPACING_MM, _MAX_SPACING_MM = 1e-3, 1e3
_DAMAGED = (*READ_ERRORS, HeaderDataError, HeaderTypeError, ImageFileError, WrapStructError)
"""What nibabel and what opens a file raise on damaged ones; caught around their calls only."""


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume as .nii or .nii.gz, complete or not at all; a mask becomes 0 and 1 as uint8."""
    voxels = volume.voxels.astype(np.uint8) if volume.voxels.dtype == np.bool_ else volume.voxels
    affine_ras = _LPS_TO_RAS @ volume.grid.affine_lps @ _XYZ_TO_ZYX
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine_ras)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    # Without a time stamp, so that the same volume gives the same bytes.
    write_bytes(path, gzip.compress(data, _GZIP_LEVEL, mtime=0) if path.suffix == ".gz" else data)


def is_nifti(source: Path | OpenFile) -> bool:
    """Tell by its first bytes whether a file is one NIfTI volume, plain or compressed."""
    try:
        with opener(source)() as file:
            return _version(_expanded(file).read(_HEADER_BYTES)) > 0
    except _DAMAGED:
        return False


def read_nifti(source: Path | OpenFile) -> Volume:
    """Read one 3D volume in canonical axes: int16 when its numbers are whole and fit, else float32.

    Args:
        source: A CT in HU or a mask, NIfTI-1 or NIfTI-2 in one file, plain or compressed, whatever its name.

    Raises:
        NiftiError: If the file is damaged or too large, does not hold one 3D volume of numbers, states no or
            contradicting orientation. The message names no file.
        DataError: If it holds NaN or infinite values, or more data than its header states.
    """
    with _quiet_nibabel():
        try:
            with opener(source)() as raw:
                file = _expanded(raw)
                header = _read_header(file)
                shape = _shape_3d(header)
                affine_lps = _LPS_TO_RAS @ _affine_ras(header) @ _XYZ_TO_ZYX
                slope, intercept = header.get_slope_inter()
                scaling = (1.0, 0.0) if slope is None else (float(slope), float(intercept))
                voxels = read_numbers(file, header.get_data_dtype(), math.prod(shape), *scaling)
        except _DAMAGED as error:
            raise NiftiError(
                "input-unreadable", f"The NIfTI file is damaged or cut short ({type(error).__name__})."
            ) from error
    x, y, z = shape
    return to_canonical(Volume(voxels.reshape(z, y, x), Grid((z, y, x), affine_lps)))


def check_affine(affine: Float[np.ndarray, "4 4"], code: str) -> None:
    """Make sure that an affine's axes have a length and stand at right angles.

    Raises:
        DataError: With the given code.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or spacing.min() < _MIN_SPACING_MM or spacing.max() > _MAX_SPACING_MM:
        raise DataError(code, "The header's affine is singular, not finite or out of all proportion.")
    directions = affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > _MAX_SHEAR:
        raise DataError(code, "The volume's axes are not at right angles (sheared).")


def _expanded(file: BinaryIO) -> BinaryIO:
    """Return a file's content, expanded when its first bytes say gzip, not when its name does."""
    head = file.read(len(_GZIP_MAGIC))
    file.seek(0)
    if head != _GZIP_MAGIC:
        return file
    return io.BufferedReader(Inflated(file), _BUFFER_BYTES)


def _version(head: bytes) -> int:
    """Return the version of the NIfTI format, 0 for another format."""
    return 1 if head[344:348] == b"n+1\0" else 2 if head[4:8] == b"n+2\0" else 0


def _read_header(file: BinaryIO) -> nib.Nifti1Header:
    """Read the header and go on to where the numbers begin."""
    head = file.read(_HEADER_1_BYTES)
    version = _version(head)
    if version == 0:
        raise ValueError("not one NIfTI volume in a file")
    if version == 2:
        head += file.read(_HEADER_BYTES - _HEADER_1_BYTES)
    # From the bare bytes: extensions behind the header are passed over, never parsed.
    kind = nib.Nifti2Header if version == 2 else nib.Nifti1Header
    header = kind(head)  # type: ignore[no-untyped-call]  # nibabel is untyped
    offset = int(header.get_data_offset())
    if offset < len(head) + _FLAG_BYTES:
        raise ValueError("the data begin inside the header")
    skip(file, offset - len(head))
    return header


@contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keep nibabel's remarks about headers from stderr: what matters is checked here."""
    logger = logging.getLogger("nibabel.global")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _affine_ras(header: nib.Nifti1Header) -> Float[np.ndarray, "4 4"]:
    """Return the sform's affine, else the qform's, after checking that the header does not contradict itself.

    Raises:
        NiftiError: If neither is there, or they, the voxel size or the unit do not agree.
    """
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise NiftiError("nifti-no-orientation", f"The header's unit is {unit}, not mm.")
    sform, qform = (header.get_sform(coded=True)[0], header.get_qform(coded=True)[0])
    affine = sform if sform is not None else qform
    if affine is None:
        raise NiftiError("nifti-no-orientation", "The header has neither a valid sform nor a valid qform.")
    check_affine(affine, "nifti-no-orientation")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    stated = np.array(header.get_zooms()[:3], dtype=np.float64)
    if not np.allclose(spacing, stated, rtol=_MAX_SPACING_CONFLICT):
        raise NiftiError(
            "nifti-no-orientation",
            f"The affine's voxel size is {np.round(spacing, 3).tolist()} mm, the header's "
            f"{np.round(stated, 3).tolist()} mm.",
        )
    if sform is not None and qform is not None:
        far = np.array([*header.get_data_shape()[:3], 1.0])
        corners = np.array(np.meshgrid(*[(0.0, n - 1.0) for n in far[:3]], [1.0])).reshape(4, -1)
        conflict_mm = np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max()
        if conflict_mm > _MAX_CONFLICT_MM:
            raise NiftiError(
                "nifti-no-orientation", f"sform and qform place the volume {conflict_mm:.1f} mm apart."
            )
    return np.asarray(affine, dtype=np.float64)


def _shape_3d(header: nib.Nifti1Header) -> tuple[int, int, int]:
    """Return the shape in the file's order (x, y, z), or refuse."""
    shape = [int(n) for n in header.get_data_shape()]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 3 or min(shape) < 1:
        raise NiftiError("nifti-not-3d", f"The file's array has {len(shape)} dimensions: {shape}.")
    if math.prod(shape) > MAX_VOXELS:
        raise NiftiError("nifti-not-3d", f"A volume of {shape} voxels is larger than any chest CT.")
    if header.get_data_dtype().fields is not None or header.get_data_dtype().kind not in "iuf":
        raise NiftiError("ct-not-hu", "The file holds colors or complex numbers.")
    return shape[0], shape[1], shape[2]
