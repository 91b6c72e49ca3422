# SPDX-License-Identifier: Apache-2.0
"""Awkward bytes: transfer syntaxes, packaging, number formats, many slices in one file."""

import gc
import io
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
from awkward_dicom import (
    SLICES,
    Images,
    Stack,
    heights,
    recode,
    save,
    saving,
    truth,
    uid,
)
from awkward_phantom import Case, Refusal
from awkward_values import rescaled
from pydicom.dataset import Dataset, FileDataset
from pydicom.fileset import FileSet
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

__all__ = ["encoding_cases"]

Write = Callable[[Path], None]


_PER_FRAME = (
    "AcquisitionNumber",
    "ConvolutionKernel",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "KVP",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "SliceLocation",
    "SliceThickness",
)
"""What Enhanced CT keeps in functional groups."""


def encoding_cases(pixels: int) -> tuple[Case, ...]:
    """Return the cases with slices of this many rows and columns."""
    return (*_syntaxes(pixels), *_packages(pixels), *_multiframe(pixels))


def _syntaxes(pixels: int) -> tuple[Case, ...]:
    """Transfer syntaxes."""
    images = Stack(pixels, heights()).images
    codecs = gdcm.TransferSyntax
    plain = truth(pixels)
    lossy = truth(pixels, remarks=("lossy",), lesion_share=0.03)
    return (
        Case("rle", "RLE lossless", saving(lambda: _rle(images())), plain),
        Case("jpeg2000", "JPEG 2000 lossless", _recoded(images, codecs.JPEG2000Lossless), plain),
        Case("jpeg-ls", "JPEG-LS lossless", _recoded(images, codecs.JPEGLSLossless), plain),
        Case("jpeg", "JPEG lossless, process 14", _recoded(images, codecs.JPEGLosslessProcess14_1), plain),
        Case(
            "jpeg2000-lossy",
            "JPEG 2000 with loss",
            _recoded(lambda: images(LossyImageCompression="01"), codecs.JPEG2000),
            lossy,
        ),
        Case(
            "deflated",
            "Deflated explicit little endian",
            saving(lambda: _in_syntax(images(), DeflatedExplicitVRLittleEndian)),
            plain,
        ),
        Case(
            "big-endian",
            "Explicit big endian",
            lambda folder: _big_endian(images(), folder),
            plain,
            "pydicom/pydicom/2340",
        ),
        Case(
            "implicit",
            "Implicit little endian",
            saving(lambda: _in_syntax(images(), ImplicitVRLittleEndian)),
            plain,
        ),
    )


def _packages(pixels: int) -> tuple[Case, ...]:
    """How files come."""
    images = Stack(pixels, heights()).images
    plain = truth(pixels)
    return (
        Case(
            "no-preamble",
            "No preamble and no file meta information, implicit little endian",
            lambda folder: _bare(images(), folder),
            plain,
            "icometrix/dicom2nifti/134",
        ),
        Case(
            "dicomdir",
            "A CD: DICOMDIR, folders, names without ending",
            lambda folder: _disc(images(), folder),
            plain,
        ),
        Case(
            "dicomdir-file",
            "The same, the DICOMDIR file is named",
            lambda folder: _disc(images(), folder),
            plain,
            input="DICOMDIR",
        ),
        Case(
            "zip",
            "A zip archive of the study",
            lambda folder: _zipped(images(), folder),
            plain,
            input="study.zip",
        ),
        Case(
            "junk",
            "Text, pictures, empty and system files among the images",
            lambda folder: _with_junk(images(), folder),
            plain,
            "icometrix/dicom2nifti/130",
        ),
        Case(
            "files-twice",
            "Every file twice, in two folders",
            lambda folder: _twice(images(), folder),
            plain,
            "rordenlab/dcm2niix/837",
        ),
        Case(
            "truncated-file",
            "One file cut in the middle of its pixels",
            lambda folder: _cut(images(), folder, 0.5),
            truth(pixels, remarks=("damaged-files",), or_refused=("dicom-undecodable", "input-unreadable")),
            "rordenlab/dcm2niix/140",
        ),
        Case(
            "sloppy-header",
            "Numbers as 7.0 and 1.5e+02, with 20 digits; unknown character set; huge SeriesNumber",
            lambda folder: _sloppy(images(), folder),
            plain,
            "pydicom/pydicom/1643",
        ),
    )


