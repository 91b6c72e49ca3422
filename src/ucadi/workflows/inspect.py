# SPDX-License-Identifier: Apache-2.0
"""Tell what an input holds, in a report and in words."""

from pathlib import Path

from ucadi.io.guard import load_untrusted
from ucadi.io.report import LoaderReport, SeriesReport, Verdict

__all__ = ["describe", "inspect_ct"]

_LABEL_WIDTH = 10


def inspect_ct(path: Path, *, series: str = "") -> LoaderReport:
    """Read an input as for a result, and return only what was decided.

    Args:
        path: Whatever `load_untrusted` reads.
        series: SeriesInstanceUID or key of the DICOM series to take; empty for the best one.
    """
    return load_untrusted(path, series=series).report


def describe(report: LoaderReport) -> str:
    """Return a report as a few lines for a person: what was decided, why, and what to do."""
    lines = [("Verdict", _verdict(report))]
    if report.verdict is Verdict.REFUSED:
        lines += [("Reason", report.reason), ("Cure", report.cure)]
    lines += [("Series", _series(series)) for series in report.series if series.chosen]
    if report.shape and report.spacing_mm:
        lines += [("Size", _size(report.shape, report.spacing_mm))]
    if report.lungs_ml:
        lines += [("Lungs", "right {:.0f} mL, left {:.0f} mL".format(*report.lungs_ml))]
    lines += [("Repair", remark.text) for remark in report.repairs]
    lines += [("Warning", remark.text) for remark in report.warnings]
    lines += [("Left out", _series(series)) for series in report.series if not series.chosen]
    return "\n".join(f"{label:<{_LABEL_WIDTH}}{text}" for label, text in lines)


def _verdict(report: LoaderReport) -> str:
    """Return the verdict in words."""
    if report.verdict is Verdict.REFUSED:
        return f"refused ({report.code})"
    return {Verdict.OK: "ok", Verdict.WARNING: "ok, with warnings"}[report.verdict]


def _series(series: SeriesReport) -> str:
    """Return one series in a line."""
    number = "" if series.number is None else f"{series.number} "
    images = f"{series.slices} image{'s' * (series.slices != 1)}"
    return f"{number}({series.key}), {series.modality}, {images}: {series.reason}"


def _size(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> str:
    """Return the number of voxels, their size and the whole, in z, y, x."""
    voxels = " x ".join(str(n) for n in shape)
    voxel_mm = " x ".join(f"{mm:.2f}" for mm in spacing_mm)
    whole_mm = " x ".join(f"{n * mm:.0f}" for n, mm in zip(shape, spacing_mm, strict=True))
    return f"{voxels} voxels of {voxel_mm} mm = {whole_mm} mm (z, y, x)"
