# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.cohorts.cohort import COHORT_FILE, Cohort, Study, read_cohort, read_rows, write_cohort
from ucadi.errors import CohortError
from ucadi.types import FindingClass, Severity, Split

COLUMNS = "patient_key,study_key,split,label,severity,image,dicom,lesion_mask,lesion_ml"
GOOD = "P1,S1,train,COVID_19,II,S1.nii.gz,S1-dicom,S1-mask.nii.gz,12.5"


@pytest.fixture
def folder(tmp_path):
    """A cohort's folder with a few files, and one file beside it."""
    root = tmp_path / "cohort"
    (root / "S1-dicom").mkdir(parents=True)
    for name in ("S1.nii.gz", "S1-mask.nii.gz", "S2.nii.gz"):
        (root / name).touch()
    (tmp_path / "outside.nii.gz").touch()
    return root


@pytest.fixture
def table(folder):
    """Writes the study table and returns its folder."""

    def write(*rows, header=COLUMNS, encoding="utf-8", newline="\n"):
        text = newline.join([header, *rows]) + newline
        (folder / COHORT_FILE).write_bytes(text.encode(encoding))
        return folder

    return write


def refusal(folder, code="cohort-invalid") -> str:
    with pytest.raises(CohortError) as caught:
        read_cohort(folder)
    assert caught.value.code == code
    assert caught.value.cure
    return caught.value.detail


def test_a_table_is_read_with_all_columns(table, folder):
    assert read_cohort(table(GOOD)) == Cohort(
        folder,
        (Study("P1", "S1", Split.TRAIN, FindingClass.COVID_19, Severity.II, "S1.nii.gz", "S1-dicom",
               "S1-mask.nii.gz", 12.5),),
    )  # fmt: skip


def test_only_the_first_columns_are_needed_in_any_order(table):
    cohort = read_cohort(
        table("S2.nii.gz,HEALTHY,test,S2,P2", header="image,label,split,study_key,patient_key")
    )
    (study,) = cohort.studies
    assert (study.severity, study.dicom, study.lesion_mask, study.lesion_ml) == (None, "", "", None)


@pytest.mark.parametrize(
    ("encoding", "newline"), [("utf-8", "\r\n"), ("utf-8-sig", "\n"), ("utf-8-sig", "\r\n")]
)
def test_a_table_saved_by_a_spreadsheet_is_read(table, encoding, newline):
    assert len(read_cohort(table(GOOD, encoding=encoding, newline=newline)).studies) == 1


def test_what_is_written_is_read_back(folder):
    studies = (
        Study("P1", "S1", Split.TRAIN, FindingClass.COVID_19, Severity.I, "S1.nii.gz", "S1-dicom", "", 0.125),
        Study("P2", 'S"2,', Split.TEST, FindingClass.HEALTHY, None, "S2.nii.gz", "", "S1-mask.nii.gz", None),
        Study("P2", "S3", Split.TEST, FindingClass.HEALTHY, None, "S2.nii.gz", series="0a1b2c3d",
              content_hash="ab" * 32, verdict="warning"),
    )  # fmt: skip
    written = write_cohort(folder, studies)
    read = read_cohort(folder)
    assert written == read == Cohort(folder, studies)
    assert written.hash() == read.hash()
    assert [s.study_key for s in read.of_split(Split.TEST)] == ['S"2,', "S3"]


@given(
    st.sampled_from(
        ["patient_key", "study_key", "split", "label", "severity", "image", "lesion_ml", "content_hash"]
    )
)
def test_the_hash_changes_with_every_column(column):
    study = Study("P1", "S1", Split.TRAIN, FindingClass.HEALTHY, None, "a", "", "", 1.0)
    other = {"split": Split.TEST, "label": FindingClass.COVID_19, "severity": Severity.I, "lesion_ml": 2.0}
    changed = replace(study, **{column: other.get(column, "x")})
    assert Cohort(Path(), (study,)).hash() != Cohort(Path(), (changed,)).hash()


def test_the_hash_does_not_depend_on_where_the_cohort_lies(folder):
    study = Study("P1", "S1", Split.TRAIN, FindingClass.HEALTHY, None, "a")
    assert Cohort(folder, (study,)).hash() == Cohort(folder.parent, (study,)).hash()


# -- refusals ---------------------------------------------------------------------------------------------


def test_a_folder_without_a_table_is_refused(tmp_path):
    assert COHORT_FILE in refusal(tmp_path)
    assert COHORT_FILE in refusal(tmp_path / "nothing")


@pytest.mark.parametrize("column", ["patient_key", "study_key", "split", "label", "image"])
def test_a_missing_column_is_named(table, column):
    header = ",".join(name for name in COLUMNS.split(",") if name != column)
    assert column in refusal(table(GOOD, header=header))


def test_an_empty_table_is_refused(table, folder):
    (folder / COHORT_FILE).write_text("")
    assert "patient_key" in refusal(folder)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("patient_key", ""), ("patient_key", "  "), ("study_key", ""), ("image", ""),
        ("split", ""), ("split", "training"), ("split", "TRAIN"),
        ("label", ""), ("label", "covid"), ("label", "1"),
        ("severity", "IV"), ("severity", "2"),
        ("lesion_ml", "much"), ("lesion_ml", "nan"), ("lesion_ml", "inf"), ("lesion_ml", "-1"),
        ("lesion_ml", "1,5"),
    ],
)  # fmt: skip
def test_a_wrong_cell_is_refused_with_its_line_its_column_and_its_value(table, column, value):
    cells = dict(zip(COLUMNS.split(","), GOOD.split(","), strict=True))
    cells |= {"study_key": "S2", column: f'"{value}"'}
    detail = refusal(table(GOOD, ",".join(cells.values())))
    assert "line 3" in detail
    assert column in detail
    assert repr(value.strip()) in detail


