# SPDX-License-Identifier: Apache-2.0
"""A site fetches released models from its coordinator over real TLS, and is not fooled on the way."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from awkward_cases import make_cases

from kept_runs import WORDS, overwrite, refusal, write_run
from ucadi.config import CoordinatorSettings
from ucadi.enrolment import releases as release_door
from ucadi.enrolment.releases import release_routes
from ucadi.errors import ConfigError
from ucadi.federation.messages import GlobalModel
from ucadi.federation.plans import TrainingPlan
from ucadi.io.checkpoint import read_model
from ucadi.models.parameters import parameters_of
from ucadi.models.registry import build_network
from ucadi.types import Task
from ucadi.workflows.coordinator_home import init_coordinator
from ucadi.workflows.join import init_site, join
from ucadi.workflows.membership import api_server, approve, invite, look_at, revoke
from ucadi.workflows.predict import predict
from ucadi.workflows.release_pull import installed_releases, pull_archive, pull_release
from ucadi.workflows.releases import open_shelf, release_models, shelf_of

pytestmark = pytest.mark.slow  # keys and certificates take seconds to make


class Federation:
    """A coordinator that serves, and one site that joined."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = CoordinatorSettings(name="lungs", host="127.0.0.1", api_port=port)
        self.coordinator = init_coordinator(folder / "coordinator", settings)
        self.database = self.coordinator.open_database()
        self.shelf = shelf_of(self.coordinator, self.database)
        self.server = api_server(self.coordinator, self.database, [release_routes(self.shelf)])
        self.folder = folder

    def join(self, name):
        invitation = self.folder / f"{name}.json"
        invite(self.coordinator, name, 1.0, invitation)
        home = init_site(self.folder / name)
        join(home, invitation)
        approve(self.coordinator, look_at(self.coordinator, name))
        join(home, None)
        return home


@pytest.fixture(scope="module")
def federation(tmp_path_factory, make_run_plan, make_model):
    made = Federation(tmp_path_factory.mktemp("federation"))
    write_run(made.coordinator.folder, make_run_plan(sites=("A", "B")), make_model)
    with made.server:
        for name, word in (("lung-1", "1"), ("lung-2", "best")):
            release_models(made.coordinator, name, ["run-1"], [word], WORDS)
        made.shelf.promote("lung-1")
        yield made
        time.sleep(0.5)  # connections that clients have just closed end at the server too
    made.database.close()


@pytest.fixture(scope="module")
def joined(federation):
    return federation.join("Elsa")


@pytest.fixture
def site(joined, tmp_path):
    """The home of a site that joined and has pulled nothing yet."""
    shutil.rmtree(joined.folder / "models", ignore_errors=True)
    return joined


@pytest.fixture
def scan(tmp_path):
    """The folder of a plain chest CT, slices of 64x64."""
    folder = tmp_path / "scan"
    folder.mkdir()
    next(case for case in make_cases(64) if case.name == "plain").write(folder)
    return folder


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(release_door, "PIECE_BYTES", 1000)
    monkeypatch.setattr(release_door, "_PAUSES_S", (0.0, 0.0))


def files(home):
    return {path.name for path in (home.folder / "models").iterdir()}


def test_a_site_pulls_the_current_release_and_uses_it(federation, site):
    statement, folder = pull_release(site)
    assert statement == federation.shelf.statement("lung-1")
    assert read_model(folder).cards[Task.CLASSIFIER].rounds == 1
    assert (site.folder / "models" / "current").resolve() == folder
    listing = installed_releases(site)
    assert (listing["current"], [entry["fault"] for entry in listing["releases"]]) == ("lung-1", [None])


def test_a_named_release_is_pulled_beside_the_one_in_use(federation, site):
    pull_release(site)
    pull_release(site, name="lung-2")
    assert installed_releases(site)["current"] == "lung-1"
    pull_release(site, name="lung-2", is_used=True)
    assert installed_releases(site)["current"] == "lung-2"
    pull_release(site)
    assert installed_releases(site)["current"] == "lung-1"


