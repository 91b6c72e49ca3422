# SPDX-License-Identifier: Apache-2.0
"""Hounsfield units: windows for the networks, and whether values are HU at all."""

import numpy as np
from jaxtyping import Float, Shaped

from ucadi.errors import DataError

__all__ = ["LESION_WINDOW_HU", "apply_window", "check_hu"]

LESION_WINDOW_HU = (-1000.0, 0.0)
"""Source: Yang et al. 2021, section 3, implementation details."""

_SAMPLES_PER_AXIS = 64
"""The check looks at a sparse lattice: shares of 1 % are exact enough, and it takes milliseconds."""

_AIR_HU = (-1023, -850)
"""Air and aerated lung. The lowest value, -1024, does not count: it is what padding is set to."""

_TISSUE_HU = (-250, 250)
"""Fat, water, muscle, blood with contrast medium."""

_PEAK_HU = (-150, 130)
"""Where the most frequent tissue lies: fat near -100, muscle and organs near 50."""

_MIN_AIR_SHARE = 0.002
_MIN_TISSUE_SHARE = 0.02


def apply_window(
    volume_hu: Shaped[np.ndarray, "*shape"], window_hu: tuple[float, float]
) -> Float[np.ndarray, "*shape"]:
    """Clip to a Hounsfield window and scale linearly to [0, 1], float32.

    Args:
        volume_hu: HU, any shape and number type.
        window_hu: (low, high) in HU, low < high, for example `LESION_WINDOW_HU`.

    Raises:
        ValueError: If the bounds are equal, reversed or not finite.
    """
    low, high = window_hu
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"a window needs finite low < high, got {window_hu}")
    scaled: np.ndarray = np.clip(volume_hu, low, high).astype(np.float32)
    scaled -= np.float32(low)
    scaled /= np.float32(high - low)
    return scaled


def check_hu(volume_hu: Shaped[np.ndarray, "z y x"]) -> None:
    """Make sure that values can be Hounsfield units of a chest: some air, and soft tissue at its place.

    Raises:
        DataError: ``ct-not-hu`` for pictures (0 to 255), values without rescale, other modalities, masks.
    """
    sparse = volume_hu[tuple(slice(None, None, max(1, n // _SAMPLES_PER_AXIS)) for n in volume_hu.shape)]
    low, high = float(sparse.min()), float(sparse.max())
    if low >= 0.0:
        guess = "an 8-bit picture" if 1.0 < high <= 255.0 else "a mask" if high <= 1.0 else "raw values"
        raise DataError("ct-not-hu", f"Values run from {low:g} to {high:g}, as in {guess}; air is missing.")
    if _share(sparse, _AIR_HU) < _MIN_AIR_SHARE:
        raise DataError(
            "ct-not-hu",
            f"Values run from {low:g} to {high:g}, but hardly any lies between {_AIR_HU[0]} and "
            f"{_AIR_HU[1]} HU, where air and lung are.",
        )
    tissue = sparse[(sparse >= _TISSUE_HU[0]) & (sparse <= _TISSUE_HU[1])]
    if tissue.size < _MIN_TISSUE_SHARE * sparse.size:
        raise DataError(
            "ct-not-hu", f"Only {100 * tissue.size / sparse.size:.1f} % of the values are soft tissue."
        )
    counts, edges = np.histogram(tissue, bins=25, range=_TISSUE_HU)
    peak = float(edges[counts.argmax()] + edges[counts.argmax() + 1]) / 2.0
    if not _PEAK_HU[0] <= peak <= _PEAK_HU[1]:
        raise DataError(
            "ct-not-hu", f"The most frequent soft tissue lies at {peak:.0f} HU, expected near 50."
        )


def _share(values: Shaped[np.ndarray, "..."], bounds: tuple[int, int]) -> float:
    """Return the share of values within bounds."""
    return float(np.count_nonzero((values >= bounds[0]) & (values <= bounds[1])) / values.size)
