# SPDX-License-Identifier: Apache-2.0
"""A thin-slice CT onto a network's grid: ucadi's two ways beside MONAI's `Spacing` and SimpleITK.

400 slices of 512x512 at 0.8 x 0.7 x 0.7 mm become 5 x 0.8 x 0.8 mm, one thread each. MONAI, SimpleITK and
`interpolate_linear` take the value at each place; `resample_linear` averages slices on the way, which is more
work (its matrix products use the threads of numpy's BLAS; CPU time counts them all).
"""

import numpy as np
import SimpleITK
import torch
from harness import arguments, interleave, report
from monai.data import MetaTensor
from monai.transforms import Spacing

from ucadi.imaging.grid import Grid
from ucadi.imaging.resample import interpolate_linear, resample_linear

OLD_MM, NEW_MM = (0.8, 0.7, 0.7), (5.0, 0.8, 0.8)
MAX_DIFFERENCE_HU = 0.01


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    shape = (100, 256, 256) if options.quick else (400, 512, 512)
    voxels = np.random.default_rng(0).integers(-1024, 3072, shape, dtype=np.int16)
    tensor = torch.from_numpy(voxels)[None]
    affine = torch.diag(torch.tensor([*OLD_MM, 1.0], dtype=torch.float64))
    picture = SimpleITK.GetImageFromArray(voxels)
    picture.SetSpacing(OLD_MM[::-1])
    size = tuple(int((n - 1) * old / new) + 1 for n, old, new in zip(shape, OLD_MM, NEW_MM, strict=True))
    grid, target = Grid.from_spacing(shape, OLD_MM), Grid.from_spacing(size, NEW_MM)

    def with_monai(dtype: type = np.float64) -> np.ndarray:
        return Spacing(pixdim=NEW_MM, dtype=dtype)(MetaTensor(tensor, affine=affine))[0].numpy()

    def with_simpleitk() -> SimpleITK.Image:
        placed = (size[::-1], SimpleITK.Transform(), SimpleITK.sitkLinear, (0.0, 0.0, 0.0), NEW_MM[::-1])
        return SimpleITK.Resample(picture, *placed, picture.GetDirection(), 0.0, SimpleITK.sitkFloat32)

    ours = interpolate_linear(voxels, grid, target)
    inside = tuple(slice(n) for n in size)  # MONAI adds a last voxel beyond the scan when it is half inside
    differences = {
        "monai": float(np.abs(with_monai()[inside] - ours).max()),
        "simpleitk": float(np.abs(SimpleITK.GetArrayFromImage(with_simpleitk()) - ours).max()),
    }
    assert max(differences.values()) <= MAX_DIFFERENCE_HU, differences
    results = interleave(
        {
            "MONAI Spacing": with_monai,
            "MONAI Spacing, float32": lambda: with_monai(np.float32),
            "SimpleITK linear": with_simpleitk,
            "ucadi interpolate_linear": lambda: interpolate_linear(voxels, grid, target),
            "ucadi resample_linear, averaging": lambda: resample_linear(voxels, grid, target),
        },
        rounds=3 if options.quick else 5,
    )
    ours_ms, itk_ms = (results[n]["median_cpu_ms"] for n in ("ucadi interpolate_linear", "SimpleITK linear"))
    parity = {
        "max_difference_hu": differences,
        "threads": 1,
        "seconds_ratio_to_monai": results["ucadi interpolate_linear"]["ratio_cpu"],
        "seconds_ratio_to_simpleitk": round(itk_ms / ours_ms, 2),
    }
    report(options, f"resample, {shape} to {size}", parity, results)


if __name__ == "__main__":
    main()
