# SPDX-License-Identifier: Apache-2.0
import gzip

import nibabel as nib
import numpy as np
import pytest

from ucadi.cohorts.content import check_mask_fits_label, content_hash, read_lesion_mask, to_int16
from ucadi.errors import CohortError, DataError
from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume
from ucadi.io.nifti import read_nifti, write_nifti
from ucadi.types import FindingClass

GRID = Grid.from_spacing((4, 5, 6), (2.0, 1.0, 1.0))


def scan(seed=0) -> Volume:
    voxels = np.random.default_rng(seed).integers(-1000, 400, GRID.shape).astype(np.int16)
    return Volume(voxels, GRID)


def test_the_hash_is_that_of_the_scan_and_not_of_its_file_or_header(tmp_path):
    original = scan()
    for name, grid in [
        ("a.nii", GRID),
        ("b.nii.gz", Grid.from_spacing(GRID.shape, (3.0, 1.0, 1.0), (9.0, 0.0, 0.0))),
    ]:
        write_nifti(Volume(original.voxels, grid), tmp_path / name)
        assert content_hash(read_nifti(tmp_path / name)) == content_hash(original)


def test_the_hash_does_not_depend_on_how_whole_numbers_are_stored():
    original = scan()
    in_fortran_order = Volume(np.asfortranarray(original.voxels), GRID)
    as_floats = Volume(original.voxels.astype(np.float32), GRID)
    assert content_hash(original) == content_hash(in_fortran_order) == content_hash(as_floats)


def test_one_voxel_or_another_shape_changes_the_hash():
    original = scan()
    changed = original.voxels.copy()
    changed[0, 0, 0] += 1
    reshaped = Volume(original.voxels.reshape(5, 4, 6), Grid.from_spacing((5, 4, 6), (2.0, 1.0, 1.0)))
    assert len({content_hash(v) for v in (original, Volume(changed, GRID), reshaped)}) == 3


def test_whole_hu_are_rounded_and_stay_in_bounds():
    voxels = np.array([[[-1e6, -0.6, 0.4, 1e6]]], np.float32)
    np.testing.assert_array_equal(to_int16(voxels), [[[-32768, -1, 0, 32767]]])


@pytest.mark.parametrize("value", [1, 255, 7.0])
def test_a_mask_of_any_one_value_is_read(tmp_path, value):
    voxels = np.zeros(GRID.shape, type(value) if isinstance(value, float) else np.int16)
    voxels[1, 2, 3] = value
    write_nifti(Volume(voxels.astype(np.float32 if value == 7.0 else np.int16), GRID), tmp_path / "m.nii")
    mask = read_lesion_mask(tmp_path / "m.nii", GRID)
    assert mask.voxels.dtype == np.bool_
    assert np.argwhere(mask.voxels).tolist() == [[1, 2, 3]]


def test_a_mask_of_several_values_is_refused_with_the_values(tmp_path):
    write_nifti(scan(), tmp_path / "m.nii")
    with pytest.raises(CohortError, match="values besides 0") as caught:
        read_lesion_mask(tmp_path / "m.nii", GRID)
    assert caught.value.code == "cohort-mask"


@pytest.mark.parametrize(
    "other",
    [
        Grid.from_spacing((4, 5, 7), (2.0, 1.0, 1.0)),
        Grid.from_spacing((4, 5, 6), (2.0, 1.0, 1.1)),
        Grid.from_spacing((4, 5, 6), (2.0, 1.0, 1.0), (0.5, 0.0, 0.0)),
    ],
    ids=["shape", "spacing", "place"],
)
def test_a_mask_on_another_grid_is_refused(tmp_path, other):
    write_nifti(Volume(np.ones(other.shape, np.bool_), other), tmp_path / "m.nii")
    with pytest.raises(CohortError, match="not the image's grid"):
        read_lesion_mask(tmp_path / "m.nii", GRID)


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_of_a_mask_of_another_size_no_number_is_read(tmp_path, kind, order, ending):
    header = kind(endianness=order)
    header.set_data_shape((1024, 1024, 1024))
    header["magic"] = b"n+1\0" if kind is nib.Nifti1Header else b"n+2\0"
    content = header.binaryblock + bytes(4)  # and not one of a thousand million voxels
    path = tmp_path / f"m{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    with pytest.raises(CohortError, match="1024 x 1024 x 1024 voxels, which is not") as caught:
        read_lesion_mask(path, GRID)
    assert caught.value.code == "cohort-mask"


def test_a_mask_in_other_axes_is_read(tmp_path):
    turned = Grid((6, 5, 4), GRID.affine_lps[:, [2, 1, 0, 3]])
    write_nifti(Volume(np.ones(turned.shape, np.bool_), turned), tmp_path / "m.nii")
    assert read_lesion_mask(tmp_path / "m.nii", GRID).voxels.all()


def test_a_mask_that_is_no_image_is_refused_as_by_the_reader(tmp_path):
    for content in (b"", b"\x1f\x8bjunk", bytes(600)):
        (tmp_path / "m.nii").write_bytes(content)
        with pytest.raises(DataError):
            read_lesion_mask(tmp_path / "m.nii", GRID)


def test_a_grid_that_differs_by_the_rounding_of_a_header_is_the_same(tmp_path):
    near = Grid.from_spacing(GRID.shape, (2.0, 1.0, 1.0), (0.04, 0.0, 0.0))
    write_nifti(Volume(np.ones(near.shape, np.bool_), near), tmp_path / "m.nii")
    mask = read_lesion_mask(tmp_path / "m.nii", GRID)
    assert mask.grid is GRID


@pytest.mark.parametrize("label", FindingClass)
def test_there_are_lesions_unless_the_label_is_healthy(label):
    empty, full = (Volume(np.full(GRID.shape, value), GRID) for value in (False, True))
    good, bad = (empty, full) if label is FindingClass.HEALTHY else (full, empty)
    check_mask_fits_label(good, label)
    with pytest.raises(CohortError, match=label.name):
        check_mask_fits_label(bad, label)
