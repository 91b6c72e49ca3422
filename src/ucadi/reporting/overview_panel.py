# SPDX-License-Identifier: Apache-2.0
"""The overview's column of words and numbers: statement, probabilities, volumes, input verdict."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ucadi import __version__
from ucadi.io.report import Verdict
from ucadi.reporting.canvas import (
    BANNER_INK,
    BAR,
    BAR_QUIET,
    INK,
    LESION,
    QUIET,
    TRACK,
    drawable,
    rule,
    write,
)
from ucadi.reporting.record import RESEARCH_NOTICE, ReadingRecord, whole_percents

__all__ = ["draw_result"]

_LEFT, _RIGHT, _BOTTOM = 1156.0, 1584.0, 904.0  # pixels; the notice stands below the bottom
_VERDICTS = {
    Verdict.OK: (BAR, "accepted"),
    Verdict.WARNING: (LESION, "accepted with warnings"),
    Verdict.REFUSED: (LESION, "REFUSED"),
}


def draw_result(sheet: Axes, record: ReadingRecord) -> None:
    """Draw the column of words and numbers."""
    left, right = _LEFT, _RIGHT
    write(sheet, left, 62, "Chest CT reading", 22, INK, weight="bold")
    identity = f"model {drawable(record.model.id)}   ucadi {__version__}"
    write(sheet, left, 92, identity, 12, QUIET)
    y = _draw_statement(sheet, record, left, 118.0)
    y = _draw_probabilities(sheet, record, (left, right), y + 24)
    y = _draw_volumes(sheet, record, (left, right), y + 26)
    _draw_input(sheet, record, (left, right), y + 26)
    y = _BOTTOM
    rule(sheet, left, right, y)
    for line in textwrap.wrap(RESEARCH_NOTICE, 62):
        y += 19
        write(sheet, left, y, line, 12, BANNER_INK)


def _draw_statement(sheet: Axes, record: ReadingRecord, left: float, y: float) -> float:
    """Draw the sentence beside a bar: blue-violet for a finding, orange for "cannot say"."""
    lines = textwrap.wrap(record.classification.statement, 44)
    color = BAR if record.classification.is_conclusive else LESION
    sheet.add_patch(Rectangle((left, y), 4, 24 * len(lines) + 6, color=color, linewidth=0))
    for k, line in enumerate(lines):
        write(sheet, left + 16, y + 15 + 24 * k, line, 16.5, INK)
    return y + 24 * len(lines) + 6


def _draw_probabilities(sheet: Axes, record: ReadingRecord, sides: tuple[float, float], y: float) -> float:
    """Draw a bar for each class, with a whisker of one standard deviation and a whole percent."""
    left, right = sides
    result = record.classification
    y = _heading(sheet, sides, y, "Class probability", f"mean of {result.draws}; whisker ± 1 SD")
    percents = whole_percents(result.probabilities)
    first = max(percents, key=lambda name: result.probabilities[name])
    start, width = left + 118, right - left - 118 - 62
    for name, percent in sorted(percents.items(), key=lambda item: -item[1]):
        y += 28
        probability, spread = result.probabilities[name], result.spread[name]
        is_named = result.is_conclusive and name == first  # "cannot say" stresses no class
        write(sheet, left, y, name, 14, INK, weight="bold" if is_named else "normal")
        sheet.add_patch(Rectangle((start, y - 7), width, 14, color=TRACK, linewidth=0))
        color = BAR if is_named else BAR_QUIET
        sheet.add_patch(Rectangle((start, y - 7), width * probability, 14, color=color, linewidth=0))
        ends = np.clip((probability - spread, probability + spread), 0.0, 1.0) * width + start
        sheet.plot(ends, (y, y), color=INK, linewidth=1.6, solid_capstyle="butt", marker="|", markersize=6)
        write(
            sheet, right, y, f"{percent} %", 14, INK, weight="bold" if is_named else "normal", align="right"
        )
    y += 29
    write(sheet, left, y, "Agreement of the draws:", 13, QUIET)
    write(sheet, left + 172, y, str(result.agreement), 13, INK, weight="bold")
    return y + 8


def _draw_volumes(sheet: Axes, record: ReadingRecord, sides: tuple[float, float], y: float) -> float:
    """Draw the table of measured volumes."""
    left, right = sides
    result = record.segmentation
    y = _heading(sheet, sides, y, "Measured", "mL")
    rows = (
        ("Right lung", f"{result.lung_right_ml:,.1f}", False),
        ("Left lung", f"{result.lung_left_ml:,.1f}", False),
        ("Ground glass in the mask", f"{result.ground_glass_ml:,.1f}", False),
        ("Consolidation in the mask", f"{result.consolidation_ml:,.1f}", False),
        ("Other density in the mask", f"{result.other_density_ml:,.1f}", False),
        (f"All lesions ({result.lesion_count} separate)", f"{result.lesion_ml:,.1f}", True),
        ("Share of lung", f"{result.lesion_share_percent:.1f} %", True),
    )
    for label, value, is_strong in rows:
        y += 25
        weight = "bold" if is_strong else "normal"
        write(sheet, left, y, label, 14, INK, weight=weight)
        write(sheet, right, y, value.replace(",", "\u2009"), 14, INK, weight=weight, align="right")
        rule(sheet, left, right, y + 12)
    return y + 12


def _draw_input(sheet: Axes, record: ReadingRecord, sides: tuple[float, float], y: float) -> None:
    """Draw the loader's verdict; the sentences of a long one are in the report."""
    report = record.input
    color, words = _VERDICTS[report.verdict]
    left = sides[0]
    y = _heading(sheet, sides, y, "Input", "") + 26
    sheet.add_patch(Rectangle((left, y - 5), 10, 10, color=color, linewidth=0))
    write(sheet, left + 18, y, words, 14, INK, weight="bold")
    details = [f"Repairs: {len(report.repairs)}    Warnings: {len(report.warnings)}"]
    if report.shape and report.spacing_mm:
        z, rows, columns = report.shape
        z_mm, y_mm, _ = report.spacing_mm
        details.insert(0, f"{z} slices of {rows} × {columns};  {z_mm:.2f} mm, in plane {y_mm:.2f} mm")
    for line in (*details, *(drawable(remark.text) for remark in report.warnings)):
        for part in textwrap.wrap(line, 60)[:2]:
            y += 20
            if y > _BOTTOM - 18:
                return
            write(sheet, left + 18, y, part, 12.5, QUIET)


def _heading(sheet: Axes, sides: tuple[float, float], y: float, title: str, note: str) -> float:
    """Draw a section's title with a quiet note at the right and a rule below; return the rule's height."""
    write(sheet, sides[0], y + 8, title, 13.5, INK, weight="bold")
    write(sheet, sides[1], y + 8, note, 12, QUIET, align="right")
    rule(sheet, *sides, y + 22)
    return y + 22
