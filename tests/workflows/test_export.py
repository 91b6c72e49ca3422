# SPDX-License-Identifier: Apache-2.0
"""One reading, all faces: the same millilitres and voxels in JSON, NIfTI, segmentation and report."""

import json

import numpy as np
import pytest
from pydicom import dcmread

from ucadi.cli.main import main
from ucadi.errors import ConfigError, DicomError
from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume
from ucadi.io.checkpoint import NetworkCard, write_model
from ucadi.io.nifti import read_nifti, write_nifti
from ucadi.models.parameters import parameters_of
from ucadi.models.registry import build_network
from ucadi.reporting.record import (
    ModelIdentity,
    ReadingRecord,
    describe_probabilities,
    measure_lesions,
)
from ucadi.results.seg import read_segmentation
from ucadi.results.sr import read_report
from ucadi.types import FindingClass, Task
from ucadi.workflows.export import (
    DICOM_FILES,
    DICOM_FOLDER,
    check_dicom_input,
    lung_labels,
    staged,
    write_dicom_results,
    write_heatmap,
)
from ucadi.workflows.predict import RESULT_FILES, predict

MODEL = ModelIdentity("0123456789ab", "toy model", "synthetic phantoms", ("A", "B"), 3, "plaintext")
SURE = np.tile([0.03, 0.71, 0.17, 0.09], (5, 1))
TORN = np.array([[0.9, 0.1, 0.0, 0.0], [0.2, 0.8, 0.0, 0.0], [0.8, 0.2, 0.0, 0.0]])


def reading(loaded, draws=SURE, *, has_lesion=True):
    """A record as the model would make it, with a lesion mask that has all densities."""
    volume, lungs = loaded.require()
    mask = lungs.left & (volume.voxels > -800) if has_lesion else np.zeros(volume.grid.shape, np.bool_)
    record = ReadingRecord(
        MODEL,
        loaded.report,
        describe_probabilities(draws),
        measure_lesions(volume, mask, lungs.mask, lung_left_ml=lungs.left_ml, lung_right_ml=lungs.right_ml),
    )
    return record, mask


def export(loaded, folder, record, mask):
    from matplotlib import image

    volume, lungs = loaded.require()
    image.imsave(folder / "overview.png", np.zeros((20, 30, 3), np.uint8))
    write_dicom_results(
        record, volume, mask, lungs, loaded.source, folder / "overview.png", folder / DICOM_FOLDER
    )
    return {what: folder / DICOM_FOLDER / name for what, name in DICOM_FILES.items()}


@pytest.mark.parametrize("case", ["turned-180", "enhanced-shuffled"])
def test_record_report_and_segmentation_hold_the_same_millilitres(
    awkward_ct, dicom_complaints, tmp_path, case
):
    loaded = awkward_ct(case)
    record, mask = reading(loaded)
    files = export(loaded, tmp_path, record, mask)
    measured = json.loads(json.dumps(record.to_json()))["segmentation"]
    segments = {segment.name: segment for segment in read_segmentation(files["segmentation"])}
    report = read_report(files["report"])
    names = {
        "Lesions": "lesion_ml",
        "Right lung": "lung_right_ml",
        "Left lung": "lung_left_ml",
        "Ground glass": "ground_glass_ml",
        "Consolidation": "consolidation_ml",
    }
    assert list(segments) == list(names)
    for name, field in names.items():
        assert measured[field] > 0, name
        assert report[name].numbers["118565006"] == measured[field]
        assert report[name].segment == (
            dcmread(files["segmentation"]).SOPInstanceUID,
            segments[name].number,
        )
        volume = segments[name].volume()
        assert np.count_nonzero(volume.voxels) * volume.grid.voxel_ml == pytest.approx(
            measured[field], rel=1e-6
        )
    assert report["Lesions"].numbers["LESION-SHARE"] == measured["lesion_share_percent"]
    assert report["Lesions"].numbers["LESION-COUNT"] == measured["lesion_count"]
    assert np.array_equal(segments["Lesions"].volume().voxels, mask)
    for path in files.values():
        assert dicom_complaints(path) == []


