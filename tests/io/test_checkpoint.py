# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from ucadi.errors import CheckpointError
from ucadi.io.checkpoint import (
    MANIFEST_FILE,
    NetworkCard,
    read_model,
    read_tensors,
    write_bytes,
    write_json,
    write_model,
    write_tensors,
)
from ucadi.tensors import hash_tensors
from ucadi.types import Task

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}
CARD = NetworkCard("densenet3d", "compact", "", 3, ("A", "B"), "plaintext", {"macro_auc": 0.75})


@pytest.fixture
def model(tmp_path):
    """The folder of a model with both networks."""
    folder = tmp_path / "model"
    write_model(
        folder,
        name="toy",
        trained_on="nothing",
        cards=dict.fromkeys(Task, CARD),
        parameters={Task.CLASSIFIER: TENSORS, Task.SEGMENTATION: {"c": TENSORS["a"]}},
        run={"seed": 7},
    )
    return folder


def edit(folder, change):
    """Change the manifest's document in place."""
    path = folder / MANIFEST_FILE
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def refusal(folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_model(folder)
    assert caught.value.code == "checkpoint-invalid"
    return caught.value.detail


def test_a_released_model_is_read_back_bit_for_bit(model):
    read = read_model(model)
    assert (read.name, read.trained_on, read.run) == ("toy", "nothing", {"seed": 7})
    assert hash_tensors(read.parameters[Task.CLASSIFIER]) == hash_tensors(TENSORS)
    card = read.cards[Task.CLASSIFIER]
    assert (card.network, card.sites, card.metrics) == ("densenet3d", ("A", "B"), {"macro_auc": 0.75})
    assert card.parameters_hash == hash_tensors(TENSORS)


def test_the_safetensors_library_reads_a_released_model(model):
    read = safetensors.numpy.load_file(model / "classifier.safetensors")
    assert hash_tensors({name: read[name] for name in TENSORS}) == hash_tensors(TENSORS)


def test_the_models_id_depends_on_parameters_alone(tmp_path):
    def written(folder, name, tensors):
        return write_model(
            tmp_path / folder,
            name=name,
            trained_on="",
            cards={Task.CLASSIFIER: CARD},
            parameters={Task.CLASSIFIER: tensors},
            run={},
        ).model_id

    changed = {**TENSORS, "b": np.nextafter(TENSORS["b"], np.float32(2))}
    first = written("1", "x", TENSORS)
    assert first == written("2", "y", TENSORS) != written("3", "x", changed)
    assert len(first) == 12


@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_changed_byte_in_a_parameter_file_is_refused(model, place):
    path = model / "classifier.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert "was changed" in refusal(model)


def test_a_parameter_file_cut_short_or_missing_is_refused(model):
    path = model / "segmentation.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "segmentation.safetensors was changed" in refusal(model)
    path.unlink()
    assert "does not exist" in refusal(model)


def test_files_of_two_networks_cannot_be_swapped(model):
    (model / "classifier.safetensors").replace(model / "x")
    (model / "segmentation.safetensors").replace(model / "classifier.safetensors")
    (model / "x").replace(model / "segmentation.safetensors")
    assert "was changed" in refusal(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.clear(),
        lambda d: d.update(checkpoint_version=2),
        lambda d: d.update(checkpoint_version="1"),
        lambda d: d.pop("networks"),
        lambda d: d.update(networks=[]),
        lambda d: d["networks"].update(surgery=d["networks"]["classifier"]),
        lambda d: d["networks"].update(classifier=None),
        lambda d: d["networks"]["classifier"].pop("file_sha256"),
        lambda d: d["networks"]["classifier"].update(file=5),
        lambda d: d["networks"]["classifier"].update(file="../model.safetensors"),
        lambda d: d["networks"]["classifier"].update(extra=1),
        lambda d: d["networks"]["classifier"].pop("metrics"),
        lambda d: d["networks"]["classifier"].update(sites=None),
        lambda d: d["networks"]["classifier"].update(parameters_hash="0" * 64),
        lambda d: d.pop("model_id"),
    ],
)
def test_a_changed_manifest_is_refused(model, change):
    edit(model, change)
    refusal(model)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_manifest_that_is_no_document_is_refused(model, content):
    (model / MANIFEST_FILE).write_bytes(content)
    refusal(model)


def test_another_version_is_refused_by_its_number(model):
    edit(model, lambda d: d.update(checkpoint_version=99))
    assert "99" in refusal(model)


def test_a_manifest_cannot_point_outside_its_folder(model):
    secret = model.parent / "outside.safetensors"
    write_tensors(secret, TENSORS)
    edit(model, lambda d: d["networks"]["classifier"].update(file=str(secret)))
    assert str(model / "outside.safetensors") in refusal(model)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    assert MANIFEST_FILE in refusal(tmp_path)
    assert MANIFEST_FILE in refusal(tmp_path / "nothing")


def test_tensors_are_read_back_with_their_metadata(tmp_path):
    write_tensors(tmp_path / "deep" / "a.safetensors", TENSORS, {"task": "x"})
    read, words = read_tensors(tmp_path / "deep" / "a.safetensors")
    assert hash_tensors(read) == hash_tensors(TENSORS)
    assert words == {"task": "x"}


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04junk that a pickle would run"])
def test_a_file_that_is_missing_or_no_tensor_file_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert caught.value.code == "checkpoint-invalid"
    assert str(path) in caught.value.detail


# -- complete or not at all -------------------------------------------------------------------------------


def test_a_json_document_with_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_bytes(path, "text is no bytes")
    assert json.loads(path.read_bytes()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_is_a_folder_is_left_alone(tmp_path):
    (tmp_path / "a" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_bytes(tmp_path / "a", b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_larger_than_the_system_allows_leaves_no_part(tmp_path):
    code = (
        "import pathlib, resource, signal, sys\n"
        "from ucadi.io.checkpoint import write_bytes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    write_bytes(pathlib.Path(sys.argv[1]) / 'a.bin', bytes(1_000_000))\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "27"  # EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_the_old_file_complete(tmp_path):
    path = tmp_path / "a.bin"
    code = (
        "import pathlib, sys\nfrom ucadi.io.checkpoint import write_bytes\n"
        "path = pathlib.Path(sys.argv[1])\nwrite_bytes(path, b'0' * 3_000_000)\nprint(flush=True)\n"
        "while True:\n"
        "    for digit in b'0123456789':\n        write_bytes(path, bytes([digit]) * 3_000_000)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    try:
        writer.stdout.readline()
        for _ in range(20):
            time.sleep(0.005)
            data = path.read_bytes()  # seen from outside at any time
            assert len(data) == 3_000_000
            assert len(set(data)) == 1
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    data = path.read_bytes()
    assert len(data) == 3_000_000
    assert len(set(data)) == 1
