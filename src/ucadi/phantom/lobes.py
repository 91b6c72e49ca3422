# SPDX-License-Identifier: Apache-2.0
"""The fissures between the lobes, as gently waved planes."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float

__all__ = ["Fissures", "Lobe", "draw_fissures"]


class Lobe(StrEnum):
    """The five lobes."""

    RIGHT_UPPER = "right upper"
    RIGHT_MIDDLE = "right middle"
    RIGHT_LOWER = "right lower"
    LEFT_UPPER = "left upper"
    LEFT_LOWER = "left lower"

    @property
    def is_right(self) -> bool:
        """Tell whether the lobe belongs to the right lung."""
        return self.value.startswith("right")


@dataclass(frozen=True)
class Fissures:
    """Where the lobes part.

    Attributes:
        oblique_mm: Height of both oblique fissures in the middle of the chest.
        slope: How steeply the oblique fissures rise toward the back.
        minor_mm: Height of the right minor fissure.
        phase: Where the waves begin.
    """

    oblique_mm: float
    slope: float
    minor_mm: float
    phase: float

    def oblique(
        self, z: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."], x: Float[np.ndarray, "..."]
    ) -> Float[np.ndarray, "..."]:
        """Return mm above the oblique fissure: positive in the upper and middle lobes."""
        wave = 9.0 * np.sin(x / 31.0 + self.phase) + 4.0 * np.sin((x + y) / 17.0 - self.phase)
        return np.asarray((z - (self.oblique_mm + self.slope * y + wave)) / float(np.hypot(1.0, self.slope)))

    def minor(
        self, z: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."], x: Float[np.ndarray, "..."]
    ) -> Float[np.ndarray, "..."]:
        """Return mm above the minor fissure: positive in the right upper lobe."""
        wave = 5.0 * np.sin(x / 37.0 - self.phase) + 4.0 * np.sin(y / 29.0 + 2.0 * self.phase)
        return np.asarray(z - (self.minor_mm + wave))

    def lobe(
        self,
        lobe: Lobe,
        z: Float[np.ndarray, "..."],
        y: Float[np.ndarray, "..."],
        x: Float[np.ndarray, "..."],
    ) -> Float[np.ndarray, "..."]:
        """Return the distance in mm to a lobe's borders with its neighbours and the midline."""
        side = -x if lobe.is_right else x
        oblique = self.oblique(z, y, x)
        if lobe in (Lobe.RIGHT_LOWER, Lobe.LEFT_LOWER):
            return np.asarray(np.minimum(side, -oblique))
        if lobe is Lobe.LEFT_UPPER:
            return np.asarray(np.minimum(side, oblique))
        minor = self.minor(z, y, x)
        upper = minor if lobe is Lobe.RIGHT_UPPER else -minor
        return np.asarray(np.minimum(np.minimum(side, oblique), upper))


def draw_fissures(rng: np.random.Generator, scale: float) -> Fissures:
    """Draw fissures for a chest of a given size."""
    return Fissures(
        oblique_mm=scale * rng.uniform(-22.0, -4.0),
        slope=rng.uniform(0.9, 1.3),
        minor_mm=scale * rng.uniform(0.0, 16.0),
        phase=rng.uniform(0.0, 2.0 * np.pi),
    )
