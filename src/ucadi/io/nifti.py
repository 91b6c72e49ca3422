# SPDX-License-Identifier: Apache-2.0
"""NIfTI files to volumes and back. The only place that knows RAS."""

import gzip
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Shaped
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ucadi.errors import NiftiError
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.volume import Volume

__all__ = ["looks_like_nifti", "read_nifti", "write_nifti"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_XYZ_TO_ZYX = np.eye(4)[[2, 1, 0, 3]]

_GZIP_LEVEL = 1
"""Level 1 is several times faster than the default and CT compresses hardly better at higher levels."""

_FORM_TOLERANCE_MM = 1.0
"""How far sform and qform may place the same voxel apart."""

_PARSE_ERRORS = (
    ImageFileError,
    HeaderDataError,
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    TypeError,
    gzip.BadGzipFile,
    struct.error,
    zlib.error,
)


def looks_like_nifti(head: bytes) -> bool:
    """Tell by the first 348 bytes, unpacked: NIfTI-1 or NIfTI-2 in one file."""
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def read_nifti(path: Path) -> Volume:
    """Read one 3D volume in canonical axes.

    Whole numbers come back as int16 where they fit, others as float32. Masks come back with their numbers.

    Raises:
        NiftiError: If the file is damaged, not 3D, holds NaN, or states no or contradictory orientation.
    """
    try:
        image = nib.load(path)
        shape, affine_ras = _geometry(image)
        voxels = np.asanyarray(image.dataobj).reshape(shape)
    except _PARSE_ERRORS as error:
        raise NiftiError("input-unreadable", "The NIfTI file is damaged or cut short.") from error
    affine_lps = _LPS_TO_RAS @ affine_ras @ _XYZ_TO_ZYX
    volume, _ = to_canonical(_compact(voxels).transpose(2, 1, 0), affine_lps)
    return Volume(np.ascontiguousarray(volume.voxels), volume.grid)


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume as .nii or .nii.gz; a mask becomes 0 and 1 as uint8."""
    voxels = volume.voxels.astype(np.uint8) if volume.voxels.dtype == np.bool_ else volume.voxels
    affine_ras = _LPS_TO_RAS @ volume.grid.affine_lps @ _XYZ_TO_ZYX
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine_ras)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    # mtime 0: the same volume gives the same bytes.
    path.write_bytes(gzip.compress(data, _GZIP_LEVEL, mtime=0) if path.suffix == ".gz" else data)


def _geometry(image: nib.Nifti1Image) -> tuple[tuple[int, int, int], Float[np.ndarray, "4 4"]]:
    """Return the 3D shape and the RAS affine."""
    if not isinstance(image, nib.Nifti1Image):
        raise NiftiError("nifti-not-3d", "The file is no single-file NIfTI.")
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise NiftiError("nifti-not-3d", f"The file has shape {tuple(image.shape)}.")
    if np.dtype(image.get_data_dtype()).kind not in "iuf":
        raise NiftiError("nifti-not-3d", f"The file holds {image.get_data_dtype()}, not numbers.")
    sform, s_code = image.get_sform(coded=True)
    qform, q_code = image.get_qform(coded=True)
    if not s_code and not q_code:
        raise NiftiError("nifti-no-orientation", "Neither sform nor qform is set.")
    affine: np.ndarray = sform if s_code else qform
    if s_code and q_code:
        corner = np.array([*(n - 1 for n in shape), 1.0])
        apart = float(max(np.abs((sform - qform)[:3, 3]).max(), np.abs((sform - qform) @ corner).max()))
        if apart > _FORM_TOLERANCE_MM:
            raise NiftiError("nifti-no-orientation", f"sform and qform differ by {apart:.1f} mm.")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise NiftiError("nifti-no-orientation", "The orientation matrix is singular.")
    return (shape[0], shape[1], shape[2]), affine


def _compact(voxels: Shaped[np.ndarray, "x y z"]) -> Shaped[np.ndarray, "x y z"]:
    """Return int16 when all values are whole and fit, float32 otherwise."""
    if voxels.dtype.kind in "iu":
        low, high = int(voxels.min()), int(voxels.max())
        return voxels.astype(np.int16 if -32768 <= low and high <= 32767 else np.float32)
    if not np.isfinite(voxels).all():
        raise NiftiError("input-unreadable", "The volume holds NaN or infinite values.")
    rounded = np.rint(voxels)
    if np.abs(rounded).max() <= 32767 and np.array_equal(rounded, voxels):
        return rounded.astype(np.int16)
    return voxels.astype(np.float32)
