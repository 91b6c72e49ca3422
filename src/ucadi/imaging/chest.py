# SPDX-License-Identifier: Apache-2.0
"""Whether the lungs that were found allow a reading: both there, whole, of a human size, head end up."""

import numpy as np

from ucadi.errors import GeometryError
from ucadi.imaging.lungs import Lungs
from ucadi.imaging.remarks import Remark

__all__ = ["check_lungs"]

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

_ENDS = (0.05, 0.10, 0.15, 0.20)
"""Places near an end of the lungs, as shares of their height."""

_CRESCENT_MARGIN = 0.1


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
        text = f"The {side} lung holds only {100 * share:.0f} % of the aerated volume."
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
    if _is_upside_down(lungs):
        text = (
            "The lungs look upside-down: their upper end is hollow as over the diaphragm. Check the "
            "orientation in the header; left and right may be exchanged."
        )
        warnings.append(Remark("upside-down", text))
    return tuple(warnings)


def _is_upside_down(lungs: Lungs) -> bool:
    """Tell whether the crescents around the diaphragm's domes lie at the upper end."""
    first, last = lungs.box[0].start, lungs.box[0].stop - 1
    places = [round(share * (last - first)) for share in _ENDS]
    bottom = np.median([_roundness(lungs, first + n) for n in places])
    top = np.median([_roundness(lungs, last - n) for n in places])
    return bool(top + _CRESCENT_MARGIN < bottom)


def _roundness(lungs: Lungs, z: int) -> float:
    """Return how much of their rectangles both lungs' cross-sections fill: 0.8 a disk, 0.3 a crescent."""
    middle = (lungs.box[2].start + lungs.box[2].stop) // 2
    area, rectangles = 0, 0
    for half in (lungs.mask[z, :, :middle], lungs.mask[z, :, middle:]):
        rows, columns = np.flatnonzero(half.any(axis=1)), np.flatnonzero(half.any(axis=0))
        if rows.size:
            area += int(np.count_nonzero(half))
            rectangles += int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))
    return area / max(1, rectangles)
