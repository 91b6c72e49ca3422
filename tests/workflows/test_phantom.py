# SPDX-License-Identifier: Apache-2.0
"""Phantom cohorts: deterministic, disjoint, split within each class."""

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from ucadi.cohorts.cohort import Cohort, read_cohort
from ucadi.errors import ConfigError, DataError
from ucadi.phantom.acquisition import STYLES
from ucadi.types import FindingClass, Split
from ucadi.workflows.phantom import assign_classes, assign_splits, make_cohort, patient_seed


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return make_cohort("C", 4, 7, tmp_path_factory.mktemp("cohort"), matrix=32)


def test_a_cohort_reads_back_and_its_files_agree(cohort: Cohort) -> None:
    assert read_cohort(cohort.root).studies == cohort.studies
    for study in cohort.studies:
        image, mask = (nib.load(cohort.root / name) for name in (study.image, study.lesion_mask))
        assert image.shape == mask.shape
        voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000.0
        assert study.lesion_ml == pytest.approx(np.asarray(mask.dataobj).sum() * voxel_ml, rel=1e-3, abs=1e-3)
        assert (study.lesion_ml == 0) is (study.label is FindingClass.HEALTHY)
        assert (study.severity is not None) is (study.label is FindingClass.COVID_19)


def test_dicom_and_nifti_hold_the_same_scan(cohort: Cohort) -> None:
    study = cohort.studies[3]  # the compressed one
    slices = [pydicom.dcmread(path) for path in (cohort.root / study.dicom).iterdir()]
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    hu = np.stack([s.pixel_array * int(s.RescaleSlope) + int(s.RescaleIntercept) for s in slices])
    image = nib.load(cohort.root / study.image)
    assert np.array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), hu)
    right, anterior, superior = image.affine[:3, 3]
    assert slices[0].ImagePositionPatient == pytest.approx([-right, -anterior, superior], abs=1e-3)


def test_the_description_names_version_site_seed_and_style(cohort: Cohort) -> None:
    text = json.loads((cohort.root / "phantom.json").read_text())
    assert (text["generator_version"], text["site"], text["seed"]) == (1, "C", 7)
    assert text["style"]["class_mix"]["BACTERIAL"] == 0


def test_the_same_arguments_give_the_same_files_and_progress_is_told(cohort: Cohort, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    again = make_cohort("C", 4, 7, tmp_path, matrix=32, on_progress=lambda *n: told.append(n))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    names = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(cohort.root) for p in cohort.root.rglob("*") if p.is_file())
    assert all((tmp_path / n).read_bytes() == (cohort.root / n).read_bytes() for n in names)
    assert again.hash() == cohort.hash()


def test_masks_and_dicom_are_left_out_on_request(tmp_path: Path) -> None:
    made = make_cohort("C", 1, 1, tmp_path, matrix=32, masks=False, dicom=False)
    assert (made.studies[0].lesion_mask, made.studies[0].dicom) == ("", "")
    assert [p.name for p in (tmp_path / "nifti").iterdir()] == ["C0001-1.nii.gz"]
    assert not (tmp_path / "dicom").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError) as caught:
        make_cohort("A", 1, 1, tmp_path)
    assert caught.value.code == "output-exists"


@pytest.mark.parametrize(
    ("site", "patients", "matrix", "splits"),
    [("X", 1, 64, (1.0, 0.0, 0.0)), ("A", 0, 64, (1.0, 0.0, 0.0)), ("A", 1, 8, (1.0, 0.0, 0.0)),
     ("A", 1, 64, (0.5, 0.2, 0.1))],
)  # fmt: skip
def test_impossible_settings_are_refused(
    tmp_path: Path, site: str, patients: int, matrix: int, splits: tuple[float, float, float]
) -> None:
    with pytest.raises(ConfigError):
        make_cohort(site, patients, 1, tmp_path, matrix=matrix, splits=splits)


def test_no_patient_is_shared_between_sites_seeds_or_places() -> None:
    seeds = [patient_seed(site, seed, i) for site in STYLES for seed in range(20) for i in range(200)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("site", list(STYLES))
@pytest.mark.parametrize("patients", [4, 16, 61])
def test_classes_follow_the_sites_mix(site: str, patients: int) -> None:
    labels = assign_classes(STYLES[site], patients, 3)
    assert labels == assign_classes(STYLES[site], patients, 3)
    counts = Counter(labels)
    for label, share in STYLES[site].class_mix.items():
        assert abs(counts[label] - share * patients) <= 2
        assert (counts[label] > 0) is (share > 0)


@pytest.mark.parametrize("site", list(STYLES))
def test_each_split_holds_every_class_of_the_site_when_counts_allow(site: str) -> None:
    labels = assign_classes(STYLES[site], 60, 5)
    splits = assign_splits(labels, (0.6, 0.2, 0.2), 5)
    present = Counter(labels)
    for split in Split:
        held = {label for label, other in zip(labels, splits, strict=True) if other is split}
        assert {label for label, n in present.items() if n >= 3} <= held


def test_a_split_without_a_share_stays_empty_and_a_lone_patient_trains() -> None:
    splits = assign_splits((FindingClass.HEALTHY,) * 8 + (FindingClass.COVID_19,), (0.75, 0.25, 0.0), 1)
    assert Counter(splits) == {Split.TRAIN: 7, Split.VALIDATION: 2}
    assert splits[-1] is Split.TRAIN
