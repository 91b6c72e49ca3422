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
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int16

from ucadi.errors import CohortError, UcadiError
from ucadi.imaging.inputs import lesion_grid, mask_on_grid, slices_for_classifier, volume_for_segmentation
from ucadi.imaging.lungs import find_lungs, lung_box
from ucadi.imaging.presets import InputPreset, preset_named
from ucadi.imaging.volume import Volume
from ucadi.io.checkpoint import write_bytes
from ucadi.io.cohort import Cohort, Study
from ucadi.io.nifti import read_nifti
from ucadi.learning.samples import ClassifierSamples, SegmentationSamples
from ucadi.logs import event, get_logger
from ucadi.types import Split, Task

__all__ = ["LUNG_MARGIN_MM", "PreparedStudy", "prepare_samples", "prepare_study"]

_LOG = get_logger("workflows.prepare")

LUNG_MARGIN_MM = 8.0
"""Added around the lungs before cutting, so that pleura and lesions at the edge stay inside."""

_RECIPE_VERSION = 1
"""Raise when the same preset gives other arrays."""

OnStudy = Callable[[int, int], None]
"""Called after each study with how many are ready, and of how many."""


@dataclass(frozen=True, eq=False)
class PreparedStudy:
    """Both networks' inputs of one study, memory-mapped.

    Attributes:
        slices_hu: For the classifier.
        volume_hu: For the segmentation.
        lesion_mask: On the segmentation's grid; None when the site has no mask for the study.
    """

    slices_hu: Int16[np.ndarray, "_z1 _y1 _x1"]
    volume_hu: Int16[np.ndarray, "z y x"]
    lesion_mask: Bool[np.ndarray, "z y x"] | None


def prepare_samples(
    cohorts: Iterable[Cohort], split: Split, task: Task, preset: str, cache: Path, on_study: OnStudy
) -> ClassifierSamples | SegmentationSamples:
    """Return all usable studies of one split as samples of a task.

    Args:
        cohorts: One, or several pooled.
        split: Which studies.
        task: The segmentation takes only studies with a mask.
        preset: Name of the input preset.
        cache: Folder for the arrays.
        on_study: Progress.

    Raises:
        CohortError: If no study is left. Studies whose file cannot be used are left out and logged.
    """
    sizes = preset_named(preset)
    wanted = [
        (cohort.root, study)
        for cohort in cohorts
        for study in cohort.of_split(split)
        if task is Task.CLASSIFIER or study.lesion_mask
    ]
    prepared: list[PreparedStudy] = []
    labels: list[int] = []
    for number, (root, study) in enumerate(wanted, start=1):
        try:
            prepared.append(prepare_study(root, study, preset, cache))
            labels.append(int(study.label))
        except UcadiError as error:
            event(_LOG, "study left out", study=study.study_key, code=error.code, detail=error.detail)
        on_study(number, len(wanted))
    if not prepared:
        raise CohortError("cohort-empty", f"No {split} study can be used for the {task}.")
    if task is Task.CLASSIFIER:
        return ClassifierSamples(tuple(p.slices_hu for p in prepared), np.array(labels), sizes)
    return SegmentationSamples(
        tuple(p.volume_hu for p in prepared),
        tuple(p.lesion_mask for p in prepared if p.lesion_mask is not None),
        sizes,
    )


def prepare_study(root: Path, study: Study, preset: str, cache: Path) -> PreparedStudy:
    """Return a study's inputs, from the cache when it is there.

    Raises:
        DataError: If the image cannot be read, shows no lungs, or the mask lies on another grid.
    """
    image = root / study.image
    mask = root / study.lesion_mask if study.lesion_mask else None
    folder = cache / _key(image, mask, preset)
    files = {name: folder / f"{name}.npy" for name in ("slices", "volume", "mask")}
    if not all(path.is_file() for name, path in files.items() if name != "mask" or mask):
        for name, array in _cut(image, mask, preset_named(preset)).items():
            write_bytes(files[name], _npy_bytes(array))
    lesion_mask = np.load(files["mask"], mmap_mode="r") if mask else None
    return PreparedStudy(
        np.load(files["slices"], mmap_mode="r"), np.load(files["volume"], mmap_mode="r"), lesion_mask
    )


def _cut(image: Path, mask: Path | None, preset: InputPreset) -> dict[str, np.ndarray]:
    """Read a study's files and cut the arrays."""
    volume = read_nifti(image)
    box = lung_box(find_lungs(volume), LUNG_MARGIN_MM)
    arrays: dict[str, np.ndarray] = {
        "slices": slices_for_classifier(volume, box, preset),
        "volume": volume_for_segmentation(volume, box, preset),
    }
    if mask is not None:
        read = read_nifti(mask)
        if not read.grid.is_close(volume.grid, tolerance_mm=0.1):
            raise CohortError(
                "cohort-invalid",
                f"{mask.name} has shape {read.grid.shape} and spacing {read.grid.spacing_mm}, which is not "
                f"the image's grid ({volume.grid.shape}, {volume.grid.spacing_mm}).",
                cure="Resample the mask to the image's grid.",
            )
        lesion = Volume(read.voxels > 0, volume.grid)
        arrays["mask"] = mask_on_grid(lesion, lesion_grid(volume.grid, box, preset))
    return arrays


def _key(image: Path, mask: Path | None, preset: str) -> str:
    """Return the cache folder's name."""
    digest = hashlib.sha256(f"{_RECIPE_VERSION} {preset_named(preset)} {LUNG_MARGIN_MM}".encode())
    for path in filter(None, (image, mask)):
        if not path.is_file():
            raise CohortError("input-not-found", f"{path} does not exist.")
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _npy_bytes(array: np.ndarray) -> bytes:
    """Return an array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
