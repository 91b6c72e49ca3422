# SPDX-License-Identifier: Apache-2.0
"""Read one CT with a model: probabilities, lesion mask, measurements, pictures and a report."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import nn

from ucadi.errors import CheckpointError, ConfigError
from ucadi.imaging.inputs import lesion_grid, slices_for_classifier, volume_for_segmentation
from ucadi.imaging.intensity import LESION_WINDOW_HU, apply_window
from ucadi.imaging.lungs import Lungs, lung_box
from ucadi.imaging.presets import preset_named
from ucadi.imaging.resample import resample_linear
from ucadi.imaging.volume import Volume
from ucadi.io.checkpoint import MANIFEST_FILE, ModelFolder, read_model, write_json
from ucadi.io.guard import load_untrusted
from ucadi.io.nifti import write_nifti
from ucadi.io.reader import LoadedCt
from ucadi.io.source import SourceSeries
from ucadi.learning.inference import class_probabilities, lesion_probabilities
from ucadi.learning.samples import ClassifierSamples
from ucadi.models.parameters import load_parameters
from ucadi.models.registry import build_network
from ucadi.reporting.overview import draw_overview
from ucadi.reporting.record import ModelIdentity, ReadingRecord, describe_probabilities, measure_lesions
from ucadi.reporting.report import write_report
from ucadi.results.identity import source_identity
from ucadi.types import Task
from ucadi.workflows.export import (
    DICOM_FILES,
    DICOM_FOLDER,
    check_dicom_input,
    lung_labels,
    staged,
    write_dicom_results,
)
from ucadi.workflows.prepare import LUNG_MARGIN_MM

__all__ = ["MODEL_VARIABLE", "RESULT_FILES", "default_model", "predict"]

MODEL_VARIABLE = "UCADI_MODEL"
"""Environment variable that names the default model folder."""

RESULT_FILES = {
    "record": "record.json",
    "lesion_mask": "lesion_mask.nii.gz",
    "lung_mask": "lung_mask.nii.gz",
    "overview": "overview.png",
    "report": "report.html",
}

Box = tuple[slice, slice, slice]


def default_model() -> Path:
    """Return the model folder of ``UCADI_MODEL``, else the one that ``make demo`` leaves here.

    Raises:
        CheckpointError: If there is neither.
    """
    named = os.environ.get(MODEL_VARIABLE)
    folder = Path(named) if named else Path("demo-out") / "model"
    if not (folder / MANIFEST_FILE).is_file():
        raise CheckpointError(
            "checkpoint-invalid",
            f"There is no model in {folder}.",
            cure=f"Run `ucadi demo -o demo-out` to train one, give --model, or set {MODEL_VARIABLE}.",
        )
    return folder


def predict(
    source: Path,
    folder: Path,
    model_folder: Path,
    federation: Mapping[str, Any] | None = None,
    *,
    series: str = "",
    dicom: bool = False,
) -> ReadingRecord:
    """Read a CT and write the result files into a folder, all of them or none.

    Args:
        source: DICOM folder, file or zip, or a volume's file.
        folder: Where the results go; nothing is written when the input is refused.
        model_folder: A model with a classifier and a segmentation network.
        federation: The training's summary, for the report.
        series: UID or key of the series to read; empty for the best.
        dicom: Whether to write results for the PACS too; only for DICOM inputs.

    Raises:
        ConfigError: If results for the PACS are asked for and the input is no DICOM.
        DataError: If the input is refused.
        CheckpointError: If the model folder is damaged or lacks a network.
    """
    if dicom:
        check_dicom_input(source)
    seconds: dict[str, float] = {}
    with _timed(seconds, "model"):
        model = read_model(model_folder)
        networks = {task: _network(model, task) for task in Task}
    with _timed(seconds, "read"):
        loaded = load_untrusted(source, series=series)
        volume, lungs = loaded.require()
        images = _images(loaded) if dicom else None
        box = lung_box(lungs, LUNG_MARGIN_MM)
    with _timed(seconds, "classify"):
        preset = model.cards[Task.CLASSIFIER].preset
        draws = _classify(volume, box, networks[Task.CLASSIFIER], preset)
    with _timed(seconds, "segment"):
        preset = model.cards[Task.SEGMENTATION].preset
        mask = _segment(volume, box, networks[Task.SEGMENTATION], preset)
    with _timed(seconds, "measure"):
        measured = measure_lesions(
            volume, mask, lungs.mask, lung_left_ml=lungs.left_ml, lung_right_ml=lungs.right_ml
        )
    record = ReadingRecord(
        model=_identity(model),
        input=loaded.report,
        classification=describe_probabilities(draws),
        segmentation=measured,
        files={**RESULT_FILES, DICOM_FOLDER: DICOM_FOLDER} if dicom else RESULT_FILES,
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )
    older = [*RESULT_FILES.values(), *(f"{DICOM_FOLDER}/{name}" for name in DICOM_FILES.values())]
    with staged(folder, older) as stage:
        _write(record, volume, mask, lungs, federation, stage)
        if images:
            overview = stage / RESULT_FILES["overview"]
            write_dicom_results(record, volume, mask, lungs, images, overview, stage / DICOM_FOLDER)
    return record


def _images(loaded: LoadedCt) -> SourceSeries:
    """Return the images that results for the PACS refer to, after a check that they can be referred to."""
    if loaded.source is None:
        raise ConfigError("dicom-source-needed", "The input holds a volume that is no DICOM series.")
    source_identity(loaded.source)
    return loaded.source


def _write(
    record: ReadingRecord,
    volume: Volume,
    mask: Bool[np.ndarray, "z y x"],
    lungs: Lungs,
    federation: Mapping[str, Any] | None,
    folder: Path,
) -> None:
    """Write the result files that every reading has."""
    write_nifti(Volume(mask, volume.grid), folder / RESULT_FILES["lesion_mask"])
    write_nifti(lung_labels(lungs), folder / RESULT_FILES["lung_mask"])
    draw_overview(volume, mask, lungs.mask, record, folder / RESULT_FILES["overview"])
    write_report(folder / RESULT_FILES["report"], record, folder / RESULT_FILES["overview"], federation)
    write_json(folder / RESULT_FILES["record"], record.to_json())


def _network(model: ModelFolder, task: Task) -> nn.Module:
    """Build one of a model's networks."""
    if task not in model.cards:
        raise CheckpointError(
            "checkpoint-invalid",
            f"The model {model.model_id} has no {task} network.",
            cure="Give a released model with both networks.",
        )
    network = build_network(model.cards[task].network, task, seed=0)
    load_parameters(network, model.parameters[task])
    return network


