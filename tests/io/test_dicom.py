# SPDX-License-Identifier: Apache-2.0
import json
import warnings

import numpy as np
import pytest
from pydicom.pixels.encoders import JPEGLSLosslessEncoder, RLELosslessEncoder
from pydicom.uid import EnhancedCTImageStorage, JPEGLSLossless, RLELossless, generate_uid

from ucadi.errors import DataError
from ucadi.io.reader import load_ct
from ucadi.io.report import Verdict


def test_shuffled_files_give_the_volume_in_order_and_in_place(make_ct, dicom_folder) -> None:
    volume, lungs = load_ct(dicom_folder).require()
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels, make_ct().voxels)
    assert volume.grid.is_close(make_ct().grid)
    assert lungs.right_ml > lungs.left_ml


def test_report_of_a_good_series_names_it_by_number_and_key(dicom_folder) -> None:
    report = load_ct(dicom_folder).report
    assert report.verdict is Verdict.OK
    assert report.warnings == ()
    assert report.repairs == ()
    (series,) = report.series
    assert (series.number, series.modality, series.slices, series.chosen) == (4, "CT", 36, True)
    assert len(series.key) == 8
    assert series.spacing_mm == pytest.approx((5.0, 5.5, 5.5))
    assert report.shape == series.shape == (36, 64, 64)


def test_slices_from_head_to_feet_give_the_same_volume(make_ct, make_series, save_series, tmp_path) -> None:
    images = make_series(make_ct())
    for k, image in enumerate(images):
        image.InstanceNumber = len(images) - k
    volume, _ = load_ct(save_series(images[::-1], tmp_path / "s")).require()
    assert np.array_equal(volume.voxels, make_ct().voxels)


def test_rows_and_columns_turned_by_180_degrees_are_turned_back(
    make_ct, make_series, save_series, tmp_path
) -> None:
    ct = make_ct()
    images = make_series(ct, ImageOrientationPatient=[-1.0, 0.0, 0.0, 0.0, -1.0, 0.0])
    corner = ct.grid.to_world(np.array([0.0, 63.0, 63.0]))
    for image, hu in zip(images, ct.voxels, strict=True):
        image.PixelData = (hu[::-1, ::-1].astype(np.int32) + 1024).astype("<i2").tobytes()
        image.ImagePositionPatient = [corner[0], corner[1], image.ImagePositionPatient[2]]
    volume, _ = load_ct(save_series(images, tmp_path / "s")).require()
    assert np.array_equal(volume.voxels, ct.voxels)
    assert volume.grid.is_close(ct.grid)


def test_each_slice_is_rescaled_by_its_own_slope_and_intercept(
    make_ct, make_series, save_series, tmp_path
) -> None:
    ct = make_ct()
    images = make_series(ct)
    for k, (image, hu) in enumerate(zip(images, ct.voxels, strict=True)):
        slope, intercept = (0.5, -1024 - k) if k % 2 else (1, -2000 + k)
        stored = np.rint((hu.astype(float) - intercept) / slope)
        image.RescaleSlope, image.RescaleIntercept = slope, intercept
        image.PixelData = stored.astype("<i2").tobytes()
    volume, _ = load_ct(save_series(images, tmp_path / "s")).require()
    assert np.array_equal(volume.voxels, ct.voxels)


@pytest.mark.parametrize(
    ("encoder", "syntax"), [(RLELosslessEncoder, RLELossless), (JPEGLSLosslessEncoder, JPEGLSLossless)]
)
def test_lossless_compression_decodes_to_the_same_values(
    make_ct, make_series, save_series, tmp_path, encoder, syntax
) -> None:
    if not encoder.is_available:
        pytest.skip(f"no encoder for {syntax.name}")
    images = make_series(make_ct())
    for image in images:
        image.compress(syntax)
    volume, _ = load_ct(save_series(images, tmp_path / "s")).require()
    assert np.array_equal(volume.voxels, make_ct().voxels)


