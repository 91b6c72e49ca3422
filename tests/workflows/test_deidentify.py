# SPDX-License-Identifier: Apache-2.0
"""De-identification of folders: names, formats, damage, and what the report says."""

import gzip
import json
import logging
import warnings
from datetime import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
)

from ucadi.cli.main import main
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
