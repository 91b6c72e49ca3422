# SPDX-License-Identifier: Apache-2.0
"""Any input to a chest CT with a verdict: DICOM folder, file, index or zip, NIfTI, NRRD or MetaImage."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ucadi.errors import DataError, DicomError
from ucadi.imaging.chest import check_lungs, check_orientation
from ucadi.imaging.continuity import check_continuity
from ucadi.imaging.intensity import check_hu
from ucadi.imaging.lungs import Lungs, find_lungs
from ucadi.imaging.remarks import Remark
from ucadi.imaging.volume import Volume
from ucadi.io.acquisitions import MIN_SLICES
from ucadi.io.dicom import padding_repair, read_series
from ucadi.io.dicomdir import files_of_dicomdir
from ucadi.io.files import (
    READ_ERRORS,
    OpenFile,
    file_of_path,
    files_of_folder,
    open_zip,
)
from ucadi.io.framing import is_dicom
from ucadi.io.itk_formats import is_metaimage, is_nrrd, read_metaimage, read_nrrd
from ucadi.io.nifti import is_nifti, read_nifti
from ucadi.io.pixels import LOWEST_HU
from ucadi.io.report import LoaderReport, SeriesReport, Verdict
from ucadi.io.series import read_study
from ucadi.io.source import SourceSeries
from ucadi.types import PathLikeStr, Triple

__all__ = ["LoadedCt", "load_ct"]

_THICK_MM = 5.5  # lesions smaller than the distance of slices may lie between them
_HEAD_BYTES = 512
_INVENTED = {"slices-interpolated", "spacing-resampled", "tilt-corrected"}  # repairs that change voxels
_MAX_KINDS = 1000  # files whose format is named when none is DICOM
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_FOREIGN = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip file"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"PK", "a zip archive"),
)
"""First bytes of formats that people try, and their names."""


@dataclass(frozen=True, eq=False)
class LoadedCt:
    """What came of reading an input.

    Attributes:
        volume: int16 or float32 HU in canonical axes; None when refused.
        lungs: Both lungs on the volume's grid; None when refused.
        report: What was decided, and why.
        source: The DICOM images that went into the volume; None for other formats and when refused. It names
            the patient.
    """

    volume: Volume | None
    lungs: Lungs | None
    report: LoaderReport
    source: SourceSeries | None = None

    def require(self) -> tuple[Volume, Lungs]:
        """Return volume and lungs.

        Raises:
            DataError: If the input was refused; with the report's code, reason and cure.
        """
        if self.volume is None or self.lungs is None:
            raise DataError(self.report.code, self.report.reason, cure=self.report.cure)
        return self.volume, self.lungs


@dataclass
class _Findings:
    """What the report will say, gathered on the way."""

    shape: tuple[int, int, int] | None = None
    spacing_mm: Triple | None = None
    series: tuple[SeriesReport, ...] = ()
    repairs: list[Remark] = field(default_factory=list)
    warnings: list[Remark] = field(default_factory=list)
    interpolated: tuple[int, ...] = ()
    lungs: Lungs | None = None
    source: SourceSeries | None = None

    def report(self, error: DataError | None) -> LoaderReport:
        """Return the report: refused when there is an error."""
        is_doubtful = bool(self.warnings) or any(repair.code in _INVENTED for repair in self.repairs)
        verdict = Verdict.REFUSED if error else Verdict.WARNING if is_doubtful else Verdict.OK
        return LoaderReport(
            verdict,
            code=error.code if error else "ok",
            reason=error.detail if error else "",
            cure=error.cure if error else "",
            shape=self.shape,
            spacing_mm=self.spacing_mm,
            repairs=tuple(self.repairs),
            warnings=tuple(self.warnings),
            interpolated_slices=self.interpolated,
            lungs_ml=(float(self.lungs.right_ml), float(self.lungs.left_ml)) if self.lungs else None,
            series=self.series,
        )


def load_ct(path: PathLikeStr, *, series: str = "") -> LoadedCt:
    """Read a chest CT from a DICOM folder, file, index (DICOMDIR) or zip, or a NIfTI, NRRD or MetaImage file.

    Bad data never raise: the report then says what is wrong and how to mend it, in words that hold no path,
    name, date or identifier.

    Args:
        path: What the user named; its content decides, not its ending.
        series: SeriesInstanceUID, or key in a loader report, of the DICOM series to read; empty for the best.
    """
    findings = _Findings()
    try:
        with warnings.catch_warnings():
            # pydicom and zipfile warn of odd values in headers; what matters is checked here.
            warnings.simplefilter("ignore")
            volume = _read(Path(path), series, findings)
        findings.shape, findings.spacing_mm = volume.grid.shape, volume.grid.spacing_mm
        findings.lungs = _judge(volume, findings)
    except DataError as error:
        return LoadedCt(None, None, findings.report(error))
    except MemoryError:
        too_large = DataError("input-too-costly", "The volume does not fit into this machine's memory.")
        return LoadedCt(None, None, findings.report(too_large))
    return LoadedCt(volume, findings.lungs, findings.report(None), findings.source)


def _judge(volume: Volume, findings: _Findings) -> Lungs:
    """Return the lungs of a volume that shows a whole chest in HU, or refuse it."""
    findings.warnings.extend(check_hu(volume.voxels))
    check_continuity(volume.voxels)
    lungs = find_lungs(volume)
    findings.warnings.extend(check_lungs(lungs))
    findings.warnings.extend(check_orientation(volume, lungs))
    spacing_z = volume.grid.spacing_mm[0]
    if spacing_z > _THICK_MM:
        text = f"The slices are {spacing_z:.1f} mm apart: small lesions may be missed."
        findings.warnings.append(Remark("thick-slices", text))
    return lungs


def _read(path: Path, series: str, findings: _Findings) -> Volume:
    """Read a volume from whatever the path holds."""
    try:
        is_folder, is_file, is_there = path.is_dir(), path.is_file(), path.exists()
    except (OSError, ValueError) as error:
        raise DataError("input-forbidden", "The given path may not be looked at.") from error
    if is_folder:
        return _read_files(files_of_folder(path), series, findings)
    if not is_there:
        raise DataError("input-not-found", "There is no file or folder at the given path.")
    if not is_file:
        raise DataError("input-unsupported", "The given path is a pipe or a device, not a file or folder.")
    file = file_of_path(path)
    head = _head(file)
    if head.startswith(_ZIP_MAGIC):
        with open_zip(path) as files:
            return _read_files(files, series, findings)
    if is_dicom(head):
        files, absent = files_of_dicomdir(path) or ([file], 0)
        if absent:
            text = f"{absent} files that the DICOMDIR lists are not there."
            findings.warnings.append(Remark("damaged-files", text))
        return _read_files(files, series, findings)
    return _read_volume(file, findings)


def _read_files(files: Sequence[OpenFile], series: str, findings: _Findings) -> Volume:
    """Choose a series and read it; without any DICOM image, read the only other volume."""
    study = read_study(files)
    if not study.series and not study.damaged:
        volumes = [file for file in files[:_MAX_KINDS] if _volume_reader(file)]
        if len(volumes) > 1:
            raise DataError("volumes-many", f"There are {len(volumes)} volumes and no DICOM image.")
        if volumes:
            return _read_volume(volumes[0], findings)
        raise _no_dicom(files)
    findings.series = study.reports(None)
    if study.damaged:
        count = (
            "1 damaged DICOM file was" if study.damaged == 1 else f"{study.damaged} damaged DICOM files were"
        )
        text = f"{count} left out."
        findings.warnings.append(Remark("damaged-files", text))
    chosen = study.choose(series)
    findings.series = study.reports(chosen)
    findings.warnings.extend(
        Remark("many-series", f"{rival.name} is as good as the chosen series.")
        for rival in study.rivals(chosen)
        if not series
    )
    if siblings := study.siblings(chosen):
        count = "1 more image" if siblings == 1 else f"{siblings} more images"
        text = (
            f"{chosen.name} holds {count} of another acquisition, kernel, kind, size or direction, "
            "not used here."
        )
        findings.warnings.append(Remark("split-acquisition", text))
    read = read_series(chosen)
    findings.repairs.extend(read.repairs)
    findings.warnings.extend(read.warnings)
    findings.interpolated, findings.source = read.interpolated, read.source
    return read.volume


def _no_dicom(files: Sequence[OpenFile]) -> DicomError:
    """Say what is there instead of DICOM."""
    if not files:
        return DicomError("dicom-none", "There is no file in it.")
    kinds = Counter(_kind(_head(file)) for file in files[:_MAX_KINDS])
    listed = ", ".join(f"{count} times {kind}" for kind, count in kinds.most_common(3))
    return DicomError(
        "dicom-none",
        f"None of the {len(files)} files is a DICOM image (but {listed}).",
        cure="Point to the folder that holds the series, or to the file of one volume.",
    )


def _volume_reader(file: OpenFile) -> tuple[str, Callable[[OpenFile], Volume]] | None:
    """Return the name and the reader of a file's format when it holds one volume in one file."""
    head = _head(file)
    if is_nrrd(head):
        return "nrrd", read_nrrd
    if is_metaimage(head):
        return "metaimage", read_metaimage
    return ("nifti", read_nifti) if is_nifti(file) else None


