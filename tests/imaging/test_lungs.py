# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ucadi.errors import GeometryError
from ucadi.imaging.chest import check_lungs
from ucadi.imaging.grid import Grid
from ucadi.imaging.lungs import Lungs, find_lungs, lung_box
from ucadi.imaging.volume import Volume

FINE = ((64, 128, 128), (2.8, 2.75, 2.75))


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
    scaled = Lungs(
        lungs.mask,
        lungs.grid,
        lungs.box,
        lungs.left_ml * factor**3,
        lungs.right_ml * factor**3,
        lungs.area_cm2 * factor**2,
    )
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
