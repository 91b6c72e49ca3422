# SPDX-License-Identifier: Apache-2.0
import copy
import io
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from ucadi.errors import DicomError
from ucadi.io.codestream import coded_size
from ucadi.io.elements import read_elements
from ucadi.io.files import open_zip
from ucadi.io.framing import MemoryFile
from ucadi.io.pixels import (
    LOWEST_HU,
    PIXEL_TAGS,
    PixelLayout,
    pixel_layout,
    read_hu,
    read_stored,
    read_whole_header,
)

SYNTAX_OF_GDCM = {
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A header of one image."""

    open: Callable[[], Any]
    frame: int | None
    size: tuple[int, int]
    layout: PixelLayout | None
    plane: Any
    rescale: tuple[float, float]
    padding: tuple[int, ...]


def picture(data: bytes, rescale: tuple[float, float] = (1.0, 0.0), padding: tuple[int, ...] = ()) -> Picture:
    elements = read_elements(MemoryFile(data), PIXEL_TAGS)
    size = elements.get("Rows"), elements.get("Columns")
    return Picture(
        lambda: MemoryFile(data),
        None,
        size,
        pixel_layout(elements),
        None,
        tuple(map(float, rescale)),
        padding,
    )


def saved(image: Dataset) -> bytes:
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def make_image(make_ct, make_series) -> Callable[..., Dataset]:
    """Builds an image from stored values: their kind of number decides about bits and sign."""
    template = make_series(make_ct())[0]

    def build(stored: np.ndarray, **tags: Any) -> Dataset:
        image = copy.deepcopy(template)
        image.Rows, image.Columns = stored.shape[-2:]
        bits = 8 * stored.dtype.itemsize
        image.BitsAllocated, image.BitsStored, image.HighBit = bits, bits, bits - 1
        image.PixelRepresentation = int(stored.dtype.kind == "i")
        image.PixelData = stored.tobytes()
        image["PixelData"].VR = "OW" if bits > 8 else "OB"
        for name, value in tags.items():
            setattr(image, name, value)
        if "BitsStored" in tags:
            image.HighBit = tags["BitsStored"] - 1
        return image

    return build


@pytest.fixture
def slice_of_12_bits(make_ct) -> np.ndarray:
    """A slice through the lungs as scanners store it: signed, with padding of -2000."""
    stored = make_ct().voxels[18].copy()
    stored[:3] = -2000
    return stored


def encoded(image: Dataset, name: str, folder: Path) -> bytes:
    """The bytes of an image in another transfer syntax."""
    image = copy.deepcopy(image)
    if name == "big endian":
        image.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        image.PixelData = np.frombuffer(image.PixelData, "<i2").astype(">i2").tobytes()
        image.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
    elif name in ("RLE", "JPEG-LS"):
        image.compress({"RLE": RLELossless, "JPEG-LS": JPEGLSLossless}[name])
    elif name in SYNTAX_OF_GDCM:
        return with_gdcm(saved(image), SYNTAX_OF_GDCM[name], folder)
    else:
        image.file_meta.TransferSyntaxUID = {
            "explicit": ExplicitVRLittleEndian,
            "implicit": ImplicitVRLittleEndian,
            "deflated": DeflatedExplicitVRLittleEndian,
        }[name]
    return saved(image)


def with_gdcm(data: bytes, syntax: int, folder: Path) -> bytes:
    """Compress a file."""
    path = folder / "image.dcm"
    path.write_bytes(data)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()
    return path.read_bytes()


def hu_of(*pictures: Picture) -> np.ndarray:
    hu = np.empty((len(pictures), *pictures[0].size), np.int16)
    read_hu(pictures, list(hu))
    return hu


# -- one picture in every syntax --------------------------------------------------------------------------

SYNTAXES = ["explicit", "implicit", "big endian", "deflated", "RLE", "JPEG-LS", *SYNTAX_OF_GDCM]


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_picture_is_the_same_in_every_lossless_syntax(name, slice_of_12_bits, make_image, tmp_path):
    data = encoded(make_image(slice_of_12_bits), name, tmp_path)
    found = picture(data, (1, -24))
    assert found.layout is not None
    assert found.layout.is_native == (SYNTAXES.index(name) < 4)
    np.testing.assert_array_equal(read_stored(found), slice_of_12_bits)
    np.testing.assert_array_equal(hu_of(found)[0], np.maximum(slice_of_12_bits - 24, LOWEST_HU))


@pytest.mark.parametrize("dtype", ["<i2", "<u2"])
@pytest.mark.parametrize("name", SYNTAXES)
def test_values_are_pydicoms_in_every_syntax_signed_or_not(name, dtype, make_image, tmp_path):
    stored = np.random.default_rng(0).integers(0, 2**11, (48, 64)).astype(dtype)
    data = encoded(make_image(stored, BitsStored=12), name, tmp_path)
    np.testing.assert_array_equal(read_stored(picture(data)), dcmread(io.BytesIO(data)).pixel_array)


def test_the_encodings_of_one_real_picture_are_equal(real_ct):
    folder = real_ct / "dicom-encodings"
    pictures = [picture(path.read_bytes()) for path in sorted(folder.glob("CTImage_*.dcm"))]
    assert len(pictures) == 5
    first, *others = map(read_stored, pictures)
    assert (first.min(), first.max()) == (-2000, 2402)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_real_files_give_what_pydicom_gives(real_ct):
    paths = sorted(p for p in real_ct.rglob("*") if p.is_file() and p.suffix in ("", ".dcm"))
    read = 0
    for path in paths[::5]:
        data = path.read_bytes()
        if data[128:132] != b"DICM" or (found := picture(data)).layout is None or found.layout.frames > 1:
            continue
        np.testing.assert_array_equal(read_stored(found), dcmread(io.BytesIO(data)).pixel_array)
        read += 1
    assert read > 10


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_jpeg_of_12_bits_with_loss_is_decoded(name):
    data = Path(get_testdata_file(name, download=False)).read_bytes()
    stored = read_stored(picture(data))
    # What DCMTK's decoder makes of it.
    assert (stored.shape, int(stored.min()), int(stored.max()), int(stored.sum())) == (
        (1024, 256),
        0,
        264,
        3767007,
    )


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 16), (np.int32, 32)])
def test_other_numbers_of_bits_are_read_through_pydicom(dtype, bits, make_image):
    stored = np.random.default_rng(0).integers(0, 200, (48, 64)).astype(dtype)
    found = picture(saved(make_image(stored)), (2, -100))
    assert found.layout is not None
    assert found.layout.bits_allocated == bits
    np.testing.assert_array_equal(hu_of(found)[0], stored.astype(np.int16) * 2 - 100)


def test_bits_that_do_not_count_are_cleared_and_the_sign_extended(make_image):
    values = np.array([[-2048, -1, 0, 2047]], np.int16)
    littered = (values & 0x0FFF) | 0x5000
    np.testing.assert_array_equal(read_stored(picture(saved(make_image(littered, BitsStored=12)))), values)


# -- HU ---------------------------------------------------------------------------------------------------


def reference_hu(stored: np.ndarray, rescale: tuple[float, float], padding: int | None) -> np.ndarray:
    """Rescale, padding and clipping, one value after the other."""
    slope, intercept = rescale
    hu = np.rint(stored.astype(np.float64) * slope + intercept)
    for value in () if padding is None else (padding, padding - 2**16 if padding > 0 else padding + 2**16):
        if not -950 <= value * slope + intercept <= 4000:
            hu[stored == value] = LOWEST_HU
    return np.clip(hu, LOWEST_HU, 32767).astype(np.int16)


@given(
    seed=st.integers(0, 9),
    ends=st.tuples(st.integers(-(2**15), 2**15 - 1), st.integers(-(2**15), 2**15 - 1)),
    is_signed=st.booleans(),
    rescale=st.tuples(
        st.sampled_from([1.0, 2.0, -1.0, 0.5, 1.37, 100.0]), st.sampled_from([-1024.0, 0.0, -8192.5, 9e4])
    ),
    padding=st.sampled_from([None, -2000, -32768, 32768, 63536, 3000, 20000]),
)
def test_hu_are_slope_times_stored_plus_intercept_without_padding_below_air(
    make_image, seed, ends, is_signed, rescale, padding
):
    low, high = min(ends), max(ends)
    stored = np.random.default_rng(seed).integers(low, high, (8, 16), endpoint=True)
    stored = stored.astype(np.int16) if is_signed else (stored + 2**15).astype(np.uint16)
    if padding is not None and np.iinfo(stored.dtype).min <= padding <= np.iinfo(stored.dtype).max:
        stored[0] = padding
    found = picture(saved(make_image(stored)), rescale, () if padding is None else (padding,))
    np.testing.assert_array_equal(hu_of(found)[0], reference_hu(stored, rescale, padding))


def test_replaced_padding_is_counted_and_padding_like_tissue_is_kept(make_image):
    stored = np.array([[-2000, -2000, -1030, -1024, 0, 40, 3000, 30000]], np.int16)

    def read(padding: tuple[int, ...]) -> tuple[list[int], int, set[float]]:
        hu = np.empty(stored.shape, np.int16)
        counts = read_hu([picture(saved(make_image(stored)), (1, 0), padding)], [hu])
        return hu[0].tolist(), counts.padding, counts.kept_padding

    floor = [-1024, -1024, -1024, -1024]
    assert read(()) == ([*floor, 0, 40, 3000, 30000], 3, set())
    assert read((-2000,)) == ([*floor, 0, 40, 3000, 30000], 3, set())
    assert read((30000,)) == ([*floor, 0, 40, 3000, -1024], 4, set())
    assert read((20000, 31000)) == ([*floor, 0, 40, 3000, -1024], 4, set())
    assert read((-1000,)) == ([*floor, 0, 40, 3000, 30000], 3, set())
    assert read((0,)) == ([*floor, 0, 40, 3000, 30000], 3, {0.0})
    assert read((-2000, 0))[1:] == (3, {-2000.0})


def test_pictures_to_be_shown_inverted_have_the_same_hu(make_image, slice_of_12_bits):
    found = picture(saved(make_image(slice_of_12_bits, PhotometricInterpretation="MONOCHROME1")))
    assert found.layout is not None
    assert found.layout.photometric == "MONOCHROME1"
    np.testing.assert_array_equal(hu_of(found)[0], np.maximum(slice_of_12_bits, LOWEST_HU))


def test_reading_needs_no_second_volume(make_image):
    stored = np.random.default_rng(0).integers(0, 3000, (256, 256)).astype("<i2")
    found = picture(saved(make_image(stored)), (1, -1024), (-2000,))
    hu = np.empty((32, 256, 256), np.int16)
    read_hu([found] * 32, list(hu))  # what is loaded once is not counted
    tracemalloc.start()
    read_hu([found] * 32, list(hu))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * stored.nbytes


# -- frames -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_frames_are_read_in_any_order_from_one_opening_of_the_file(syntax, make_image):
    stored = np.random.default_rng(0).integers(-1000, 2000, (5, 16, 24)).astype("<i2")
    image = make_image(stored, NumberOfFrames=5)
    if syntax == RLELossless:
        image.compress(RLELossless)
    image.file_meta.TransferSyntaxUID = syntax
    data = saved(image)
    openings = []

    def open_file() -> MemoryFile:
        openings.append(1)
        return MemoryFile(data)

    order = [3, 0, 4, 1, 2]
    whole = replace(picture(data), open=open_file)
    hu = hu_of(*(replace(whole, frame=frame) for frame in order))
    np.testing.assert_array_equal(hu, stored[order])
    assert len(openings) == 1


def test_frames_in_a_zip_archive_are_read_forward(make_image, tmp_path):
    stored = np.random.default_rng(0).integers(-1000, 2000, (6, 64, 64)).astype("<i2")
    data = saved(make_image(stored, NumberOfFrames=6))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", data)
    with open_zip(tmp_path / "a.zip") as (entry,):
        whole = replace(picture(data), open=entry)
        hu = hu_of(*(replace(whole, frame=frame) for frame in reversed(range(6))))
    np.testing.assert_array_equal(hu, stored[::-1])


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags",
    [
        {"SamplesPerPixel": 3},
        {"PhotometricInterpretation": "RGB"},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"BitsStored": 17},
        {"PixelRepresentation": 2},
        {"Rows": 63},
        {"Columns": 65},
        {"NumberOfFrames": 2},
    ],
)
def test_a_header_that_contradicts_the_pixels_has_no_layout(tags, slice_of_12_bits, make_image):
    assert picture(saved(make_image(slice_of_12_bits, **tags))).layout is None


def test_an_image_without_known_layout_is_refused(slice_of_12_bits, make_image):
    found = replace(picture(saved(make_image(slice_of_12_bits))), layout=None)
    with pytest.raises(DicomError, match="cannot be decoded") as caught:
        hu_of(found)
    assert caught.value.code == "dicom-undecodable"
    with pytest.raises(DicomError, match="cannot be decoded"):
        read_stored(found)


@pytest.mark.parametrize("name", SYNTAXES)
def test_pixels_that_are_cut_short_are_refused(name, slice_of_12_bits, make_image, tmp_path):
    data = encoded(make_image(slice_of_12_bits), name, tmp_path)
    whole = picture(data)
    cut = replace(whole, open=lambda: MemoryFile(data[: len(data) - 900]))
    with pytest.raises(DicomError, match="cannot be decoded"):
        hu_of(cut)


@pytest.mark.parametrize("name", ["JPEG-LS", *SYNTAX_OF_GDCM])
def test_a_compressed_picture_of_another_size_than_stated_is_refused(
    name, slice_of_12_bits, make_image, tmp_path
):
    found = picture(encoded(make_image(slice_of_12_bits), name, tmp_path))
    smaller = replace(found, size=(32, 64), layout=replace(found.layout, size=(32, 64)))
    with pytest.raises(DicomError, match="cannot be decoded"):
        hu_of(smaller)


@pytest.mark.parametrize("rescale", [(0.0, 0.0), (1e3, 0.0), (1.0, 1e6), (float("nan"), 0.0)])
def test_a_rescale_that_no_ct_has_is_refused(rescale, slice_of_12_bits, make_image):
    with pytest.raises(DicomError, match="cannot be decoded"):
        hu_of(picture(saved(make_image(slice_of_12_bits)), rescale))


def test_a_refusal_names_the_place_of_the_slice(slice_of_12_bits, make_image):
    found = replace(picture(saved(make_image(slice_of_12_bits))), layout=None)

    class Plane:
        position_mm = np.array([0.0, 0.0, -123.45])

    with pytest.raises(DicomError, match=r"z = -123\.[45] mm"):
        hu_of(replace(found, plane=Plane()))


def test_the_whole_header_is_all_but_the_pixels(slice_of_12_bits, make_image):
    header = read_whole_header(picture(saved(make_image(slice_of_12_bits))))
    assert header.SeriesInstanceUID == "1.2.3.4"
    assert "PixelData" not in header


# -- what a compressed picture says of itself -------------------------------------------------------------


@given(st.binary(max_size=60))
def test_the_start_of_a_compressed_picture_is_read_or_refused_cleanly(tail):
    for head in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\x4f\xff\x51"):
        try:
            size = coded_size(head + tail)
        except ValueError:
            continue
        assert size is None or len(size) == 2


def test_jpegs_with_fill_bytes_and_segments_before_the_frame_state_their_size():
    comment = b"\xff\xfe\x00\x04ab"
    frame = b"\xff\xc1\x00\x0b\x0c\x02\x00\x01\x80\x01\x01\x11\x00"
    assert coded_size(b"\xff\xd8" + comment + b"\xff" + frame) == (512, 384)
    assert coded_size(b"\x00\x01") is None
