# SPDX-License-Identifier: Apache-2.0
"""Imports of real files: DICOM of several patients in one folder, a zip, NIfTI with masks."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom import dcmread

from ucadi.cli.main import main
from ucadi.cohorts.cohort import read_cohort
from ucadi.deid.key import make_key_file, read_key_file
from ucadi.imaging.volume import Volume
from ucadi.io.dicom_write import SeriesHeader, write_ct_series
from ucadi.io.nifti import read_nifti, write_nifti
from ucadi.io.reader import load_ct
from ucadi.types import FindingClass, Severity
from ucadi.workflows import cohort_convert
from ucadi.workflows.worker_reader import read_guarded

SMALL = ((18, 32, 32), (10.5, 11.0, 11.0))
LABELS = """path,study,patient,label,severity
,,MILLER-1,COVID-19,II
,,SMITH-2,healthy,
sent/smith.zip,,SMITH-3,Other viral,
single/doe.nii.gz,,DOE-4,BACTERIAL,
"""
IDENTIFIERS = ("MILLER", "SMITH", "DOE", "miller", "smith", "doe", "1.2.826", "20200101")


@pytest.fixture(scope="module")
def scan(make_ct):
    """Builds one patient's CT: another number, other voxels."""
    ct = make_ct(*SMALL)
    return lambda number: Volume(ct.voxels + np.int16(number), ct.grid)


@pytest.fixture(scope="module")
def send(scan):
    """Writes one patient's DICOM study into a folder and returns its files."""

    def write(folder: Path, patient: str, study: str, number: int):
        return write_ct_series(scan(number), folder, SeriesHeader(patient, study, "M", "K"))

    return write


@pytest.fixture(scope="module")
def lesion(scan):
    """A mask of eight voxels on the scans' grid."""
    grid = scan(0).grid
    voxels = np.zeros(grid.shape, np.bool_)
    voxels[8:10, 16:18, 23:25] = True
    return Volume(voxels, grid)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory, send, scan, lesion):
    """A folder with a key, a source, and the cohort that was imported from it.

    Two patients are mixed in one folder, beside them the first one's later study, a zip of a third and NIfTI
    of a fourth patient.
    """
    place = tmp_path_factory.mktemp("hospital")
    root = place / "pacs"
    send(root / "mixed", "MILLER-1", "first", 1)
    send(root / "mixed", "SMITH-2", "first", 2)
    send(root / "later" / "deep", "MILLER-1", "second", 3)
    (root / "sent").mkdir()
    with zipfile.ZipFile(root / "sent" / "smith.zip", "w") as archive:
        for path in send(place / "zipped", "SMITH-3", "first", 4):
            archive.write(path, path.name)
    (root / "single").mkdir()
    write_nifti(scan(5), root / "single" / "doe.nii.gz")
    write_nifti(lesion, root / "single" / "doe_lesion.nii.gz")
    (root / "mixed" / "README.txt").write_text("MILLER and SMITH")
    (root / "labels.csv").write_text(LABELS)
    make_key_file(place / "key")
    options = ["-o", place / "cohort", "--key-file", place / "key", "--labels", root / "labels.csv"]
    assert main(["cohort", "import", *map(str, [root, *options, "--jobs", "1"])]) == 0
    return place


@pytest.fixture
def source(hospital, tmp_path):
    """A copy of the source, beside the key; nothing is imported from it yet."""
    shutil.copy2(hospital / "key", tmp_path / "key")
    return shutil.copytree(hospital / "pacs", tmp_path / "pacs")


@pytest.fixture
def imported(source, hospital, tmp_path):
    """The cohort that was imported from the source."""
    shutil.copytree(hospital / "cohort", tmp_path / "cohort")
    return read_cohort(tmp_path / "cohort")


