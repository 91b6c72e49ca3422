# SPDX-License-Identifier: Apache-2.0
import gzip
import zipfile
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from ucadi.errors import DataError
from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume
from ucadi.io.files import open_zip
from ucadi.io.nifti import is_nifti, read_nifti, write_nifti

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def small() -> Volume:
    """An asymmetric volume: every voxel has its own number."""
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 40
    return Volume(voxels, Grid.from_spacing((4, 5, 6), (2.5, 0.75, 0.5), (-100.0, 20.0, -30.0)))


def save(path, voxels, affine, *, sform=2, qform=1, unit="mm", slope=None) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine if qform else None, qform)
    image.header.set_xyzt_units(unit)
    if slope:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_every_axis_order_gives_the_same_canonical_volume(small, tmp_path, order, flips) -> None:
    voxels = small.voxels.transpose(order)
    affine = small.grid.affine_lps[:, [*order, 3]].copy()
    for axis in np.flatnonzero(flips):
        voxels = np.flip(voxels, axis)
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1
    save(tmp_path / "v.nii", voxels, LPS_TO_RAS @ affine)
    read = read_nifti(tmp_path / "v.nii")
    assert np.array_equal(read.voxels, small.voxels)
    assert read.grid.is_close(small.grid, 1e-4)
    assert read.voxels.flags.c_contiguous


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_written_volume_reads_back(small, tmp_path, name) -> None:
    write_nifti(small, tmp_path / name)
    read = read_nifti(tmp_path / name)
    assert read.voxels.dtype == np.int16
    assert np.array_equal(read.voxels, small.voxels)
    assert read.grid.is_close(small.grid, 1e-4)


def test_mask_reads_back_as_zeros_and_ones(small, tmp_path) -> None:
    write_nifti(Volume(small.voxels > 0, small.grid), tmp_path / "m.nii.gz")
    assert np.array_equal(read_nifti(tmp_path / "m.nii.gz").voxels > 0, small.voxels > 0)


def test_same_volume_gives_the_same_compressed_bytes_at_the_fast_level(small, tmp_path) -> None:
    write_nifti(small, tmp_path / "a.nii.gz")
    write_nifti(small, tmp_path / "b.nii.gz")
    data = (tmp_path / "a.nii.gz").read_bytes()
    assert data == (tmp_path / "b.nii.gz").read_bytes()
    assert data[8] == 4  # the gzip header's mark of the fastest level


def test_another_reader_finds_each_voxel_at_its_place(small, tmp_path) -> None:
    write_nifti(small, tmp_path / "v.nii.gz")
    image = nib.load(tmp_path / "v.nii.gz")
    world_ras = image.affine @ [5, 1, 3, 1]
    assert np.allclose((LPS_TO_RAS @ world_ras)[:3], small.grid.to_world(np.array([3.0, 1.0, 5.0])))
    assert np.asarray(image.dataobj)[5, 1, 3] == small.voxels[3, 1, 5]


def test_content_decides_not_the_ending(small, tmp_path) -> None:
    write_nifti(small, tmp_path / "v.nii.gz")
    odd = tmp_path / "v.dat"
    odd.write_bytes((tmp_path / "v.nii.gz").read_bytes())
    assert is_nifti(odd)
    assert np.array_equal(read_nifti(odd).voxels, small.voxels)


def test_nifti_2_is_read(small, tmp_path) -> None:
    affine = LPS_TO_RAS @ small.grid.affine_lps[:, [2, 1, 0, 3]]
    image = nib.Nifti2Image(small.voxels.transpose(2, 1, 0), affine)
    image.set_sform(affine, 2)
    nib.save(image, tmp_path / "v.nii")
    assert is_nifti(tmp_path / "v.nii")
    assert np.array_equal(read_nifti(tmp_path / "v.nii").voxels, small.voxels)


@pytest.mark.parametrize(
    ("stored", "slope", "dtype"),
    [
        (np.uint8, None, np.int16),
        (np.int32, None, np.int16),
        (np.float32, None, np.int16),
        (np.float64, None, np.int16),
        (np.int16, (0.5, -10.0), np.float32),
    ],
)
def test_values_become_int16_or_float32(tmp_path, stored, slope, dtype) -> None:
    voxels = np.arange(60).reshape(3, 4, 5)
    save(tmp_path / "v.nii", voxels.astype(stored), LPS_TO_RAS, slope=slope)
    raw = nib.load(tmp_path / "v.nii")
    read = read_nifti(tmp_path / "v.nii").voxels
    assert read.dtype == dtype
    assert np.allclose(read, np.asarray(raw.dataobj).transpose(2, 1, 0))


def test_numbers_beyond_int16_become_float32(tmp_path) -> None:
    save(tmp_path / "v.nii", np.full((2, 2, 2), 40000, np.int32), LPS_TO_RAS)
    assert read_nifti(tmp_path / "v.nii").voxels.dtype == np.float32


