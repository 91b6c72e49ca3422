# SPDX-License-Identifier: Apache-2.0
"""Images of one series that lie at the same place: copies of each other, or several acquisitions."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ucadi.errors import DicomError
from ucadi.io.headers import Header
from ucadi.io.pixels import read_stored

__all__ = ["MIN_SLICES", "SAME_PLACE_MM", "Acquisition", "split_acquisitions"]

MIN_SLICES = 16
"""The classifier draws 16 slices; the published code asks for more than 15."""

SAME_PLACE_MM = 0.02
"""Slices nearer to each other lie at the same place; positions are written with 0.01 mm or better."""


@dataclass(frozen=True, eq=False)
class Acquisition:
    """Parallel images, one for each place.

    Attributes:
        headers: From the feet to the head.
        copies: Images left out because the one that was kept has equal pixels.
        clash_mm: Height along the normal where images differ and nothing tells them apart; None for nowhere.
    """

    headers: tuple[Header, ...]
    copies: int
    clash_mm: float | None


def split_acquisitions(headers: Sequence[Header]) -> list[Acquisition]:
    """Sort images by place, drop copies, and tell acquisitions apart.

    They are told apart by acquisition number, temporal position or time, and only when they reach into each
    other: scanners also number the parts of one volume and each of its slices.

    Args:
        headers: One or more, all with a plane, in one direction.
    """
    whole = _acquisition(headers)
    for k in range(len(headers[0].acquisition)):
        groups: dict[str, list[Header]] = defaultdict(list)
        for header in headers:
            groups[header.acquisition[k]].append(header)
        if len(groups) == 1 or (whole.clash_mm is None and not _interleave(groups.values())):
            continue
        parts = [_acquisition(group) for group in groups.values()]
        is_volume = any(len(part.headers) >= MIN_SLICES for part in parts)
        if is_volume and all(part.clash_mm is None for part in parts):
            return parts
    return [whole]


def _interleave(groups: Iterable[Sequence[Header]]) -> bool:
    """Tell whether slices of one group lie between those of another one."""
    heights = [sorted(h.plane.height_mm for h in group if h.plane is not None) for group in groups]
    spans = sorted((of_group[0], of_group[-1]) for of_group in heights)
    return any(low < before[1] - SAME_PLACE_MM for before, (low, _) in pairwise(spans))


def _acquisition(headers: Sequence[Header]) -> Acquisition:
    """Keep the first image of each place; places where images differ are named."""
    places = _places(headers)
    clash = next((place for place in places if _differ(place)), None)
    return Acquisition(
        tuple(place[0] for place in places),
        len(headers) - len(places),
        clash[0].plane.height_mm if clash and clash[0].plane is not None else None,
    )


def _places(headers: Sequence[Header]) -> list[list[Header]]:
    """Sort images by their position along the slices' normal; those at the same place come together."""
    planes = [header.plane for header in headers if header.plane is not None]
    heights = np.array([plane.position_mm for plane in planes]) @ planes[0].normal
    places: list[list[Header]] = []
    last = -np.inf
    for k in np.argsort(heights, kind="stable"):
        if heights[k] - last < SAME_PLACE_MM:
            places[-1].append(headers[k])
        else:
            places.append([headers[k]])
            last = heights[k]
    return places


def _differ(place: Sequence[Header]) -> bool:
    """Tell whether images at one place show different things; what cannot be decoded does."""
    if len(place) == 1:
        return False
    if any(header.rescale != place[0].rescale for header in place):
        return True
    try:
        first = read_stored(place[0])
        return not all(np.array_equal(first, read_stored(other)) for other in place[1:])
    except DicomError:
        return True
