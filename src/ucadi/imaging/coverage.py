# SPDX-License-Identifier: Apache-2.0
"""Whether a scan shows a whole chest."""

from ucadi.errors import GeometryError
from ucadi.imaging.lungs import Lungs

__all__ = ["check_coverage"]

LUNG_ML = (1000.0, 9000.0)
"""Both lungs of an adult between forced expiration and a large inspiration."""

MIN_SIDE_SHARE = 0.15
"""The smaller lung has at least this share of both; less is one lung or a crop."""

CUT_REFUSED = 0.5
"""A first or last slice with this share of the largest cross-section cuts the lungs grossly."""

CUT_WARNED = 0.1
"""With this share, slightly."""


def check_coverage(lungs: Lungs) -> tuple[str, ...]:
    """Return warnings about lungs that are slightly cut.

    Raises:
        GeometryError: ``ct-incomplete-chest`` if a lung is missing, cut or of no human size.
    """
    if not LUNG_ML[0] <= lungs.total_ml <= LUNG_ML[1]:
        raise GeometryError(
            "ct-incomplete-chest",
            f"The lungs found have {lungs.total_ml / 1000:.1f} L; {LUNG_ML[0] / 1000:.0f} to "
            f"{LUNG_ML[1] / 1000:.0f} L are expected.",
        )
    if min(lungs.left_ml, lungs.right_ml) < MIN_SIDE_SHARE * lungs.total_ml:
        raise GeometryError(
            "ct-incomplete-chest",
            f"The lungs found have {lungs.right_ml:.0f} mL right and {lungs.left_ml:.0f} mL left.",
        )
    warnings = []
    for share, end in zip(lungs.cut_share, ("lower", "upper"), strict=True):
        if share >= CUT_REFUSED:
            raise GeometryError(
                "ct-incomplete-chest",
                f"The scan ends inside the lungs: its {end} end shows {100 * share:.0f} % of their largest "
                "cross-section.",
            )
        if share >= CUT_WARNED:
            warnings.append(f"The {end} end of the lungs may be cut off ({100 * share:.0f} % of the area).")
    return tuple(warnings)
