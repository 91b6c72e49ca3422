# SPDX-License-Identifier: Apache-2.0
"""Pictures that were drawn, as arrays."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib import image

__all__ = ["read_picture"]


def read_picture(path: Path) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return a PNG that was drawn here as sRGB, its opaque alpha channel left out."""
    pixels = image.imread(path)  # float32 in [0, 1]
    rgb: np.ndarray = np.rint(pixels[..., :3] * 255).astype(np.uint8)
    return rgb
