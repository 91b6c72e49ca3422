# SPDX-License-Identifier: Apache-2.0
"""A real coordinator that serves over TLS in this process, and sites' homes with real keys.

Making keys takes long, so homes are made once and copied; every test has its own database and homes.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter

from ucadi.engines.flare.process import free_port
from ucadi.enrolment.api import make_api
from ucadi.enrolment.server import ApiServer
from ucadi.store.database import Database
from ucadi.workflows import membership
from ucadi.workflows.coordinator_home import CoordinatorHome, init_coordinator, settings_from
from ucadi.workflows.join import init_site, join
from ucadi.workflows.site_home import SiteHome

Wire = list[tuple[str, bytes]]


class _Wire:
    """Writes down every request that comes in."""

    def __init__(self, app: Any, wire: Wire) -> None:
        self.app = app
        self.wire = wire

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = bytearray()

        async def hear() -> Any:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        try:
            await self.app(scope, hear, send)
        finally:
            self.wire.append((scope["path"], repr(scope["headers"]).encode() + bytes(body)))


@dataclass
class Hub:
    """A coordinator that can be stopped and started.

    Attributes:
        home: Its home.
        wire: Path, headers and body of every request that came.
    """

    home: CoordinatorHome
    folder: Path
    routers: list[APIRouter] = field(default_factory=list)
    wire: Wire = field(default_factory=list)
    address: str = "127.0.0.1"
    _server: ApiServer | None = None
    _database: Database | None = None

    def start(self) -> None:
        self._database = self.home.open_database()
        api = make_api(self.home.registrar(self._database), self.routers)

        api.add_middleware(_Wire, wire=self.wire)
        keys, port = self.home.keys, self.home.settings.api_port
        self._server = ApiServer(api, self.address, port, keys / "api.crt", keys / "api.key")
        self._server.__enter__()

    def stop(self) -> None:
        if self._server is not None and self._database is not None:
            self._server.__exit__(None, None, None)
            self._database.close()
            self._server = None

    def invite(self, site: str = "lyon", days: float = 7.0) -> Path:
        file = self.folder / f"invitation-{len(list(self.folder.iterdir()))}.json"
        membership.invite(self.home, site, days, file)
        return file

    def approve(self, site: str = "lyon") -> None:
        membership.approve(self.home, membership.look_at(self.home, site))

    def admit(self, home: SiteHome, site: str = "lyon") -> None:
        join(home, self.invite(site))
        self.approve(site)
        assert join(home, None).state == "approved"


@pytest.fixture(scope="session")
def coordinator_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "coordinator"
    init_coordinator(folder, settings_from(name="study", host="127.0.0.1"))
    return folder


@pytest.fixture(scope="session")
def site_templates(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("templates")
    return [init_site(base / f"site-{number}").folder for number in range(2)]


@pytest.fixture
def hub(coordinator_template: Path, tmp_path: Path) -> Iterator[Hub]:
    """A coordinator that serves."""
    folder = Path(shutil.copytree(coordinator_template, tmp_path / "coordinator"))
    settings = folder / "coordinator.toml"
    settings.write_text(settings.read_text().replace("api_port = 8103", f"api_port = {free_port()}"))
    (tmp_path / "invitations").mkdir()
    made = Hub(CoordinatorHome.open(folder), tmp_path / "invitations")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def new_site(site_templates: list[Path], tmp_path: Path) -> Callable[..., SiteHome]:
    """Makes a site's home with keys of its own, or with those of another (by number)."""

    def make(number: int = 0, name: str = "") -> SiteHome:
        folder = tmp_path / f"home-{len(list(tmp_path.iterdir()))}"
        home = SiteHome(Path(shutil.copytree(site_templates[number], folder)))
        if name:
            file = folder / "membership.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"site": name}))
        return home

    return make


@pytest.fixture
def site(new_site: Callable[..., SiteHome]) -> SiteHome:
    """A fresh site's home."""
    return new_site()
