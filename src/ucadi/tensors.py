# SPDX-License-Identifier: Apache-2.0
"""Named arrays as one flat buffer: the safetensors layout, written in one copy and read in none.

Layout: 8 bytes little-endian header length, a JSON header (names, types, shapes, offsets and string
metadata), then the arrays' bytes in order. The safetensors library reads what `pack` writes and `unpack`
reads what the library writes; ours fills one buffer directly and returns views, which is several times
faster for messages (``benchmarks/messages.py``). Nothing is ever unpickled.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Tensors", "hash_tensors", "pack", "unpack"]

Tensors = Mapping[str, np.ndarray]
"""Arrays by name, in manifest order."""

_CODE_BY_TYPE = {
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "uint8": "U8",
    "bool": "BOOL",
    "uint32": "U32",
    "uint16": "U16",
}
_TYPE_BY_CODE = {code: np.dtype(name).newbyteorder("<") for name, code in _CODE_BY_TYPE.items()}
_MAX_HEADER_BYTES = 16 * 2**20
_METADATA = "__metadata__"


def pack(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytearray:
    """Write arrays and string metadata into one buffer.

    Args:
        tensors: C-contiguous or not; types float32/64, int16/32/64, uint8/16/32 or bool.
        metadata: Short strings, for example one JSON document.

    Raises:
        ValueError: If an array has another type, or the name that the format keeps for the metadata.
    """
    if _METADATA in tensors:
        raise ValueError(f"{_METADATA} is not a tensor's name")
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name, array in tensors.items():
        code = _CODE_BY_TYPE.get(array.dtype.name)
        if code is None:
            raise ValueError(f"{name}: type {array.dtype} has no place in the wire format")
        header[name] = {
            "dtype": code,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays start at a multiple of 8 bytes
    start = 8 + len(text)
    buffer = bytearray(start + offset)
    buffer[:8] = len(text).to_bytes(8, "little")
    buffer[8:start] = text
    for name, array in tensors.items():
        low, _ = header[name]["data_offsets"]
        kind = _TYPE_BY_CODE[header[name]["dtype"]]
        target = np.frombuffer(buffer, kind, count=array.size, offset=start + low)
        np.copyto(target.reshape(array.shape), array)
    return buffer


def unpack(buffer: bytes | bytearray | memoryview) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read arrays and metadata; the arrays are read-only views into the buffer.

    Raises:
        ValueError: If the buffer is cut short, its header is malformed or names something twice, or the
            arrays do not fill the rest one after the other.
    """
    view = memoryview(buffer).cast("B").toreadonly()
    length = int.from_bytes(view[:8], "little") if len(view) >= 8 else -1
    if not 2 <= length <= min(_MAX_HEADER_BYTES, len(view) - 8):
        raise ValueError(f"not a tensor buffer: {len(view)} bytes with a header of {length}")
    body = view[8 + length :]
    try:
        header = json.loads(bytes(view[8 : 8 + length]), object_pairs_hook=_unique)
        metadata = header.pop(_METADATA, {})
        if not all(isinstance(word, str) for pair in metadata.items() for word in pair):
            raise TypeError("metadata must be strings")
        arrays = {name: _view(body, entry) for name, entry in header.items()}
        "".join(header).encode()  # a name with half a surrogate could be neither hashed nor logged
        _require_no_gaps([entry["data_offsets"] for entry in header.values()], len(body))
    except (TypeError, KeyError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"not a tensor buffer: {error}") from error
    return arrays, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; two readers may take different ones of two values with the same name."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name appears twice")
    return document


def _require_no_gaps(offsets: list[list[int]], size: int) -> None:
    """Check that the arrays, sorted by place, cover every byte once."""
    end = 0
    for low, high in sorted(offsets):
        if low != end:
            raise ValueError("the arrays overlap or leave gaps")
        end = high
    if end != size:
        raise ValueError("the arrays do not fill the buffer")


def _view(body: memoryview, entry: dict[str, Any]) -> np.ndarray:
    """Return one array as a view, after checking that type, shape and offsets agree."""
    kind = _TYPE_BY_CODE[entry["dtype"]]
    shape = tuple(entry["shape"])
    low, high = entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, low, high)) or high > len(body):
        raise ValueError("sizes and offsets must be whole numbers inside the buffer")
    size = int(np.prod(shape, dtype=object)) if shape else 1
    if size * kind.itemsize != high - low:
        raise ValueError("an array's shape does not match its bytes")
    return np.frombuffer(body[low:high], kind).reshape(shape)


def hash_tensors(tensors: Tensors) -> str:
    """Return the SHA-256 over names, types, shapes and values, in order: the model's identity."""
    digest = hashlib.sha256()
    for name, array in tensors.items():
        digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
