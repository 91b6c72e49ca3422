# SPDX-License-Identifier: Apache-2.0
"""From a cohort's files to training samples, through a cache of memory-mapped int16 arrays.

A study is read, its lungs are found and both networks' inputs are cut once; later epochs, rounds and runs
open the cached arrays without copying them. The key of a study's cache folder covers the image's and the
mask's bytes and the recipe, so a changed file or a changed recipe is never mistaken for the cached one.
"""

import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ucadi.cohorts.cohort import Cohort, Study
from ucadi.cohorts.content import read_lesion_mask
from ucadi.errors import CohortError, UcadiError
from ucadi.imaging.inputs import lesion_grid, mask_on_grid, slices_for_classifier, volume_for_segmentation
from ucadi.imaging.lungs import lung_box
from ucadi.imaging.presets import InputPreset, preset_named
from ucadi.io.checkpoint import write_bytes
from ucadi.learning.samples import ClassifierSamples, SegmentationSamples
from ucadi.logs import event, get_logger
from ucadi.types import Split, Task
from ucadi.workflows.parallel import run_parallel
from ucadi.workflows.worker_reader import read_guarded

__all__ = ["LUNG_MARGIN_MM", "OnLeftOut", "OnStudy", "prepare_samples"]

_LOG = get_logger("workflows.prepare")

LUNG_MARGIN_MM = 8.0
"""Added around the lungs before cutting, so that pleura and lesions at the edge stay inside."""

_RECIPE_VERSION = 2
"""Raise when the same preset gives other arrays."""

OnStudy = Callable[[int, int], None]
"""Called after each study with how many are ready, and of how many."""

OnLeftOut = Callable[[Study, str], None]
"""Called with each study that cannot be used, and the code that says why."""


def prepare_samples(
    cohorts: Iterable[Cohort],
    split: Split,
    task: Task,
    preset: str,
    cache: Path,
    on_study: OnStudy,
    *,
    jobs: int = 1,
    on_left_out: OnLeftOut = lambda study, code: None,
) -> ClassifierSamples | SegmentationSamples:
    """Return all usable studies of one split as samples of a task.

    Args:
        cohorts: One, or several pooled.
        split: Which studies.
        task: The segmentation takes only studies with a mask.
        preset: Name of the input preset.
        cache: Folder for the arrays.
        on_study: Progress.
        jobs: Number of processes that cut what is not in the cache; 1 works in this one.
        on_left_out: Told of each study that cannot be used; the log has it too.

    Raises:
        CohortError: If no study is left.
    """
    wanted = [
        (cohort.root, study)
        for cohort in cohorts
        for study in cohort.of_split(split)
        if task is Task.CLASSIFIER or study.lesion_mask
    ]
    folders: list[Path | None] = [None] * len(wanted)
    fill = partial(_fill, preset, cache)
    for done, (place, filled) in enumerate(run_parallel(fill, wanted, jobs), start=1):
        folders[place] = filled.folder
        if filled.folder is None:
            study = wanted[place][1]
            event(_LOG, "study left out", study=study.study_key, code=filled.code)
            on_left_out(study, filled.code)
        on_study(done, len(wanted))
    usable = [(study, folder) for (_, study), folder in zip(wanted, folders, strict=True) if folder]
    if not usable:
        raise CohortError("cohort-empty", f"No {split} study can be used for the {task}.")
    if task is Task.CLASSIFIER:
        labels = np.array([int(study.label) for study, _ in usable])
        slices = tuple(_mapped(folder, "slices") for _, folder in usable)
        return ClassifierSamples(slices, labels, preset_named(preset))
    return SegmentationSamples(
        tuple(_mapped(folder, "volume") for _, folder in usable),
        tuple(_mapped(folder, "mask") for _, folder in usable),
        preset_named(preset),
    )


@dataclass(frozen=True)
class _Filled:
    """A study's folder in the cache, or why there is none: errors do not travel between processes."""

    folder: Path | None
    code: str = ""


def _fill(preset: str, cache: Path, located: tuple[Path, Study]) -> _Filled:
    """Write a study's arrays into the cache unless they are there."""
    root, study = located
    image = root / study.image
    mask = root / study.lesion_mask if study.lesion_mask else None
    try:
        folder = cache / _key(image, mask, preset)
        if not all(path.is_file() for path in _files(folder, has_mask=mask is not None).values()):
            for name, array in _cut(image, mask, preset_named(preset)).items():
                write_bytes(folder / f"{name}.npy", _npy_bytes(array))
    except UcadiError as error:
        return _Filled(None, error.code)
    return _Filled(folder)


def _files(folder: Path, *, has_mask: bool) -> dict[str, Path]:
    """Return the files of a study in the cache."""
    return {name: folder / f"{name}.npy" for name in ("slices", "volume", *(["mask"] if has_mask else []))}


def _mapped(folder: Path, name: str) -> np.ndarray:
    """Map one of a study's arrays into memory."""
    array: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r")
    return array


def _cut(image: Path, mask: Path | None, preset: InputPreset) -> dict[str, np.ndarray]:
    """Read a study's files as for a reading, and cut the arrays."""
    volume, lungs = read_guarded(image).require()
    box = lung_box(lungs, LUNG_MARGIN_MM)
    arrays: dict[str, np.ndarray] = {
        "slices": slices_for_classifier(volume, box, preset),
        "volume": volume_for_segmentation(volume, box, preset),
    }
    if mask is not None:
        lesion = read_lesion_mask(mask, volume.grid)
        arrays["mask"] = mask_on_grid(lesion, lesion_grid(volume.grid, box, preset))
    return arrays


def _key(image: Path, mask: Path | None, preset: str) -> str:
    """Return the cache folder's name."""
    digest = hashlib.sha256(f"{_RECIPE_VERSION} {preset_named(preset)} {LUNG_MARGIN_MM}".encode())
    for path in filter(None, (image, mask)):
        if not path.is_file():
            raise CohortError("input-not-found", f"{path} does not exist.")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _npy_bytes(array: np.ndarray) -> bytes:
    """Return an array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
