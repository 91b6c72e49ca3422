# SPDX-License-Identifier: Apache-2.0
"""The records that cross between coordinator and sites, and their bytes.

A message is one flat tensor buffer (see `ucadi.tensors`) whose metadata hold the protocol version, the
kind of record and the record itself as JSON. It names registered networks and numbers, never code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from ucadi.errors import CODES, ProtocolVersionError, UpdateRejectedError
from ucadi.federation.plans import RoundPlan, plan_document, read_plan
from ucadi.tensors import Tensors, hash_tensors, pack, unpack
from ucadi.versions import WIRE_VERSION

__all__ = [
    "Call",
    "GlobalModel",
    "Phase",
    "Readiness",
    "Refusal",
    "Reply",
    "Update",
    "Validation",
    "decode_call",
    "decode_reply",
    "encode_call",
    "encode_reply",
]


class Phase(StrEnum):
    """What a site is asked to do."""

    READY = "ready"
    TRAIN = "train"
    VALIDATE = "validate"


@dataclass(frozen=True, eq=False)
class GlobalModel:
    """The model that all sites share.

    Attributes:
        round: The round that made it; 0 is the initial model.
        parameters: float32 tensors in manifest order, BatchNorm's running statistics included.
    """

    round: int
    parameters: Tensors

    @cached_property
    def hash(self) -> str:
        """SHA-256 over names, shapes and values."""
        return hash_tensors(self.parameters)


@dataclass(frozen=True)
class Call:
    """A request of the coordinator. The model travels with ``train`` and ``validate`` only."""

    phase: Phase
    plan: RoundPlan
    model: GlobalModel | None = None


@dataclass(frozen=True)
class Readiness:
    """A site's word that it takes part in the round, with how many studies it trains on."""

    run_id: str
    round: int
    site: str
    num_studies: int


@dataclass(frozen=True, eq=False)
class Update:
    """What a site sends after local training (Alg. 1, ClientUpdate).

    Attributes:
        run_id: Name of the run.
        round: Round of the global model that it started from, plus one.
        site: Who sends it.
        tensors: Δθ = θ_local − θ_global as float32 by name in plaintext; a cipher's words otherwise.
        iterations: n_i, optimizer steps done; None when a cipher hides it.
        aggregation_weight: w_i; None when a cipher hides it.
        num_studies: Studies trained on.
        metrics: Numbers for people, for example the training loss and the received model's validation.
        kind: Always a difference to the global model.
    """

    run_id: str
    round: int
    site: str
    tensors: Tensors
    iterations: int | None
    aggregation_weight: float | None
    num_studies: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    kind: str = "delta"


@dataclass(frozen=True)
class Validation:
    """A site's metrics of the global model on its own validation studies."""

    run_id: str
    round: int
    site: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Refusal:
    """A site's word that it does not do what was asked: a registered code, no detail."""

    run_id: str
    round: int
    site: str
    code: str

    @property
    def message(self) -> str:
        """The code's public sentence."""
        return CODES[self.code].public_message


Reply = Readiness | Update | Validation | Refusal

_REPLIES: dict[str, type[Any]] = {
    "readiness": Readiness,
    "update": Update,
    "validation": Validation,
    "refusal": Refusal,
}


def encode_call(call: Call) -> bytearray:
    """Write a request as bytes."""
    plan = call.plan
    body = {
        "phase": call.phase,
        "run": plan_document(plan.run),
        "round": plan.round,
        "model_hash": plan.model_hash,
        "model_round": call.model and call.model.round,
    }
    return _encode("call", body, {} if call.model is None else call.model.parameters)


def decode_call(buffer: bytes | bytearray | memoryview) -> Call:
    """Read a request.

    Raises:
        ProtocolVersionError: If it was written by another version of the protocol.
        UpdateRejectedError: If it is damaged or no request.
    """
    kind, body, tensors = _decode(buffer)
    try:
        if kind != "call":
            raise ValueError(f"kind {kind!r}")
        plan = RoundPlan(read_plan(body["run"]), body["round"], body["model_hash"])
        phase = Phase(body["phase"])
        if phase is Phase.READY:
            return Call(phase, plan)
        _require(_is_count(body["model_round"]), "model_round")
        return Call(phase, plan, GlobalModel(body["model_round"], tensors))
    except (KeyError, TypeError, ValueError) as error:
        raise UpdateRejectedError("message-invalid", f"The request cannot be read: {error}.") from error


