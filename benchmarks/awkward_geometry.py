# SPDX-License-Identifier: Apache-2.0
"""Awkward places: order, missing and double slices, changing spacing, tilt, direction."""

from collections.abc import Sequence

import numpy as np
from awkward_dicom import (
    FIELD_MM,
    SLICES,
    STEP_MM,
    Images,
    Stack,
    decimal,
    heights,
    saving,
    truth,
    uid,
)
from awkward_phantom import Case, Refusal, Scene, Truth

__all__ = ["geometry_cases"]

_NOISE = 1e-4


def geometry_cases(pixels: int) -> tuple[Case, ...]:
    """Return the cases with slices of this many rows and columns."""
    return (*_order(pixels), *_spacing(pixels), *_tilt(pixels), *_direction(pixels))


def _order(pixels: int) -> tuple[Case, ...]:
    """Order and number of slices."""
    plain = Stack(pixels, heights())
    return (
        Case("plain", "Nothing is awkward", saving(plain.images), truth(pixels)),
        Case(
            "false-numbers",
            "Shuffled files, false InstanceNumber",
            saving(lambda: _numbered(plain.images())),
            truth(pixels),
            "rordenlab/dcm2niix/786",
        ),
        Case(
            "lying-locations",
            "No InstanceNumber, false SliceLocation",
            saving(lambda: _misplaced(plain.images(InstanceNumber=None))),
            truth(pixels),
            "Slicer/Slicer/7730",
        ),
        Case(
            "one-slice-missing",
            "One slice missing",
            saving(lambda: _without(plain.images(), 37)),
            truth(pixels, remarks=("slices-interpolated",)),
            "DIAGNijmegen/rse-panimg/7",
        ),
        Case(
            "two-slices-missing",
            "Two neighboring slices missing",
            saving(lambda: _without(plain.images(), 40, 41)),
            truth(pixels, remarks=("slices-interpolated",), lesion_share=0.03),
        ),
        Case(
            "five-slices-missing",
            "Five neighboring slices missing",
            saving(lambda: _without(plain.images(), *range(34, 39))),
            Refusal(("dicom-uneven-spacing",)),
        ),
        Case(
            "duplicates-equal",
            "Three positions twice, same pixels",
            saving(lambda: [*plain.images(), *_copies(plain.images()[20:23])]),
            truth(pixels, remarks=("duplicates-dropped",)),
            "rordenlab/dcm2niix/837",
        ),
        Case(
            "single-slice",
            "One slice",
            saving(Stack(pixels, [0.0]).images),
            Refusal(("dicom-too-few-slices",), is_for_chests=True),
            "JoHof/lungmask/7",
        ),
    )


