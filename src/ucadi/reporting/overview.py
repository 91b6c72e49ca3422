# SPDX-License-Identifier: Apache-2.0
"""The overview picture of one reading: slices with the lesions' outline, and the result beside them."""

from typing import Any

import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ucadi import __version__
from ucadi.imaging.volume import Volume
from ucadi.reporting.canvas import (
    BACKGROUND,
    BANNER,
    BANNER_INK,
    DPI,
    FONT,
    HEIGHT_PX,
    INK,
    LESION,
    QUIET,
    RULE,
    WIDTH_PX,
    PixelBox,
    fit,
    place_axes,
    write,
)
from ucadi.reporting.charts import keep_apart
from ucadi.reporting.overview_panel import draw_result
from ucadi.reporting.planes import Plane, choose_axial_slices, choose_slice, cut_plane, picture_box, span
from ucadi.reporting.record import RESEARCH_NOTICE, ReadingRecord
from ucadi.types import Orientation, PathLikeStr

__all__ = ["LUNG_WINDOW_HU", "draw_overview"]

LUNG_WINDOW_HU = (-1350.0, 150.0)
"""Width 1500, level -600: the reading room's lung preset."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 16, 1120, 44, 962  # where the pictures stand, in pixels
_AXIAL_SLICES = 6
_MARGIN_MM = 14.0  # chest wall shown around the lungs


def draw_overview(
    volume: Volume,
    lesion_mask: Bool[np.ndarray, "z y x"],
    lung_mask: Bool[np.ndarray, "z y x"],
    record: ReadingRecord,
    path: PathLikeStr,
) -> None:
    """Write the overview as a PNG of 1600 x 1000 pixels.

    Args:
        volume: The CT in HU.
        lesion_mask: Lesions on the same grid; may be empty.
        lung_mask: Both lungs on the same grid; may be empty.
        record: The numbers and words to show.
        path: File to write.

    Raises:
        ValueError: If a mask has another shape than the volume.
    """
    if not volume.voxels.shape == lesion_mask.shape == lung_mask.shape:
        raise ValueError("volume, lesion mask and lung mask must have the same shape")
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI, facecolor=BACKGROUND)
    sheet = place_axes(figure, (0, 0, WIDTH_PX, HEIGHT_PX))
    sheet.set(xlim=(0, WIDTH_PX), ylim=(HEIGHT_PX, 0))
    sheet.axis("off")
    _draw_banner(sheet)
    box = picture_box(volume, lung_mask, _MARGIN_MM)
    _draw_pictures(figure, sheet, volume.crop(box), lesion_mask[box], lung_mask[box])
    draw_result(sheet, record)
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": f"ucadi {__version__}"})


def _draw_banner(sheet: Axes) -> None:
    sheet.add_patch(Rectangle((0, 0), WIDTH_PX, 30, color=BANNER, linewidth=0))
    headline, rest = RESEARCH_NOTICE.split(". ", 1)
    write(sheet, 16, 15, headline.upper(), 12.5, BANNER_INK, weight="bold")
    write(sheet, 182, 15, rest, 12.5, BANNER_INK)


def _draw_pictures(
    figure: Figure,
    sheet: Axes,
    volume: Volume,
    lesion_mask: Bool[np.ndarray, "z y x"],
    lung_mask: Bool[np.ndarray, "z y x"],
) -> None:
    """Draw six axial slices, one coronal, one sagittal and the lesion's area by height, all to scale."""
    chosen = choose_axial_slices(lesion_mask, lung_mask, _AXIAL_SLICES)
    axials = [cut_plane(volume, lesion_mask, Orientation.AXIAL, index) for index in chosen]
    tile = fit((0, 0, 364, 310), axials[0].size_mm)
    top_slice = span(lung_mask, axis=0)[1] - 1
    for place, (index, plane) in enumerate(zip(chosen, axials, strict=True)):
        row, column = divmod(place, 3)
        left = _LEFT + column * (_RIGHT - _LEFT - tile[2]) / 2
        depth_mm = (top_slice - index) * volume.grid.spacing_mm[0]
        box = (left, _TOP + row * (tile[3] + 8), tile[2], tile[3])
        _draw_plane(figure, box, plane, f"{place + 1}  ·  {depth_mm:.0f} mm")
    top = _TOP + 2 * (tile[3] + 8)
    _draw_upright(figure, (_LEFT, top, _RIGHT - _LEFT, _BOTTOM - top), volume, lesion_mask, lung_mask, chosen)
    caption = (
        "Window W 1500, L −600 HU.   Orange outline: lesion mask.   mm: below the top of the lungs.   "
        "R and L: the patient's right and left."
    )
    write(sheet, _LEFT, 981, caption, 12, QUIET)


