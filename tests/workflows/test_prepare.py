# SPDX-License-Identifier: Apache-2.0
import json
import logging
from functools import cache

import nibabel as nib
import numpy as np
import pytest

from ucadi.cohorts.cohort import Cohort, Study, write_cohort
from ucadi.errors import CohortError
from ucadi.imaging.presets import preset_named
from ucadi.io import guard
from ucadi.logs import log_to_file
from ucadi.types import FindingClass, Split, Task
from ucadi.workflows import worker_reader
from ucadi.workflows.prepare import prepare_samples

CRASH = (
    "import os, ucadi.io.guard as guard; read = guard.load_ct;"
    "guard.load_ct = lambda path, **more: os.abort() if path.endswith('S2.nii') else read(path, **more);"
    "guard._serve()"
)
"""The reading process of which one file makes the decoder crash."""

COMPACT = preset_named("compact")


def save(path, voxels, grid):
    """Write a volume as NIfTI: array order (x, y, z), world RAS."""
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine_lps
    affine = to_ras[:, [2, 1, 0, 3]]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels.T), affine), path)


def study(key, *, mask="", split=Split.TRAIN, label=FindingClass.COVID_19) -> Study:
    return Study(f"P-{key}", key, split, label, None, f"{key}.nii", lesion_mask=mask)


@pytest.fixture
def cohort(tmp_path, make_ct):
    """Two studies with a CT each, of which one has a mask, and one whose file is no image."""
    root = tmp_path / "cohort"
    root.mkdir()
    ct = make_ct()
    lesion = np.zeros(ct.grid.shape, np.uint8)
    lesion[15:19, 30:36, 40:46] = 1
    save(root / "S1.nii", ct.voxels, ct.grid)
    save(root / "S2.nii", ct.voxels + np.int16(1), ct.grid)
    save(root / "S1-mask.nii", lesion, ct.grid)
    (root / "S3.nii").write_bytes(b"no image")
    return write_cohort(
        root,
        (
            study("S1", mask="S1-mask.nii"),
            study("S2", label=FindingClass.HEALTHY),
            study("S3", label=FindingClass.BACTERIAL),
        ),
    )


def prepare(cohort, task, cache, told=lambda ready, total: None):
    return prepare_samples([cohort], Split.TRAIN, task, "compact", cache, told)


def test_the_classifier_gets_all_studies_that_can_be_read(cohort, tmp_path):
    told = []
    samples = prepare(
        cohort, Task.CLASSIFIER, tmp_path / "cache", lambda ready, total: told.append((ready, total))
    )
    assert list(samples.labels) == [FindingClass.COVID_19, FindingClass.HEALTHY]
    assert all(voxels.shape[1:] == (COMPACT.stack_size,) * 2 for voxels in samples.slices_hu)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_segmentation_gets_the_studies_with_a_mask(cohort, tmp_path):
    samples = prepare(cohort, Task.SEGMENTATION, tmp_path / "cache")
    assert len(samples) == 1
    assert samples.lesion_masks[0].shape == samples.volumes_hu[0].shape
    assert samples.lesion_masks[0].any()


def test_a_study_left_out_is_in_the_sites_own_log(cohort, tmp_path):
    log_to_file(tmp_path / "site.jsonl")
    prepare(cohort, Task.CLASSIFIER, tmp_path / "cache")
    for handler in logging.getLogger("ucadi").handlers:
        handler.flush()
    (line,) = [json.loads(line) for line in (tmp_path / "site.jsonl").read_text().splitlines()]
    assert (line["message"], line["study"], line["level"]) == ("study left out", "S3", "info")
    assert line["code"] == "input-unsupported"


def test_the_log_holds_no_path_of_a_study_left_out(cohort, tmp_path):
    log_to_file(tmp_path / "site.jsonl")
    (cohort.root / "S2.nii").unlink()  # the refusal names the file
    prepare(cohort, Task.CLASSIFIER, tmp_path / "cache")
    for handler in logging.getLogger("ucadi").handlers:
        handler.flush()
    log = (tmp_path / "site.jsonl").read_text()
    assert '"input-not-found"' in log
    assert "S2.nii" not in log
    assert str(tmp_path) not in log


def test_a_split_without_a_usable_study_is_refused(cohort, tmp_path):
    with pytest.raises(CohortError) as caught:
        prepare_samples([cohort], Split.TEST, Task.CLASSIFIER, "compact", tmp_path, lambda ready, total: None)
    assert caught.value.code == "cohort-empty"


def prepare_one(cohort, number, preset, cache):
    """Return volume and mask of a study with a mask, slices of others, or the code of a study left out."""
    entry = cohort.studies[number]
    task = Task.SEGMENTATION if entry.lesion_mask else Task.CLASSIFIER
    alone = Cohort(cohort.root, (entry,))
    left_out = []
    try:
        samples = prepare_samples(
            [alone], Split.TRAIN, task, preset, cache, lambda ready, total: None,
            on_left_out=lambda study, code: left_out.append(code),
        )  # fmt: skip
    except CohortError:
        return left_out
    if task is Task.CLASSIFIER:
        return samples.slices_hu[0]
    return samples.volumes_hu[0], samples.lesion_masks[0]