def test_an_exported_release_is_installed_without_a_connection(federation, site, tmp_path):
    federation.shelf.export("lung-2", tmp_path / "lung-2.zip")
    pull_archive(site, tmp_path / "lung-2.zip", is_used=True)
    assert installed_releases(site)["current"] == "lung-2"


def test_a_scan_is_read_with_a_release_that_was_pulled(federation, site, make_run_plan, scan, tmp_path):
    for task, network in ((Task.CLASSIFIER, "densenet3d"), (Task.SEGMENTATION, "unet3d")):
        training = TrainingPlan(task, network, "compact", 4, 2, 0.01)
        plan = make_run_plan(run_id=f"real-{task}", sites=("A", "B"), training=training)
        start = GlobalModel(0, parameters_of(build_network(network, task, seed=0)))
        write_run(federation.coordinator.folder, plan, lambda made_in, seed, start=start: start)
    runs = ["real-classifier", "real-segmentation"]
    release_models(federation.coordinator, "lung-real", runs, ["best"], WORDS)
    _, folder = pull_release(site, name="lung-real")
    record = predict(scan, tmp_path / "out", folder)
    assert record.model.name == "lung-real"
    assert record.model.sites == ("A", "B")
    assert (tmp_path / "out" / "report.html").is_file()


def test_files_travel_in_pieces(federation, site, small_pieces):
    statement, folder = pull_release(site)
    assert statement.files["manifest.json"][1] > 1000
    assert read_model(folder).name == "lung-1"


@pytest.mark.parametrize("name", ["lung-9", "..", "../lung-1", "current", "a/b", "%2e%2e"])
def test_a_release_that_is_not_there_is_refused(site, name):
    assert refusal(pull_release, site, name=name) in {"release-unknown", "release-name"}
    assert not (site.folder / "models").exists() or files(site) == {".lock"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/releases/lung-1/..%2f..%2fkeys%2fidentity.key",
        "/v1/releases/lung-1/%2e%2e",
        "/v1/releases/..%2fkeys/identity.key",
        "/v1/releases/%2e%2e/state.sqlite",
        "/v1/releases/lung-1/identity.key",
        "/v1/releases/lung-1/release.json?offset=-1",
        "/v1/releases/lung-1/release.json?offset=1e9",
        "/v1/releases/lung-1/release.json?offset=" + "9" * 400,
        "/v1/releases/.lung-1.partial/release.json",
    ],
)
def test_no_path_leads_out_of_the_releases(site, path):
    from ucadi.workflows.join import api_client

    with api_client(site) as client, client.open("GET", path) as answer:
        assert answer.status_code >= 400
        assert set(answer.json()) == {"code", "reason", "cure"}


def test_whoever_is_no_member_gets_nothing(federation):
    stranger = federation.join("Gone")
    revoke(federation.coordinator, "Gone", "test")
    assert refusal(pull_release, stranger) == "site-revoked"
    assert not (stranger.folder / "models" / "lung-1").exists()


def test_a_request_that_nobody_signed_gets_nothing(site):
    from ucadi.workflows.join import api_client

    with api_client(site) as client:
        for path in ("/v1/releases", "/v1/releases/lung-1/release.json"):
            with client.open("GET", path, is_signed=False) as answer:
                assert answer.status_code == 401


def test_a_release_that_was_changed_at_the_coordinator_leaves_nothing_half_written(
    federation, site, make_run_plan, make_model
):
    pull_release(site)
    release_models(federation.coordinator, "lung-bad", ["run-1"], ["2"], WORDS)
    path = federation.shelf.folder("lung-bad") / "classifier.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    overwrite(path, bytes(content))
    assert refusal(pull_release, site, name="lung-bad", is_used=True) == "release-altered"
    assert files(site) == {".lock", "current", "lung-1"}
    assert read_model(site.folder / "models" / "current").name == "lung-1"


