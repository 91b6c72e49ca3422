# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ucadi.imaging.grid import Grid
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.volume import Volume


def numbered(affine_lps: np.ndarray) -> Volume:
    return Volume(np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4), Grid((2, 3, 4), affine_lps))


@pytest.mark.parametrize("seed", range(20))
def test_every_voxel_keeps_its_value_and_place(seed) -> None:
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(rng=rng).as_matrix() @ np.diag([2.5, 0.7, 0.8]) * rng.choice([-1, 1])
    affine[:3, 3] = rng.normal(size=3) * 100
    before = numbered(affine)
    after = to_canonical(before)
    for index in np.ndindex(before.grid.shape):
        world = before.grid.to_world(np.array(index, float))
        there = np.rint(after.grid.to_index(world)).astype(int)
        assert after.voxels[tuple(there)] == before.voxels[index]
    assert after.voxels.flags.c_contiguous


def test_canonical_volume_is_not_copied() -> None:
    before = Volume(np.zeros((2, 3, 4), np.int16), Grid.from_spacing((2, 3, 4), (5.0, 0.7, 0.8)))
    after = to_canonical(before)
    assert np.shares_memory(before.voxels, after.voxels)
    assert after.grid.is_close(before.grid)


def test_two_axes_near_the_same_patient_axis_are_told_apart() -> None:
    axes = Rotation.from_euler("z", 45, degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = axes[:, [2, 1, 0]]
    assert sorted(to_canonical(numbered(affine)).grid.shape) == [2, 3, 4]
    assert to_canonical(numbered(affine)).grid.shape[0] == 2
