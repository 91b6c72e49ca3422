# SPDX-License-Identifier: Apache-2.0
"""Hounsfield windows, and whether values are Hounsfield units at all."""

import numpy as np
from jaxtyping import Float, Shaped

from ucadi.errors import DataError

__all__ = ["LESION_WINDOW_HU", "apply_window", "check_hounsfield"]

LESION_WINDOW_HU = (-1000.0, 0.0)
"""Source: Yang et al. 2021, section 3, implementation details."""

_AIR_HU = -900
_TISSUE_HU = (-150, 150)
_MIN_AIR_SHARE = 0.01
_MIN_TISSUE_SHARE = 0.03
_SAMPLES = 500_000


def apply_window(
    volume_hu: Shaped[np.ndarray, "*shape"], window_hu: tuple[float, float]
) -> Float[np.ndarray, "*shape"]:
    """Clip to a window and scale linearly to [0, 1], float32.

    Args:
        volume_hu: HU.
        window_hu: (low, high) in HU.

    Raises:
        ValueError: If the bounds are equal, reversed or not finite.
    """
    low, high = window_hu
    if not np.isfinite([low, high]).all() or low >= high:
        raise ValueError(f"a window needs two finite bounds, low below high, got {window_hu}")
    scaled: np.ndarray = (np.clip(volume_hu, low, high).astype(np.float32) - low) / (high - low)
    return scaled.astype(np.float32, copy=False)


def check_hounsfield(voxels: Shaped[np.ndarray, "z y x"]) -> None:
    """Refuse values that cannot be a chest CT in HU: no air near -1000, or no soft tissue near 40.

    Exports as pictures (0..255) and without rescaling (0..4095) fail on the first, other quantities on either.

    Raises:
        DataError: ``ct-not-hu`` with the range seen.
    """
    step = max(1, voxels.size // _SAMPLES)
    values = voxels.reshape(-1)[::step]
    low, high = float(values.min()), float(values.max())
    air = float(np.mean(values < _AIR_HU))
    tissue = float(np.mean((values > _TISSUE_HU[0]) & (values < _TISSUE_HU[1])))
    if air < _MIN_AIR_SHARE or tissue < _MIN_TISSUE_SHARE:
        raise DataError(
            "ct-not-hu",
            f"Values go from {low:.0f} to {high:.0f}; {100 * air:.0f} % are air (below {_AIR_HU}) and "
            f"{100 * tissue:.0f} % soft tissue ({_TISSUE_HU[0]} to {_TISSUE_HU[1]}).",
        )