def test_results_of_a_repaired_scan_tell_of_the_repair(awkward_ct, tmp_path):
    loaded = awkward_ct("tilt-and-missing")
    record, mask = reading(loaded)
    files = export(loaded, tmp_path, record, mask)
    told = read_report(files["report"])["Classification"].texts["INPUT-REPAIR"]
    assert told == tuple(remark.text for remark in loaded.report.repairs)
    assert told
    right = read_segmentation(files["segmentation"])[1]
    assert len(right.planes) == len(loaded.source.instances)
    assert right.ml == pytest.approx(record.segmentation.lung_right_ml, rel=0.01)


def test_a_report_states_probabilities_with_their_spread_and_names_the_class(awkward_ct, tmp_path):
    record, mask = reading(awkward_ct("plain"))
    said = read_report(export(awkward_ct("plain"), tmp_path, record, mask)["report"])["Classification"]
    assert said.numbers["P-COVID-19"] == pytest.approx(71.0)
    assert sum(value for name, value in said.numbers.items() if name.startswith("P-")) == pytest.approx(100.0)
    assert said.numbers["SD-COVID-19"] == 0.0
    assert (said.answers["FINDING"], said.answers["AGREEMENT"]) == ("COVID-19", "HIGH")
    assert said.texts["STATEMENT"] == (record.classification.statement,)
    assert "Research use only" in said.texts["NOTICE"][0]


def test_a_report_can_say_that_nothing_can_be_said(awkward_ct, tmp_path):
    record, mask = reading(awkward_ct("plain"), TORN)
    said = read_report(export(awkward_ct("plain"), tmp_path, record, mask)["report"])["Classification"]
    assert said.answers["FINDING"] == "CANNOT-SAY"
    assert said.texts["STATEMENT"][0].startswith("Cannot say")
    assert said.numbers["SD-COVID-19"] == pytest.approx(100 * record.classification.spread["COVID-19"])


def test_healthy_lungs_give_empty_segments_and_zero_millilitres(awkward_ct, dicom_complaints, tmp_path):
    loaded = awkward_ct("plain")
    record, mask = reading(loaded, has_lesion=False)
    files = export(loaded, tmp_path, record, mask)
    assert [segment.ml > 0 for segment in read_segmentation(files["segmentation"])] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert read_report(files["report"])["Lesions"].numbers["118565006"] == 0.0
    assert [dicom_complaints(path) for path in files.values()] == [[], [], []]


def test_lung_labels_are_1_right_and_2_left(awkward_ct):
    lungs = awkward_ct("plain").lungs
    labels = lung_labels(lungs)
    assert np.array_equal(labels.voxels == 1, lungs.right)
    assert np.array_equal(labels.voxels == 2, lungs.left)
    assert np.count_nonzero(labels.voxels == 1) * labels.grid.voxel_ml == pytest.approx(lungs.right_ml)


# -- heatmaps ---------------------------------------------------------------------------------------------


