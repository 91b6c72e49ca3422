# SPDX-License-Identifier: Apache-2.0
"""Where the marks of a report's figures lie; the template draws them as inline SVG.

Coordinates are SVG user units: x to the right, y down, from the figure's upper left corner.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

__all__ = ["Bar", "BarChart", "CurveChart", "Line", "Tick", "draw_bars", "draw_curves", "keep_apart"]

MEAN_NAME = "Mean of sites"
FEDERATED_NAME = "Federated model"

_WIDTH, _HEIGHT = 540.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 386.0, 16.0, 236.0
_LABEL_GAP = 16.0
_BAR_LEFT, _BAR_RIGHT, _BAR_PITCH = 132.0, 484.0, 34.0


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it lies and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve with a label at its end.

    Attributes:
        name: What it shows.
        points: (x, y) of each known value, in the order of rounds.
        label_at: Height of the label, moved so that labels do not overlap.
        value: Last known value.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    label_at: float
    value: float

    @property
    def path(self) -> str:
        """The points as SVG writes them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class CurveChart:
    """A metric by round: one line for each site, and the mean as the last line."""

    lines: tuple[Line, ...]
    rounds: tuple[Tick, ...]
    values: tuple[Tick, ...]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: its name, its upper edge, its right end and its value."""

    name: str
    top: float
    end: float
    value: float


@dataclass(frozen=True)
class BarChart:
    """The federated model (first bar) against each site's own model.

    Attributes:
        bars: From top to bottom.
        mean: Where the mean of the sites' own models lies, and its value in words.
        values: Marks of the value axis.
    """

    bars: tuple[Bar, ...]
    mean: Tick
    values: tuple[Tick, ...]
    width: float = _WIDTH
    left: float = _BAR_LEFT

    @property
    def bottom(self) -> float:
        """Where the bars end and the axis' numbers begin."""
        return self.bars[-1].top + _BAR_PITCH

    @property
    def height(self) -> float:
        """Height of the figure, with the axis' numbers."""
        return self.bottom + 44.0


def draw_curves(curve: Sequence[Mapping[str, Any]]) -> CurveChart | None:
    """Lay out the validation metric of the global model by round.

    Args:
        curve: One entry a round: ``round``, ``validation`` (mean) and ``sites`` (value by site), values in
            [0, 1]. A value that is None or not finite is left out.

    Returns:
        The figure, or None when there is no value to show.
    """
    entries = sorted(curve, key=lambda entry: int(entry["round"]))
    sites = sorted({site for entry in entries for site in entry["sites"]})
    series = {site: [(int(e["round"]), e["sites"].get(site)) for e in entries] for site in sites}
    series[MEAN_NAME] = [(int(e["round"]), e["validation"]) for e in entries]
    known = {name: [(n, v) for n, v in values if _is_known(v)] for name, values in series.items()}
    known = {name: values for name, values in known.items() if values}
    if not known:
        return None
    everything = [value for values in known.values() for _, value in values]
    low, high = _bounds(min(everything), max(everything))
    first, last = int(entries[0]["round"]), int(entries[-1]["round"])

    def place(number: int, value: float) -> tuple[float, float]:
        x = _LEFT + (_RIGHT - _LEFT) * (number - first) / max(1, last - first)
        return x, _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)

    points = {name: tuple(place(*pair) for pair in values) for name, values in known.items()}
    heights = keep_apart([path[-1][1] for path in points.values()], _LABEL_GAP)
    sunk = max(0.0, _TOP - min(heights))  # labels of curves that end at the top stay inside the figure
    lines = tuple(
        Line(name, points[name], at + sunk, known[name][-1][1])
        for name, at in zip(points, heights, strict=True)
    )
    step = math.ceil((last - first + 1) / 12)
    rounds = tuple(Tick(place(n, low)[0], str(n)) for n in range(first, last + 1, step))
    count = round((high - low) / 0.1)
    tick = 0.1 if count <= 5 else 0.2
    values = tuple(
        Tick(place(first, low + k * tick)[1], f"{low + k * tick:.1f}")
        for k in range(int((high - low) / tick + 1e-6) + 1)
    )
    return CurveChart(lines, rounds, values)


def draw_bars(federated: float, single_site: Mapping[str, float]) -> BarChart:
    """Lay out the comparison on the held-out cohort; the value axis runs from 0 to 1.

    Args:
        federated: Metric of the federated model, in [0, 1].
        single_site: Metric of each site's own model; at least one.

    Raises:
        ValueError: If there is no site.
    """
    if not single_site:
        raise ValueError("a comparison needs at least one site's own model")

    def place(value: float) -> float:
        return _BAR_LEFT + (_BAR_RIGHT - _BAR_LEFT) * value

    rows = {FEDERATED_NAME: federated} | {f"Site {site} alone": v for site, v in sorted(single_site.items())}
    bars = tuple(
        Bar(name, 14.0 + _BAR_PITCH * k, place(value), value) for k, (name, value) in enumerate(rows.items())
    )
    mean = sum(single_site.values()) / len(single_site)
    ticks = tuple(Tick(place(k / 4), f"{k / 4:.2f}") for k in range(5))
    return BarChart(bars, Tick(place(mean), f"mean alone {mean:.2f}"), ticks)


def keep_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights as little as needed (least squares) so that neighbors, in their order, are a gap apart."""
    order = np.argsort(heights, kind="stable")
    offsets = gap * np.arange(len(heights))
    moved = np.empty(len(heights))
    moved[order] = isotonic_regression(np.asarray(heights, dtype=np.float64)[order] - offsets).x + offsets
    return [float(height) for height in moved]


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _bounds(low: float, high: float) -> tuple[float, float]:
    """Widen to tenths, inside [0, 1], at least 0.2 apart."""
    bottom = max(0.0, math.floor(low * 10 + 1e-9) / 10)
    top = min(1.0, math.ceil(high * 10 - 1e-9) / 10)
    if top - bottom < 0.2:
        bottom, top = (bottom, bottom + 0.2) if bottom <= 0.8 else (0.8, 1.0)
    return bottom, top
