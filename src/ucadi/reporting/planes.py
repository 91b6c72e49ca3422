# SPDX-License-Identifier: Apache-2.0
"""Which slices of a scan to show, and how they lie on a screen.

Screen convention: axial and coronal planes show the patient's right on the screen's left, as seen from the
feet and from the front; sagittal planes show the front on the left. The head is up.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Shaped

from ucadi.imaging.volume import Volume
from ucadi.types import Orientation

__all__ = ["Plane", "choose_axial_slices", "choose_slice", "cut_plane", "picture_box", "span"]


@dataclass(frozen=True, eq=False)
class Plane:
    """One cut, turned the way it is shown on a screen.

    Attributes:
        hu: HU; rows run down the screen, columns to its right.
        lesion: Lesion mask of the cut.
        spacing_mm: Size of a pixel (row, column).
        letters: Patient directions at the screen's left, right and top.
    """

    hu: Shaped[np.ndarray, "rows columns"]
    lesion: Bool[np.ndarray, "rows columns"]
    spacing_mm: tuple[float, float]
    letters: tuple[str, str, str]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width from edge to edge."""
        return self.hu.shape[0] * self.spacing_mm[0], self.hu.shape[1] * self.spacing_mm[1]


def cut_plane(
    volume: Volume, lesion_mask: Bool[np.ndarray, "z y x"], orientation: Orientation, index: int
) -> Plane:
    """Cut one plane and turn it the way a radiologist looks at it.

    Args:
        volume: The CT in HU; arrays run to the head, to the back and to the patient's left.
        lesion_mask: Mask on the same grid.
        orientation: Which plane.
        index: Slice along the plane's normal: z, y or x.
    """
    z_mm, y_mm, x_mm = volume.grid.spacing_mm
    match orientation:
        case Orientation.AXIAL:
            return Plane(volume.voxels[index], lesion_mask[index], (y_mm, x_mm), ("R", "L", "A"))
        case Orientation.CORONAL:  # rows against z: head up
            hu, lesion = volume.voxels[::-1, index, :], lesion_mask[::-1, index, :]
            return Plane(hu, lesion, (z_mm, x_mm), ("R", "L", "S"))
        case Orientation.SAGITTAL:
            hu, lesion = volume.voxels[::-1, :, index], lesion_mask[::-1, :, index]
            return Plane(hu, lesion, (z_mm, y_mm), ("A", "P", "S"))


def choose_axial_slices(
    lesion_mask: Bool[np.ndarray, "z y x"], lung_mask: Bool[np.ndarray, "z y x"], count: int
) -> tuple[int, ...]:
    """Return slice indices from head to feet, one for each of ``count`` equal bands of the lungs.

    A band is shown by its slice with the largest lesion, or by its middle slice when it has none. There are
    fewer indices than ``count`` when the lungs span fewer slices. Without lungs, the whole scan is divided.
    """
    area = np.count_nonzero(lesion_mask, axis=(1, 2))
    bands = np.array_split(np.arange(*span(lung_mask, axis=0))[::-1], count)
    return tuple(
        int(band[area[band].argmax()] if area[band].any() else band[len(band) // 2])
        for band in bands
        if len(band)
    )


def choose_slice(
    lesion_mask: Bool[np.ndarray, "z y x"], lung_mask: Bool[np.ndarray, "z y x"], axis: int
) -> int:
    """Return the slice along an axis with most lesion; without any, with most lung; else the middle one."""
    for mask in (lesion_mask, lung_mask):
        area = np.count_nonzero(mask, axis=_others(axis))
        if area.any():
            return int(area.argmax())
    middle: int = lesion_mask.shape[axis] // 2
    return middle


def picture_box(
    volume: Volume, lung_mask: Bool[np.ndarray, "z y x"], margin_mm: float
) -> tuple[slice, slice, slice]:
    """Return the lungs' box widened by a margin, inside the volume; the whole volume without lungs."""
    z, y, x = (
        _widen(span(lung_mask, axis), round(margin_mm / volume.grid.spacing_mm[axis]), lung_mask.shape[axis])
        for axis in range(3)
    )
    return z, y, x


def span(mask: Bool[np.ndarray, "z y x"], axis: int) -> tuple[int, int]:
    """Return the first and one past the last occupied index of an axis; the whole axis for an empty mask."""
    indices = np.flatnonzero(mask.any(axis=_others(axis)))
    return (int(indices[0]), int(indices[-1]) + 1) if len(indices) else (0, mask.shape[axis])


def _others(axis: int) -> tuple[int, int]:
    """Return the two other axes."""
    first, second = {0, 1, 2} - {axis}
    return first, second


def _widen(bounds: tuple[int, int], margin: int, size: int) -> slice:
    """Return a slice widened by a margin and kept inside the size."""
    return slice(max(0, bounds[0] - margin), min(size, bounds[1] + margin))
