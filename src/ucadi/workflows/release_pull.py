# SPDX-License-Identifier: Apache-2.0
"""A site gets a released model: from its coordinator, or from an archive that somebody carried.

SITE/models/NAME      an installed release, checked against the coordinator's key that the join pinned
SITE/models/current   a link to the one in use, for `ucadi predict --model`
"""

from pathlib import Path
from typing import Any

from ucadi.enrolment.client import ApiClient
from ucadi.enrolment.releases import ReleaseDownload, list_releases
from ucadi.errors import ConfigError, FederationError, UcadiError
from ucadi.workflows.join import api_client, read_membership
from ucadi.workflows.release_files import (
    CURRENT,
    RELEASE_FILE,
    ArchiveSource,
    FolderSource,
    Statement,
    check_release,
    check_release_name,
    install_release,
)
from ucadi.workflows.site_home import SiteHome

__all__ = ["MODELS_FOLDER", "installed_releases", "pinned_key", "pull_archive", "pull_release"]

MODELS_FOLDER = "models"


def pull_release(home: SiteHome, *, name: str | None = None, is_used: bool = False) -> tuple[Statement, Path]:
    """Download a release from the coordinator, check and install it.

    Args:
        home: The site's home.
        name: Which release; None takes the current one and puts it in use.
        is_used: Whether to put a named one in use too.

    Raises:
        UcadiError: ``release-unknown``, ``release-altered``, ``release-signer``, or why the coordinator
            cannot be asked. Nothing that was here changes then.
    """
    key = pinned_key(home)
    with api_client(home) as client:
        wanted = check_release_name(_current_of(client) if name is None else name)
        source = ReleaseDownload(client, wanted)
        models = home.folder / MODELS_FOLDER
        return install_release(source, key, models, name=wanted, is_used=is_used or name is None)


def pull_archive(home: SiteHome, archive: Path, *, is_used: bool = False) -> tuple[Statement, Path]:
    """Check and install a release from an archive that `ucadi model export` wrote.

    Raises:
        UcadiError: As `pull_release`.
    """
    return install_release(
        ArchiveSource(archive), pinned_key(home), home.folder / MODELS_FOLDER, is_used=is_used
    )


def installed_releases(home: SiteHome) -> dict[str, Any]:
    """Return the releases at a site, each checked byte by byte, and which one is in use."""
    models, key = home.folder / MODELS_FOLDER, pinned_key(home)
    entries: list[dict[str, Any]] = []
    for path in sorted(models.iterdir()) if models.is_dir() else ():
        if path.is_symlink() or not (path / RELEASE_FILE).is_file() or path.name.startswith("."):
            continue
        try:
            entries.append({**check_release(FolderSource(path), key).summary(), "fault": None})
        except UcadiError as error:
            entries.append({"name": path.name, "created": "", "fault": error.code})
    link = models / CURRENT
    return {"current": link.readlink().name if link.is_symlink() else None, "releases": entries}


def pinned_key(home: SiteHome) -> str:
    """Return the coordinator's public key, as the site trusts it since it joined.

    Raises:
        FederationError: ``site-not-joined``.
    """
    federation = read_membership(home).federation
    if federation is None:
        raise FederationError("site-not-joined", f"{home.folder} has joined no federation.")
    return federation.identity


def _current_of(client: ApiClient) -> str:
    """Return the name of the release that is current at the coordinator."""
    name = list_releases(client).get("current")
    if not isinstance(name, str):
        raise ConfigError("release-unknown", "The coordinator has promoted no release yet.")
    return name
