# SPDX-License-Identifier: Apache-2.0
"""Written CT series, read back with plain pydicom."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume
from ucadi.io.dicom_write import SeriesHeader, TransferSyntax, write_ct_series


def make_volume(low: int = -1000) -> Volume:
    grid = Grid.from_spacing((5, 12, 10), (2.5, 0.7, 0.8), (-310.25, -120.5, 33.0))
    voxels = np.random.default_rng(0).integers(low, 900, grid.shape).astype(np.int16)
    return Volume(voxels, grid)


def header(**changes: object) -> SeriesHeader:
    values = {"patient_key": "A0001", "study_key": "A0001-1", "manufacturer": "phantom A", "kernel": "soft"}
    return SeriesHeader(**(values | changes))  # type: ignore[arg-type]  # built from words


def read_back(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return HU sorted from feet to head and the LPS affine, from the standard's equations alone."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    hu = np.stack([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices])
    first = slices[0]
    row, column = np.array(first.ImageOrientationPatient[:3]), np.array(first.ImageOrientationPatient[3:])
    affine = np.eye(4)
    affine[:3, 0] = np.array(slices[1].ImagePositionPatient) - np.array(first.ImagePositionPatient)
    affine[:3, 1] = column * float(first.PixelSpacing[0])
    affine[:3, 2] = row * float(first.PixelSpacing[1])
    affine[:3, 3] = first.ImagePositionPatient
    return hu, affine


@pytest.mark.parametrize("syntax", list(TransferSyntax))
@pytest.mark.parametrize(
    ("intercept", "is_signed"), [(-1024, False), (-1024, True), (0, True), (-1000, False)]
)
def test_values_and_geometry_come_back(
    tmp_path: Path, syntax: TransferSyntax, intercept: int, is_signed: bool
) -> None:
    volume = make_volume()
    write_ct_series(
        volume, tmp_path, header(intercept=intercept, is_signed=is_signed), transfer_syntax=syntax
    )
    hu, affine = read_back(tmp_path)
    assert np.array_equal(hu, volume.voxels)
    assert affine == pytest.approx(volume.grid.affine_lps, abs=1e-5)


def test_padding_is_stored_and_named(tmp_path: Path) -> None:
    volume = make_volume()
    volume.voxels[:, 0, 0] = -3024
    paths = write_ct_series(volume, tmp_path, header(padding_hu=-3024))
    dataset = pydicom.dcmread(paths[0])
    assert dataset.PixelPaddingValue == dataset.pixel_array[0, 0] == -2000


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_ct_series(make_volume(), tmp_path / folder, header(), transfer_syntax=TransferSyntax.RLE)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_uids_are_unique_in_a_series_and_differ_between_studies(tmp_path: Path) -> None:
    uids = set()
    for key in ("A0001-1", "A0001-2"):
        for path in write_ct_series(make_volume(), tmp_path / key, header(study_key=key)):
            dataset = pydicom.dcmread(path)
            assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
            assert pydicom.uid.UID(dataset.SOPInstanceUID).is_valid
            uids |= {dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID}
    assert len(uids) == 2 * (5 + 2)


def test_files_are_not_in_slice_order_and_say_that_there_is_no_patient(tmp_path: Path) -> None:
    paths = write_ct_series(make_volume(), tmp_path, header())
    assert list(paths) != sorted(paths)
    dataset = pydicom.dcmread(paths[0])
    assert dataset.PatientName == "PHANTOM^A0001"
    assert dataset.PatientIdentityRemoved == "YES"
    assert (dataset.PatientPosition, dataset.BodyPartExamined) == ("HFS", "CHEST")
    assert dataset.SliceThickness == dataset.SpacingBetweenSlices == 2.5


def test_values_outside_the_stored_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        write_ct_series(make_volume(-1024), tmp_path, header(intercept=0, is_signed=False))


def test_a_sheared_grid_is_refused(tmp_path: Path) -> None:
    affine = make_volume().grid.affine_lps.copy()
    affine[1, 0] = 0.7
    with pytest.raises(ValueError, match="right angles"):
        write_ct_series(Volume(make_volume().voxels, Grid((5, 12, 10), affine)), tmp_path, header())
