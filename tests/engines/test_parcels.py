# SPDX-License-Identifier: Apache-2.0
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ucadi.engines.flare import parcels
from ucadi.engines.flare.line import PIECE
from ucadi.engines.flare.parcels import LARGEST_MESSAGE, Label, Parcel, fetch, read_label
from ucadi.errors import EngineError

BODY = np.random.default_rng(0).bytes(5 * PIECE + 12345)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "_RETRY_S", 0.0)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_message_of_any_size_arrives_as_it_was(size: int) -> None:
    parcel = Parcel(BODY[:size])
    assert bytes(fetch(parcel.label, parcel.piece, lambda: True)) == BODY[:size]


def test_large_message_is_collected_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "_SPOOL_FROM", PIECE)
    parcel = Parcel(BODY)
    body = fetch(parcel.label, parcel.piece, lambda: True, tmp_path)
    assert bytes(body) == BODY
    assert list(tmp_path.iterdir()) == []  # the file has no name, so nothing is left by a crash


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["lost", "short", "empty"]), max_size=30), st.integers(0, 10**6))
def test_lost_and_cut_pieces_are_asked_for_again(faults: list[str], seed: int) -> None:
    parcel, faults_left, lock = Parcel(BODY), list(faults), threading.Lock()
    order = np.random.default_rng(seed)

    def ask(index: int) -> bytes | None:
        with lock:
            fault = faults_left.pop() if faults_left and order.random() < 0.7 else ""
        piece = parcel.piece(index)
        return {"lost": None, "short": piece[:-1], "empty": b""}.get(fault, piece)

    assert bytes(fetch(parcel.label, ask, lambda: True)) == BODY


def test_other_bytes_than_announced_are_refused() -> None:
    parcel = Parcel(BODY)
    wrong = bytearray(BODY)
    wrong[PIECE + 7] ^= 1
    with pytest.raises(EngineError, match="not those that were announced") as caught:
        fetch(parcel.label, Parcel(wrong).piece, lambda: True)
    assert caught.value.code == "message-invalid"


def test_fetching_ends_when_it_is_told_to() -> None:
    with pytest.raises(EngineError) as caught:
        fetch(Parcel(BODY).label, lambda index: None, lambda: False)
    assert caught.value.code == "interrupted"


def test_piece_that_does_not_exist_is_empty() -> None:
    parcel = Parcel(b"abc")
    assert [parcel.piece(index) for index in (0, 1, -1, "0", None, True)] == [b"abc", b"", b"", b"", b"", b""]


@pytest.mark.parametrize(
    "note",
    [
        {},
        {"size": -1, "sha256": "0" * 64},
        {"size": 1.5, "sha256": "0" * 64},
        {"size": True, "sha256": "0" * 64},
        {"size": 5, "sha256": "0" * 63},
        {"size": "5", "sha256": "0" * 64},
    ],
)
def test_label_that_is_none_is_refused(note: dict) -> None:
    with pytest.raises(EngineError) as caught:
        read_label(note)
    assert caught.value.code == "message-invalid"


def test_message_beyond_the_bound_is_refused_before_a_byte_is_fetched() -> None:
    with pytest.raises(EngineError, match=str(LARGEST_MESSAGE)) as caught:
        read_label({"size": LARGEST_MESSAGE + 1, "sha256": "0" * 64})
    assert caught.value.code == "message-too-large"


def test_message_that_does_not_fit_is_refused_before_a_byte_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        fetch(Label(1 << 50, "0" * 64), lambda index: pytest.fail("asked"), lambda: True)
    assert caught.value.code == "message-too-large"
    with pytest.raises(EngineError, match="on disk") as caught:
        fetch(Label(1 << 50, "0" * 64), lambda index: pytest.fail("asked"), lambda: True, tmp_path)
    assert caught.value.code == "message-too-large"
