# SPDX-License-Identifier: Apache-2.0
"""Whether neighboring slices belong together: two scans mixed slice by slice have a regular geometry."""

import numpy as np
from jaxtyping import Shaped

from ucadi.errors import DataError

__all__ = ["check_continuity"]

_LEAST_RATIO = 0.85
"""Difference of every second slices over that of neighbors: 1.0 for noise, above for anatomy."""

_ROWS, _COLUMNS = 32, 128  # of each slice; few rows, since each one is read from memory as a whole
_BOUNDS_HU = (-1000, 200)  # padding and metal would decide alone


def check_continuity(volume_hu: Shaped[np.ndarray, "z y x"]) -> None:
    """Make sure that slices look more like their neighbors than like the ones after.

    Anatomy changes with distance, and noise is the same at all distances. When two acquisitions alternate,
    every second slice is the more alike one.

    Raises:
        DataError: ``ct-interleaved`` when they do.
    """
    _, rows, columns = volume_hu.shape
    y, x = max(1, rows // _ROWS), max(1, columns // _COLUMNS)
    sparse = np.clip(volume_hu[:, y // 2 :: y, ::x], *_BOUNDS_HU).astype(np.int16)
    if len(sparse) < 3:
        return
    near = float(np.abs(sparse[1:] - sparse[:-1]).mean())
    next_but_one = float(np.abs(sparse[2:] - sparse[:-2]).mean())
    if next_but_one < _LEAST_RATIO * near:
        raise DataError(
            "ct-interleaved",
            f"Neighboring slices differ by {near:.0f} HU on average, every second ones only by "
            f"{next_but_one:.0f} HU, as when two acquisitions alternate.",
        )
