# SPDX-License-Identifier: Apache-2.0
"""The overview's sheet: its size, its palette, and marks placed by pixel from the upper left corner."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

__all__ = [
    "BACKGROUND",
    "BANNER",
    "BANNER_INK",
    "BAR",
    "BAR_QUIET",
    "DPI",
    "FONT",
    "HEIGHT_PX",
    "INK",
    "LESION",
    "QUIET",
    "RULE",
    "TRACK",
    "WIDTH_PX",
    "PixelBox",
    "Pixels",
    "drawable",
    "fit",
    "place_axes",
    "rule",
    "write",
]

WIDTH_PX, HEIGHT_PX, DPI = 1600, 1000, 100
FONT = "DejaVu Sans"  # comes with matplotlib, so that the picture is the same on every machine

BACKGROUND = "#0d1117"
TRACK = "#1d2531"
RULE = "#2b3442"
INK = "#eef2f7"
QUIET = "#9aa6b6"
LESION = "#ffa630"  # orange and blue-violet stay apart for every kind of color vision
BAR = "#8f90ff"
BAR_QUIET = "#555aa8"
BANNER, BANNER_INK = "#4a2c06", "#ffd9a1"

Pixels = int | float
"""A place or a length on the sheet, in whole or broken pixels."""

PixelBox = tuple[Pixels, Pixels, Pixels, Pixels]
"""Left, top, width, height; from the sheet's upper left corner."""


def place_axes(figure: Figure, box: PixelBox) -> Axes:
    """Add axes that fill a box given in pixels."""
    left, top, width, height = box
    return figure.add_axes(
        (left / WIDTH_PX, 1 - (top + height) / HEIGHT_PX, width / WIDTH_PX, height / HEIGHT_PX)
    )


def fit(box: PixelBox, size_mm: tuple[float, float]) -> PixelBox:
    """Return the largest box of the given proportions (height, width) centered in a box."""
    left, top, width, height = box
    scale = min(width / size_mm[1], height / size_mm[0])
    inner_width, inner_height = size_mm[1] * scale, size_mm[0] * scale
    return left + (width - inner_width) / 2, top + (height - inner_height) / 2, inner_width, inner_height


def write(
    axes: Axes,
    x: Pixels,
    y: Pixels,
    text: str,
    size_px: Pixels,
    color: str,
    *,
    align: str = "left",
    **style: Any,
) -> None:
    """Write one line, vertically centered on y; ``$`` stays a dollar sign."""
    size = size_px * 72 / DPI
    options: dict[str, Any] = {"ha": align, "va": "center_baseline", "family": FONT, "parse_math": False}
    axes.text(x, y, text, fontsize=size, color=color, **options, **style)


def drawable(text: str) -> str:
    """Replace characters that the font cannot draw, which would end in a warning and an empty box."""
    known = get_font(findfont(FontProperties(family=FONT))).get_charmap()
    return "".join(letter if ord(letter) in known else "?" for letter in text)


def rule(sheet: Axes, left: Pixels, right: Pixels, y: Pixels) -> None:
    """Draw a thin horizontal line."""
    sheet.plot((left, right), (y, y), color=RULE, linewidth=0.8)
