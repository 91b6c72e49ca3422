# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ucadi.errors import GeometryError
from ucadi.imaging.chest import check_lungs, check_orientation
from ucadi.imaging.grid import Grid
from ucadi.imaging.lungs import Lungs, find_lungs, lung_box
from ucadi.imaging.volume import Volume
from ucadi.phantom.acquisition import STYLES, acquire, scan_grid
from ucadi.phantom.patient import draw_patient
from ucadi.phantom.render import RenderedPatient, render_patient
from ucadi.types import FindingClass

FINE = ((52, 104, 104), (3.4, 3.4, 3.4))


def with_air(ct: Volume, where: np.ndarray, hu: int = -1000) -> Volume:
    voxels = ct.voxels.copy()
    voxels[where] = hu
    return Volume(voxels, ct.grid)


def world(ct: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances from the volume's middle in mm along z, y, x."""
    z, y, x = (
        (np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(ct.grid.shape, ct.grid.spacing_mm, strict=True)
    )
    return z[:, None, None], y[None, :, None], x[None, None, :]


def ball(ct: Volume, center: tuple[float, float, float], radius: float) -> np.ndarray:
    z, y, x = world(ct)
    cz, cy, cx = center
    return (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < radius**2


def flipped(ct: Volume, *axes: int) -> Volume:
    return Volume(np.ascontiguousarray(np.flip(ct.voxels, axes)), ct.grid)


def aerated(ct: Volume) -> np.ndarray:
    return (ct.voxels < -700) & (ct.voxels > -950)


@pytest.fixture(scope="module")
def healthy() -> tuple[Volume, RenderedPatient]:
    """A healthy phantom patient's scan and the truth."""
    patient = draw_patient(7, FindingClass.HEALTHY)
    truth = render_patient(patient, scan_grid(patient, STYLES["A"], 96))
    return acquire(truth, STYLES["A"], np.random.default_rng(7)), truth


def overlap(lungs: Lungs, truth: np.ndarray) -> float:
    return 2 * np.count_nonzero(lungs.mask & truth) / (lungs.mask.sum() + truth.sum())


@pytest.mark.parametrize("size", [((36, 64, 64), (5.0, 5.5, 5.5)), FINE])
def test_both_lungs_are_found_with_their_volumes(make_ct, size) -> None:
    ct = make_ct(*size)
    lungs = find_lungs(ct)
    truth = (ct.voxels < -700) & (ct.voxels > -950)
    _, _, x = world(ct)
    assert overlap(lungs, truth) > 0.95
    ml = ct.grid.voxel_ml
    assert lungs.right_ml == pytest.approx((truth & (x < 0)).sum() * ml, rel=0.05)
    assert lungs.left_ml == pytest.approx((truth & (x > 0)).sum() * ml, rel=0.08)
    assert lungs.total_ml == pytest.approx(lungs.mask.sum() * ml)
    assert check_lungs(lungs) == ()


def test_lesion_inside_a_lung_belongs_to_it(make_ct) -> None:
    ct = make_ct(*FINE)
    z, y, x = world(ct)
    lesion = ((z - 10) / 12) ** 2 + ((y - 25) / 14) ** 2 + ((x - 80) / 14) ** 2 < 1
    assert find_lungs(ct).mask[lesion].mean() > 0.95


def test_box_holds_the_mask_exactly_and_its_margin_stops_at_the_edges(make_ct) -> None:
    lungs = find_lungs(make_ct())
    inside = np.zeros_like(lungs.mask)
    inside[lungs.box] = lungs.mask[lungs.box]
    assert np.array_equal(inside, lungs.mask)
    for axis, side in enumerate(lungs.box):
        others = tuple(k for k in range(3) if k != axis)
        rows = np.flatnonzero(lungs.mask.any(axis=others))
        assert (rows[0], rows[-1] + 1) == (side.start, side.stop)
    wide = lung_box(lungs, 11.0)
    assert [w.start - s.start for w, s in zip(wide, lungs.box, strict=True)] == [-3, -2, -2]
    assert lung_box(lungs, 1e4) == tuple(slice(0, n) for n in lungs.grid.shape)


def test_trachea_that_joins_both_lungs_does_not_make_them_one(make_ct) -> None:
    ct = make_ct(*FINE)
    z, y, x = world(ct)
    before = find_lungs(ct)
    trachea = (y**2 + x**2 < 9**2) & (z > 0)
    bronchi = (np.abs(z) < 6) & (np.abs(y) < 6) & (np.abs(x) < 50)
    after = find_lungs(with_air(ct, trachea | bronchi))
    assert after.right_ml == pytest.approx(before.right_ml, rel=0.05)
    assert after.left_ml == pytest.approx(before.left_ml, rel=0.05)
    assert check_lungs(after) == ()


def test_gas_in_the_bowel_is_no_lung(make_ct) -> None:
    ct = make_ct(*FINE)
    z, y, x = world(ct)
    bubble = ((z + 82) / 6) ** 2 + (y / 50) ** 2 + ((x - 20) / 60) ** 2 < 1
    lungs = find_lungs(with_air(ct, bubble))
    assert not lungs.mask[bubble].any()


def test_foam_of_the_table_is_no_lung(make_ct) -> None:
    ct = make_ct(*FINE)
    _, y, x = world(ct)
    shell = np.broadcast_to((y > 130) & (y < 165) & (np.abs(x) < 160), ct.grid.shape)
    foam = np.broadcast_to((y > 134) & (y < 161) & (np.abs(x) < 156), ct.grid.shape)
    lungs = find_lungs(with_air(with_air(ct, shell, 0), foam, -900))
    assert not lungs.mask[foam].any()
    assert overlap(lungs, find_lungs(ct).mask) > 0.99


def test_consolidation_of_moderate_size_is_filled(make_ct) -> None:
    ct = make_ct(*FINE)
    z, y, x = world(ct)
    patch = ((z + 20) / 10) ** 2 + ((y - 55) / 25) ** 2 + ((x + 75) / 10) ** 2 < 1
    before = find_lungs(ct).mask
    lungs = find_lungs(with_air(ct, patch & before, 40))
    assert lungs.mask[patch & before].mean() > 0.7


def test_same_scan_gives_the_same_lungs(make_ct) -> None:
    assert np.array_equal(find_lungs(make_ct()).mask, find_lungs(make_ct()).mask)


def test_scan_without_lungs_is_refused(make_ct) -> None:
    ct = make_ct()
    with pytest.raises(GeometryError) as caught:
        find_lungs(with_air(ct, (ct.voxels < -700) & (ct.voxels > -950), 40))
    assert caught.value.code == "ct-no-chest"


@pytest.mark.parametrize("keep", [np.s_[:18], np.s_[16:]])
def test_grossly_cut_lungs_are_refused_with_the_end(make_ct, keep) -> None:
    ct = make_ct()
    voxels = ct.voxels[keep]
    lungs = find_lungs(Volume(voxels, Grid.from_spacing(voxels.shape, ct.grid.spacing_mm)))
    with pytest.raises(GeometryError, match="highest" if keep.start is None else "lowest") as caught:
        check_lungs(lungs)
    assert caught.value.code == "ct-incomplete-chest"


def test_slightly_cut_lungs_are_warned_of(make_ct) -> None:
    ct = make_ct()
    voxels = ct.voxels[:31]
    lungs = find_lungs(Volume(voxels, Grid.from_spacing(voxels.shape, ct.grid.spacing_mm)))
    (warning,) = check_lungs(lungs)
    assert "highest slice" in warning.text


@pytest.mark.parametrize(("side", "sign"), [("left", 1), ("right", -1)])
def test_single_lung_is_refused_and_the_missing_one_named(make_ct, side, sign) -> None:
    ct = make_ct()
    _, _, x = world(ct)
    gone = (ct.voxels > -950) & (ct.voxels < -200) & (sign * x > 0)
    lungs = find_lungs(with_air(ct, gone, 40))
    assert min(lungs.left_ml, lungs.right_ml) == 0
    with pytest.raises(GeometryError, match=side) as caught:
        check_lungs(lungs)
    assert caught.value.code == "ct-incomplete-chest"


@pytest.mark.parametrize(("factor", "refused"), [(0.5, False), (1.6, False), (2.0, True)])
def test_lungs_of_an_unlikely_volume_are_warned_of_or_refused(make_ct, factor, refused) -> None:
    lungs = find_lungs(make_ct())
    spacing_mm = tuple(factor * mm for mm in lungs.grid.spacing_mm)
    scaled = Lungs(lungs.sides, lungs.box, Grid.from_spacing(lungs.grid.shape, spacing_mm))
    if refused:
        with pytest.raises(GeometryError) as caught:
            check_lungs(scaled)
        assert caught.value.code == "ct-lung-volume"
    else:
        assert any("1 to 9 L" in warning.text for warning in check_lungs(scaled))


def test_upside_down_lungs_are_warned_of(make_ct) -> None:
    ct = make_ct(*FINE)
    (warning,) = check_lungs(find_lungs(Volume(np.ascontiguousarray(ct.voxels[::-1]), ct.grid)))
    assert "upside-down" in warning.text


def test_volumes_of_ellipsoids_are_right_to_one_percent() -> None:
    grid = Grid.from_spacing((110, 150, 180), (2.0, 2.0, 2.0))
    ct = Volume(np.full(grid.shape, -1000, np.int16), grid)
    z, y, x = world(ct)
    ct.voxels[np.broadcast_to((y / 130) ** 2 + (x / 165) ** 2 < 1, grid.shape)] = 40
    radii = {-72.0: (95.0, 80.0, 58.0), 78.0: (90.0, 74.0, 50.0)}
    for center, (a, b, c) in radii.items():
        ct.voxels[(z / a) ** 2 + (y / b) ** 2 + ((x - center) / c) ** 2 < 1] = -850
    lungs = find_lungs(ct)
    right, left = (4.0 / 3.0 * np.pi * a * b * c / 1000.0 for a, b, c in radii.values())
    assert lungs.right_ml == pytest.approx(right, rel=0.01)
    assert lungs.left_ml == pytest.approx(left, rel=0.01)


def test_each_voxel_belongs_to_one_lung_at_most(make_ct) -> None:
    lungs = find_lungs(make_ct())
    assert not (lungs.left & lungs.right).any()
    assert np.array_equal(lungs.left | lungs.right, lungs.mask)
    assert np.count_nonzero(lungs.left) * lungs.grid.voxel_ml == pytest.approx(lungs.left_ml)


def test_lungs_keep_their_sides_in_a_mirrored_scan(make_ct) -> None:
    lungs, mirrored = find_lungs(make_ct()), find_lungs(flipped(make_ct(), 2))
    assert mirrored.left_ml == pytest.approx(lungs.right_ml, rel=0.08)
    assert mirrored.right_ml == pytest.approx(lungs.left_ml, rel=0.08)
    assert lungs.right_ml > 1.1 * lungs.left_ml


@pytest.fixture(scope="module")
def plain() -> tuple[Volume, np.ndarray]:
    """Two lungs in a body, and where they are."""
    grid = Grid.from_spacing((60, 80, 104), (3.6, 3.5, 3.4))
    ct = Volume(np.full(grid.shape, -1000, np.int16), grid)
    z, y, x = world(ct)
    ct.voxels[np.broadcast_to((y / 120) ** 2 + (x / 165) ** 2 < 1, grid.shape)] = 40
    for center, width in ((-74.0, 57.0), (74.0, 55.0)):
        ct.voxels[(z / 100) ** 2 + (y / 85) ** 2 + ((x - center) / width) ** 2 < 1] = -850
    return ct, ct.voxels == -850


@pytest.mark.parametrize("radius", [25.0, 35.0, 50.0])
@pytest.mark.parametrize("center", [(0.0, 10.0, -128.0), (5.0, 75.0, -80.0), (0.0, 20.0, 122.0)])
def test_consolidation_at_the_chest_wall_stays_inside(plain, radius, center) -> None:
    ct, lung = plain
    patch = ball(ct, center, radius) & lung
    lungs = find_lungs(with_air(ct, patch, 35))
    assert lungs.mask[patch].mean() > 0.9
    assert lungs.total_ml == pytest.approx(np.count_nonzero(lung) * ct.grid.voxel_ml, rel=0.07)


def base_of_the_right_lung(ct: Volume) -> np.ndarray:
    z, _, x = world(ct)
    return aerated(ct) & (z < -10) & (x < 0)


def test_fluid_on_the_diaphragm_stays_outside() -> None:
    patient = draw_patient(3, FindingClass.BACTERIAL)
    truth = render_patient(patient, scan_grid(patient, STYLES["C"], 64))
    with_fluid = (
        render_patient(draw_patient(3, FindingClass.HEALTHY), truth.grid).lung_mask & ~truth.lung_mask
    )
    assert with_fluid.sum() * truth.grid.voxel_ml > 100
    lungs = find_lungs(acquire(truth, STYLES["C"], np.random.default_rng(0)))
    assert lungs.mask[with_fluid].mean() < 0.4


def test_raised_diaphragm_is_no_lung(make_ct) -> None:
    ct = make_ct(*FINE)
    organ = base_of_the_right_lung(ct)
    assert find_lungs(with_air(ct, organ, 55)).mask[organ].mean() < 0.15


def test_consolidated_base_with_open_airways_is_lung(make_ct) -> None:
    ct = make_ct(*FINE)
    base = base_of_the_right_lung(ct)
    rng = np.random.default_rng(1)
    airways = base & (rng.random(base.shape) < 0.01)
    lungs = find_lungs(with_air(with_air(ct, base, 35), airways, -500))
    assert lungs.mask[base].mean() > 0.55


def test_consolidation_in_a_noisy_scan_needs_more_than_noise(make_ct) -> None:
    ct = make_ct(*FINE)
    organ = base_of_the_right_lung(ct)
    noisy = with_air(ct, organ, 55).voxels + np.random.default_rng(2).normal(0.0, 90.0, ct.grid.shape)
    lungs = find_lungs(Volume(np.clip(noisy, -1024, 3071).astype(np.int16), ct.grid))
    assert lungs.mask[organ].mean() < 0.2


def test_heart_liver_and_chest_wall_of_a_healthy_patient_are_no_lung(healthy) -> None:
    ct, truth = healthy
    lungs = find_lungs(ct)
    assert overlap(lungs, truth.lung_mask) > 0.98
    dense = (truth.hu > -200) & ~truth.lung_mask
    assert np.count_nonzero(lungs.mask & dense) < 0.01 * truth.lung_mask.sum()


def test_lobar_pneumonia_down_to_the_diaphragm_is_inside() -> None:
    patient = draw_patient(50007, FindingClass.BACTERIAL)
    truth = render_patient(patient, scan_grid(patient, STYLES["C"], 96))
    ct = acquire(truth, STYLES["C"], np.random.default_rng(0))
    dense = truth.lesion_mask & (truth.hu > -150)
    assert dense.sum() * ct.grid.voxel_ml > 500
    lungs = find_lungs(ct)
    assert lungs.mask[dense].mean() > 0.8
    assert overlap(lungs, truth.lung_mask) > 0.94


def test_patient_who_lies_as_the_header_says_gives_no_remark(healthy) -> None:
    ct, _ = healthy
    lungs = find_lungs(ct)
    assert check_lungs(lungs) == ()
    assert check_orientation(ct, lungs) == ()


@pytest.mark.parametrize(
    ("axes", "code"),
    [((1,), "spine-in-front"), ((1, 2), "spine-in-front"), ((2,), "heart-on-the-right")],
)
def test_images_turned_against_the_header_are_told_by_spine_and_heart(healthy, axes, code) -> None:
    turned = flipped(healthy[0], *axes)
    assert [remark.code for remark in check_orientation(turned, find_lungs(turned))] == [code]


def test_orientation_of_a_chest_without_bones_is_not_judged(make_ct) -> None:
    ct = make_ct()
    turned = flipped(with_air(ct, ct.voxels > 150, 40), 1)
    assert check_orientation(turned, find_lungs(turned)) == ()


def test_upside_down_patient_is_told_and_gets_no_lung_in_the_liver(healthy) -> None:
    ct, truth = healthy
    lungs = find_lungs(flipped(ct, 0))
    assert [remark.code for remark in check_lungs(lungs)] == ["upside-down"]
    assert overlap(lungs, truth.lung_mask[::-1]) > 0.97
