# SPDX-License-Identifier: Apache-2.0
"""Settings that a user writes: frozen, validated once, one TOML file each.

Keys and passwords never stand in these files. Unknown keys are refused by name.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ucadi.errors import ConfigError
from ucadi.imaging.presets import PRESETS
from ucadi.models.registry import NETWORKS
from ucadi.types import Task

__all__ = [
    "RunSettings",
    "SimulateConfig",
    "SiteFile",
    "SiteSettings",
    "TrainConfig",
    "TrainingSettings",
    "load_config",
]

Count = Annotated[int, Field(ge=1, le=100_000)]
Positive = Annotated[float, Field(gt=0, le=10)]


class _Settings(BaseModel):
    """Frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TrainingSettings(_Settings):
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


class SiteSettings(_Settings):
    """A site's own settings. They live at the site and no plan overrides them."""

    cohort: Path
    """The cohort's folder."""
    cache: Path
    """Where preprocessed studies are kept."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU threads for training."""
    max_iterations: Count = 10_000
    """Largest number of steps per round that the site agrees to."""
    max_learning_rate: Positive = 0.1
    """Largest learning rate that the site agrees to."""
    min_studies: Annotated[int, Field(ge=1)] = 5
    """Fewest training studies with which the site takes part, so that no update speaks of a few patients."""


class RunSettings(_Settings):
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


class SimulateConfig(_Settings):
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


class TrainConfig(_Settings):
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


class SiteFile(_Settings):
    """``ucadi.toml`` in a site's kit."""

    config_version: Literal[1]
    site: SiteSettings


ConfigT = TypeVar("ConfigT", bound=_Settings)


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
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
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