@pytest.mark.parametrize("stored_padding", [-2000, 63536])
def test_padding_becomes_minus_1024_also_with_the_wrong_sign(
    make_ct, make_series, save_series, tmp_path, stored_padding
) -> None:
    ct = make_ct()
    images = make_series(ct)
    for image, hu in zip(images, ct.voxels, strict=True):
        stored = hu.astype(np.int32) + 1024
        stored[:4] = -2000
        image.PixelData = stored.astype("<i2").tobytes()
        image.add_new("PixelPaddingValue", "US" if stored_padding > 0 else "SS", stored_padding)
    loaded = load_ct(save_series(images, tmp_path / "s"))
    volume, _ = loaded.require()
    assert (volume.voxels[:, :4] == -1024).all()
    assert np.array_equal(volume.voxels[:, 4:], ct.voxels[:, 4:])
    (repair,) = loaded.report.repairs
    assert "6.2 %" in repair.text


def test_padding_above_the_window_in_unsigned_images_becomes_minus_1024(
    make_ct, make_series, save_series, tmp_path
) -> None:
    images = make_series(make_ct(), PixelRepresentation=0)
    for image in images:
        stored = np.frombuffer(image.PixelData, "<u2").reshape(64, 64).copy()
        stored[:4] = 63536
        image.PixelData = stored.tobytes()
        image.add_new("PixelPaddingValue", "US", 63536)
    volume, _ = load_ct(save_series(images, tmp_path / "s")).require()
    assert (volume.voxels[:, :4] == -1024).all()


def test_padding_value_of_a_tissue_is_kept_with_a_warning(
    make_ct, make_series, save_series, tmp_path
) -> None:
    images = make_series(make_ct())
    for image in images:
        image.add_new("PixelPaddingValue", "SS", 1024 + 45)
    loaded = load_ct(save_series(images, tmp_path / "s"))
    assert np.array_equal(loaded.require()[0].voxels, make_ct().voxels)
    assert any("45 HU" in warning.text for warning in loaded.report.warnings)


def refusal(folder) -> DataError:
    loaded = load_ct(folder)
    assert loaded.volume is None
    assert loaded.lungs is None
    with pytest.raises(DataError) as caught:
        loaded.require()
    assert caught.value.code == loaded.report.code
    assert loaded.report.cure
    return caught.value


def test_missing_slice_is_interpolated_and_marked(make_ct, make_series, save_series, tmp_path) -> None:
    images = make_series(make_ct())
    del images[10]
    loaded = load_ct(save_series(images, tmp_path / "s"))
    volume, _ = loaded.require()
    assert volume.grid.is_close(make_ct().grid)
    assert loaded.report.interpolated_slices == (10,)
    (repair,) = loaded.report.repairs
    assert repair.code == "slices-interpolated"
    assert "z = -650.0 mm" in repair.text
    kept = np.delete(np.arange(36), 10)
    assert np.array_equal(volume.voxels[kept], make_ct().voxels[kept])


def test_many_missing_slices_are_refused_with_place_and_gap(
    make_ct, make_series, save_series, tmp_path
) -> None:
    images = make_series(make_ct())
    del images[10:14]
    error = refusal(save_series(images, tmp_path / "s"))
    assert error.code == "dicom-uneven-spacing"
    assert "z = -655.0 mm" in error.detail
    assert "25.00 mm" in error.detail
    assert "5.00 mm" in error.detail
    assert "4 slices are missing" in error.detail


def test_spacing_that_changes_half_way_is_resampled(make_ct, make_series, save_series, tmp_path) -> None:
    images = make_series(make_ct())
    for k, image in enumerate(images):
        image.ImagePositionPatient = [-180.0, -170.0, 5.0 * k + max(0, k - 18) * 2.5]
    loaded = load_ct(save_series(images, tmp_path / "s"))
    volume, _ = loaded.require()
    assert volume.grid.spacing_mm[0] == pytest.approx(5.0, rel=0.02)
    assert np.array_equal(volume.voxels[:18], make_ct().voxels[:18])
    assert [remark.code for remark in loaded.report.repairs] == ["spacing-resampled"]