@pytest.fixture
def run(capsys, tmp_path):
    """Runs `ucadi cohort import` in this process; returns status, stdout and stderr."""

    def start(source, *options, labels=None):
        named = [] if source.suffix == ".csv" else ["--labels", labels or source / "labels.csv"]
        arguments = ["cohort", "import", source, "-o", tmp_path / "cohort", "--key-file", tmp_path / "key"]
        status = main([*map(str, [*arguments, *named, "--jobs", "1", *options])])
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return status, seen.out, seen.err

    return start


def by_label(cohort):
    return {study.label: study for study in cohort.studies if study.label is not FindingClass.COVID_19}


def files_written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "studies").iterdir()}


# -- what comes in ----------------------------------------------------------------------------------------


def test_studies_are_told_apart_by_what_their_files_say(imported):
    labels = sorted(study.label.name for study in imported.studies)
    assert labels == ["BACTERIAL", "COVID_19", "COVID_19", "HEALTHY", "OTHER_VIRAL"]
    covid = [study for study in imported.studies if study.label is FindingClass.COVID_19]
    assert len({study.patient_key for study in covid}) == 1
    assert {study.severity for study in covid} == {Severity.II}
    assert len({study.split for study in covid}) == 1
    assert len({study.patient_key for study in imported.studies}) == 4
    assert len({study.study_key for study in imported.studies}) == 5


def test_volumes_and_masks_are_those_of_the_source(imported, scan, lesion):
    found = by_label(imported)
    for label, number in [("HEALTHY", 2), ("OTHER_VIRAL", 4), ("BACTERIAL", 5)]:
        volume = read_nifti(imported.root / found[FindingClass[label]].image)
        assert volume.voxels.dtype == np.int16
        assert volume.grid.is_close(scan(0).grid, tolerance_mm=0.02)
        np.testing.assert_array_equal(volume.voxels, scan(number).voxels)
    study = found[FindingClass.BACTERIAL]
    mask = read_nifti(imported.root / study.lesion_mask)
    np.testing.assert_array_equal(mask.voxels, lesion.voxels)
    assert study.lesion_ml == pytest.approx(8 * 10.5 * 11.0 * 11.0 / 1000.0, rel=1e-3)
    assert found[FindingClass.HEALTHY].lesion_mask == ""


def test_the_loaders_report_and_verdict_stay_with_a_study(imported):
    study = by_label(imported)[FindingClass.HEALTHY]
    record = json.loads((imported.root / "studies" / f"{study.study_key}.json").read_bytes())
    report = record["loader_report"]
    assert report["shape"] == list(SMALL[0])
    assert study.verdict == report["verdict"] in ("ok", "warning")
    assert [study.series] == [series["key"] for series in report["series"] if series["chosen"]]
    assert record["damaged"] == 0
    assert study.content_hash == record["content_hash"]


def test_nothing_in_a_cohort_names_a_patient_a_uid_or_a_path(imported, source, tmp_path):
    assert len(dcmread(next((source / "mixed").glob("*.dcm"))).PatientID) > 5  # there was something to leak
    secret = (tmp_path / "key").read_text().splitlines()[-1]
    for path in imported.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content = gzip.decompress(content)[:352] if path.suffix == ".gz" else content
            for identifier in (*IDENTIFIERS, str(source), secret):
                assert identifier.encode() not in content, f"{identifier} in {path.name}"
                assert identifier not in path.name


def test_nothing_in_a_cohort_leads_to_a_series_of_a_pacs(imported, source, tmp_path):
    headers = [dcmread(path, stop_before_pixels=True) for path in source.rglob("*.dcm")]
    uids = {header.SeriesInstanceUID for header in headers}
    keys = {hashlib.sha256(uid.encode()).hexdigest()[:8] for uid in uids}
    assert keys & {series.key for series in load_ct(source / "later").report.series}  # as in a loader report
    texts = [path.read_text() for path in imported.root.rglob("*") if path.suffix in (".csv", ".json")]
    assert not [key for key in keys if any(key in text for text in texts)]
    assert len({study.series for study in imported.studies}) == 5  # "nifti" is one of them