def _read_volume(file: OpenFile, findings: _Findings) -> Volume:
    """Read a file that holds one volume; padding is set as in DICOM."""
    reader = _volume_reader(file)
    if reader is None:
        kind = _kind(_head(file))
        raise DataError("input-unsupported", f"The file is {kind} and holds no CT that ucadi reads.")
    name, read = reader
    volume = read(file)
    shape, spacing_mm = volume.grid.shape, volume.grid.spacing_mm
    findings.series = (
        SeriesReport(name, None, "CT", shape[0], shape, spacing_mm, True, "the file's only volume"),
    )
    if shape[0] < MIN_SLICES:
        raise DataError(
            "volume-too-few-slices", f"The volume has {shape[0]} slices; {MIN_SLICES} or more are needed."
        )
    padding = int(np.count_nonzero(volume.voxels < LOWEST_HU))
    if padding:
        np.maximum(volume.voxels, LOWEST_HU, out=volume.voxels)
        findings.repairs.append(padding_repair(padding, volume.voxels.size))
    return volume


def _head(open_file: OpenFile) -> bytes:
    """Return a file's first bytes."""
    try:
        with open_file() as file:
            return file.read(_HEAD_BYTES)
    except PermissionError as error:
        raise DataError("input-forbidden", "A file of the input may not be read.") from error
    except READ_ERRORS as error:
        raise DataError("input-unreadable", f"A file cannot be read ({type(error).__name__}).") from error


def _kind(head: bytes) -> str:
    """Name the format of a file that is not read, from its first bytes."""
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            return name
    if not head:
        return "an empty file"
    is_text = all(byte >= 0x20 or byte in b"\t\r\n" for byte in head)
    return "a text file" if is_text else "in an unknown format"
