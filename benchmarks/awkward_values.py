# SPDX-License-Identifier: Apache-2.0
"""Awkward values: rescaling, padding, bits that are not stored, pictures in place of HU."""

import numpy as np
from awkward_dicom import Images, Stack, decimal, heights, saving, set_hu, truth
from awkward_phantom import Case, Refusal, Scene, Truth
from pydicom.dataset import Dataset

__all__ = ["rescaled", "value_cases"]

_CIRCLE_MM = 152.0  # a field of view that cuts the arms off


def value_cases(pixels: int) -> tuple[Case, ...]:
    """Return the cases with slices of this many rows and columns."""
    stack = Stack(pixels, heights())
    metal = Scene(has_metal=True)
    unsigned = {"PixelRepresentation": 0, "RescaleIntercept": "-1024"}
    twelve = {"BitsStored": 12, "HighBit": 11}
    padded = truth(pixels, field_mm=_CIRCLE_MM)
    return (
        Case(
            "rescale-per-slice",
            "Slope and intercept differ from slice to slice",
            saving(lambda: rescaled(stack)),
            truth(pixels),
            "notmatthancock/pylidc/32",
        ),
        Case(
            "metal",
            "Unsigned, an implant of 40,000 HU",
            saving(lambda: stack.images(metal, PixelRepresentation=0, RescaleIntercept="-8192")),
            truth(pixels, scenes=(metal,)),
            "icometrix/dicom2nifti/144",
        ),
        Case(
            "padding",
            "-3024 HU outside the circle, which cuts the body; PixelPaddingValue has the wrong sign",
            saving(lambda: _padded(stack.images(RescaleIntercept="-1024"))),
            padded,
            "Enet4/dicom-rs/460",
        ),
        Case(
            "padding-and-tilt",
            "The same with a gantry tilted by 10 degrees",
            saving(lambda: _padded(Stack(pixels, heights(), tilt_deg=10.0).images(RescaleIntercept="-1024"))),
            Truth(remarks=("tilt-corrected",), lesion_share=0.03, field_mm=_CIRCLE_MM),
            "rordenlab/dcm2niix/262",
        ),
        Case(
            "overlay-bits",
            "12 bits stored, an overlay in bit 15",
            saving(lambda: _overlaid(stack.images(**unsigned, **twelve))),
            truth(pixels),
            "pydicom/pydicom/2260",
        ),
        Case(
            "no-sign-extension",
            "12 bits signed, the upper four bits zero",
            saving(lambda: _narrowed(stack.images(**twelve))),
            truth(pixels),
            "pydicom/pydicom/2066",
        ),
        Case(
            "monochrome1",
            "MONOCHROME1 for display, values are HU",
            saving(lambda: stack.images(PhotometricInterpretation="MONOCHROME1")),
            truth(pixels),
            "Slicer/Slicer/6773",
        ),
        Case(
            "monochrome1-inverted",
            "MONOCHROME1, and the stored values are inverted",
            saving(lambda: _inverted(stack.images(**unsigned, **twelve))),
            Refusal(("ct-not-hu",)),
        ),
        Case(
            "eight-bit",
            "An export to 8 bits in a lung window, with modality CT",
            saving(lambda: _pictures(stack.images(RescaleSlope=None, RescaleIntercept=None))),
            Refusal(("ct-not-hu",), is_for_chests=True),
            "booz-allen-hamilton/DSB3Tutorial/6",
        ),
        Case(
            "no-rescale",
            "RescaleSlope and RescaleIntercept lost, values from 0 on",
            saving(lambda: _unscaled(stack.images(**unsigned))),
            Refusal(("ct-not-hu",), is_for_chests=True),
            "JoHof/lungmask/117",
        ),
    )


def _stored(image: Dataset) -> np.ndarray:
    """Return an uncompressed image's stored values."""
    kind = "<i2" if image.PixelRepresentation else "<u2"
    return np.frombuffer(image.PixelData, kind).reshape(image.Rows, image.Columns)


def rescaled(stack: Stack) -> Images:
    """Give each slice its own slope and intercept."""
    images = stack.images()
    for number, image in enumerate(images):
        hu = _stored(image)
        image.RescaleSlope, image.RescaleIntercept = (
            decimal(0.5 + number / 100.0),
            decimal(-1024.4 - 3 * number),
        )
        set_hu(image, hu)
    return images


def _padded(images: Images) -> Images:
    """Put -3024 HU outside a circle."""
    for image in images:
        stored = _stored(image).copy()
        rows, columns = (np.arange(n) - (n - 1) / 2.0 for n in stored.shape)
        y, x = rows[:, None] * image.PixelSpacing[0], columns[None, :] * image.PixelSpacing[1]
        stored[np.hypot(y, x) > _CIRCLE_MM] = -2000
        image.PixelData = stored.tobytes()
        image.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    return images


def _overlaid(images: Images) -> Images:
    """Draw a frame into the highest bit."""
    for image in images:
        stored = _stored(image).copy()
        stored[20:-20:7, 20:-20] |= 1 << 15
        image.PixelData = stored.tobytes()
        image.add_new(0x60000010, "US", image.Rows)
        image.add_new(0x60000011, "US", image.Columns)
        image.add_new(0x60000040, "CS", "G")
        image.add_new(0x60000050, "SS", [1, 1])
        image.add_new(0x60000100, "US", 16)
        image.add_new(0x60000102, "US", 15)
    return images


def _narrowed(images: Images) -> Images:
    """Clear the bits that are not stored."""
    for image in images:
        image.PixelData = (_stored(image) & 0x0FFF).astype("<i2").tobytes()
    return images


def _inverted(images: Images) -> Images:
    """Store the complement of each value."""
    for image in images:
        image.PhotometricInterpretation = "MONOCHROME1"
        image.PixelData = (4095 - _stored(image)).astype("<u2").tobytes()
    return images


def _pictures(images: Images) -> Images:
    """Store gray levels of a lung window."""
    for image in images:
        gray = np.clip((_stored(image) + 1350.0) / 1500.0 * 255.0, 0, 255).astype(np.uint8)
        image.BitsAllocated = image.BitsStored = 8
        image.HighBit, image.PixelRepresentation = 7, 0
        image.PixelData = gray.tobytes()
    return images


def _unscaled(images: Images) -> Images:
    """Take the rescale away."""
    for image in images:
        del image.RescaleSlope, image.RescaleIntercept, image.RescaleType
    return images
