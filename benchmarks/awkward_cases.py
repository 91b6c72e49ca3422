# SPDX-License-Identifier: Apache-2.0
"""Awkward CT series, as PACS, scanners and people make them, with what a reader should answer.

Every series is written with pydicom from a formula (`awkward_phantom`), so that the truth does not rest on
any reader. The same bytes come out each time.
"""

import numpy as np
from awkward_dicom import PLANTED
from awkward_encoding import encoding_cases
from awkward_geometry import geometry_cases
from awkward_mixtures import mixture_cases
from awkward_phantom import Case, Judgement, Refusal, Scene, Truth, judge_volume
from awkward_values import value_cases

__all__ = ["CASES", "PLANTED", "Case", "Judgement", "Refusal", "Scene", "Truth", "judge", "make_cases"]


def make_cases(pixels: int = 128) -> tuple[Case, ...]:
    """Return all cases with slices of this many rows and columns, mostly 64 of them 5 mm apart."""
    return (
        *geometry_cases(pixels),
        *mixture_cases(pixels),
        *value_cases(pixels),
        *encoding_cases(pixels),
    )


CASES = make_cases()
"""All cases with slices of 128x128."""


def judge(
    volume_zyx_hu: np.ndarray, affine_lps_zyx: np.ndarray, case: Case, *, lesion_share: float | None = None
) -> Judgement:
    """Judge the volume that a reader made of a case's files.

    Args:
        volume_zyx_hu: HU, axes of slices, rows and columns; each may run either way.
        affine_lps_zyx: 4x4, maps (z, y, x, 1) to LPS mm; a shear is taken as it is.
        case: What was read.
        lesion_share: Tolerance of the lesion's volume, in place of the case's own.
    """
    if isinstance(case.expectation, Refusal):
        return Judgement("wrong values", "a volume where none can be right")
    return judge_volume(volume_zyx_hu, affine_lps_zyx, case.expectation, lesion_share=lesion_share)
