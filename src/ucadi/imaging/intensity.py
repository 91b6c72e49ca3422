# SPDX-License-Identifier: Apache-2.0
"""Hounsfield windows."""

import numpy as np
from jaxtyping import Float, Shaped

__all__ = ["LESION_WINDOW_HU", "apply_window"]

LESION_WINDOW_HU = (-1000.0, 0.0)
"""Source: Yang et al. 2021, section 3, implementation details."""


def apply_window(
    volume_hu: Shaped[np.ndarray, "z y x"], window_hu: tuple[float, float]
) -> Float[np.ndarray, "z y x"]:
    """Clip to a window and scale linearly to [0, 1], float32."""
    low, high = window_hu
    scaled: np.ndarray = (np.clip(volume_hu, low, high).astype(np.float32) - low) / (high - low)
    return scaled.astype(np.float32, copy=False)
