# SPDX-License-Identifier: Apache-2.0
"""Every awkward series gives the right volume or a refusal with its cause, and no report names a patient."""

import json

import numpy as np
import pytest
from awkward_cases import PLANTED, Case, Refusal, Truth, judge, make_cases
from awkward_phantom import CENTER_MM

from ucadi.errors import CODES
from ucadi.imaging.grid import Grid
from ucadi.imaging.remarks import REMARKS
from ucadi.io.reader import load_ct

PIXELS = 96  # coarse, to save time
CASES = {case.name: case for case in make_cases(PIXELS)}


@pytest.fixture
def read(tmp_path):
    """Writes a case and reads it."""

    def run(case: Case):
        case.write(tmp_path)
        return load_ct(tmp_path / case.input)

    return run


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_awkward_series_is_read_rightly_or_refused_with_its_cause(read, case) -> None:
    loaded = read(case)
    report = loaded.report
    assert_no_planted_words(json.dumps(report.to_json()))
    if isinstance(case.expectation, Refusal):
        assert report.code in case.expectation.codes, report.reason
        assert loaded.volume is None
        return
    if report.code in case.expectation.or_refused:
        return
    volume, _ = loaded.require()
    assert judge(volume.voxels, volume.grid.affine_lps, case).verdict == "right"
    said = {remark.code for remark in (*report.repairs, *report.warnings)}
    assert said >= set(case.expectation.remarks)


def assert_no_planted_words(text: str) -> None:
    for planted in PLANTED:
        assert planted.lower() not in text.lower()


def test_names_of_cases_are_unique_and_their_codes_registered() -> None:
    assert len(CASES) == len(make_cases(PIXELS))
    for case in CASES.values():
        if isinstance(case.expectation, Refusal):
            assert set(case.expectation.codes) <= set(CODES)
        else:
            assert set(case.expectation.or_refused) <= set(CODES)
            assert set(case.expectation.remarks) <= set(REMARKS)


def test_the_same_bytes_come_out_each_time(tmp_path) -> None:
    for folder in ("one", "two"):
        CASES["two-acquisitions"].write(tmp_path / folder)
    ones = sorted((tmp_path / "one").iterdir())
    assert [one.read_bytes() for one in ones] == [(tmp_path / "two" / one.name).read_bytes() for one in ones]


def good_volume() -> tuple[np.ndarray, np.ndarray, Truth]:
    """The plain case's volume, made without any reader."""
    truth = CASES["plain"].expectation
    assert isinstance(truth, Truth)
    shape = (64, PIXELS, PIXELS)
    grid = Grid.from_spacing(shape, truth.spacing_mm)
    affine = grid.affine_lps.copy()
    affine[:3, 3] = CENTER_MM - grid.to_world((np.array(shape) - 1.0) / 2.0)
    return truth.scenes[0].hu(places(shape, affine)), affine, truth


def places(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Where voxels lie."""
    return np.moveaxis(np.indices(shape, dtype=float), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def test_the_judge_takes_any_order_of_axes_and_slices() -> None:
    hu, affine, _ = good_volume()
    assert judge(hu, affine, CASES["plain"]).verdict == "right"
    turned = affine @ np.diag([-1.0, 1, -1, 1])
    turned[:3, 3] = (affine @ [63, 0, PIXELS - 1, 1])[:3]
    assert judge(hu[::-1, :, ::-1], turned, CASES["plain"]).verdict == "right"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_judge_sees_a_flip(axis) -> None:
    hu, affine, _ = good_volume()
    assert judge(np.flip(hu, axis), affine, CASES["plain"]).verdict == "wrong geometry"


@pytest.mark.parametrize("shift", [(5.0, 0, 0), (0, 5.0, 0), (0, 0, 5.0)])
def test_the_judge_sees_a_shift_by_a_voxel(shift) -> None:
    hu, affine, _ = good_volume()
    affine[:3, 3] += shift[::-1]
    assert judge(hu, affine, CASES["plain"]).verdict == "wrong geometry"


def test_the_judge_sees_a_lost_slice_a_lost_shear_and_a_wrong_scale() -> None:
    hu, affine, _ = good_volume()
    without = np.delete(hu, 37, axis=0)
    stretched = affine.copy()
    stretched[:3, 0] *= 63 / 62
    assert judge(without, stretched, CASES["plain"]).verdict == "wrong spacing"
    assert judge(without, stretched, CASES["spacing-changes"]).verdict == "wrong geometry"
    sheared = affine.copy()
    sheared[1, 0] = np.tan(np.radians(4.0)) * 5.0
    assert judge(hu, sheared, CASES["tilt-15"]).verdict == "wrong geometry"
    assert judge(hu + 200.0, affine, CASES["plain"]).verdict == "wrong values"
    assert (
        judge(
            hu[20:],
            affine @ np.array([[1, 0, 0, 20], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
            CASES["tilt-15"],
        ).verdict
        == "incomplete"
    )


def test_the_judge_sees_a_lesion_that_is_two_percent_too_small() -> None:
    hu, affine, truth = good_volume()
    x, y, z = np.moveaxis(truth.scenes[0].local(places(hu.shape, affine)), -1, 0)
    is_lesion = (np.abs(x - 82) < 21) & (np.abs(y - 12) < 25) & (np.abs(z - 28) < 29)
    smaller = np.where(is_lesion, np.minimum(hu, np.where(hu > -500, hu - 15.0, hu)), hu)
    judged = judge(smaller, affine, CASES["plain"])
    assert judged.verdict == "wrong geometry"
    assert "lesion" in judged.detail
