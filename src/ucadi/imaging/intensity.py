# SPDX-License-Identifier: Apache-2.0
"""Hounsfield units: windows for the networks, and whether values are HU at all."""

import numpy as np
from jaxtyping import Float, Shaped

from ucadi.errors import DataError
from ucadi.imaging.remarks import Remark

__all__ = ["LESION_WINDOW_HU", "apply_window", "check_hu"]

LESION_WINDOW_HU = (-1000.0, 0.0)
"""Source: Yang et al. 2021, section 3, implementation details."""

_SAMPLES_PER_AXIS = 64
"""The check looks at a sparse lattice: shares of 1 % are exact enough, and it takes milliseconds."""

_AIR_HU = (-1023.0, -850.0)
"""Air and aerated lung. The lowest value, -1024, does not count: it is what padding is set to."""

_TISSUE_HU = (-250.0, 250.0)
"""Fat, water, muscle, blood with contrast medium."""

_PEAK_HU = (-150, 130)
"""Where the most frequent tissue lies: fat near -100, muscle and organs near 50."""

_MIN_AIR_SHARE = 0.002
_MIN_TISSUE_SHARE = 0.02

_OUTSIDE_AIR_HU = -1000.0
_USUAL_INTERCEPT, _NEAR_USUAL = 1024.0, 30.0
"""What most scanners add before they store; a guess so near means it."""

_MAX_STORED = 4095 + 1024
"""Scanners store 12 bits."""

_CLIPPED_SHARE = 1e-4
"""Of all values, exactly at an end: far more than the single highest voxel of a whole scan."""

_LOWEST_CLIP_HU, _HIGHEST_CLIP_HU = -980.0, 1500.0
"""Ends beyond are a scanner's own: 12 stored bits end near -1000 and above 3000."""

_LOST_TISSUE_HU = 100.0
"""Clipped at less, consolidation, fluid, blood and liver have one value."""

_COARSE_STEPS = (64, 256)
"""Numbers of different values in an 8-bit picture that was scaled back; made-up objects have fewer."""


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


