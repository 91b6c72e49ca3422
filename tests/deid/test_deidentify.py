# SPDX-License-Identifier: Apache-2.0
"""De-identification of one image: planted identifiers are gone, what reading needs is there."""

import io
import itertools
import re
import shutil
import subprocess
import warnings
import zlib
from pathlib import Path

import gdcm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, config, dcmread
from pydicom.datadict import DicomDictionary, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from ucadi.deid.dataset import deidentify_dicom
from ucadi.deid.key import SiteKey, make_key_file, read_key_file
from ucadi.deid.pixels import blank_jpeg, blank_jpeg2000
from ucadi.deid.profile import PROFILE, Action
from ucadi.deid.values import coarse_age, known_words, plain_number, shift_date
from ucadi.errors import ConfigError, DicomError

KEY = SiteKey(bytes(range(32)))
OTHER_KEY = SiteKey(bytes(32))

LETTERS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
"""Representations that hold any capitals."""

SEEDS = {
    "DA": "19230417",
    "DT": "19230417173629.123456",
    "TM": "173629.123456",
    "AS": "103Y",
    "DS": "7766554433",
    "IS": "776655443",
}
"""What is planted where only digits fit."""

NOT_PLANTED = {
    *("SOPClassUID", "Modality", "BurnedInAnnotation", "ImageType", "PixelData", "PhotometricInterpretation"),
    *("NumberOfFrames", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope"),
    *("RescaleIntercept", "PixelPaddingValue", "FloatPixelData", "DoubleFloatPixelData"),
    "SpecificCharacterSet",
}
"""What decides whether an image is passed on at all; tests of their own plant there."""


@pytest.fixture
def image(make_ct, make_series) -> FileDataset:
    """One slice of a plain series, by a named patient."""
    (slice_,) = make_series(make_ct())[20:21]
    slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate = "Quxford^Zelda", "QX-8837261", "19230417"
    slice_.StudyDate = slice_.ContentDate = "20200310"
    slice_.StudyTime = slice_.ContentTime = "104327"
    slice_.AccessionNumber = slice_.StudyID = "ACC5544332"
    return slice_


def plant(dataset: Dataset, tag: int, vr: str, value: object) -> None:
    """Add an element as a careless writer would: nothing is checked."""
    if vr in ("DS", "IS"):
        raw = "\\".join([value] if isinstance(value, str) else value).encode()
        dataset[tag] = RawDataElement(Tag(tag), vr, len(raw), raw, 0, False, True)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.add(DataElement(tag, vr, value, validation_mode=config.IGNORE))


def on_disk(dataset: Dataset) -> bytes:
    """The bytes of the file, and of its deflated part once more expanded."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(file, enforce_file_format=True)
    content = file.getvalue()
    if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        start = 128 + 4 + 12 + int.from_bytes(content[140:144], "little")
        content += zlib.decompress(content[start:], -zlib.MAX_WBITS)
    return content


def through_disk(dataset: Dataset) -> FileDataset:
    """The data set as a reader of the file gets it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(file, enforce_file_format=True)
        file.seek(0)
        return dcmread(file)


def cleaned(dataset: Dataset, key: SiteKey = KEY) -> FileDataset:
    """De-identify what a file on disk would hold."""
    read = through_disk(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return deidentify_dicom(read, key)


def identifiers() -> "itertools.chain[str]":
    """Words of ten capitals that nobody would guess and no vocabulary holds."""
    for number in itertools.count():
        yield "ZQ" + "".join(chr(65 + (number // 26**k * 7 + k) % 26) for k in range(6)) + "XV"


# -- the leak test ----------------------------------------------------------------------------------------


def planted_everywhere(target: Dataset, allowed: bool) -> list[str]:
    """Plant in every attribute of the standard's dictionary; return what was planted."""
    words, planted = identifiers(), set()
    for tag, (vr, _, _, _, keyword) in sorted(DicomDictionary.items()):
        if tag >> 16 in (0x0000, 0x0002, 0xFFFE) or tag & 0xFFFF == 0 or keyword in NOT_PLANTED:
            continue
        if (keyword in PROFILE) != allowed or (allowed and PROFILE[keyword].action is Action.ITEMS):
            continue
        if vr in LETTERS:
            value = next(words)
        elif vr in SEEDS:
            value = SEEDS[vr]
        elif vr == "UI":
            value = f"1.2.3.19230417.{tag}"
        elif vr in ("OB", "UN"):
            value = (word := next(words)).encode()
            planted.add(word)
            plant(target, tag, vr, value)
            continue
        elif vr == "SQ":
            item = Dataset()
            plant(item, 0x00100010, "PN", value := next(words))
            plant(target, tag, vr, Sequence([item]))
            planted.add(value)
            continue
        else:
            continue
        plant(target, tag, vr, value)
        planted.add(value)
    return sorted(planted)


@pytest.mark.parametrize("allowed", [False, True])
def test_nothing_that_is_planted_in_any_standard_attribute_survives(image, allowed):
    planted = planted_everywhere(image, allowed)
    content = on_disk(cleaned(image))
    assert len(planted) > (60 if allowed else 2000)
    assert [word for word in planted if word.encode() in content] == []


def test_the_search_finds_what_was_not_removed(image):
    planted = planted_everywhere(image, allowed=False)
    content = on_disk(through_disk(image))
    assert [word for word in planted if word.encode() not in content] == []


def in_private_blocks(image: FileDataset, word: str) -> None:
    block = image.private_block(0x0009, f"{word[:8]} MAKER", create=True)
    block.add_new(0x01, "LO", word)
    block.add_new(0x02, "UN", word.encode())
    block.add_new(0x03, "OB", word.encode())
    known = image.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    known.add_new(0x10, "OB", f"PatientName {word}".encode())
    plant(image, 0x00190010, "LO", word)  # a creator without a block
    plant(image, 0x001B1001, "LO", word)  # a block without a creator


def in_nested_sequences(image: FileDataset, word: str) -> None:
    inner, middle, outer = Dataset(), Dataset(), Dataset()
    inner.PatientName = inner.CodeMeaning = inner.SeriesDescription = word
    inner.CodeValue, inner.CodingSchemeDesignator = word, "99LOCAL"
    inner.private_block(0x0011, word, create=True).add_new(1, "LO", word)
    middle.PurposeOfReferenceCodeSequence = [inner]
    outer.SourceImageSequence = middle.ReferencedImageSequence = [inner]
    outer.ReferencedImageSequence = [middle]
    image.ReferencedImageSequence = [outer]
    image.RequestAttributesSequence = image.DerivationImageSequence = [outer]


def in_overlays_and_curves(image: FileDataset, word: str) -> None:
    for group in (0x6000, 0x6002, 0x601E):
        plant(image, group << 16 | 0x0022, "LO", word)
        plant(image, group << 16 | 0x1500, "LO", word)
        plant(image, group << 16 | 0x3000, "OB", word.encode())
        plant(image, group << 16 | 0x4000, "LT", word)
    for group in (0x5000, 0x5002):
        plant(image, group << 16 | 0x2500, "LO", word)
        plant(image, group << 16 | 0x3000, "OB", word.encode())


def in_icon(image: FileDataset, word: str) -> None:
    icon = Dataset()
    icon.Rows = icon.Columns = 1
    icon.PixelData = word.encode()
    icon["PixelData"].VR = "OB"
    image.IconImageSequence = [icon]


def in_meta_and_preamble(image: FileDataset, word: str) -> None:
    image.preamble = word.encode().ljust(128, b"\0")
    meta = image.file_meta
    meta.SourceApplicationEntityTitle = meta.SendingApplicationEntityTitle = word
    meta.ReceivingApplicationEntityTitle = meta.ImplementationVersionName = word
    meta.PrivateInformationCreatorUID = "1.2.3.4"
    meta.PrivateInformation = word.encode()


def in_bytes_after_the_data(image: FileDataset, word: str) -> None:
    plant(image, 0xFFFCFFFC, "OB", word.encode())
    image.PixelData += word.encode()


def in_group_lengths_and_unknown_tags(image: FileDataset, word: str) -> None:
    plant(image, 0x00080001, "LO", word)
    plant(image, 0x0008FFFE, "UN", word.encode())
    plant(image, 0x7FDEBEE0, "UT", word)


def in_wrong_representations(image: FileDataset, word: str) -> None:
    plant(image, 0x00180015, "UT", word)  # BodyPartExamined
    plant(image, 0x00180060, "LO", word)  # KVP
    plant(image, 0x00200011, "LO", word)  # SeriesNumber
    plant(image, 0x00189305, "LO", word)  # RevolutionTime
    plant(image, 0x00289001, "LO", word)
    plant(image, 0x00082218, "LO", word)  # AnatomicRegionSequence


def in_descriptions(image: FileDataset, word: str) -> None:
    image.StudyDescription = f"CT Thorax {word} 17.04.1923 17/04/23 19230417mm 1923.04mm"
    image.SeriesDescription = f"{word}_LUNG_{word} 1,5 mm B70f {word}70f"
    image.ProtocolName = f"{word}Thorax"
    image.ConvolutionKernel = [word, f"B70f{word}"]
    image.ManufacturerModelName, image.Manufacturer = f"Sensation 64 {word} 1923", f"{word}SIEMENS"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", word]
    image.ContrastBolusAgent = f"{word} 350"


def in_other_character_sets(image: FileDataset, word: str) -> None:
    image.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    image.PatientName = f"{word}^Tarou=山田^太郎=やまだ^たろう"
    image.PatientComments = f"山田 {word}"


def in_unicode(image: FileDataset, word: str) -> None:
    image.SpecificCharacterSet = "ISO_IR 192"
    image.PatientName = f"{word}^Łukasz=山田^太郎"
    image.StudyDescription = f"Thorax {word} 山田 Łukasz"


def in_uids(image: FileDataset, word: str) -> None:
    del word
    image.StudyInstanceUID = "1.2.276.0.19230417.8837261"
    image.SeriesInstanceUID = "1.2.276.0.19230417.8837261.1"
    image.FrameOfReferenceUID = "1.2.276.0.19230417.8837261.2"
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.276.0.19230417.8837261.3"


def in_a_patient_with_many_names(image: FileDataset, word: str) -> None:
    other = Dataset()
    other.PatientID = other.IssuerOfPatientID = word
    image.OtherPatientIDsSequence = [other]
    image.OtherPatientNames = [f"{word}^A", f"{word}^B"]
    image.PatientID, image.IssuerOfPatientID = f" {word} ", word


PLACES = [
    *(in_private_blocks, in_nested_sequences, in_overlays_and_curves, in_icon, in_meta_and_preamble),
    *(in_bytes_after_the_data, in_group_lengths_and_unknown_tags, in_wrong_representations, in_descriptions),
    *(in_other_character_sets, in_unicode, in_uids, in_a_patient_with_many_names),
]

IDENTIFYING = [
    *(b"Quxford", b"Zelda", b"QX-8837261", b"19230417", b"20200310", b"104327", b"ACC5544332", b"8837261"),
    *("山田".encode(), "山田".encode("iso2022_jp")[3:-3], "Łukasz".encode()),
]


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big endian", "deflated"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_nothing_that_is_planted_in_a_place_survives(image, place, syntax):
    word = "ZQKOLPHRXV"
    place(image, word)
    if syntax == "implicit":
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    elif syntax == "deflated":
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    elif syntax == "big endian":
        image.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        image = FileDataset(
            "", image, b"\0" * 128, image.file_meta, is_implicit_VR=False, is_little_endian=False
        )
        image.PixelData = np.frombuffer(image.PixelData, "<i2")[: 64 * 64].astype(">i2").tobytes()
    uids = [str(image.get(k)) for k in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")]
    # Short UIDs such as 1.2.3 are part of longer ones; the element's whole value is looked for.
    found = cleaned(image)
    content = on_disk(found)
    assert word.encode() not in content
    assert [text for text in IDENTIFYING if text in content] == []
    assert not {str(element.value) for element in found.iterall() if element.VR == "UI"} & set(uids)


def test_the_planted_places_hold_the_word_before(image):
    for place in PLACES:
        if place is not in_uids:
            copy = through_disk(image)
            place(copy, "ZQKOLPHRXV")
            assert b"ZQKOLPHRXV" in on_disk(copy)


@pytest.fixture(scope="module")
def plain_slice(make_ct, make_series) -> FileDataset:
    """One slice that no test changes."""
    return make_series(make_ct())[20]


PLANTABLE = sorted(
    keyword
    for keyword, rule in PROFILE.items()
    if keyword not in NOT_PLANTED and dictionary_VR(tag_for_keyword(keyword)) in LETTERS | set(SEEDS)
)


@given(text=st.text("QZJ0123456789^ .-/_", min_size=3, max_size=64), keyword=st.sampled_from(PLANTABLE))
def test_no_name_and_no_long_number_passes_in_an_attribute_that_may_stay(plain_slice, text, keyword):
    source = through_disk(plain_slice)
    plant(source, tag_for_keyword(keyword), dictionary_VR(tag_for_keyword(keyword)), text)
    value = str(cleaned(source).get(keyword))
    for piece in re.findall(r"[QZJ]{3,}|\d{6,}", text):
        assert piece not in value


# -- pixels -----------------------------------------------------------------------------------------------

SECRET = b"Quxford Zelda 19230417"


def compressed(image: FileDataset, tmp_path: Path, syntax: int) -> FileDataset:
    """The image in another encoding, by a library that is not ours."""
    image.save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(tmp_path / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "packed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return dcmread(tmp_path / "packed.dcm")


def with_comment(frame: bytes, at: int, marker: int, secret: bytes = SECRET) -> bytes:
    """A stream with a comment segment, and text after its end."""
    head = b"" if marker != 0xFF64 else b"\0\1"
    segment = marker.to_bytes(2, "big") + (2 + len(head + secret)).to_bytes(2, "big") + head + secret
    return frame[:at] + segment + frame[at:] + secret + b" " * (len(segment + secret) % 2)


SYNTAXES = {
    "JPEG lossless": (gdcm.TransferSyntax.JPEGLosslessProcess14_1, 2, 0xFFFE),
    "JPEG lossless, application segment": (gdcm.TransferSyntax.JPEGLosslessProcess14_1, 2, 0xFFE3),
    "JPEG-LS": (gdcm.TransferSyntax.JPEGLSLossless, 2, 0xFFFE),
    "JPEG 2000": (gdcm.TransferSyntax.JPEG2000Lossless, 2 + 2 + 41, 0xFF64),
}


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_comment_inside_a_compressed_image_is_blanked_and_the_pixels_stay(image, tmp_path, name):
    syntax, at, marker = SYNTAXES[name]
    packed = compressed(image, tmp_path, syntax)
    before = packed.pixel_array.copy()
    (frame,) = generate_frames(packed.PixelData, number_of_frames=1)
    packed.PixelData = encapsulate([with_comment(frame, at, marker)])
    found = through_disk(cleaned(packed))
    assert found.file_meta.TransferSyntaxUID == packed.file_meta.TransferSyntaxUID
    content = on_disk(found)
    assert SECRET not in content
    assert b"Zelda" not in content
    np.testing.assert_array_equal(found.pixel_array, before)


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_compressed_image_without_comments_is_left_as_it_is(image, tmp_path, name):
    syntax, _, marker = SYNTAXES[name]
    packed = compressed(image, tmp_path, syntax)
    (frame,) = generate_frames(packed.PixelData, number_of_frames=1)
    blank = blank_jpeg2000(frame) if marker == 0xFF64 else blank_jpeg(frame)
    same = sum(a == b for a, b in zip(frame, blank, strict=True))
    assert same >= len(frame) - 64  # the encoder's own comment may be there


def test_bytes_after_the_runs_of_an_rle_frame_are_gone(image):
    before = image.pixel_array.copy()
    image.compress(RLELossless, generate_instance_uid=False)
    (frame,) = generate_frames(image.PixelData, number_of_frames=1)
    header = bytearray(frame[:64])
    header[40:62] = SECRET  # places for segments that do not exist
    image.PixelData = encapsulate([bytes(header) + frame[64:] + SECRET])
    found = through_disk(cleaned(image))
    assert found.file_meta.TransferSyntaxUID == RLELossless
    assert b"Zelda" not in on_disk(found)
    np.testing.assert_array_equal(found.pixel_array, before)


def test_an_encoding_whose_comments_cannot_be_found_is_refused(image):
    image.compress(JPEGLSLossless, generate_instance_uid=False)
    image.PixelData = encapsulate([b"\0\0\0\x0cjP  \r\n\x87\n" + SECRET])  # boxes, not a stream
    with pytest.raises(DicomError) as refused:
        cleaned(image)
    assert refused.value.code == "deid-encoding"


@given(st.binary(max_size=80), st.sampled_from([b"\xff\xd8", b"\xff\x4f"]))
def test_a_damaged_stream_is_refused_or_keeps_its_length(tail, start):
    blank = blank_jpeg if start == b"\xff\xd8" else blank_jpeg2000
    try:
        length = len(blank(start + tail))
    except DicomError as error:
        refused = error.code
    else:
        refused, length = "", length - 2
    assert refused == "deid-encoding" or length == len(tail)


def test_a_stream_whose_last_tile_states_no_length_ends_at_its_first_end():
    tile = b"\xff\x90" + b"\0\x0a\0\0" + bytes(4) + b"\0\1" + b"\xff\x93" + b"coded"
    blank = blank_jpeg2000(b"\xff\x4f" + tile + b"\xff\xd9" + SECRET + b"\xff\xd9")
    assert blank == b"\xff\x4f" + tile + b"\xff\xd9" + bytes(len(SECRET) + 2)


def test_a_tile_that_ends_before_its_header_does_not_loop():
    size = b"\xff\x90" + b"\0\x0a\0\0" + (14).to_bytes(4, "big") + b"\0\1"
    comment = b"\xff\x64\0\x14" + b"\0\1" + SECRET[:16]
    with pytest.raises(DicomError) as refused:
        blank_jpeg2000(b"\xff\x4f" + size + comment + b"\xff\x93" + bytes(40))
    assert refused.value.code == "deid-encoding"


def in_twelve_bits(image: FileDataset, overlay: np.ndarray) -> np.ndarray:
    """Make the image unsigned with 12 bits stored, and put bits above them; return the values."""
    values = (image.pixel_array.astype(np.int32) & 0xFFF).astype(np.uint16)
    image.PixelRepresentation, image.BitsStored, image.HighBit = 0, 12, 11
    image.PixelData = (values | overlay << 12).astype("<u2").tobytes()
    return values


def test_an_overlay_inside_the_pixels_is_cleared(image):
    overlay = np.zeros((64, 64), np.uint16)
    overlay[10:20, 10:50] = 1
    values = in_twelve_bits(image, overlay)
    plant(image, 0x60000102, "US", 12)
    plant(image, 0x60000010, "US", 64)
    np.testing.assert_array_equal(cleaned(image).pixel_array, values)


def test_bits_above_the_values_that_no_overlay_explains_are_refused(image):
    overlay = np.zeros((64, 64), np.uint16)
    overlay[10, 10] = 1
    in_twelve_bits(image, overlay)
    with pytest.raises(DicomError) as refused:
        cleaned(image)
    assert refused.value.code == "deid-pixel-bits"


def test_signs_and_padding_above_the_stored_bits_are_no_overlay(image):
    values = np.clip(image.pixel_array.astype(np.int32) - 1024, -2048, 2047).astype(np.int16)
    values[0, :5] = -3024  # outside of 12 bits, as some scanners pad
    image.BitsStored, image.HighBit, image.PixelData = 12, 11, values.astype("<i2").tobytes()
    plant(image, 0x00280120, "SS", -3024)
    assert cleaned(image).PixelData == image.PixelData


# -- what is refused --------------------------------------------------------------------------------------


def not_ct(image: FileDataset) -> None:
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage


def document(image: FileDataset) -> None:
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
    image.EncapsulatedDocument = b"%PDF Quxford "
    del image.PixelData


def magnetic(image: FileDataset) -> None:
    image.Modality = "MR"


def burned_in(image: FileDataset) -> None:
    image.BurnedInAnnotation = "YES"


def dose_report(image: FileDataset) -> None:
    image.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]


def without_place(image: FileDataset) -> None:
    del image.ImagePositionPatient


def eight_bits(image: FileDataset) -> None:
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7


def without_uid(image: FileDataset) -> None:
    del image.SeriesInstanceUID


def cut_short(image: FileDataset) -> None:
    image.PixelData = image.PixelData[:-2000]


def absurd_position(image: FileDataset) -> None:
    plant(image, 0x00200032, "DS", ["1", "2", "Quxford"])


REFUSED = {
    not_ct: "dicom-not-ct",
    document: "dicom-not-ct",
    magnetic: "dicom-not-ct",
    burned_in: "deid-burned-in",
    dose_report: "deid-no-slice",
    without_place: "deid-no-slice",
    eight_bits: "deid-no-slice",
    without_uid: "dicom-undecodable",
    cut_short: "dicom-undecodable",
    absurd_position: "dicom-undecodable",
}


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.__name__)
def test_what_may_show_text_or_is_no_whole_image_is_refused(image, fault):
    fault(image)
    with pytest.raises(DicomError) as refused:
        cleaned(image)
    assert refused.value.code == REFUSED[fault]
    assert "Quxford" not in str(refused.value)


# -- what is kept -----------------------------------------------------------------------------------------


def test_place_pixels_and_hu_are_kept_to_the_digit(image):
    found = cleaned(image)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "Rows",
        "RescaleIntercept",
    ):
        assert found[keyword].value == image[keyword].value
    assert found.PixelData == image.PixelData


def test_references_between_images_stay_references(image):
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, "1.2.3.99"
    image.ReferencedImageSequence = [item]
    found = cleaned(image)
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    assert found.ReferencedImageSequence[0].ReferencedSOPInstanceUID == cleaned(image).SOPInstanceUID
    assert found.ReferencedImageSequence[0].ReferencedSOPClassUID == CTImageStorage


def test_the_kernel_and_the_words_that_matter_are_kept(image):
    image.SeriesDescription, image.ConvolutionKernel = "Thorax Dr. Quxford 1,5 mm B70f", "B70f"
    image.Manufacturer, image.ManufacturerModelName = "Siemens Healthineers", "SOMATOM Definition AS+"
    found = cleaned(image)
    assert found.SeriesDescription == "THORAX 1.5MM B70f"
    assert found.ConvolutionKernel == "B70f"
    assert (found.Manufacturer, found.ManufacturerModelName) == ("SIEMENS", "SOMATOM Definition AS+")


@pytest.mark.parametrize(
    ("scheme", "value", "meaning"),
    [
        ("SCT", "51185008", "Thoracic structure (body structure)"),
        ("SRT", "T-D3000", "Thoracic structure (body structure)"),
        ("99HOSPITAL", "Q1", "Unknown"),
    ],
)
def test_a_code_gets_the_meaning_of_the_dictionary(image, scheme, value, meaning):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "Quxford's chest"
    image.AnatomicRegionSequence = [item]
    assert cleaned(image).AnatomicRegionSequence[0].CodeMeaning == meaning


def test_the_age_is_kept_and_follows_from_the_birth_date_when_it_is_missing(image):
    assert cleaned(image).PatientAge == "090Y"  # 96 years
    image.PatientBirthDate = "19800311"
    assert cleaned(image).PatientAge == "039Y"
    image.PatientAge = "041Y"
    assert cleaned(image).PatientAge == "041Y"


def test_size_and_weight_are_coarse_and_rare_ones_are_removed(image):
    image.PatientSize, image.PatientWeight = "1.783", "81.4"
    found = cleaned(image)
    assert (found.PatientSize, found.PatientWeight) == (1.8, 80)
    image.PatientSize, image.PatientWeight = "2.13", "171"
    found = cleaned(image)
    assert "PatientSize" not in found
    assert "PatientWeight" not in found


def test_the_result_says_what_was_done(image):
    found = cleaned(image)
    assert (found.PatientIdentityRemoved, found.LongitudinalTemporalInformationModified) == (
        "YES",
        "MODIFIED",
    )
    stated = [item.CodeValue for item in found.DeidentificationMethodCodeSequence]
    assert stated == ["113100", "113105", "113107", "113108"]
    assert "BurnedInAnnotation" not in found


def test_clean_pixels_are_claimed_only_when_the_scanner_says_so(image):
    image.BurnedInAnnotation = "NO"
    found = cleaned(image)
    assert "113101" in [item.CodeValue for item in found.DeidentificationMethodCodeSequence]
    assert found.BurnedInAnnotation == "NO"


def test_the_source_is_not_changed(image):
    before = on_disk(image)
    cleaned(image)
    assert on_disk(image) == before


def test_a_second_pass_changes_pseudonyms_only(image):
    image.PatientAge, image.SeriesDescription = "041Y", "Thorax B70f"
    once = cleaned(image)
    twice = cleaned(once)
    assert [element.tag for element in twice] == [element.tag for element in once]
    changed = {e.keyword for e in once if e.value != twice[e.tag].value}
    assert changed == {
        *("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientName", "PatientID"),
        *("StudyDate", "ContentDate"),
    }


def enhanced(image: FileDataset) -> FileDataset:
    """The slice as an Enhanced CT of two frames, with identifiers in its functional groups."""
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    shared, frames = Dataset(), []
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = image.ImageOrientationPatient
    shared.PixelMeasuresSequence[0].PixelSpacing = image.PixelSpacing
    for z in (1, 2):
        frame = Dataset()
        frame.PlanePositionSequence, frame.FrameContentSequence = [Dataset()], [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = ["0", "0", str(z)]
        content = frame.FrameContentSequence[0]
        content.FrameAcquisitionDateTime, content.FrameComments = "20200310104327", "Quxford"
        content.StackID, content.InStackPositionNumber = "1", z
        frames.append(frame)
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], frames
    image.NumberOfFrames = 2
    image.PixelData = image.PixelData * 2
    del image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing
    return image


def test_the_frames_of_an_enhanced_ct_keep_their_places_and_lose_comments(image):
    found = cleaned(enhanced(image))
    groups = found.PerFrameFunctionalGroupsSequence
    assert [group.PlanePositionSequence[0].ImagePositionPatient[2] for group in groups] == [1, 2]
    content = groups[0].FrameContentSequence[0]
    assert "FrameComments" not in content
    assert content.FrameAcquisitionDateTime == found.StudyDate + "10"
    assert found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [5.5, 5.5]
    assert found.PixelData == image.PixelData


# -- the key ----------------------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_file_and_another_key_another_patient(image):
    assert on_disk(cleaned(image)) == on_disk(cleaned(image))
    one, other = cleaned(image), cleaned(image, OTHER_KEY)
    for keyword in ("PatientID", "StudyInstanceUID", "SOPInstanceUID", "StudyDate"):
        assert one[keyword].value != other[keyword].value


def test_one_patients_id_is_recognized_however_it_is_written(image):
    first = cleaned(image).PatientID
    image.PatientID, image.PatientName = " qx-8837261 ", "Other^Name"
    assert cleaned(image).PatientID == first
    image.IssuerOfPatientID = "Elsewhere"
    assert cleaned(image).PatientID != first


def test_a_patient_without_id_gets_one_pseudonym_per_study(image):
    image.PatientID = ""
    first = cleaned(image).PatientID
    image.SOPInstanceUID = "1.2.3.4.5"
    assert cleaned(image).PatientID == first
    image.StudyInstanceUID = "1.2.3.4.6"
    assert cleaned(image).PatientID != first


@given(st.text(min_size=1), st.dates(), st.dates())
def test_the_days_between_a_patients_dates_stay(patient, first, second):
    days = KEY.shift_days(KEY.patient(patient))
    assert -3652 <= days <= -1
    moved = [shift_date(date.strftime("%Y%m%d").rjust(8, "0"), days) for date in (first, second)]
    if None not in moved:
        a, b = (np.datetime64(f"{date[:4]}-{date[4:6]}-{date[6:]}") for date in moved)
        assert (b - a).astype(int) == (second - first).days


@given(st.text(alphabet="0123456789.", min_size=1, max_size=64))
def test_a_uid_becomes_a_valid_one_that_depends_on_all_of_it(uid):
    made = KEY.uid(uid)
    assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", made)
    assert made == KEY.uid(uid) != KEY.uid(uid + "1")
    assert made != OTHER_KEY.uid(uid)


def test_uids_of_the_standard_stay():
    assert KEY.uid(str(CTImageStorage)) == CTImageStorage
    assert KEY.uid("1.2.840.10008.1.4.1.1") == "1.2.840.10008.1.4.1.1"  # a well-known frame of reference
    assert KEY.uid("1.2.840.10008.19230417").startswith("2.25.")


def test_a_key_file_is_made_once_for_its_owner_only(tmp_path):
    path = tmp_path / "site.key"
    key = make_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(path) == key
    assert key.secret.hex() not in repr(key)
    with pytest.raises(ConfigError) as refused:
        make_key_file(path)
    assert refused.value.code == "output-exists"
    assert read_key_file(path) == key


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda path: path.unlink(), "key-missing"),
        (lambda path: path.chmod(0o644), "key-exposed"),
        (lambda path: path.write_text("abcd"), "key-invalid"),
        (lambda path: path.write_bytes(b"\xff" * 64), "key-invalid"),
    ],
)
def test_a_key_file_that_is_not_safe_to_use_is_refused(tmp_path, fault, code):
    path = tmp_path / "site.key"
    make_key_file(path)
    fault(path)
    with pytest.raises(ConfigError) as refused:
        read_key_file(path)
    assert refused.value.code == code


# -- single values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("CT Thorax nativ, 1.25mm", "CT THORAX NATIV 1.25MM"),
        ("MUELLER^HANS 12.04.1958", None),
        ("12041958mm 1958.12mm 1,25,12mm", None),
        ("LUNGMUELLER", None),
        ("Zimmer H12 B07", None),
        ("Kontrolle 5 mm Br40d", "5MM Br40d"),
    ],
)
def test_a_description_keeps_words_of_the_vocabulary(text, kept):
    assert known_words(text) == kept


