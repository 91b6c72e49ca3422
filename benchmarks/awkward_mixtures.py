# SPDX-License-Identifier: Apache-2.0
"""Awkward company: several acquisitions, kernels, patients and objects together; and what must be refused."""

from typing import Any

import numpy as np
from awkward_dicom import FIELD_MM, SLICES, STEP_MM, Images, Stack, ct_image, heights, saving, truth, uid
from awkward_phantom import Case, Refusal, Scene
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage

__all__ = ["mixture_cases"]

SECOND = Scene(shift_mm=(4.0, -3.0, 9.0))
"""The second acquisition, or another patient: moved, so that a mixture is seen."""

_FACING = {"row": (1.0, 0.0, 0.0), "column": (0.0, 0.0, -1.0), "along": (0.0, 1.0, 0.0)}
"""Coronal slices."""


_OF_SLICES = (
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "SliceLocation",
    "SliceThickness",
)
"""What a screen capture does not have."""


def mixture_cases(pixels: int) -> tuple[Case, ...]:
    """Return the cases with slices of this many rows and columns."""
    return (*_several(pixels), *_objects(pixels), *_refused(pixels))


def _several(pixels: int) -> tuple[Case, ...]:
    """Several acquisitions, phases, kernels or patients."""
    stack = Stack(pixels, heights())
    either = truth(pixels, scenes=(Scene(), SECOND), or_refused=("dicom-many-studies",))
    split = truth(pixels, scenes=(Scene(), SECOND), remarks=("split-acquisition",))
    no_split = ("dicom-duplicate-slices", "dicom-mixed-patients")
    mixed = truth(pixels, scenes=(Scene(), SECOND), or_refused=no_split)
    between = Stack(pixels, heights() + STEP_MM / 2.0)
    other = {"PatientID": "PLANTED-4712", "PatientName": "Plantedname^Other"}
    other_uids = {name: uid(name, "other") for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    return (
        Case(
            "two-acquisitions",
            "Two acquisitions at equal positions in one series",
            saving(lambda: _both(stack, AcquisitionNumber="2", AcquisitionTime="101940")),
            split,
            "Slicer/Slicer/4801",
        ),
        Case(
            "two-phases",
            "Two phases at equal positions, told apart by time alone",
            saving(lambda: _both(stack, AcquisitionTime="101940", ContentTime="101940")),
            mixed,
            "Project-MONAI/monai-deploy-app-sdk/532",
        ),
        Case(
            "two-kernels",
            "Soft and sharp kernel in one series",
            saving(lambda: [*stack.images(), *_sharpened(stack.images(ConvolutionKernel="B70f"))]),
            truth(pixels),
        ),
        Case(
            "acquisition-per-slice",
            "AcquisitionNumber, time and exposure differ from slice to slice of one scan",
            saving(lambda: _sequential(stack.images())),
            truth(pixels),
            "Slicer/Slicer/4872",
        ),
        Case(
            "two-passes",
            "Half a chest in each of two breath-holds that overlap, 2.3 mm off, in one series",
            saving(lambda: _passes(pixels)),
            Refusal(("ct-incomplete-chest", "ct-interleaved", "dicom-uneven-spacing")),
            "dgobbi/vtk-dicom/220",
        ),
        Case(
            "interleaved",
            "Two acquisitions, one between the slices of the other",
            saving(lambda: [*stack.images(), *between.images(SECOND, AcquisitionNumber="2")]),
            split,
        ),
        Case(
            "interleaved-unmarked",
            "Two acquisitions, one between the slices of the other, and nothing tells them apart",
            saving(lambda: [*stack.images(), *between.images(SECOND)]),
            Refusal(("ct-interleaved",)),
        ),
        Case(
            "interleaved-patients",
            "Two patients in one series, one between the slices of the other",
            saving(lambda: [*stack.images(), *between.images(SECOND, **other)]),
            Refusal(("dicom-mixed-patients",)),
        ),
        Case(
            "two-patients",
            "Two patients in one folder",
            saving(lambda: [*stack.images(), *stack.images(SECOND, **other, **other_uids)]),
            either,
        ),
        Case(
            "two-patients-same-uids",
            "Two patients whose UIDs an anonymizer made equal",
            saving(lambda: [*stack.images(), *stack.images(SECOND, **other)]),
            mixed,
            "pydicom/deid/19",
        ),
    )


def _objects(pixels: int) -> tuple[Case, ...]:
    """Other objects beside the slices."""
    stack = Stack(pixels, heights())
    facing = Stack(pixels, heights(40, 8.0), **_FACING)  # type: ignore[arg-type]
    reformat = {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"], "SeriesInstanceUID": uid("coronal")}
    return (
        Case(
            "localizer",
            "A scout view in the series",
            saving(lambda: [_scout(pixels), *stack.images()]),
            truth(pixels),
            "icometrix/dicom2nifti/60",
        ),
        Case(
            "reformats",
            "A coronal reformat and a dose report beside the axial series",
            saving(lambda: [*facing.images(**reformat), _capture(stack), _text(stack), *stack.images()]),
            truth(pixels),
            "Slicer/Slicer/1007",
        ),
        Case(
            "capture-in-series",
            "A color screen capture in the series itself",
            saving(lambda: [*stack.images(), _capture(stack, SeriesInstanceUID=uid("series"))]),
            truth(pixels),
            "SlicerRt/SlicerRT/272",
        ),
    )


def _refused(pixels: int) -> tuple[Case, ...]:
    """What is no chest CT, or no volume."""
    stack = Stack(pixels, heights())
    facing = Stack(pixels, heights(40, 8.0), **_FACING)  # type: ignore[arg-type]
    upper, lower = heights()[SLICES // 2 :], heights()[: SLICES // 2]
    return (
        Case(
            "localizer-only",
            "Scout views alone",
            saving(lambda: [_scout(pixels)]),
            Refusal(("dicom-localizer",), is_for_chests=True),
        ),
        Case(
            "coronal-only",
            "A coronal reformat alone",
            saving(facing.images),
            Refusal(("dicom-not-axial",), is_for_chests=True),
        ),
        Case(
            "no-positions",
            "ImagePositionPatient lost",
            saving(lambda: stack.images(ImagePositionPatient=None)),
            Refusal(("dicom-no-geometry",)),
        ),
        Case(
            "no-pixel-spacing",
            "PixelSpacing lost",
            saving(lambda: stack.images(PixelSpacing=None)),
            Refusal(("dicom-no-geometry",)),
        ),
        Case(
            "matrix-changes",
            "The matrix changes half-way",
            saving(lambda: [*Stack(pixels, lower).images(), *Stack(pixels * 3 // 4, upper).images()]),
            Refusal(("dicom-mixed-geometry", "ct-incomplete-chest")),
            "fedorov/MultiVolumeImporter/48",
        ),
        Case(
            "zoom-changes",
            "The field of view changes half-way, the matrix stays",
            saving(lambda: [*Stack(pixels, lower).images(), *_zoomed(pixels, upper)]),
            Refusal(("dicom-mixed-geometry", "ct-incomplete-chest")),
        ),
        Case(
            "burned-in",
            "BurnedInAnnotation is YES",
            saving(lambda: stack.images(BurnedInAnnotation="YES")),
            Refusal(("dicom-burned-in", "dicom-not-ct"), is_for_chests=True),
        ),
        Case(
            "no-lungs",
            "A CT without lungs, as of the pelvis",
            saving(lambda: stack.images(Scene(has_lungs=False))),
            Refusal(("ct-no-chest",), is_for_chests=True),
        ),
        Case(
            "half-chest",
            "The scan begins in the middle of the lungs",
            saving(Stack(pixels, upper).images),
            Refusal(("ct-incomplete-chest",), is_for_chests=True),
        ),
        Case(
            "other-modality",
            "An MR with the same geometry",
            saving(lambda: stack.images(Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")),
            Refusal(("dicom-not-ct",), is_for_chests=True),
            "JoHof/lungmask/57",
        ),
    )


def _both(stack: Stack, **tags: Any) -> Images:
    """Return two acquisitions whose files alternate."""
    second = stack.images(SECOND, **tags)
    for image in second:
        image.InstanceNumber = str(SLICES + int(image.InstanceNumber))
    return [image for pair in zip(stack.images(), second, strict=True) for image in pair]


def _sharpened(images: Images) -> Images:
    """Add the noise of a sharp kernel."""
    rng = np.random.default_rng(21)
    for image in images:
        stored = np.frombuffer(image.PixelData, "<i2")
        image.PixelData = (stored + rng.normal(0.0, 6.0, stored.size)).astype("<i2").tobytes()
    return images


def _sequential(images: Images) -> Images:
    """Number each slice as an acquisition of its own."""
    for number, image in enumerate(images, start=1):
        image.AcquisitionNumber = str(number)
        image.AcquisitionTime = f"1011{number % 60:02d}"
        image.Exposure = str(100 + number)
    return images


def _passes(pixels: int) -> Images:
    """Return a lower and an upper pass of one scan, the second off the first one's lattice."""
    lower, upper = heights()[:38], heights()[34:] + 2.3
    second = Stack(pixels, upper).images(SECOND, AcquisitionNumber="2", AcquisitionTime="101940")
    for image in second:
        image.InstanceNumber = str(SLICES + int(image.InstanceNumber))
    return [*Stack(pixels, lower).images(), *second]


def _zoomed(pixels: int, where: np.ndarray) -> Images:
    """Return slices with a smaller field of view and the same matrix."""
    side_mm = 0.9 * FIELD_MM
    return Stack(pixels, where, field_mm=side_mm).images()


def _scout(pixels: int) -> FileDataset:
    """Return a coronal scout view of the same series."""
    stack = Stack(pixels, [0.0], row=(1.0, 0.0, 0.0), column=(0.0, 0.0, -1.0))
    types = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return ct_image(stack, stack.positions[0], 1, Scene(), ImageType=types, SliceThickness="384")


def _capture(stack: Stack, **tags: Any) -> FileDataset:
    """Return a color picture of a dose report."""
    image = ct_image(stack, stack.positions[0], 501, Scene())
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid("capture", tags)
    image.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    image.SeriesInstanceUID = uid("capture series")
    image.SeriesNumber = "501"
    for name in _OF_SLICES:
        delattr(image, name)
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = bytes(range(256)) * (image.Rows * image.Columns * 3 // 256)
    for name, value in tags.items():
        setattr(image, name, value)
    return image


def _text(stack: Stack) -> FileDataset:
    """Return a structured report, which has no pixels."""
    report = ct_image(stack, stack.positions[0], 1, Scene())
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = uid("report")
    report.Modality, report.SeriesInstanceUID, report.SeriesNumber = "SR", uid("report series"), "990"
    for name in [element.keyword for element in report if element.tag.group in (0x0028, 0x7FE0)]:
        delattr(report, name)
    report.ContentSequence = [Dataset()]
    report.ContentSequence[0].ValueType, report.ContentSequence[0].TextValue = "TEXT", "Planted report"
    return report
