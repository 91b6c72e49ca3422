# SPDX-License-Identifier: Apache-2.0
"""The card of a release: what is known about it, all of it from the records of its runs.

What no record states is said to be unknown; nothing is estimated.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ucadi.errors import UpdateRejectedError
from ucadi.federation.evaluation import Cell, Matrix, cell_of
from ucadi.federation.plans import Protection
from ucadi.federation.records import SELECTION_METRIC
from ucadi.reporting.record import RESEARCH_NOTICE
from ucadi.workflows.fit import METRIC
from ucadi.workflows.kept_models import KeptRun

__all__ = ["CardWords", "card_markdown", "network_record", "release_card"]

_CARD_VERSION = 1
_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class CardWords:
    """What only people can say about a release.

    Attributes:
        intended_use: For what it is meant; the notice about research use stands in any case.
        limits: What is known to go wrong, one sentence each.
        licence: Under which it is passed on; empty when not decided.
    """

    intended_use: str = "Research on chest CT within the federation that trained it."
    limits: tuple[str, ...] = ()
    licence: str = ""


def network_record(run: KeptRun, number: int, matrix: Matrix | None) -> dict[str, Any]:
    """Return what the records say about the model of one round.

    Args:
        run: The run.
        number: The round that made the model.
        matrix: The run's cross-site evaluation, which may know more sites, or intervals.
    """
    made_of = [record for record in run.records if 1 <= record.round <= number and record.participants]
    names = sorted({site for record in made_of for site in record.participants})
    cells = _cells(run, number, matrix)
    plan, training = run.plan, run.plan.training
    return {
        "run_id": plan.run_id,
        "plan_hash": plan.hash,
        "is_run_complete": run.is_complete,
        "network": training.network,
        "preset": training.preset,
        "parameters_hash": run.hashes[number],
        "round": number,
        "rounds_planned": plan.rounds,
        "iterations_per_round": training.iterations,
        "batch_size": training.batch_size,
        "aggregation": plan.aggregation.value,
        "protection": plan.protection.value,
        "measure": METRIC[training.task],
        "validation": run.validation_of(number),
        "sites": {
            site: {
                "rounds": sum(site in record.participants for record in made_of),
                "training_studies": run.studies.get(site),
                **_score(cells.get(site)),
            }
            for site in sorted({*names, *cells})
        },
    }


def release_card(
    name: str,
    model_id: str,
    created: str,
    networks: Mapping[str, Mapping[str, Any]],
    words: CardWords,
    parent: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the card as plain JSON values.

    Args:
        name: The release's name.
        model_id: Of its model folder.
        created: UTC time, ISO 8601.
        networks: One `network_record` by task.
        words: What people add.
        parent: Name and hash of the release before.
    """
    return {
        "card_version": _CARD_VERSION,
        "name": name,
        "model_id": model_id,
        "created": created,
        "parent": None if parent is None else dict(parent),
        "notice": RESEARCH_NOTICE,
        "intended_use": words.intended_use,
        "licence": words.licence or None,
        "limits": [*_limits(networks), *words.limits],
        "networks": {task: dict(record) for task, record in networks.items()},
    }


def card_markdown(card: Mapping[str, Any]) -> str:
    """Return a card for people."""
    parent = card["parent"]
    lines = [
        f"# Model card: {card['name']}",
        "",
        f"**{card['notice']}**",
        "",
        f"Model `{card['model_id']}`, released {card['created']}, "
        + (f"after `{parent['name']}` (`{parent['hash'][:12]}`)." if parent else "the first of its line."),
        "",
        "## Intended use",
        "",
        card["intended_use"],
        "",
        f"Licence: {card['licence'] or 'not stated; ask the coordinator before you pass it on'}.",
        "",
    ]
    for task, record in card["networks"].items():
        lines += _network_lines(task, record)
    lines += ["## Limits", "", *(f"- {limit}" for limit in card["limits"]), ""]
    return "\n".join(lines)


