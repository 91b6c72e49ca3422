# SPDX-License-Identifier: Apache-2.0
import zipfile

import pytest

from ucadi.cohorts.studies import find_files, group_studies, index_files
from ucadi.io.nifti import write_nifti


@pytest.fixture
def images(make_ct, make_series):
    """Three DICOM images with given study and patient."""
    ct = make_ct((18, 32, 32), (10.5, 11.0, 11.0))

    def build(study, patient, **tags):
        return make_series(ct, StudyInstanceUID=study, PatientID=patient, **tags)[:3]

    return build


def studies_in(*places):
    return group_studies(index_files(find_files(places)))


def test_mixed_files_are_grouped_by_the_study_that_they_name(images, save_series, tmp_path):
    save_series(images("1.2.3", "A"), tmp_path, "x")
    save_series(images("1.2.4", "B"), tmp_path, "y")
    save_series(images("1.2.3", "A"), tmp_path / "more" / "of it", "z")
    first, second = studies_in(tmp_path)
    assert (first.study_uid, first.patients, len(first.files)) == ("1.2.3", (("A", ""),), 6)
    assert (second.study_uid, second.patients, len(second.files)) == ("1.2.4", (("B", ""),), 3)
    assert first.place == str(tmp_path)


def test_an_issuer_tells_patients_with_equal_ids_apart(images, save_series, tmp_path):
    save_series(images("1.2.3", "7", IssuerOfPatientID="North"), tmp_path)
    assert studies_in(tmp_path)[0].patients == (("7", "North"),)


def test_files_without_preamble_are_found(images, tmp_path):
    for number, image in enumerate(images("1.2.3", "A")):
        image.save_as(tmp_path / f"{number}", enforce_file_format=True)
        (tmp_path / f"{number}").write_bytes((tmp_path / f"{number}").read_bytes()[132:])
    assert [len(study.files) for study in studies_in(tmp_path)] == [3]


def test_a_volume_and_the_mask_beside_it_are_one_study(make_ct, tmp_path):
    for name in ("a.nii.gz", "a_lesion.nii.gz", "b.nii", "c_lesion.nii.gz"):
        write_nifti(make_ct((18, 32, 32), (10.5, 11.0, 11.0)), tmp_path / name)
    found = [
        (study.files[0].rpartition("/")[2], study.mask.rpartition("/")[2]) for study in studies_in(tmp_path)
    ]
    assert found == [("a.nii.gz", "a_lesion.nii.gz"), ("b.nii", ""), ("c_lesion.nii.gz", "")]


def test_an_archive_is_a_study_unless_it_holds_several_or_one_that_is_there_already(
    images, save_series, tmp_path
):
    outside = tmp_path / "outside"
    tree = tmp_path / "tree"
    save_series(images("1.2.3", "A"), outside, "a")
    save_series(images("1.2.4", "B"), outside, "b")
    save_series(images("1.2.5", "C"), tree / "loose")
    save_series(images("1.2.5", "C"), outside, "c")
    for name, prefixes in [("one.zip", "a"), ("two.zip", "ab"), ("again.zip", "c"), ("none.zip", "")]:
        with zipfile.ZipFile(tree / name, "w") as archive:
            archive.writestr("notes.txt", "no image")
            for path in outside.iterdir():
                if path.name[0] in prefixes:
                    archive.write(path, path.name)
    found = {study.files[0].rpartition("/")[2]: study.fault[0] for study in studies_in(tree)}
    del found["im0000"]
    assert found == {"one.zip": "", "two.zip": "archive-many-studies", "again.zip": "cohort-duplicate"}


def test_a_hostile_archive_is_a_study_with_the_fault(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(2**26))
    (study,) = studies_in(tmp_path)
    assert study.fault[0] == "archive-unsafe"


def test_links_hidden_files_and_other_formats_are_passed_over(images, save_series, tmp_path):
    save_series(images("1.2.3", "A"), tmp_path / "outside")
    tree = tmp_path / "tree"
    save_series(images("1.2.4", "B"), tree / ".hidden")
    (tree / "link").symlink_to(tmp_path / "outside")
    (tree / "link.dcm").symlink_to(next((tmp_path / "outside").iterdir()))
    (tree / "notes.txt").write_text("MILLER")
    (tree / "empty").touch()
    assert index_files(find_files([tree])) == []


def test_a_damaged_dicom_file_is_told_and_in_no_study(images, save_series, tmp_path):
    save_series(images("1.2.3", "A"), tmp_path)
    (tmp_path / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 50)
    entries = index_files(find_files([tmp_path]))
    assert [entry.path for entry in entries if entry.kind == "damaged"] == [str(tmp_path / "broken.dcm")]
    assert [len(study.files) for study in group_studies(entries)] == [3]


def test_the_same_place_named_twice_counts_once(images, save_series, tmp_path):
    save_series(images("1.2.3", "A"), tmp_path / "a")
    assert len(find_files([tmp_path, tmp_path / "a", next((tmp_path / "a").iterdir())])) == 3
