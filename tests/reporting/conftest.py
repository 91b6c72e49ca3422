# SPDX-License-Identifier: Apache-2.0
"""A toy chest and a reading of it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from ucadi.imaging.grid import Grid
from ucadi.imaging.remarks import Remark
from ucadi.imaging.volume import Volume
from ucadi.io.report import LoaderReport, SeriesReport, Verdict
from ucadi.reporting.record import ModelIdentity, ReadingRecord, describe_probabilities, measure_lesions


@dataclass(frozen=True, eq=False)
class Chest:
    """Two boxes of air in water, with one lesion in the patient's left lung."""

    volume: Volume
    lung_mask: np.ndarray
    lesion_mask: np.ndarray

    def reading(self, **changes: object) -> ReadingRecord:
        middle = self.volume.grid.shape[2] // 2
        ml = self.volume.grid.voxel_ml
        record = {
            "model": ModelIdentity("0123456789ab", "toy", "synthetic boxes", ("A", "B"), 3, "plaintext"),
            "input": LoaderReport(
                Verdict.WARNING,
                shape=self.volume.grid.shape,
                spacing_mm=self.volume.grid.spacing_mm,
                repairs=(Remark("slices-interpolated", "One slice was interpolated."),),
                warnings=(Remark("thick-slices", "The slices are thick."),),
                series=(
                    SeriesReport("aaaa1111", 2, "CT", 24, (24, 64, 64), (5.0, 5.0, 5.0), True, "most slices"),
                    SeriesReport("bbbb2222", None, "CT", 1, None, None, False, "localizer"),
                ),
            ),
            "classification": describe_probabilities(np.tile([0.03, 0.71, 0.17, 0.09], (5, 1))),
            "segmentation": measure_lesions(
                self.volume,
                self.lesion_mask,
                self.lung_mask,
                lung_left_ml=float(self.lung_mask[:, :, middle:].sum() * ml),
                lung_right_ml=float(self.lung_mask[:, :, :middle].sum() * ml),
            ),
            "files": {"lesion_mask": "lesions.nii.gz"},
            "seconds": {"classify": 1.25},
        }
        return ReadingRecord(**{**record, **changes})


@pytest.fixture
def make_chest() -> Callable[..., Chest]:
    """Build a toy chest of any shape; the lesion can be left out."""

    def build(
        shape: tuple[int, int, int] = (24, 64, 64),
        spacing_mm: tuple[float, float, float] = (5.0, 5.0, 5.0),
        *,
        has_lesion: bool = True,
    ) -> Chest:
        z, y, x = shape
        hu = np.full(shape, 40, np.int16)
        lung = np.zeros(shape, bool)
        rows = np.s_[z // 8 : z - z // 8, y // 4 : 3 * y // 4]
        lung[rows][..., x // 8 : 3 * x // 8] = True
        lung[rows][..., 5 * x // 8 : 7 * x // 8] = True
        hu[lung] = -850
        lesion = np.zeros(shape, bool)
        if has_lesion:
            lesion[z // 2 : z // 2 + 3, y // 2 : y // 2 + 6, 11 * x // 16 : 13 * x // 16] = True
            hu[lesion] = -500
        return Chest(Volume(hu, Grid.from_spacing(shape, spacing_mm)), lung, lesion)

    return build