def _multiframe(pixels: int) -> tuple[Case, ...]:
    """All slices in one file."""
    stack = Stack(pixels, heights())
    shuffled = np.random.default_rng(11).permutation(SLICES)
    return (
        Case(
            "enhanced",
            "Enhanced multi-frame CT, from head to feet",
            saving(lambda: [_enhanced(stack, range(SLICES)[::-1], varies=False)]),
            truth(pixels),
            "icometrix/dicom2nifti/140",
        ),
        Case(
            "enhanced-shuffled",
            "Enhanced CT, frames in disorder, rescaled frame by frame",
            saving(lambda: [_enhanced(stack, shuffled.tolist(), varies=True)]),
            truth(pixels),
            "rordenlab/dcm2niix/839",
        ),
        Case(
            "multiframe-no-positions",
            "Several frames in a plain CT object, without positions",
            saving(lambda: [_frames(stack)]),
            Refusal(("dicom-no-geometry", "dicom-not-ct", "dicom-too-few-slices")),
            "Slicer/Slicer/7496",
        ),
    )


def _rle(images: Images) -> Images:
    """Compress with pydicom."""
    for image in images:
        image.compress(RLELossless, generate_instance_uid=False)
    return images


def _recoded(make: Callable[[], Images], syntax: int) -> Write:
    """Return a function that writes images and compresses them with gdcm."""

    def write(folder: Path) -> None:
        for path in save(make(), folder):
            recode(path, syntax)

    return write


def _in_syntax(images: Images, syntax: str) -> Images:
    """Name another transfer syntax, which pydicom then writes."""
    for image in images:
        image.file_meta.TransferSyntaxUID = syntax
    return images


def _big_endian(images: Images, folder: Path) -> None:
    """Write big endian files; pydicom swaps all bytes but those of the pixels."""
    for number, image in enumerate(_in_syntax(images, ExplicitVRBigEndian)):
        image.PixelData = np.frombuffer(image.PixelData, "<u2").byteswap().tobytes()
        bare = Dataset(image)  # remembers no encoding, so that pydicom accepts another one
        bare.file_meta = image.file_meta
        bare.save_as(folder / f"{number * 37 % 64:03d}.dcm", enforce_file_format=True)


def _bare(images: Images, folder: Path) -> None:
    """Write the elements alone."""
    for number, image in enumerate(images):
        bare = Dataset(image)
        dcmwrite(folder / f"{number * 37 % 64:03d}.img", bare, implicit_vr=True, little_endian=True)


