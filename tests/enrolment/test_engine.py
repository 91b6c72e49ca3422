# SPDX-License-Identifier: Apache-2.0
"""The engine believes the certificates and files that enrolment makes, and only those."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator_hub import Hub
from ucadi.engines.flare.process import FlareClient, FlareServer, free_port
from ucadi.errors import EngineError
from ucadi.workflows import membership
from ucadi.workflows.coordinator_home import CoordinatorHome, init_coordinator, settings_from
from ucadi.workflows.join import check_joined, init_site
from ucadi.workflows.site_home import SiteHome

# The engine's own deprecated calls would fail in its threads, where nobody sees them.
pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

Start = Callable[[SiteHome], FlareClient]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A coordinator with kits of its own place, reached by a name."""
    folder = tmp_path_factory.mktemp("federation")
    settings = settings_from(name="study", host="localhost", port=free_port(), api_port=free_port())
    (folder / "invitations").mkdir()
    made = Hub(init_coordinator(folder / "coordinator", settings), folder / "invitations")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def member(hub: Hub) -> SiteHome:
    home = init_site(hub.folder.parent / "site")
    hub.admit(home)
    check_joined(home)
    return home


@pytest.fixture
def server(hub: Hub) -> Iterator[FlareServer]:
    made = FlareServer(hub.home.kit, hub.home.driver_kit)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a site's process."""
    clients: list[FlareClient] = []

    def begin(home: SiteHome) -> FlareClient:
        clients.append(FlareClient(home.kit))
        clients[-1].start()
        return clients[-1]

    yield begin
    for client in clients:
        client.stop()


def sees(server: FlareServer, sites: set[str], within_s: float) -> bool:
    """Whether the coordinator comes to hear from exactly these sites."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if server.connected() == sites:
                return True
        except EngineError:
            pass  # it is starting
        time.sleep(0.5)
    return False


def test_a_site_connects_with_the_kit_that_it_made_itself(
    server: FlareServer, member: SiteHome, start: Start
) -> None:
    start(member)
    assert sees(server, {"lyon"}, 60)


def test_a_revoked_site_is_let_in_no_more_and_an_approved_one_again(
    hub: Hub, member: SiteHome, start: Start
) -> None:
    # Revoked while the coordinator is down; the list in its kit is what it reads when it starts.
    membership.revoke(hub.home, "lyon", "lost laptop")
    server = FlareServer(hub.home.kit, hub.home.driver_kit)
    server.start()
    try:
        client = start(member)
        assert sees(server, set(), 60)
        assert not sees(server, {"lyon"}, 15)
        assert "lyon" in (hub.home.kit / "logs/engine.log").read_text()
    finally:
        server.stop()
    client.stop()
    hub.admit(member)
    start(member)
    server = FlareServer(hub.home.kit, hub.home.driver_kit)
    server.start()
    try:
        assert sees(server, {"lyon"}, 60)
    finally:
        server.stop()


def test_a_certificate_of_another_federation_does_not_get_in(
    hub: Hub, server: FlareServer, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "invitations").mkdir()
    port = hub.home.settings.port
    other_settings = settings_from(name="study", host="localhost", port=port, api_port=free_port())
    other = Hub(init_coordinator(tmp_path / "coordinator", other_settings), tmp_path / "invitations")
    other.start()
    try:
        intruder = init_site(tmp_path / "site")
        other.admit(intruder)
    finally:
        other.stop()
    start(intruder)
    assert sees(server, set(), 60)
    assert not sees(server, {"lyon"}, 15)


def test_a_site_does_not_start_from_an_altered_kit(member: SiteHome, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(member.kit, tmp_path / "kit"))
    resources = json.loads((copy / "local/resources.json").read_text())
    (copy / "local/resources.json").write_text(json.dumps(resources | {"allow_log_streaming": True}))
    with pytest.raises(EngineError) as caught:
        FlareClient(copy).start()
    assert caught.value.code == "site-kit-altered"


def test_the_coordinators_kit_names_its_home(hub: Hub) -> None:
    text = (hub.home.kit / "local/ucadi.toml").read_text()
    assert f'home = "{hub.home.folder}"' in text
    assert CoordinatorHome.open(hub.home.folder).kit == hub.home.kit
