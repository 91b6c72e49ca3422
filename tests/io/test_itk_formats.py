# SPDX-License-Identifier: Apache-2.0
"""NRRD and MetaImage, held against ITK, which reads and writes both."""

import gzip
import os
import zipfile
import zlib
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as everybody calls it

from ucadi.errors import DataError
from ucadi.imaging.volume import Volume
from ucadi.io.files import open_zip
from ucadi.io.itk_formats import is_metaimage, is_nrrd, read_metaimage, read_nrrd
from ucadi.io.nifti import is_nifti

READ = {".nrrd": read_nrrd, ".mha": read_metaimage}
TURNS = [
    np.eye(3)[list(order)] * signs
    for order in permutations(range(3))
    for signs in product((1.0, -1.0), repeat=3)
]


def make_image(directions=None, voxels=None) -> sitk.Image:
    """A volume of which every voxel has its own number."""
    image = sitk.GetImageFromArray(
        np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 40 if voxels is None else voxels
    )
    image.SetSpacing((0.5, 0.75, 2.5))
    image.SetOrigin((-30.0, 20.0, -100.0))
    image.SetDirection(np.asarray(np.eye(3) if directions is None else directions).ravel().tolist())
    return image


def agrees(volume: Volume, image: sitk.Image) -> bool:
    """Tell whether every voxel of ITK's image has its value at its place in the volume."""
    places = list(np.ndindex(*image.GetSize()))
    world = np.array([image.TransformIndexToPhysicalPoint(place) for place in places])
    z, y, x = np.rint(volume.grid.to_index(world)).astype(int).T
    same_place = np.allclose(volume.grid.to_world(np.stack([z, y, x], axis=1).astype(float)), world)
    return same_place and np.array_equal(volume.voxels[z, y, x], [image[place] for place in places])


@pytest.mark.parametrize("ending", READ)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("turn", range(len(TURNS)))
def test_every_orientation_places_each_voxel_as_itk_does(tmp_path, ending, compressed, turn) -> None:
    path = tmp_path / f"v{ending}"
    sitk.WriteImage(make_image(TURNS[turn]), str(path), useCompression=compressed)
    volume = READ[ending](path)
    assert agrees(volume, sitk.ReadImage(str(path)))
    nearest = np.abs(volume.grid.affine_lps[:3, :3]).argmax(axis=0)
    assert nearest.tolist() == [2, 1, 0]
    assert (volume.grid.affine_lps[nearest, [0, 1, 2]] > 0).all()


@pytest.mark.parametrize("ending", READ)
def test_an_oblique_volume_stays_where_it_is(tmp_path, ending) -> None:
    a, b = 0.3, -0.2
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    path = tmp_path / f"v{ending}"
    sitk.WriteImage(make_image(about_x @ about_z), str(path))
    assert agrees(READ[ending](path), sitk.ReadImage(str(path)))


@pytest.mark.parametrize("ending", READ)
@pytest.mark.parametrize("stored", [np.uint8, np.int8, np.int32, np.uint16, np.float32, np.float64])
def test_whole_numbers_become_int16_whatever_their_type(tmp_path, ending, stored) -> None:
    path = tmp_path / f"v{ending}"
    sitk.WriteImage(make_image(voxels=np.arange(60).reshape(3, 4, 5).astype(stored)), str(path))
    volume = READ[ending](path)
    assert volume.voxels.dtype == np.int16
    assert agrees(volume, sitk.ReadImage(str(path)))


@pytest.mark.parametrize("ending", READ)
def test_fractions_become_float32_and_nan_is_refused(tmp_path, ending) -> None:
    path = tmp_path / f"v{ending}"
    voxels = np.arange(60).reshape(3, 4, 5) / 7.0
    sitk.WriteImage(make_image(voxels=voxels), str(path))
    assert np.array_equal(READ[ending](path).voxels, voxels.astype(np.float32))
    voxels[1, 1, 1] = np.nan
    sitk.WriteImage(make_image(voxels=voxels), str(path))
    assert code_of(path) == "ct-not-hu"