def test_jitter_of_the_table_is_accepted(make_ct, make_series, save_series, tmp_path) -> None:
    images = make_series(make_ct())
    for k, image in enumerate(images):
        image.ImagePositionPatient = [-180.0, -170.0, -700.0 + 5.0 * k + 0.04 * (-1) ** k]
    volume, _ = load_ct(save_series(images, tmp_path / "s")).require()
    assert volume.grid.spacing_mm[0] == pytest.approx(5.0, abs=0.01)


def test_duplicates_with_equal_pixels_are_dropped_and_reported(
    make_ct, make_series, save_series, tmp_path
) -> None:
    images = make_series(make_ct())
    loaded = load_ct(save_series([*images, images[5], images[20]], tmp_path / "s"))
    assert np.array_equal(loaded.require()[0].voxels, make_ct().voxels)
    (repair,) = loaded.report.repairs
    assert repair.text.startswith("2 slices")


def test_different_slices_at_one_place_are_refused_when_nothing_tells_them_apart(
    make_ct, make_series, save_series, tmp_path
) -> None:
    images, others = make_series(make_ct()), make_series(make_ct())
    others[5].PixelData = others[6].PixelData
    error = refusal(save_series([*images, others[5]], tmp_path / "s"))
    assert error.code == "dicom-duplicate-slices"
    assert "z = -675.0 mm" in error.detail


@pytest.mark.parametrize("tag", ["AcquisitionNumber", "TemporalPositionIdentifier", "AcquisitionTime"])
def test_acquisitions_at_the_same_places_are_split(make_ct, make_series, save_series, tmp_path, tag) -> None:
    first = make_series(make_ct(), **{tag: "101010"})
    second = make_series(make_ct(), **{tag: "101020"})[3:]
    for image in second:
        image.PixelData = bytes(a ^ 4 for a in image.PixelData[:2]) + image.PixelData[2:]
    loaded = load_ct(save_series([*first, *second], tmp_path / "s"))
    assert np.array_equal(loaded.require()[0].voxels, make_ct().voxels)
    assert [(s.chosen, s.slices) for s in loaded.report.series] == [(True, 36), (False, 33)]
    assert [warning.code for warning in loaded.report.warnings] == ["split-acquisition"]
    assert "33 more images" in loaded.report.warnings[0].text


def test_numbered_parts_of_one_volume_are_not_split(make_ct, make_series, save_series, tmp_path) -> None:
    images = make_series(make_ct())
    for k, image in enumerate(images):
        image.AcquisitionNumber = 1 + k // 9
    assert load_ct(save_series(images, tmp_path / "s")).report.verdict is Verdict.OK


def test_two_kernels_in_one_series_are_told_apart(make_ct, make_series, save_series, tmp_path) -> None:
    soft = make_series(make_ct(), ConvolutionKernel="B31f")
    sharp = make_series(make_ct(), ConvolutionKernel="B70f")[2:]
    loaded = load_ct(save_series([*soft, *sharp], tmp_path / "s"))
    assert np.array_equal(loaded.require()[0].voxels, make_ct().voxels)
    assert [(s.chosen, s.slices) for s in loaded.report.series] == [(True, 36), (False, 34)]


def test_a_series_can_be_named_by_uid_or_key(make_ct, make_series, save_series, tmp_path) -> None:
    for number, slices in ((2, 36), (3, 34)):
        ct = make_ct((slices, 64, 64), (180.0 / slices, 5.5, 5.5))
        images = make_series(ct, SeriesNumber=number, SeriesInstanceUID=f"1.2.{number}")
        save_series(images, tmp_path / "study" / str(number))
    best = load_ct(tmp_path / "study").report
    assert [(s.number, s.chosen) for s in best.series] == [(2, True), (3, False)]
    for name in ("1.2.3", best.series[1].key):
        report = load_ct(tmp_path / "study", series=name).report
        assert report.shape == (34, 64, 64)
        assert [(s.number, s.chosen) for s in report.series] == [(2, False), (3, True)]
        assert "asked for" in report.series[0].reason
    report = load_ct(tmp_path / "study", series="1.2.4").report
    assert report.code == "series-not-found"
    assert best.series[0].key in report.reason


