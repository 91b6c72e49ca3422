# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.pacs.multipart import MultipartBody, TruncatedError, boundary_of, read_parts

BOUNDARY = "b0"
PARTS = st.lists(st.binary(max_size=300).filter(lambda b: b"\r\n--b0" not in b), max_size=5)


def message_of(parts):
    """A message as a server writes it."""
    body = b"".join(b"--b0\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts)
    return body + b"--b0--\r\n"


def cut(message, sizes):
    """The message in pieces."""
    pieces = []
    for size in sizes:
        pieces.append(message[:size])
        message = message[size:]
    return [*pieces, message]


def read(blocks):
    return [b"".join(part) for part in read_parts(blocks, BOUNDARY)]


@given(PARTS, st.lists(st.integers(0, 40)))
def test_parts_come_out_as_they_went_in_wherever_the_network_cuts(parts, sizes):
    assert read(cut(message_of(parts), sizes)) == parts


@given(PARTS, st.data())
def test_a_message_that_is_cut_short_is_never_taken_for_whole(parts, data):
    message = message_of(parts)
    end = data.draw(st.integers(0, len(message) - len("--\r\n") - 1))
    with pytest.raises(TruncatedError):
        read([message[:end]])


def test_a_part_that_is_left_unread_is_stepped_over():
    parts = read_parts([message_of([b"first", b"second"])], BOUNDARY)
    next(parts)
    assert b"".join(next(parts)) == b"second"


def test_a_head_without_end_is_refused():
    with pytest.raises(ValueError, match="head"):
        read([b"--b0\r\n", *[b"x" * 1000] * 100])


def test_a_large_part_is_handed_on_in_pieces():
    piece = bytes(2**16)
    blocks = [b"--b0\r\n\r\n", *[piece] * 50, b"\r\n--b0--"]
    sizes = [len(block) for part in read_parts(blocks, BOUNDARY) for block in part]
    assert sum(sizes) == 50 * len(piece)
    assert max(sizes) <= 2 * len(piece)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=a-b', "a-b"),
        ('multipart/related; BOUNDARY="a-b";type=x', "a-b"),
        ("multipart/related", ""),
    ],
)
def test_the_boundary_is_found(content_type, boundary):
    assert boundary_of(content_type) == boundary


def test_files_go_out_whole_with_the_length_that_is_stated(tmp_path):
    contents = [b"\r\n--x\r\n", bytes(range(256)) * 3000, b""]
    for name, content in enumerate(contents):
        (tmp_path / str(name)).write_bytes(content)
    body = MultipartBody([tmp_path / str(name) for name in range(3)])
    for _ in range(2):  # a message can be sent again
        message = b"".join(body)
        assert len(message) == len(body)
        parts = read_parts([message], boundary_of(body.content_type))
        assert [b"".join(part) for part in parts] == contents
