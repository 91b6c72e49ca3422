# SPDX-License-Identifier: Apache-2.0
"""Whether the lungs that were found allow a reading: both there, whole, of a human size, rightly turned."""

import numpy as np
from jaxtyping import Float, Shaped

from ucadi.errors import GeometryError
from ucadi.imaging.lungs import Lungs
from ucadi.imaging.remarks import Remark
from ucadi.imaging.upright import is_upside_down
from ucadi.imaging.volume import Volume

__all__ = ["check_lungs", "check_orientation"]

_SMALLER_SHARE = 0.1
"""Of both lungs' volume; less is one lung. Severe loss of volume on one side leaves 20 to 40 %."""

_UNEVEN_SHARE = 0.25
"""Of both lungs' volume; the smaller lung normally has 40 to 50 %."""

_GROSSLY_CUT = 0.5
"""Of the largest cross-section: the lungs reach half of it about 3 cm from apex and base."""

_SLIGHTLY_CUT = 0.08
"""Of the largest cross-section; the trachea, which often reaches the first slice, has 1 to 3 %."""

_HUMAN_ML = (100.0, 12000.0)
"""From a newborn to the largest lungs reported; beyond, the voxel size is wrong."""

_ADULT_ML = (1000.0, 9000.0)

_SAMPLE_MM = 3.0

_BONE_HU = 200.0
_MIN_BONE_ML = 20.0
"""In the middle of the chest; less leaves the spine's place unknown."""

_MIDDLE_MM = 40.0
"""Half-width of the band that holds spine and breastbone."""

_SPINE_IN_FRONT = 0.35
"""Of the lungs' depth: bones in the middle lay at 0.72 to 0.96 in 23 scans; a bright heart near 0.45."""

_HEART_HEIGHT, _HEART_DEPTH = (0.20, 0.45), 0.55
"""Where the heart lies between the lungs, as shares of their height from below and depth from the front."""

_HEART_RIGHT_MM = -5.0
"""Middle of the heart against the spine; it lay 6 to 24 mm to the left in 23 scans."""


def check_lungs(lungs: Lungs) -> tuple[Remark, ...]:
    """Return what a reader of a result should know about the lungs.

    Raises:
        GeometryError: ``ct-incomplete-chest`` when a lung is missing or grossly cut; ``ct-lung-volume`` when
            no human lungs have this volume.
    """
    total_l = lungs.total_ml / 1000.0
    if not _HUMAN_ML[0] <= lungs.total_ml <= _HUMAN_ML[1]:
        raise GeometryError("ct-lung-volume", f"The lungs hold {total_l:.2f} L by the header's voxel size.")
    warnings = []
    side, smaller_ml = min(("left", lungs.left_ml), ("right", lungs.right_ml), key=lambda pair: pair[1])
    share = smaller_ml / lungs.total_ml
    if share < _SMALLER_SHARE:
        raise GeometryError(
            "ct-incomplete-chest",
            f"The {side} lung is missing: it has {smaller_ml:.0f} of the {lungs.total_ml:.0f} mL found.",
        )
    if share < _UNEVEN_SHARE:
        text = f"The {side} lung holds only {100 * share:.0f} % of both lungs' volume."
        warnings.append(Remark("lung-uneven", text))
    for end, cut in zip(("lowest", "highest"), lungs.cut_share, strict=True):
        if cut > _GROSSLY_CUT:
            raise GeometryError(
                "ct-incomplete-chest",
                f"The {end} slice cuts the lungs at {100 * cut:.0f} % of their largest cross-section.",
            )
        if cut > _SLIGHTLY_CUT:
            text = (
                f"The lungs reach the {end} slice (with {100 * cut:.0f} % of their largest cross-section), "
                "so a part of them is missing."
            )
            warnings.append(Remark("lung-cut", text))
    if not _ADULT_ML[0] <= lungs.total_ml <= _ADULT_ML[1]:
        text = (
            f"The lungs hold {total_l:.2f} L by the header's voxel size, an adult's hold 1 to 9 L. Unless "
            "this is a child, the voxel size is wrong, and with it all volumes and distances."
        )
        warnings.append(Remark("lung-volume", text))
    if is_upside_down(lungs.sides > 0):
        text = (
            "The lungs look upside-down: their upper end is hollow as over the diaphragm. Check the "
            "orientation in the header; left and right may be exchanged."
        )
        warnings.append(Remark("upside-down", text))
    return tuple(warnings)


