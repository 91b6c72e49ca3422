# SPDX-License-Identifier: Apache-2.0
"""The patient: the same on every grid, with the disease that its label and grade promise."""

from dataclasses import replace

import numpy as np
import pytest

from ucadi.imaging.grid import Grid
from ucadi.phantom.acquisition import STYLES, scan_grid
from ucadi.phantom.lesions import PATTERN_SHARE, SEVERITY_SHARE, Pattern, draw_pattern
from ucadi.phantom.patient import Patient, draw_patient
from ucadi.phantom.render import RenderedPatient, render_patient
from ucadi.types import FindingClass, Severity

SITE = STYLES["C"]  # few thick slices: fast


def render(patient: Patient, matrix: int = 64) -> RenderedPatient:
    return render_patient(patient, scan_grid(patient, SITE, matrix))


def share_of(rendered: RenderedPatient) -> float:
    return float(rendered.lesion_mask.sum() / rendered.lung_mask.sum())


def test_one_seed_gives_the_same_voxels_twice() -> None:
    first, second = (render(draw_patient(5, FindingClass.COVID_19)) for _ in range(2))
    assert np.array_equal(first.hu, second.hu)
    assert np.array_equal(first.lesion_mask, second.lesion_mask)


def test_two_seeds_give_two_patients() -> None:
    first, second = (draw_patient(seed, FindingClass.HEALTHY).thorax for seed in (1, 2))
    assert first.volume_ml != second.volume_ml


def test_the_healthy_anatomy_does_not_depend_on_the_label() -> None:
    healthy, sick = (draw_patient(8, label) for label in (FindingClass.HEALTHY, FindingClass.OTHER_VIRAL))
    assert np.array_equal(healthy.vessels.start, sick.vessels.start)
    assert healthy.thorax.build == sick.thorax.build


@pytest.mark.parametrize("label", [FindingClass.COVID_19, FindingClass.OTHER_VIRAL, FindingClass.BACTERIAL])
def test_a_patient_is_the_same_on_a_thin_fine_and_a_thick_coarse_grid(label: FindingClass) -> None:
    patient = draw_patient(3, label)
    coarse = render(patient, 88)
    fine = render_patient(patient, scan_grid(patient, replace(SITE, thickness_mm=2.0), 112))
    coarse_ml, fine_ml = (
        (r.lesion_mask.sum() * r.grid.voxel_ml, r.lung_mask.sum() * r.grid.voxel_ml) for r in (coarse, fine)
    )
    assert coarse_ml == pytest.approx(fine_ml, rel=0.05)
    # the same place, too: read both at the coarse centers
    points = coarse.grid.to_world(np.argwhere(coarse.lung_mask)[::50].astype(np.float64))
    nearest = np.rint(fine.grid.to_index(points)).astype(int)
    inside = ((nearest >= 0) & (nearest < fine.grid.shape)).all(axis=1)
    assert fine.lung_mask[tuple(nearest[inside].T)].mean() > 0.95


def test_lung_volume_and_density_lie_in_the_range_of_real_scans() -> None:
    medians, liters = [], []
    for seed in range(3):
        rendered = render(draw_patient(seed, FindingClass.HEALTHY))
        medians.append(float(np.median(rendered.hu[rendered.lung_mask])))
        liters.append(rendered.lung_mask.sum() * rendered.grid.voxel_ml / 1000.0)
    assert min(medians) > -900
    assert max(medians) < -830
    assert min(liters) > 2.7
    assert max(liters) < 6.2


@pytest.mark.parametrize("seed", [2, 3])
def test_the_left_lung_is_smaller_and_both_lie_completely_inside_the_scan(seed: int) -> None:
    rendered = render(draw_patient(seed, FindingClass.HEALTHY))
    half = int(np.rint(rendered.grid.to_index(np.zeros(3))[2] + 0.5))  # first column left of the midline
    right, left = rendered.lung_mask[:, :, :half].sum(), rendered.lung_mask[:, :, half:].sum()
    assert 0.6 * right < left < right
    border = np.ones(rendered.lung_mask.shape, np.bool_)
    border[1:-1, 1:-1, 1:-1] = False
    assert not (rendered.lung_mask & border).any()


