# SPDX-License-Identifier: Apache-2.0
"""Builds DICOM series, independently of the package's own writer, and finds real scans."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ucadi.imaging.volume import Volume

REAL_CT = Path(os.environ.get("UCADI_REAL_CT", Path(__file__).parents[2] / "shared" / "data" / "real_ct"))


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """The folder with real scans, which are no part of the project."""
    if not REAL_CT.is_dir():
        pytest.skip("no folder with real scans; name it in UCADI_REAL_CT")
    return REAL_CT


def make_dataset(
    hu: np.ndarray, position: tuple[float, ...], pixel_mm: tuple[float, float], **tags: Any
) -> FileDataset:
    """One CT image: 16 bit, signed, intercept -1024, upright; tags replace or, as None, remove."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    stored = hu.astype(np.int32) + 1024
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "SeriesNumber": 4,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [float(v) for v in position],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "PixelSpacing": list(pixel_mm),
        "Rows": hu.shape[0],
        "Columns": hu.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": stored.astype("<i2").tobytes(),
    }
    for name, value in {**values, **tags}.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset["PixelData"].VR = "OW"
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


@pytest.fixture(scope="session")
def make_series() -> Callable[..., list[FileDataset]]:
    """Builds the images of a series, feet first, from an upright volume; tags apply to all."""

    def build(volume: Volume, **tags: Any) -> list[FileDataset]:
        first = volume.grid.affine_lps[:3, 3]
        dz, dy, dx = volume.grid.spacing_mm
        return [
            make_dataset(hu, (first[0], first[1], first[2] + k * dz), (dy, dx), InstanceNumber=k, **tags)
            for k, hu in enumerate(volume.voxels)
        ]

    return build


@pytest.fixture(scope="session")
def save_series() -> Callable[[list[FileDataset], Path], Path]:
    """Writes images into a folder in an order that is not theirs."""

    def save(images: list[FileDataset], folder: Path, prefix: str = "im") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(1).permutation(len(images))
        for name, k in enumerate(order):
            images[k].save_as(folder / f"{prefix}{name:04d}", enforce_file_format=True)
        return folder

    return save


@pytest.fixture
def dicom_folder(make_ct, make_series, save_series, tmp_path) -> Path:
    """A plain series of 36 slices."""
    return save_series(make_series(make_ct()), tmp_path / "series")
