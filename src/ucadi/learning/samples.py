# SPDX-License-Identifier: Apache-2.0
"""Training and validation samples drawn from cached int16 volumes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int16, Integer

from ucadi.imaging.intensity import LESION_WINDOW_HU, apply_window
from ucadi.imaging.patches import draw_patch_box, pad_to
from ucadi.imaging.presets import InputPreset
from ucadi.imaging.stacks import normalize_hu, span_indices

__all__ = ["ClassifierSamples", "SegmentationSamples"]

# Appearance changes seen in training only: random scale and shift of the input (Yang et al. 2021, section 3,
# "intensity shift"; the ranges are not stated there, these are ours).
_SCALE = (0.9, 1.1)
_SHIFT = (-0.1, 0.1)


@dataclass(frozen=True, eq=False)
class ClassifierSamples:
    """Studies for the classifier.

    Attributes:
        slices_hu: Per study, all slices of the lung box, in-plane at the preset's size; int16 HU.
        labels: Class numbers.
        preset: Sizes.
    """

    slices_hu: tuple[Int16[np.ndarray, "_ y x"], ...]
    labels: Integer[np.ndarray, " studies"]
    preset: InputPreset

    def __len__(self) -> int:
        return len(self.slices_hu)

    def stack(self, study: int, offset: float) -> Float[np.ndarray, "slices y x"]:
        """Return one stack of a study, z-scored, at a place in [0, 1) within the slices' spread."""
        voxels = self.slices_hu[study]
        return normalize_hu(voxels[span_indices(len(voxels), self.preset.stack_slices, offset)])

    def draw(
        self, rng: np.random.Generator, order: Integer[np.ndarray, " batch"]
    ) -> tuple[Float[np.ndarray, "batch slices y x"], Integer[np.ndarray, " batch"]]:
        """Draw one augmented stack of each named study: random offset, left-right flip, scale and shift."""
        stacks = [self.stack(int(study), rng.random()) for study in order]
        flipped = [stack[:, :, ::-1] if rng.random() < 0.5 else stack for stack in stacks]
        changed = [stack * rng.uniform(*_SCALE) + rng.uniform(*_SHIFT) for stack in flipped]
        return np.stack(changed).astype(np.float32), self.labels[order]


@dataclass(frozen=True, eq=False)
class SegmentationSamples:
    """Studies with lesion masks for the segmentation.

    Attributes:
        volumes_hu: Per study, the lung box at the preset's spacing; int16 HU.
        lesion_masks: Per study, on the same grid.
        preset: Sizes.
    """

    volumes_hu: tuple[Int16[np.ndarray, "_z _y _x"], ...]
    lesion_masks: tuple[Bool[np.ndarray, "_z _y _x"], ...]
    preset: InputPreset

    def __len__(self) -> int:
        return len(self.volumes_hu)

    def window(self, study: int) -> Float[np.ndarray, "_z _y _x"]:
        """Return a whole study as the network sees it, in [0, 1]."""
        return apply_window(self.volumes_hu[study], LESION_WINDOW_HU)

    def draw(
        self, rng: np.random.Generator, order: Integer[np.ndarray, " batch"]
    ) -> tuple[Float[np.ndarray, "batch z y x"], Float[np.ndarray, "batch z y x"]]:
        """Draw one augmented patch of each named study; every second one lies on a lesion.

        Augmentation: flips of y and x, random scale and shift of the intensities.
        """
        patches, masks = [], []
        for place, study in enumerate(order):
            mask, _ = pad_to(self.lesion_masks[int(study)], self.preset.patch)
            volume, _ = pad_to(self.window(int(study)), self.preset.patch)
            box = draw_patch_box(mask, self.preset.patch, rng, on_lesion=place % 2 == 0)
            flips = tuple(axis for axis in (1, 2) if rng.random() < 0.5)
            patch = np.flip(volume[box], flips) * rng.uniform(*_SCALE) + rng.uniform(*_SHIFT)
            patches.append(patch)
            masks.append(np.flip(mask[box], flips))
        return np.stack(patches).astype(np.float32), np.stack(masks).astype(np.float32)
