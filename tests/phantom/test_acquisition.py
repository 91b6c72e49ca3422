# SPDX-License-Identifier: Apache-2.0
"""Scanners: noise, offset, kernel and padding are those that a style states."""

from dataclasses import replace

import numpy as np
import pytest

from ucadi.imaging.grid import Grid
from ucadi.phantom.acquisition import STYLES, acquire, scan_grid
from ucadi.phantom.patient import draw_patient
from ucadi.phantom.render import RenderedPatient
from ucadi.types import FindingClass

PLAIN = replace(STYLES["A"], blur_mm=0.0, noise_sd_hu=0.0, offset_hu=0.0, gain=1.0, padding_hu=None)


def flat(hu: float, pixel_mm: float = 0.7) -> RenderedPatient:
    grid = Grid.from_spacing((8, 64, 64), (2.0, pixel_mm, pixel_mm))
    empty = np.zeros(grid.shape, np.bool_)
    return RenderedPatient(np.full(grid.shape, hu, np.float32), empty, empty, grid)


@pytest.mark.parametrize("name", list(STYLES))
@pytest.mark.parametrize("pixel_mm", [0.7, 2.8])
def test_noise_has_the_stated_sd_at_any_pixel_size(name: str, pixel_mm: float) -> None:
    style = STYLES[name]
    middle = acquire(flat(40.0, pixel_mm), style, np.random.default_rng(0)).voxels[:, 16:48, 16:48]
    assert middle.std() == pytest.approx(style.noise_sd_hu, rel=0.12)


@pytest.mark.parametrize(("name", "low", "high"), [("A", 0.3, 0.55), ("B", 0.55, 0.75), ("C", 0.7, 0.88)])
def test_noise_is_correlated_as_on_the_scanner(name: str, low: float, high: float) -> None:
    hu = acquire(flat(40.0), STYLES[name], np.random.default_rng(1)).voxels.astype(np.float64)
    rest = hu[:, 16:48, 16:48] - hu[:, 16:48, 16:48].mean()
    assert low < (rest[:, :, 1:] * rest[:, :, :-1]).mean() / rest.var() < high


def test_gain_and_offset_are_applied_about_air() -> None:
    hu = acquire(flat(-500.0), replace(PLAIN, gain=1.02, offset_hu=12.0), np.random.default_rng(0)).voxels
    assert np.unique(hu).tolist() == [-478]


def test_padding_lies_outside_the_circle_only() -> None:
    hu = acquire(flat(0.0), replace(PLAIN, padding_hu=-2048, is_signed=True), np.random.default_rng(0)).voxels
    assert hu[0, 0, 0] == -2048
    assert hu[0, 32, 32] == 0
    assert np.mean(hu == -2048) == pytest.approx(1 - np.pi / 4, abs=0.02)


def test_a_smooth_kernel_widens_an_edge_and_a_sharp_one_overshoots() -> None:
    rendered = flat(-1000.0)
    rendered.hu[:, :, 32:] = 0.0
    smooth = acquire(rendered, replace(PLAIN, blur_mm=1.1), np.random.default_rng(0)).voxels[4, 32]
    sharp = acquire(rendered, replace(PLAIN, edge_gain=0.6), np.random.default_rng(0)).voxels[4, 32]
    assert -700 < smooth[31] < -400
    assert smooth.max() == 0
    assert sharp.max() > 50


def test_noise_is_repeatable_and_differs_between_generators() -> None:
    first, again, other = (
        acquire(flat(0.0), STYLES["A"], np.random.default_rng(n)).voxels for n in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", list(STYLES))
def test_a_scan_holds_both_lungs_and_some_margin(name: str) -> None:
    style = STYLES[name]
    for seed in range(3):
        patient = draw_patient(seed, FindingClass.HEALTHY)
        grid = scan_grid(patient, style, 64)
        (low_z, low_y, low_x), (high_z, high_y, high_x) = patient.thorax.lung_box_mm
        first, last = grid.to_world(np.array([[0.0, 0, 0], np.array(grid.shape) - 1.0]))
        assert first[2] < low_z - 10
        assert last[2] > high_z + 5
        assert first[1] < low_y
        assert last[1] > high_y
        assert first[0] < low_x
        assert last[0] > high_x
        assert grid.spacing_mm == pytest.approx((style.thickness_mm, style.fov_mm / 64, style.fov_mm / 64))


def test_some_sites_lack_a_class_and_the_unseen_site_is_balanced() -> None:
    assert STYLES["C"].class_mix[FindingClass.BACTERIAL] == 0
    assert len(set(STYLES["D"].class_mix.values())) == 1
    for style in STYLES.values():
        assert sum(style.class_mix.values()) == pytest.approx(1.0)
