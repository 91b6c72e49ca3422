# SPDX-License-Identifier: Apache-2.0
"""Pixel data without what is no pixel: comments in compressed images, spare bits, bytes after the image.

Frames keep their encoding and their length. What may hold text is overwritten with zeros in place, so that no
offset changes. Sources: ISO 10918-1 annex B and 14495-1 annex C (JPEG, JPEG-LS), 15444-1 annex A (JPEG 2000).
"""

from collections.abc import Callable

import numpy as np
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ucadi.errors import DicomError
from ucadi.io.streams import MAX_VOXELS

__all__ = ["blank_jpeg", "blank_jpeg2000", "set_clean_pixels"]

_SOI, _EOI, _SOS, _COM = 0xD8, 0xD9, 0xDA, 0xFE
_APP = range(0xE0, 0xF0)
_SOC, _SOT, _SOD, _J2K_COM, _EOC = 0xFF4F, 0xFF90, 0xFF93, 0xFF64, 0xFFD9
_END = _EOC.to_bytes(2, "big")
_NO_COMMENT = "a frame is not a stream of its transfer syntax"


def set_clean_pixels(source: Dataset, target: Dataset) -> None:
    """Give a cleaned header the pixels of its source.

    Args:
        source: The image with its pixels; it may name embedded overlays.
        target: Its cleaned header with the file meta information; gets ``PixelData``.

    Raises:
        DicomError: ``deid-encoding`` for an encoding whose comments cannot be found, ``deid-pixel-bits`` when
            bits outside of the values are in use, ``dicom-undecodable`` when there are too few bytes, or too
            many pixels.
        ValueError: If the encapsulation is damaged (one of `ucadi.io.files.READ_ERRORS`).
    """
    if int(target.get("NumberOfFrames") or 1) * target.Rows * target.Columns > MAX_VOXELS:
        raise DicomError("dicom-undecodable", "The header states more pixels than any chest CT has.")
    syntax = source.file_meta.TransferSyntaxUID
    has_overlay = any(0x6000 <= tag.group <= 0x60FF for tag in source.keys())  # noqa: SIM118 (tags, not elements)
    if not syntax.is_encapsulated:
        target.PixelData = _native(
            source, target, is_big_endian=not syntax.is_little_endian, may_clear=has_overlay
        )
        target["PixelData"].VR = "OB" if target.BitsAllocated <= 8 else "OW"
        return
    blank = _BLANK.get(syntax)
    if blank is None or (has_overlay and target.BitsStored < target.BitsAllocated):
        raise DicomError("deid-encoding", f"The comments of {syntax.name} cannot be cleared.")
    count = int(target.get("NumberOfFrames") or 1)
    frames = [blank(frame) for frame in generate_frames(source.PixelData, number_of_frames=count)]
    if syntax == RLELossless:
        _encode_again(target, frames)
    else:
        target.PixelData = encapsulate(frames)
    target["PixelData"].VR = "OB"
    target["PixelData"].is_undefined_length = True


def _native(source: Dataset, target: Dataset, *, is_big_endian: bool, may_clear: bool) -> bytes:
    """Return uncompressed pixels, cut to the size that the header states."""
    samples = int(target.get("NumberOfFrames") or 1) * target.Rows * target.Columns * target.SamplesPerPixel
    size = samples * target.BitsAllocated // 8
    data = bytes(source.PixelData[:size])
    if len(data) < size:
        raise DicomError("dicom-undecodable", f"There are {len(data)} bytes of pixels instead of {size}.")
    if target.BitsAllocated == 16:
        kind = np.dtype(">u2" if is_big_endian else "<u2")
        data = _cleared(np.frombuffer(data, kind), target, may_clear=may_clear).tobytes()
    return data + b"\0" * (len(data) % 2)


def _cleared(words: np.ndarray, header: Dataset, *, may_clear: bool) -> np.ndarray:
    """Return 16-bit words without overlays in the bits that the values leave free."""
    low = header.HighBit + 1 - header.BitsStored
    mask = ((1 << header.BitsStored) - 1) << low
    if mask == 0xFFFF:
        return words
    spare = words & np.uint16(~mask & 0xFFFF)
    sign = np.zeros_like(words)
    if header.PixelRepresentation and low == 0:
        sign[(words >> np.uint16(header.HighBit)) & 1 == 1] = ~mask & 0xFFFF
    is_plain = (spare == 0) | (spare == sign)
    if "PixelPaddingValue" in header:
        is_plain |= words == (int(header.PixelPaddingValue) & 0xFFFF)  # often outside of the stored range
    if is_plain.all():
        return words
    if not may_clear:
        raise DicomError(
            "deid-pixel-bits", f"Bits outside of the {header.BitsStored} stored ones are in use."
        )
    return np.asarray(np.where(is_plain, words, (words & np.uint16(mask)) | sign), dtype=words.dtype)


