# SPDX-License-Identifier: Apache-2.0
"""The result report: one HTML file that needs no network, no script and no other file."""

import base64
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ucadi import __version__
from ucadi.errors import CODES
from ucadi.reporting.charts import BarChart, CurveChart, draw_bars, draw_curves
from ucadi.reporting.record import (
    CONSOLIDATION_HU,
    GROUND_GLASS_HU,
    MIN_LESION_ML,
    PLAINTEXT,
    RESEARCH_NOTICE,
    ReadingRecord,
    whole_percents,
)
from ucadi.types import PathLikeStr, Task

__all__ = ["render_report", "write_report"]

_METRICS = {"macro_auc": "macro AUC", "dice": "Dice"}
_TASKS = {Task.CLASSIFIER: "Classifier", Task.SEGMENTATION: "Lesion segmentation"}
_ABSENCE = {"no-answer": "no answer in time", "cohort-empty": "no study for this task"}


@dataclass(frozen=True)
class _ClassBar:
    """One class of the probability figure: bar and whisker in percent of the track.

    ``is_named`` marks the class that the statement names; a reading that "cannot say" stresses none.
    """

    name: str
    percent: int
    width: float
    low: float
    high: float
    is_named: bool


@dataclass(frozen=True)
class _Presence:
    """Whether a site took part in a round, and if not, why."""

    took_part: bool
    words: str


@dataclass(frozen=True)
class _TaskStory:
    """How one of the two networks was trained."""

    title: str
    metric: str
    sentence: str
    curves: CurveChart | None
    bars: BarChart | None
    sites: tuple[str, ...]
    rounds: tuple[tuple[int, tuple[_Presence, ...]], ...]


def write_report(
    path: PathLikeStr,
    record: ReadingRecord,
    overview_png: PathLikeStr,
    federation: Mapping[str, Any] | None = None,
) -> None:
    """Write the report of one reading.

    Args:
        path: HTML file to write.
        record: The reading.
        overview_png: The picture of `ucadi.reporting.overview`; it is copied into the HTML.
        federation: Summary of the training run, to tell how the model came to be.
    """
    html = render_report(record, Path(overview_png).read_bytes(), federation)
    Path(path).write_text(html, encoding="utf-8")


def render_report(
    record: ReadingRecord, overview_png: bytes, federation: Mapping[str, Any] | None = None
) -> str:
    """Return the report as HTML; see `write_report`."""
    environment = Environment(
        loader=PackageLoader("ucadi.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ml"] = _in_ml
    return environment.get_template("report.html.j2").render(
        record=record,
        notice=RESEARCH_NOTICE,
        version=__version__,
        is_plaintext=record.model.protection == PLAINTEXT,
        bars=_class_bars(record),
        ggo_hu=_range_words(GROUND_GLASS_HU),
        consolidation_hu=_range_words(CONSOLIDATION_HU),
        min_lesion_ml=MIN_LESION_ML,
        chosen=[series for series in record.input.series if series.chosen],
        dropped=[series for series in record.input.series if not series.chosen],
        overview=base64.b64encode(overview_png).decode("ascii"),
        federation=federation,
        stories=[_story(task, federation) for task in Task if federation and task in federation],
    )


def _in_ml(volume_ml: float) -> str:
    """Write a volume with one decimal and a thin space between thousands."""
    return f"{volume_ml:,.1f}".replace(",", "\u2009")


def _range_words(bounds_hu: tuple[float, float]) -> str:
    """Write two bounds with a true minus sign."""
    low, high = (f"{bound:.0f}".replace("-", "−") for bound in bounds_hu)
    return f"{low} to {high}"


def _class_bars(record: ReadingRecord) -> list[_ClassBar]:
    """Lay out the probability figure, most likely class first."""
    result = record.classification
    percents = whole_percents(result.probabilities)
    ordered = sorted(result.probabilities.items(), key=lambda item: -item[1])
    return [
        _ClassBar(
            name=name,
            percent=percents[name],
            width=100.0 * probability,
            low=100.0 * max(0.0, probability - result.spread[name]),
            high=100.0 * min(1.0, probability + result.spread[name]),
            is_named=result.is_conclusive and name == ordered[0][0],
        )
        for name, probability in ordered
    ]


def _story(task: Task, federation: Mapping[str, Any]) -> _TaskStory:
    """Gather what the summary says about one network."""
    summary = federation[task]
    metric = _METRICS.get(summary["metric"], summary["metric"])
    single_site: Mapping[str, float] = summary["single_site"]
    participants: Mapping[str, list[str]] = federation["participants"].get(task, {})
    missing: Mapping[str, Mapping[str, str]] = federation["missing"].get(task, {})
    present = {site for sites in participants.values() for site in sites}
    sites = tuple(sorted(present | {site for absent in missing.values() for site in absent}))
    numbers = sorted({int(number) for number in (*participants, *missing)})
    rounds = tuple(
        (
            number,
            tuple(
                _presence(site, participants.get(str(number), []), missing.get(str(number), {}))
                for site in sites
            ),
        )
        for number in numbers
    )
    return _TaskStory(
        title=_TASKS[task],
        metric=metric,
        sentence=_compare(metric, summary["global"], single_site, summary["rounds"]),
        curves=draw_curves(summary["curve"]),
        bars=draw_bars(summary["global"], single_site) if single_site else None,
        sites=sites,
        rounds=rounds,
    )


def _compare(metric: str, federated: float, single_site: Mapping[str, float], rounds: int) -> str:
    """Put the comparison on the held-out cohort into words, without judging it."""
    trained = f"{rounds} round{'' if rounds == 1 else 's'}"
    sentence = f"The federated model ({trained}) reaches {metric} {federated:.2f} on the held-out cohort"
    if not single_site:
        return f"{sentence}."
    values = single_site.values()
    return (
        f"{sentence}; the sites' own models reach {statistics.fmean(values):.2f} on average "
        f"({min(values):.2f} to {max(values):.2f})."
    )


def _presence(site: str, participants: list[str], missing: Mapping[str, str]) -> _Presence:
    """Say whether a site took part in a round, or why not."""
    if site in participants:
        return _Presence(took_part=True, words="took part")
    code = missing.get(site)
    if code is None:
        return _Presence(took_part=False, words="not asked")
    fallback = CODES[code].public_message.rstrip(".") if code in CODES else code
    return _Presence(took_part=False, words=_ABSENCE.get(code, fallback))