def test_two_studies_are_refused_unless_a_series_is_named(
    make_ct, make_series, save_series, tmp_path
) -> None:
    for patient in ("1", "2"):
        images = make_series(
            make_ct(), StudyInstanceUID=f"1.3.{patient}", SeriesInstanceUID=f"1.3.{patient}.1"
        )
        save_series(images, tmp_path / "box" / patient)
    assert refusal(tmp_path / "box").code == "dicom-many-studies"
    assert load_ct(tmp_path / "box", series="1.3.2.1").report.verdict is Verdict.OK


def test_gantry_tilt_is_corrected_from_the_positions(make_ct, make_series, save_series, tmp_path) -> None:
    angle = np.radians(15.0)
    images = make_series(
        make_ct(), ImageOrientationPatient=[1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle))]
    )
    loaded = load_ct(save_series(images, tmp_path / "s"))
    volume, _ = loaded.require()
    assert volume.grid.spacing_mm[0] == pytest.approx(5.0 * np.cos(angle))
    axes = volume.grid.affine_lps[:3, :3] / np.array(volume.grid.spacing_mm)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    assert "15.0 degrees" in loaded.report.repairs[0].text


def test_oblique_slices_without_shear_are_read(make_ct, make_series, save_series, tmp_path) -> None:
    images = make_series(make_ct())
    angle = np.radians(5.0)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    for image in images:
        image.ImageOrientationPatient = [*turn[:, 0], *turn[:, 1]]
        image.ImagePositionPatient = list(turn @ np.array(image.ImagePositionPatient, dtype=float))
    volume, _ = load_ct(save_series(images, tmp_path / "s")).require()
    assert np.allclose(volume.grid.affine_lps[:3, 0], turn[:, 2] * 5.0, atol=1e-4)


def test_localizer_in_the_series_is_dropped_with_a_reason(
    make_ct, make_series, save_series, tmp_path
) -> None:
    images = make_series(make_ct())
    scout = make_series(
        make_ct(),
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ImageOrientationPatient=[1.0, 0.0, 0.0, 0.0, 0.0, -1.0],
    )[0]
    report = load_ct(save_series([*images, scout], tmp_path / "s")).report
    assert report.verdict is Verdict.OK
    assert [(s.chosen, s.slices) for s in report.series] == [(True, 36), (False, 1)]
    assert "localizer" in report.series[1].reason


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "dicom-localizer"),
        ({"Modality": "MR"}, "dicom-not-ct"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "dicom-not-ct"),
        ({"BurnedInAnnotation": "YES"}, "dicom-burned-in"),
        ({"ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]}, "dicom-not-axial"),
        ({"ImagePositionPatient": None}, "dicom-no-geometry"),
        ({"PixelSpacing": None}, "dicom-no-geometry"),
        ({"ImageOrientationPatient": [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]}, "dicom-no-geometry"),
        ({"SOPClassUID": EnhancedCTImageStorage}, "input-unreadable"),
        ({"NumberOfFrames": 3}, "dicom-not-ct"),
        ({"RescaleSlope": 0}, "dicom-undecodable"),
        ({"PixelData": b"\0\0"}, "dicom-undecodable"),
        ({"RescaleIntercept": 0}, "ct-not-hu"),
    ],
)
def test_series_that_is_no_axial_ct_in_hu_is_refused(
    make_ct, make_series, save_series, tmp_path, tags, code
) -> None:
    error = refusal(save_series(make_series(make_ct(), **tags), tmp_path / "s"))
    assert error.code == code
    assert "None" not in error.detail


@pytest.mark.parametrize(("slices", "code"), [(15, "dicom-too-few-slices"), (16, "ok")])
def test_more_than_15_slices_are_needed(make_ct, make_series, save_series, tmp_path, slices, code) -> None:
    ct = make_ct((slices, 64, 64), (11.0, 5.5, 5.5))
    assert load_ct(save_series(make_series(ct), tmp_path / "s")).report.code == code


def test_duplicates_do_not_count_as_slices(make_ct, make_series, save_series, tmp_path) -> None:
    images = make_series(make_ct((15, 64, 64), (11.0, 5.5, 5.5)))
    assert refusal(save_series([*images, images[0]], tmp_path / "s")).code == "dicom-too-few-slices"


