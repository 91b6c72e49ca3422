# SPDX-License-Identifier: Apache-2.0
"""The two classes that a FLARE job of ucadi names, and the only ones that a kit lets a job build."""

from pathlib import Path

from ucadi.engines.flare.app import FlareController, FlareSite
from ucadi.federation.ports import Transport
from ucadi.federation.site import Site

__all__ = ["UcadiController", "UcadiExecutor"]


class UcadiController(FlareController):
    """Runs the prepared run in its folder."""

    def run(self, transport: Transport) -> None:
        """Coordinate all rounds and write the outcome, also when it fails."""
        # Imported here: a site's process needs none of it.
        from ucadi.workflows.federate import coordinate

        coordinate(self.run_folder, transport)


class UcadiExecutor(FlareSite):
    """Trains on the site's own cohort, as the site's own ``ucadi.toml`` says."""

    def make_site(self, site_name: str, config_folder: Path) -> Site:
        """Build the site from its settings file."""
        # Imported here: the coordinator's process needs none of it.
        from ucadi.workflows.site_runtime import make_site

        return make_site(site_name, config_folder / "ucadi.toml")