@pytest.mark.parametrize(
    ("age", "kept"), [("045Y", "045Y"), ("097Y", "090Y"), ("018M", "001Y"), ("003D", "000Y"), ("59Y", None)]
)
def test_an_age_is_kept_in_years(age, kept):
    assert coarse_age(age) == kept


@pytest.mark.parametrize(
    ("text", "days", "shifted"),
    [
        ("20200310", -10, "20200229"),
        ("2020.03.10", -10, "20200229"),
        ("20200310104327.5+0100", -10, "2020022910"),
        ("00010102", -10, None),
        ("Quxford", -10, None),
    ],
)
def test_a_date_is_shifted_in_any_of_its_forms(text, days, shifted):
    assert shift_date(text, days) == shifted


@pytest.mark.parametrize("text", ["nan", "1e9", "19230417", "1_0", "١٢", "12 Quxford", "", "0x10"])
def test_what_is_no_quantity_is_no_number(text):
    assert plain_number(text) is None


# -- against the standard ---------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed")
def test_a_valid_image_stays_valid(image, tmp_path):
    image.SeriesNumber, image.AcquisitionNumber, image.InstanceNumber, image.KVP = 1, 1, 1, 120
    image.SliceThickness, image.PatientPosition, image.Laterality = 5, "HFS", ""
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = "1.2.3.5", "SN"
    image.Manufacturer, image.ReferringPhysicianName, image.PatientSex = "Nobody", "Quxford^Q", "F"
    image.RescaleType = "HU"
    errors = []
    for name, dataset in (("before", image), ("after", cleaned(image))):
        dataset.save_as(tmp_path / name, enforce_file_format=True)
        said = subprocess.run(
            ["dciodvfy", tmp_path / name], capture_output=True, text=True, check=False
        ).stderr
        errors.append([line for line in said.splitlines() if line.startswith("Error")])
    assert errors == [[], []]


