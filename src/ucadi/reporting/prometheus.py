# SPDX-License-Identifier: Apache-2.0
"""The federation's numbers as Prometheus reads them.

Every call makes the text anew from numbers that were read from storage, so a coordinator that started a
moment ago reports the same as one that has run for a month, and there is no global registry.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["FederationNumbers", "RunNumbers", "render"]


@dataclass(frozen=True)
class RunNumbers:
    """One run.

    Attributes:
        run_id: Name of the run.
        state: Its state.
        round: Complete rounds.
        rounds: Planned rounds.
        participants: Sites in the last complete round.
        missing: Sites missing from the last complete round, by reason.
        validation: Mean score of the newest model that was judged, in [0, 1]; None before the first.
        site_validation: The same by site.
        upload_bytes: Bytes of all accepted updates.
        phase_seconds: Seconds of the last complete round by phase.
        waiting: Whether the round under way waits for sites.
    """

    run_id: str
    state: str
    round: int
    rounds: int
    participants: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    validation: float | None = None
    site_validation: Mapping[str, float] = field(default_factory=dict)
    upload_bytes: int = 0
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    waiting: bool = False


@dataclass(frozen=True)
class FederationNumbers:
    """All that a coordinator reports.

    Attributes:
        runs: Every run.
        run_states: All states that a run can have, so that a count of 0 is reported too.
        sites_by_state: Number of sites by state of their membership.
    """

    runs: tuple[RunNumbers, ...]
    run_states: tuple[str, ...]
    sites_by_state: Mapping[str, int]


def render(numbers: FederationNumbers) -> bytes:
    """Return the numbers in Prometheus' text format, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(numbers))
    return generate_latest(registry)


class _Numbers(Collector):
    """Gives a registry what was read."""

    def __init__(self, numbers: FederationNumbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        """Return all metrics."""
        runs = self._numbers.runs
        yield _count("ucadi_sites", "Sites by state of their membership.", self._numbers.sites_by_state)
        states = dict.fromkeys(self._numbers.run_states, 0) | Counter(run.state for run in runs)
        yield _count("ucadi_runs", "Runs by state.", states)
        rounds = {run.run_id: float(run.round) for run in runs}
        yield _by_run("ucadi_run_round", "Complete rounds of a run.", rounds)
        planned = {run.run_id: float(run.rounds) for run in runs}
        yield _by_run("ucadi_run_planned_rounds", "Rounds that a run's plan has.", planned)
        waiting = {run.run_id: float(run.waiting) for run in runs}
        yield _by_run("ucadi_run_waiting", "1 while a round waits for enough sites.", waiting)
        taking_part = {run.run_id: float(run.participants) for run in runs}
        yield _by_run("ucadi_run_participants", "Sites in a run's last complete round.", taking_part)
        scores = {run.run_id: run.validation for run in runs if run.validation is not None}
        yield _by_run("ucadi_run_validation", "Mean score of the newest judged model.", scores)
        sent = CounterMetricFamily(
            "ucadi_run_upload_bytes", "Bytes of all accepted updates of a run.", labels=["run"]
        )
        for run in runs:
            sent.add_metric([run.run_id], run.upload_bytes)
        yield sent
        yield _by_run_and(
            "reason",
            "ucadi_run_missing",
            "Sites missing from the last complete round.",
            {run.run_id: run.missing for run in runs},
        )
        yield _by_run_and(
            "site",
            "ucadi_run_site_validation",
            "A site's score of the newest model that it judged.",
            {run.run_id: run.site_validation for run in runs},
        )
        yield _by_run_and(
            "phase",
            "ucadi_run_phase_seconds",
            "Seconds of the last complete round by phase.",
            {run.run_id: run.phase_seconds for run in runs},
        )


def _count(name: str, words: str, values: Mapping[str, int]) -> Metric:
    """Return numbers by state."""
    metric = GaugeMetricFamily(name, words, labels=["state"])
    for state, value in values.items():
        metric.add_metric([state], value)
    return metric


def _by_run(name: str, words: str, values: Mapping[str, float]) -> Metric:
    """Return one number for each run."""
    metric = GaugeMetricFamily(name, words, labels=["run"])
    for run_id, value in values.items():
        metric.add_metric([run_id], value)
    return metric


def _by_run_and(
    label: str, name: str, words: str, values: Mapping[str, Mapping[str, int] | Mapping[str, float]]
) -> Metric:
    """Return numbers by run and one more label."""
    metric = GaugeMetricFamily(name, words, labels=["run", label])
    for run_id, numbers in values.items():
        for key, value in numbers.items():
            metric.add_metric([run_id, key], value)
    return metric