def test_images_of_another_size_in_the_series_are_left_out_with_a_warning(
    make_ct, make_series, save_series, tmp_path
) -> None:
    images = make_series(make_ct())
    small = make_series(make_ct((36, 32, 32), (5.0, 11.0, 11.0)))
    loaded = load_ct(save_series([*images, *small[:5]], tmp_path / "s"))
    assert np.array_equal(loaded.require()[0].voxels, make_ct().voxels)
    assert [warning.code for warning in loaded.report.warnings] == ["split-acquisition"]


def test_a_stack_of_two_sizes_is_no_whole_chest(make_ct, make_series, save_series, tmp_path) -> None:
    images = make_series(make_ct())
    small = make_series(make_ct((36, 32, 32), (5.0, 11.0, 11.0)))
    assert refusal(save_series([*images[:20], *small[20:]], tmp_path / "s")).code == "ct-incomplete-chest"


def test_original_series_with_more_slices_is_preferred(make_ct, make_series, save_series, tmp_path) -> None:
    thick = make_ct((18, 64, 64), (10.0, 5.5, 5.5))
    thin = make_ct((72, 64, 64), (2.5, 5.5, 5.5))
    for name, number, ct, kind in (
        ("a", 2, thick, "ORIGINAL"),
        ("b", 3, make_ct(), "ORIGINAL"),
        ("c", 5, thin, "DERIVED"),
    ):
        images = make_series(
            ct, SeriesNumber=number, SeriesInstanceUID=f"1.2.{number}", ImageType=[kind, "PRIMARY"]
        )
        save_series(images, tmp_path / "study" / name)
    report = load_ct(tmp_path / "study").report
    assert [(s.number, s.chosen) for s in report.series] == [(3, True), (2, False), (5, False)]
    assert "original" in report.series[0].reason
    assert "few slices" in report.series[1].reason
    assert "derived" in report.series[2].reason


def test_equally_good_series_are_listed_as_such(make_ct, make_series, save_series, tmp_path) -> None:
    for number in (7, 6):
        images = make_series(make_ct(), SeriesNumber=number, SeriesInstanceUID=f"1.2.{number}")
        save_series(images, tmp_path / "study" / str(number))
    report = load_ct(tmp_path / "study").report
    assert [(s.number, s.chosen) for s in report.series] == [(6, True), (7, False)]
    assert "as good" in report.series[1].reason
    assert any("Series 7" in warning.text for warning in report.warnings)


def test_damaged_header_beside_a_series_is_reported(make_ct, dicom_folder) -> None:
    whole = (dicom_folder / "im0000").read_bytes()
    (dicom_folder / "broken").write_bytes(whole[:132] + b"\xff" * 50)
    report = load_ct(dicom_folder).report
    assert report.verdict is Verdict.WARNING
    assert "1 damaged" in report.warnings[0].text


def test_truncated_slice_is_refused_with_its_place(dicom_folder) -> None:
    path = dicom_folder / "im0003"
    path.write_bytes(path.read_bytes()[:-100])
    error = refusal(dicom_folder)
    assert error.code == "dicom-undecodable"
    assert "z = " in error.detail


def test_thin_slices_far_apart_are_warned_of(make_ct, make_series, save_series, tmp_path) -> None:
    report = load_ct(save_series(make_series(make_ct(), SliceThickness=1.0), tmp_path / "s")).report
    assert any("1.0 mm thick" in warning.text for warning in report.warnings)


def test_lossy_compression_is_warned_of(make_ct, make_series, save_series, tmp_path) -> None:
    images = make_series(make_ct(), LossyImageCompression="01")
    assert any("loss" in w.text for w in load_ct(save_series(images, tmp_path / "s")).report.warnings)