def _disc(images: Images, folder: Path) -> None:
    """Write files as on a CD."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # a FileSet leaves its temporary folder to the collector
        files = FileSet()
        for image in images:
            files.add(image)
        files.write(folder)
        del files
        gc.collect()


def _zipped(images: Images, folder: Path) -> None:
    """Write a zip archive with a folder and a note in it."""
    with zipfile.ZipFile(folder / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("export/README.TXT"), "Exported.")
        for number, image in enumerate(images):
            buffer = io.BytesIO()
            image.save_as(buffer, enforce_file_format=True)
            archive.writestr(zipfile.ZipInfo(f"export/IMG{number * 37 % 64:04d}"), buffer.getvalue())


def _with_junk(images: Images, folder: Path) -> None:
    """Write images and what operating systems and viewers leave beside them."""
    save(images, folder)
    for name, content in {
        "README.txt": b"Exported by a viewer.\r\n",
        "Thumbs.db": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600),
        ".DS_Store": bytes.fromhex("0000000142756431") + bytes(300),
        "preview.png": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "empty.dcm": b"",
        "autorun.inf": b"[autorun]\r\nopen=viewer.exe\r\n",
        "report.pdf": b"%PDF-1.4\n" + bytes(100),
        "notes.dcm": b"This is no DICOM file, its name says so." * 20,
    }.items():
        (folder / name).write_bytes(content)


def _twice(images: Images, folder: Path) -> None:
    """Write all files into one folder and copy them into another."""
    save(images, folder / "first")
    shutil.copytree(folder / "first", folder / "second" / "copy")


def _cut(images: Images, folder: Path, share: float) -> None:
    """Write images and cut one in the middle of the chest."""
    path = save(images, folder)[30]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _sloppy(images: Images, folder: Path) -> None:
    """Write numbers as no standard allows; implicit, so that no VR gives them away."""
    for image in images:
        number, position = str(image.InstanceNumber), image.ImagePositionPatient
        image.SpecificCharacterSet = "ISO_IR 4711"
        image.add_new("InstanceNumber", "LO", f"{number}.0")
        image.add_new("SeriesNumber", "LO", "20200203101112131415")
        image.add_new("ImagePositionPatient", "LO", [f"{float(v):+.14e}" for v in position])
        image.add_new("PixelSpacing", "LO", [f" {float(v):.17f}" for v in image.PixelSpacing])
        image.add_new("SliceThickness", "LO", "5.0 mm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom does not know the character set either
        save(_in_syntax(images, ImplicitVRLittleEndian), folder)


def _frames(stack: Stack) -> FileDataset:
    """Return all slices in one object that is not made for it."""
    images = stack.images()
    first = images[0]
    first.NumberOfFrames = len(images)
    first.PixelData = b"".join(image.PixelData for image in images)
    del first.ImagePositionPatient, first.ImageOrientationPatient, first.SliceLocation
    return first


def _enhanced(stack: Stack, order: range | list[int], *, varies: bool) -> FileDataset:
    """Return an Enhanced CT object with frames in this order."""
    images = stack.images()
    if varies:
        images = rescaled(stack)
    whole = images[0]
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = uid("enhanced", varies)
    groups = [_frame_groups(images[k], varies=varies) for k in order]
    pixels = b"".join(images[k].PixelData for k in order)
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = whole.PixelSpacing
    shared.PixelMeasuresSequence[0].SliceThickness = whole.SliceThickness
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = whole.ImageOrientationPatient
    if not varies:
        shared.PixelValueTransformationSequence = [_transformation(whole)]
    for name in _PER_FRAME:
        delattr(whole, name)
    whole.SharedFunctionalGroupsSequence = [shared]
    whole.PerFrameFunctionalGroupsSequence = groups
    whole.NumberOfFrames = len(groups)
    whole.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    whole.ContentDate, whole.ContentTime = whole.StudyDate, whole.StudyTime
    whole.PixelData = pixels
    return whole


def _frame_groups(image: Dataset, *, varies: bool) -> Dataset:
    """Return the functional groups of one frame."""
    groups = Dataset()
    place = Dataset()
    place.ImagePositionPatient = image.ImagePositionPatient
    groups.PlanePositionSequence = [place]
    content = Dataset()
    content.StackID, content.InStackPositionNumber = "1", int(image.InstanceNumber)
    content.FrameAcquisitionNumber = 1
    content.DimensionIndexValues = [1, int(image.InstanceNumber)]
    groups.FrameContentSequence = [content]
    kind = Dataset()
    kind.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    groups.CTImageFrameTypeSequence = [kind]
    if varies:
        groups.PixelValueTransformationSequence = [_transformation(image)]
    return groups


def _transformation(image: Dataset) -> Dataset:
    """Return slope and intercept as a functional group."""
    item = Dataset()
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = (
        image.RescaleSlope,
        image.RescaleIntercept,
        "HU",
    )
    return item