def _encode_again(target: Dataset, frames: list[bytes]) -> None:
    """Decode run lengths and encode them again: what a frame holds beside its runs is gone."""
    target.PixelData = encapsulate(frames)
    target["PixelData"].is_undefined_length = True
    target.decompress(generate_instance_uid=False)
    target.compress(RLELossless, generate_instance_uid=False)


def blank_jpeg(frame: bytes) -> bytes:
    """Return a JPEG or JPEG-LS stream whose comments and application segments are zeros.

    Raises:
        DicomError: ``deid-encoding`` if it is no such stream.
    """
    out, at = bytearray(frame), 2
    if frame[:2] != bytes([0xFF, _SOI]):
        raise DicomError("deid-encoding", f"Without its first marker, {_NO_COMMENT}.")
    while at + 4 <= len(out):
        if out[at] != 0xFF:
            raise DicomError("deid-encoding", f"Without a marker where one is due, {_NO_COMMENT}.")
        marker = out[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == _EOI:
            break
        length = int.from_bytes(out[at + 2 : at + 4], "big")
        if length < 2:
            raise DicomError("deid-encoding", f"With a segment of {length} bytes, {_NO_COMMENT}.")
        if marker == _COM or marker in _APP:
            _zero(out, at + 4, at + 2 + length)
        at += 2 + length
        if marker == _SOS:
            at = _end_of_scan(out, at)
    _zero(out, at + 2, len(out))
    return bytes(out)


def _end_of_scan(stream: bytearray, start: int) -> int:
    """Return where the next marker after entropy-coded data is; restarts belong to the data."""
    at = stream.find(0xFF, start)
    while 0 <= at < len(stream) - 1:
        follower = stream[at + 1]
        # In JPEG-LS any byte below 0x80 after 0xFF is data, in JPEG only 0.
        if follower >= 0x80 and not 0xD0 <= follower <= 0xD7:
            return at
        at = stream.find(0xFF, at + 1)
    return len(stream)


def blank_jpeg2000(frame: bytes) -> bytes:
    """Return a JPEG 2000 codestream whose comments are zeros.

    Raises:
        DicomError: ``deid-encoding`` if it is no codestream, for instance a JP2 file with boxes.
    """
    out, at = bytearray(frame), 2
    if int.from_bytes(out[:2], "big") != _SOC:
        raise DicomError("deid-encoding", f"Without its first marker, {_NO_COMMENT}.")
    tile_end = 0
    while at + 4 <= len(out):
        marker = int.from_bytes(out[at : at + 2], "big")
        if marker == _EOC:
            break
        if marker == _SOD:
            # Coded data hold no marker, so the first end after them is the end.
            tile_end = tile_end or out.find(_END, at)
            if tile_end <= at:
                raise DicomError("deid-encoding", f"With a tile that ends before it begins, {_NO_COMMENT}.")
            at = tile_end
            continue
        length = int.from_bytes(out[at + 2 : at + 4], "big")
        if marker < 0xFF00 or length < 2:
            raise DicomError("deid-encoding", f"Without a marker where one is due, {_NO_COMMENT}.")
        if marker == _SOT:
            size = int.from_bytes(out[at + 6 : at + 10], "big")
            tile_end = at + size if size else 0  # 0: up to the end of the stream
        if marker == _J2K_COM:
            _zero(out, at + 6, at + 2 + length)  # the two bytes before say what kind of comment it is
        at += 2 + length
    _zero(out, at + 2, len(out))
    return bytes(out)


def _zero(stream: bytearray, start: int, end: int) -> None:
    """Overwrite a part, as far as it exists."""
    start, end = min(start, len(stream)), min(end, len(stream))
    stream[start:end] = bytes(max(0, end - start))


_BLANK: dict[str, Callable[[bytes], bytes]] = {
    **dict.fromkeys(
        (
            JPEGBaseline8Bit,
            JPEGExtended12Bit,
            JPEGLossless,
            JPEGLosslessSV1,
            JPEGLSLossless,
            JPEGLSNearLossless,
        ),
        blank_jpeg,
    ),
    **dict.fromkeys((JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), blank_jpeg2000),
    RLELossless: bytes,
}