def _spacing(pixels: int) -> tuple[Case, ...]:
    """Distances between slices."""
    in_plane = (None, FIELD_MM / pixels, FIELD_MM / pixels)
    even, jitter = heights(), np.random.default_rng(3).uniform(-0.04, 0.04, SLICES)
    changing = np.concatenate([even[:32], even[31] + 7.5 * np.arange(1, 22)])
    odd = np.concatenate([even[:32], even[31] + 0.5 + 10.0 * np.arange(17)])
    moved = np.concatenate([even[:40], even[40:] + 2.5])
    thick = Scene(thickness_mm=10.0)
    every_10_mm = Stack(pixels, heights(SLICES // 2, 10.0))
    coarse = (10.0, *in_plane[1:])
    resampled = Truth(spacing_mm=in_plane, remarks=("spacing-resampled",), lesion_share=0.03)
    return (
        Case(
            "jitter",
            "Positions off by up to 0.04 mm",
            saving(Stack(pixels, even + jitter).images),
            Truth(spacing_mm=in_plane, slices=SLICES),
            "icometrix/dicom2nifti/36",
        ),
        Case(
            "spacing-changes",
            "Slices 5 mm apart, from half-way on 7.5 mm",
            saving(Stack(pixels, changing).images),
            resampled,
            "Kitware/VolView/291",
        ),
        Case(
            "odd-gap",
            "5 mm apart, then one gap of 0.5 mm, then 10 mm",
            saving(Stack(pixels, odd).images),
            Truth(
                spacing_mm=in_plane,
                remarks=("spacing-resampled",),
                or_refused=("dicom-uneven-spacing",),
                lesion_share=0.03,
            ),
            "rordenlab/dcm2niix/22",
        ),
        Case(
            "table-moved",
            "One gap of 7.5 mm among gaps of 5 mm",
            saving(Stack(pixels, moved).images),
            resampled,
            "moloney/dcmstack/55",
        ),
        Case(
            "thick-slices",
            "Slices of 10 mm, averaged over their thickness",
            saving(lambda: every_10_mm.images(thick, SliceThickness="10")),
            Truth((thick,), coarse, SLICES // 2, ("thick-slices",), lesion_share=0.03),
        ),
        Case(
            "gapped-slices",
            "Slices of 1 mm every 10 mm, as in older high-resolution scans",
            saving(lambda: every_10_mm.images(SliceThickness="1")),
            Truth((Scene(),), coarse, SLICES // 2, ("gaps-between-slices",), lesion_share=0.03),
        ),
    )


def _tilt(pixels: int) -> tuple[Case, ...]:
    """Tilted gantries, and headers that speak of a tilt that is none."""
    sheared = Truth(remarks=("tilt-corrected",), lesion_share=0.03)
    feet_first = {"row": (-1.0, 0.0, 0.0), "column": (0.0, 1.0, 0.0)}
    t = np.radians(15.0)
    return (
        Case(
            "tilt-15",
            "Gantry tilted by 15 degrees",
            saving(lambda: _tilted(pixels, 15.0)),
            sheared,
            "rordenlab/dcm2niix/232",
        ),
        Case(
            "tilt-feet-first",
            "Gantry tilted by -12 degrees, patient feet first",
            saving(lambda: _tilted(pixels, -12.0, **feet_first)[::-1]),
            sheared,
            "rordenlab/dcm2niix/253",
        ),
        Case(
            "tilt-and-missing",
            "Gantry tilted by 15 degrees, one slice missing",
            saving(lambda: _without(_tilted(pixels, 15.0), 35)),
            Truth(remarks=("tilt-corrected", "slices-interpolated"), lesion_share=0.03),
        ),
        Case(
            "tilt-false-tag",
            "GantryDetectorTilt says 15 degrees, the slices are upright",
            saving(lambda: Stack(pixels, heights()).images(GantryDetectorTilt="15")),
            truth(pixels),
            "rordenlab/dcm2niix/253",
        ),
        Case(
            "oblique-stack",
            "Reformatted obliquely by 15 degrees, at right angles: no tilt",
            saving(
                Stack(
                    pixels, heights(72), tilt_deg=15.0, along=(0.0, -float(np.sin(t)), float(np.cos(t)))
                ).images
            ),
            truth(pixels, slices=72),
        ),
    )


def _direction(pixels: int) -> tuple[Case, ...]:
    """Which way rows, columns and slices run."""
    roll = np.radians(8.0)
    across, down = (np.cos(roll), np.sin(roll), 0.0), (-np.sin(roll), np.cos(roll), 0.0)
    flat = Stack(pixels, heights(), pixel_mm=(3.0, 2.4))
    return (
        Case(
            "turned-180",
            "Rows and columns turned by 180 degrees",
            saving(Stack(pixels, heights(), row=(-1.0, 0.0, 0.0), column=(0.0, -1.0, 0.0)).images),
            truth(pixels),
            "wasserth/TotalSegmentator/31",
        ),
        Case(
            "turned-90",
            "Rows run down the patient's back",
            saving(Stack(pixels, heights(), row=(0.0, 1.0, 0.0), column=(-1.0, 0.0, 0.0)).images),
            truth(pixels),
        ),
        Case(
            "feet-first",
            "Feet first, slices from head to feet, rows from left to right",
            saving(
                lambda: Stack(pixels, heights()[::-1], row=(-1.0, 0.0, 0.0)).images(PatientPosition="FFS")
            ),
            truth(pixels),
            "rordenlab/dcm2niix/1015",
        ),
        Case(
            "rolled",
            "Patient rolled by 8 degrees: rows and columns oblique in the slice",
            saving(Stack(pixels, heights(), row=across, column=down).images),
            truth(pixels),
        ),
        Case(
            "noisy-orientation",
            "ImageOrientationPatient off by 1e-4 from slice to slice",
            saving(lambda: _noisy(Stack(pixels, heights()).images())),
            truth(pixels),
            "ad12/DOSMA/24",
        ),
        Case(
            "flat-pixels",
            "Pixels of 3.0 x 2.4 mm",
            saving(flat.images),
            Truth(spacing_mm=(STEP_MM, 3.0, 2.4), slices=SLICES),
        ),
        Case(
            "upside-down",
            "Exported with the sign of z lost: head and feet exchanged",
            saving(lambda: Stack(pixels, heights()).images(Scene(is_upside_down=True))),
            truth(pixels, scenes=(Scene(is_upside_down=True),), remarks=("upside-down",)),
            "rordenlab/dcm2niix/134",
        ),
    )


def _numbered(images: Images) -> Images:
    """Number images in an order that is not theirs."""
    for image, number in zip(images, np.random.default_rng(5).permutation(len(images)), strict=True):
        image.InstanceNumber = str(number + 1)
    return images


def _misplaced(images: Images) -> Images:
    """State slice locations in an order that is not theirs, and none for every fifth."""
    places = [image.SliceLocation for image in images]
    for k, (image, n) in enumerate(
        zip(images, np.random.default_rng(6).permutation(len(images)), strict=True)
    ):
        image.SliceLocation = None if k % 5 == 0 else places[n]
    return images


def _without(images: Images, *gone: int) -> Images:
    """Leave images out."""
    return [image for number, image in enumerate(images) if number not in gone]


def _copies(images: Images) -> Images:
    """Give images new identities."""
    for image in images:
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid("copy", image.SOPInstanceUID)
    return images


def _tilted(pixels: int, degrees: float, **directions: Sequence[float]) -> Images:
    """Return slices of a tilted gantry; the table moves along the patient."""
    stack = Stack(pixels, heights(), tilt_deg=degrees, **directions)  # type: ignore[arg-type]
    return stack.images(GantryDetectorTilt=decimal(-degrees))


def _noisy(images: Images) -> Images:
    """Disturb the orientation of each slice; the pixels stay."""
    rng = np.random.default_rng(8)
    for image in images:
        noise = rng.uniform(-_NOISE, _NOISE, 6)
        image.ImageOrientationPatient = [decimal(v) for v in np.array([1, 0, 0, 0, 1, 0]) + noise]
    return images