def _draw_upright(
    figure: Figure,
    box: PixelBox,
    volume: Volume,
    lesion_mask: Bool[np.ndarray, "z y x"],
    lung_mask: Bool[np.ndarray, "z y x"],
    chosen: tuple[int, ...],
) -> None:
    """Draw coronal, sagittal and profile side by side: same height in the chest, same height on screen."""
    coronal = cut_plane(volume, lesion_mask, Orientation.CORONAL, choose_slice(lesion_mask, lung_mask, 1))
    sagittal = cut_plane(volume, lesion_mask, Orientation.SAGITTAL, choose_slice(lesion_mask, lung_mask, 2))
    height_mm, width_mm = coronal.size_mm[0], coronal.size_mm[1] + sagittal.size_mm[1]
    left, top, width, height = box
    scale = min(height / height_mm, 0.75 * (width - 8) / width_mm)  # a quarter stays for the profile
    for plane, label in ((coronal, "coronal"), (sagittal, "sagittal")):
        _draw_plane(figure, (left, top, plane.size_mm[1] * scale, height_mm * scale), plane, label)
        left += plane.size_mm[1] * scale + 8
    left += 32
    _draw_profile(figure, (left, top, _RIGHT - left, height_mm * scale), volume, lesion_mask, chosen)


def _draw_plane(figure: Figure, box: PixelBox, plane: Plane, label: str) -> None:
    """Draw one cut with the lesions' outline, direction letters and a label."""
    height_mm, width_mm = plane.size_mm
    axes = place_axes(figure, box)
    axes.imshow(
        plane.hu,
        cmap="gray",
        vmin=LUNG_WINDOW_HU[0],
        vmax=LUNG_WINDOW_HU[1],
        extent=(0.0, width_mm, height_mm, 0.0),
        interpolation="bilinear",
        aspect="auto",  # the box has the plane's proportions already
    )
    if plane.lesion.any():
        # A frame of background closes the outline at the picture's edge and gives contour a level to find.
        padded = np.pad(plane.lesion, 1).astype(np.float32)
        rows_mm = (np.arange(padded.shape[0]) - 0.5) * plane.spacing_mm[0]
        columns_mm = (np.arange(padded.shape[1]) - 0.5) * plane.spacing_mm[1]
        axes.contour(columns_mm, rows_mm, padded, levels=[0.5], colors=[LESION], linewidths=1.1)
    axes.set(xlim=(0.0, width_mm), ylim=(height_mm, 0.0))
    axes.axis("off")
    left, right, above = plane.letters
    outline: dict[str, Any] = {
        "transform": axes.transAxes,
        "path_effects": [withStroke(linewidth=2.0, foreground="#000000b0")],
    }
    write(axes, 8 / box[2], 0.5, left, 14, INK, weight="bold", **outline)
    write(axes, 1 - 8 / box[2], 0.5, right, 14, INK, weight="bold", align="right", **outline)
    write(axes, 0.5, 1 - 12 / box[3], above, 12, QUIET, align="center", **outline)
    write(axes, 8 / box[2], 1 - 13 / box[3], label, 12, INK, **outline)


def _draw_profile(
    figure: Figure,
    box: PixelBox,
    volume: Volume,
    lesion_mask: Bool[np.ndarray, "z y x"],
    chosen: tuple[int, ...],
) -> None:
    """Draw the lesion's area by height, beside the coronal plane and on its scale."""
    z_mm, y_mm, x_mm = volume.grid.spacing_mm
    area_cm2 = np.count_nonzero(lesion_mask, axis=(1, 2))[::-1] * (y_mm * x_mm / 100.0)
    height_mm = (np.arange(len(area_cm2)) + 0.5) * z_mm
    limit = max(1.0, 1.15 * float(area_cm2.max()))
    axes = place_axes(figure, box)
    axes.fill_betweenx(height_mm, area_cm2, color=LESION, alpha=0.3, linewidth=0)
    axes.plot(area_cm2, height_mm, color=LESION, linewidth=1.4)
    axes.set(xlim=(0.0, limit), ylim=(len(area_cm2) * z_mm, 0.0), facecolor=BACKGROUND)
    marks_mm = [(len(area_cm2) - 0.5 - index) * z_mm for index in chosen]
    line_mm = 14 * len(area_cm2) * z_mm / box[3]  # height of a line of text
    for place, (at_mm, label_mm) in enumerate(zip(marks_mm, keep_apart(marks_mm, line_mm), strict=True)):
        axes.axhline(at_mm, color=RULE, linewidth=0.8, zorder=0)
        write(axes, -0.02 * limit, label_mm, str(place + 1), 11.5, QUIET, align="right")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], prune="lower"))
    axes.xaxis.grid(color=RULE, linewidth=0.8)
    axes.tick_params(colors=QUIET, length=0, labelsize=11.5 * 72 / DPI, labelfontfamily=FONT, pad=-12)
    axes.set_yticks([])
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["left"].set(visible=True, color=QUIET, linewidth=0.8)
    write(axes, 0.02, 1 - 12 / box[3], "Lesion area by height, cm²", 12, QUIET, transform=axes.transAxes)
