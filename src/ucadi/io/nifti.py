# SPDX-License-Identifier: Apache-2.0
"""NIfTI files to volumes and back. The only place that knows RAS."""

from pathlib import Path

import nibabel as nib
import numpy as np

from ucadi.imaging.volume import Volume

__all__ = ["write_nifti"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_XYZ_TO_ZYX = np.eye(4)[[2, 1, 0, 3]]


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume as .nii or .nii.gz; a mask becomes 0 and 1 as uint8."""
    voxels = volume.voxels.astype(np.uint8) if volume.voxels.dtype == np.bool_ else volume.voxels
    affine_ras = _LPS_TO_RAS @ volume.grid.affine_lps @ _XYZ_TO_ZYX
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine_ras)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
