# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from ucadi.cli.main import main
from ucadi.cohorts.cohort import COHORT_FILE, Study, write_cohort
from ucadi.cohorts.content import content_hash
from ucadi.imaging.volume import Volume
from ucadi.io import guard
from ucadi.io.nifti import write_nifti
from ucadi.types import FindingClass, Severity, Split
from ucadi.workflows import worker_reader
from ucadi.workflows.cohort_check import FEW_STUDIES, check_cohort, summarize_cohort

SMALL = ((18, 32, 32), (10.5, 11.0, 11.0))


def study(key, *, split=Split.TRAIN, label=FindingClass.HEALTHY, patient="", mask="", **more) -> Study:
    return Study(f"P-{patient or key}", key, split, label, None, f"{key}.nii", lesion_mask=mask, **more)


@pytest.fixture
def make_cohort(tmp_path, make_ct):
    """Writes a cohort whose images all differ, or, for a key in `same`, do not."""
    ct = make_ct(*SMALL)

    def build(*studies, same=()):
        for number, entry in enumerate(studies):
            shift = 0 if entry.study_key in same else number + 1
            write_nifti(Volume(ct.voxels + np.int16(shift), ct.grid), tmp_path / entry.image)
        return write_cohort(tmp_path, studies).root

    return build


def errors_of(result):
    return [(problem.line, problem.file, problem.code) for problem in result.problems if not problem.is_note]


def test_a_good_cohort_is_fine(make_cohort, capsys):
    root = make_cohort(study("S1"), study("S2", split=Split.TEST))
    assert errors_of(check_cohort(root)) == []
    assert main(["cohort", "check", str(root), "--jobs", "1"]) == 0
    assert "2 studies, 0 problems" in capsys.readouterr().out


