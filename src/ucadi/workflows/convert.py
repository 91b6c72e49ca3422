# SPDX-License-Identifier: Apache-2.0
"""Write an input's repaired volume as NIfTI, with the report of what was done to it."""

from pathlib import Path

from ucadi.errors import ConfigError
from ucadi.io.checkpoint import write_json
from ucadi.io.guard import load_untrusted
from ucadi.io.nifti import write_nifti
from ucadi.io.report import LoaderReport

__all__ = ["ENDINGS", "convert", "report_path"]

ENDINGS = (".nii", ".nii.gz")


def convert(source: Path, target: Path, *, series: str = "") -> LoaderReport:
    """Read an input as for a result and write its volume and its loader report.

    Args:
        source: Whatever `load_untrusted` reads.
        target: A .nii or .nii.gz file; the report goes beside it, see `report_path`.
        series: SeriesInstanceUID or key of the DICOM series to take; empty for the best one.

    Raises:
        ConfigError: If the target has another ending.
        DataError: If the input is refused; nothing is written then.
    """
    if not target.name.endswith(ENDINGS):
        raise ConfigError(
            "config-invalid",
            f"The output is called {target.name}.",
            cure="Let it end in .nii or .nii.gz.",
        )
    loaded = load_untrusted(source, series=series)
    volume, _ = loaded.require()
    report = report_path(target)
    report.unlink(missing_ok=True)  # an old report never stands beside a new volume, nor the other way round
    target.unlink(missing_ok=True)
    write_nifti(volume, target)
    write_json(report, loaded.report.to_json())
    return loaded.report


def report_path(target: Path) -> Path:
    """Return where the report of a converted volume goes: ``ct.nii.gz`` has ``ct.json``."""
    return target.with_name(target.name.removesuffix(".gz").removesuffix(".nii") + ".json")