def test_the_reference_page_lists_every_attribute_under_its_action():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "deidentification.md").read_text(
        encoding="utf-8"
    )
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for action in Action:
        stated = next(row for row in rows if row.startswith(f"| {action.value} |"))
        listed = re.findall(r"`(\w+)`", stated.split("|")[2])
        assert listed == sorted(keyword for keyword, rule in PROFILE.items() if rule.action is action)


REMOVED_BY_BASIC_PROFILE = [
    "PatientBirthName",
    "PatientMotherBirthName",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "OtherPatientIDs",
    "IssuerOfPatientID",
    "EthnicGroup",
    "Occupation",
    "AdditionalPatientHistory",
    "PatientComments",
    "InstitutionName",
    "InstitutionAddress",
    "StationName",
    "InstitutionalDepartmentName",
    "PerformingPhysicianName",
    "OperatorsName",
    "NameOfPhysiciansReadingStudy",
    "DeviceUID",
    "GantryID",
    "RequestAttributesSequence",
    "RequestingPhysician",
    "ImageComments",
    "DerivationDescription",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "InstanceCreatorUID",
    "PerformedProcedureStepID",
    "AdmissionID",
    "ReferencedStudySequence",
    "ReferencedPatientSequence",
    "DigitalSignaturesSequence",
    "OriginalAttributesSequence",
    "ModifiedAttributesSequence",
    "EncryptedAttributesSequence",
    "IconImageSequence",
    "ContentSequence",
    "TimezoneOffsetFromUTC",
    "ClinicalTrialSubjectID",
    "RetrieveAETitle",
    "StationAETitle",
    "PatientInsurancePlanCodeSequence",
    "MedicalRecordLocator",
]
"""Attributes that table E.1-1 removes and no option that is claimed keeps."""


@pytest.mark.parametrize("keyword", REMOVED_BY_BASIC_PROFILE)
def test_an_attribute_that_the_basic_profile_removes_may_not_stay(keyword):
    assert tag_for_keyword(keyword) is not None
    assert keyword not in PROFILE