def test_lung_density_rises_from_front_to_back() -> None:
    patient = draw_patient(4, FindingClass.HEALTHY)
    rendered = render(patient)
    rows = np.nonzero(rendered.lung_mask)[1]
    hu = rendered.hu[rendered.lung_mask]
    low, high = np.quantile(rows, (0.1, 0.9))
    assert 10 < np.median(hu[rows >= high]) - np.median(hu[rows <= low]) < 120


def test_a_healthy_patient_has_no_lesion() -> None:
    assert not render(draw_patient(9, FindingClass.HEALTHY)).lesion_mask.any()


@pytest.mark.parametrize("severity", list(Severity))
@pytest.mark.parametrize("seed", [1])
def test_a_grade_bounds_the_diseased_share_of_the_lungs(severity: Severity, seed: int) -> None:
    low, high = SEVERITY_SHARE[severity]
    assert low < share_of(render(draw_patient(seed, FindingClass.COVID_19, severity))) < high


def test_the_rendered_share_is_the_drawn_one() -> None:
    patient = draw_patient(6, FindingClass.COVID_19, Severity.II)
    assert patient.lesions is not None
    assert share_of(render(patient, 96)) == pytest.approx(patient.lesions.share, rel=0.05)


def test_a_severity_for_another_class_is_refused() -> None:
    with pytest.raises(ValueError, match="only COVID-19"):
        draw_patient(1, FindingClass.BACTERIAL, Severity.I)


def test_lesions_lie_in_the_lung_and_are_denser_than_it() -> None:
    for label in (FindingClass.COVID_19, FindingClass.OTHER_VIRAL, FindingClass.BACTERIAL):
        rendered = render(draw_patient(7, label))
        assert not (rendered.lesion_mask & ~rendered.lung_mask).any()
        rest = rendered.lung_mask & ~rendered.lesion_mask
        assert np.median(rendered.hu[rendered.lesion_mask]) > np.median(rendered.hu[rest]) + 60


def test_classes_differ_in_density_and_depth_as_their_signs_say() -> None:
    density: dict[Pattern, list[float]] = {pattern: [] for pattern in Pattern}
    back: dict[Pattern, list[float]] = {pattern: [] for pattern in Pattern}
    for label in (FindingClass.COVID_19, FindingClass.OTHER_VIRAL, FindingClass.BACTERIAL):
        for seed in range(3):
            patient = draw_patient(seed + 20, label)
            assert patient.lesions is not None
            rendered = render(patient, 32)
            density[patient.lesions.pattern].append(float(np.median(rendered.hu[rendered.lesion_mask])))
            rows = [np.nonzero(m)[1].mean() for m in (rendered.lesion_mask, rendered.lung_mask)]
            shift_mm = float(rows[0] - rows[1]) * rendered.grid.spacing_mm[1]
            back[patient.lesions.pattern].append(shift_mm)
    middle = {pattern: float(np.median(values)) for pattern, values in density.items() if values}
    assert -830 < middle[Pattern.DIFFUSE] < middle[Pattern.PERIPHERAL] < -250 < middle[Pattern.LOBAR] < 80
    assert np.mean(back[Pattern.PERIPHERAL]) > 12.0  # toward the back


def test_a_part_of_each_class_looks_like_another() -> None:
    rng = np.random.default_rng(0)
    for label, shares in PATTERN_SHARE.items():
        assert sum(shares.values()) == pytest.approx(1.0)
        drawn = [draw_pattern(rng, label) for _ in range(800)]
        for pattern, share in shares.items():
            assert drawn.count(pattern) / 800 == pytest.approx(share, abs=0.05)
        others = {p for other, table in PATTERN_SHARE.items() if other is not label for p in table}
        assert others & set(shares)


def test_a_tilted_or_mirrored_grid_is_refused() -> None:
    patient = draw_patient(1, FindingClass.HEALTHY)
    affine = scan_grid(patient, SITE, 32).affine_lps.copy()
    affine[:, 2] *= -1
    with pytest.raises(ValueError, match="upright"):
        render_patient(patient, Grid((8, 32, 32), affine))
