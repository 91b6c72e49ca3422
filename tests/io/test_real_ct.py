# SPDX-License-Identifier: Apache-2.0
"""Verdicts on real scans, which lie outside the project (environment variable UCADI_REAL_CT)."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from ucadi.imaging.grid import Grid
from ucadi.imaging.lungs import find_lungs
from ucadi.imaging.volume import Volume
from ucadi.io.files import file_of_path, files_of_folder
from ucadi.io.headers import read_headers
from ucadi.io.pixels import read_hu, read_stored
from ucadi.io.reader import load_ct
from ucadi.io.report import Verdict

REFUSED = {
    "chest-imaging-platform": "volumes-many",
    "chest-imaging-platform/crop_ct_2slices.nrrd": "volume-too-few-slices",
    "chest-imaging-platform/lm-64.nrrd": "ct-not-hu",
    "chest-imaging-platform/wholeLung-64.nrrd": "ct-not-hu",
    "covid19-ct-seg-slices": "dicom-none",
    "covid19-ct-seg-slices/coronacases_001/0000_ct.png": "input-unsupported",
    "dcmqi-enhanced-pair": "dicom-too-few-slices",
    "dcmqi-enhanced-pair/enhanced_multiframe.dcm": "dicom-too-few-slices",
    "dicom-encodings": "dicom-too-few-slices",
    "ibsi-lung-phantom-pat1": "volumes-many",
    "ibsi-lung-phantom-pat1/image.nii.gz": "ct-no-chest",
    "ibsi-lung-phantom-pat1/gtv_mask.nii.gz": "ct-not-hu",
    "lidc-idri-slab": "dicom-too-few-slices",
    "localizers": "dicom-localizer",
    "lungmask-bare-slice": "dicom-too-few-slices",
    "sars-cov-2-ct-slices": "dicom-none",
    "tcia-covid-19-ny-sbu": "dicom-too-few-slices",
    "tcia-covid-19-ny-sbu/A002304_coronal_19010112-124.dcm": "dicom-not-axial",
}


@pytest.mark.parametrize(("name", "code"), REFUSED.items())
def test_what_is_no_whole_chest_in_a_known_format_is_refused(real_ct, name, code) -> None:
    report = load_ct(real_ct / name).report
    assert report.code == code
    assert report.reason
    assert report.cure


def test_every_folder_of_real_scans_has_an_expected_verdict(real_ct) -> None:
    folders = {path.name for path in real_ct.iterdir() if path.is_dir()}
    assert folders <= {name for name in REFUSED if "/" not in name} | {
        "lidc-idri-0314",
        "innereye-small-scan",
    }


def test_whole_chest_dicom_series_is_read(real_ct) -> None:
    loaded = load_ct(real_ct / "lidc-idri-0314" / "image")
    volume, lungs = loaded.require()
    assert loaded.report.verdict is Verdict.OK
    assert volume.grid.shape == (138, 512, 512)
    assert volume.grid.spacing_mm == pytest.approx((2.0, 0.78125, 0.78125), abs=1e-3)
    assert (volume.voxels.min(), volume.voxels.max()) == (-1000, 1979)
    # The source states 2.8 L by threshold; a consolidated right upper lobe comes to that.
    assert lungs.total_ml == pytest.approx(3200, rel=0.05)
    assert lungs.left_ml > 1.5 * lungs.right_ml


def test_whole_chest_nifti_is_read_with_a_doubt_about_its_voxel_size(real_ct) -> None:
    loaded = load_ct(real_ct / "innereye-small-scan")
    volume, _ = loaded.require()
    assert volume.grid.shape == (44, 167, 167)
    assert volume.grid.spacing_mm == pytest.approx((3.0, 1.0, 1.0), abs=1e-3)
    assert volume.voxels.dtype == np.int16
    assert loaded.report.verdict is Verdict.WARNING
    assert "voxel size" in loaded.report.warnings[0].text


def test_whole_chest_nrrd_is_read(real_ct) -> None:
    loaded = load_ct(real_ct / "chest-imaging-platform" / "ct-64.nrrd")
    volume, lungs = loaded.require()
    assert volume.grid.shape == (79, 64, 64)
    assert volume.grid.spacing_mm == pytest.approx((3.987, 4.172, 4.172), abs=1e-3)
    assert 4000 < lungs.total_ml < 5500


def test_enhanced_object_holds_the_same_slices_as_its_classic_files(real_ct) -> None:
    folder = real_ct / "dcmqi-enhanced-pair"
    found = []
    for files in (files_of_folder(folder / "classic"), [file_of_path(folder / "enhanced_multiframe.dcm")]):
        headers = sorted((h for file in files for h in read_headers(file)), key=lambda h: h.plane.height_mm)
        slices = np.zeros((len(headers), *headers[0].size), np.int16)
        read_hu(headers, list(slices))
        found.append(([h.plane for h in headers], slices))
    (planes, classic), (frames, enhanced) = found
    assert np.array_equal(classic, enhanced)
    assert len(classic) == 3
    for plane, frame in zip(planes, frames, strict=True):
        assert np.allclose(plane.position_mm, frame.position_mm)
        assert plane.is_parallel(frame)
        assert plane.pixel_mm == frame.pixel_mm


def test_one_picture_in_five_encodings_gives_one_array(real_ct) -> None:
    paths = sorted((real_ct / "dicom-encodings").glob("CTImage_*.dcm"))
    arrays = [read_stored(read_headers(file_of_path(path))[0]) for path in paths]
    assert len(arrays) == 5
    assert (arrays[0].min(), arrays[0].max()) == (-2000, 2402)
    assert all(np.array_equal(array, arrays[0]) for array in arrays)


def read_nrrd(path: Path, dtype: str, shape: tuple[int, int, int]) -> np.ndarray:
    _, data = path.read_bytes().split(b"\n\n", 1)
    return np.frombuffer(gzip.decompress(data), dtype).reshape(shape)


def test_lungs_agree_with_a_mask_made_by_others(real_ct) -> None:
    folder, shape = real_ct / "chest-imaging-platform", (79, 64, 64)
    hu = read_nrrd(folder / "ct-64.nrrd", "<i2", shape)
    truth = read_nrrd(folder / "wholeLung-64.nrrd", "<u2", shape) > 0
    lungs = find_lungs(Volume(hu, Grid.from_spacing(shape, (3.987, 4.172, 4.172))))
    dice = 2 * np.count_nonzero(lungs.mask & truth) / (lungs.mask.sum() + truth.sum())
    assert dice > 0.97
