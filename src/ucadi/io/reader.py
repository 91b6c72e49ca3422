# SPDX-License-Identifier: Apache-2.0
"""Read a chest CT from whatever a person drops, or say why not."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ucadi.errors import DataError, UcadiError
from ucadi.imaging.coverage import check_coverage
from ucadi.imaging.intensity import check_hounsfield
from ucadi.imaging.lungs import Lungs, find_lungs
from ucadi.imaging.volume import Volume
from ucadi.io.dicom import MIN_SLICES, PADDING_HU, SeriesRefusedError, looks_like_dicom, read_dicom
from ucadi.io.files import input_files
from ucadi.io.nifti import looks_like_nifti, read_nifti
from ucadi.io.report import LoaderReport, SeriesReport, Verdict

__all__ = ["LoadedCt", "load_ct"]

_HEAD_BYTES = 348
_PICTURES = {b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"NRRD": "an NRRD file"}


@dataclass(frozen=True, eq=False)
class LoadedCt:
    """What came out of an input.

    Attributes:
        report: Every decision; its verdict says whether the rest is there.
        volume: int16 HU, None when refused.
        lungs: Where the lungs are, None when refused.
    """

    report: LoaderReport
    volume: Volume | None = None
    lungs: Lungs | None = None

    def require(self) -> tuple[Volume, Lungs]:
        """Return volume and lungs.

        Raises:
            DataError: If the input was refused, with code, reason and cure of the report.
        """
        if self.volume is None or self.lungs is None:
            raise DataError(self.report.code, self.report.reason, cure=self.report.cure)
        return self.volume, self.lungs


def load_ct(source: Path) -> LoadedCt:
    """Read a chest CT and judge it. Bad input never raises: the report's verdict is ``refused``.

    Args:
        source: DICOM folder, file or zip, or a NIfTI file.
    """
    series: tuple[SeriesReport, ...] = ()
    try:
        volume, series, repairs = _read(source)
        check_hounsfield(volume.voxels)
        lungs = find_lungs(volume)
        warnings = check_coverage(lungs)
    except SeriesRefusedError as error:
        return LoadedCt(LoaderReport.refusal(error, error.series))
    except UcadiError as error:
        return LoadedCt(LoaderReport.refusal(error, tuple(_not_chosen(item, error) for item in series)))
    report = LoaderReport(
        verdict=Verdict.WARNING if warnings else Verdict.OK,
        shape=volume.grid.shape,
        spacing_mm=volume.grid.spacing_mm,
        repairs=repairs,
        warnings=warnings,
        series=series,
    )
    return LoadedCt(report, volume, lungs)


def _read(source: Path) -> tuple[Volume, tuple[SeriesReport, ...], tuple[str, ...]]:
    """Tell the format by content and read it."""
    files = list(input_files(source))
    if source.is_file() and len(files) == 1 and files[0].path is not None:
        head = _head(source)
        if looks_like_nifti(head):
            return _read_nifti(source)
        if not looks_like_dicom(head):
            kind = next(
                (name for start, name in _PICTURES.items() if head.startswith(start)), "an unknown format"
            )
            raise DataError("input-unsupported", f"The file is {kind}.")
    found = read_dicom(files)
    return found.volume, found.series, found.repairs


def _head(path: Path) -> bytes:
    """Return the first bytes, unpacked when the file is gzipped."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head[:2] != b"\x1f\x8b":
        return head
    try:
        with gzip.open(path) as unpacked:
            return unpacked.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("input-unreadable", "The gzip file is damaged.") from error


def _read_nifti(path: Path) -> tuple[Volume, tuple[SeriesReport, ...], tuple[str, ...]]:
    """Read a NIfTI file as HU."""
    volume = read_nifti(path)
    depth = volume.grid.shape[0]
    if depth < MIN_SLICES:
        raise DataError("dicom-too-few-slices", f"{depth} slice(s), at least {MIN_SLICES} are needed.")
    repairs: tuple[str, ...] = ()
    outside = volume.voxels < PADDING_HU
    count = int(np.count_nonzero(outside))
    if count:
        repairs = (f"{count} values outside the scan field were set to {PADDING_HU} HU.",)
    hu = np.clip(np.rint(volume.voxels), PADDING_HU, 32767).astype(np.int16)
    grid = volume.grid
    series = SeriesReport(
        "nifti", None, "CT", depth, grid.shape, grid.spacing_mm, True, "It is the only volume."
    )
    return Volume(hu, grid), (series,), repairs


def _not_chosen(series: SeriesReport, error: UcadiError) -> SeriesReport:
    """Mark a series that was read and then refused."""
    if not series.chosen:
        return series
    return SeriesReport(**{**vars(series), "chosen": False, "reason": error.detail})
