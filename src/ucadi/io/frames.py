# SPDX-License-Identifier: Apache-2.0
"""One frame's values out of a DICOM file, in any transfer syntax.

Uncompressed pixels of 16 bits are read from the file into the caller's memory. All others go through pydicom,
compressed ones with one decoder for each syntax, the fastest of those that decode the test pictures right:
pylibjpeg-rle for RLE, pyjpegls for JPEG-LS, GDCM for JPEG and JPEG 2000. JPEG of 12 bits with loss is given
to GDCM directly, since pydicom holds it back.
"""

import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

import gdcm
import numpy as np
from jaxtyping import Int16, Integer
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from ucadi.io.codestream import coded_size
from ucadi.io.elements import Elements, inflated, tags_of
from ucadi.io.files import READ_ERRORS

__all__ = ["PIXEL_TAGS", "PixelLayout", "pixel_layout", "plain_file", "read_frame"]

PIXEL_TAGS = tags_of(
    (
        "BitsAllocated",
        "BitsStored",
        "Columns",
        "NumberOfFrames",
        "PhotometricInterpretation",
        "PixelRepresentation",
        "Rows",
        "SamplesPerPixel",
    )
)
"""What `pixel_layout` reads."""

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_NATIVE = {
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
}
_PLUGINS: dict[str, str] = {
    RLELossless: "pylibjpeg",
    **dict.fromkeys((*JPEGTransferSyntaxes, *JPEG2000TransferSyntaxes), "gdcm"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls"),
}


@dataclass(frozen=True)
class PixelLayout:
    """How a file's pixels are stored: one gray sample each.

    Attributes:
        syntax: Transfer syntax UID.
        offset: Where they begin.
        length: Number of their bytes; None when not stated.
        size: Rows and columns.
        frames: Number of frames.
        bits_allocated: Of one value.
        bits_stored: How many of these count.
        is_signed: Whether values are in two's complement.
        photometric: MONOCHROME2, or MONOCHROME1: low values are to be shown white. That is an order to the
            screen, applied after the rescale (PS3.3 C.7.6.3.1.2), so HU stay slope * stored + intercept. An
            exporter that inverted the numbers themselves (stored became lowest + highest possible - stored)
            leaves no other sign in the header; such values are no HU, which the check of the content finds.
    """

    syntax: str
    offset: int
    length: int | None
    size: tuple[int, int]
    frames: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    photometric: str

    @property
    def is_native(self) -> bool:
        """Whether pixels are not compressed."""
        return self.syntax in _NATIVE


def pixel_layout(elements: Elements) -> PixelLayout | None:
    """Return how a file's pixels are stored; None for no pixels, color, and what contradicts itself.

    Args:
        elements: With the elements of `PIXEL_TAGS`.
    """
    get = elements.get
    try:
        layout = PixelLayout(
            syntax=elements.syntax,
            offset=elements.offset,
            length=elements.length,
            size=(int(get("Rows")), int(get("Columns"))),
            frames=int(get("NumberOfFrames") or 1),
            bits_allocated=int(get("BitsAllocated")),
            bits_stored=int(get("BitsStored")),
            is_signed=bool((0, 1).index(get("PixelRepresentation"))),
            photometric=_GRAY[_GRAY.index(get("PhotometricInterpretation"))],
        )
        samples = int(get("SamplesPerPixel") or 1)
    except READ_ERRORS:
        return None
    if samples != 1 or layout.offset == 0 or not 1 <= layout.bits_stored <= layout.bits_allocated:
        return None
    if not layout.is_native:
        return layout if layout.length is None else None
    pixel_bytes = layout.bits_allocated // 8
    spare = (layout.length or 0) - layout.frames * layout.size[0] * layout.size[1] * pixel_bytes
    # A few bytes of padding do no harm; a row or column of it means that the size is wrong.
    return layout if 0 <= spare < pixel_bytes * min(layout.size) else None


def plain_file(file: BinaryIO, layout: PixelLayout | None) -> BinaryIO:
    """Return the file in which the layout's offset counts: what a deflated one inflates to, or itself.

    Raises:
        Exception: One of `ucadi.io.files.READ_ERRORS` when it cannot be inflated.
    """
    is_deflated = layout is not None and layout.syntax == DeflatedExplicitVRLittleEndian
    return inflated(file) if is_deflated else file


def read_frame(
    file: BinaryIO, layout: PixelLayout, frame: int, buffer: Int16[np.ndarray, "y x"]
) -> Integer[np.ndarray, "y x"]:
    """Return one frame's stored values.

    Args:
        file: From `plain_file`.
        layout: How its pixels are stored.
        frame: From 0.
        buffer: C-contiguous, of the layout's size; values of 16 bits that are not compressed are put into it.

    Raises:
        Exception: One of `ucadi.io.files.READ_ERRORS` when they are damaged or of another size than stated.
    """
    if not 0 <= frame < layout.frames or buffer.shape != layout.size:
        raise ValueError("another number or size of frames than stated")
    if not layout.is_native:
        return _decoded(file, layout, frame)
    if layout.bits_allocated != 16:
        return _unusual(file, layout, frame)
    file.seek(layout.offset + frame * buffer.nbytes)
    if file.readinto(buffer.data.cast("B")) != buffer.nbytes:  # type: ignore[attr-defined]
        raise EOFError("the pixels are cut short")
    if (layout.syntax == ExplicitVRBigEndian) != (sys.byteorder == "big"):
        buffer.byteswap(inplace=True)
    return _only_stored_bits(buffer if layout.is_signed else buffer.view(np.uint16), layout)


def _only_stored_bits(values: Integer[np.ndarray, "y x"], layout: PixelLayout) -> Integer[np.ndarray, "y x"]:
    """Clear the bits that do not count; what they hold is not defined."""
    unused = layout.bits_allocated - layout.bits_stored
    if unused:  # there and back again also extends the sign
        np.left_shift(values, unused, out=values)
        np.right_shift(values, unused, out=values)
    return values


def _unusual(file: BinaryIO, layout: PixelLayout, frame: int) -> Integer[np.ndarray, "y x"]:
    """Read one uncompressed frame of other than 16 bits."""
    if layout.syntax == ExplicitVRBigEndian:
        raise NotImplementedError("bytes of such pixels are swapped in pairs, or not")
    return _with_pydicom(file, layout, frame)


def _decoded(file: BinaryIO, layout: PixelLayout, frame: int) -> Integer[np.ndarray, "y x"]:
    """Decode one frame, after a look at the size that it states itself."""
    file.seek(layout.offset)
    coded = get_frame(file, frame, number_of_frames=layout.frames)
    if coded_size(coded) not in (None, layout.size):
        raise ValueError("the compressed picture has another size than stated")
    if layout.syntax == JPEGExtended12Bit and layout.bits_stored > 8:
        return _with_gdcm(coded, layout)
    return _with_pydicom(file, layout, frame)


def _with_pydicom(file: BinaryIO, layout: PixelLayout, frame: int) -> Integer[np.ndarray, "y x"]:
    """Return one frame's values as pydicom gives them."""
    options: dict[str, Any] = {
        "rows": layout.size[0],
        "columns": layout.size[1],
        "number_of_frames": layout.frames,
        "samples_per_pixel": 1,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_representation": int(layout.is_signed),
        "photometric_interpretation": layout.photometric,
        "pixel_keyword": "PixelData",
    }
    file.seek(layout.offset)
    plugin = _PLUGINS.get(layout.syntax, "")
    decoder = get_decoder(layout.syntax)
    try:
        values, _ = decoder.as_array(file, index=frame, decoding_plugin=plugin, **options)
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # the RLE decoder's, in Rust: no Exception to Python
            raise ValueError("the decoder gave up") from error
        raise
    return np.asarray(values)


def _with_gdcm(coded: bytes, layout: PixelLayout) -> Integer[np.ndarray, "y x"]:
    """Decode a JPEG of up to 16 bits per pixel with loss."""
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(coded)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    picture = gdcm.Image()
    picture.SetNumberOfDimensions(2)
    picture.SetDimensions((layout.size[1], layout.size[0], 1))
    picture.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(layout.photometric)
    picture.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    picture.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(layout.syntax)))
    bits = layout.bits_allocated, layout.bits_stored, layout.bits_stored - 1
    picture.SetPixelFormat(gdcm.PixelFormat(1, *bits, int(layout.is_signed)))
    content = picture.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM gives bytes as text
    values = np.frombuffer(content, "<i2" if layout.is_signed else "<u2").reshape(layout.size)
    return _only_stored_bits(values.copy(), layout)
