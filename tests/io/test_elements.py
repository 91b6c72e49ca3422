# SPDX-License-Identifier: Apache-2.0
import copy
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from ucadi.io import elements
from ucadi.io.elements import read_elements, tags_of
from ucadi.io.files import READ_ERRORS
from ucadi.io.framing import MemoryFile
from ucadi.io.pixels import PIXEL_TAGS

NATIVE = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]
WANTED = PIXEL_TAGS | tags_of(
    (
        "ConvolutionKernel",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "ImageType",
        "Modality",
        "PixelPaddingValue",
        "PixelSpacing",
        "ReferencedImageSequence",
        "RescaleIntercept",
        "RescaleSlope",
        "SOPInstanceUID",
        "SeriesDescription",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SliceThickness",
    )
)


@pytest.fixture(scope="module")
def image(make_ct, make_series) -> Dataset:
    """One slice with most kinds of elements."""
    image = make_series(make_ct())[0]
    image.PatientName = "A^B"
    image.ConvolutionKernel = "B70f"
    image.SeriesDescription = "Thorax"
    image.SliceThickness = "1.25"
    image.PixelPaddingValue = -2000
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"
    image.ReferencedImageSequence = Sequence([item, copy.deepcopy(item)])
    return image


def saved(image: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The bytes of an image in an uncompressed syntax."""
    image = copy.deepcopy(image)
    image.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        image.PixelData = np.frombuffer(image.PixelData, "<i2").astype(">i2").tobytes()
        image.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def with_undefined_lengths(image: Dataset) -> Dataset:
    """The same with sequences and items that end by a mark."""
    image = copy.deepcopy(image)
    image["ReferencedImageSequence"].is_undefined_length = True
    for item in image.ReferencedImageSequence:
        item.is_undefined_length_sequence_item = True
    return image


def outcome(data: bytes) -> object:
    """What `read_elements` makes of a file; "damaged" when it refuses."""
    try:
        found = read_elements(MemoryFile(data), WANTED)
    except READ_ERRORS:
        return "damaged"
    values = {keyword: repr(element.value) for keyword, element in found.found.items()}
    return values, found.syntax, found.sop_class


def pydicoms_outcome(data: bytes) -> object:
    """What pydicom makes of a file; malformed elements count as missing."""
    try:
        dataset = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=sorted(WANTED))
        meta = dataset.file_meta
        syntax, sop_class = (str(meta.get(n, "")) for n in ("TransferSyntaxUID", "MediaStorageSOPClassUID"))
    except READ_ERRORS:
        return "damaged"
    values = {}
    for tag in WANTED & set(dataset.keys()):
        try:
            values[keyword_for_tag(tag)] = repr(dataset[tag].value)
        except READ_ERRORS:
            continue
    return values, syntax, sop_class


def agree(data: bytes) -> bool:
    """Tell whether both read the same; pydicom warns of much that is odd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return outcome(data) == pydicoms_outcome(data)


def is_walked(data: bytes) -> bool:
    """Tell whether a file is read without pydicom's parser."""

    def refuse(file: object, wanted: object) -> None:
        raise NotImplementedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "_with_pydicom", refuse)
        try:
            read_elements(MemoryFile(data), WANTED)
        except NotImplementedError:
            return False
    return True


# -- what is found ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", NATIVE)
def test_values_and_place_of_pixels_are_pydicoms_in_every_uncompressed_syntax(image, syntax):
    data = saved(image, syntax)
    assert agree(data)
    found = read_elements(MemoryFile(data), WANTED)
    plain = elements.inflated(MemoryFile(data)).read()
    assert plain[found.offset : found.offset + found.length] == dcmread(io.BytesIO(data)).PixelData
    assert found.get("SliceThickness") == 1.25
    assert found.get("KVP", "none") == "none"
    assert found.get("SeriesDescription") == "Thorax"


def test_compressed_pixels_have_a_place_but_no_length(image):
    image = copy.deepcopy(image)
    image.compress(RLELossless)
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    found = read_elements(MemoryFile(buffer.getvalue()), WANTED)
    assert found.length is None
    assert buffer.getvalue()[found.offset : found.offset + 4] == b"\xfe\xff\x00\xe0"
    assert is_walked(buffer.getvalue())
    assert agree(buffer.getvalue())


def test_a_file_without_pixels_has_none(image):
    image = copy.deepcopy(image)
    del image.PixelData
    found = read_elements(MemoryFile(saved(image)), WANTED)
    assert (found.offset, found.length) == (0, 0)
    assert found.get("Modality") == "CT"


def test_a_usual_file_is_walked_over_and_an_unusual_one_is_left_to_pydicom(image):
    assert is_walked(saved(image))
    assert not is_walked(saved(image, ImplicitVRLittleEndian))
    assert not is_walked(saved(image, ExplicitVRBigEndian))