def test_a_refusal_quotes_no_series_either(run, source, tmp_path):
    files = sorted((source / "later").rglob("*.dcm"))
    for path in files[5:]:
        path.unlink()
    assert run(source)[0] == 0
    key = hashlib.sha256(dcmread(files[0]).SeriesInstanceUID.encode()).hexdigest()[:8]
    report = (tmp_path / "cohort" / "import-report.json").read_text()
    assert "dicom-too-few-slices" in report
    for path in (tmp_path / "cohort").rglob("*.json"):
        assert key not in path.read_text()


def test_a_patients_pseudonym_is_that_of_deidentified_dicom(imported, tmp_path):
    key = read_key_file(tmp_path / "key")
    assert by_label(imported)[FindingClass.HEALTHY].patient_key == key.patient("SMITH-2")


def test_a_table_of_paths_is_a_source_too(run, source, tmp_path):
    table = source / "studies.csv"
    table.write_text(
        "path,patient,label,mask\n"
        "later,MILLER-1,COVID_19,\n"
        "single/doe.nii.gz,DOE-4,BACTERIAL,single/doe_lesion.nii.gz\n"
    )
    status, _, err = run(table)
    assert status == 0, err
    cohort = read_cohort(tmp_path / "cohort")
    assert sorted(study.label.name for study in cohort.studies) == ["BACTERIAL", "COVID_19"]
    assert [bool(study.lesion_mask) for study in cohort.studies if study.label is FindingClass.BACTERIAL] == [
        True
    ]


# -- what stays out ---------------------------------------------------------------------------------------


def test_a_study_without_label_is_told_on_the_screen_but_its_place_is_not_kept(run, source, tmp_path):
    (source / "labels.csv").write_text("patient,label\nMILLER-1,COVID_19\n")
    status, out, err = run(source)
    assert status == 0
    assert "2 of 5 studies imported" in out
    assert "doe.nii.gz" in err
    assert "left out: 3 x cohort-label" in err
    report = (tmp_path / "cohort" / "import-report.json").read_text()
    assert "doe" not in report
    left_out = json.loads(report)["left_out"]
    assert [study["code"] for study in left_out] == ["cohort-label"] * 3
    assert all(study["cure"] and study["reason"] for study in left_out)


def test_a_refused_scan_is_told_under_the_readers_code(run, source, imported, tmp_path, scan):
    few = scan(6)
    write_nifti(
        Volume(few.voxels[:9], few.grid.crop((slice(0, 9), slice(0, 32), slice(0, 32)))), source / "few.nii"
    )
    with (source / "labels.csv").open("a") as file:
        file.write("few.nii,,FEW,HEALTHY,\n")
    status, out, err = run(source, "--json")
    assert status == 0
    (left_out,) = json.loads(out)["left_out"]
    assert left_out["code"] == "volume-too-few-slices"
    assert "9 slices" in left_out["reason"]
    assert "few.nii" in err
    assert not (tmp_path / "cohort" / "studies" / f"{left_out['study_key']}.nii.gz").exists()


def test_the_same_scan_under_another_name_and_patient_is_left_out(run, source, imported, scan):
    write_nifti(scan(5), source / "twin.nii")
    with (source / "labels.csv").open("a") as file:
        file.write("twin.nii,,OTHER,BACTERIAL,\n")
    status, out, _ = run(source, "--json")
    assert status == 0
    (left_out,) = json.loads(out)["left_out"]
    assert left_out["code"] == "cohort-duplicate"
    assert "another patient" in left_out["reason"]


@pytest.mark.parametrize(
    ("label", "change", "word"),
    [
        ("COVID_19", lambda mask: np.zeros_like(mask), "empty"),
        ("HEALTHY", lambda mask: mask, "holds lesions"),
        ("COVID_19", lambda mask: mask[:-1], "grid"),
        ("COVID_19", lambda mask: np.where(mask, np.arange(mask.shape[2], dtype=np.int16), 0), "values"),
    ],
)
def test_a_mask_that_does_not_fit_keeps_its_study_out(run, source, lesion, label, change, word):
    voxels = change(lesion.voxels)
    grid = lesion.grid.crop(tuple(slice(0, n) for n in voxels.shape))
    write_nifti(Volume(voxels, grid), source / "single" / "doe_lesion.nii.gz")
    (source / "labels.csv").write_text(f"path,patient,label\nsingle/doe.nii.gz,D,{label}\nlater,M,COVID_19\n")
    status, out, _ = run(source, "--json")
    assert status == 0
    document = json.loads(out)
    assert document["imported"] == 1
    (refused,) = [study for study in document["left_out"] if study["code"] == "cohort-mask"]
    assert word in refused["reason"]


