# SPDX-License-Identifier: Apache-2.0
import gzip
import io
import json
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume
from ucadi.io import files
from ucadi.io.nifti import write_nifti
from ucadi.io.reader import load_ct
from ucadi.io.report import Verdict
from ucadi.workflows.inspect import describe, inspect_ct


def zip_folder(folder, path, compression=zipfile.ZIP_DEFLATED, prefix="") -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)


@pytest.mark.parametrize("prefix", ["", "study/series/", "../../../", "/etc/"])
def test_zip_of_a_series_gives_the_same_volume_whatever_its_names(
    make_ct, dicom_folder, tmp_path, prefix
) -> None:
    (tmp_path / "box").mkdir()
    zip_folder(dicom_folder, tmp_path / "box" / "upload", prefix=prefix)
    volume, _ = load_ct(tmp_path / "box" / "upload").require()
    assert np.array_equal(volume.voxels, make_ct().voxels)
    assert [path.name for path in (tmp_path / "box").iterdir()] == ["upload"]


def code_of(path) -> str:
    loaded = load_ct(path)
    assert loaded.report.verdict is Verdict.REFUSED
    assert loaded.report.reason
    assert loaded.report.cure
    return loaded.report.code


def test_bomb_is_refused_by_its_ratio(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("a.dcm", bytes(50_000_000))
    assert (tmp_path / "b.zip").stat().st_size < 100_000
    assert code_of(tmp_path / "b.zip") == "archive-unsafe"


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_ENTRIES", 35), ("MAX_TOTAL_BYTES", 100_000), ("MAX_ENTRY_BYTES", 5000)]
)
def test_archive_beyond_a_limit_is_refused(dicom_folder, tmp_path, monkeypatch, limit, value) -> None:
    zip_folder(dicom_folder, tmp_path / "s.zip")
    monkeypatch.setattr(files, limit, value)
    assert code_of(tmp_path / "s.zip") == "archive-unsafe"


def test_encrypted_archive_is_refused(dicom_folder, tmp_path) -> None:
    zip_folder(dicom_folder, tmp_path / "s.zip")
    data = bytearray((tmp_path / "s.zip").read_bytes())
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.find(mark)
        data[at + offset] |= 1
    (tmp_path / "s.zip").write_bytes(data)
    assert code_of(tmp_path / "s.zip") == "archive-unsafe"


