# SPDX-License-Identifier: Apache-2.0
"""Cross-site evaluation at the coordinator: models of a run go out one by one, sites' scores come back.

Only global models travel, which every site of the run may know anyway, and only numbers that the plan lets
sites report come back. One model is in memory at a time. Sites measure on their own validation studies, so
a column's numbers compare models and a row's numbers compare patients as much as models.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ucadi.errors import FederationError, UcadiError, UpdateRejectedError
from ucadi.federation.coordinator import check_reply, validation_of
from ucadi.federation.messages import (
    Call,
    GlobalModel,
    Phase,
    Refusal,
    Validation,
    decode_reply,
    encode_call,
)
from ucadi.federation.plans import RoundPlan, RunPlan
from ucadi.federation.ports import Answer, Exchange, Transport
from ucadi.federation.records import SELECTION_METRIC, OnProgress, Progress, RoundRecord, own_best
from ucadi.logs import event, get_logger

__all__ = [
    "HIGH_METRIC",
    "LOW_METRIC",
    "STUDIES_METRIC",
    "Candidate",
    "Cell",
    "Evaluation",
    "Matrix",
    "Row",
    "candidates_of",
    "cell_of",
    "require_agreement",
    "run_evaluation",
]

_LOG = get_logger("federation.evaluation")

STUDIES_METRIC = f"{SELECTION_METRIC}_studies"
"""Name under which a site may report on how many studies its score rests."""

LOW_METRIC, HIGH_METRIC = f"{SELECTION_METRIC}_low", f"{SELECTION_METRIC}_high"
"""Names under which a site may report the ends of its score's 95 % interval: only it has the cases."""


@dataclass(frozen=True)
class Candidate:
    """One global model to be measured at all sites.

    Attributes:
        round: The round that made it; 0 is the initial model.
        model_hash: SHA-256 over names, shapes and values.
        labels: Why it is in the matrix: ``best``, ``last``, ``best for SITE`` or ``round N``.
    """

    round: int
    model_hash: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One model's score at one site.

    Attributes:
        value: In [0, 1], 1 is best; None when there is none.
        studies: On how many studies; None when the site did not say.
        low: Lower end of the 95 % interval that the site computed; None when it sent none.
        high: Upper end.
        reason: Why there is no value: a registered code, or ``not-measured``.
    """

    value: float | None = None
    studies: int | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One model's scores at all sites.

    Attributes:
        candidate: The model.
        cells: By site.
        mean: Mean over the sites with a value, weighted by w_i as the run's own validation is.
    """

    candidate: Candidate
    cells: Mapping[str, Cell]
    mean: float | None

    @property
    def is_complete(self) -> bool:
        """Tell whether every site has a value: only such rows can be compared by their mean."""
        return all(cell.value is not None for cell in self.cells.values())


@dataclass(frozen=True)
class Matrix:
    """Models by sites.

    Attributes:
        run_id: Name of the run.
        sites: Columns, in order of name.
        rows: One per model, in order of round.
    """

    run_id: str
    sites: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def best(self) -> Candidate | None:
        """The model with the highest mean, of those that every site has measured; the first of equals."""
        scored = [(row.mean, row.candidate) for row in self.rows if row.is_complete and row.mean is not None]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None


def candidates_of(
    records: Iterable[RoundRecord],
    hashes: Mapping[int, str],
    wanted: Sequence[str],
    *,
    best: int | None = None,
) -> tuple[Candidate, ...]:
    """Return the models of a run that are asked for, each once with all its labels.

    Args:
        records: Of the run's rounds.
        hashes: Of the models that are kept, by round.
        wanted: ``best``, ``last``, ``own`` (each site's own best), ``all`` or numbers of rounds.
        best: The round that the run selected; None when it selected none.

    Raises:
        FederationError: ``model-not-kept`` for a word or round that names no kept model.
    """
    labels: dict[int, list[str]] = {}

    def add(number: int, label: str) -> None:
        if number not in hashes:
            raise FederationError("model-not-kept", f"The run keeps no model of round {number} ({label}).")
        labels.setdefault(number, []).append(label)

    for word in wanted:
        if word == "best" and best is not None:
            add(best, "best")
        elif word == "last" and hashes:
            add(max(hashes), "last")
        elif word == "own":
            # In a buffered round each site may have judged another model; then there is no common score.
            judging = [record for record in records if record.validation is not None]
            for site, number in own_best(judging).items():
                add(number, f"best for {site}")
        elif word == "all":
            for number in hashes:
                add(number, f"round {number}")
        elif word.isascii() and word.isdigit():
            add(int(word), f"round {int(word)}")
        else:
            raise FederationError("model-not-kept", f"The run has no model {word[:40]!r}.")
    return tuple(
        Candidate(number, hashes[number], tuple(dict.fromkeys(labels[number]))) for number in sorted(labels)
    )


