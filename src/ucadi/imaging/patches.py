# SPDX-License-Identifier: Apache-2.0
"""Windows over a volume: where they lie, how they blend, and random ones for training."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.signal.windows import gaussian

__all__ = ["blend_windows", "draw_patch_box", "pad_to", "plan_windows"]

Box = tuple[slice, slice, slice]
Shape = tuple[int, int, int]


def plan_windows(shape: Shape, window: Shape, overlap: float) -> list[Box]:
    """Return the fewest equally spread windows that cover a volume with at least the given overlap.

    Args:
        shape: The volume's size in z, y, x; each at least the window's.
        window: Window size in z, y, x.
        overlap: Share of a window that neighbours have in common, in [0, 1).
    """
    starts = []
    for size, width in zip(shape, window, strict=True):
        step = max(1, int(width * (1.0 - overlap)))
        count = 1 + -(-(size - width) // step)
        starts.append(np.linspace(0, size - width, count).round().astype(int))
    (wz, wy, wx), (sz, sy, sx) = window, starts
    return [
        (slice(z, z + wz), slice(y, y + wy), slice(x, x + wx))
        for z in map(int, sz)
        for y in map(int, sy)
        for x in map(int, sx)
    ]


def blend_windows(
    voxels: Float[np.ndarray, "z y x"],
    window: Shape,
    overlap: float,
    predict: Callable[[Float[np.ndarray, "wz wy wx"]], Float[np.ndarray, "wz wy wx"]],
) -> Float[np.ndarray, "z y x"]:
    """Predict window by window and blend with Gaussian weights (sd one eighth of the window).

    Args:
        voxels: Network input on any shape; padded with zeros where smaller than a window.
        window: Window size in z, y, x.
        overlap: See `plan_windows`.
        predict: Maps a window to values on the same grid.
    """
    padded, inner = pad_to(voxels, window)
    total = np.zeros(padded.shape, np.float32)
    weight = np.zeros(padded.shape, np.float32)
    profile = [gaussian(n, max(n / 8.0, 0.5)).astype(np.float32) for n in window]
    bump = np.maximum(np.einsum("z,y,x->zyx", *profile), 1e-4)
    for box in plan_windows(padded.shape, window, overlap):
        total[box] += bump * predict(padded[box])
        weight[box] += bump
    blended: np.ndarray = (total / weight)[inner]
    return blended


def pad_to(voxels: Shaped[np.ndarray, "z y x"], shape: Shape) -> tuple[Shaped[np.ndarray, "z2 y2 x2"], Box]:
    """Pad with zeros, equally on both sides, to at least a shape; return the box of the original too."""
    missing = [max(0, want - have) for want, have in zip(shape, voxels.shape, strict=True)]
    before = [n // 2 for n in missing]
    z, y, x = (slice(b, b + n) for b, n in zip(before, voxels.shape, strict=True))
    if not any(missing):
        return voxels, (z, y, x)
    padding = [(b, n - b) for b, n in zip(before, missing, strict=True)]
    return np.pad(voxels, padding), (z, y, x)


def draw_patch_box(
    lesion_mask: Bool[np.ndarray, "z y x"], patch: Shape, rng: np.random.Generator, *, on_lesion: bool
) -> Box:
    """Draw a random box for training.

    Args:
        lesion_mask: At least as large as the patch.
        patch: Size in z, y, x.
        rng: Source of randomness.
        on_lesion: Whether the box must contain a random lesion voxel, when there is one.
    """
    limits = [n - p for n, p in zip(lesion_mask.shape, patch, strict=True)]
    lesion = np.flatnonzero(lesion_mask) if on_lesion else np.empty(0, np.intp)
    if lesion.size:
        voxel = np.unravel_index(int(rng.choice(lesion)), lesion_mask.shape)
        # The voxel lands anywhere in the patch, so that lesions are not always in the middle.
        starts = [int(v) - int(rng.integers(p)) for v, p in zip(voxel, patch, strict=True)]
        starts = [min(max(s, 0), high) for s, high in zip(starts, limits, strict=True)]
    else:
        starts = [int(rng.integers(high + 1)) for high in limits]
    z, y, x = (slice(s, s + p) for s, p in zip(starts, patch, strict=True))
    return z, y, x