def test_archive_inside_an_archive_is_not_opened(dicom_folder, tmp_path) -> None:
    zip_folder(dicom_folder, tmp_path / "inner.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(tmp_path / "inner.zip", "inner.zip")
    assert code_of(tmp_path / "outer.zip") == "dicom-none"
    assert "zip archive" in load_ct(tmp_path / "outer.zip").report.reason


def test_entry_whose_size_is_a_lie_is_not_expanded_beyond_it(dicom_folder, tmp_path) -> None:
    zip_folder(dicom_folder, tmp_path / "s.zip")
    data = bytearray((tmp_path / "s.zip").read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = (400).to_bytes(4, "little")
    (tmp_path / "s.zip").write_bytes(data)
    report = load_ct(tmp_path / "s.zip").report
    assert report.verdict is Verdict.WARNING
    assert "damaged-files" in [warning.code for warning in report.warnings]


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_archive_is_refused(dicom_folder, tmp_path, keep) -> None:
    zip_folder(dicom_folder, tmp_path / "s.zip")
    data = (tmp_path / "s.zip").read_bytes()
    (tmp_path / "s.zip").write_bytes(data[: int(len(data) * keep)])
    assert code_of(tmp_path / "s.zip") == "input-unreadable"


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.bin"])
def test_nifti_is_read_with_its_lungs(make_ct, tmp_path, name) -> None:
    write_nifti(make_ct(), tmp_path / name)
    loaded = load_ct(str(tmp_path / name))
    volume, lungs = loaded.require()
    assert np.array_equal(volume.voxels, make_ct().voxels)
    assert lungs.grid is volume.grid
    assert [series.key for series in loaded.report.series] == ["nifti"]


def test_padding_in_a_nifti_file_becomes_minus_1024(make_ct, tmp_path) -> None:
    ct = make_ct()
    voxels = ct.voxels.copy()
    voxels[:, :3] = -2048
    write_nifti(Volume(voxels, ct.grid), tmp_path / "ct.nii")
    loaded = load_ct(tmp_path / "ct.nii")
    assert (loaded.require()[0].voxels[:, :3] == -1024).all()
    assert "4.7 %" in loaded.report.repairs[0].text


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (lambda hu: np.clip((hu + 1350) / 1500 * 255, 0, 255).astype(np.uint8), "8-bit picture"),
        (lambda hu: (hu + 1024).astype(np.int16), "add -1024"),
        (lambda hu: (hu > -400).astype(np.uint8), "mask"),
        (lambda hu: (hu // 4).astype(np.int16), "air"),
    ],
)
def test_exports_that_are_not_in_hu_are_refused(make_ct, tmp_path, scale, words) -> None:
    ct = make_ct()
    write_nifti(Volume(scale(ct.voxels.astype(float)), ct.grid), tmp_path / "ct.nii")
    assert code_of(tmp_path / "ct.nii") == "ct-not-hu"
    assert words in load_ct(tmp_path / "ct.nii").report.reason


def test_nifti_of_15_slices_is_refused(make_ct, tmp_path) -> None:
    write_nifti(make_ct((15, 64, 64), (11.0, 5.5, 5.5)), tmp_path / "ct.nii")
    assert code_of(tmp_path / "ct.nii") == "volume-too-few-slices"


def test_slices_far_apart_are_warned_of(make_ct, tmp_path) -> None:
    write_nifti(make_ct((22, 64, 64), (8.0, 5.5, 5.5)), tmp_path / "ct.nii")
    assert "8.0 mm apart" in load_ct(tmp_path / "ct.nii").report.warnings[0].text


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "PNG"),
        (b"Dear colleague,\n", "text"),
        (b"", "empty"),
        (bytes(range(256)) * 2, "unknown"),
        (gzip.compress(b"hello", mtime=0), "gzip"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, content, word) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(content)
    assert code_of(tmp_path / "scan.nii.gz") == "input-unsupported"
    assert word in load_ct(tmp_path / "scan.nii.gz").report.reason


def test_missing_path_and_empty_folder_are_refused(tmp_path) -> None:
    assert code_of(tmp_path / "nowhere") == "input-not-found"
    assert code_of("a\0b") == "input-not-found"
    assert code_of(tmp_path) == "dicom-none"


def test_folder_of_pictures_is_refused_with_what_is_there(tmp_path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert code_of(tmp_path) == "dicom-none"
    assert "3 times a PNG picture" in load_ct(tmp_path).report.reason


def test_one_dicom_file_is_judged_alone(dicom_folder) -> None:
    assert code_of(dicom_folder / "im0000") == "dicom-too-few-slices"
    assert load_ct(dicom_folder / "im0000").report.series[0].slices == 1


def test_unreadable_file_is_refused(tmp_path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert load_ct(tmp_path / "loop").report.verdict is Verdict.REFUSED


def test_body_without_lungs_is_refused(make_ct, tmp_path) -> None:
    ct = make_ct()
    body = np.where((ct.voxels < -400) & (np.abs(np.arange(64) - 31.5) < 26), 40, ct.voxels).astype(np.int16)
    write_nifti(Volume(body, ct.grid), tmp_path / "ct.nii")
    assert code_of(tmp_path / "ct.nii") == "ct-no-chest"


def test_refusal_after_reading_keeps_shape_and_series(make_ct, tmp_path) -> None:
    write_nifti(
        Volume(make_ct().voxels[14:], Grid.from_spacing((22, 64, 64), (5.0, 5.5, 5.5))), tmp_path / "c"
    )
    report = inspect_ct(tmp_path / "c")
    assert report.code == "ct-incomplete-chest"
    assert report.shape == (22, 64, 64)
    assert report.series[0].chosen
    text = describe(report)
    assert "refused (ct-incomplete-chest)" in text
    assert report.cure in text


def test_description_tells_verdict_series_size_and_what_was_left_out(
    make_ct, make_series, save_series, tmp_path
) -> None:
    scout = make_series(make_ct(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])[0]
    images = make_series(make_ct())
    folder = save_series([*images, images[3], scout], tmp_path / "s")
    text = describe(inspect_ct(folder))
    assert text.splitlines()[0].endswith("ok")
    assert "36 x 64 x 64 voxels of 5.00 x 5.50 x 5.50 mm = 180 x 352 x 352 mm" in text
    assert "twice" in text
    assert "localizer" in text


@pytest.fixture(scope="module")
def seeds(make_ct, make_series, tmp_path_factory) -> list[bytes]:
    """Whole inputs to damage: a NIfTI file, its compressed form, a DICOM file and a zip of a series."""
    folder = tmp_path_factory.mktemp("seeds")
    write_nifti(make_ct((16, 16, 16), (11.0, 22.0, 22.0)), folder / "ct.nii")
    images = make_series(make_ct((16, 16, 16), (11.0, 22.0, 22.0)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for k, image in enumerate(images):
            single = io.BytesIO()
            image.save_as(single, enforce_file_format=True)
            archive.writestr(str(k), single.getvalue())
    nii = (folder / "ct.nii").read_bytes()
    return [nii, gzip.compress(nii, 1), single.getvalue(), buffer.getvalue()]


@given(data=st.data())
def test_damaged_bytes_never_raise_and_give_a_report(seeds, tmp_path_factory, data) -> None:
    seed = bytearray(data.draw(st.sampled_from([*seeds, b"", b"DICM", b"PK\x03\x04"])))
    for _ in range(data.draw(st.integers(0, 12))):
        if seed:
            at = data.draw(st.integers(0, min(len(seed), 1200) - 1))
            seed[at] = data.draw(st.integers(0, 255))
    seed += data.draw(st.binary(max_size=40))
    keep = data.draw(st.integers(0, len(seed)))
    path = tmp_path_factory.mktemp("fuzz") / "input"
    path.write_bytes(seed if data.draw(st.booleans()) else seed[:keep])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = load_ct(path).report
    json.dumps(report.to_json())
    assert describe(report)


@given(content=st.binary(max_size=600))
def test_random_bytes_after_any_magic_never_raise(tmp_path_factory, content) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "input"
    for head in (
        b"",
        bytes(128) + b"DICM",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"\x5c\x01\0\0" + bytes(340) + b"n+1\0",
    ):
        path.write_bytes(head + content)
        assert load_ct(path).report.verdict is Verdict.REFUSED