def _network_lines(task: str, record: Mapping[str, Any]) -> list[str]:
    """Return the part of the card about one network."""
    made = "complete" if record["is_run_complete"] else "not complete when this was released"
    lines = [
        f"## {task.capitalize()}",
        "",
        f"- Network {record['network']}, input {record['preset']}, parameters `{record['parameters_hash']}`",
        f"- Run {record['run_id']} ({made}), plan `{record['plan_hash']}`",
        f"- Round {record['round']} of {record['rounds_planned']}, each site "
        f"{record['iterations_per_round']} steps of {record['batch_size']} samples a round",
        f"- Aggregation: {record['aggregation']}",
        f"- Protection of updates: {record['protection']}",
        f"- Validation over all sites ({record['measure']}): {_number(record['validation'])}",
        "",
        f"| site | rounds | training studies | {record['measure']} (validation) | 95 % interval | studies |",
        "|---|---|---|---|---|---|",
    ]
    for site, entry in record["sites"].items():
        ends = entry["interval_95"]
        lines.append(
            f"| {site} | {entry['rounds']} | {_known(entry['training_studies'])} "
            f"| {_number(entry['validation'])} "
            f"| {f'{ends[0]:.3f} to {ends[1]:.3f}' if ends else 'not reported'} "
            f"| {_known(entry['validation_studies'])} |"
        )
    return [*lines, ""]


def _cells(run: KeptRun, number: int, matrix: Matrix | None) -> dict[str, Cell]:
    """Return each site's score of a model: from the evaluation, else from the run's own rounds."""
    cells = {
        site: _reported(site, metrics)
        for site, metrics in run.scores_of(number).items()
        if SELECTION_METRIC in metrics
    }
    for row in matrix.rows if matrix else ():
        if row.candidate.model_hash == run.hashes[number]:
            cells.update({site: cell for site, cell in row.cells.items() if cell.value is not None})
    return cells


def _reported(site: str, metrics: Mapping[str, float]) -> Cell:
    """Return what a site reported in a round; an interval or a count that cannot be is left out."""
    try:
        return cell_of(site, metrics)
    except UpdateRejectedError:
        return Cell(metrics[SELECTION_METRIC])


def _score(cell: Cell | None) -> dict[str, Any]:
    """Return a site's score as JSON values."""
    if cell is None:
        return {"validation": None, "validation_studies": None, "interval_95": None}
    interval = None if cell.low is None or cell.high is None else [cell.low, cell.high]
    return {"validation": cell.value, "validation_studies": cell.studies, "interval_95": interval}


def _limits(networks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the limits that follow from the records."""
    limits = [
        "Scores are of validation studies at the sites that trained it, and the model may have been selected "
        "by them: expect less on other patients. How it does elsewhere is not recorded here.",
    ]
    for task, record in networks.items():
        sites: Mapping[str, Mapping[str, Any]] = record["sites"]
        silent = _names(site for site, entry in sites.items() if entry["validation"] is None)
        if silent:
            limits.append(f"The {task} has no validation from {silent}.")
        bare = _names(s for s, e in sites.items() if e["validation"] is not None and not e["interval_95"])
        if bare:
            limits.append(
                f"How sure the {task}'s scores are is not known for {bare}: no interval was reported."
            )
        if not sites:
            limits.append(f"The {task} was not trained: it is the run's initial model.")
        if not record["is_run_complete"]:
            limits.append(f"The {task}'s run was not complete.")
        if record["protection"] == Protection.PLAINTEXT:
            limits.append(f"The {task}'s updates were readable at the coordinator.")
    return limits


def _names(sites: Iterable[str]) -> str:
    """Return names for a sentence; empty for none."""
    return ", ".join(sites)


def _number(value: float | None) -> str:
    """Return a score for people."""
    return _UNKNOWN if value is None else f"{value:.3f}"


def _known(value: int | None) -> str:
    """Return a count for people."""
    return _UNKNOWN if value is None else str(value)
