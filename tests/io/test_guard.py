# SPDX-License-Identifier: Apache-2.0
"""The reading of untrusted inputs in a child process, with a real child and real faults."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
from ast import literal_eval
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from ucadi.imaging.remarks import Remark
from ucadi.io import guard
from ucadi.io.guard import GuardedReader, Limits, load_untrusted
from ucadi.io.handover import receive, send
from ucadi.io.nifti import write_nifti
from ucadi.io.reader import LoadedCt, load_ct
from ucadi.io.report import LoaderReport, SeriesReport, Verdict

# -- what comes back --------------------------------------------------------------------------------------


def assert_same(one: LoadedCt, other: LoadedCt) -> None:
    assert one.report == other.report
    assert (one.volume is None) == (other.volume is None)
    if one.volume is not None and other.volume is not None:
        assert one.volume.voxels.dtype == other.volume.voxels.dtype
        assert np.array_equal(one.volume.voxels, other.volume.voxels)
        assert np.array_equal(one.volume.grid.affine_lps, other.volume.grid.affine_lps)
    if one.lungs is not None and other.lungs is not None:
        assert one.lungs.box == other.lungs.box
        for name in ("mask", "left", "right"):
            assert np.array_equal(getattr(one.lungs, name), getattr(other.lungs, name))
    assert (one.source is None) == (other.source is None)
    if one.source is not None and other.source is not None:
        assert one.source.header == other.source.header
        assert one.source.size == other.source.size
        for mine, theirs in zip(one.source.instances, other.source.instances, strict=True):
            assert (mine.sop_instance_uid, mine.frame) == (theirs.sop_instance_uid, theirs.frame)
            assert mine.plane.pixel_mm == theirs.plane.pixel_mm
            for name in ("position_mm", "row", "column"):
                assert np.array_equal(getattr(mine.plane, name), getattr(theirs.plane, name))


@pytest.fixture(scope="module")
def reader():
    with GuardedReader() as reader:
        yield reader


@pytest.fixture
def nifti(make_ct, tmp_path) -> Path:
    write_nifti(make_ct(), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def test_a_series_comes_back_as_it_was_read_in_process(reader, dicom_folder) -> None:
    loaded = reader.load(dicom_folder)
    assert loaded.source is not None
    assert len(loaded.source.instances) == 36
    assert_same(loaded, load_ct(dicom_folder))


def test_a_nifti_file_and_refused_inputs_come_back_too(reader, nifti, tmp_path) -> None:
    assert_same(reader.load(str(nifti)), load_ct(nifti))
    (tmp_path / "text").write_text("no image")
    for path in (tmp_path / "text", tmp_path / "nowhere"):
        loaded = reader.load(path)
        assert loaded.report.verdict is Verdict.REFUSED
        assert_same(loaded, load_ct(path))


def test_a_chosen_series_is_asked_for(reader, dicom_folder) -> None:
    assert reader.load(dicom_folder, series="1.2.3.4").report.verdict is not Verdict.REFUSED
    assert reader.load(dicom_folder, series="1.2.3.5").report.verdict is Verdict.REFUSED


def test_names_relative_odd_and_not_in_any_alphabet_are_found(reader, nifti, tmp_path, monkeypatch) -> None:
    names = ["a\nb", "é", os.fsdecode(b"\xff\xfe"), '"', "-c"]
    for name in names:
        (tmp_path / name).write_bytes(nifti.read_bytes())
    monkeypatch.chdir(tmp_path)
    for name in names:
        assert reader.load(name).report.code == "ok"


def test_fractions_come_back_as_float32(reader, make_ct, tmp_path) -> None:
    volume = make_ct()
    write_nifti(replace(volume, voxels=volume.voxels + np.float32(0.25)), tmp_path / "ct.nii")
    loaded = reader.load(tmp_path / "ct.nii")
    assert loaded.volume.voxels.dtype == np.float32
    assert_same(loaded, load_ct(tmp_path / "ct.nii"))


# -- limits -----------------------------------------------------------------------------------------------


def zeros(path: Path, sizes: tuple[int, int, int], pieces: int) -> Path:
    """A compressed NIfTI file of any size and of so many pieces of 8 MiB of zeros."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *sizes, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<4f", header, 76, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    struct.pack_into("<2h", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    with gzip.open(path, "wb", 1) as file:
        file.write(header)
        for _ in range(pieces):
            file.write(bytes(8 * 2**20))
    return path


@pytest.mark.slow
def test_a_small_file_of_a_huge_volume_is_refused_within_its_memory(tmp_path) -> None:
    path = zeros(tmp_path / "ct.nii.gz", (1024, 1024, 512), 128)
    assert path.stat().st_size < 5_000_000
    assert load_untrusted(path, limits=Limits(memory_bytes=3 * 2**30)).report.code == "ct-not-hu"


def own_children() -> set[str]:
    """Processes that this one started and that are still there."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


MISBEHAVING = """
import os, signal, sys, time, ctypes, ucadi.io.guard as guard
load_ct = guard.load_ct
guard.load_ct = lambda path, series: load_ct(path) if os.path.exists(path) else eval(path[1:])
"""
SERVE = "guard._serve()"


@pytest.fixture(scope="module")
def misbehaving():
    """A reader whose child takes what is no path for what it shall do."""
    with pytest.MonkeyPatch.context() as patch, GuardedReader() as reader:
        patch.setattr(guard, "_PROGRAM", MISBEHAVING + SERVE)
        yield reader


def test_an_input_that_takes_too_much_memory_is_refused(misbehaving, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(misbehaving, "_limits", Limits(memory_bytes=2**30))
    report = misbehaving.load(zeros(tmp_path / "ct.nii.gz", (1024, 1024, 1024), 1)).report
    assert report.code == "input-too-costly"
    assert "memory" in report.reason
    assert report.cure


def test_an_input_that_takes_too_much_computing_is_refused(misbehaving, monkeypatch) -> None:
    monkeypatch.setattr(misbehaving, "_limits", Limits(cpu_s=1))
    report = misbehaving.load("/[0 for _ in iter(int, 1)]").report
    assert report.code == "input-too-costly"
    assert "1 s" in report.reason


def test_an_input_that_takes_too_long_is_refused_and_nothing_goes_on(misbehaving, monkeypatch) -> None:
    monkeypatch.setattr(misbehaving, "_limits", Limits(wall_s=1.0))
    started = time.monotonic()
    report = misbehaving.load("/time.sleep(600)").report
    assert report.code == "input-too-costly"
    assert "1 s" in report.reason
    assert time.monotonic() - started < 60
    assert misbehaving._host is None


@pytest.mark.parametrize(
    ("expression", "code"),
    [
        ("ctypes.string_at(0)", "input-unreadable"),
        ("os.abort()", "input-unreadable"),
        ("os._exit(0)", "input-unreadable"),
        ("os._exit(7)", "input-unreadable"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "input-too-costly"),
        ("bytearray(2**60)", "input-too-costly"),
        ("{}['Doe^John']", "input-unreadable"),
        ("sys.exit('Doe^John')", "input-unreadable"),
    ],
)
def test_a_crash_is_a_refusal_and_the_next_input_is_read(misbehaving, nifti, expression, code) -> None:
    report = misbehaving.load("/" + expression).report
    assert report.verdict is Verdict.REFUSED
    assert report.code == code
    assert "Doe" not in str(report)
    assert misbehaving.load(nifti).report.code == "ok"


def test_a_fault_of_ours_is_named_by_its_place(misbehaving) -> None:
    assert "KeyError in <string>, line 1" in misbehaving.load("/{}['Doe']").report.reason


def test_the_host_is_used_again_and_started_again_after_a_crash(nifti) -> None:
    before = own_children()
    with GuardedReader() as reader:
        reader.load(nifti)
        host = reader._host
        reader.load("/nowhere")
        assert reader._host is host
        host.kill()
        assert reader.load(nifti).report.code == "input-too-costly"  # as when the system ends it
        assert reader.load(nifti).report.code == "ok"
    assert own_children() <= before


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 8,
        b"\0" * 7 + b"\x02{}",
        b"\xff" * 8,
        b"x" * 1000,
        b"\0" * 7 + b"\x04null",
        b"\0" * 7 + b"\x01[",
    ],
)
def test_a_child_that_writes_anything_else_is_not_believed(monkeypatch, answer) -> None:
    monkeypatch.setattr(guard, "_PROGRAM", f"import os; os.write(1, b'R' + {answer!r}); os.read(0, 1)")
    assert load_untrusted("x").report.code == "input-unreadable"


def test_a_host_that_does_not_start_is_no_fault_of_the_input(monkeypatch) -> None:
    before = own_children()
    monkeypatch.setattr(guard, "_PROGRAM", "import no_such_module")
    with pytest.raises(RuntimeError, match="did not start"):
        load_untrusted("x")
    assert own_children() <= before


def test_the_child_has_no_files_environment_or_words_of_ours(monkeypatch, capfd, tmp_path) -> None:
    # Its limit keeps the child from writing to a file, so this test lifts it.
    monkeypatch.setattr(guard, "_PROGRAM", f"{MISBEHAVING}guard._confine = print\n{SERVE}")
    monkeypatch.setenv("UCADI_SECRET", "Doe")
    (tmp_path / "out").touch()
    seen = "os.listdir('/proc/self/fd'), dict(os.environ), os.getcwd(), sys.argv"
    write = f"os.write(os.open({str(tmp_path / 'out')!r}, 2), repr(({seen})).encode())"
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        load_untrusted(f"/print('Doe', file=sys.stderr), print('Doe'), {write}")
    assert capfd.readouterr() == ("", "")
    descriptors, environment, folder, arguments = literal_eval((tmp_path / "out").read_text())
    assert len(descriptors) <= 7
    assert "UCADI_SECRET" not in environment
    assert folder == "/"
    assert arguments == ["-c"]


def test_the_child_cannot_write_files(misbehaving, tmp_path) -> None:
    (tmp_path / "out").touch()
    report = misbehaving.load(f"/os.write(os.open({str(tmp_path / 'out')!r}, 2), b'x')").report
    assert "OSError" in report.reason
    assert (tmp_path / "out").read_bytes() == b""


SLEEPING = """
import ucadi.io.guard as guard
guard._PROGRAM = "import ucadi.io.guard as g, time; g.load_ct = lambda *a, **k: time.sleep(600); g._serve()"
import os, signal, threading
def children():
    return open(f"/proc/self/task/{os.getpid()}/children").read()
"""


@pytest.mark.slow
def test_an_interrupt_ends_the_child() -> None:
    program = f"""{SLEEPING}
threading.Timer(8.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    guard.load_untrusted("x")
except KeyboardInterrupt:
    print(children().split())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_child_whose_parent_is_killed_ends_by_itself() -> None:
    program = f"""{SLEEPING}
def leave():
    print(children(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Timer(8.0, leave).start()
guard.load_untrusted("x", limits=guard.Limits(wall_s=12.0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    host = int(done.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{host}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{host}").exists()


# -- the bytes between ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sent(tmp_path_factory, make_ct, make_series, save_series) -> bytes:
    """A loaded series as bytes."""
    folder = save_series(make_series(make_ct()), tmp_path_factory.mktemp("sent") / "series")
    buffer = io.BytesIO()
    send(load_ct(folder), buffer)
    return buffer.getvalue()


def changed(sent: bytes, change) -> bytes:
    """The same bytes with another document in front."""
    size = struct.unpack(">Q", sent[:8])[0]
    document = json.loads(sent[8 : 8 + size])
    change(document)
    text = json.dumps(document).encode()
    return struct.pack(">Q", len(text)) + text + sent[8 + size :]


def put(*keys, value):
    """A change of one place in a document."""

    def change(document) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def test_what_is_sent_is_received(sent) -> None:
    loaded = receive(io.BytesIO(sent))
    buffer = io.BytesIO()
    send(loaded, buffer)
    assert buffer.getvalue() == sent
    assert receive(io.BytesIO(changed(sent, lambda document: None))).report == loaded.report


@pytest.mark.parametrize(
    "change",
    [
        put("volume", "shape", value=[36, 64]),
        put("volume", "shape", value=[36, 64, -64]),
        put("volume", "shape", value=[36, 64, 0]),
        put("volume", "shape", value=[36, 64, 64.0]),
        put("volume", "shape", value=[2**20, 2**20, 2**20]),
        put("volume", "shape", value=[True, 64, 64]),
        put("volume", "type", value="object"),
        put("volume", "type", value="float64"),
        put("volume", "affine_lps", value=[[0.0] * 4] * 4),
        put("volume", "affine_lps", value=[[1.0] * 3] * 3),
        put("volume", "affine_lps", value="1"),
        put("volume", "affine_lps", 0, 0, value=float("nan")),
        put("volume", "box", value=[[0, 36], [0, 64], [0, 65]]),
        put("volume", "box", value=[[0, 36], [0, 64], [5, 5]]),
        put("volume", "box", value=[[0, 36], [0, 64]]),
        put("volume", value=None),
        put("volume", value=[]),
        put("report", value={}),
        put("report", value=None),
        put("report", "verdict", value="refused"),
        put("report", "verdict", value="perhaps"),
        put("report", "code", value="no-such-code"),
        put("report", "reason", value="x" * 3000),
        put("report", "reason", value=5),
        put("report", "record_version", value=99),
        put("report", "shape", value=[1, 2]),
        put("report", "spacing_mm", value=[1, 2, "3"]),
        put("report", "spacing_mm", value=[1, 2, float("inf")]),
        put("report", "repairs", value=[{"code": "unknown", "text": ""}]),
        put("report", "warnings", value=[{"code": "lossy"}]),
        put("report", "interpolated_slices", value=[-1]),
        put("report", "series", 0, "chosen", value=1),
        put("report", "series", 0, "slices", value=2**40),
        put("source", "header_bytes", value=2**39),
        put("source", "header_bytes", value=-1),
        put("source", "instances", value=[[]]),
        put("source", "instances", 0, 0, value="1" * 1000),
        put("source", "instances", 0, 1, value="1"),
        put("source", "instances", 0, 2, value=[0, 0, None]),
        put("source", "instances", 0, 5, value=[0.0, 1.0]),
        put("source", "size", value=[64]),
    ],
)
def test_a_document_out_of_bounds_is_refused(sent, change) -> None:
    with pytest.raises(ValueError):
        receive(io.BytesIO(changed(sent, change)))


def test_values_without_meaning_are_refused(sent) -> None:
    size = 8 + struct.unpack(">Q", sent[:8])[0]
    broken = bytearray(sent)
    broken[size + 36 * 64 * 64 * 2] = 3  # the first voxel of the lungs
    with pytest.raises(ValueError):
        receive(io.BytesIO(broken))


@given(st.data())
def test_bytes_of_a_child_gone_wrong_give_a_loaded_ct_or_one_error(sent, data) -> None:
    size = 8 + struct.unpack(">Q", sent[:8])[0]
    at = data.draw(st.integers(0, size - 1))
    broken = bytearray(sent)
    broken[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        loaded = receive(io.BytesIO(broken))
    except (EOFError, ValueError):
        return
    assert loaded.report.verdict in Verdict


@given(st.integers(0, 100))
def test_bytes_cut_short_are_told_as_such(sent, percent) -> None:
    with pytest.raises(EOFError):
        receive(io.BytesIO(sent[: (len(sent) - 1) * percent // 100]))


def test_a_header_with_elements_that_cannot_be_written_keeps_the_others(sent) -> None:
    loaded = receive(io.BytesIO(sent))
    header = Dataset()
    header.SeriesInstanceUID, header.Modality = "1.2.3", "CT"
    with pytest.warns(UserWarning, match="cannot be assigned"):
        header.add_new((0x0028, 0x0010), "US", "many")
    buffer = io.BytesIO()
    send(replace(loaded, source=replace(loaded.source, header=header)), buffer)
    received = receive(io.BytesIO(buffer.getvalue())).source.header
    assert (received.SeriesInstanceUID, received.Modality, "Rows" in received) == ("1.2.3", "CT", False)


def test_a_report_survives_json() -> None:
    report = LoaderReport(
        Verdict.WARNING,
        shape=(36, 64, 64),
        spacing_mm=(5.0, 0.1, 1 / 3),
        repairs=(Remark("tilt-corrected", "Moved."),),
        warnings=(Remark("lossy", "Lossy."),),
        interpolated_slices=(3, 4),
        lungs_ml=(2000.5, 1999.0),
        series=(SeriesReport("abc", None, "CT", 36, None, None, False, "few"),),
    )
    assert LoaderReport.from_json(json.loads(json.dumps(report.to_json()))) == report
