# SPDX-License-Identifier: Apache-2.0
"""De-identification of folders: names, formats, damage, and what the report says."""

import gzip
import json
import logging
import os
import tracemalloc
import warnings
import zlib
from datetime import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
)

from ucadi.cli.main import main
from ucadi.deid import files
from ucadi.errors import ConfigError, DataError
from ucadi.imaging.volume import Volume
from ucadi.io.dicom_write import SeriesHeader, write_ct_series
from ucadi.io.nifti import read_nifti, write_nifti
from ucadi.io.reader import load_ct
from ucadi.workflows.deidentify import deidentify, describe_deid, make_key

NAME = "QUXFORD"


@pytest.fixture
def key_file(tmp_path) -> Path:
    make_key(tmp_path / "site.key")
    return tmp_path / "site.key"


def make_archive(volume: Volume, folder: Path) -> Path:
    """Write a site's folder of one patient, whose names of folders and files say who it is."""
    series = folder / f"{NAME}^ZELDA 19230417"
    paths = write_ct_series(volume, series, SeriesHeader(NAME, f"{NAME} study", "SIEMENS", "B70f"))
    for number, path in enumerate(paths):
        path.rename(series / f"{NAME}_{number:03d}.dcm")
    return folder


@pytest.fixture
def archive(make_ct, tmp_path) -> Path:
    """A site's folder of one patient with four images."""
    return make_archive(make_ct((4, 64, 64)), tmp_path / "archive")


def all_bytes(folder: Path) -> bytes:
    """Paths and contents of all files, packed ones also expanded."""
    found = []
    for path in sorted(folder.rglob("*")):
        found.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            content = path.read_bytes()
            found += [content, gzip.decompress(content)] if path.suffix == ".gz" else [content]
    return b"\n".join(found)