def test_a_header_of_many_blocks_is_read_whole(image):
    image = copy.deepcopy(image)
    image.add_new(0x00091001, "OB", bytes(100_000))
    image.add_new(0x00131001, "OB", bytes(70_000))
    data = saved(image)
    assert is_walked(data)
    assert agree(data)


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 58"], "no such set"])
def test_text_is_decoded_by_the_files_character_set(image, charset):
    image = copy.deepcopy(image)
    data = saved(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.SpecificCharacterSet = charset
        data = saved(image).replace(b"Thorax", "Thör x".encode("latin-1"))
    assert agree(data)


def test_a_value_that_does_not_fit_its_kind_counts_as_missing(image):
    series_number = struct.pack("<HH", 0x0020, 0x0011)
    data = saved(image).replace(series_number + b"IS", series_number + b"FD")  # two bytes are no float
    assert agree(data)
    found = read_elements(MemoryFile(data), WANTED)
    assert found.get("SeriesNumber") is None
    assert found.get("SliceThickness") == 1.25


# -- never another answer than pydicom's ------------------------------------------------------------------

HEADER_BYTES = 1500  # of the test image before its pixels
changes = st.lists(st.tuples(st.integers(132, HEADER_BYTES), st.integers(0, 255)), min_size=1, max_size=4)


@given(changes)
def test_a_header_with_changed_bytes_is_read_as_pydicom_reads_it(image, changed):
    data = bytearray(saved(image))
    for position, value in changed:
        data[position % len(data)] = value
    assert agree(bytes(data))


@given(st.integers(132, HEADER_BYTES), st.sampled_from([b"\xff", b"\0", b"SQ", b"UN", b"\xff\xff\xff\xff"]))
def test_a_header_with_other_kinds_and_lengths_is_read_as_pydicom_reads_it(image, position, value):
    data = bytearray(saved(image))
    data[position : position + len(value)] = value
    assert agree(bytes(data))


@given(st.integers(0, HEADER_BYTES), st.integers(0, 40))
def test_a_header_with_bytes_lost_is_read_as_pydicom_reads_it(image, position, lost):
    data = saved(image)
    assert agree(data[:position] + data[position + lost :])
    assert agree(data[:position])


def test_elements_out_of_order_or_there_twice_are_left_to_pydicom(image):
    data = saved(image)
    slope = data.index(struct.pack("<HH", 0x0028, 0x1053))
    element = data[slope : slope + 8 + struct.unpack_from("<H", data, slope + 6)[0]]
    other = element[:-2] + b"3 "
    twice = data[:slope] + other + data[slope:]
    assert agree(twice)
    assert agree(data[:132] + data[132:].replace(element, b"") + other)  # after the pixels
    assert not is_walked(twice)


def test_sequences_without_a_length_are_read_as_pydicom_reads_them(image):
    data = saved(with_undefined_lengths(image))
    assert b"\xff\xff\xff\xff" in data
    assert agree(data)


def test_real_headers_with_changed_bytes_are_read_as_pydicom_reads_them(real_ct):
    rng = np.random.default_rng(0)
    heads = []
    for path in sorted(real_ct.rglob("*")):
        if path.is_file() and path.suffix in ("", ".dcm"):
            with path.open("rb") as file:
                heads.append(file.read(20_000))
    heads = [head for head in heads if head[128:132] == b"DICM"][::9]
    assert len(heads) > 10
    for head in heads:
        assert agree(head)
        for _ in range(20):
            data = bytearray(head)
            for position in rng.integers(132, min(len(data), 3000), rng.integers(1, 4)):
                data[position] = rng.integers(256)
            assert agree(bytes(data))


# -- hostile files ----------------------------------------------------------------------------------------


def test_a_deflated_file_that_expands_without_end_is_refused(image):
    data = saved(image, DeflatedExplicitVRLittleEndian)
    start = data.index(DeflatedExplicitVRLittleEndian.encode())
    start = 144 + struct.unpack_from("<I", data, 140)[0]  # after the meta information
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = packer.compress(bytes(2**26)) + packer.flush()
    with pytest.raises(ValueError, match="expands beyond"):
        read_elements(MemoryFile(data[:start] + bomb), WANTED)
    with pytest.raises(ValueError, match="cut short"):
        read_elements(MemoryFile(data[:-40]), WANTED)


def test_a_length_of_gigabytes_reads_no_more_than_the_file(image):
    data = bytearray(saved(image))
    place = data.index(struct.pack("<HH2s", 0x0008, 0x1140, b"SQ"))
    data[place + 8 : place + 12] = struct.pack("<I", 2**31)
    assert agree(bytes(data))


def test_a_word_that_is_no_keyword_is_an_error():
    with pytest.raises(ValueError, match="Thickness"):
        tags_of(["Thickness"])
