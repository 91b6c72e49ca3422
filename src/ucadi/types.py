# SPDX-License-Identifier: Apache-2.0
"""Words shared by all parts: finding classes, tasks, splits and a few aliases."""

from enum import IntEnum, StrEnum
from os import PathLike

__all__ = ["FindingClass", "Orientation", "PathLikeStr", "Severity", "Split", "Task", "Triple"]

PathLikeStr = str | PathLike[str]

Triple = tuple[float, float, float]
"""Three numbers in array order (z, y, x)."""


class FindingClass(IntEnum):
    """What a chest CT shows; the numbers are the published code's labels."""

    HEALTHY = 0
    COVID_19 = 1
    OTHER_VIRAL = 2
    BACTERIAL = 3

    @property
    def title(self) -> str:
        """The class in words for a person."""
        return {0: "Healthy", 1: "COVID-19", 2: "Other viral", 3: "Bacterial"}[self.value]


class Severity(IntEnum):
    """COVID-19 severity; the share of lung that bounds each grade is in `phantom.patient`."""

    I = 1  # noqa: E741 - the grade's own name
    II = 2
    III = 3


class Task(StrEnum):
    """What a network learns."""

    CLASSIFIER = "classifier"
    SEGMENTATION = "segmentation"


class Split(StrEnum):
    """What a study is used for. A patient is in one split only."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Orientation(StrEnum):
    """The plane in which a series was cut."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"