def test_a_prepared_study_comes_from_the_cache_without_its_image_being_read_again(cohort, tmp_path):
    cache = tmp_path / "cache"
    first, _ = prepare_one(cohort, 0, "compact", cache)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    second, _ = prepare_one(cohort, 0, "compact", cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == written
    assert len(written) == 3
    assert isinstance(second, np.memmap)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match="read-only"):
        second[0] = 0


@pytest.mark.parametrize("file", ["S1.nii", "S1-mask.nii"])
def test_a_changed_file_is_prepared_anew(cohort, tmp_path, make_ct, file):
    before = prepare_one(cohort, 0, "compact", tmp_path / "cache")
    ct = make_ct()
    changed = np.ones(ct.grid.shape, np.uint8) if "mask" in file else ct.voxels + np.int16(7)
    save(cohort.root / file, changed.astype(np.int16), ct.grid)
    after = prepare_one(cohort, 0, "compact", tmp_path / "cache")
    place = 1 if "mask" in file else 0
    assert not np.array_equal(before[place], after[place])


def test_another_preset_is_prepared_anew(cohort, tmp_path):
    prepare_one(cohort, 1, "compact", tmp_path / "cache")
    assert prepare_one(cohort, 1, "paper", tmp_path / "cache").shape[1:] == (128, 128)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_an_interrupted_cache_is_completed(cohort, tmp_path):
    prepare_one(cohort, 0, "compact", tmp_path / "cache")
    (lost,) = (tmp_path / "cache").rglob("mask.npy")
    lost.unlink()
    _, mask = prepare_one(cohort, 0, "compact", tmp_path / "cache")
    assert mask.any()


def test_a_mask_on_another_grid_is_refused(cohort, tmp_path, make_ct):
    ct = make_ct()
    save(cohort.root / "S1-mask.nii", np.ones(ct.grid.shape, np.uint8), ct.grid.with_spacing((5.0, 5.5, 5.4)))
    assert prepare_one(cohort, 0, "compact", tmp_path / "cache") == ["cohort-mask"]


def test_an_image_that_a_reading_would_refuse_is_refused_in_training_too(cohort, tmp_path, make_ct):
    ct = make_ct()
    save(cohort.root / "S1.nii", ct.voxels[:20], ct.grid.crop((slice(0, 20), *map(slice, (0, 0), (64, 64)))))
    assert prepare_one(cohort, 0, "compact", tmp_path / "cache") == ["ct-incomplete-chest"]


def test_an_image_on_which_the_reader_crashes_is_left_out_and_the_others_are_used(
    cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr(guard, "_PROGRAM", CRASH)
    monkeypatch.setattr(worker_reader, "_reader", cache(guard.GuardedReader))
    told = []
    samples = prepare_samples(
        [cohort], Split.TRAIN, Task.CLASSIFIER, "compact", tmp_path / "cache", lambda ready, total: None,
        on_left_out=lambda study, code: told.append((study.study_key, code)),
    )  # fmt: skip
    worker_reader._reader().__exit__(None, None, None)
    assert told == [("S2", "input-unreadable"), ("S3", "input-unsupported")]
    assert list(samples.labels) == [FindingClass.COVID_19]


def test_padding_counts_as_air_as_in_a_reading(cohort, tmp_path, make_ct):
    ct = make_ct()
    plain, _ = prepare_one(cohort, 0, "compact", tmp_path / "cache")
    padded = np.where(ct.voxels <= -1024, -3024, ct.voxels)
    padded[:, 0, 0] = -3024  # a corner outside the scan circle
    save(cohort.root / "S1.nii", padded, ct.grid)
    again, _ = prepare_one(cohort, 0, "compact", tmp_path / "cache")
    np.testing.assert_array_equal(again, plain)


def test_each_study_left_out_is_told_with_its_code(cohort, tmp_path):
    told = []
    prepare_samples(
        [cohort],
        Split.TRAIN,
        Task.CLASSIFIER,
        "compact",
        tmp_path / "cache",
        lambda ready, total: None,
        on_left_out=lambda study, code: told.append((study.study_key, code)),
    )
    assert told == [("S3", "input-unsupported")]


@pytest.mark.slow
def test_two_processes_prepare_the_same_as_one(cohort, tmp_path):
    def voxels(cache, jobs):
        samples = prepare_samples(
            [cohort], Split.TRAIN, Task.CLASSIFIER, "compact", cache, lambda ready, total: None, jobs=jobs
        )
        return samples.labels.tolist(), [np.array(slices) for slices in samples.slices_hu]

    labels, alone = voxels(tmp_path / "one", 1)
    others, together = voxels(tmp_path / "two", 2)
    assert labels == others
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, two)