def _classify(
    volume: Volume, box: Box, network: nn.Module, preset: str
) -> Float[np.ndarray, "draws classes"]:
    """Return the class probabilities of each draw."""
    sizes = preset_named(preset)
    slices = slices_for_classifier(volume, box, sizes)
    return class_probabilities(network, ClassifierSamples((slices,), np.zeros(1, np.int64), sizes), 0)


def _segment(volume: Volume, box: Box, network: nn.Module, preset: str) -> Bool[np.ndarray, "z y x"]:
    """Return the lesion mask on the volume's grid."""
    sizes = preset_named(preset)
    window = apply_window(volume_for_segmentation(volume, box, sizes), LESION_WINDOW_HU)
    probabilities = lesion_probabilities(network, window, sizes)
    source = volume.grid.crop(box)
    fine = resample_linear(probabilities, lesion_grid(volume.grid, box, sizes), source)
    mask = np.zeros(volume.grid.shape, np.bool_)
    mask[box] = fine > 0.5
    return mask


def _identity(model: ModelFolder) -> ModelIdentity:
    """Return what the record says about the model."""
    card = model.cards[Task.CLASSIFIER]
    return ModelIdentity(
        id=model.model_id,
        name=model.name,
        trained_on=model.trained_on,
        sites=card.sites,
        rounds=card.rounds,
        protection=card.protection,
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall time of a stage."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = time.monotonic() - started