def test_every_problem_is_told_with_file_line_and_cure(make_cohort, make_ct, tmp_path, capsys):
    ct = make_ct(*SMALL)
    sick = FindingClass.BACTERIAL
    root = make_cohort(
        study("S1", label=sick, mask="empty.nii"),
        study("S2", split=Split.TEST, patient="S1"),
        study("S3", label=sick, mask="other-grid.nii"),
        study("S4", label=sick, mask="many-values.nii"),
        study("S5", mask="lesions.nii"),
        study("S6"),
        study("S7"),
        study("S8", split=Split.TEST),
        study("S9", content_hash="00" * 32),
        study("S10"),
        same=("S7", "S8"),
    )
    lesion = np.zeros(ct.grid.shape, np.uint8)
    write_nifti(Volume(lesion, ct.grid), root / "empty.nii")
    lesion[8:10, 16:18, 23:25] = 1
    write_nifti(Volume(lesion, ct.grid), root / "lesions.nii")
    write_nifti(Volume(lesion, ct.grid.with_spacing((10.5, 11.0, 10.9))), root / "other-grid.nii")
    lesion[0, 0, 0] = 2
    write_nifti(Volume(lesion, ct.grid), root / "many-values.nii")
    (root / "S6.nii").write_bytes(b"no image")
    (root / "S10.nii").unlink()
    with (root / COHORT_FILE).open("a") as file:
        file.write("P-11,S11,training,COVID,,S1.nii,,,,,,\r\n")

    result = check_cohort(root)
    assert errors_of(result) == [
        (2, "empty.nii", "cohort-mask"),
        (3, COHORT_FILE, "cohort-leak"),
        (4, "other-grid.nii", "cohort-mask"),
        (5, "many-values.nii", "cohort-mask"),
        (6, "lesions.nii", "cohort-mask"),
        (7, "S6.nii", "input-unsupported"),
        (9, "S8.nii", "cohort-leak"),
        (10, "S9.nii", "cohort-changed"),
        (11, "S10.nii", "cohort-invalid"),
        (12, COHORT_FILE, "cohort-invalid"),
        (12, COHORT_FILE, "cohort-invalid"),
    ]
    assert all(problem.detail and problem.cure for problem in result.problems)
    assert main(["cohort", "check", str(root), "--jobs", "1"]) == 3
    out = capsys.readouterr().out
    assert "empty.nii:2: cohort-mask: The mask is empty, the label is BACTERIAL." in out
    assert "11 problems" in out
    assert main(["cohort", "check", str(root), "--jobs", "1", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["studies"] == 10
    assert not document["is_fine"]
    assert len([p for p in document["problems"] if not p["is_note"]]) == 11


@pytest.mark.parametrize(
    ("patient", "split", "code", "word"),
    [
        ("S1", Split.TRAIN, "cohort-duplicate", "the same patient"),
        ("S2", Split.TRAIN, "cohort-duplicate", "another patient"),
        ("S2", Split.TEST, "cohort-leak", "another split"),
    ],
)
def test_the_same_scan_twice_is_found_whatever_its_name(make_cohort, patient, split, code, word):
    root = make_cohort(study("S1"), study("S2", patient=patient, split=split), same=("S1", "S2"))
    (problem,) = [problem for problem in check_cohort(root).problems if not problem.is_note]
    assert (problem.line, problem.code) == (3, code)
    assert word in problem.detail
    assert "line 2" in problem.detail


def test_an_image_on_which_the_reader_crashes_is_a_problem_like_any_other(make_cohort, monkeypatch):
    crash = (
        "import os, ucadi.io.guard as guard; read = guard.load_ct;"
        "guard.load_ct = lambda path, **more: os.abort() if path.endswith('S1.nii') else read(path, **more);"
        "guard._serve()"
    )
    monkeypatch.setattr(guard, "_PROGRAM", crash)
    monkeypatch.setattr(worker_reader, "_reader", cache(guard.GuardedReader))
    found = errors_of(check_cohort(make_cohort(study("S1"), study("S2", split=Split.TEST))))
    worker_reader._reader().__exit__(None, None, None)
    assert found == [(2, "S1.nii", "input-unreadable")]


def test_a_quick_check_reads_no_image_but_compares_the_tables_hashes(make_cohort):
    root = make_cohort(study("S1", content_hash="ab"), study("S2", content_hash="ab"), study("S3"))
    (root / "S3.nii").write_bytes(b"no image")
    assert [code for _, _, code in errors_of(check_cohort(root, is_quick=True))] == ["cohort-duplicate"]


def test_a_hash_that_is_the_images_is_no_problem(make_cohort, make_ct):
    ct = make_ct(*SMALL)
    content = content_hash(Volume(ct.voxels + np.int16(1), ct.grid))
    assert errors_of(check_cohort(make_cohort(study("S1", content_hash=content)))) == []


def test_small_and_missing_classes_and_splits_are_notes(make_cohort):
    train = [study(f"S{n}") for n in range(FEW_STUDIES)]
    sick = [study(f"B{n}", label=FindingClass.BACTERIAL, split=Split.TEST) for n in range(FEW_STUDIES - 1)]
    result = check_cohort(make_cohort(*train, *sick), is_quick=True)
    assert result.is_fine
    assert [problem.detail.rstrip(".") for problem in result.problems] == [
        "Studies of BACTERIAL in train: 0, fewer than 5",
        "There is no validation study",
        "Studies of HEALTHY in test: 0, fewer than 5",
        "Studies of BACTERIAL in test: 4, fewer than 5",
        "There is no study of COVID_19",
        "There is no study of OTHER_VIRAL",
    ]


@pytest.mark.parametrize("content", ["", "patient_key\n", 'patient_key,"', None])
def test_a_table_that_cannot_be_read_is_one_problem(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / COHORT_FILE).write_text(content)
    assert main(["cohort", "check", str(tmp_path), "--json"]) == 3
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["line"], problem["code"]) == (0, "cohort-invalid")


def test_studies_are_counted_by_split_class_and_severity(make_cohort, capsys):
    covid = replace(study("S1", label=FindingClass.COVID_19), severity=Severity.III, verdict="warning")
    root = make_cohort(covid, study("S2", patient="S1"), study("S3", split=Split.TEST, mask="S1.nii"))
    summary = summarize_cohort(root)
    assert (summary.studies, summary.patients, summary.masks) == (3, 2, 1)
    assert summary.by_class == {
        "train": {"COVID_19": 1, "HEALTHY": 1},
        "validation": {},
        "test": {"HEALTHY": 1},
    }
    assert summary.by_severity == {"train": {"III": 1}, "validation": {}, "test": {}}
    assert summary.by_verdict == {"unknown": 2, "warning": 1}
    assert main(["cohort", "show", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("3 studies, 2 patients")
    assert lines[2].split() == ["train", "1", "1", "0", "0", "0", "0", "1", "2"]
    assert main(["cohort", "show", str(root), str(root), "--json"]) == 0
    assert [entry["studies"] for entry in json.loads(capsys.readouterr().out)["cohorts"]] == [3, 3]


def test_a_check_holds_one_study_at_a_time(make_cohort, make_ct):
    root = make_cohort(*(study(f"S{n}") for n in range(24)))

    def peak_bytes(count):
        write_cohort(root, tuple(study(f"S{n}") for n in range(count)))
        tracemalloc.start()
        check_cohort(root)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1)  # fills caches
    assert peak_bytes(24) < peak_bytes(2) + 4 * make_ct(*SMALL).voxels.nbytes


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_studies_take_no_more_memory_than_fifty(make_cohort):
    root = make_cohort(*(study(f"S{n}") for n in range(1000)))
    code = (
        "import resource, sys; from pathlib import Path;"
        "from ucadi.workflows.cohort_check import check_cohort;"
        "assert check_cohort(Path(sys.argv[1])).studies == int(sys.argv[2]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak_kib(count):
        write_cohort(root, tuple(study(f"S{n}") for n in range(count)))
        command = [sys.executable, "-c", code, root, str(count)]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    few, many = peak_kib(50), peak_kib(1000)
    assert many < few + 10_000, (few, many)
