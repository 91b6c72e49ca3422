# SPDX-License-Identifier: Apache-2.0
"""The file in which a person writes a run's plan, and the plan in words for those who approve it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ucadi.config import RunSettings, Settings, TrainingSettings, load_config
from ucadi.errors import ConfigError
from ucadi.federation.plans import Aggregation, Protection, RunPlan, TrainingPlan, Weighting
from ucadi.models.registry import NETWORKS

__all__ = ["PlanFile", "PlanRunSettings", "describe_plan", "load_plan"]

Seconds = Annotated[float, Field(gt=0, le=366 * 86400)]


class PlanRunSettings(RunSettings):
    """``[run]`` of a plan file: who takes part, how long to wait, how updates become a model."""

    sites: tuple[str, ...] = ()
    """Who may take part; none named means every site of the federation."""
    ready_deadline_s: Seconds = RunPlan.ready_deadline_s
    """How long a site may take to say that it is ready, in seconds."""
    train_deadline_s: Seconds = RunPlan.train_deadline_s
    """How long a site may take to train one round, in seconds."""
    patience_s: Seconds = RunPlan.patience_s
    """How long a round may wait for ``min_sites`` before the run ends, in seconds."""
    protection: Protection = RunPlan.protection
    """How updates are hidden."""
    aggregation: Aggregation = RunPlan.aggregation
    """``synchronous`` or ``buffered``."""
    buffer_size: Annotated[int, Field(ge=0, le=100_000)] = RunPlan.buffer_size
    """Updates per model in buffered aggregation; 0 in synchronous."""
    metrics: tuple[
        Literal["loss", "validation", "validation_studies", "validation_low", "validation_high"], ...
    ] = ("loss", "validation")
    """What sites report besides their update; the last three say how sure the validation is."""


class PlanFile(Settings):
    """``ucadi run submit``: a run of a federation whose sites decide for themselves."""

    config_version: Literal[1]
    run: PlanRunSettings
    training: TrainingSettings

    @model_validator(mode="after")
    def _sites_fit(self) -> "PlanFile":
        run = self.run
        twice = sorted({site for site in run.sites if run.sites.count(site) > 1})
        if twice:
            raise ValueError(f"run.sites names {', '.join(twice)} twice")
        if run.sites and run.min_sites > len(run.sites):
            raise ValueError(f"run.min_sites is {run.min_sites}, but run.sites names {len(run.sites)}")
        unknown = sorted(run.client_weights.keys() - set(run.sites)) if run.sites else []
        if unknown:
            raise ValueError(f"run.client_weights names {', '.join(unknown)}, which run.sites does not")
        return self

    @model_validator(mode="after")
    def _buffer_fits(self) -> "PlanFile":
        run = self.run
        if run.aggregation is Aggregation.BUFFERED and run.buffer_size < 1:
            raise ValueError('run.buffer_size must be at least 1 when run.aggregation is "buffered"')
        if run.aggregation is not Aggregation.BUFFERED and run.buffer_size:
            raise ValueError(
                f"run.buffer_size is {run.buffer_size}, but run.aggregation is {run.aggregation.value!r}; "
                'write run.aggregation = "buffered" or leave run.buffer_size out'
            )
        if run.buffer_size and run.buffer_size < run.min_sites:
            raise ValueError(
                f"run.buffer_size is {run.buffer_size}, but run.min_sites is {run.min_sites}; "
                "a model would be made of fewer sites"
            )
        if run.sites and run.buffer_size > len(run.sites):
            raise ValueError(
                f"run.buffer_size is {run.buffer_size}, but run.sites names {len(run.sites)}, "
                "each of which gives one update per model"
            )
        return self

    @model_validator(mode="after")
    def _metrics_fit(self) -> "PlanFile":
        names = set(self.run.metrics)
        if ("validation_low" in names) != ("validation_high" in names):
            raise ValueError(
                "run.metrics names one end of the interval; name validation_low and validation_high"
            )
        if "validation" not in names and names - {"loss"}:
            raise ValueError(f"run.metrics names {min(names - {'loss'})} without validation")
        return self

    def plan(self) -> RunPlan:
        """Return the plan that the sites are shown.

        Raises:
            ValueError: With the field that no plan can have.
        """
        fields = dict(self.run)
        return RunPlan(
            run_id=fields.pop("name"),
            training=TrainingPlan(**dict(self.training)),
            weighting=Weighting(fields.pop("weighting")),
            **fields,
        )


def load_plan(path: Path) -> RunPlan:
    """Read a plan file.

    Raises:
        ConfigError: ``config-invalid``, with the key as written.
    """
    settings = load_config(PlanFile, path)
    try:
        return settings.plan()
    except ValueError as error:
        raise ConfigError("config-invalid", f"{path}: {error}.") from error


def describe_plan(plan: RunPlan) -> list[tuple[str, str]]:
    """Return the plan in plain words: pairs of a heading and a sentence."""
    training = plan.training
    entry = NETWORKS.get(training.network)
    steps = "1 step" if training.iterations == 1 else f"{training.iterations} steps"
    return [
        ("Run", plan.run_id),
        ("Plan", plan.hash),
        (
            "Learns",
            f"{training.task.value}, network {training.network}"
            + (f" ({entry.summary})" if entry else " (not registered here)"),
        ),
        ("Input", f"preset {training.preset}"),
        (
            "Training",
            f"{plan.rounds} rounds; in each, every site takes {steps} of {training.batch_size} samples, "
            f"learning rate {training.learning_rate:g} at the start, falling; seed {plan.seed}",
        ),
        ("Sites", _sites(plan)),
        ("Waiting", _waiting(plan)),
        ("Aggregation", _aggregation(plan)),
        ("Protection", _protection(plan)),
        (
            "Leaves a site",
            "the change of the model's parameters, the number of training studies"
            + (f", and these numbers: {', '.join(plan.metrics)}" if plan.metrics else "; no metric"),
        ),
    ]


def _sites(plan: RunPlan) -> str:
    """Say who takes part."""
    who = ", ".join(plan.sites) if plan.sites else "every site of the federation that approves the plan"
    return f"{who}; at least {plan.min_sites} per round"


def _waiting(plan: RunPlan) -> str:
    """Say how long is waited for what."""
    return (
        f"{_duration(plan.ready_deadline_s)} for a site to say that it is ready, "
        f"{_duration(plan.train_deadline_s)} for its update, "
        f"{_duration(plan.patience_s)} for enough sites before the run ends"
    )


def _aggregation(plan: RunPlan) -> str:
    """Say how updates become a model."""
    if plan.aggregation is Aggregation.BUFFERED:
        words = f"buffered: a new model after every {plan.buffer_size} updates, older ones count less"
    else:
        words = "synchronous: one new model per round, of all updates in it"
    if plan.weighting is Weighting.PAPER_EXACT:
        words += "; weights scaled as in the study (paper_exact)"
    named = ", ".join(f"{site} {weight:g}" for site, weight in sorted(plan.client_weights.items()))
    if not named:
        return f"{words}; all sites weigh the same"
    return (
        f"{words}; weights: {named}, all others 1; "
        f"the heaviest site counts {plan.weight_ratio:g} times as much as the lightest"
    )


def _protection(plan: RunPlan) -> str:
    """Say who can read an update."""
    if plan.protection is Protection.PLAINTEXT:
        return "plaintext: the coordinator can read each site's update"
    return str(plan.protection.value)


def _duration(seconds: float) -> str:
    """Say a time in the largest unit that divides it."""
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length and seconds % length == 0:
            count = int(seconds // length)
            return f"{count} {name}" if count > 1 else f"1 {name[:-1]}"
    return f"{seconds:g} seconds"
