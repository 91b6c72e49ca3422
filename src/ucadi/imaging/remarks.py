# SPDX-License-Identifier: Apache-2.0
"""What the reading of a CT changed or doubts: one code and one sentence each."""

from dataclasses import dataclass

__all__ = ["REMARKS", "Remark"]

REMARKS: dict[str, str] = {
    # -- repairs --------------------------------------------------------------------------------------
    "duplicates-dropped": "Slices that were there twice, with equal pixels, were dropped.",
    "padding-replaced": "Values that mean no measurement were set to air.",
    "slices-interpolated": "One or two missing slices were interpolated from their neighbors.",
    "spacing-resampled": "Slices at uneven distances were resampled to even ones from their true positions.",
    "tilt-corrected": "Slices that a tilted gantry had sheared were moved back to their true positions.",
    # -- warnings -------------------------------------------------------------------------------------
    "damaged-files": "Some DICOM files could not be read and were left out.",
    "gaps-between-slices": "The slices are much thinner than their distance.",
    "heart-on-the-right": "The heart lies to the right of the spine.",
    "hu-clipped": "Values were clipped before they reached ucadi.",
    "hu-coarse": "Values have few steps, as after an export with 8 bits.",
    "lossy": "The images were compressed with loss.",
    "lung-cut": "The lungs reach the first or the last slice.",
    "lung-uneven": "One lung holds much less air than the other.",
    "lung-volume": "The lungs' volume is not an adult's.",
    "many-series": "Another series is as good as the chosen one.",
    "padding-kept": "The stated padding value lies among tissue values and was not replaced.",
    "rescale-type": "The header states another unit than Hounsfield's.",
    "spine-in-front": "By the header the spine lies at the front of the chest.",
    "split-acquisition": "The series holds other images too, which were left out.",
    "thick-slices": "The slices are so thick that small lesions may be missed.",
    "upside-down": "The lungs look upside-down.",
}
"""Every code with its general meaning. Codes are never reused for another meaning."""


@dataclass(frozen=True)
class Remark:
    """One repair or one warning.

    Attributes:
        code: A key of `REMARKS`, for programs.
        text: One sentence with the values seen, for people. It holds no name, date, path or UID.

    Raises:
        ValueError: If the code is not registered.
    """

    code: str
    text: str

    def __post_init__(self) -> None:
        if self.code not in REMARKS:
            raise ValueError(f"{self.code!r} is no registered remark")

    def __str__(self) -> str:
        return self.text
