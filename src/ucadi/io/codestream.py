# SPDX-License-Identifier: Apache-2.0
"""The size of a picture that a compressed frame states itself.

A decoder believes it, so a small file could ask for any amount of memory, and a picture of another size than
the header's would be cut into wrong rows.
"""

import struct

__all__ = ["coded_size"]

_JPEG_2000 = b"\xff\x4f\xff\x51"  # start of codestream, then the size
_JPEG = b"\xff\xd8"
_FRAME_MARKERS = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG-LS, and JPEG without its tables
_BARE_MARKERS = {0x01, *range(0xD0, 0xD8)}  # no length follows


def coded_size(coded: bytes) -> tuple[int, int] | None:
    """Return rows and columns of a JPEG, JPEG-LS or JPEG 2000 picture; None for other formats.

    Raises:
        ValueError: If it is one of them but its start is damaged.
    """
    try:
        if coded.startswith(_JPEG):
            return _jpeg_size(coded)
        start = coded.find(_JPEG_2000)  # at 0, or inside the boxes of a JP2 file
        if start < 0:
            return None
        right, bottom, left, top = struct.unpack_from(">4I", coded, start + 8)
    except (struct.error, IndexError) as error:
        raise ValueError("damaged compressed picture") from error
    return bottom - top, right - left


def _jpeg_size(coded: bytes) -> tuple[int, int]:
    """Walk over a JPEG's segments to the frame's start."""
    position = 2
    while True:
        if coded[position] != 0xFF:
            raise ValueError("damaged compressed picture")
        marker = coded[position + 1]
        if marker in _FRAME_MARKERS:
            rows, columns = struct.unpack_from(">2H", coded, position + 5)
            return rows, columns
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        else:
            position += 2 + struct.unpack_from(">H", coded, position + 2)[0]
