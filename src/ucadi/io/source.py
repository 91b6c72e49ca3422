# SPDX-License-Identifier: Apache-2.0
"""The DICOM images that a volume was read from, as a result that goes back to the PACS must name them."""

from dataclasses import dataclass

from pydicom import Dataset

from ucadi.io.headers import Plane

__all__ = ["SourceInstance", "SourceSeries"]


@dataclass(frozen=True, eq=False)
class SourceInstance:
    """One image that went into a volume.

    Attributes:
        sop_instance_uid: Of the file.
        frame: Number of the frame in a multi-frame file, counted from 1; None for a file with one image.
        plane: Where the image lies, with its rows and columns as they are in the file.
    """

    sop_instance_uid: str
    frame: int | None
    plane: Plane


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """What identifies a source series. It names the patient, so it never leaves the site.

    Attributes:
        header: All of the first image's elements but its pixels.
        instances: By position along the slices' normal, from the feet to the head.
        size: Rows and columns of every image.
    """

    header: Dataset
    instances: tuple[SourceInstance, ...]
    size: tuple[int, int]
