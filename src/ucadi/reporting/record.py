# SPDX-License-Identifier: Apache-2.0
"""The record of one reading: every number that a report, a page or a JSON file shows comes from here.

Numbers are measured once, by the two functions of this module, and shown everywhere else as they are.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage

from ucadi import __version__
from ucadi.imaging.volume import Volume
from ucadi.io.report import LoaderReport
from ucadi.types import FindingClass
from ucadi.versions import RECORD_VERSION

__all__ = [
    "CONSOLIDATION_HU",
    "GROUND_GLASS_HU",
    "MIN_LESION_ML",
    "MIN_TOP_PROBABILITY",
    "PLAINTEXT",
    "RESEARCH_NOTICE",
    "Agreement",
    "ClassificationResult",
    "ModelIdentity",
    "ReadingRecord",
    "SegmentationResult",
    "density_masks",
    "describe_probabilities",
    "measure_lesions",
    "whole_percents",
]

RESEARCH_NOTICE = (
    "Research use only. Not a medical device. The model was trained on synthetic phantoms only and has not "
    "been validated on patients. A qualified reader must review every result."
)
"""Stands on every face of a result."""

PLAINTEXT = "plaintext"
"""The name of a run without protection of its updates; a report shows it in red."""

GROUND_GLASS_HU = (-750.0, -300.0)
"""Lesion voxels from the first bound up to, not including, the second count as ground glass.

Source of -300 HU: "Quantitative CT for detecting COVID-19 pneumonia in suspected cases", BMC Infectious
Diseases 2021, where it parted ground glass from consolidation best of eight thresholds. -750 HU is our
choice: healthy aerated lung lies below it.
"""

CONSOLIDATION_HU = (-300.0, 150.0)
"""Lesion voxels from the first bound up to and including the second count as consolidation.

