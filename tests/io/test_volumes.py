# SPDX-License-Identifier: Apache-2.0
"""Known volumes through every geometry: a lesion and two lungs keep their millilitres within 1 %."""

from collections.abc import Callable

import numpy as np
import pytest
from awkward_dicom import Stack, heights, save
from awkward_phantom import CENTER_MM, LESION_RADII_MM, Scene, lung_volumes_ml

from ucadi.imaging.lungs import Lungs
from ucadi.imaging.volume import Volume
from ucadi.io.reader import load_ct

PIXELS = 160  # 2.4 mm, with slices 2.5 mm apart: coarse enough to be quick, fine enough for 1 %
LESION_ML = 4.0 / 3.0 * np.pi * float(np.prod(LESION_RADII_MM)) / 1000.0
MIDDLE_HU = -475.0  # half-way between lung and lesion: the edge's true place
LESION_BOX_MM = np.array([[82.0, 12.0, 28.0]]).T + np.array([[-21.0, 21.0], [-25.0, 25.0], [-29.0, 29.0]])

EVEN = heights(112, 2.5)
MIXED = np.concatenate([EVEN[:40], EVEN[39] + 4.0 * np.arange(1, 46)])


@pytest.fixture
def read(tmp_path) -> Callable[..., tuple[Volume, Lungs]]:
    """Writes the slices of a stack, some left out, and reads them."""

    def run(stack: Stack, *gone: int, scene: Scene | None = None) -> tuple[Volume, Lungs]:
        images = stack.images(scene)
        save([image for number, image in enumerate(images) if number not in gone], tmp_path)
        return load_ct(tmp_path).require()

    return run


def lesion_ml(volume: Volume, scene: Scene | None = None) -> float:
    """Volume above the threshold in a box that holds the lesion and no wall."""
    index = np.moveaxis(np.indices(volume.grid.shape, dtype=float), 0, -1)
    local = (scene or Scene()).local(volume.grid.to_world(index))
    is_near = ((local > LESION_BOX_MM[:, 0]) & (local < LESION_BOX_MM[:, 1])).all(axis=-1)
    # An ellipsoid within the box: the box's corners reach the chest wall.
    radii = np.array(LESION_RADII_MM) + 4.5
    is_near &= (((local - LESION_BOX_MM.mean(axis=1)) / radii) ** 2).sum(axis=-1) < 1
    return float(np.count_nonzero(is_near & (volume.voxels > MIDDLE_HU))) * volume.grid.voxel_ml


def assert_volumes(read_ct: tuple[Volume, Lungs], scene: Scene | None = None) -> None:
    volume, lungs = read_ct
    right_ml, left_ml = lung_volumes_ml()
    assert lesion_ml(volume, scene) == pytest.approx(LESION_ML, rel=0.01)
    assert lungs.total_ml == pytest.approx(right_ml + left_ml, rel=0.01)
    # What separates one side from the other is a matter of the lungs' mask, not of geometry.
    assert lungs.right_ml == pytest.approx(right_ml, rel=0.015)
    assert lungs.left_ml == pytest.approx(left_ml, rel=0.015)


@pytest.mark.slow
def test_an_upright_even_stack_keeps_the_volumes(read) -> None:
    assert_volumes(read(Stack(PIXELS, EVEN)))


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [10.0, -20.0, 27.0])
def test_a_tilted_gantry_keeps_the_volumes(read, degrees) -> None:
    assert_volumes(read(Stack(PIXELS, heights(128, 2.5), tilt_deg=degrees)))


@pytest.mark.parametrize("gone", [(60,), pytest.param((60, 61), marks=pytest.mark.slow)])
def test_missing_slices_through_the_lesion_keep_the_volumes(read, gone) -> None:
    assert_volumes(read(Stack(PIXELS, EVEN), *gone))


def test_mixed_spacing_keeps_the_volumes(read) -> None:
    assert_volumes(read(Stack(PIXELS, MIXED)))


@pytest.mark.slow
def test_a_tilted_gantry_with_a_missing_slice_keeps_the_volumes(read) -> None:
    assert_volumes(read(Stack(PIXELS, heights(128, 2.5), tilt_deg=-12.0), 66))


@pytest.mark.slow
def test_thick_averaged_slices_keep_the_volumes(read) -> None:
    assert_volumes(read(Stack(PIXELS, heights(56, 5.0)), scene=Scene(thickness_mm=5.0)))


@pytest.mark.parametrize(
    ("row", "column"),
    [
        pytest.param((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), marks=pytest.mark.slow),
        pytest.param((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), marks=pytest.mark.slow),
        ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0)),
    ],
)
def test_flipped_and_turned_slices_keep_the_volumes_and_sides(read, row, column) -> None:
    assert_volumes(read(Stack(PIXELS, EVEN[::-1], row=row, column=column)))


@pytest.mark.slow
def test_flat_pixels_keep_the_volumes(read) -> None:
    assert_volumes(read(Stack(PIXELS, EVEN, pixel_mm=(2.0, 2.4))))


def test_the_origin_stays_where_it_is(read) -> None:
    volume, lungs = read(Stack(PIXELS, EVEN))
    middle = volume.grid.to_world((np.array(volume.grid.shape) - 1.0) / 2.0)
    assert middle == pytest.approx(CENTER_MM, abs=0.01)
    assert lungs.grid.is_close(volume.grid)
