# SPDX-License-Identifier: Apache-2.0
"""A site's home: the folder that holds its settings, policy, keys, kit, memory and outbox."""

import json
from dataclasses import dataclass
from pathlib import Path

from ucadi.config import CoordinatorAddress, Policy, PolicyFile, SiteFile, SiteSettings, load_config
from ucadi.errors import ConfigError
from ucadi.store.database import Database
from ucadi.store.site_state import SiteState
from ucadi.versions import CONFIG_VERSION

__all__ = ["POLICY_TEXT", "SiteHome", "SiteState", "site_text"]


@dataclass(frozen=True)
class SiteHome:
    """Where everything of a site lies.

    Attributes:
        folder: The home itself.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "SiteHome":
        """Return an existing home.

        Raises:
            ConfigError: ``site-home-missing`` if there are no settings of a site in the folder.
        """
        home = cls(folder.absolute())
        if not home.settings_file.is_file():
            raise ConfigError("site-home-missing", f"There is no {home.settings_file.name} in {folder}.")
        return home

    @property
    def settings_file(self) -> Path:
        """The site's own settings and where it joined."""
        return self.folder / "site.toml"

    @property
    def policy_file(self) -> Path:
        """What the site agrees to."""
        return self.folder / "policy.toml"

    @property
    def state_file(self) -> Path:
        """Plans, decisions, what left, flags."""
        return self.folder / "state.sqlite"

    @property
    def outbox(self) -> Path:
        """Replies that are kept before they leave."""
        return self.folder / "outbox"

    @property
    def keys(self) -> Path:
        """Private keys, which never leave."""
        return self.folder / "keys"

    @property
    def kit(self) -> Path:
        """The engine's kit."""
        return self.folder / "kit"

    @property
    def logs(self) -> Path:
        """What the site's processes write down for its own people."""
        return self.folder / "logs"

    def read_settings(self) -> SiteFile:
        """Read the site's own settings.

        Raises:
            ConfigError: If the file is missing or wrong.
        """
        return load_config(SiteFile, self.settings_file)

    def read_policy(self) -> Policy:
        """Read what the site agrees to.

        Raises:
            ConfigError: If the file is missing or wrong: a site without a policy takes part in nothing.
        """
        return load_config(PolicyFile, self.policy_file).policy

    def open_state(self) -> SiteState:
        """Open the site's memory.

        Raises:
            StoreError: If it is damaged or of another version.
        """
        return SiteState(Database.open(f"sqlite:///{self.state_file}"))


def site_text(settings: SiteSettings, coordinator: CoordinatorAddress | None = None) -> str:
    """Return the text of a site's settings file."""
    sections = {"site": settings} | ({"coordinator": coordinator} if coordinator else {})
    lines = [f"config_version = {CONFIG_VERSION}"]
    for name, section in sections.items():
        lines += ["", f"[{name}]"]
        # A JSON string, number or boolean is also a TOML one.
        lines += [f"{key} = {json.dumps(value)}" for key, value in section.model_dump(mode="json").items()]
    return "\n".join(lines) + "\n"


POLICY_TEXT = f"""\
# What this site agrees to. A plan beyond these lines is forbidden, whoever approves it.
# Changes count from the next request of the coordinator on; nothing needs to be started again.
config_version = {CONFIG_VERSION}

[policy]
# "ask": a person reads and approves each plan (ucadi site plans, ucadi site approve ID).
# "within-policy": a plan that keeps to all the lines below is approved at once.
approve = "ask"

# What may be learned, with which networks and inputs, and which numbers may be reported.
tasks = ["classifier", "segmentation"]
networks = ["densenet3d", "unet3d"]
presets = ["paper", "compact"]
# "validation_studies", "validation_low" and "validation_high" say how sure a score is.
metrics = ["loss", "validation"]

# true: no plan in which the coordinator can read this site's updates.
require_encryption = false

# Fewest sites per round, and fewest patients of this site among its training studies.
min_sites = 2
min_patients = 10

# Most rounds of a run, optimizer steps and samples per step in a round, and the largest learning rate.
max_rounds = 1000
max_iterations = 10000
max_batch_size = 64
max_learning_rate = 0.1
# How many times as much as the lightest site's the heaviest site's update may count. With a weight large
# enough for one site, a model that is made of all of them shows the update of that one alone.
max_weight_ratio = 10.0
# Most passes per round over this site's training studies:
# max_epochs = 5

# Hours in which this site takes part; runs wait outside of them.
# [policy.hours]
# start = "19:00"
# end = "07:00"
# days = ["mon", "tue", "wed", "thu", "fri"]
# time_zone = "Europe/Rome"    # the computer's own when left out
"""
"""A new site's policy, explained line by line."""