def test_nothing_that_identifies_a_patient_reaches_the_report(
    make_ct, make_series, save_series, tmp_path
) -> None:
    planted = {
        "PatientName": "PLANTED^NAME",
        "PatientID": "PLANTED-ID",
        "PatientBirthDate": "19470321",
        "StudyDate": "20200202",
        "AccessionNumber": "PLANTED77",
        "SeriesDescription": "PLANTED TEXT",
        "InstitutionName": "PLANTED HOSPITAL",
        "SeriesInstanceUID": "1.2.840.99.777",
        "StudyInstanceUID": "1.2.840.99.888",
        "SeriesNumber": 19470321,
        "SliceThickness": None,
    }
    good = save_series(make_series(make_ct(), **planted), tmp_path / "PLANTED-good")
    bad = save_series(make_series(make_ct(), **planted)[::3][:9], tmp_path / "PLANTED-bad")
    other = save_series(make_series(make_ct(), **planted, Modality="PLANTED"), tmp_path / "PLANTED-mr")
    undecodable = save_series(
        make_series(make_ct(), **planted, PixelData=b"\0\0"), tmp_path / "PLANTED-undecodable"
    )
    for folder in (good, bad, other, undecodable, tmp_path / "PLANTED-missing"):
        text = json.dumps(load_ct(folder).report.to_json())
        for word in ("PLANTED", "19470321", "20200202", "1.2.840", str(tmp_path)):
            assert word not in text, (folder.name, word)


# -- images that must not be mixed ------------------------------------------------------------------------


def shifted(images, up_mm: float, **tags) -> list:
    """Another scan of somebody larger: its slices lie between those of the first."""
    for image in images:
        x, y, z = image.ImagePositionPatient
        image.ImagePositionPatient = [x, y, z + up_mm]
        image.PixelData = np.roll(np.frombuffer(image.PixelData, "<i2"), 64 * 7 + 5).tobytes()
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        for name, value in tags.items():
            setattr(image, name, value)
    return images


@pytest.mark.parametrize("up_mm", [2.5, 2.0, 1.3, 0.3, 0.03])
def test_two_patients_in_one_series_are_refused(make_ct, make_series, save_series, tmp_path, up_mm) -> None:
    images = make_series(make_ct(), PatientID="A")
    others = shifted(make_series(make_ct()), up_mm, PatientID="B")
    assert refusal(save_series([*images, *others], tmp_path / "s")).code == "dicom-mixed-patients"


@pytest.mark.parametrize("up_mm", [2.5, 2.0, 1.3, 0.3, 0.03])
def test_interleaved_acquisitions_are_told_apart(make_ct, make_series, save_series, tmp_path, up_mm) -> None:
    images = make_series(make_ct(), AcquisitionNumber=1)
    others = shifted(make_series(make_ct()), up_mm, AcquisitionNumber=2)[:-1]
    loaded = load_ct(save_series([*images, *others], tmp_path / "s"))
    assert np.array_equal(loaded.require()[0].voxels, make_ct().voxels)
    assert "split-acquisition" in [warning.code for warning in loaded.report.warnings]


@pytest.mark.parametrize(
    ("up_mm", "code"),
    [
        (2.5, "ct-interleaved"),
        (2.0, "ct-interleaved"),
        (1.3, "ct-interleaved"),
        (0.3, "dicom-uneven-spacing"),
        (0.03, "dicom-uneven-spacing"),
    ],
)
def test_interleaved_slices_that_nothing_tells_apart_are_refused(
    make_ct, make_series, save_series, tmp_path, up_mm, code
) -> None:
    others = shifted(make_series(make_ct()), up_mm)
    assert refusal(save_series([*make_series(make_ct()), *others], tmp_path / "s")).code == code


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, {"ImageType": ["DERIVED", "SECONDARY"]}),
        ({"FrameOfReferenceUID": "1.2.9.1"}, {"FrameOfReferenceUID": "1.2.9.2"}),
    ],
)
def test_other_kinds_and_frames_are_not_mixed_in(
    make_ct, make_series, save_series, tmp_path, ours, theirs
) -> None:
    images = make_series(make_ct(), **ours)
    others = shifted(make_series(make_ct()), 2.5, **theirs)[:20]
    loaded = load_ct(save_series([*images, *others], tmp_path / "s"))
    assert np.array_equal(loaded.require()[0].voxels, make_ct().voxels)
    assert "20 more images" in str(next(w for w in loaded.report.warnings if w.code == "split-acquisition"))