def code_of(path) -> str:
    with pytest.raises(DataError) as caught:
        read_nifti(path)
    assert path.name not in str(caught.value)
    return caught.value.code


def test_file_without_orientation_is_refused(tmp_path) -> None:
    save(tmp_path / "v.nii", np.zeros((3, 3, 3), np.int16), np.eye(4), sform=0, qform=0)
    assert code_of(tmp_path / "v.nii") == "nifti-no-orientation"


@pytest.mark.parametrize("codes", [(2, 0), (0, 1)])
def test_one_of_sform_and_qform_is_enough(tmp_path, codes) -> None:
    save(tmp_path / "v.nii", np.zeros((3, 3, 3), np.int16), np.eye(4), sform=codes[0], qform=codes[1])
    assert read_nifti(tmp_path / "v.nii").grid.spacing_mm == (1.0, 1.0, 1.0)


def broken_header(tmp_path, change):
    image = nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.set_qform(np.eye(4), 1)
    change(image.header)
    nib.Nifti1Image(image.dataobj, None, image.header).to_filename(tmp_path / "v.nii")
    return tmp_path / "v.nii"


def test_contradicting_orientations_are_refused(tmp_path) -> None:
    def move(header) -> None:
        header["qoffset_x"] = 2.0

    assert code_of(broken_header(tmp_path, move)) == "nifti-no-orientation"


def test_voxel_size_that_contradicts_the_affine_is_refused(tmp_path) -> None:
    def stretch(header) -> None:
        header["qform_code"] = 0
        header["pixdim"][3] = 3.0

    assert code_of(broken_header(tmp_path, stretch)) == "nifti-no-orientation"


def test_sheared_axes_are_refused(tmp_path) -> None:
    def shear(header) -> None:
        header["qform_code"] = 0
        header["srow_x"] = [1.0, 0.1, 0.0, 0.0]

    assert code_of(broken_header(tmp_path, shear)) == "nifti-no-orientation"


def test_singular_and_infinite_affines_are_refused(tmp_path) -> None:
    for bad in (0.0, np.nan, np.inf):

        def spoil(header, bad=bad) -> None:
            header["qform_code"] = 0
            header["srow_x"] = [bad, 0.0, 0.0, 0.0]

        assert code_of(broken_header(tmp_path, spoil)) == "nifti-no-orientation"


def test_another_unit_than_mm_is_refused(tmp_path) -> None:
    save(tmp_path / "v.nii", np.zeros((3, 3, 3), np.int16), np.eye(4), unit="meter")
    assert code_of(tmp_path / "v.nii") == "nifti-no-orientation"


def test_series_of_volumes_is_refused_and_one_in_four_dimensions_is_read(tmp_path) -> None:
    save(tmp_path / "two.nii", np.zeros((3, 4, 5, 2), np.int16), np.eye(4))
    assert code_of(tmp_path / "two.nii") == "nifti-not-3d"
    save(tmp_path / "one.nii", np.zeros((3, 4, 5, 1), np.int16), np.eye(4))
    assert read_nifti(tmp_path / "one.nii").voxels.shape == (5, 4, 3)


def test_nan_and_colors_are_refused(tmp_path) -> None:
    voxels = np.zeros((3, 3, 3), np.float32)
    voxels[1, 1, 1] = np.nan
    save(tmp_path / "nan.nii", voxels, np.eye(4))
    assert code_of(tmp_path / "nan.nii") == "ct-not-hu"
    rgb = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(tmp_path / "rgb.nii", rgb, np.eye(4))
    assert code_of(tmp_path / "rgb.nii") == "ct-not-hu"


def test_stated_size_beyond_any_ct_is_refused_before_memory_is_taken(tmp_path) -> None:
    def inflate(header) -> None:
        header["dim"][1:4] = 30000

    path = broken_header(tmp_path, lambda header: None)
    data = bytearray(path.read_bytes())
    data[42:48] = np.array([30000] * 3, "<i2").tobytes()
    path.write_bytes(data)
    assert code_of(path) == "nifti-not-3d"


@pytest.mark.parametrize("keep", [10, 347, 352, 400, -1])
def test_truncated_file_is_refused(small, tmp_path, keep) -> None:
    write_nifti(small, tmp_path / "v.nii")
    path = tmp_path / "cut.nii"
    path.write_bytes((tmp_path / "v.nii").read_bytes()[:keep])
    assert code_of(path) == "input-unreadable"
    path.write_bytes(gzip.compress((tmp_path / "v.nii").read_bytes())[:-12])
    assert code_of(path) == "input-unreadable"


