# SPDX-License-Identifier: Apache-2.0
"""A loaded CT as bytes, from a process that is not trusted to one that checks what it gets.

One JSON object with everything small, preceded by its length, then the arrays. Nothing is unpickled, and no
size is taken from the sender without a bound.
"""

import json
import math
import struct
import warnings
from collections.abc import Mapping
from io import BufferedIOBase, BytesIO
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.config import IGNORE, settings
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from ucadi.imaging.grid import Grid
from ucadi.imaging.lungs import Lungs
from ucadi.imaging.volume import Volume
from ucadi.io.files import READ_ERRORS
from ucadi.io.headers import Plane
from ucadi.io.reader import LoadedCt
from ucadi.io.report import LoaderReport, Verdict
from ucadi.io.source import SourceInstance, SourceSeries
from ucadi.io.streams import MAX_VOXELS

__all__ = ["receive", "send"]

_LENGTH = struct.Struct(">Q")
_MAX_JSON_BYTES = 64 * 2**20  # 100,000 images of a source at 600 bytes each
_MAX_HEADER_BYTES = 64 * 2**20
_MAX_CHARACTERS = 128  # of a UID, which has 64
_LARGEST_SIDE = 2  # see `Lungs.sides`
_TYPES = ("int16", "float32")


def send(loaded: LoadedCt, file: BufferedIOBase) -> None:
    """Write a loaded CT; of the source's header, elements that cannot be written are left out."""
    document: dict[str, Any] = {"report": loaded.report.to_json(), "volume": None, "source": None}
    parts: list[bytes | memoryview] = []
    if loaded.volume is not None and loaded.lungs is not None:
        document["volume"] = {
            "type": loaded.volume.voxels.dtype.name,
            "shape": loaded.volume.grid.shape,
            "affine_lps": loaded.volume.grid.affine_lps.tolist(),
            "box": [(side.start, side.stop) for side in loaded.lungs.box],
        }
        arrays = (loaded.volume.voxels, loaded.lungs.sides)
        parts += [np.ascontiguousarray(array).data.cast("B") for array in arrays]
    if loaded.source is not None:
        header = _header_to_bytes(loaded.source.header)
        document["source"] = {
            "header_bytes": len(header),
            "size": loaded.source.size,
            "instances": [_instance_to_json(each) for each in loaded.source.instances],
        }
        parts.append(header)
    text = json.dumps(document, allow_nan=False).encode()
    for part in (_LENGTH.pack(len(text)), text, *parts):
        file.write(part)
    file.flush()


def receive(file: BufferedIOBase) -> LoadedCt:
    """Read and check what `send` wrote.

    Raises:
        EOFError: If the sender stopped before the end.
        ValueError: If it is not what a sender writes, or beyond a bound.
    """
    try:
        size = _LENGTH.unpack(_take(file, _LENGTH.size))[0]
        if size > _MAX_JSON_BYTES:
            raise ValueError("too long")
        document = json.loads(_take(file, size), parse_constant=_refuse_constant)
        report = LoaderReport.from_json(document["report"])
        stated, source = document["volume"], document["source"]
        if (stated is None) is not (report.verdict is Verdict.REFUSED):
            raise ValueError("a volume of a refused input, or none of another")
        volume, lungs = (None, None) if stated is None else _receive_volume(stated, file)
        return LoadedCt(volume, lungs, report, None if source is None else _receive_source(source, file))
    except EOFError:
        raise
    except READ_ERRORS as error:
        raise ValueError(f"no loaded CT ({type(error).__name__})") from error


def _receive_volume(stated: Mapping[str, Any], file: BufferedIOBase) -> tuple[Volume, Lungs]:
    """Read voxels and lungs."""
    shape = _whole_numbers(stated["shape"], 3)
    if stated["type"] not in _TYPES or math.prod(shape) > MAX_VOXELS:
        raise ValueError("no volume")
    grid = Grid((shape[0], shape[1], shape[2]), np.array(stated["affine_lps"], dtype=np.float64))
    bounds = [_whole_numbers(pair, 2) for pair in stated["box"]]
    if len(bounds) != 3 or any(not 0 <= a < b <= n for (a, b), n in zip(bounds, shape, strict=True)):
        raise ValueError("no box")
    z, y, x = (slice(start, stop) for start, stop in bounds)
    voxels: np.ndarray = np.empty(grid.shape, stated["type"])
    sides = np.empty([stop - start for start, stop in bounds], np.uint8)
    for array in (voxels, sides):
        _fill(file, array.data.cast("B"))
    if sides.max() > _LARGEST_SIDE or (voxels.dtype.kind == "f" and not np.isfinite(voxels).all()):
        raise ValueError("a value that has no meaning")
    return Volume(voxels, grid), Lungs(sides, (z, y, x), grid)


