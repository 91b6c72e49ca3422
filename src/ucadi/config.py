# SPDX-License-Identifier: Apache-2.0
"""Settings that a user writes: frozen, validated once, one TOML file each.

Keys and passwords never stand in these files. Unknown keys are refused by name.
"""

import re
import tomllib
import zoneinfo
from datetime import time
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ucadi.errors import ConfigError
from ucadi.federation.plans import REPORTABLE_METRICS
from ucadi.imaging.presets import PRESETS
from ucadi.models.registry import NETWORKS
from ucadi.types import Task

__all__ = [
    "CoordinatorAddress",
    "CoordinatorFile",
    "CoordinatorSettings",
    "Hours",
    "Policy",
    "PolicyFile",
    "RunSettings",
    "Settings",
    "SimulateConfig",
    "SiteFile",
    "SiteSettings",
    "TrainConfig",
    "TrainingSettings",
    "load_config",
]

Count = Annotated[int, Field(ge=1, le=100_000)]
Positive = Annotated[float, Field(gt=0, le=10)]


class Settings(BaseModel):
    """Frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TrainingSettings(Settings):
    """What is learned, and with which numbers."""

    task: Task
    """``classifier`` or ``segmentation``."""
    network: str
    """A name from the network register."""
    preset: str = "paper"
    """A name from the register of input presets."""
    iterations: Count
    """Optimizer steps: per round in a federation, in all for local training."""
    batch_size: Annotated[int, Field(ge=1, le=1024)]
    """Samples per step."""
    learning_rate: Positive
    """Adam's step size at the start; it falls along half a cosine over the rounds or evaluations."""

    @field_validator("preset")
    @classmethod
    def _preset_is_known(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"there is no preset {value!r}; there is: {', '.join(PRESETS)}")
        return value

    @model_validator(mode="after")
    def _network_fits_task(self) -> "TrainingSettings":
        entry = NETWORKS.get(self.network)
        if entry is None or entry.task is not self.task:
            fitting = ", ".join(name for name, e in NETWORKS.items() if e.task is self.task)
            raise ValueError(f"network {self.network!r} cannot learn {self.task}; these can: {fitting}")
        return self


class SiteSettings(Settings):
    """A site's own settings. They live at the site and no plan overrides them."""

    cohort: Path
    """The cohort's folder."""
    cache: Path
    """Where preprocessed studies are kept."""
    labels: Literal["use", "none"] = "use"
    """Whether the readers' labels and lesion masks may be learned from; with ``none`` the site declines
    every plan that needs them."""
    device: Literal["cpu"] = "cpu"
    """What the site trains on; this release trains on processors only."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU threads for training."""
    max_iterations: Count = 10_000
    """Largest number of steps per round that the site agrees to."""
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 64
    """Largest number of samples per step that the site agrees to."""
    max_learning_rate: Positive = 0.1
    """Largest learning rate that the site agrees to."""
    min_studies: Annotated[int, Field(ge=1)] = 5
    """Fewest training studies with which the site takes part, so that no update speaks of a few patients."""
    min_class_studies: Annotated[int, Field(ge=1)] = 5
    """Fewest studies of each class that enters a metric; a metric that speaks of fewer is not reported."""


class RunSettings(Settings):
    """A federated run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    """Lower case letters, digits and hyphens."""
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    """Number of rounds."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the initial model, the sample order and the augmentation."""
    min_sites: Annotated[int, Field(ge=1)] = 2
    """Fewest sites per round."""
    client_weights: dict[str, Positive] = {}
    """w_i by site; 1 when not named."""
    weighting: Literal["normalized", "paper_exact"] = "normalized"
    """How n_i·w_i are scaled."""


class SimulateConfig(Settings):
    """``ucadi simulate``: a whole federation in one process."""

    config_version: Literal[1]
    run: RunSettings
    training: TrainingSettings
    sites: Annotated[dict[str, SiteSettings], Field(min_length=1)]

    @model_validator(mode="after")
    def _run_fits_sites(self) -> "SimulateConfig":
        if self.run.min_sites > len(self.sites):
            raise ValueError(f"run.min_sites is {self.run.min_sites}, but there are {len(self.sites)} sites")
        unknown = sorted(self.run.client_weights.keys() - self.sites.keys())
        if unknown:
            raise ValueError(f"run.client_weights names {', '.join(unknown)}, which is none of the sites")
        return self


class TrainConfig(Settings):
    """``ucadi train``: local training on one cohort, or on several pooled."""

    config_version: Literal[1]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    cohorts: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Folders; more than one is pooled training."""
    cache: Path
    """Where preprocessed studies are kept."""
    evaluations: Count = 5
    """How often the validation studies are scored; the best state is kept."""
    training: TrainingSettings


class CoordinatorAddress(Settings):
    """The federation that a site has joined."""

    site: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
    """The name under which the site takes part, as its certificate states it."""
    name: Annotated[str, Field(min_length=1, max_length=63)]
    """The coordinator's name."""
    host: Annotated[str, Field(min_length=1, max_length=253)]
    """Name or address under which the site reaches the coordinator."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """Where the federation's messages go."""
    api_port: Annotated[int, Field(ge=1, le=65535)]
    """Where enrolment and releases are served over HTTPS."""


class CoordinatorSettings(Settings):
    """A coordinator's own settings."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
    """The federation's name."""
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")]
    """Name or IPv4 address under which the sites reach the coordinator."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8102
    """Where the federation's messages come in."""
    api_port: Annotated[int, Field(ge=1, le=65535)] = 8103
    """Where enrolment and releases are served over HTTPS."""
    database: str = ""
    """URL of the database; empty is ``state.sqlite`` in the home."""
    retry_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """Pause in seconds before something that failed is tried again."""

    @model_validator(mode="after")
    def _ports_differ(self) -> "CoordinatorSettings":
        if self.port == self.api_port:
            raise ValueError(f"port and api_port are both {self.port}")
        return self