def test_half_a_chest_of_each_of_two_frames_is_no_whole_chest(
    make_ct, make_series, save_series, tmp_path
) -> None:
    images = make_series(make_ct())
    for k, image in enumerate(images):
        image.FrameOfReferenceUID = "1.2.9.1" if k < 18 else "1.2.9.2"
    assert refusal(save_series(images, tmp_path / "s")).code == "ct-incomplete-chest"


def test_a_part_of_a_series_can_be_named_by_its_own_key(make_ct, make_series, save_series, tmp_path) -> None:
    first = make_series(make_ct(), AcquisitionNumber=1)
    second = shifted(make_series(make_ct()), 0.0, AcquisitionNumber=2)[:-2]
    folder = save_series([*first, *second], tmp_path / "s")
    keys = [series.key for series in load_ct(folder).report.series]
    assert keys[1] == f"{keys[0]}-2"
    assert [s.chosen for s in load_ct(folder, series=keys[1]).report.series] == [False, True]


def test_thin_slices_with_one_missing_come_before_thick_ones(
    make_ct, make_series, save_series, tmp_path
) -> None:
    thin = make_series(make_ct((72, 64, 64), (2.5, 5.5, 5.5)), SeriesInstanceUID="1.2.1", SeriesNumber=1)
    del thin[30]
    save_series(thin, tmp_path / "study" / "thin")
    save_series(make_series(make_ct(), SeriesInstanceUID="1.2.2"), tmp_path / "study" / "thick")
    report = load_ct(tmp_path / "study").report
    assert report.shape[0] == 72
    assert report.series[1].reason == "thicker slices than the chosen series"


# -- slices that got lost ---------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", bytes(3000)])
def test_blank_files_among_images_are_damaged_ones(make_ct, dicom_folder, content) -> None:
    (dicom_folder / "im0000").write_bytes(content)
    report = load_ct(dicom_folder).report
    assert report.verdict is Verdict.WARNING
    assert "1 damaged" in report.warnings[0].text


@pytest.mark.parametrize(
    "tags",
    [
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]},
        {"Modality": "MR"},
        {"PixelSpacing": [1.0, 1.0]},
    ],
)
def test_an_odd_image_of_the_series_is_left_out_with_a_warning(
    make_ct, make_series, save_series, tmp_path, tags
) -> None:
    images = make_series(make_ct())
    odd = make_series(make_ct(), **tags)[12]
    report = load_ct(save_series([*images[:12], odd, *images[13:]], tmp_path / "s")).report
    assert report.verdict is Verdict.WARNING
    assert report.interpolated_slices == (12,)
    assert "1 more image" in next(w.text for w in report.warnings if w.code == "split-acquisition")


@pytest.mark.parametrize("word", ["YES", "yes ", "UNKNOWN"])
def test_an_image_with_burned_in_text_in_the_series_refuses_it(
    make_ct, make_series, save_series, tmp_path, word
) -> None:
    images = make_series(make_ct())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images[35].BurnedInAnnotation = word
    assert refusal(save_series(images, tmp_path / "s")).code == "dicom-burned-in"


def test_repairs_that_change_voxels_put_the_verdict_in_doubt(
    make_ct, make_series, save_series, tmp_path
) -> None:
    images = make_series(make_ct())
    del images[10]
    assert load_ct(save_series(images, tmp_path / "s")).report.verdict is Verdict.WARNING


def test_another_unit_than_hounsfield_is_warned_of(make_ct, make_series, save_series, tmp_path) -> None:
    report = load_ct(save_series(make_series(make_ct(), RescaleType="US"), tmp_path / "s")).report
    assert [warning.code for warning in report.warnings] == ["rescale-type"]


def test_phases_with_a_time_per_slice_are_refused_as_duplicates(
    make_ct, make_series, save_series, tmp_path
) -> None:
    images = make_series(make_ct())
    others = shifted(make_series(make_ct()), 0.0)
    for second, image in enumerate([*images, *others]):
        image.AcquisitionTime = f"10{second // 60:02}{second % 60:02}"
    assert refusal(save_series([*images, *others], tmp_path / "s")).code == "dicom-duplicate-slices"