def check_orientation(volume: Volume, lungs: Lungs) -> tuple[Remark, ...]:
    """Return where spine or heart contradict the header's directions.

    How the patient lies does not matter: in a scan face down the spine is still at the back by the header.

    Args:
        volume: The CT in HU.
        lungs: Its lungs.
    """
    samples, depth, beside_mm = _middle(volume, lungs)
    bones = np.count_nonzero(samples > _BONE_HU, axis=0)
    sample_ml = _SAMPLE_MM * volume.grid.spacing_mm[1] * volume.grid.spacing_mm[2] / 1000.0
    if bones.sum() * max(sample_ml, volume.grid.voxel_ml) < _MIN_BONE_ML:
        return ()
    by_depth = np.cumsum(bones.sum(axis=1)) / bones.sum()
    spine = float(depth[np.searchsorted(by_depth, 0.5)])
    if spine < _SPINE_IN_FRONT:
        text = (
            "By the header the spine lies at the front of the chest: the header's directions are wrong, or "
            "the images were turned or mirrored after the scan. Left and right may be exchanged."
        )
        return (Remark("spine-in-front", text),)
    back = bones[depth > spine - 0.1]
    heart_mm = _heart_mm(lungs) - float((back * beside_mm).sum() / back.sum())
    if heart_mm < _HEART_RIGHT_MM:
        text = (
            f"The heart lies {-heart_mm:.0f} mm to the right of the spine: it is displaced, or left and "
            "right are exchanged in the header."
        )
        return (Remark("heart-on-the-right", text),)
    return ()


def _middle(
    volume: Volume, lungs: Lungs
) -> tuple[Shaped[np.ndarray, "z y x"], Float[np.ndarray, " y"], Float[np.ndarray, " x"]]:
    """Return a band around the midline over the lungs' height, and places in it.

    The second array holds shares of the lungs' depth, the third distances from the lungs' middle in mm.
    """
    z, y, x = lungs.box
    spacing_mm = volume.grid.spacing_mm
    middle = (x.start + x.stop - 1) / 2.0
    reach = _MIDDLE_MM / spacing_mm[2]
    first, last = max(0, round(middle - reach)), min(volume.grid.shape[2], round(middle + reach) + 1)
    step = max(1, round(_SAMPLE_MM / spacing_mm[0]))
    depth = (np.arange(volume.grid.shape[1]) - y.start) / (y.stop - y.start)
    beside_mm = (np.arange(first, last) - middle) * spacing_mm[2]
    return volume.voxels[z.start : z.stop : step, :, first:last], depth, beside_mm


def _heart_mm(lungs: Lungs) -> float:
    """Return how far left of the lungs' middle the heart lies in the space between them; nan without one."""
    height, depth, width = lungs.sides.shape
    low, high = (round(share * height) for share in _HEART_HEIGHT)
    level = lungs.sides[low:high, : round(_HEART_DEPTH * depth)]
    is_right, is_left = level == 1, level == 2
    has_both = is_right.any(axis=2) & is_left.any(axis=2)
    if not has_both.any():
        return float("nan")
    right_end = width - 1 - is_right[..., ::-1].argmax(axis=2)
    middles = (right_end + is_left.argmax(axis=2))[has_both] / 2.0
    return float(np.median(middles) - (width - 1) / 2.0) * lungs.grid.spacing_mm[2]
