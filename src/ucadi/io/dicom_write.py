# SPDX-License-Identifier: Apache-2.0
"""A volume as a series of DICOM CT files. For synthetic scans only: it writes no patient's data."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from ucadi.imaging.volume import Volume

__all__ = ["SeriesHeader", "TransferSyntax", "write_ct_series"]

_IMPLEMENTATION_UID = generate_uid(entropy_srcs=["ucadi", "implementation"])


class TransferSyntax(StrEnum):
    """How pixels are stored."""

    EXPLICIT_LE = "explicit"
    RLE = "rle"


@dataclass(frozen=True)
class SeriesHeader:
    """Header values of a synthetic series.

    Attributes:
        patient_key: Pseudonym; becomes the patient's id and, as ``PHANTOM^KEY``, the name.
        study_key: Pseudonym of the study; all UIDs derive from both keys.
        manufacturer: Label of the scanner.
        kernel: Label of the reconstruction kernel.
        intercept: Rescale intercept; the slope is 1.
        is_signed: Whether stored values are signed; unsigned ones need HU not below the intercept.
        padding_hu: Value outside the scan circle, None for none.
        kvp: Tube voltage.
        acquired_at: Date and time in the headers.
    """

    patient_key: str
    study_key: str
    manufacturer: str
    kernel: str
    intercept: int = -1024
    is_signed: bool = True
    padding_hu: int | None = None
    kvp: int = 120
    acquired_at: datetime = datetime(2020, 1, 1, 12, 0, 0)

    def uid(self, *parts: str) -> UID:
        """Return the UID of a part of the study: the same for the same keys."""
        return generate_uid(entropy_srcs=["ucadi phantom", self.patient_key, self.study_key, *parts])


def write_ct_series(
    volume: Volume,
    folder: Path,
    header: SeriesHeader,
    *,
    transfer_syntax: TransferSyntax = TransferSyntax.EXPLICIT_LE,
) -> tuple[Path, ...]:
    """Write a series of CT images, one file per slice.

    The files' names follow a hash, so their order on disk is not the slices' order. The bytes depend on
    nothing but the arguments.

    Args:
        volume: HU as int16; rows, columns and slices at right angles.
        folder: Where the files go; made when missing.
        header: Header values.
        transfer_syntax: How pixels are stored.

    Returns:
        The files in slice order (instance 1 lies at the head).

    Raises:
        ValueError: If values do not fit the stored range or the grid is sheared.
    """
    axes = volume.grid.affine_lps[:3, :3] / np.array(volume.grid.spacing_mm)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise ValueError("a CT series needs slices at right angles")
    stored = _stored_values(volume.voxels, header)
    folder.mkdir(parents=True, exist_ok=True)
    common = _common_elements(volume, header)
    paths = []
    for number, k in enumerate(reversed(range(len(stored))), start=1):
        dataset = _slice_dataset(common, header, number)
        dataset.ImagePositionPatient = [_decimal(v) for v in volume.grid.to_world(np.array([k, 0.0, 0.0]))]
        dataset.SliceLocation = _decimal(volume.grid.to_world(np.array([k, 0.0, 0.0]))[2])
        dataset.PixelData = stored[k].tobytes()
        if transfer_syntax is TransferSyntax.RLE:
            dataset.compress(RLELossless, generate_instance_uid=False)
        name = hashlib.sha256(dataset.SOPInstanceUID.encode()).hexdigest()[:16]
        paths.append(folder / f"{name}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return tuple(paths)


def _stored_values(hu: Int16[np.ndarray, "z y x"], header: SeriesHeader) -> np.ndarray:
    """Return the values that go into the files: HU less the intercept; padding is stored as it is."""
    kind = np.dtype("<i2" if header.is_signed else "<u2")
    stored = hu.astype(np.int32) - header.intercept
    if header.padding_hu is not None and not header.is_signed:
        raise ValueError("padding below air needs signed pixels")
    low, high = int(stored.min()), int(stored.max())
    if low < np.iinfo(kind).min or high > np.iinfo(kind).max:
        raise ValueError(f"stored values {low} to {high} do not fit {kind}")
    return np.ascontiguousarray(stored.astype(kind))


def _common_elements(volume: Volume, header: SeriesHeader) -> Dataset:
    """Return the elements that all slices share."""
    out = Dataset()
    out.SpecificCharacterSet = "ISO_IR 192"
    out.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    out.SOPClassUID = CTImageStorage
    date, time = header.acquired_at.strftime("%Y%m%d"), header.acquired_at.strftime("%H%M%S")
    out.StudyDate = out.SeriesDate = out.AcquisitionDate = out.ContentDate = date
    out.StudyTime = out.SeriesTime = out.AcquisitionTime = out.ContentTime = time
    out.AccessionNumber = out.ReferringPhysicianName = out.StudyID = ""
    out.Modality = "CT"
    out.Manufacturer = out.ManufacturerModelName = header.manufacturer
    out.SeriesDescription = f"Phantom chest {header.kernel}"
    out.PatientName = f"PHANTOM^{header.patient_key}"
    out.PatientID = header.patient_key
    out.PatientBirthDate, out.PatientSex = "", "O"
    out.PatientIdentityRemoved, out.DeidentificationMethod = "YES", "Synthetic: there is no patient"
    out.BodyPartExamined, out.PatientPosition = "CHEST", "HFS"
    out.KVP, out.ConvolutionKernel = header.kvp, header.kernel
    out.StudyInstanceUID, out.SeriesInstanceUID = header.uid("study"), header.uid("series")
    out.FrameOfReferenceUID, out.PositionReferenceIndicator = header.uid("frame"), ""
    out.SeriesNumber, out.AcquisitionNumber = 2, 1
    spacing = volume.grid.spacing_mm
    out.SliceThickness = out.SpacingBetweenSlices = _decimal(spacing[0])
    out.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    axes = volume.grid.affine_lps[:3, :3] / np.array(spacing)
    out.ImageOrientationPatient = [_decimal(v) for v in (*axes[:, 2], *axes[:, 1])]
    out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
    _, out.Rows, out.Columns = volume.grid.shape
    out.BitsAllocated, out.BitsStored, out.HighBit = 16, 16, 15
    out.PixelRepresentation = int(header.is_signed)
    out.RescaleIntercept, out.RescaleSlope, out.RescaleType = header.intercept, 1, "HU"
    out.WindowCenter, out.WindowWidth = -600, 1500
    if header.padding_hu is not None:
        out.add_new("PixelPaddingValue", "SS", header.padding_hu - header.intercept)
    return out


def _slice_dataset(common: Dataset, header: SeriesHeader, number: int) -> FileDataset:
    """Return a dataset with the shared elements and one slice's identity."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = header.uid("instance", str(number))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION_UID
    out = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    out.update(common)
    out.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    out.InstanceNumber = number
    return out


def _decimal(value: float) -> str:
    """Write a number as a DICOM decimal string: at most 16 characters."""
    return f"{float(value):.6f}".rstrip("0").rstrip(".") or "0"