def check_hu(volume_hu: Shaped[np.ndarray, "z y x"]) -> tuple[Remark, ...]:
    """Make sure that values can be Hounsfield units of a chest: some air, and soft tissue at its place.

    Returns:
        ``hu-clipped`` when an end was cut off that a reading can spare, ``hu-coarse`` after an export with
        8 bits.

    Raises:
        DataError: ``ct-not-hu`` for pictures (0 to 255), values without rescale, values that fall with
            density (MONOCHROME1), a window that cuts off lung or soft tissue, other modalities, masks.
    """
    sparse = volume_hu[tuple(slice(None, None, max(1, n // _SAMPLES_PER_AXIS)) for n in volume_hu.shape)]
    low, high = float(sparse.min()), float(sparse.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError("ct-not-hu", "Some values are no numbers.")
    fault = _find_fault(sparse)
    if fault:
        raise DataError(
            "ct-not-hu", f"Values run from {low:g} to {high:g}. {fault}{_guess(sparse, low, high)}"
        )
    return (*_find_clipping(sparse), *_find_steps(sparse, low, high))


def _find_fault(sparse: Shaped[np.ndarray, "z y x"]) -> str:
    """Return why values are no HU of a chest; nothing when they can be."""
    if sparse.min() >= 0:
        return "Air is missing."
    if _share(sparse, _AIR_HU) < _MIN_AIR_SHARE:
        return f"Hardly any lies between {_AIR_HU[0]:g} and {_AIR_HU[1]:g} HU, where air and lung are."
    tissue = sparse[(sparse >= _TISSUE_HU[0]) & (sparse <= _TISSUE_HU[1])]
    if tissue.size < _MIN_TISSUE_SHARE * sparse.size:
        return f"Only {100 * tissue.size / sparse.size:.1f} % are soft tissue."
    counts, edges = np.histogram(tissue, bins=25, range=_TISSUE_HU)
    peak = float(edges[counts.argmax()] + edges[counts.argmax() + 1]) / 2.0
    if not _PEAK_HU[0] <= peak <= _PEAK_HU[1]:
        return f"The most frequent soft tissue lies at {peak:.0f} HU, expected near 50."
    highest = float(sparse.max())
    if highest < _LOST_TISSUE_HU and _share(sparse, (highest, highest)) > _CLIPPED_SHARE:
        return f"Soft tissue was cut off at {highest:g} HU."
    return ""


def _guess(sparse: Shaped[np.ndarray, "z y x"], low: float, high: float) -> str:
    """Say what the values may be, for people."""
    if low >= 0.0 and high <= 255.0:
        steps = np.unique(sparse).size
        if steps <= 2:
            return " This looks like a mask."
        return " This looks like an 8-bit picture." if high > 1.0 else " They were scaled to 0 to 1."
    for sign in (1.0, -1.0) if _has_dark_rim(sparse) else (-1.0, 1.0):
        turned = sign * sparse.astype(np.float64)
        # The darkest air of a scan, outside the body or in the trachea, measures -1000 HU.
        measured = turned[turned > turned.min()]  # the lowest value may be padding
        if not measured.size:
            continue
        offset = _OUTSIDE_AIR_HU - float(np.percentile(measured, 1.0))
        if _find_fault(turned + offset):
            continue
        if sign < 0.0:
            return " They fall with density: the picture is inverted (MONOCHROME1)."
        if abs(offset + _USUAL_INTERCEPT) <= _NEAR_USUAL:
            offset = -_USUAL_INTERCEPT
        return f" The rescale may be missing: add {offset:.0f}."
    if low >= 0.0 and high > _MAX_STORED:
        return " This looks like a 16-bit picture."
    ends = [f"{end:g}" for end in (low, high) if _share(sparse, (end, end)) > _CLIPPED_SHARE]
    return f" They were clipped to a window: many lie exactly at {' or '.join(ends)}." if ends else ""


def _has_dark_rim(sparse: Shaped[np.ndarray, "z y x"]) -> bool:
    """Tell whether the rim of the slices, with the air around the patient, is darker than their middle."""
    _, height, width = sparse.shape
    middle = sparse[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    rim = np.concatenate([sparse[:, edge].ravel() for edge in (0, -1)])
    return bool(rim.mean() <= middle.mean())


def _find_clipping(sparse: Shaped[np.ndarray, "z y x"]) -> tuple[Remark, ...]:
    """Return a warning for each end at which values were cut off."""
    measured = sparse[sparse >= -1024]  # lower ones are padding
    low, high = float(measured.min()), float(measured.max())
    remarks = []
    if low > _LOWEST_CLIP_HU and _share(sparse, (low, low)) > _CLIPPED_SHARE:
        text = f"Values were clipped at {low:g} HU from below: emphysema cannot be told from lung."
        remarks.append(Remark("hu-clipped", text))
    if high < _HIGHEST_CLIP_HU and _share(sparse, (high, high)) > _CLIPPED_SHARE:
        text = f"Values were clipped at {high:g} HU from above: what is denser cannot be told apart."
        remarks.append(Remark("hu-clipped", text))
    return tuple(remarks)


def _find_steps(sparse: Shaped[np.ndarray, "z y x"], low: float, high: float) -> tuple[Remark, ...]:
    """Return a warning when values have the steps of an 8-bit picture."""
    steps = np.unique(sparse).size
    if not _COARSE_STEPS[0] < steps <= _COARSE_STEPS[1]:
        return ()
    text = (
        f"There are only {steps} different values from {low:g} to {high:g} HU, as after an export with "
        "8 bits: densities are rough."
    )
    return (Remark("hu-coarse", text),)


def _share(values: Shaped[np.ndarray, "..."], bounds: tuple[float, float]) -> float:
    """Return the share of values within bounds, both included."""
    return float(np.count_nonzero((values >= bounds[0]) & (values <= bounds[1])) / values.size)
