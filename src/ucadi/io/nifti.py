# SPDX-License-Identifier: Apache-2.0
"""NIfTI files to volumes and back. The only place that knows RAS."""

import gzip
import io
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Shaped
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from ucadi.errors import NiftiError
from ucadi.imaging.grid import Grid
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.volume import Volume

__all__ = ["MAX_VOXELS", "is_nifti", "read_nifti", "write_nifti"]

MAX_VOXELS = 2**30
"""1024 slices of 1024x1024. A header that states more is damaged or hostile, not a chest CT."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_XYZ_TO_ZYX = np.eye(4)[[2, 1, 0, 3]]
_GZIP_LEVEL = 1  # several times as fast as the default level, and CT hardly gets smaller at higher ones
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = 540  # of NIfTI-2, the longer one
_MAX_CONFLICT_MM = 1.0  # between the places that sform and qform give a corner
_MAX_SHEAR = 1e-3  # cosine between two axes
_MAX_SPACING_CONFLICT = 0.01  # relative, between the affine's and the header's voxel size
_MIN_SPACING_MM = 1e-3
_DAMAGED = (
    EOFError,
    HeaderDataError,
    HeaderTypeError,
    ImageFileError,
    KeyError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    WrapStructError,
    struct.error,
    zlib.error,
)
"""What nibabel and gzip raise on damaged files; caught around their calls only."""


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume as .nii or .nii.gz; a mask becomes 0 and 1 as uint8."""
    voxels = volume.voxels.astype(np.uint8) if volume.voxels.dtype == np.bool_ else volume.voxels
    affine_ras = _LPS_TO_RAS @ volume.grid.affine_lps @ _XYZ_TO_ZYX
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine_ras)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    # Without a time stamp, so that the same volume gives the same bytes.
    path.write_bytes(gzip.compress(data, _GZIP_LEVEL, mtime=0) if path.suffix == ".gz" else data)


def is_nifti(path: Path) -> bool:
    """Tell by its first bytes whether a file is one NIfTI volume, plain or compressed."""
    try:
        with _open(path) as file:
            head = file.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error):
        return False
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def read_nifti(path: Path) -> Volume:
    """Read one 3D volume in canonical axes: int16 when its numbers are whole and fit, else float32.

    Args:
        path: A CT in HU or a mask, NIfTI-1 or NIfTI-2 in one file, plain or compressed, whatever its name.

    Raises:
        NiftiError: If the file is damaged or too large, does not hold one 3D volume of numbers, states no or
            contradicting orientation, or holds NaN or infinite values. The message names no file.
    """
    with _quiet_nibabel():
        try:
            with _open(path) as file:
                image = _image_type(file).from_stream(file)
                shape = _shape_3d(image.header)
                affine_lps = _LPS_TO_RAS @ _affine_ras(image.header) @ _XYZ_TO_ZYX
                voxels = _read_values(image.dataobj).reshape(shape, order="F")
        except _DAMAGED as error:
            raise NiftiError(
                "input-unreadable", f"The NIfTI file is damaged or cut short ({type(error).__name__})."
            ) from error
    x, y, z = shape
    return to_canonical(Volume(voxels.transpose(2, 1, 0), Grid((z, y, x), affine_lps)))


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """Open a plain or compressed file by its content, not by its name."""
    file = path.open("rb")
    if file.peek(len(_GZIP_MAGIC))[: len(_GZIP_MAGIC)] != _GZIP_MAGIC:
        return file
    file.close()
    return gzip.open(path)


def _image_type(file: io.BufferedReader | gzip.GzipFile) -> type[nib.Nifti1Image]:
    """Return the class that reads the file's version."""
    head = file.read(_HEADER_BYTES)
    file.seek(0)
    return nib.Nifti2Image if head[4:8] == b"n+2\0" else nib.Nifti1Image


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
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or spacing.min() < _MIN_SPACING_MM:
        raise NiftiError("nifti-no-orientation", "The header's affine is singular or not finite.")
    directions = affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > _MAX_SHEAR:
        raise NiftiError("nifti-no-orientation", "The volume's axes are not at right angles (sheared).")
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
    if int(np.prod(shape, dtype=np.int64)) > MAX_VOXELS:
        raise NiftiError("nifti-not-3d", f"A volume of {shape} voxels is larger than any chest CT.")
    if header.get_data_dtype().fields is not None or header.get_data_dtype().kind not in "iuf":
        raise NiftiError("ct-not-hu", "The file holds colors or complex numbers.")
    return shape[0], shape[1], shape[2]


def _read_values(data: Any) -> Shaped[np.ndarray, "..."]:
    """Return what nibabel's array proxy holds, scaled: int16 when stored as whole numbers, else float32."""
    is_scaled = (data.slope, data.inter) != (1.0, 0.0)
    # Asked for float32: without a type the proxy scales in float64.
    values = np.asarray(data, dtype=np.float32) if is_scaled else data.get_unscaled()
    if values.dtype.kind in "iu":
        bounds = np.iinfo(np.int16)
        if values.dtype == np.int16 or (values.min() >= bounds.min and values.max() <= bounds.max):
            return np.asarray(values, dtype=np.int16)
    values = np.asarray(values, dtype=np.float32)
    broken = values.size - np.count_nonzero(np.isfinite(values))
    if broken:
        raise NiftiError("ct-not-hu", f"{broken} of {values.size} values are NaN or infinite.")
    return values
