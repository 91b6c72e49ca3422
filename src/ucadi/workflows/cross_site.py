# SPDX-License-Identifier: Apache-2.0
"""The cross-site evaluation of a run: models by sites, kept beside the run as JSON, CSV and Markdown.

RUN/evaluation/wanted.json    which models somebody asked for; gone when the matrix is complete
RUN/evaluation/matrix.json    the matrix; an interrupted evaluation goes on from it
RUN/evaluation/matrix.csv     one line per model and site
RUN/evaluation/matrix.md      for people
"""

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ucadi.errors import CheckpointError, EngineError, FederationError, StoreError, UcadiError
from ucadi.federation.evaluation import (
    Candidate,
    Cell,
    Evaluation,
    Matrix,
    Row,
    candidates_of,
    require_agreement,
    run_evaluation,
)
from ucadi.federation.ports import Transport
from ucadi.federation.records import OnProgress
from ucadi.io.checkpoint import write_bytes, write_json
from ucadi.store.evaluations import EvaluationStore
from ucadi.types import Task
from ucadi.workflows.fit import METRIC
from ucadi.workflows.kept_models import read_run

__all__ = [
    "MATRIX_FILE",
    "USUAL",
    "evaluate_across_sites",
    "evaluate_requested",
    "matrix_document",
    "matrix_markdown",
    "read_matrix",
    "request_evaluation",
    "requested_evaluation",
    "require_matrix",
    "write_matrix",
]

MATRIX_FILE = "evaluation/matrix.json"
_REQUEST_FILE = "evaluation/wanted.json"

USUAL = ("best", "last", "own")
"""The models that are measured when none are named."""


def evaluate_across_sites(
    folder: Path,
    transport: Transport,
    sites: Collection[str],
    wanted: Sequence[str] = USUAL,
    on_progress: OnProgress = lambda progress: None,
    *,
    store: EvaluationStore | None = None,
) -> Matrix:
    """Measure models of a run at its sites and keep the matrix, also when it is broken off.

    Args:
        folder: The run's folder at the coordinator.
        transport: Carries messages to the sites.
        sites: Who is connected; those that the plan does not call are left out.
        wanted: ``best``, ``last``, ``own`` (each site's own best), ``all`` or numbers of rounds.
        on_progress: Told of each score and of each missing site.
        store: Keeps the scores among the run's metrics.

    Raises:
        FederationError: ``model-not-kept`` or ``evaluation-not-agreed``.
        EngineError: If the engine ends meanwhile; what came is kept and is not asked again.
    """
    run = read_run(folder)
    earlier = read_matrix(folder)
    known = {
        (row.candidate.model_hash, site): cell
        for row in (earlier.rows if earlier else ())
        for site, cell in row.cells.items()
    }
    evaluation = Evaluation(
        run.plan,
        candidates_of(run.records, run.hashes, wanted, best=run.best),
        run.model,
        tuple(site for site in sites if run.plan.calls(site)),
        known,
        on_progress,
    )
    try:
        return run_evaluation(evaluation, transport)
    finally:
        write_matrix(folder, evaluation.matrix, run.plan.training.task)
        if store is not None:
            store.keep(evaluation.matrix)


def request_evaluation(folder: Path, wanted: Sequence[str]) -> tuple[Candidate, ...]:
    """Write down that models of a run are to be measured at its sites, and return which.

    Raises:
        FederationError: ``model-not-kept``, or ``evaluation-not-agreed`` if the plan does not allow it.
    """
    run = read_run(folder)
    candidates = candidates_of(run.records, run.hashes, wanted, best=run.best)
    require_agreement(run.plan)
    write_json(folder / _REQUEST_FILE, {"wanted": list(wanted)})
    return candidates


def requested_evaluation(folder: Path) -> tuple[str, ...] | None:
    """Return which models of a run somebody asked to be measured; None when nobody did.

    Raises:
        CheckpointError: If the request cannot be read.
    """
    path = folder / _REQUEST_FILE
    try:
        wanted = json.loads(path.read_bytes())["wanted"]
        if not isinstance(wanted, list) or not all(isinstance(word, str) for word in wanted):
            raise ValueError("no list of words")
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError("checkpoint-invalid", f"{path} cannot be read: {error}.") from error
    return tuple(wanted)


