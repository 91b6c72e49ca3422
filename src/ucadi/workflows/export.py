# SPDX-License-Identifier: Apache-2.0
"""One reading as files: masks and heatmaps as NIfTI, and results for the PACS as DICOM.

All faces take their numbers from the same record and their voxels from the same masks.
"""

import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from ucadi.errors import ConfigError
from ucadi.imaging.grid import Grid
from ucadi.imaging.lungs import Lungs
from ucadi.imaging.planes import values_on_plane
from ucadi.imaging.volume import Volume
from ucadi.io.framing import HEAD_BYTES, is_dicom
from ucadi.io.headers import Plane
from ucadi.io.nifti import write_nifti
from ucadi.io.source import SourceSeries
from ucadi.reporting.pictures import read_picture
from ucadi.reporting.record import (
    CONSOLIDATION_HU,
    GROUND_GLASS_HU,
    RESEARCH_NOTICE,
    ModelIdentity,
    ReadingRecord,
    density_masks,
)
from ucadi.results import codes
from ucadi.results.identity import Maker
from ucadi.results.sc import write_key_image
from ucadi.results.seg import Segment, write_segmentation
from ucadi.results.sr import Finding, Quantity, write_report
from ucadi.types import FindingClass

__all__ = [
    "DICOM_FILES",
    "DICOM_FOLDER",
    "check_dicom_input",
    "lung_labels",
    "staged",
    "write_dicom_results",
    "write_heatmap",
]

DICOM_FOLDER = "dicom"

DICOM_FILES = {
    "segmentation": "lesion_seg.dcm",
    "report": "report_sr.dcm",
    "key_image": "key_image.dcm",
}
"""Files in `DICOM_FOLDER` by what they hold."""

_LESION, _RIGHT, _LEFT, _GROUND_GLASS, _CONSOLIDATION = range(1, 6)
"""Numbers of the segments."""

_COLORS = {
    _LESION: (255, 166, 48),
    _RIGHT: (143, 144, 255),
    _LEFT: (85, 90, 168),
    _GROUND_GLASS: (255, 214, 153),
    _CONSOLIDATION: (196, 84, 0),
}
"""sRGB; orange and blue-violet stay apart for every kind of color vision."""

_HEAT_COLOR = (214, 39, 40)

_NETWORK = "Lesion network"
_LUNG_FINDER = "Lung finder"


def check_dicom_input(path: Path) -> None:
    """Make sure that an input could hold DICOM images, without reading it.

    Raises:
        ConfigError: ``dicom-source-needed`` for a file that holds none.
    """
    if not path.is_file() or zipfile.is_zipfile(path):
        return
    with path.open("rb") as file:
        if is_dicom(file.read(HEAD_BYTES)):
            return
    raise ConfigError("dicom-source-needed", "The input is no DICOM file, folder or archive.")


def lung_labels(lungs: Lungs) -> Volume:
    """Return both lungs as one volume of labels: 1 the patient's right lung, 2 the left one, else 0."""
    labels = np.zeros(lungs.grid.shape, np.uint8)
    labels[lungs.right], labels[lungs.left] = 1, 2
    return Volume(labels, lungs.grid)


def write_dicom_results(
    record: ReadingRecord,
    volume: Volume,
    lesion_mask: Bool[np.ndarray, "z y x"],
    lungs: Lungs,
    source: SourceSeries,
    overview: Path,
    folder: Path,
) -> None:
    """Write segmentation, report and key image for the study that the scan belongs to.

    Args:
        record: The reading.
        volume: The CT in HU.
        lesion_mask: Lesions on the same grid.
        lungs: The lungs on the same grid.
        source: The images that the volume was read from.
        overview: The picture that becomes the key image.
        folder: Where `DICOM_FILES` go.

    Raises:
        DicomError: ``dicom-no-identity`` when the source lacks the UIDs that a result must name.
    """
    maker = Maker(record.model.id, record.model.name)
    segments = _segments(volume, lesion_mask, lungs)
    name = write_segmentation(segments, volume.grid, source, maker, folder / DICOM_FILES["segmentation"])
    write_report(_findings(record), source, maker, folder / DICOM_FILES["report"], name)
    write_key_image(
        read_picture(overview),
        source,
        maker,
        folder / DICOM_FILES["key_image"],
        description="Slices with the lesions' outline, probabilities and volumes.",
    )


