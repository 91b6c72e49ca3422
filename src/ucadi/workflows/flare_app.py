# SPDX-License-Identifier: Apache-2.0
"""The two classes that a FLARE job of ucadi names, and the only ones that a kit lets a job build."""

from pathlib import Path

from ucadi.engines.flare.app import FlareController, FlareSite
from ucadi.federation.ports import Transport
from ucadi.federation.site import Site

__all__ = ["UcadiController", "UcadiExecutor"]


class UcadiController(FlareController):
    """Runs a run of the coordinator's home, from where it stands until it ends or is handed over."""

    NEEDS = ("ucadi.workflows.coordinate",)

    def run(self, kit: Path, transport: Transport) -> None:
        """Coordinate the rounds; what comes of them is stored in the home."""
        # Imported here: a site's process needs none of it.
        from ucadi.workflows.coordinate import coordinate

        coordinate(kit / "local" / "ucadi.toml", self.run_id, transport)


class UcadiExecutor(FlareSite):
    """Trains on the site's own cohort, as the site's own files say."""

    NEEDS = ("ucadi.workflows.site_runtime",)

    def make_site(self, site_name: str, config_folder: Path) -> Site:
        """Build the site from its settings file."""
        # Imported here: the coordinator's process needs none of it.
        from ucadi.workflows.site_runtime import make_site

        return make_site(site_name, config_folder)