def code_of(path, content: bytes | None = None) -> str:
    """The code that a file is refused with."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        (read_nrrd if path.read_bytes().startswith(b"NRRD") else read_metaimage)(path)
    assert path.name not in str(caught.value)
    assert "Doe" not in str(caught.value)
    return caught.value.code


NRRD = """NRRD0004
# made by John Doe
content: Doe^John
patient:=Doe
type: short
dimension: 3
space: {space}
sizes: 2 3 4
space directions: (1,0,0) (0,2,0) (0,0,3)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (10,20,30)

"""
MHA = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 10 20 30
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
PatientName = Doe^John
ElementSpacing = 1 2 3
DimSize = 2 3 4
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
DATA = np.arange(24, dtype="<i2").tobytes()


def nrrd(change: str = "", to: str = "", data: bytes = DATA) -> bytes:
    text = NRRD.format(space="left-posterior-superior")
    assert not change or change in text
    return text.replace(change, to).encode() + data


def mha(change: str = "", to: str = "", data: bytes = DATA) -> bytes:
    assert not change or change in MHA
    return MHA.replace(change, to).encode() + data


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("LPS", (1, 1)),
        ("left-posterior-superior", (1, 1)),
        ("RAS", (-1, -1)),
        ("Left-Anterior-Superior", (1, -1)),
    ],
)
def test_nrrd_spaces_are_turned_into_lps(tmp_path, space, signs) -> None:
    (tmp_path / "v").write_bytes(NRRD.format(space=space).encode() + DATA)
    volume = read_nrrd(tmp_path / "v")
    at = volume.grid.to_index(np.array([signs[0] * 11.0, signs[1] * 24.0, 39.0]))
    assert volume.voxels[tuple(np.rint(at).astype(int))] == 3 * 6 + 2 * 2 + 1


@pytest.mark.parametrize(
    "content",
    [
        nrrd("\n", "\r\n"),
        nrrd("encoding: raw", "encoding: gzip", gzip.compress(DATA)),
        nrrd("encoding: raw", "encoding: GZ", gzip.compress(DATA[:9]) + gzip.compress(DATA[9:]) + bytes(99)),
        nrrd("endian: little", "endian: big", np.arange(24, dtype=">i2").tobytes()),
        nrrd("kinds: ", 'space units: "mm" "mm" "mm"\nkinds: '),
        nrrd(data=DATA + b"\n"),
        mha("CompressedData = False", "CompressedData = True", zlib.compress(DATA)),
        mha("MSB = False", "MSB = True", np.arange(24, dtype=">i2").tobytes()),
        mha("BinaryDataByteOrderMSB = False\n", ""),
        mha("TransformMatrix", "Rotation"),
        mha("\n", "\r\n"),
    ],
)
def test_forms_of_the_same_volume_give_the_same_volume(tmp_path, content) -> None:
    (tmp_path / "v").write_bytes(content)
    volume = (read_nrrd if is_nrrd(content) else read_metaimage)(tmp_path / "v")
    assert np.array_equal(volume.voxels, np.arange(24).reshape(4, 3, 2))
    assert volume.grid.spacing_mm == (3.0, 2.0, 1.0)
    assert volume.grid.origin_mm == (30.0, 20.0, 10.0)


@pytest.mark.parametrize(
    ("code", "content"),
    [
        ("volume-detached", nrrd("encoding: raw", "encoding: raw\ndata file: /etc/passwd")),
        ("volume-detached", nrrd("encoding: raw", "datafile: LIST\n/etc/passwd")),
        ("volume-no-orientation", nrrd("space: left-posterior-superior\n", "")),
        ("volume-no-orientation", nrrd("left-posterior-superior", "scanner-xyz")),
        ("volume-no-orientation", nrrd("left-posterior-superior", "left-posterior-superior-time")),
        ("volume-no-orientation", nrrd("space directions: (1,0,0) (0,2,0) (0,0,3)", "spacings: 1 2 3")),
        ("volume-no-orientation", nrrd("kinds: ", "spacings: 1 2 3\nkinds: ")),
        ("volume-no-orientation", nrrd("(0,0,3)", "none")),
        ("volume-no-orientation", nrrd("(0,0,3)", "(7(0,0,3)")),
        ("volume-no-orientation", nrrd("(0,0,3)", "(0,0,3) (0,0,3)")),
        ("volume-no-orientation", nrrd("(10,20,30)", "10,20,30")),
        ("volume-no-orientation", nrrd("(0,0,3)", "(0,0,0)")),
        ("volume-no-orientation", nrrd("(0,0,3)", "(0,1,3)")),
        ("volume-no-orientation", nrrd("space origin: (10,20,30)\n", "")),
        ("volume-no-orientation", nrrd("kinds: ", 'space units: "cm" "cm" "cm"\nkinds: ')),
        ("volume-not-3d", nrrd("dimension: 3", "dimension: 4")),
        ("volume-not-3d", nrrd("domain domain domain", "domain domain list")),
        ("volume-not-3d", nrrd("sizes: 2 3 4", "sizes: 2048 3000 4000")),
        ("volume-not-3d", nrrd("sizes: 2 3 4", "sizes: 2 3 0")),
        ("input-unsupported", nrrd("encoding: raw", "encoding: ascii")),
        ("input-unsupported", nrrd("type: short", "type: block")),
        ("input-unsupported", nrrd("encoding: raw", "encoding: raw\nbyte skip: -1")),
        ("input-unreadable", nrrd("sizes: 2 3 4", "sizes: 2 3 4 5")),
        ("input-unreadable", nrrd("sizes: 2 3 4", "sizes: 2 3 4\nsizes: 4 3 2")),
        ("input-unreadable", nrrd("sizes: 2 3 4", "sizes: 2 3 four")),
        ("input-unreadable", nrrd("(10,20,30)", "(10,20,nan)")),
        ("input-unreadable", nrrd("endian: little\n", "")),
        ("input-unreadable", nrrd("kinds: ", "John Doe: ")),
        ("input-unreadable", nrrd(data=DATA[:-1])),
        ("input-unreadable", nrrd(data=DATA + bytes(2000))),
        ("input-unreadable", nrrd("encoding: raw", "encoding: gzip", gzip.compress(DATA)[:-9])),
        ("input-unreadable", nrrd("encoding: raw", "encoding: gzip", DATA)),
        ("input-unreadable", NRRD.encode()[:100]),
        ("volume-detached", mha("LOCAL", "../other.raw")),
        ("volume-detached", mha("LOCAL", "LIST")),
        ("volume-no-orientation", mha("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "")),
        ("volume-no-orientation", mha("TransformMatrix", "Rotation = 1 0 0 0 1 0 0 0 1\nTransformMatrix")),
        ("volume-no-orientation", mha("1 0 0 0 1 0 0 0 1", "1 0 0 0 1 0 0 0 2")),
        ("volume-no-orientation", mha("1 0 0 0 1 0 0 0 1", "1 0 0 0 1 0 0 0.6 0.8")),
        ("volume-no-orientation", mha("1 0 0 0 1 0 0 0 1", "1 0 0 0 1 0 0 1 0")),
        ("volume-no-orientation", mha("Offset = 10 20 30\n", "")),
        ("volume-no-orientation", mha("ElementSpacing = 1 2 3\n", "")),
        ("volume-no-orientation", mha("ElementSpacing = 1 2 3", "ElementSpacing = 1 2 -3")),
        ("volume-no-orientation", mha("NDims = 3", "NDims = 3\nDistanceUnits = cm")),
        ("volume-not-3d", mha("NDims = 3", "NDims = 4")),
        ("volume-not-3d", mha("NDims = 3", "NDims = 3\nElementNumberOfChannels = 3")),
        ("volume-not-3d", mha("DimSize = 2 3 4", "DimSize = 2 3 1e30")),
        ("input-unsupported", mha("ObjectType = Image", "ObjectType = Mesh")),
        ("input-unsupported", mha("BinaryData = True", "BinaryData = False")),
        ("input-unsupported", mha("MET_SHORT", "MET_LONG")),
        ("input-unsupported", mha("NDims = 3", "NDims = 3\nHeaderSize = -1")),
        ("input-unsupported", mha("NDims = 3", "NDims = 3\nElementToIntensityFunctionSlope = 2")),
        ("input-unreadable", mha("MSB = False", "MSB = False\nElementByteOrderMSB = True")),
        ("input-unreadable", mha("NDims = 3", "NDims = 3\nNDims = 3")),
        ("input-unreadable", mha("DimSize = 2 3 4", "DimSize = 2 3 1_0")),
        ("input-unreadable", mha("DimSize = 2 3 4", "DimSize = 2 3\x1f4")),
        ("volume-no-orientation", mha("ElementSpacing ", "ElementSpacing\x1f")),
        ("input-unreadable", mha("CompressedData = False", "CompressedData = True")),
        ("input-unreadable", mha("CompressedData = False", "CompressedData = perhaps")),
        (
            "input-unreadable",
            mha(
                "CompressedData = False",
                "CompressedData = True\nCompressedDataSize = 9000",
                zlib.compress(DATA),
            ),
        ),
        ("input-unreadable", mha(data=DATA[:-1])),
        ("input-unreadable", MHA.encode()[:100]),
        ("input-unreadable", b"ObjectType = Image\nComment = " + bytes(2_000_000)),
    ],
)
def test_what_is_unclear_or_hostile_is_refused(tmp_path, code, content) -> None:
    assert code_of(tmp_path / "v-77", content) == code


def test_a_header_that_states_a_thousand_times_its_data_takes_no_memory(tmp_path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    content = nrrd("sizes: 2 3 4", "sizes: 1024 1024 1024")
    before = resident()
    assert code_of(tmp_path / "v", content) == "input-unreadable"
    assert resident() - before < 2**29  # the volume stated has 2 GiB


def test_a_volume_in_an_archive_is_read_as_a_stream(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../v.nrrd", nrrd("encoding: raw", "encoding: gzip", gzip.compress(DATA)))
        archive.writestr("v.mha", mha())
    with open_zip(tmp_path / "z") as (one, other):
        assert np.array_equal(read_nrrd(one).voxels, read_metaimage(other).voxels)


def test_formats_are_told_apart_by_their_first_bytes(tmp_path) -> None:
    sitk.WriteImage(make_image(), str(tmp_path / "v.nrrd"))
    sitk.WriteImage(make_image(), str(tmp_path / "v.mha"))
    sitk.WriteImage(make_image(), str(tmp_path / "v.nii"))
    tests = (is_nrrd, is_metaimage)
    for name, expected in (("v.nrrd", (True, False)), ("v.mha", (False, True)), ("v.nii", (False, False))):
        head = (tmp_path / name).read_bytes()[:132]
        assert tuple(test(head) for test in tests) == expected
        assert is_nifti(tmp_path / name) == (name == "v.nii")
    assert not is_metaimage(b"Comment: this is text")


def test_real_volumes_equal_what_itk_reads(real_ct) -> None:
    paths = sorted((real_ct / "chest-imaging-platform").glob("*.nrrd"))
    assert paths
    for path in paths:
        volume, image = read_nrrd(path), sitk.ReadImage(str(path))
        assert np.array_equal(volume.voxels, sitk.GetArrayFromImage(image))
        assert np.allclose(volume.grid.spacing_mm, image.GetSpacing()[::-1])
        assert np.allclose(volume.grid.origin_mm, image.GetOrigin()[::-1])