def write_heatmap(
    heatmap: Volume,
    target: FindingClass,
    threshold: float,
    nifti: Path,
    *,
    dicom: tuple[Path, Grid, SourceSeries, ModelIdentity] | None = None,
) -> None:
    """Write where a class' score came from: the values as NIfTI, the region above a threshold as DICOM.

    Args:
        heatmap: Values in [0, 1] on a grid of their own, which may be coarse and smaller than the scan.
        target: The class whose score it explains.
        threshold: In (0, 1); the segmentation marks what lies above, interpolated on the scan's voxels.
        nifti: File for the values.
        dicom: File for the segmentation, the scan's grid and images, and the model; None for no segmentation.

    Raises:
        ValueError: If a value or the threshold lies outside its range.
        DicomError: ``dicom-no-identity`` when the source lacks the UIDs that a result must name.
    """
    values = heatmap.voxels
    if not 0 < threshold < 1 or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise ValueError("a heatmap needs values in [0, 1] and a threshold between")
    write_nifti(Volume(values.astype(np.float32), heatmap.grid), nifti)
    if dicom is None:
        return
    path, grid, source, model = dicom
    segment = Segment(
        name=f"Heatmap {target.title}",
        mask=_region_above(heatmap, threshold, grid),
        category=codes.SPATIAL,
        kind=codes.GRADIENT_CLASS_ACTIVATION,
        color=_HEAT_COLOR,
        algorithm="Class activation",
        site=codes.LUNG,
        note=(
            f"Where the score of the class {target.title} came from, not where disease is: "
            f"values above {threshold:.2f} of 1."
        ),
    )
    write_segmentation([segment], grid, source, Maker(model.id, model.name), path, title="heatmap")


@contextmanager
def staged(folder: Path, replaced: Iterable[str]) -> Iterator[Path]:
    """Yield a new hidden folder; what is in it when the block ends well becomes the folder's, else nothing.

    The hidden folder lies beside the folder, so that files are renamed and never seen half written.

    Args:
        folder: Where the files should appear; made when missing.
        replaced: Files of an older result, relative to the folder, that go when the new ones come.
    """
    folder = folder.resolve()
    stage = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    stage.mkdir(parents=True)
    try:
        yield stage
        if not folder.exists():
            stage.rename(folder)
            return
        for name in replaced:
            (folder / name).unlink(missing_ok=True)
        for path in sorted(stage.rglob("*")):  # a folder comes before what is in it
            target = folder / path.relative_to(stage)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _segments(volume: Volume, lesion_mask: Bool[np.ndarray, "z y x"], lungs: Lungs) -> list[Segment]:
    """Return the segments in the order of their numbers."""
    ground_glass, consolidation = density_masks(volume, lesion_mask)

    def lesion(
        number: int, name: str, mask: Bool[np.ndarray, "z y x"], kind: codes.Code, note: str
    ) -> Segment:
        return Segment(
            name, mask, codes.MORPHOLOGY, kind, _COLORS[number], _NETWORK, site=codes.LUNG, note=note
        )

    def lung(number: int, name: str, mask: Bool[np.ndarray, "z y x"], side: codes.Code) -> Segment:
        return Segment(
            name,
            mask,
            codes.ANATOMY,
            codes.LUNG,
            _COLORS[number],
            _LUNG_FINDER,
            family=codes.MORPHOLOGICAL_OPERATIONS,
            side=side,
        )

    return [
        lesion(_LESION, "Lesions", lesion_mask, codes.LESION, "All lesions."),
        lung(_RIGHT, "Right lung", lungs.right, codes.RIGHT),
        lung(_LEFT, "Left lung", lungs.left, codes.LEFT),
        lesion(
            _GROUND_GLASS, "Ground glass", ground_glass, codes.GROUND_GLASS, _density_note(GROUND_GLASS_HU)
        ),
        lesion(
            _CONSOLIDATION,
            "Consolidation",
            consolidation,
            codes.CONSOLIDATION,
            _density_note(CONSOLIDATION_HU),
        ),
    ]