def test_an_archive_with_two_studies_is_left_out(run, source, imported, send, tmp_path):
    with zipfile.ZipFile(source / "two.zip", "w") as archive:
        for number, patient in enumerate(["A", "B"]):
            for path in send(tmp_path / patient, patient, "first", 20 + number):
                archive.write(path, f"{patient}-{path.name}")
    status, out, _ = run(source, "--json")
    assert status == 0
    assert json.loads(out)["left_out_by_code"] == {"archive-many-studies": 1}


def test_a_study_whose_files_name_two_patients_is_left_out(run, source, imported):
    path = next((source / "later").rglob("*.dcm"))
    dataset = dcmread(path)
    dataset.PatientID = "SMITH-2"
    dataset.save_as(path)
    status, out, _ = run(source, "--json")
    assert status == 0
    assert json.loads(out)["left_out_by_code"] == {"cohort-leak": 1}


def test_a_line_for_a_folder_of_several_patients_labels_none_of_them(run, source):
    (source / "labels.csv").write_text("path,label\nmixed,COVID_19\nlater,COVID_19\n")
    status, out, err = run(source, "--json")
    assert status == 0
    assert json.loads(out)["imported"] == 1
    assert err.count("fits several patients") == 2


def test_unknown_words_end_the_import_before_it_begins_with_every_line(run, source, tmp_path):
    (source / "labels.csv").write_text("patient,label,severity\nMILLER-1,corona,\nSMITH-2,HEALTHY,I\n")
    status, _, err = run(source)
    assert status == 3
    assert "labels.csv:2" in err
    assert "'corona'" in err
    assert "labels.csv:3" in err
    assert "COVID_19" in err
    assert not (tmp_path / "cohort").exists()


def test_a_line_without_a_study_is_a_note(run, source, imported):
    with (source / "labels.csv").open("a") as file:
        file.write(",1.2.3,NOBODY,HEALTHY,\n")
    status, _, err = run(source)
    assert status == 0
    assert "labels.csv:6: note: no study was found" in err


def test_a_damaged_file_is_told(run, source, imported):
    (source / "mixed" / "broken").write_bytes(bytes(128) + b"DICM" + b"\xff" * 50)
    status, out, err = run(source, "--json")
    assert status == 0
    assert "mixed/broken: cannot be read" in err
    assert json.loads(out)["damaged_files"] == 1


def test_a_study_with_a_damaged_slice_is_no_study_without_a_flaw(run, source, imported, tmp_path):
    path = sorted((source / "later").rglob("*.dcm"))[0]
    path.write_bytes(path.read_bytes()[:400])
    assert run(source)[0] == 0
    report = json.loads((tmp_path / "cohort" / "import-report.json").read_bytes())
    assert report["damaged_files"] == 1
    records = [json.loads(path.read_bytes()) for path in (tmp_path / "cohort" / "studies").glob("*.json")]
    (record,) = [record for record in records if record["damaged"]]
    assert record["damaged"] == 1
    assert "damaged-files" in [remark["code"] for remark in record["loader_report"]["warnings"]]
    assert record["loader_report"]["verdict"] == "warning"


def test_a_link_in_the_source_refuses_it_before_anything_is_written(run, source, tmp_path):
    path = next((source / "later").rglob("*.dcm"))
    path.rename(tmp_path / "elsewhere.dcm")
    path.symlink_to(tmp_path / "elsewhere.dcm")
    status, _, err = run(source)
    assert status == 3
    assert "input-links" in err
    assert not (tmp_path / "cohort").exists()


