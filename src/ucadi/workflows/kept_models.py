# SPDX-License-Identifier: Apache-2.0
"""The models that a run keeps on disk, numbered and hashed: which is best, last, or best for a site."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ucadi.errors import CheckpointError, FederationError
from ucadi.federation.messages import GlobalModel
from ucadi.federation.plans import RunPlan, read_plan
from ucadi.federation.records import RoundRecord, own_best
from ucadi.io.checkpoint import read_tensors
from ucadi.tensors import hash_tensors

__all__ = ["KeptRun", "read_run", "run_folder"]

_RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_FIELDS = {field.name for field in fields(RoundRecord)}


@dataclass(frozen=True, eq=False)
class KeptRun:
    """A run as its folder tells it.

    Attributes:
        folder: Where it is.
        plan: What the sites approved.
        records: One per complete round, in order; the last one may only validate.
        hashes: Of the kept models, by round; 0 is the initial model.
        studies: Training studies by site, as each last reported them; empty when not recorded.
        best: Round of the selected model, or of the best so far; None when no site measured any.
        is_complete: Whether the run has ended as planned.
    """

    folder: Path
    plan: RunPlan
    records: tuple[RoundRecord, ...]
    hashes: Mapping[int, str]
    studies: Mapping[str, int]
    best: int | None
    is_complete: bool

    def model(self, number: int) -> GlobalModel:
        """Read the model of a round, and check that it is the one that the round's record names.

        Raises:
            FederationError: ``model-not-kept``, or ``model-mismatch`` when the file was changed.
            CheckpointError: If the file is missing or damaged.
        """
        if number not in self.hashes:
            raise FederationError("model-not-kept", f"{self.plan.run_id} keeps no model of round {number}.")
        parameters, _ = read_tensors(_model_path(self.folder, number))
        model = GlobalModel(number, parameters)
        if model.hash != self.hashes[number]:
            raise FederationError(
                "model-mismatch", f"The model of round {number} on disk is not the one that its record names."
            )
        return model

    def round_of(self, word: str) -> int:
        """Return the round that ``best``, ``last`` or a number names.

        Raises:
            FederationError: ``model-not-kept``.
        """
        if word == "best" and self.best is not None:
            return self.best
        if word == "last":
            return max(self.hashes)
        if word.isascii() and word.isdigit() and int(word) in self.hashes:
            return int(word)
        raise FederationError(
            "model-not-kept",
            f"{self.plan.run_id} keeps no model {word[:40]!r}; it has rounds 0 to {max(self.hashes)}.",
        )

    def scores_of(self, number: int) -> Mapping[str, Mapping[str, float]]:
        """Return what each site reported about the model of a round; empty when none has judged it yet."""
        judged = [record for record in self._judging if record.round == number + 1]
        return judged[0].metrics if judged else {}

    def validation_of(self, number: int) -> float | None:
        """Return the run's own mean score of the model of a round."""
        judged = [record.validation for record in self.records if record.round == number + 1]
        return judged[0] if judged else None

    def own_best(self) -> Mapping[str, int]:
        """Return for each site the round whose model was best on its own validation studies."""
        return own_best(self._judging)

    @property
    def _judging(self) -> list[RoundRecord]:
        """The records whose metrics judge one model: in a buffered round, each site may judge another."""
        return [record for record in self.records if record.validation is not None]


def run_folder(home: Path, run_id: str) -> Path:
    """Return a run's folder in a coordinator's home.

    Raises:
        FederationError: ``run-unknown`` if there is none, or the name cannot be one.
    """
    folder = home / "runs" / run_id if _RUN_ID.fullmatch(run_id) else None
    if folder is None or not (folder / "plan.json").is_file():
        raise FederationError("run-unknown", f"There is no run {run_id[:80]!r} in {home}.")
    return folder


def read_run(folder: Path) -> KeptRun:
    """Read a run's plan and records; its models stay on disk.

    Raises:
        CheckpointError: If plan, a record or the initial model cannot be read.
    """
    try:
        plan = read_plan(json.loads((folder / "plan.json").read_bytes()))
        documents = [json.loads(path.read_bytes()) for path in sorted((folder / "rounds").glob("*.json"))]
        records = tuple(
            RoundRecord(**{name: value for name, value in document.items() if name in _FIELDS})
            for document in documents
        )
        outcome = _read_outcome(folder)
        initial, _ = read_tensors(folder / "initial.safetensors")
        hashes = {0: hash_tensors(initial)} | {
            record.round: str(document["model_hash"])
            for record, document in zip(records, documents, strict=True)
            if _model_path(folder, record.round).is_file()
        }
        selected = outcome.get("selected_round")
        best = int(selected) if selected is not None else _best_of(records)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "checkpoint-invalid", f"The run in {folder} cannot be read: {error}."
        ) from error
    studies = _studies_of(records)
    return KeptRun(folder, plan, records, hashes, studies, best, outcome.get("status") == "completed")


def _model_path(folder: Path, number: int) -> Path:
    """Return where the model of a round is."""
    return folder / "rounds" / f"{number:04d}.safetensors" if number else folder / "initial.safetensors"


def _read_outcome(folder: Path) -> Mapping[str, Any]:
    """Return how the run ended; empty while it goes on."""
    path = folder / "outcome.json"
    document: Mapping[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return document


def _best_of(records: Sequence[RoundRecord]) -> int | None:
    """Return the round whose model was validated best so far; of equals the first, as the run selects."""
    judged = [(record.validation, record.round - 1) for record in records if record.validation is not None]
    return max(judged, key=lambda pair: pair[0])[1] if judged else None


def _studies_of(records: Sequence[RoundRecord]) -> dict[str, int]:
    """Return each site's number of training studies from the last record that states it."""
    studies: dict[str, int] = {}
    for record in records:
        studies.update(record.studies)
    return dict(sorted(studies.items()))
