# SPDX-License-Identifier: Apache-2.0
"""The classifier's input: a few slices that span the lungs."""

import numpy as np
from jaxtyping import Float, Int16, Integer

__all__ = ["CT_MEAN_HU", "CT_SD_HU", "STACK_WINDOW_HU", "normalize_hu", "span_indices"]

STACK_WINDOW_HU = (-1200.0, 600.0)
"""Source: Xu et al. 2020, Methods, preprocessing."""

CT_MEAN_HU = -604.2288900583559
CT_SD_HU = 489.42172740885655
"""Mean and sd of the windowed HU over the published study's pooled data (its released code)."""


def span_indices(depth: int, slices: int, offset: float) -> Integer[np.ndarray, " slices"]:
    """Return the indices of slices spread evenly over a depth.

    The depth is cut into equal parts and one slice is taken from each, at the same place within the part.

    Args:
        depth: Number of slices available.
        slices: Number of slices wanted; indices repeat when more than available.
        offset: Place within each part, in [0, 1).
    """
    position = (np.arange(slices) + offset) * depth / slices
    return np.minimum(position.astype(np.intp), depth - 1)


def normalize_hu(hu: Int16[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Clip to the window and z-score with the published constants; float32."""
    clipped: np.ndarray = np.clip(hu, *STACK_WINDOW_HU).astype(np.float32)
    return (clipped - np.float32(CT_MEAN_HU)) / np.float32(CT_SD_HU)
