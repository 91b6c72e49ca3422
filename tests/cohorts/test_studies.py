# SPDX-License-Identifier: Apache-2.0
import zipfile
from pathlib import Path

import pytest

from ucadi.cohorts.studies import find_files, group_studies, index_files
from ucadi.errors import DataError
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


@pytest.mark.parametrize("target", ["outside", "outside/im0000", "nothing", "tree/.hidden/im0000"])
def test_a_link_that_leads_to_what_is_not_found_refuses_the_source(images, save_series, tmp_path, target):
    save_series(images("1.2.3", "A"), tmp_path / "outside")
    save_series(images("1.2.3", "A"), tmp_path / "tree" / ".hidden")
    (tmp_path / "tree" / "deep").mkdir()
    (tmp_path / "tree" / "deep" / "link").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match="1 links") as caught:
        find_files([tmp_path / "tree"])
    assert caught.value.code == "input-links"


def test_a_link_to_what_is_found_anyway_is_passed_over(images, save_series, tmp_path):
    save_series(images("1.2.3", "A"), tmp_path / "a")
    save_series(images("1.2.4", "B"), tmp_path / "b")
    (tmp_path / "a" / "file").symlink_to(next((tmp_path / "b").iterdir()))
    (tmp_path / "a" / "folder").symlink_to(tmp_path / "b")
    assert len(find_files([tmp_path / "a", tmp_path / "b"])) == 6


def test_a_hidden_file_in_a_folder_is_found_as_the_reader_finds_it(images, save_series, tmp_path):
    first, *_ = save_series(images("1.2.3", "A"), tmp_path).iterdir()
    first.rename(tmp_path / ".slice")
    assert [len(study.files) for study in studies_in(tmp_path)] == [3]


def test_a_folder_that_cannot_be_listed_refuses_the_source(tmp_path):
    with pytest.raises(DataError) as caught:
        find_files([tmp_path, tmp_path / "gone"])
    assert caught.value.code == "input-unreadable"


def test_hidden_folders_and_other_formats_are_passed_over(images, save_series, tmp_path):
    tree = tmp_path / "tree"
    save_series(images("1.2.4", "B"), tree / ".hidden")
    (tree / "notes.txt").write_text("MILLER")
    (tree / "empty").touch()
    assert index_files(find_files([tree])) == []


BROKEN = bytes(128) + b"DICM" + b"\xff" * 50


def damaged_of(tmp_path):
    return {
        study.study_uid: [str(Path(path).relative_to(tmp_path)) for path in study.damaged]
        for study in studies_in(tmp_path)
    }


def test_a_damaged_file_goes_with_every_study_of_its_folder_and_no_other(images, save_series, tmp_path):
    save_series(images("1.2.3", "A"), tmp_path / "a", "x")
    save_series(images("1.2.4", "B"), tmp_path / "a", "y")
    save_series(images("1.2.5", "C"), tmp_path / "c")
    (tmp_path / "a" / "broken.dcm").write_bytes(BROKEN)
    assert damaged_of(tmp_path) == {"1.2.3": ["a/broken.dcm"], "1.2.4": ["a/broken.dcm"], "1.2.5": []}
    assert [len(study.files) for study in studies_in(tmp_path)] == [3, 3, 3]


def test_a_folder_of_damaged_files_goes_with_the_study_around_it(images, save_series, tmp_path):
    for number, image in enumerate(images("1.2.3", "A")):
        save_series([image], tmp_path / "study" / str(number))
    save_series(images("1.2.4", "B"), tmp_path / "other")
    (tmp_path / "study" / "7").mkdir()
    (tmp_path / "study" / "7" / "broken.dcm").write_bytes(BROKEN)
    assert damaged_of(tmp_path) == {"1.2.3": ["study/7/broken.dcm"], "1.2.4": []}


def test_the_same_place_named_twice_counts_once(images, save_series, tmp_path):
    save_series(images("1.2.3", "A"), tmp_path / "a")
    assert len(find_files([tmp_path, tmp_path / "a", next((tmp_path / "a").iterdir())])) == 3