def evaluate_requested(
    folder: Path,
    transport: Transport,
    sites: Collection[str],
    store: EvaluationStore,
    on_progress: OnProgress = lambda progress: None,
) -> Matrix | None:
    """Do what was asked for, in a job of its own: sites that are at a later round answer for no earlier one.

    The request is closed when the matrix is kept, whoever was away, and when it cannot be met at all; it
    stays when the engine ends meanwhile, so that the next job goes on with what is missing.

    Args:
        folder: The run's folder at the coordinator.
        transport: Carries messages to the sites.
        sites: The members that may be called.
        store: Keeps the scores among the run's metrics.
        on_progress: Told of each score and of each missing site.

    Returns:
        The matrix; None when nothing was asked for.

    Raises:
        UcadiError: As `evaluate_across_sites`.
    """
    try:
        wanted = requested_evaluation(folder)
        if wanted is None:
            return None
        matrix = evaluate_across_sites(folder, transport, sites, wanted, on_progress, store=store)
    except UcadiError as error:
        if not isinstance(error, EngineError | StoreError):  # those may be over soon; the others stay
            _close_request(folder)
        raise
    _close_request(folder)
    return matrix


def _close_request(folder: Path) -> None:
    """Forget a request."""
    (folder / _REQUEST_FILE).unlink(missing_ok=True)


def write_matrix(folder: Path, matrix: Matrix, task: Task) -> None:
    """Write a matrix in its three forms; the JSON, from which it is read back, last."""
    write_bytes(folder / "evaluation" / "matrix.csv", _csv(matrix).encode())
    write_bytes(folder / "evaluation" / "matrix.md", matrix_markdown(matrix, task).encode())
    write_json(folder / MATRIX_FILE, matrix_document(matrix, task))


def matrix_document(matrix: Matrix, task: Task) -> dict[str, Any]:
    """Return a matrix as plain JSON values."""
    rows = [{**asdict(row), "is_complete": row.is_complete} for row in matrix.rows]
    return {
        "run_id": matrix.run_id,
        "measure": METRIC[task],
        "split": "validation",
        "sites": list(matrix.sites),
        "best_round": None if matrix.best is None else matrix.best.round,
        "rows": rows,
    }


def require_matrix(folder: Path) -> tuple[Matrix, Task]:
    """Return a run's matrix and what its models learned.

    Raises:
        FederationError: ``evaluation-missing`` if there is none.
    """
    matrix = read_matrix(folder)
    if matrix is None:
        asked = "" if requested_evaluation(folder) is None else " They were asked for: the sites are awaited."
        raise FederationError("evaluation-missing", f"The models in {folder} were not measured yet.{asked}")
    return matrix, read_run(folder).plan.training.task


def read_matrix(folder: Path) -> Matrix | None:
    """Read a run's matrix; None when there is none or it cannot be read, for it can be made again."""
    try:
        document = json.loads((folder / MATRIX_FILE).read_bytes())
        rows = tuple(
            Row(
                _candidate(row["candidate"]),
                {site: Cell(**cell) for site, cell in row["cells"].items()},
                row["mean"],
            )
            for row in document["rows"]
        )
        return Matrix(document["run_id"], tuple(document["sites"]), rows)
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None


def matrix_markdown(matrix: Matrix, task: Task) -> str:
    """Return the matrix as a table for people: models as rows, sites as columns."""
    lines = [
        f"# Models of {matrix.run_id} at its sites",
        "",
        f"{METRIC[task]} on each site's own validation studies; higher is better. Sites differ in patients, "
        "so compare down a column.",
        "",
        "| model | round | " + " | ".join(matrix.sites) + " | mean |",
        "|---" * (len(matrix.sites) + 3) + "|",
    ]
    for row in matrix.rows:
        cells = [_words(row.cells[site]) for site in matrix.sites]
        mean = "none" if row.mean is None else f"{row.mean:.3f}{'' if row.is_complete else ' (incomplete)'}"
        labels = ", ".join(row.candidate.labels)
        lines.append("| " + " | ".join([labels, str(row.candidate.round), *cells, mean]) + " |")
    if not any(cell.low is not None for row in matrix.rows for cell in row.cells.values()):
        lines += ["", "No site sent an interval: with few studies, small differences mean nothing."]
    return "\n".join([*lines, ""])


def _candidate(document: Mapping[str, Any]) -> Candidate:
    """Return a model's entry."""
    return Candidate(int(document["round"]), str(document["model_hash"]), tuple(document["labels"]))


def _words(cell: Cell) -> str:
    """Return a cell for people."""
    if cell.value is None:
        return cell.reason
    interval = "" if cell.low is None else f" [{cell.low:.3f}, {cell.high:.3f}]"
    return f"{cell.value:.3f}{interval}" + (f" (n = {cell.studies})" if cell.studies else "")


def _csv(matrix: Matrix) -> str:
    """Return one line per model and site."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["run", "round", "model_hash", "labels", "site", "value", "studies", "low", "high", "reason"]
    )
    for row in matrix.rows:
        model = row.candidate
        for site, cell in row.cells.items():
            labels, numbers = "; ".join(model.labels), (cell.value, cell.studies, cell.low, cell.high)
            writer.writerow(
                [matrix.run_id, model.round, model.model_hash, labels, site, *numbers, cell.reason]
            )
    return text.getvalue()
