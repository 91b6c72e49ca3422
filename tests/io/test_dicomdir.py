# SPDX-License-Identifier: Apache-2.0
"""An index of files names files of its own folder and nothing else."""

import gc
import warnings

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.fileset import FileSet

from ucadi.io.reader import load_ct
from ucadi.io.report import Verdict


@pytest.fixture
def media(make_ct, make_series, tmp_path):
    """A CD: an index, and 36 images in folders of its own choice."""
    index = FileSet()
    for image in make_series(make_ct(), PatientID="1", PatientName="A", StudyID="1", StudyDate="20200101"):
        image.StudyTime, image.AccessionNumber, image.StudyDescription = "101010", "1", "CT"
        index.add(image)
    index.write(tmp_path / "cd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the writer leaves its temporary folder to be found
        del index
        gc.collect()
    return tmp_path / "cd"


def rewrite(index, change) -> None:
    dataset = dcmread(index)
    change([r for r in dataset.DirectoryRecordSequence if "ReferencedFileID" in r])
    dataset.save_as(index, enforce_file_format=True)


def test_the_index_stands_for_the_images_that_it_lists(media, make_ct) -> None:
    loaded = load_ct(media / "DICOMDIR")
    assert np.array_equal(loaded.require()[0].voxels, make_ct().voxels)


def test_an_image_that_the_index_does_not_list_is_not_read(media) -> None:
    def forget(records: list[Dataset]) -> None:
        records[0].ReferencedFileID = records[1].ReferencedFileID

    rewrite(media / "DICOMDIR", forget)
    assert load_ct(media / "DICOMDIR").report.shape[0] in (35, 36)
    assert load_ct(media / "DICOMDIR").report.code == "ok"
    assert load_ct(media).report.shape[0] == 36


def test_images_that_are_listed_but_not_there_are_warned_of(media) -> None:
    for path in sorted(path for path in media.rglob("*") if path.is_file())[-2:]:
        path.unlink()
    report = load_ct(media / "DICOMDIR").report
    assert "2 files" in next(w.text for w in report.warnings if w.code == "damaged-files")


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # names that no honest index holds
@pytest.mark.parametrize("name", [["..", "SECRET", "IM0"], ["/ETC/PASSWD"], ["", ""], ["NO", "SUCH"]])
def test_names_that_lead_out_of_the_folder_are_not_followed(media, tmp_path, name) -> None:
    (tmp_path / "secret").mkdir()
    first = next(path for path in media.rglob("*") if path.is_file() and path.name != "DICOMDIR")
    (tmp_path / "secret" / "IM0").write_bytes(first.read_bytes())

    def lead_out(records: list[Dataset]) -> None:
        for record in records:
            record["ReferencedFileID"].value = name

    rewrite(media / "DICOMDIR", lead_out)
    report = load_ct(media / "DICOMDIR").report
    assert report.code == "dicom-none"
    assert "36 files, none of which is there" in report.reason


def test_a_link_in_the_place_of_an_image_is_not_followed(media, tmp_path) -> None:
    for path in [path for path in media.rglob("*") if path.is_file() and path.name != "DICOMDIR"]:
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert load_ct(media / "DICOMDIR").report.code == "dicom-none"


def test_a_damaged_index_is_refused(media) -> None:
    data = (media / "DICOMDIR").read_bytes()
    (media / "DICOMDIR").write_bytes(data[: len(data) // 2])
    assert load_ct(media / "DICOMDIR").report.verdict is Verdict.REFUSED
