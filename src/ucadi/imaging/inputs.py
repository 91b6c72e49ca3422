# SPDX-License-Identifier: Apache-2.0
"""From a CT and its lung box to what the two networks' samples are cut from."""

import numpy as np
from jaxtyping import Bool, Float, Int16

from ucadi.imaging.grid import Grid
from ucadi.imaging.presets import InputPreset
from ucadi.imaging.resample import resample_linear
from ucadi.imaging.stacks import STACK_WINDOW_HU
from ucadi.imaging.volume import Volume

__all__ = ["lesion_grid", "mask_on_grid", "slices_for_classifier", "volume_for_segmentation"]

Box = tuple[slice, slice, slice]


def slices_for_classifier(volume: Volume, lung_box: Box, preset: InputPreset) -> Int16[np.ndarray, "z y x"]:
    """Return all slices of the lung box, in-plane stretched to the preset's size; int16 HU.

    Values are clipped to the classifier's window before averaging, so that metal and padding do not bleed.
    """
    box = volume.crop(lung_box)
    _, height_mm, width_mm = box.grid.extent_mm
    size = preset.stack_size
    target = box.grid.with_spacing((box.grid.spacing_mm[0], height_mm / size, width_mm / size))
    clipped = np.clip(box.voxels, *STACK_WINDOW_HU)
    return _to_int16(resample_linear(clipped, box.grid, target))


def lesion_grid(grid: Grid, lung_box: Box, preset: InputPreset) -> Grid:
    """Return the segmentation's grid: the lung box at the preset's spacing."""
    return grid.crop(lung_box).with_spacing(preset.spacing_mm)


def volume_for_segmentation(volume: Volume, lung_box: Box, preset: InputPreset) -> Int16[np.ndarray, "z y x"]:
    """Return the lung box resampled to the preset's spacing; int16 HU."""
    target = lesion_grid(volume.grid, lung_box, preset)
    box = volume.crop(lung_box)
    return _to_int16(resample_linear(np.clip(box.voxels, -1024, 3071), box.grid, target))


def mask_on_grid(mask: Volume, target: Grid) -> Bool[np.ndarray, "z y x"]:
    """Return a mask on another grid with the same axes: true where at least half of a voxel is covered."""
    return np.asarray(resample_linear(mask.voxels, mask.grid, target) >= 0.5)


def _to_int16(hu: Float[np.ndarray, "z y x"]) -> Int16[np.ndarray, "z y x"]:
    """Round to whole HU."""
    rounded: np.ndarray = np.rint(hu).astype(np.int16)
    return rounded