The upper bound is ours: denser voxels in a mask are bone, calcium or contrast, not consolidated lung.
"""

MIN_LESION_ML = 0.05
"""Smaller connected pieces are not counted: 0.05 mL is a ball of 4.6 mm, a few voxels of a thick slice."""

MIN_TOP_PROBABILITY = 0.5
"""Below this mean probability of the first class, the statement is "cannot say": the others outweigh it."""

# Agreement of the draws on the first class. The bounds are conventions of this project, not a calibration: a
# spread of 0.20 lets two draws of three lie 40 points apart, at which no reader would call them agreed.
_HIGH_AGREEMENT = (1.0, 0.10)
"""(share of draws with the same first class, at least; spread of its probability, at most)."""
_MODERATE_AGREEMENT = (0.6, 0.20)

_FINDING_WORDS = {
    FindingClass.HEALTHY.title: "healthy lungs",
    FindingClass.COVID_19.title: "COVID-19 pneumonia",
    FindingClass.OTHER_VIRAL.title: "another viral pneumonia",
    FindingClass.BACTERIAL.title: "bacterial pneumonia",
}


class Agreement(StrEnum):
    """How far the draws of one reading agree."""

    LOW = "low"
    MODERATE = "moderate"
    HIGH = "high"


@dataclass(frozen=True)
class ModelIdentity:
    """Which model read the scan and how it came to be.

    Attributes:
        id: First 12 hex digits of the hash of the released model.
        name: Its name for people.
        trained_on: What the training data were, in words.
        sites: Who took part.
        rounds: Rounds that made it.
        protection: How updates were protected; `PLAINTEXT` when they were not.
    """

    id: str
    name: str
    trained_on: str
    sites: tuple[str, ...]
    rounds: int
    protection: str


@dataclass(frozen=True)
class ClassificationResult:
    """What the classifier says, with its uncertainty.

    Attributes:
        probabilities: Mean over the draws by class title; they sum to 1.
        spread: Standard deviation over the draws by class title, in [0, 0.71]; 0 for one draw.
        draws: Number of draws.
        agreement: How far the draws agree on the first class.
        statement: The result in one sentence, which may be that nothing can be said.
    """

    probabilities: Mapping[str, float]
    spread: Mapping[str, float]
    draws: int
    agreement: Agreement
    statement: str

    @property
    def is_conclusive(self) -> bool:
        """Whether the statement names a class rather than "cannot say"."""
        return self.agreement is not Agreement.LOW and max(self.probabilities.values()) >= MIN_TOP_PROBABILITY


@dataclass(frozen=True)
class SegmentationResult:
    """What was measured on the lesion mask.

    Attributes:
        lesion_ml: All marked voxels.
        lung_ml: Both lungs, from the lung mask.
        lung_left_ml: The patient's left lung.
        lung_right_ml: The patient's right lung.
        lesion_share_percent: Marked voxels inside the lung mask, in percent of that mask; 0 without lungs.
        ground_glass_ml: Marked voxels within `GROUND_GLASS_HU`.
        consolidation_ml: Marked voxels within `CONSOLIDATION_HU`.
        lesion_count: Connected pieces larger than `MIN_LESION_ML`.
    """

    lesion_ml: float
    lung_ml: float
    lung_left_ml: float
    lung_right_ml: float
    lesion_share_percent: float
    ground_glass_ml: float
    consolidation_ml: float
    lesion_count: int

    @property
    def other_density_ml(self) -> float:
        """Marked voxels outside both ranges: aerated lung, or denser than consolidation."""
        return self.lesion_ml - self.ground_glass_ml - self.consolidation_ml


@dataclass(frozen=True)
class ReadingRecord:
    """Everything that one reading produced.

    Attributes:
        model: Which model read.
        input: What was found, chosen and repaired in the input.
        classification: Probabilities and the statement.
        segmentation: Measured volumes.
        files: File name by what it holds; plain names, so that no folder of a site travels.
        seconds: Time by stage.

    Raises:
        ValueError: If a file is given with a folder.
    """

    model: ModelIdentity
    input: LoaderReport
    classification: ClassificationResult
    segmentation: SegmentationResult
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.files.values():
            if PurePath(name).name != name:
                raise ValueError("a record holds plain file names, without a folder")

    def to_json(self) -> dict[str, Any]:
        """Return a plain object for JSON."""
        return {
            "record_version": RECORD_VERSION,
            "ucadi_version": __version__,
            "notice": RESEARCH_NOTICE,
            "model": asdict(self.model),
            "input": self.input.to_json(),
            "classification": asdict(self.classification),
            "segmentation": asdict(self.segmentation),
            "files": dict(self.files),
            "seconds": dict(self.seconds),
        }


def describe_probabilities(probabilities: Float[np.ndarray, "draws classes"]) -> ClassificationResult:
    """Sum up the class probabilities of several draws of one scan.

    Args:
        probabilities: One row for each draw, columns in the order of `FindingClass`; rows sum to 1.

    Raises:
        ValueError: If there is no row, a column is missing, or a row is not a distribution.
    """
    if probabilities.ndim != 2 or len(probabilities) < 1 or probabilities.shape[1] != len(FindingClass):
        raise ValueError(f"probabilities need {len(FindingClass)} columns, got {probabilities.shape}")
    rows = probabilities.astype(np.float64)
    if not np.isfinite(rows).all() or rows.min() < 0 or np.abs(rows.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("each draw must be a distribution: no negative number, sum 1")
    rows /= rows.sum(axis=1, keepdims=True)
    draws = len(rows)
    mean = rows.mean(axis=0)
    spread = rows.std(axis=0, ddof=1) if draws > 1 else np.zeros_like(mean)
    titles = [finding.title for finding in FindingClass]
    by_class = dict(zip(titles, mean.tolist(), strict=True))
    agreement = _agreement(rows, int(mean.argmax()), float(spread[mean.argmax()]))
    return ClassificationResult(
        probabilities=by_class,
        spread=dict(zip(titles, spread.tolist(), strict=True)),
        draws=draws,
        agreement=agreement,
        statement=_statement(by_class, float(spread[mean.argmax()]), draws, agreement),
    )


def measure_lesions(
    volume: Volume,
    lesion_mask: Bool[np.ndarray, "z y x"],
    lung_mask: Bool[np.ndarray, "z y x"],
    *,
    lung_left_ml: float,
    lung_right_ml: float,
) -> SegmentationResult:
    """Measure a lesion mask: volumes in mL, share of lung, density, number of pieces.

    Args:
        volume: The CT in HU.
        lesion_mask: Marked voxels on the same grid.
        lung_mask: Both lungs on the same grid.
        lung_left_ml: The patient's left lung, as the lung finder measured it.
        lung_right_ml: The patient's right lung, likewise.

    Raises:
        ValueError: If a mask has another shape than the volume.
    """
    if not volume.voxels.shape == lesion_mask.shape == lung_mask.shape:
        raise ValueError("volume, lesion mask and lung mask must have the same shape")
    voxel_ml = volume.grid.voxel_ml
    hu = volume.voxels[lesion_mask]
    lung_voxels = int(np.count_nonzero(lung_mask))
    inside = int(np.count_nonzero(lesion_mask & lung_mask))
    is_ground_glass, is_consolidation = _by_density(hu)
    return SegmentationResult(
        lesion_ml=hu.size * voxel_ml,
        lung_ml=lung_voxels * voxel_ml,
        lung_left_ml=lung_left_ml,
        lung_right_ml=lung_right_ml,
        lesion_share_percent=100.0 * inside / lung_voxels if lung_voxels else 0.0,
        ground_glass_ml=int(np.count_nonzero(is_ground_glass)) * voxel_ml,
        consolidation_ml=int(np.count_nonzero(is_consolidation)) * voxel_ml,
        lesion_count=_count_pieces(lesion_mask, voxel_ml),
    )


def density_masks(
    volume: Volume, lesion_mask: Bool[np.ndarray, "z y x"]
) -> tuple[Bool[np.ndarray, "z y x"], Bool[np.ndarray, "z y x"]]:
    """Return the ground glass and the consolidation of a lesion mask, which `measure_lesions` counts.

    Args:
        volume: The CT in HU.
        lesion_mask: Marked voxels on the same grid.
    """
    masks = np.zeros((2, *lesion_mask.shape), np.bool_)
    for mask, is_inside in zip(masks, _by_density(volume.voxels[lesion_mask]), strict=True):
        mask[lesion_mask] = is_inside
    return masks[0], masks[1]


def whole_percents(probabilities: Mapping[str, float]) -> dict[str, int]:
    """Round probabilities to whole percents that sum to 100 (largest remainder first).

    Raises:
        ValueError: If the probabilities do not sum to 1 within 0.001.
    """
    exact = {name: 100.0 * value for name, value in probabilities.items()}
    if abs(sum(exact.values()) - 100.0) > 0.1:
        raise ValueError("probabilities must sum to 1")
    percents = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: percents[name] - exact[name])
    for name in by_remainder[: 100 - sum(percents.values())]:
        percents[name] += 1
    return percents


def _by_density(
    hu: Shaped[np.ndarray, " voxels"],
) -> tuple[Bool[np.ndarray, " voxels"], Bool[np.ndarray, " voxels"]]:
    """Tell which values are ground glass and which consolidation."""
    ground_glass = (hu >= GROUND_GLASS_HU[0]) & (hu < GROUND_GLASS_HU[1])
    consolidation = (hu >= CONSOLIDATION_HU[0]) & (hu <= CONSOLIDATION_HU[1])
    return ground_glass, consolidation


def _agreement(rows: Float[np.ndarray, "draws classes"], first: int, spread: float) -> Agreement:
    """Put the draws' agreement on the first class into a word; one draw shows none."""
    if len(rows) < 2:
        return Agreement.LOW
    share = float(np.mean(rows.argmax(axis=1) == first))
    for agreement, bounds in ((Agreement.HIGH, _HIGH_AGREEMENT), (Agreement.MODERATE, _MODERATE_AGREEMENT)):
        if share >= bounds[0] and spread <= bounds[1]:
            return agreement
    return Agreement.LOW