def encode_reply(reply: Reply) -> bytearray:
    """Write a reply as bytes."""
    kind = next(name for name, record in _REPLIES.items() if type(reply) is record)
    body = {name: value for name, value in vars(reply).items() if name != "tensors"}
    return _encode(kind, body, reply.tensors if isinstance(reply, Update) else {})


def decode_reply(buffer: bytes | bytearray | memoryview) -> Reply:
    """Read a reply.

    Raises:
        ProtocolVersionError: If it was written by another version of the protocol.
        UpdateRejectedError: If it is damaged, of no known kind, or names an unknown refusal.
    """
    kind, body, tensors = _decode(buffer)
    try:
        record = _REPLIES[kind]
        reply: Reply = record(**body, **({"tensors": tensors} if record is Update else {}))
        _check_reply(reply)
    except (KeyError, TypeError, ValueError) as error:
        raise UpdateRejectedError("message-invalid", f"The reply cannot be read: {error}.") from error
    return reply


def _check_reply(reply: Reply) -> None:
    """Check the plain fields that arithmetic or people rely on."""
    _require(isinstance(reply.run_id, str) and isinstance(reply.site, str), "run_id or site")
    _require(_is_count(reply.round), "round")
    if isinstance(reply, Refusal):
        _require(reply.code in CODES, "a refusal's code")
    if isinstance(reply, Update | Validation):
        metrics = reply.metrics
        _require(isinstance(metrics, dict) and all(map(_is_number, metrics.values())), "metrics")
    if isinstance(reply, Update | Readiness):
        _require(_is_count(reply.num_studies), "num_studies")
    if isinstance(reply, Update):
        _require(reply.kind == "delta", "an update's kind")
        _require(reply.iterations is None or _is_count(reply.iterations), "iterations")
        _require(reply.aggregation_weight is None or _is_number(reply.aggregation_weight), "weight")


def _encode(kind: str, body: Mapping[str, Any], tensors: Tensors) -> bytearray:
    """Write version, kind, JSON body and tensors.

    Raises:
        UpdateRejectedError: If a number is not finite.
    """
    try:
        document = json.dumps(body, default=dict, allow_nan=False)
    except ValueError as error:
        raise UpdateRejectedError("message-invalid", f"The {kind} cannot be written: {error}.") from error
    return pack(tensors, {"ucadi": str(WIRE_VERSION), "kind": kind, "body": document})


def _decode(buffer: bytes | bytearray | memoryview) -> tuple[str, dict[str, Any], Tensors]:
    """Read kind, JSON body and tensors, version first."""
    try:
        tensors, metadata = unpack(buffer)
        version, kind, document = metadata["ucadi"], metadata["kind"], metadata["body"]
    except (KeyError, ValueError) as error:
        raise UpdateRejectedError("message-invalid", f"The message cannot be read: {error}.") from error
    if version != str(WIRE_VERSION):
        raise ProtocolVersionError(
            "protocol-version", f"The message has version {version[:20]!r}, this side speaks {WIRE_VERSION}."
        )
    try:
        body = json.loads(document)
        _require(isinstance(body, dict), "the body must be an object")
    except (ValueError, RecursionError) as error:
        raise UpdateRejectedError("message-invalid", f"The message cannot be read: {error}.") from error
    return kind, body, tensors


def _is_count(value: object, low: int = 0, high: int = 2**53) -> bool:
    """Tell whether a value is a whole number within bounds; a bool is none."""
    return type(value) is int and low <= value <= high


def _is_number(value: object, low: float = -1e12, high: float = 1e12) -> bool:
    """Tell whether a value is a number within bounds, which NaN never is; a bool is none."""
    return (type(value) is int or type(value) is float) and low <= value <= high


def _require(condition: bool, what: str) -> None:
    """Refuse a record at the border."""
    if not condition:
        raise ValueError(f"{what} is out of bounds")