def test_a_source_without_any_usable_study_is_refused(run, source, tmp_path):
    (source / "labels.csv").write_text("patient,label\nNOBODY,HEALTHY\n")
    status, _, err = run(source)
    assert status == 3
    assert "cohort-empty" in err
    assert "5 x cohort-label" in err
    assert not (tmp_path / "cohort").exists()


def test_a_source_of_which_the_reader_refuses_everything_makes_no_table(run, source, tmp_path, scan):
    for path in (source / "later").rglob("*.dcm"):
        path.write_bytes(path.read_bytes()[:-1000])
    (source / "labels.csv").write_text("path,label\nlater,COVID_19\n")
    status, _, err = run(source)
    assert status == 3
    assert "cohort-empty" in err
    assert not (tmp_path / "cohort" / "cohort.csv").exists()
    (source / "labels.csv").write_text("path,label\nlater,COVID_19\nmixed/good.nii,HEALTHY\n")
    write_nifti(scan(5), source / "mixed" / "good.nii")
    assert run(source)[0] == 0


def test_a_dry_run_counts_and_writes_nothing(run, source, tmp_path):
    status, out, _ = run(source, "--dry-run", "--json")
    assert status == 0
    document = json.loads(out)
    assert (document["studies"], document["usable"], document["patients"]) == (5, 5, 4)
    assert document["passed_over"] == 2  # a text and the table
    assert sum(sum(classes.values()) for classes in document["by_class"].values()) == 5
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (["--split", "70/30"], "config-invalid"),
        (["--key-file", "nothing"], "key-missing"),
        (["--labels", "nothing.csv"], "file-error"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_code(run, source, change, code):
    status, _, err = run(source, *change)
    assert status in (1, 2)
    assert code in err


def test_a_new_key_is_made_once_and_never_written_over(run, source, tmp_path):
    (tmp_path / "key").unlink()
    status, out, _ = run(source, "--new-key", "--dry-run")
    assert status == 0
    assert "5 of 5 studies" in out
    key = (tmp_path / "key").read_bytes()
    status, _, err = run(source, "--new-key")
    assert status == 2
    assert "output-exists" in err
    assert (tmp_path / "key").read_bytes() == key


@pytest.mark.parametrize(
    "change",
    [["--split", "1/2"], ["--labels", "nothing.csv"], ["--labels", "wrong.csv"], ["-o", "thesis"]],
    ids=["shares", "no labels", "wrong labels", "other output"],
)
def test_a_command_that_has_to_be_mended_makes_no_key(run, source, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").unlink()
    (tmp_path / "wrong.csv").write_text("patient,label\nMILLER-1,corona\n")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").touch()
    assert run(source, "--new-key", *change)[0] in (1, 2, 3)
    assert not (tmp_path / "key").exists()
    assert run(source, "--new-key", "--dry-run")[0] == 0
    assert (tmp_path / "key").exists()


def test_a_new_key_for_an_old_cohort_is_refused(run, source, imported, tmp_path):
    status, _, err = run(source, "--new-key", "--key-file", tmp_path / "second")
    assert status == 2
    assert "output-exists" in err
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("place", ["cohort/studies/key", "cohort/key", "pacs/key"])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_key_in_the_source_or_in_the_cohort_is_refused(run, source, imported, tmp_path, place, is_new):
    if not is_new:
        shutil.copy2(tmp_path / "key", tmp_path / place)
    status, _, err = run(source, "--key-file", tmp_path / place, *["--new-key"] * is_new)
    assert status == 2
    assert "key-exposed" in err
    assert (tmp_path / place).exists() is not is_new


@pytest.mark.parametrize("out", ["pacs/cohort", "pacs", "."])
def test_a_cohort_in_its_source_or_around_it_is_refused(run, source, tmp_path, out):
    before = sorted(tmp_path.rglob("*"))
    status, _, err = run(source, "-o", tmp_path / out)
    assert status == 2
    assert "output-in-input" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cohort_in_a_place_that_a_table_names_is_refused(run, source, tmp_path):
    (tmp_path / "studies.csv").write_text("path,label\npacs/later,COVID_19\n")
    status, _, err = run(tmp_path / "studies.csv", "-o", source / "later" / "cohort")
    assert status == 2
    assert "output-in-input" in err


def test_files_that_name_the_patient_are_copied_outside_of_the_cohort_only(
    run, source, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    seen = []

    def read(path):
        seen.append(path)
        if (tmp_path / "temporary") in path.parents:
            assert path.parent.parent == tmp_path / "temporary"
            assert path.parent.stat().st_mode & 0o777 == 0o700
        assert not [p for p in (tmp_path / "cohort" / "studies").iterdir() if p.is_dir()]
        return read_guarded(path)

    monkeypatch.setattr(cohort_convert, "read_guarded", read)
    monkeypatch.setattr("os.link", refuse_link)
    assert run(source)[0] == 0
    assert sum(tmp_path / "temporary" in path.parents for path in seen) == 2  # two patients in one folder
    assert list((tmp_path / "temporary").iterdir()) == []


def test_copies_go_when_an_import_is_broken_off_and_when_it_was_killed(run, source, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def fail(path):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(cohort_convert, "read_guarded", fail)
        assert run(source)[0] != 0
    assert list((tmp_path / "temporary").iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(cohort_convert, "read_guarded", fail)
        patch.setattr(shutil, "rmtree", lambda path: None)  # nobody cleans up after a kill
        assert run(source)[0] != 0
    (left,) = (tmp_path / "temporary").iterdir()
    (left / "000000").write_text("MILLER")
    assert run(source)[0] == 0
    assert list((tmp_path / "temporary").iterdir()) == []


def refuse_link(source, target):
    """Two disks: a file cannot have a second name on another one."""
    raise OSError("other device")


def test_a_folder_without_labels_is_refused(source, tmp_path, capsys):
    arguments = ["cohort", "import", source, "-o", tmp_path / "cohort", "--key-file", tmp_path / "key"]
    assert main([*map(str, arguments)]) == 3
    assert "--labels" in capsys.readouterr().err


# -- coming back ------------------------------------------------------------------------------------------


def test_a_second_run_converts_nothing_again(run, source, imported):
    before = files_written(imported.root)
    status, out, _ = run(source, "--json")
    assert status == 0
    assert json.loads(out)["reused"] == 5
    assert files_written(imported.root) == before
    assert read_cohort(imported.root) == imported


def test_a_new_label_is_taken_up_without_converting(run, source, imported):
    before = files_written(imported.root)
    (source / "labels.csv").write_text(LABELS.replace("II", "III"))
    assert run(source)[0] == 0
    assert files_written(imported.root) == before
    assert {s.severity for s in read_cohort(imported.root).studies} == {Severity.III, None}


def test_only_a_changed_study_is_converted_again(run, source, imported, scan):
    before = files_written(imported.root)
    write_nifti(scan(9), source / "single" / "doe.nii.gz")
    assert run(source)[0] == 0
    key = by_label(imported)[FindingClass.BACTERIAL].study_key
    after = files_written(imported.root)
    assert {name for name in after if after[name] != before[name]} == {
        f"{key}.nii.gz", f"{key}_lesion.nii.gz", f"{key}.json"
    }  # fmt: skip
    changed = by_label(read_cohort(imported.root))[FindingClass.BACTERIAL]
    assert changed.content_hash != by_label(imported)[FindingClass.BACTERIAL].content_hash


def test_a_table_that_was_broken_by_hand_is_not_written_over(run, source, imported):
    table = imported.root / "cohort.csv"
    table.write_text(table.read_text().replace("HEALTHY", "healthy?"))
    broken = table.read_text()
    status, _, err = run(source)
    assert status == 3
    assert "healthy?" in err
    assert table.read_text() == broken


def test_a_lost_image_is_made_again(run, source, imported):
    lost = imported.root / imported.studies[0].image
    content = lost.read_bytes()
    lost.unlink()
    assert run(source)[0] == 0
    assert lost.read_bytes() == content


def test_a_later_source_adds_studies_and_moves_no_patient(run, source, imported, send, tmp_path):
    later = tmp_path / "later"
    send(later, "MILLER-1", "third", 30)
    send(later, "NEW-9", "first", 31)
    (later / "labels.csv").write_text("patient,label\nMILLER-1,COVID_19\nNEW-9,HEALTHY\n")
    assert run(later)[0] == 0
    cohort = read_cohort(imported.root)
    assert len(cohort.studies) == 7
    assert set(imported.studies) <= set(cohort.studies)
    assert len({s.split for s in cohort.studies if s.label is FindingClass.COVID_19}) == 1


@pytest.mark.parametrize("change", ["key", "shares"])
def test_another_key_or_other_shares_are_refused_for_the_same_folder(run, source, imported, tmp_path, change):
    make_key_file(tmp_path / "other")
    options = ["--key-file", tmp_path / "other"] if change == "key" else ["--split", "80/10/10"]
    status, _, err = run(source, *options)
    assert status == 3
    assert "cohort-changed" in err
    assert read_cohort(imported.root) == imported


def test_a_folder_with_other_things_in_it_is_left_alone(run, source, tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "thesis.txt").write_text("mine")
    status, _, err = run(source)
    assert status == 2
    assert "output-exists" in err
    assert [path.name for path in (tmp_path / "cohort").iterdir()] == ["thesis.txt"]


def test_what_a_killed_run_left_behind_is_removed(run, source, imported):
    remains = imported.root / "studies" / ".work-123"
    remains.mkdir()
    (remains / "000000").write_text("MILLER")
    assert run(source)[0] == 0
    assert not remains.exists()


def command(source, out, key, *options):
    arguments = ["cohort", "import", source, "-o", out, "--key-file", key, "--labels", source / "labels.csv"]
    return [sys.executable, "-P", "-m", "ucadi", *map(str, [*arguments, *options])]


@pytest.mark.slow
def test_two_processes_make_the_same_cohort_as_one(run, source, imported, tmp_path):
    other = tmp_path / "other"
    subprocess.run(command(source, other, tmp_path / "key", "--jobs", "2"), check=True, capture_output=True)
    assert read_cohort(other).studies == imported.studies
    for study in imported.studies:
        assert (other / study.image).read_bytes() == (imported.root / study.image).read_bytes()


@pytest.mark.e2e
def test_a_killed_import_goes_on_where_it_stopped_and_leaves_no_process(make_ct, tmp_path):
    ct = make_ct()
    source, lines = tmp_path / "pacs", ["path,patient,label"]
    source.mkdir()
    for number in range(12):
        write_nifti(Volume(ct.voxels + np.int16(number), ct.grid), source / f"{number}.nii")
        lines.append(f"{number}.nii,patient {number},HEALTHY")
    (source / "labels.csv").write_text("\n".join(lines) + "\n")
    make_key_file(tmp_path / "key")
    arguments = command(source, tmp_path / "killed", tmp_path / "key", "--jobs", "2", "--json")
    studies = tmp_path / "killed" / "studies"

    child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(studies.glob("*.json"))) < 3:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    family = psutil.Process(child.pid).children(recursive=True)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    done = files_written(tmp_path / "killed")
    records = [name for name in done if name.endswith(".json")]
    assert 3 <= len(records) < 12

    outcome = json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout)
    assert outcome["imported"] == 12
    assert outcome["reused"] >= len(records)
    after = files_written(tmp_path / "killed")
    assert all(after[name] == done[name] for name in records)
    assert not [name for name in after if name.startswith(".")]
    whole = command(source, tmp_path / "whole", tmp_path / "key", "--jobs", "2")
    subprocess.run(whole, check=True, capture_output=True)
    assert read_cohort(tmp_path / "killed").studies == read_cohort(tmp_path / "whole").studies