class CoordinatorFile(Settings):
    """``coordinator.toml`` in a coordinator's home."""

    config_version: Literal[1]
    coordinator: CoordinatorSettings


class SiteFile(Settings):
    """``site.toml`` in a site's home."""

    config_version: Literal[1]
    site: SiteSettings
    coordinator: CoordinatorAddress | None = None
    """Where the site has joined; none before ``ucadi site join``."""


class Hours(Settings):
    """When a site takes part in runs."""

    start: time
    """Local time from which the site takes part, for example ``19:00``."""
    end: time
    """Local time from which it no longer does; earlier than ``start`` means on the next day."""
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = (
        *("mon", "tue", "wed", "thu", "fri", "sat", "sun"),
    )
    """Days on which a period starts."""
    time_zone: str = ""
    """Name in the time zone database, for example ``Europe/Rome``; empty takes the computer's own."""

    @field_validator("start", "end", mode="before")
    @classmethod
    def _is_a_time_of_day(cls, value: object) -> object:
        # A TOML time or "19:00": numbers would be read as seconds, and offsets belong into time_zone.
        if isinstance(value, time) or (isinstance(value, str) and re.fullmatch(r"\d\d:\d\d(:\d\d)?", value)):
            return value
        raise ValueError('a time of day is written as "19:00"')

    @field_validator("time_zone")
    @classmethod
    def _time_zone_is_known(cls, value: str) -> str:
        if value and value not in zoneinfo.available_timezones():
            raise ValueError("there is no such time zone; write for example Europe/Rome")
        return value


def _all_among(known: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a list with a name that is not registered: a slip of the pen would forbid everything."""
    for name in names:
        if name not in known:
            raise ValueError(f"there is no {name[:80]!r}; there is: {', '.join(known)}")
    return names


class Policy(Settings):
    """What a site agrees to. A plan beyond it is forbidden, whoever approves it.

    Every setting is a ceiling, a floor or a list, so that a stricter policy never lets a plan pass that a
    looser one forbids.
    """

    approve: Literal["ask", "within-policy"] = "ask"
    """Whether a person approves each plan, or every plan within this policy is approved at once."""
    tasks: tuple[Task, ...] = tuple(Task)
    """What may be learned."""
    networks: Annotated[tuple[str, ...], AfterValidator(partial(_all_among, tuple(NETWORKS)))] = tuple(
        NETWORKS
    )
    """Networks that may be trained."""
    presets: Annotated[tuple[str, ...], AfterValidator(partial(_all_among, tuple(PRESETS)))] = tuple(PRESETS)
    """Input presets that may be used."""
    metrics: Annotated[tuple[str, ...], AfterValidator(partial(_all_among, REPORTABLE_METRICS))] = (
        "loss",
        "validation",
    )
    """Numbers that may be reported besides updates."""
    require_encryption: bool = False
    """Whether updates must be hidden from the coordinator."""
    min_sites: Annotated[int, Field(ge=1, le=100_000)] = 2
    """Fewest sites per round."""
    min_patients: Annotated[int, Field(ge=0)] = 10
    """Fewest patients of this site among its training studies."""
    max_rounds: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """Most rounds of a run."""
    max_iterations: Count = 10_000
    """Most optimizer steps per round."""
    max_epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Most passes per round over the site's training studies; not limited when not set."""
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 64
    """Most samples per step."""
    max_learning_rate: Positive = 0.1
    """Largest learning rate."""
    max_weight_ratio: Annotated[float, Field(ge=1, le=1e12)] = 10.0
    """How many times as much as the lightest site's the heaviest site's update may count."""
    hours: Hours | None = None
    """When the site takes part; always when not set."""


class PolicyFile(Settings):
    """``policy.toml`` in a site's home."""

    config_version: Literal[1]
    policy: Policy = Policy()


ConfigT = TypeVar("ConfigT", bound=Settings)


def load_config(kind: type[ConfigT], path: Path) -> ConfigT:
    """Read a TOML file; relative paths in it are taken from the file's folder.

    Raises:
        ConfigError: If the file is missing, no TOML, or a setting is wrong; names the key as written.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("config-invalid", f"{path} does not exist.", cure="Check the path.") from error
    except OSError as error:
        raise ConfigError(
            "config-invalid", f"{path} cannot be read: {error.strerror}.", cure="Give a file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("config-invalid", f"{path} is not TOML: {error}.") from error
    try:
        return kind.model_validate(_resolve(document, path.parent))
    except ValidationError as error:
        # A key that does not exist first: what is missing is often the same key, misspelled.
        first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["type"] == "extra_forbidden":
            raise ConfigError("config-invalid", f"{path}: {key}: there is no such setting.") from error
        # The value is of use for a single setting only, not for a whole table.
        seen = (
            "" if isinstance(first["input"], dict | BaseModel) else f" (seen: {str(first['input'])[:80]!r})"
        )
        raise ConfigError("config-invalid", f"{path}: {key}: {first['msg']}{seen}.") from error


def _resolve(document: dict[str, object], base: Path) -> dict[str, object]:
    """Make the known path settings absolute."""
    resolved: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            resolved[key] = _resolve(value, base)
        elif key in ("cohort", "cache") and isinstance(value, str):
            resolved[key] = base / value
        elif key == "cohorts" and isinstance(value, list):
            resolved[key] = [base / item if isinstance(item, str) else item for item in value]
        else:
            resolved[key] = value
    return resolved