def coarse_heatmap(grid: Grid) -> Volume:
    """A cone of heat on a grid twice as coarse, over a part of the scan."""
    box = tuple(slice(n // 4, 3 * n // 4) for n in grid.shape)
    coarse = grid.crop(box).with_spacing(tuple(2 * mm for mm in grid.spacing_mm))
    index = np.stack(np.meshgrid(*[np.arange(float(n)) for n in coarse.shape], indexing="ij"), axis=-1)
    far_mm = np.linalg.norm(
        coarse.to_world(index) - coarse.to_world((np.array(coarse.shape) - 1) / 2), axis=-1
    )
    return Volume(np.clip(1 - far_mm / 120, 0, 1).astype(np.float32), coarse)


def test_a_heatmap_is_written_on_its_own_grid_and_its_hot_region_on_the_source(
    awkward_ct, dicom_complaints, tmp_path
):
    loaded = awkward_ct("turned-180")
    grid = loaded.volume.grid
    heatmap = coarse_heatmap(grid)
    nifti, seg = tmp_path / "heat.nii.gz", tmp_path / "heat.dcm"
    write_heatmap(heatmap, FindingClass.COVID_19, 0.5, nifti, dicom=(seg, grid, loaded.source, MODEL))
    back = read_nifti(nifti)
    assert back.grid.is_close(heatmap.grid)
    assert np.array_equal(back.voxels, heatmap.voxels)
    assert dicom_complaints(seg) == []
    (segment,) = read_segmentation(seg)
    assert segment.kind.value == "130403"
    assert "0.50" in segment.description
    assert "not where disease is" in segment.description
    assert "COVID-19" in segment.description
    assert segment.volume().grid.is_close(grid)
    assert segment.ml == pytest.approx(4 / 3 * np.pi * 60**3 / 1000, rel=0.05)


def test_a_heatmap_needs_no_dicom(tmp_path):
    heatmap = coarse_heatmap(Grid.from_spacing((20, 40, 40), (5.0, 2.0, 2.0)))
    write_heatmap(heatmap, FindingClass.BACTERIAL, 0.3, tmp_path / "heat.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["heat.nii.gz"]


@pytest.mark.parametrize(("worst", "threshold"), [(1.5, 0.5), (np.nan, 0.5), (0.5, 0.0), (0.5, 1.0)])
def test_a_heatmap_out_of_range_is_a_wrong_call(tmp_path, worst, threshold):
    heatmap = coarse_heatmap(Grid.from_spacing((20, 40, 40), (5.0, 2.0, 2.0)))
    heatmap.voxels[0, 0, 0] = worst
    with pytest.raises(ValueError, match="heatmap"):
        write_heatmap(heatmap, FindingClass.BACTERIAL, threshold, tmp_path / "heat.nii.gz")
    assert list(tmp_path.iterdir()) == []


# -- all or nothing ---------------------------------------------------------------------------------------


def fill_disk(out, replaced):
    """Fails after the first file."""

    def write():
        with staged(out, replaced) as stage:
            (stage / "a").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        write()


def test_files_appear_together_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    fill_disk(out, [])
    assert list(tmp_path.iterdir()) == []
    with staged(out, []) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "b").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "sub", "b"]


def test_older_results_go_and_other_files_stay(tmp_path):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    for name in ("a", "sub/b", "mine"):
        (out / name).write_text("old")
    fill_disk(out, ["a", "sub/b"])
    assert (out / "sub" / "b").read_text() == "old"
    with staged(out, ["a", "sub/b"]) as stage:
        (stage / "a").write_text("new")
    assert (out / "a").read_text() == "new"
    assert (out / "mine").read_text() == "old"
    assert not (out / "sub" / "b").exists()


# -- the whole way ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with untrained networks."""
    folder = tmp_path_factory.mktemp("model")
    names = {Task.CLASSIFIER: "densenet3d", Task.SEGMENTATION: "unet3d"}
    write_model(
        folder,
        name="untrained",
        trained_on="nothing",
        cards={
            task: NetworkCard(name, "compact", "", 0, (), "plaintext", {}) for task, name in names.items()
        },
        parameters={task: parameters_of(build_network(name, task, 0)) for task, name in names.items()},
        run={},
    )
    return folder


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    from awkward_cases import make_cases

    folder = tmp_path_factory.mktemp("series")
    next(case for case in make_cases(64) if case.name == "plain").write(folder)
    return folder


def test_predict_writes_every_face_of_a_dicom_series(model, series, dicom_complaints, tmp_path):
    out = tmp_path / "out"
    record = predict(series, out, model, dicom=True)
    names = {
        *RESULT_FILES.values(),
        DICOM_FOLDER,
        *(f"{DICOM_FOLDER}/{name}" for name in DICOM_FILES.values()),
    }
    assert {str(path.relative_to(out)) for path in out.rglob("*")} == names
    assert list(tmp_path.iterdir()) == [out]
    written = json.loads((out / "record.json").read_bytes())
    assert written["files"][DICOM_FOLDER] == DICOM_FOLDER
    lesions = read_nifti(out / "lesion_mask.nii.gz")
    lungs = read_nifti(out / "lung_mask.nii.gz")
    segments = read_segmentation(out / DICOM_FOLDER / DICOM_FILES["segmentation"])
    assert np.array_equal(segments[0].volume().voxels, lesions.voxels > 0)
    assert np.array_equal(segments[1].volume().voxels, lungs.voxels == 1)
    assert np.array_equal(segments[2].volume().voxels, lungs.voxels == 2)
    report = read_report(out / DICOM_FOLDER / DICOM_FILES["report"])
    assert report["Lesions"].numbers["118565006"] == written["segmentation"]["lesion_ml"]
    assert record.segmentation.lesion_ml == pytest.approx(
        np.count_nonzero(lesions.voxels) * lesions.grid.voxel_ml
    )
    key_image = dcmread(out / DICOM_FOLDER / DICOM_FILES["key_image"])
    assert (key_image.Rows, key_image.Columns) == (1000, 1600)
    for name in DICOM_FILES.values():
        assert dicom_complaints(out / DICOM_FOLDER / name) == []


def test_a_later_reading_without_dicom_leaves_no_older_results_behind(model, series, tmp_path):
    out = tmp_path / "out"
    old = out / DICOM_FOLDER / DICOM_FILES["report"]
    old.parent.mkdir(parents=True)
    old.write_text("of another reading")
    predict(series, out, model)
    assert not old.exists()
    assert (out / "lung_mask.nii.gz").exists()


@pytest.mark.parametrize("kind", ["nifti", "text"])
def test_dicom_results_for_another_format_are_refused_before_any_work(make_ct, tmp_path, kind):
    path = tmp_path / "ct.nii"
    if kind == "nifti":
        write_nifti(make_ct(), path)
    else:
        path.write_text("no scan")
    with pytest.raises(ConfigError) as caught:
        predict(path, tmp_path / "out", tmp_path / "no model", dicom=True)
    assert caught.value.code == "dicom-source-needed"
    assert list(tmp_path.iterdir()) == [path]


def test_dicom_results_for_a_folder_with_a_volume_are_refused(model, make_ct, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_nifti(make_ct(), folder / "ct.nii")
    check_dicom_input(folder)  # what is in a folder shows when it is read
    with pytest.raises(ConfigError) as caught:
        predict(folder, tmp_path / "out", model, dicom=True)
    assert caught.value.code == "dicom-source-needed"
    assert not (tmp_path / "out").exists()


def test_a_series_without_a_study_gets_no_dicom_results_and_leaves_nothing(model, series, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in series.iterdir():
        image = dcmread(path)
        del image.StudyInstanceUID
        image.save_as(folder / path.name)
    with pytest.raises(DicomError) as caught:
        predict(folder, tmp_path / "out", model, dicom=True)
    assert caught.value.code == "dicom-no-identity"
    assert list(tmp_path.iterdir()) == [folder]


def test_the_command_says_in_one_sentence_that_dicom_needs_dicom(make_ct, tmp_path, capsys):
    write_nifti(make_ct(), tmp_path / "ct.nii")
    out, model = tmp_path / "out", tmp_path / "none"
    status = main(["predict", f"{tmp_path / 'ct.nii'}", "-o", f"{out}", "--model", f"{model}", "--dicom"])
    assert status == 2
    assert "dicom-source-needed" in capsys.readouterr().err
    assert not out.exists()