def test_a_release_signed_by_another_key_is_refused_by_both_sides(federation, site, tmp_path):
    from ucadi.crypto.identity import Identity
    from ucadi.workflows.release_files import RELEASE_FILE

    pull_release(site)
    folder = federation.coordinator.releases / "lung-foreign"
    shutil.copytree(federation.shelf.folder("lung-1"), folder)
    stranger = Identity.make(tmp_path / "stranger.key")
    document = json.loads((folder / RELEASE_FILE).read_bytes())
    document["statement"]["name"] = "lung-foreign"
    document["public_key"] = stranger.public_key
    document["signature"] = stranger.sign("model release", document["statement"])
    overwrite(folder / RELEASE_FILE, json.dumps(document).encode())
    # The statement itself is served unchecked, so that the site sees for itself who signed it.
    assert refusal(pull_release, site, name="lung-foreign") == "release-signer"
    assert refusal(federation.shelf.promote, "lung-foreign") == "release-signer"
    assert files(site) == {".lock", "current", "lung-1"}


def test_without_a_promoted_release_there_is_nothing_to_pull(federation, site, monkeypatch):
    monkeypatch.setattr(federation.shelf, "listing", lambda: {"current": None, "releases": []})
    assert refusal(pull_release, site) == "release-unknown"


def test_a_home_that_joined_nothing_cannot_pull(tmp_path):
    home = init_site(tmp_path / "fresh")
    assert refusal(pull_release, home) == "site-not-joined"


def test_a_download_goes_on_after_the_connection_broke(federation, site, small_pieces, monkeypatch):
    from ucadi.enrolment.client import ApiClient
    from ucadi.errors import UnreachableError

    send, broken = ApiClient.send, []

    def breaking(self, method, path, body, **options):
        if path not in broken and "offset=1000" in path:
            broken.append(path)
            raise UnreachableError("unreachable", "cut")
        return send(self, method, path, body, **options)

    monkeypatch.setattr(ApiClient, "send", breaking)
    assert read_model(pull_release(site)[1]).name == "lung-1"
    assert broken


PULL = """
import sys
from pathlib import Path
from ucadi.enrolment import releases
from ucadi.workflows.release_pull import pull_release
from ucadi.workflows.site_home import SiteHome

releases.PIECE_BYTES = 25
pull_release(SiteHome.open(Path(sys.argv[1])), name="lung-2", is_used=True)
"""


def test_a_pull_that_is_killed_at_any_moment_leaves_a_usable_model(federation, site, monkeypatch):
    """Pieces of a few bytes make the download last seconds; the server gives pieces of the same size."""
    monkeypatch.setattr(release_door, "PIECE_BYTES", 25)
    pull_release(site)
    models, cut = site.folder / "models", 0
    for pause_s in (0.1, 0.8):
        process = subprocess.Popen([sys.executable, "-c", PULL, str(site.folder)])
        draft = models / ".lung-2.partial"
        until = time.monotonic() + 60
        while not draft.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(pause_s)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL and draft.exists():
            cut += 1
            assert not (models / "lung-2").exists()
        assert read_model(models / "current").name in {"lung-1", "lung-2"}
    assert cut, "no pull was killed in the middle"
    monkeypatch.setattr(release_door, "PIECE_BYTES", 8 * 2**20)
    pull_release(site, name="lung-2", is_used=True)
    assert read_model(models / "current").name == "lung-2"
    assert files(site) == {".lock", "current", "lung-1", "lung-2"}


def test_two_pulls_at_once_end_with_one_whole_release(federation, site):
    faults = []

    def pull():
        try:
            pull_release(site)
        except ConfigError as error:
            faults.append(error)

    threads = [threading.Thread(target=pull) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert files(site) == {".lock", "current", "lung-1"}


def test_nobody_else_on_the_machine_may_change_an_installed_release(site):
    _, folder = pull_release(site)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o400}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_release_made_by_the_command_is_seen_by_the_running_server(federation, site):
    release_models(federation.coordinator, "lung-3", ["run-1"], ["last"], WORDS)
    with open_shelf(federation.coordinator) as shelf:
        shelf.promote("lung-3")
    try:
        assert pull_release(site)[0].name == "lung-3"
    finally:
        with open_shelf(federation.coordinator) as shelf:
            shelf.rollback()
    assert pull_release(site)[0].name == "lung-1"