def test_odd_headers_leave_no_remarks_on_stderr(small, tmp_path, capfd, caplog) -> None:
    path = tmp_path / "v.nii"
    write_nifti(small, path)
    data = bytearray(path.read_bytes())
    data[76:80] = np.float32(0.5).tobytes()  # qfac, which nibabel mends with a remark
    path.write_bytes(data)
    read_nifti(path)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_data_that_the_header_does_not_state_are_refused(small, tmp_path) -> None:
    write_nifti(small, tmp_path / "v.nii")
    data = (tmp_path / "v.nii").read_bytes()
    (tmp_path / "padded.nii").write_bytes(data + bytes(512))
    assert np.array_equal(read_nifti(tmp_path / "padded.nii").voxels, small.voxels)
    for name, more in (("plain.nii", data + bytes(5000)), ("packed.nii", gzip.compress(data + bytes(5000)))):
        (tmp_path / name).write_bytes(more)
        assert code_of(tmp_path / name) == "input-unreadable"


def test_one_slice_less_in_the_header_is_refused(tmp_path) -> None:
    path = broken_header(tmp_path, lambda header: None)
    data = bytearray(path.read_bytes())
    data[46:48] = np.int16(2).tobytes()
    path.write_bytes(bytes(data) + bytes(5000))
    assert code_of(path) == "input-unreadable"


@pytest.mark.parametrize("offset", [0.0, -1.0, 100.0, 1e30, np.nan, np.inf])
def test_a_place_of_the_data_that_cannot_be_is_refused(small, tmp_path, offset) -> None:
    write_nifti(small, tmp_path / "v.nii")
    data = bytearray((tmp_path / "v.nii").read_bytes())
    data[108:112] = np.float32(offset).tobytes()
    (tmp_path / "v.nii").write_bytes(data)
    assert code_of(tmp_path / "v.nii") == "input-unreadable"


def test_extensions_are_passed_over(small, tmp_path) -> None:
    write_nifti(small, tmp_path / "v.nii")
    data = bytearray((tmp_path / "v.nii").read_bytes())
    data[108:112] = np.float32(352 + 1600).tobytes()
    for size in (32, 2**31 - 1, -5, 0):  # the last three would mislead who parses them
        extension = b"\1\0\0\0" + np.array([size, 6], "<i4").tobytes() + b"Doe^John" * 199
        (tmp_path / "e.nii").write_bytes(bytes(data[:348]) + extension + data[352:])
        assert np.array_equal(read_nifti(tmp_path / "e.nii").voxels, small.voxels)


@pytest.mark.parametrize("cut", [1, 8, 30])
def test_a_compressed_file_of_several_parts_is_read_and_a_cut_one_refused(small, tmp_path, cut) -> None:
    write_nifti(small, tmp_path / "v.nii")
    data = (tmp_path / "v.nii").read_bytes()
    parts = gzip.compress(data[:400]) + gzip.compress(data[400:])
    (tmp_path / "v.nii.gz").write_bytes(parts + bytes(700))
    assert np.array_equal(read_nifti(tmp_path / "v.nii.gz").voxels, small.voxels)
    (tmp_path / "v.nii.gz").write_bytes(parts[:-cut])
    assert code_of(tmp_path / "v.nii.gz") == "input-unreadable"


def test_damaged_compressed_data_are_noticed(small, tmp_path) -> None:
    write_nifti(small, tmp_path / "v.nii.gz")
    good = (tmp_path / "v.nii.gz").read_bytes()
    for at in range(10, len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 0x10
        (tmp_path / "v.nii.gz").write_bytes(damaged)
        try:
            read = read_nifti(tmp_path / "v.nii.gz")
        except DataError as error:
            assert error.code == "input-unreadable"  # noqa: PT017 - most positions raise, not all
        else:  # a bit that fills up the last byte means nothing
            assert np.array_equal(read.voxels, small.voxels)


def test_a_volume_in_an_archive_is_read_as_a_stream(small, tmp_path) -> None:
    for name in ("v.nii", "v.nii.gz"):
        write_nifti(small, tmp_path / name)
    with zipfile.ZipFile(tmp_path / "z", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "v.nii", "../../v.nii")
        archive.write(tmp_path / "v.nii.gz", "v.nii.gz")
    with open_zip(tmp_path / "z") as found:
        for file in found:
            assert is_nifti(file)
            assert np.array_equal(read_nifti(file).voxels, small.voxels)


def test_large_volumes_keep_whole_numbers_and_fractions_that_come_late(tmp_path) -> None:
    voxels = np.zeros((130, 128, 128), np.float32)  # more than one step of reading
    voxels[0, 0, 1] = -1000.0
    save(tmp_path / "whole.nii", voxels, np.eye(4))
    assert read_nifti(tmp_path / "whole.nii").voxels.dtype == np.int16
    voxels[-1, -1, -1] = 0.5
    save(tmp_path / "late.nii.gz", voxels, np.eye(4))
    read = read_nifti(tmp_path / "late.nii.gz").voxels
    assert read.dtype == np.float32
    assert {float(v) for v in np.unique(read)} == {-1000.0, 0.0, 0.5}
