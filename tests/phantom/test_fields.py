# SPDX-License-Identifier: Apache-2.0
"""Spline fields: the same value wherever and however they are read."""

import numpy as np
import pytest

from ucadi.phantom.fields import Field, Lattice, noise_field, smooth_max, smooth_min
from ucadi.phantom.trees import Tubes, paint


def test_a_field_reads_the_same_on_a_grid_and_at_points() -> None:
    rng = np.random.default_rng(0)
    lattice = Lattice((9, 8, 7), 5.0, (-20.0, -15.0, -12.0))
    field = Field(rng.standard_normal((9, 8, 7)).astype(np.float32), lattice)
    z, y, x = np.linspace(-5, 8, 5), np.linspace(-3, 9, 4), np.linspace(-2, 7, 6)
    points = np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1).reshape(-1, 3)
    assert field.in_plane(y, x).at(z).ravel() == pytest.approx(field.at(points), abs=1e-5)


def test_a_linear_field_is_reproduced_exactly() -> None:
    lattice = Lattice.over_box((0.0, 0.0, 0.0), (20.0, 20.0, 20.0), 4.0)
    z, y, x = lattice.axes()
    field = Field((2.0 * z - y + 0.5 * x).astype(np.float32), lattice)
    at = np.array([3.3, 11.0])
    expected = 2.0 * at[:, None, None] - at[None, :, None] + 0.5 * at
    assert field.in_plane(at, at).at(at) == pytest.approx(expected, abs=1e-4)


def test_noise_is_periodic_with_mean_zero_and_unit_spread() -> None:
    field = noise_field(np.random.default_rng(0), 24, 2.0)
    axis = np.arange(0.0, 48.0, 1.3)
    values = field.in_plane(axis, axis).at(axis)
    assert values.mean() == pytest.approx(0.0, abs=0.05)
    assert values.std() == pytest.approx(1.0, abs=0.1)
    shifted = field.in_plane(axis, axis).at(axis + 48.0)
    assert shifted == pytest.approx(values, abs=1e-4)


def test_smooth_extremes_never_cross_the_sharp_ones() -> None:
    a, b = np.random.default_rng(0).normal(0, 10, (2, 4, 5, 6)).astype(np.float32)
    assert (smooth_min(a, b, 5.0) <= np.minimum(a, b) + 1e-4).all()
    assert (smooth_max(a, b, 5.0) >= np.maximum(a, b) - 1e-4).all()


def test_a_painted_tube_covers_its_volume() -> None:
    tube = Tubes(np.array([[-10.0, 0.0, 0.0]]), np.array([[10.0, 0.0, 0.0]]), np.array([4.0]))
    axis = np.arange(-20.0, 20.5, 1.0)
    out = np.zeros((41, 41, 41), np.float32)
    paint(tube, (axis, axis, axis), (1.0, 1.0), out)
    assert out.sum() == pytest.approx(np.pi * 16 * 20 + 4 / 3 * np.pi * 64, rel=0.03)