def test_blank_lines_and_broken_cells_do_not_shift_the_line_that_is_named(table):
    broken = 'P1,"S\n2",train,COVID_19,II,S2.nii.gz,,,'
    detail = refusal(table(GOOD, "", broken, "P3,S3,never,HEALTHY,,S2.nii.gz,,,"))
    assert "line 6" in detail


@pytest.mark.parametrize("row", [GOOD + ",surplus", GOOD + ",,", "P1"])
def test_a_row_of_another_length_is_refused_with_its_line(table, row):
    assert "line 2" in refusal(table(row))


def test_a_study_that_appears_twice_is_refused_with_its_line(table):
    detail = refusal(table(GOOD, GOOD))
    assert "line 3" in detail
    assert "S1" in detail


def test_a_patient_in_two_splits_is_refused_with_the_line(table):
    detail = refusal(table(GOOD, "P1,S2,test,HEALTHY,,S2.nii.gz,,,"), code="cohort-leak")
    assert "line 3" in detail
    assert "P1" in detail


def test_a_severity_of_another_class_than_covid_is_refused_with_its_line(table):
    detail = refusal(table(GOOD, "P2,S2,test,BACTERIAL,II,S2.nii.gz,,,"))
    assert "line 3" in detail
    assert "severity" in detail


@pytest.mark.parametrize("column", ["image", "dicom", "lesion_mask"])
@pytest.mark.parametrize(
    "name",
    ["missing.nii.gz", "../outside.nii.gz", "S1-dicom/../../outside.nii.gz", "/etc/passwd", "..",
     "link.nii.gz", "a\0b", "x" * 5000, "S1.nii.gz/inside"],
    ids=lambda name: name[:20].replace("\0", "NUL"),
)  # fmt: skip
def test_a_file_that_is_missing_or_outside_the_folder_is_refused_with_line_and_column(
    table, folder, column, name
):
    (folder / "link.nii.gz").symlink_to(folder.parent / "outside.nii.gz")
    cells = dict(zip(COLUMNS.split(","), GOOD.split(","), strict=True)) | {column: name}
    detail = refusal(table(",".join(cells.values())))
    assert "line 2" in detail
    assert column in detail


@pytest.mark.parametrize("content", [b"\xff\xfe\x00junk", b'patient_key,"', bytes(range(256)), b"\x00" * 50])
def test_a_table_that_is_no_text_is_refused(folder, content):
    (folder / COHORT_FILE).write_bytes(content)
    refusal(folder)


def test_a_table_with_umlauts_in_another_encoding_is_refused(table):
    assert COHORT_FILE in refusal(table(GOOD.replace("P1", "Pätient"), encoding="latin-1"))


def test_a_cell_of_absurd_length_is_refused(table):
    refusal(table(GOOD.replace("P1", "P" * 200_000)))


# -- all problems of a table ------------------------------------------------------------------------------


def test_every_problem_of_every_line_is_told_with_its_cure(table):
    folder = table(
        GOOD,
        "P2,S2,never,nothing,,S2.nii.gz,,,",
        "P1,S1,test,HEALTHY,II,missing.nii.gz,,,",
        "P3,S3,train,HEALTHY,,S2.nii.gz,,,",
    )
    rows = list(read_rows(folder))
    problems = [problem for row in rows for problem in row.problems]
    assert [(problem.line, problem.code) for problem in problems] == [
        (3, "cohort-invalid"),
        (3, "cohort-invalid"),
        (4, "cohort-invalid"),
        (4, "cohort-leak"),
        (4, "cohort-invalid"),
        (4, "cohort-invalid"),
    ]
    for problem, word in zip(
        problems, ["split", "label", "twice", "two splits", "severity", "image"], strict=True
    ):
        assert word in problem.detail
        assert problem.cure.endswith((".", "test", "BACTERIAL"))
    assert [row.study and row.study.study_key for row in rows] == ["S1", None, "S1", "S3"]


def test_a_problem_with_a_file_names_the_file_and_one_with_a_cell_the_table(table):
    rows = read_rows(table("P1,S1,train,never,,S2.nii.gz,,,", "P2,S2,train,HEALTHY,,missing.nii.gz,,,"))
    assert [problem.file for row in rows for problem in row.problems] == [COHORT_FILE, "missing.nii.gz"]


def test_lines_are_read_as_they_are_asked_for(table, folder):
    table(GOOD, *(f"P{n},S{n},train,HEALTHY,,S2.nii.gz,,," for n in range(2, 20_000)))
    with (folder / COHORT_FILE).open("ab") as file:
        file.write(b"\xff")  # no UTF-8: an eager reader would stumble
    first = list(islice(read_rows(folder), 2))
    assert [row.study.study_key for row in first] == ["S1", "S2"]
    last = list(read_rows(folder))[-1]
    assert last.study is None
    assert [problem.code for problem in last.problems] == ["cohort-invalid"]
