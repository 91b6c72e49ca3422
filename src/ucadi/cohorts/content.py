# SPDX-License-Identifier: Apache-2.0
"""What a study's files hold, apart from their names: the scan's hash and the lesion mask on its grid."""

import hashlib
import io
import struct
from pathlib import Path

import numpy as np
from jaxtyping import Int16, Shaped

from ucadi.errors import CohortError
from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume
from ucadi.io.files import READ_ERRORS, file_of_path
from ucadi.io.nifti import read_nifti
from ucadi.io.streams import Inflated
from ucadi.types import FindingClass

__all__ = ["check_mask_fits_label", "content_hash", "read_lesion_mask", "to_int16"]

_SAME_GRID_MM = 0.1  # a mask saved by another program differs by the rounding of its header
_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 348  # of NIfTI-1; NIfTI-2 says its shape in as many
_SHAPE_OF = {b"n+1\0": (344, 40, "8h"), b"n+2\0": (4, 16, "8q")}
"""By a NIfTI file's magic word: where that is, where the shape is, and how it is stored."""


def to_int16(voxels: Shaped[np.ndarray, "z y x"]) -> Int16[np.ndarray, "z y x"]:
    """Return HU as whole numbers."""
    if voxels.dtype == np.int16:
        return voxels
    bounds = np.iinfo(np.int16)
    return np.asarray(np.clip(np.rint(voxels), bounds.min, bounds.max), dtype=np.int16)


def content_hash(volume: Volume) -> str:
    """Return the SHA-256 of a scan's size and voxels, in canonical axes and whole HU.

    Spacing and origin are left out: the same voxels under another header are the same scan of the same
    patient, and noise sees to it that two scans are never equal.
    """
    digest = hashlib.sha256(repr(volume.grid.shape).encode())
    voxels = np.ascontiguousarray(to_int16(volume.voxels), dtype="<i2")
    digest.update(voxels.data.cast("B"))
    return digest.hexdigest()


def read_lesion_mask(path: Path, grid: Grid) -> Volume:
    """Read a lesion mask as booleans on the grid of its image.

    Of a mask with another size, no number is read.

    Args:
        path: NIfTI file of zeros and one other value.
        grid: The image's.

    Raises:
        NiftiError: If the file cannot be read.
        CohortError: ``cohort-mask`` if it lies on another grid or holds more than two values.
    """
    _check_size(path, grid)
    read = read_nifti(path)
    if not read.grid.is_close(grid, tolerance_mm=_SAME_GRID_MM):
        raise CohortError(
            "cohort-mask",
            f"The mask has {_describe(read.grid)}, which is not the image's grid ({_describe(grid)}).",
            cure="Resample the mask to the image's grid.",
        )
    lesion = read.voxels != 0
    values = np.unique(read.voxels[lesion])
    if values.size > 1:
        raise CohortError(
            "cohort-mask",
            f"The mask holds {values.size} values besides 0, from {values[0]} to {values[-1]}.",
            cure="Write 1 where there is a lesion of any kind, and 0 elsewhere.",
        )
    return Volume(lesion, grid)


def check_mask_fits_label(mask: Volume, label: FindingClass) -> None:
    """Make sure that there are lesions exactly when the label says so.

    Raises:
        CohortError: ``cohort-mask`` if a healthy study has lesions, or another one has none.
    """
    has_lesions = bool(mask.voxels.any())
    if has_lesions == (label is FindingClass.HEALTHY):
        seen = "holds lesions" if has_lesions else "is empty"
        raise CohortError(
            "cohort-mask",
            f"The mask {seen}, the label is {label.name}.",
            cure="Mend the label or the mask, or name no mask for the study.",
        )


def _check_size(path: Path, grid: Grid) -> None:
    """Refuse a mask whose header states another size, in whatever order; a strange header is not judged."""
    stated = _stated_shape(path)
    if stated and sorted(stated) != sorted(grid.shape):
        shape = " x ".join(map(str, stated))
        raise CohortError(
            "cohort-mask",
            f"The mask has {shape} voxels, which is not the image's grid ({_describe(grid)}).",
            cure="Resample the mask to the image's grid.",
        )


def _stated_shape(path: Path) -> tuple[int, ...]:
    """Return the shape in a NIfTI header, slowest first and at least three sizes; empty without a header."""
    try:
        with file_of_path(path)() as raw:
            is_gzip = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            raw.seek(0)
            head = (io.BufferedReader(Inflated(raw)) if is_gzip else raw).read(_HEAD_BYTES)
    except READ_ERRORS:
        return ()
    for magic, (place, start, kind) in _SHAPE_OF.items():
        if len(head) == _HEAD_BYTES and head[place : place + len(magic)] == magic:
            for order in "<>":
                count, *sizes = struct.unpack_from(order + kind, head, start)
                if 0 < count < len(sizes) + 1:
                    while count > 3 and sizes[count - 1] == 1:
                        count -= 1
                    return tuple(sizes[:count][::-1])
    return ()


def _describe(grid: Grid) -> str:
    """Return shape, spacing and origin in words."""
    shape = " x ".join(str(n) for n in grid.shape)
    spacing = " x ".join(f"{mm:.2f}" for mm in grid.spacing_mm)
    origin = ", ".join(f"{mm:.1f}" for mm in grid.origin_mm)
    return f"{shape} voxels of {spacing} mm from ({origin}) mm"