def _density_note(bounds_hu: tuple[float, float]) -> str:
    """Say which densities of a lesion are marked."""
    return f"Lesion voxels from {bounds_hu[0]:.0f} to {bounds_hu[1]:.0f} HU."


def _findings(record: ReadingRecord) -> list[Finding]:
    """Return the record's numbers as the groups of a report."""
    measured = record.segmentation

    def volume(ml: float) -> Quantity:
        return Quantity(codes.VOLUME, ml, codes.MILLILITER)

    def lesion(key: str, kind: codes.Code, segment: int, *quantities: Quantity) -> Finding:
        return Finding(key, kind, quantities, segment=segment, category=codes.MORPHOLOGY, site=codes.LUNG)

    def lung(key: str, segment: int, ml: float, side: codes.Code) -> Finding:
        return Finding(
            key,
            codes.LUNG,
            (volume(ml),),
            segment=segment,
            category=codes.ANATOMY,
            site=codes.LUNG,
            side=side,
        )

    return [
        _classification(record),
        lesion(
            "Lesions",
            codes.LESION,
            _LESION,
            volume(measured.lesion_ml),
            Quantity(codes.LESION_SHARE, measured.lesion_share_percent, codes.PERCENT),
            Quantity(codes.LESION_COUNT, measured.lesion_count, codes.COUNT),
        ),
        lung("Right lung", _RIGHT, measured.lung_right_ml, codes.RIGHT),
        lung("Left lung", _LEFT, measured.lung_left_ml, codes.LEFT),
        lesion("Ground glass", codes.GROUND_GLASS, _GROUND_GLASS, volume(measured.ground_glass_ml)),
        lesion("Consolidation", codes.CONSOLIDATION, _CONSOLIDATION, volume(measured.consolidation_ml)),
    ]


def _classification(record: ReadingRecord) -> Finding:
    """Return probabilities, their spread, and what may be said, with all that a reader must know."""
    result = record.classification
    by_class = {finding: result.probabilities[finding.title] for finding in FindingClass}
    first = max(by_class, key=lambda finding: by_class[finding])
    said = codes.FINDINGS[first] if result.is_conclusive else codes.CANNOT_SAY
    quantities = [
        Quantity(name, 100.0 * values[finding.title], codes.PERCENT)
        for names, values in ((codes.PROBABILITIES, result.probabilities), (codes.SPREADS, result.spread))
        for finding, name in names.items()
    ]
    return Finding(
        "Classification",
        codes.FINDING,
        tuple(quantities),
        answers=((codes.FINDING, said), (codes.AGREEMENT, codes.AGREEMENTS[result.agreement])),
        texts=(
            (codes.NOTICE, RESEARCH_NOTICE),
            (codes.STATEMENT, result.statement),
            (codes.MODEL_ORIGIN, record.model.trained_on),
            *((codes.INPUT_REPAIR, remark.text) for remark in record.input.repairs),
            *((codes.INPUT_WARNING, remark.text) for remark in record.input.warnings),
        ),
        site=codes.LUNG,
    )


def _region_above(heatmap: Volume, threshold: float, grid: Grid) -> Bool[np.ndarray, "z y x"]:
    """Return where interpolated values lie above a threshold; slice by slice, to save memory."""
    _, y_mm, x_mm = grid.spacing_mm
    step = grid.affine_lps[:3, :3]
    region = np.zeros(grid.shape, np.bool_)
    for z, marked in enumerate(region):
        position = grid.to_world(np.array([z, 0.0, 0.0]))
        plane = Plane(position, step[:, 2] / x_mm, step[:, 1] / y_mm, (y_mm, x_mm))
        marked[...] = values_on_plane(heatmap.voxels, heatmap.grid, plane, marked.shape) > threshold
    return region
