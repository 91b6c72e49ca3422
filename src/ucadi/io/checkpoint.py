# SPDX-License-Identifier: Apache-2.0
"""Parameters on disk: one safetensors file per network and a manifest that names and hashes them.

Files appear complete or not at all; nothing is ever unpickled.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucadi.errors import CheckpointError
from ucadi.tensors import Tensors, hash_tensors, pack, unpack
from ucadi.types import Task
from ucadi.versions import CHECKPOINT_VERSION

__all__ = [
    "MANIFEST_FILE",
    "ModelFolder",
    "NetworkCard",
    "read_model",
    "read_tensors",
    "write_bytes",
    "write_json",
    "write_model",
    "write_tensors",
]

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class NetworkCard:
    """What a model folder says about one network.

    Attributes:
        network: Name in the network register.
        preset: Name in the register of input presets.
        parameters_hash: SHA-256 over names, types, shapes and values.
        rounds: Federated rounds behind the parameters; 0 for local training.
        sites: Who took part.
        protection: How updates were hidden; "none" for local training.
        metrics: Numbers with their names, for example the held-out score.
    """

    network: str
    preset: str
    parameters_hash: str
    rounds: int
    sites: tuple[str, ...]
    protection: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class ModelFolder:
    """A model as released.

    Attributes:
        model_id: First 12 hex digits of the hash over all networks' parameters.
        name: Name for people.
        trained_on: What the training data were, in words.
        cards: By task.
        parameters: By task.
        run: The run manifest: versions, seed, configuration, data hash.
    """

    model_id: str
    name: str
    trained_on: str
    cards: Mapping[Task, NetworkCard]
    parameters: Mapping[Task, Tensors]
    run: Mapping[str, Any]


def write_bytes(path: Path, data: bytes | bytearray) -> None:
    """Write a file so that it appears complete or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically; refuses NaN."""
    write_bytes(path, (json.dumps(document, indent=2, allow_nan=False, default=str) + "\n").encode())


def write_tensors(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays atomically as a safetensors file."""
    write_bytes(path, pack(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read named arrays and metadata.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    try:
        return unpack(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError("checkpoint-invalid", f"{path} does not exist.") from error
    except ValueError as error:
        raise CheckpointError("checkpoint-invalid", f"{path}: {error}.") from error


def write_model(
    folder: Path,
    *,
    name: str,
    trained_on: str,
    cards: Mapping[Task, NetworkCard],
    parameters: Mapping[Task, Tensors],
    run: Mapping[str, Any],
) -> ModelFolder:
    """Write a model folder: parameters first, the manifest last."""
    hashes = {task: hash_tensors(parameters[task]) for task in cards}
    model_id = hashlib.sha256("".join(hashes[task] for task in sorted(hashes)).encode()).hexdigest()[:12]
    networks = {}
    for task, card in cards.items():
        data = pack(parameters[task], {"task": task, "network": card.network})
        write_bytes(folder / f"{task}.safetensors", data)
        networks[task.value] = {
            **vars(card),
            "metrics": dict(card.metrics),
            "parameters_hash": hashes[task],
            "file": f"{task}.safetensors",
            "file_sha256": hashlib.sha256(data).hexdigest(),
        }
    manifest = {
        "checkpoint_version": CHECKPOINT_VERSION,
        "model_id": model_id,
        "name": name,
        "trained_on": trained_on,
        "networks": networks,
        "run": dict(run),
    }
    write_json(folder / MANIFEST_FILE, manifest)
    return ModelFolder(model_id, name, trained_on, cards, parameters, run)


def read_model(folder: Path) -> ModelFolder:
    """Read and verify a model folder.

    Raises:
        CheckpointError: If the manifest is missing, of another version, or a file does not have its hash.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise CheckpointError("checkpoint-invalid", f"There is no {MANIFEST_FILE} in {folder}.")
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["checkpoint_version"] != CHECKPOINT_VERSION:
            raise CheckpointError(
                "checkpoint-invalid",
                f"{path} has version {manifest['checkpoint_version']}, this release reads "
                f"{CHECKPOINT_VERSION}.",
            )
        cards: dict[Task, NetworkCard] = {}
        parameters: dict[Task, Tensors] = {}
        for key, entry in manifest["networks"].items():
            task = Task(key)
            parameters[task] = _read_verified(folder / Path(entry.pop("file")).name, entry.pop("file_sha256"))
            cards[task] = NetworkCard(**{**entry, "sites": tuple(entry["sites"])})
            if hash_tensors(parameters[task]) != cards[task].parameters_hash:
                raise CheckpointError("checkpoint-invalid", f"{path} names other parameters for the {task}.")
        return ModelFolder(
            manifest["model_id"], manifest["name"], manifest["trained_on"], cards, parameters, manifest["run"]
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError("checkpoint-invalid", f"{path} cannot be read: {error!r}.") from error


def _read_verified(path: Path, sha256: str) -> Tensors:
    """Read a parameter file whose hash must be the manifest's."""
    if not path.is_file():
        raise CheckpointError("checkpoint-invalid", f"{path} does not exist.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError("checkpoint-invalid", f"{path} was changed: its hash is not the manifest's.")
    return unpack(data)[0]
