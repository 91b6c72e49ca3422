# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from ucadi.imaging.remarks import Remark
from ucadi.reporting.overview import draw_overview
from ucadi.reporting.planes import choose_axial_slices, choose_slice, cut_plane, picture_box
from ucadi.types import Orientation

ORANGE = np.array([255, 166, 48]) / 255
TILES_TOP, TILES_RIGHT = 44, 1120


def _draw(chest, folder: Path, **changes) -> np.ndarray:
    path = folder / "overview.png"
    draw_overview(chest.volume, chest.lesion_mask, chest.lung_mask, chest.reading(**changes), path)
    return imread(path)[..., :3]


def _is_orange(picture: np.ndarray) -> np.ndarray:
    return np.abs(picture - ORANGE).max(axis=-1) < 0.12


def test_a_lesion_in_the_left_lung_is_outlined_on_the_right_half_of_the_axial_slices(
    make_chest, tmp_path
) -> None:
    chest = make_chest()
    assert np.argwhere(chest.lesion_mask)[:, 2].min() > chest.volume.grid.shape[2] // 2
    picture = _draw(chest, tmp_path)
    # One tile holds the lesion: the toy's three lesion slices lie in one of the six bands, or in two.
    columns = np.flatnonzero(_is_orange(picture[TILES_TOP:560, :TILES_RIGHT]).any(axis=0))
    assert len(columns)
    tile = (TILES_RIGHT - 16) / 3
    within = (columns - 16) % tile / tile
    assert within.min() > 0.5


def test_planes_show_the_right_side_on_the_left_and_the_head_up(make_chest) -> None:
    chest = make_chest()
    marker = np.zeros_like(chest.lesion_mask)
    marker[-1, 0, -1] = True  # top, front, left of the patient
    z, _, x = chest.volume.grid.shape
    axial = cut_plane(chest.volume, marker, Orientation.AXIAL, z - 1)
    coronal = cut_plane(chest.volume, marker, Orientation.CORONAL, 0)
    sagittal = cut_plane(chest.volume, marker, Orientation.SAGITTAL, x - 1)
    assert (axial.letters, coronal.letters, sagittal.letters) == (
        ("R", "L", "A"),
        ("R", "L", "S"),
        ("A", "P", "S"),
    )
    assert axial.lesion[0, -1]  # front up, left on the right
    assert coronal.lesion[0, -1]  # head up, left on the right
    assert sagittal.lesion[0, 0]  # head up, front on the left


def test_a_plane_keeps_its_proportions_in_mm(make_chest) -> None:
    chest = make_chest(shape=(10, 40, 60), spacing_mm=(8.0, 0.5, 0.75))
    plane = cut_plane(chest.volume, chest.lesion_mask, Orientation.CORONAL, 3)
    assert plane.size_mm == pytest.approx((80.0, 45.0))


def test_slices_run_from_head_to_feet_and_show_the_largest_lesion_of_each_band() -> None:
    lung, lesion = np.zeros((2, 70, 8, 8), bool)
    lung[5:65] = True
    lesion[41, :3] = True
    lesion[43, :5] = True
    chosen = choose_axial_slices(lesion, lung, 6)
    assert chosen == tuple(sorted(chosen, reverse=True))
    assert 43 in chosen
    assert len(chosen) == 6
    assert all(5 <= index < 65 for index in chosen)


def test_fewer_slices_than_pictures_are_shown_once_each() -> None:
    lung = np.zeros((9, 4, 4), bool)
    lung[3:6] = True
    assert choose_axial_slices(np.zeros_like(lung), lung, 6) == (5, 4, 3)


def test_the_slice_shown_has_most_lesion_then_most_lung_then_the_middle(make_chest) -> None:
    chest = make_chest(has_lesion=False)
    nothing = np.zeros_like(chest.lung_mask)
    lesion = nothing.copy()
    lesion[3, 17, 5] = True
    assert choose_slice(lesion, chest.lung_mask, 1) == 17
    assert chest.lung_mask[:, choose_slice(nothing, chest.lung_mask, 1)].any()
    assert choose_slice(nothing, nothing, 1) == 32


def test_the_picture_box_has_a_margin_and_ends_at_the_volume(make_chest) -> None:
    chest = make_chest()  # lungs: z 3..21 of 24, y 16..48 of 64, x 8..56 of 64, voxels of 5 mm
    assert picture_box(chest.volume, chest.lung_mask, 20.0) == np.s_[0:24, 12:52, 4:60]


@pytest.mark.parametrize("has_lesion", [True, False])
def test_tiny_volumes_are_drawn_without_a_warning(make_chest, tmp_path, has_lesion: bool) -> None:
    chest = make_chest(shape=(16, 48, 48), spacing_mm=(8.0, 7.0, 7.0), has_lesion=has_lesion)
    picture = _draw(chest, tmp_path)
    assert picture.shape == (1000, 1600, 3)
    assert _is_orange(picture[TILES_TOP:560, :TILES_RIGHT]).any() == has_lesion


def test_no_lungs_and_a_mask_that_fills_the_volume_are_drawn(make_chest, tmp_path) -> None:
    chest = make_chest()
    full = dataclasses.replace(
        chest, lesion_mask=np.ones_like(chest.lesion_mask), lung_mask=np.zeros_like(chest.lung_mask)
    )
    assert _is_orange(_draw(full, tmp_path)[TILES_TOP:560, :TILES_RIGHT]).any()  # framed by the outline


def test_words_that_the_font_cannot_draw_do_not_stop_the_picture(make_chest, tmp_path) -> None:
    chest = make_chest()
    report = dataclasses.replace(
        chest.reading().input,
        warnings=tuple(Remark("thick-slices", t) for t in ("层厚 $\\frac{1$ <b>", "x" * 500)),
    )
    assert _draw(chest, tmp_path, input=report).shape == (1000, 1600, 3)
