# SPDX-License-Identifier: Apache-2.0
"""Say what an input holds and whether a result may rest on it."""

from pathlib import Path

from ucadi.io.reader import load_ct
from ucadi.io.report import LoaderReport, SeriesReport, Verdict

__all__ = ["describe", "inspect_ct"]


def inspect_ct(source: Path) -> LoaderReport:
    """Return the loader report of an input, refused ones included."""
    return load_ct(source).report


def describe(report: LoaderReport) -> str:
    """Return the report as a few lines for people."""
    lines = [f"Verdict   {report.verdict}"]
    if report.verdict is Verdict.REFUSED:
        lines += [f"Reason    {report.reason} ({report.code})", f"Cure      {report.cure}"]
    if report.shape and report.spacing_mm:
        size = [n * mm for n, mm in zip(report.shape, report.spacing_mm, strict=True)]
        lines.append("Volume    {} x {} x {} voxels (z, y, x)".format(*report.shape))
        lines.append("Spacing   {:.3g} x {:.3g} x {:.3g} mm".format(*report.spacing_mm))
        lines.append("Size      {:.0f} x {:.0f} x {:.0f} mm".format(*size))
    lines += [f"Repaired  {sentence}" for sentence in report.repairs]
    lines += [f"Warning   {sentence}" for sentence in report.warnings]
    lines += [_describe_series(series) for series in report.series]
    return "\n".join(lines)


def _describe_series(series: SeriesReport) -> str:
    """Return one series as a line."""
    number = "" if series.number is None else f"number {series.number}, "
    state = "read" if series.chosen else "not read"
    return f"Series    {series.key} ({number}{series.modality}, {series.slices} images): {state}. {series.reason}"