def _statement(by_class: Mapping[str, float], spread: float, draws: int, agreement: Agreement) -> str:
    """Put the result into one sentence."""
    first = max(by_class, key=lambda name: by_class[name])
    percent = whole_percents(by_class)[first]
    points = round(100 * spread)
    if draws < 2:
        return f"Cannot say: one draw shows no spread (highest: {first} at {percent} %)."
    if agreement is Agreement.LOW:
        highest = f"highest: {first} at {percent} %, spread {points} points"
        return f"Cannot say: the {draws} draws disagree ({highest})."
    if by_class[first] < MIN_TOP_PROBABILITY:
        bound = round(100 * MIN_TOP_PROBABILITY)
        return f"Cannot say: no class reaches {bound} % (highest: {first} at {percent} %)."
    width = f"± {points} point{'' if points == 1 else 's'}" if points else "less than ± 1 point"
    return (
        f"The model finds {_FINDING_WORDS[first]} most likely: {percent} % "
        f"({width} over {draws} draws, {agreement} agreement)."
    )


def _count_pieces(mask: Bool[np.ndarray, "z y x"], voxel_ml: float) -> int:
    """Count pieces above `MIN_LESION_ML`; voxels that touch, if only by a corner, belong together."""
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return 0
    labels, _ = ndimage.label(mask[boxes[0]], structure=np.ones((3, 3, 3), dtype=bool))
    sizes_ml = np.bincount(labels.ravel())[1:] * voxel_ml
    return int(np.count_nonzero(sizes_ml > MIN_LESION_ML))
