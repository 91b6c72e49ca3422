# SPDX-License-Identifier: Apache-2.0
"""Which end of the lungs is the head's: the diaphragm's domes leave crescents below, the tips are round."""

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

__all__ = ["is_upside_down"]

_ENDS = (0.05, 0.10, 0.15, 0.20)
"""Places near an end of the lungs, as shares of their height."""

_MARGIN = 0.1
_ROUND = 0.53
"""Disease can make crescents of the tips; bases lay at 0.20 to 0.58 in 39 scans, tips without it above."""


def is_upside_down(lungs: Bool[np.ndarray, "z y x"]) -> bool:
    """Tell whether the crescents around the diaphragm's domes lie at the upper end.

    Args:
        lungs: True in aerated lung, without trachea; not empty.
    """
    z, y, x = ndimage.find_objects(lungs.view(np.uint8))[0]
    inner = lungs[z, y, x]
    places = [round(share * (len(inner) - 1)) for share in _ENDS]
    bottom = np.median([_roundness(inner[place]) for place in places])
    top = np.median([_roundness(inner[-1 - place]) for place in places])
    return bool(bottom > max(top + _MARGIN, _ROUND))


def _roundness(section: Bool[np.ndarray, "y x"]) -> float:
    """Return how much of their rectangles both lungs' cross-sections fill: 0.8 a disk, 0.3 a crescent."""
    middle = section.shape[1] // 2
    area, rectangles = 0, 0
    for half in (section[:, :middle], section[:, middle:]):
        rows, columns = np.flatnonzero(half.any(axis=1)), np.flatnonzero(half.any(axis=0))
        if rows.size:
            area += int(np.count_nonzero(half))
            rectangles += int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))
    return area / max(1, rectangles)