def save(path: Path, sop_class: str, **values: object) -> None:
    """Write a DICOM object that is no CT."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, sop_class
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = Dataset()
    dataset.file_meta, dataset.SOPClassUID, dataset.SOPInstanceUID = meta, sop_class, "1.2.3"
    dataset.PatientName = NAME
    for name, value in values.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def pdf(folder: Path) -> None:
    save(folder / "report.dcm", EncapsulatedPDFStorage, EncapsulatedDocument=b"%PDF " + NAME.encode())


def capture(folder: Path) -> None:
    save(folder / "capture.dcm", SecondaryCaptureImageStorage, Modality="CT")


def directory(folder: Path) -> None:
    save(folder / "DICOMDIR", MediaStorageDirectoryStorage)


def text(folder: Path) -> None:
    (folder / f"{NAME}.txt").write_text(f"{NAME} was here")


def nrrd(folder: Path) -> None:
    (folder / "ct.nrrd").write_bytes(b"NRRD0004\n# " + NAME.encode())


def truncated(folder: Path) -> None:
    path = next(folder.rglob("*_000.dcm"))
    path.write_bytes(path.read_bytes()[:-500])


def twice(folder: Path) -> None:
    path = next(folder.rglob("*_000.dcm"))
    (folder / "copy.dcm").write_bytes(path.read_bytes())


LEFT_OUT = {
    pdf: "dicom-not-ct",
    capture: "dicom-not-ct",
    directory: "dicom-not-ct",
    text: "input-unsupported",
    nrrd: "deid-convert",
    truncated: "dicom-undecodable",
    twice: "deid-duplicate",
}


def test_a_series_reads_as_before_and_nothing_names_the_patient(make_ct, key_file, tmp_path):
    archive = make_archive(make_ct(), tmp_path / "archive")
    report = deidentify(archive, tmp_path / "out", key_file)
    before, after = load_ct(archive), load_ct(tmp_path / "out")
    np.testing.assert_array_equal(after.require()[0].voxels, before.require()[0].voxels)
    np.testing.assert_array_equal(after.require()[0].grid.affine_lps, before.require()[0].grid.affine_lps)
    content = all_bytes(tmp_path / "out")
    assert [word for word in (NAME, NAME.lower(), "ZELDA", "19230417") if word.encode() in content] == []
    assert report.written == {"DICOM": 36}
    assert list(report.patients.values()) == [36]
    assert report.left_out == {}


def test_a_patients_studies_stay_together_and_days_apart(make_ct, key_file, tmp_path):
    for day in (1, 11):
        header = SeriesHeader(NAME, f"study {day}", "GE", "LUNG", acquired_at=datetime(2020, 3, day, 9, 30))
        write_ct_series(make_ct((2, 64, 64)), tmp_path / f"in/{day}", header)
    report = deidentify(tmp_path / "in", tmp_path / "out", key_file)
    assert len(report.patients) == 1
    images = [dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
    days = sorted({np.datetime64(f"{i.StudyDate[:4]}-{i.StudyDate[4:6]}-{i.StudyDate[6:]}") for i in images})
    assert (days[1] - days[0]).astype(int) == 10
    assert len({image.StudyInstanceUID for image in images}) == 2
    assert {image.StudyTime for image in images} == {"09"}


def test_the_same_key_writes_the_same_files_and_another_key_none_of_them(archive, key_file, tmp_path):
    make_key(tmp_path / "other.key")
    for name, key in (("a", key_file), ("b", key_file), ("c", tmp_path / "other.key")):
        deidentify(archive, tmp_path / name, key)
    names = [{p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")} for n in "abc"]
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")
    assert not names[0] & names[2]


@pytest.mark.parametrize("fault", LEFT_OUT, ids=lambda fault: fault.__name__)
def test_what_cannot_be_cleaned_is_counted_and_left_out(archive, key_file, tmp_path, fault):
    fault(archive)
    report = deidentify(archive, tmp_path / "out", key_file)
    assert report.left_out == {LEFT_OUT[fault]: 1}
    assert report.damaged == (fault is truncated)
    said = describe_deid(report) + json.dumps(report.to_json())
    assert NAME not in said
    assert LEFT_OUT[fault] in said
    assert NAME.encode() not in all_bytes(tmp_path / "out")


def test_images_without_a_patients_id_are_told(archive, key_file, tmp_path):
    for path in archive.rglob("*.dcm"):
        image = dcmread(path)
        image.PatientID = ""
        image.save_as(path)
    report = deidentify(archive, tmp_path / "out", key_file)
    assert report.without_id == 4
    assert len(report.patients) == 1
    assert "4 images have no PatientID" in describe_deid(report)


def test_nothing_of_a_header_reaches_logs_or_warnings(archive, key_file, tmp_path, caplog):
    for path in archive.rglob("*.dcm"):
        image = dcmread(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.SpecificCharacterSet, image.PatientAge = NAME, NAME
            image.StudyDate = NAME
            image.save_as(path)
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        deidentify(archive, tmp_path / "out", key_file)
    assert NAME not in caplog.text


# -- NIfTI ------------------------------------------------------------------------------------------------


def planted(path: Path, volume: Volume, kind: type = nib.Nifti1Image) -> None:
    """Write a NIfTI file with a name wherever its header and its container take one."""
    write_nifti(volume, path)
    plain = nib.load(path)
    image = kind(np.asanyarray(plain.dataobj), plain.affine)
    header = image.header
    header.set_xyzt_units("mm")
    for field in ("descrip", "aux_file", "intent_name"):
        header[field] = NAME
    if kind is nib.Nifti1Image:
        header["db_name"] = header["data_type"] = NAME
        header["extents"], header["glmax"] = 19230417, 19230417
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", NAME.encode()))
    header.extensions.append(nib.nifti1.Nifti1Extension("dicom", NAME.encode()))
    content = image.to_bytes() + NAME.encode()
    if path.suffix == ".gz":
        with path.open("wb") as file, gzip.GzipFile(f"{NAME}.nii", "wb", fileobj=file, mtime=1e9) as packed:
            packed.write(content)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_nifti_file_keeps_its_volume_only(make_ct, key_file, tmp_path, kind, suffix):
    source = tmp_path / "in" / f"{NAME}_1923{suffix}"
    source.parent.mkdir()
    planted(source, make_ct(), kind)
    assert NAME.encode() in all_bytes(source.parent)
    report = deidentify(source.parent, tmp_path / "out", key_file)
    content = all_bytes(tmp_path / "out")
    assert NAME.encode() not in content
    assert (19230417).to_bytes(4, "little") not in content
    (found,) = (tmp_path / "out").iterdir()
    assert found.name.endswith(suffix)
    assert suffix == ".nii" or found.read_bytes()[3:8] == bytes(5)  # no name, no time
    assert report.written == {"NIfTI": 1}
    before, after = read_nifti(source), read_nifti(found)
    np.testing.assert_array_equal(after.voxels, before.voxels)
    np.testing.assert_array_equal(after.grid.affine_lps, before.grid.affine_lps)


def test_a_cleaned_nifti_file_is_written_the_same_again(make_ct, key_file, tmp_path):
    planted(tmp_path / "ct.nii.gz", make_ct())
    deidentify(tmp_path / "ct.nii.gz", tmp_path / "once", key_file)
    deidentify(tmp_path / "once", tmp_path / "twice", key_file)
    assert all_bytes(tmp_path / "once") == all_bytes(tmp_path / "twice")


@pytest.mark.parametrize("keep", [100, 348, 5000])
def test_a_nifti_file_that_is_cut_short_is_left_out(make_ct, key_file, tmp_path, keep):
    write_nifti(make_ct(), tmp_path / "ct.nii")
    (tmp_path / "ct.nii").write_bytes((tmp_path / "ct.nii").read_bytes()[:keep])
    with pytest.raises(DataError) as refused:
        deidentify(tmp_path / "ct.nii", tmp_path / "out", key_file)
    assert refused.value.code == "deid-nothing"
    assert not (tmp_path / "out").exists()


def add_zeros(path: Path, mebibytes: int) -> None:
    """Append zeros to what a gzip file holds, as a stream of its own."""
    with gzip.open(path, "ab", compresslevel=1) as file:
        for _ in range(mebibytes):
            file.write(bytes(2**20))


def test_what_follows_the_voxels_without_end_is_not_taken_into_memory(make_ct, archive, key_file, tmp_path):
    write_nifti(make_ct((4, 16, 16)), archive / "ct.nii.gz")
    add_zeros(archive / "ct.nii.gz", 64)
    tracemalloc.start()
    report = deidentify(archive, tmp_path / "out", key_file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.left_out == {"input-unreadable": 1}
    assert report.damaged == 1
    assert peak < 32 * 2**20


def test_many_voxels_are_not_taken_into_memory_at_once(key_file, tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, 256))
    header.set_data_dtype(np.int16)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    with gzip.open(tmp_path / "ct.nii.gz", "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
    add_zeros(tmp_path / "ct.nii.gz", 128)
    tracemalloc.start()
    report = deidentify(tmp_path / "ct.nii.gz", tmp_path / "out", key_file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.written == {"NIfTI": 1}
    assert peak < 32 * 2**20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("datatype", 77),
        ("vox_offset", 100),
        ("vox_offset", np.nan),
        ("dim", [3, 2**14, 2**14, 2**14, 0, 0, 0, 0]),
    ],
)
def test_a_nifti_header_that_cannot_be_true_is_a_damaged_file(
    field, value, make_ct, archive, key_file, tmp_path
):
    write_nifti(make_ct((4, 16, 16)), tmp_path / "ct.nii")
    content = (tmp_path / "ct.nii").read_bytes()
    header = nib.Nifti1Header(content[:348])
    header[field] = value
    (archive / "ct.nii").write_bytes(header.binaryblock + content[348:])
    report = deidentify(archive, tmp_path / "out", key_file)
    assert report.written == {"DICOM": 4}
    assert report.left_out.total() == 1


# -- damage and links -------------------------------------------------------------------------------------


def deflated(image: Dataset, path: Path, *, zeros: int = 0) -> None:
    """Write an image deflated, with zeros behind its elements."""
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    plain = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(content[:start] + deflate.compress(plain + bytes(zeros)) + deflate.flush())


def test_a_deflated_image_is_cleaned_and_one_that_expands_without_measure_is_damaged(
    archive, key_file, tmp_path
):
    good, bad, *_ = sorted(archive.rglob("*.dcm"))
    pixels = dcmread(good).pixel_array
    deflated(dcmread(good), good)
    deflated(dcmread(bad), bad, zeros=2**24)
    report = deidentify(archive, tmp_path / "out", key_file)
    assert report.written == {"DICOM": 3}
    assert report.left_out == {"input-unreadable": 1}
    images = [dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
    assert any(np.array_equal(image.pixel_array, pixels) for image in images)
    assert NAME.encode() not in all_bytes(tmp_path / "out")


def test_a_file_that_takes_more_memory_than_there_is_is_left_out(archive, key_file, tmp_path, monkeypatch):
    clean, calls = files.deidentify_dicom, []

    def short_of_memory(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return clean(*arguments)

    monkeypatch.setattr(files, "deidentify_dicom", short_of_memory)
    report = deidentify(archive, tmp_path / "out", key_file)
    assert report.written == {"DICOM": 3}
    assert report.left_out == {"input-unreadable": 1}


def test_a_file_larger_than_any_image_is_not_read(archive, key_file, tmp_path):
    path = next(archive.rglob("*_000.dcm"))
    os.truncate(path, 2**31 + 1)  # takes no room on the disk
    report = deidentify(archive, tmp_path / "out", key_file)
    assert report.written == {"DICOM": 3}
    assert report.damaged == 1


def test_links_inside_the_input_are_not_followed(archive, key_file, tmp_path):
    image = next(archive.rglob("*_000.dcm"))
    (archive / "again.dcm").symlink_to(image)
    os.mkfifo(archive / "pipe")
    assert deidentify(archive, tmp_path / "out", key_file).written == {"DICOM": 4}
    (tmp_path / "elsewhere.dcm").write_bytes(image.read_bytes())
    (archive / "outside.dcm").symlink_to(tmp_path / "elsewhere.dcm")
    with pytest.raises(DataError) as refused:
        deidentify(archive, tmp_path / "out2", key_file)
    assert refused.value.code == "input-links"


def test_a_folder_with_files_without_end_is_refused(archive, key_file, tmp_path, monkeypatch):
    monkeypatch.setattr("ucadi.io.files.MAX_ENTRIES", 3)
    with pytest.raises(DataError) as refused:
        deidentify(archive, tmp_path / "out", key_file)
    assert refused.value.code == "input-too-costly"


# -- the output -------------------------------------------------------------------------------------------


def test_nothing_is_left_behind_when_no_file_can_be_written(key_file, tmp_path):
    (tmp_path / "in").mkdir()
    text(tmp_path / "in")
    with pytest.raises(DataError) as refused:
        deidentify(tmp_path / "in", tmp_path / "out", key_file)
    assert refused.value.code == "deid-nothing"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "site.key"]


def test_a_stopped_run_leaves_the_old_result(archive, key_file, tmp_path):
    deidentify(archive, tmp_path / "out", key_file)
    before = all_bytes(tmp_path / "out")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deidentify(archive, tmp_path / "out", key_file, on_progress=stop)
    assert all_bytes(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "out", "site.key"]


def test_an_output_inside_the_input_is_refused(archive, key_file):
    with pytest.raises(ConfigError) as refused:
        deidentify(archive, archive / "out", key_file)
    assert refused.value.code == "output-in-input"


def test_a_missing_input_is_refused(key_file, tmp_path):
    with pytest.raises(DataError) as refused:
        deidentify(tmp_path / "nowhere", tmp_path / "out", key_file)
    assert refused.value.code == "input-not-found"


# -- the command ------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run `ucadi dicom deid` and return its status and what it said."""
    status = main(["dicom", "deid", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_makes_a_key_once_and_reports_counts(archive, tmp_path, capsys):
    key = tmp_path / "new.key"
    status, out, err = run(capsys, archive, tmp_path / "out", "--key-file", key, "--new-key", "--json")
    assert (status, json.loads(out)["written"]) == (0, {"DICOM": 4})
    again, _, refused = run(capsys, archive, tmp_path / "out2", "--key-file", key, "--new-key")
    assert again == 2
    assert "never overwritten" in refused
    assert NAME not in out + err


@pytest.mark.parametrize("fault", ["no input", "no image", "output in input", "output is there", "link"])
def test_a_command_that_fails_leaves_no_key_behind(fault, archive, tmp_path, capsys):
    source, out, key = archive, tmp_path / "out", tmp_path / "new.key"
    if fault == "no input":
        source = tmp_path / "nowhere"
    elif fault == "no image":
        source = tmp_path / "texts"
        source.mkdir()
        text(source)
    elif fault == "output in input":
        out = archive / "out"
    elif fault == "output is there":
        out.mkdir()
        text(out)
    else:
        (archive / "x").symlink_to("/")
    assert run(capsys, source, out, "--key-file", key, "--new-key")[0] in (2, 3)
    assert not key.exists()
    for path in (archive / "x", out / f"{NAME}.txt"):
        path.unlink(missing_ok=True)
    assert run(capsys, archive, tmp_path / "out", "--key-file", key, "--new-key")[0] == 0
    assert key.exists()


def test_a_key_that_was_there_outlives_a_command_that_fails(archive, key_file, tmp_path, capsys):
    before = key_file.read_bytes()
    for source in (archive, tmp_path / "nowhere"):
        assert run(capsys, source, tmp_path / "out", "--key-file", key_file, "--new-key")[0] != 0
    (tmp_path / "texts").mkdir()
    assert run(capsys, tmp_path / "texts", tmp_path / "out", "--key-file", key_file)[0] == 3
    assert key_file.read_bytes() == before


def test_the_command_refuses_a_missing_key_and_an_output_that_is_there(archive, key_file, tmp_path, capsys):
    status, _, err = run(capsys, archive, tmp_path / "out", "--key-file", tmp_path / "no.key")
    assert status == 2
    assert "--new-key" in err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert run(capsys, archive, tmp_path / "full", "--key-file", key_file, "--force")[0] == 2
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_the_command_never_puts_the_key_into_the_output(archive, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    key = tmp_path / "out" / "site.key"
    status, _, err = run(capsys, archive, tmp_path / "out", "--key-file", key, "--new-key")
    assert status == 2
    assert "output-exists" in err
    assert not key.exists()


def test_the_commands_status_tells_of_damaged_files(archive, key_file, tmp_path, capsys):
    truncated(archive)
    status, out, _ = run(capsys, archive, tmp_path / "out", "--key-file", key_file)
    assert status == 3
    assert "3 DICOM files" in out


def test_a_result_of_ucadi_is_replaced_with_force(archive, key_file, tmp_path, capsys):
    arguments = (archive, tmp_path / "out", "--key-file", key_file)
    assert run(capsys, *arguments)[0] == 0
    assert run(capsys, *arguments)[0] == 2
    assert run(capsys, *arguments, "--force")[0] == 0