def _receive_source(stated: Mapping[str, Any], file: BufferedIOBase) -> SourceSeries:
    """Read what identifies the source."""
    (size,) = _whole_numbers([stated["header_bytes"]], 1)
    if size > _MAX_HEADER_BYTES:
        raise ValueError("too long a header")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values, which are as they are in the source
        header = read_dataset(BytesIO(_take(file, size)), is_implicit_VR=False, is_little_endian=True)
    rows, columns = _whole_numbers(stated["size"], 2)
    return SourceSeries(header, tuple(map(_instance_from_json, stated["instances"])), (rows, columns))


def _instance_to_json(instance: SourceInstance) -> list[Any]:
    """Return one image of a source as a list."""
    plane = instance.plane
    vectors = [vector.tolist() for vector in (plane.position_mm, plane.row, plane.column)]
    return [str(instance.sop_instance_uid), instance.frame, *vectors, plane.pixel_mm]


def _instance_from_json(document: Any) -> SourceInstance:
    """Return one image of a source."""
    uid, frame, *vectors = document
    if not isinstance(uid, str) or len(uid) > _MAX_CHARACTERS or len(vectors) != 4:
        raise ValueError("no instance")
    position, row, column, pixel = (np.array(vector, dtype=np.float64) for vector in vectors)
    if any(v.shape != (3,) or not np.isfinite(v).all() for v in (position, row, column)):
        raise ValueError("no plane")
    if pixel.shape != (2,) or not (np.isfinite(pixel).all() and (pixel > 0).all()):
        raise ValueError("no pixel")
    number = None if frame is None else _whole_numbers([frame], 1)[0]
    return SourceInstance(uid, number, Plane(position, row, column, (float(pixel[0]), float(pixel[1]))))


def _header_to_bytes(header: Dataset) -> bytes:
    """Return a header as explicit little endian."""
    before = settings.writing_validation_mode
    settings.writing_validation_mode = IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return _encode(header)
            except READ_ERRORS:
                return _encode(_writable(header))
    finally:
        settings.writing_validation_mode = before


def _writable(header: Dataset) -> Dataset:
    """Return the elements of a header that can be written alone."""
    kept = Dataset()
    for tag in header.keys():  # noqa: SIM118 - a dataset's own iterator decodes its elements
        single = Dataset()
        try:
            single[tag] = header[tag]
            _encode(single)
        except READ_ERRORS:
            continue
        kept[tag] = single[tag]
    return kept


def _encode(dataset: Dataset) -> bytes:
    """Return a dataset as explicit little endian."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


def _take(file: BufferedIOBase, size: int) -> bytearray:
    """Read exactly as many bytes as asked for; memory is taken as they arrive."""
    data = bytearray()
    while len(data) < size:
        piece = file.read(min(size - len(data), 2**20))
        if not piece:
            raise EOFError("the sender stopped")
        data += piece
    return data


def _fill(file: BufferedIOBase, buffer: memoryview) -> None:
    """Read exactly as many bytes as a buffer has."""
    done = 0
    while done < len(buffer):
        passed = file.readinto(buffer[done:])
        if not passed:
            raise EOFError("the sender stopped")
        done += passed


def _whole_numbers(values: Any, count: int) -> list[int]:
    """Return a given number of counts."""
    if len(values) != count or any(type(value) is not int or not 0 <= value < 2**40 for value in values):
        raise ValueError("no counts")
    return list(values)


def _refuse_constant(name: str) -> float:
    """Refuse NaN and infinities, which JSON does not have."""
    raise ValueError(name)
