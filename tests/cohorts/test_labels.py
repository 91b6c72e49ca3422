# SPDX-License-Identifier: Apache-2.0
import pytest

from ucadi.cohorts.labels import read_labels
from ucadi.errors import CohortError
from ucadi.types import FindingClass, Severity


@pytest.fixture
def table(tmp_path):
    """Writes a table of labels beside two files and returns its path."""
    (tmp_path / "ct.nii.gz").touch()
    (tmp_path / "mask.nii.gz").touch()

    def write(*lines, encoding="utf-8"):
        path = tmp_path / "labels.csv"
        path.write_bytes("\n".join([*lines, ""]).encode(encoding))
        return path

    return write


def test_a_line_gives_label_severity_and_absolute_paths(table, tmp_path):
    (row,) = read_labels(
        table("path,patient,label,severity,mask", "ct.nii.gz,77,COVID_19,II,mask.nii.gz")
    ).rows
    assert (row.label, row.severity, row.patient, row.line) == (FindingClass.COVID_19, Severity.II, "77", 2)
    assert (row.path, row.mask) == (str(tmp_path / "ct.nii.gz"), str(tmp_path / "mask.nii.gz"))


@pytest.mark.parametrize("word", ["COVID_19", "covid-19", "Covid 19", " COVID_19 ", "covid19"])
def test_a_class_is_known_whatever_its_case_and_hyphens(table, word):
    (row,) = read_labels(table("study,label", f"1.2,{word}")).rows
    assert row.label is FindingClass.COVID_19


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("1.2,,corona,,", "corona"), ("1.2,,,,", "label"), ("1.2,,1,,", "'1'"),
        ("1.2,,HEALTHY,II,", "severity"), ("1.2,,COVID_19,IV,", "IV"), ("1.2,,COVID_19,2,", "'2'"),
        (",,HEALTHY,,", "no study"), ("1.2,none.nii,HEALTHY,,", "none.nii"),
        ("1.2,,HEALTHY,,no.nii", "no.nii"),
        ("1.2,,HEALTHY", "cells"), ("1.2,,HEALTHY,,,,", "cells"), ("1.2,a\0b,HEALTHY,,", "does not exist"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_told_with_its_number_what_was_seen_and_a_cure(table, line, word):
    read = read_labels(table("study,path,label,severity,mask", "1.1,,HEALTHY,,", line, "1.3,,HEALTHY,,"))
    assert [row.study for row in read.rows] == ["1.1", "1.3"]
    (problem,) = read.problems
    assert (problem.line, problem.file, problem.code) == (3, "labels.csv", "cohort-label")
    assert word in problem.detail
    assert problem.cure


def test_all_wrong_lines_are_told(table):
    read = read_labels(table("study,label,severity", "1,corona,V", "2,HEALTHY,", "3,flu,"))
    assert [problem.line for problem in read.problems] == [2, 2, 4]


def test_two_lines_for_the_same_study_are_told(table):
    (problem,) = read_labels(table("study,label", "1.2,HEALTHY", "1.3,HEALTHY", "1.2,BACTERIAL")).problems
    assert problem.line == 4
    assert "line 2" in problem.detail


def test_patients_named_in_a_part_of_the_lines_are_told(table):
    (problem,) = read_labels(table("study,patient,label", "1,A,HEALTHY", "2,,HEALTHY")).problems
    assert problem.line == 3
    assert "patient" in problem.detail


@pytest.mark.parametrize(
    ("head", "word"),
    [("study", "label"), ("label", "path"), ("study,label,Diagnosis", "Diagnosis"), ("", "label")],
)
def test_a_table_with_missing_or_unknown_columns_is_refused(table, head, word):
    with pytest.raises(CohortError, match=word) as caught:
        read_labels(table(head))
    assert caught.value.code == "cohort-label"


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_table_in_another_encoding_is_refused(table, encoding):
    with pytest.raises(CohortError) as caught:
        read_labels(table("study,label", "Müller,HEALTHY", encoding=encoding))
    assert caught.value.code == "cohort-label"


def test_a_table_saved_by_a_spreadsheet_is_read(table):
    assert len(read_labels(table("study,label\r", "1.2,HEALTHY\r", encoding="utf-8-sig")).rows) == 1


def test_semicolons_separate_as_well_as_commas(table) -> None:
    (row,) = read_labels(table("study;label\n", "1.2;HEALTHY\n")).rows
    assert row == read_labels(table("study,label\n", "1.2,HEALTHY\n")).rows[0]
