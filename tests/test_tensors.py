# SPDX-License-Identifier: Apache-2.0
import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ucadi.tensors import hash_tensors, pack, unpack

DTYPES = ["float32", "float64", "int64", "int32", "int16", "uint8", "bool", "uint32", "uint16"]

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda n: n != "__metadata__")
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
named_arrays = st.dictionaries(names, arrays, max_size=5)
metadata = st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=3)


def raw(header: object, body: bytes = b"") -> bytes:
    """A buffer with a header of our own making."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, array in right.items():
        assert left[name].dtype == array.dtype
        assert left[name].shape == array.shape
        assert left[name].tobytes() == array.tobytes()  # bytes: NaN equals itself


@given(named_arrays, metadata)
def test_what_is_packed_is_unpacked_in_the_same_order(tensors, words):
    read, read_words = unpack(pack(tensors, words))
    assert_same(read, tensors)
    assert list(read) == list(tensors)
    assert read_words == words


@given(named_arrays, metadata)
def test_the_safetensors_library_reads_what_pack_writes(tensors, words):
    assert_same(safetensors.numpy.load(bytes(pack(tensors, words))), tensors)


@given(named_arrays, metadata)
def test_unpack_reads_what_the_safetensors_library_writes(tensors, words):
    read, read_words = unpack(safetensors.numpy.save(tensors, words or None))
    assert_same(read, tensors)
    assert read_words == words


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.int16)[::-2],
        np.broadcast_to(np.float32(2.5), (2, 3)),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(5, dtype=">f4"),
        np.arange(5, dtype=">i8"),
    ],
    ids=["transposed", "reversed", "broadcast", "fortran", "big-endian float", "big-endian int"],
)
def test_memory_layout_and_byte_order_change_neither_the_values_nor_the_hash(array):
    read = unpack(pack({"a": array}))[0]["a"]
    np.testing.assert_array_equal(read, array)
    assert hash_tensors({"a": array}) == hash_tensors({"a": read})


def test_unpacked_arrays_are_read_only_views_of_the_buffer():
    buffer = pack({"a": np.zeros(3, np.float32)})
    view = unpack(buffer)[0]["a"]
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    buffer[-4:] = np.float32(7).tobytes()
    assert view[2] == 7


@pytest.mark.parametrize(
    "dtype", ["float16", "complex64", "uint64", "int8", "object", "<U3", "datetime64[s]"]
)
def test_a_type_without_a_place_in_the_format_is_refused(dtype):
    with pytest.raises(ValueError, match="a: type"):
        pack({"a": np.zeros(2, dtype)})


def test_the_name_of_the_metadata_is_not_a_tensors_name():
    with pytest.raises(ValueError, match="__metadata__"):
        pack({"__metadata__": np.zeros(2)})


@given(named_arrays, st.data())
@example({"a": np.zeros((2, 2), np.float32)}, None)
def test_a_changed_buffer_is_read_or_refused_with_a_value_error_only(tensors, data):
    buffer = pack(tensors, {"note": "x"})
    if data is not None:
        length = int.from_bytes(buffer[:8], "little")
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, min(len(buffer), 8 + length) - 1))  # the header decides all
            buffer[place] = data.draw(st.integers(0, 255))
        buffer = buffer[: data.draw(st.integers(0, len(buffer)))] + data.draw(st.binary(max_size=8))
    try:
        read, words = unpack(buffer)
    except ValueError:
        return
    hash_tensors(read)  # whatever is accepted can be hashed and written again
    assert_same(unpack(pack(read, words))[0], read)


@given(named_arrays, st.integers(1, 40))
def test_a_buffer_cut_short_is_refused(tensors, missing):
    buffer = pack(tensors, {"note": "x"})
    with pytest.raises(ValueError, match="not a tensor buffer"):
        unpack(buffer[: max(0, len(buffer) - missing)])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_with_a_value_error_only(junk):
    for buffer in (junk, raw(junk)):
        try:
            unpack(buffer)
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"a": entry(), "b": entry()}, 16),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 16),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, 20),
        ({"a": entry(offsets=(4, 12))}, 12),
        ({"a": entry()}, 12),
        ({"a": entry()}, 4),
        ({"a": entry(offsets=(8, 0))}, 8),
        ({"a": entry(offsets=(-8, 0))}, 8),
        ({"a": entry(offsets=(0, 2**64))}, 8),
        ({"a": entry(offsets=(0.0, 8.0))}, 8),
        ({"a": entry(offsets=(False, 8))}, 8),
        ({"a": entry(offsets=(0, 8, 16))}, 8),
        ({"a": entry(offsets="08")}, 8),
        ({"a": entry(shape=(-2,))}, 8),
        ({"a": entry(shape=(-1, -2))}, 8),
        ({"a": entry(shape=(3,))}, 8),
        ({"a": entry(shape=(2.0,))}, 8),
        ({"a": entry(shape=(True, 2))}, 8),
        ({"a": entry(shape="2")}, 8),
        ({"a": entry(shape=2)}, 8),
        ({"a": entry(shape=(2**62, 4))}, 8),
        ({"a": entry(shape=(0, 10**30), offsets=(0, 0))}, 0),
        ({"a": entry(shape=(1,) * 65 + (2,))}, 8),
        ({"a": entry(dtype="F16")}, 8),
        ({"a": entry(dtype=["F32"])}, 8),
        ({"a": entry(dtype=None)}, 8),
        ({"a": {"dtype": "F32"}}, 8),
        ({"a": [1, 2]}, 8),
        ({"a": "F32"}, 8),
        ({"a": None}, 8),
        ({"\ud800": entry()}, 8),
        ([entry()], 8),
        (5, 0),
        ("a", 0),
        ({"__metadata__": {"a": 5}}, 0),
        ({"__metadata__": {"a": {"b": "c"}}}, 0),
        ({"__metadata__": ["a"]}, 0),
        ({"__metadata__": None}, 0),
        (b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": {"dtype":"F32","shape":[2],'
         b'"data_offsets":[0,8]}}', 8),
        (b'{"__metadata__": {"kind": "call"}, "__metadata__": {"kind": "update"}}', 0),
        (b'{"__metadata__": {"kind": "call", "kind": "update"}}', 0),
        (b'{"a": ' + b"[" * 100_000, 0),
        (b'{"a": {"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', 8),
        (b"{}" + b"\0" * 6, 0),
        (b'{"a": NaN}', 0),
        (b"\xff\xfe\x00", 0),
    ],
)  # fmt: skip
def test_a_hostile_header_is_refused(header, body):
    with pytest.raises(ValueError, match="not a tensor buffer"):
        unpack(raw(header, bytes(body)))


@pytest.mark.parametrize("length", [0, 1, 2**24 + 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_an_absurd_length_is_refused_before_it_is_read(length):
    with pytest.raises(ValueError, match=str(length)):
        unpack(struct.pack("<Q", length) + b"{}" + bytes(100))


def test_a_whole_header_above_the_bound_is_refused():
    with pytest.raises(ValueError, match="header of"):
        unpack(raw(b'{"__metadata__":{"a":"' + b"x" * 2**24 + b'"}}'))


def test_the_hash_depends_on_name_shape_type_order_and_every_bit():
    zeros, ones = np.zeros((2, 3), np.float32), np.ones(2, np.float32)
    flipped = zeros.copy()
    flipped.view(np.uint32)[1, 2] ^= 1
    variants = [
        {"a": zeros, "b": ones},
        {"b": ones, "a": zeros},
        {"a": zeros},
        {"c": zeros, "b": ones},
        {"a": zeros.reshape(3, 2), "b": ones},
        {"a": zeros.reshape(6), "b": ones},
        {"a": zeros.view(np.int32), "b": ones},
        {"a": flipped, "b": ones},
        {"a": -zeros, "b": ones},
        {},
    ]
    assert len({hash_tensors(tensors) for tensors in variants}) == len(variants)


@given(named_arrays)
def test_the_hash_survives_a_journey(tensors):
    assert hash_tensors(unpack(pack(tensors))[0]) == hash_tensors(tensors)