@dataclass
class Evaluation:
    """Sends models out one by one and collects the sites' scores.

    Args:
        plan: The run; sites approved it, and answer for its models only.
        candidates: Which models.
        load: Returns the model of a round; called once for each that is sent.
        sites: Whose validation studies.
        known: Cells of an earlier, interrupted evaluation by model hash and site; not asked again.
        on_progress: Told of each accepted score and of each missing site.

    Raises:
        FederationError: ``evaluation-not-agreed`` if the plan does not let sites report their validation.
    """

    plan: RunPlan
    candidates: tuple[Candidate, ...]
    load: Callable[[int], GlobalModel]
    sites: Collection[str]
    known: Mapping[tuple[str, str], Cell] = field(default_factory=dict)
    on_progress: OnProgress = lambda progress: None

    def __post_init__(self) -> None:
        require_agreement(self.plan)
        self._cells = {key: cell for key, cell in self.known.items() if cell.value is not None}
        self._next = 0
        self._current: Candidate | None = None
        self._asked: tuple[str, ...] = ()

    def next_exchange(self) -> Exchange | None:
        """Return the next model's message, or None when every model went out."""
        self._close()
        while self._next < len(self.candidates):
            candidate = self.candidates[self._next]
            self._next += 1
            sites = tuple(s for s in sorted(self.sites) if (candidate.model_hash, s) not in self._cells)
            if not sites:
                continue
            model = self.load(candidate.round)
            if model.hash != candidate.model_hash:
                raise FederationError(
                    "model-mismatch",
                    f"The model of round {candidate.round} on disk is not the one that its record names.",
                )
            self._current, self._asked = candidate, sites
            plan = RoundPlan(self.plan, candidate.round + 1, model.hash)
            return Exchange(encode_call(Call(Phase.VALIDATE, plan, model)), sites, self.plan.train_deadline_s)
        return None

    def receive(self, answer: Answer) -> None:
        """Take one answer; a wrong one is refused with a reason and changes nothing else."""
        site, candidate = answer.site, self._current
        if candidate is None or site not in self._asked or (candidate.model_hash, site) in self._cells:
            event(_LOG, "answer out of turn ignored", site=site)
            return
        try:
            cell = Cell(reason=answer.reason) if answer.body is None else self._read(site, answer.body)
        except UcadiError as error:
            event(_LOG, "answer refused", site=site, code=error.code, detail=error.detail)
            cell = Cell(reason=error.code)
        self._cells[candidate.model_hash, site] = cell
        kind = "missing" if cell.value is None else "validation"
        self.on_progress(Progress(kind, candidate.round, site, cell.reason))

    @property
    def matrix(self) -> Matrix:
        """What is known so far."""
        sites = tuple(sorted(self.sites))
        unknown = Cell(reason="not-measured")
        rows = []
        for candidate in self.candidates:
            cells = {site: self._cells.get((candidate.model_hash, site), unknown) for site in sites}
            scores: dict[str, Mapping[str, float]] = {
                site: {SELECTION_METRIC: cell.value} for site, cell in cells.items() if cell.value is not None
            }
            mean = validation_of(self.plan, RoundRecord(candidate.round + 1, metrics=scores))
            rows.append(Row(candidate, cells, mean))
        return Matrix(self.plan.run_id, sites, tuple(rows))

    def _close(self) -> None:
        """End the current model: whoever has not answered will not."""
        for site in self._asked if self._current else ():
            self.receive(Answer(site, None, "site-late"))
        self._current, self._asked = None, ()

    def _read(self, site: str, body: bytes | bytearray | memoryview) -> Cell:
        """Return the cell that a site's reply makes.

        Raises:
            UpdateRejectedError: If it is from another site, about another model, or no score.
        """
        reply = decode_reply(body)
        number = self._current.round + 1 if self._current else 0
        if isinstance(reply, Refusal) and not reply.run_id and reply.site == site:
            return Cell(reason=reply.code)  # the site could not read the request
        check_reply(self.plan, site, reply)
        if reply.round != number:
            raise UpdateRejectedError("round-stale", f"{site} answered round {reply.round}, not {number}.")
        if isinstance(reply, Refusal):
            return Cell(reason=reply.code)
        if not isinstance(reply, Validation):
            raise UpdateRejectedError("message-invalid", f"{site} sent a {type(reply).__name__}.")
        return cell_of(site, reply.metrics)


def require_agreement(plan: RunPlan) -> None:
    """Refuse to evaluate under a plan that does not let sites report their validation.

    Raises:
        FederationError: ``evaluation-not-agreed``.
    """
    if SELECTION_METRIC not in plan.metrics:
        raise FederationError(
            "evaluation-not-agreed", f"The plan of {plan.run_id} has no {SELECTION_METRIC!r} metric."
        )


def run_evaluation(evaluation: Evaluation, transport: Transport) -> Matrix:
    """Send all models and return the matrix.

    Raises:
        EngineError: ``interrupted`` if the engine ends meanwhile; `Evaluation.matrix` keeps what came.
    """
    while (exchange := evaluation.next_exchange()) is not None:
        transport.send(exchange)
        while (answer := transport.receive()) is not None:
            evaluation.receive(answer)
    return evaluation.matrix


def cell_of(site: str, metrics: Mapping[str, float]) -> Cell:
    """Return a cell of the numbers that a site reported.

    Raises:
        UpdateRejectedError: ``message-invalid`` if the interval or the count cannot be.
    """
    value = metrics.get(SELECTION_METRIC)
    if value is None:
        return Cell(reason="not-measured")
    studies, low, high = (metrics.get(name) for name in (STUDIES_METRIC, LOW_METRIC, HIGH_METRIC))
    ends = [end for end in (low, high) if end is not None]
    if len(ends) == 1 or (ends and not 0.0 <= ends[0] <= value <= ends[1] <= 1.0):
        raise UpdateRejectedError("message-invalid", f"{site} reports a score of {value} in {ends}.")
    if studies is not None and not (1 <= studies <= 1e9 and studies == int(studies)):
        raise UpdateRejectedError("message-invalid", f"{site} reports a score of {studies} studies.")
    return Cell(float(value), None if studies is None else int(studies), low, high)
