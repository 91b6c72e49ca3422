# SPDX-License-Identifier: Apache-2.0
"""How a CT becomes a network's input, by name: sizes, spacings and windows of both tasks."""

from dataclasses import dataclass

from ucadi.errors import ConfigError
from ucadi.types import Triple

__all__ = ["PRESETS", "InputPreset", "preset_named"]


@dataclass(frozen=True)
class InputPreset:
    """Sizes of both networks' inputs.

    Attributes:
        stack_slices: Slices drawn over the lungs' extent for the classifier.
        stack_size: In-plane size (y, x) of each slice, over the lung box.
        draws: Stacks per study whose probabilities are averaged.
        spacing_mm: Voxel size in z, y, x of the segmentation's input.
        patch: Training patch in z, y, x, voxels.
        window: Inference window in z, y, x, voxels.
        overlap: Share that neighbouring inference windows have in common.
    """

    stack_slices: int
    stack_size: int
    draws: int
    spacing_mm: Triple
    patch: tuple[int, int, int]
    window: tuple[int, int, int]
    overlap: float


PRESETS: dict[str, InputPreset] = {
    # Sizes of Xu et al. 2020 (16 slices of 128x128, five draws) and Yang et al. 2021 (0.8x0.8x5 mm,
    # training crops of 160x160x32, windows of 224x224x32).
    "paper": InputPreset(16, 128, 5, (5.0, 0.8, 0.8), (32, 160, 160), (32, 224, 224), 0.25),
    # Trains in minutes on two cores: demonstrations and tests.
    "compact": InputPreset(12, 24, 5, (5.0, 3.0, 3.0), (16, 48, 48), (32, 96, 96), 0.25),
}


def preset_named(name: str) -> InputPreset:
    """Return a preset.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ConfigError("config-invalid", f"There is no input preset {name[:80]!r}; there is: {known}.")
    return PRESETS[name]
