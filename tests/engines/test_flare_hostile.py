# SPDX-License-Identifier: Apache-2.0
"""Hardened sites under a coordinator that was taken over: whatever it sends is refused, and logged there."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federations import APP, ENV, SITES, do, engine_log, make_run, prepared, records, site_log, until
from nvflare.fuel.flare_api.api_spec import AuthorizationError, InternalError
from nvflare.fuel.flare_api.flare_api import new_secure_session

from ucadi.engines.flare.job import write_job
from ucadi.engines.flare.kit import ADMIN, Kits
from ucadi.engines.flare.local import FlareFederation
from ucadi.engines.flare.process import FlareServer
from ucadi.engines.flare.settings import FlareApp

# The engine's own deprecated calls would fail in its threads, where nobody sees them.
pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

HOSTILE = FlareApp("hostile_app.HostileController", APP.executor)


class HostileServer(FlareServer):
    """A coordinator that allows everything, and runs FLARE's own programs."""

    def command(self) -> list[str]:
        for part, change in (
            ("resources", {"class_allow_list": ["*"]}),
            ("authorization", {"permissions": {"lead": "any"}}),
        ):
            path = self.kit / f"local/{part}.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        program = "nvflare.private.fed.app.server.server_train"
        settings = ["secure_train=true", "org=x", "config_folder=config"]
        return [
            *[sys.executable, "-m", program, "-m", str(self.kit), "-s", "fed_server.json"],
            *["--set", *settings],
        ]


class HostileFederation(FlareFederation):
    def __init__(self, kits: Kits) -> None:
        super().__init__(kits, ENV)
        self.server = HostileServer(kits.coordinator, kits.admin, ENV)


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return prepared(tmp_path_factory.mktemp("kits"), SITES)


@pytest.fixture(scope="module")
def hostile(kits: Kits) -> Iterator[FlareFederation]:
    with HostileFederation(kits) as federation:
        yield federation


def ended(federation: FlareFederation, job_id: str) -> bool:
    return until(lambda: federation.server.status(job_id).startswith("FINISHED"), 90)


def change_client(job: Path, change: Callable[[dict], None]) -> Path:
    """Change what the sites are told to build."""
    config = job / "site/config/config_fed_client.json"
    document = json.loads(config.read_text())
    change(document)
    config.write_text(json.dumps(document))
    return job


def written(folder: Path, sites: list[str] = SITES) -> Path:
    write_job(folder, APP, "none", sites)
    return folder


def test_administrator_cannot_look_into_a_site(hostile: FlareFederation, kits: Kits) -> None:
    session = new_secure_session(ADMIN, str(kits.admin))
    try:
        answers = []
        for look, argument in (
            (session.cat_target, {"file": "local/resources.json"}),
            (session.tail_target, {"file": "local/resources.json"}),
            (session.ls_target, {}),
        ):
            try:
                answers.append(str(look("site-1", **argument)))
            except (AuthorizationError, InternalError) as error:
                answers.append(str(error))
        # Neither the file's text nor a folder's list comes back, whatever words the refusal has.
        assert not any(word in answer for answer in answers for word in ("class_allow_list", "startup")), (
            answers
        )
        before = {process.pid for client in hostile.clients.values() for process in client.processes()}
        session.restart("client", wait=False)
        assert not until(lambda: not before <= {process.pid for process in hostile.processes()}, 3)
    finally:
        session.close()


def test_code_shipped_with_a_job_is_refused(hostile: FlareFederation, kits: Kits, tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    job = written(tmp_path / "job")
    change_client(job, lambda document: document["executors"][0]["executor"].update(path="evil.Evil"))
    (job / "site/custom").mkdir()
    code = f"open({str(marker)!r}, 'w').close()\nfrom toy_app import ToyExecutor as Evil\n"
    (job / "site/custom/evil.py").write_text(code)
    assert ended(hostile, hostile.server.submit_folder(job))
    assert not marker.exists()
    for site in SITES:
        assert "custom/evil.py" in site_log(kits.sites[site])
    assert not any("evil" in path.name for kit in kits.sites.values() for path in kit.rglob("*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["executors"][0]["executor"].update(path="subprocess.Popen"), "subprocess.Popen"),
        (lambda d: d["executors"][0]["executor"].update(args={"data": "/etc"}), "/etc"),
        (lambda d: d["components"].append({"id": "x", "path": "subprocess.Popen"}), "components"),
        (lambda d: d["task_result_filters"].append({"tasks": ["*"], "filters": []}), "task_result_filters"),
        (lambda d: d.update(executors=d["executors"] * 2), "executors"),
        (lambda d: d.update(stuff={"path": "subprocess.Popen"}), "stuff"),
    ],
    ids=["class", "argument", "component", "filter", "second executor", "foreign key"],
)
def test_job_that_is_not_exactly_ours_is_refused(
    hostile: FlareFederation, kits: Kits, tmp_path: Path, change: Callable[[dict], None], said: str
) -> None:
    before = len(site_log(kits.sites["site-1"]))
    job = change_client(written(tmp_path / "job", ["site-1"]), change)
    assert ended(hostile, hostile.server.submit_folder(job))
    log = site_log(kits.sites["site-1"])[before:]
    assert "command refused: DeployProcessor" in log
    assert said in log


def test_replayed_job_gives_nothing_new(hostile: FlareFederation, kits: Kits, tmp_path: Path) -> None:
    """The same signed job again: the sites answer the same calls with the same bytes, or refuse them."""
    run = make_run(kits, rounds=1)
    write_job(tmp_path / "job", APP, run.name, SITES)
    made = []
    for _ in range(2):
        (run / "outcome.json").unlink(missing_ok=True)
        hostile.server.submit_folder(tmp_path / "job")
        assert until((run / "outcome.json").exists, 60)
        made.append((run / "round-1.st").read_bytes())
        assert sorted(records(run)[0]["participants"]) == SITES
    assert made[0] == made[1]


def test_whatever_a_hostile_coordinator_sends_is_refused_and_logged(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kits = prepared(tmp_path_factory.mktemp("hostile"), ["site-1"], HOSTILE)
    kit = kits.sites["site-1"]
    precious = kits.coordinator.parent.parent / "precious"
    other = tmp_path / "data"
    for folder in (precious, other):
        folder.mkdir()
        (folder / "study.nii").write_text("a patient's")
    marker = tmp_path / "unpickled"
    run = make_run(kits)
    (run / "target.json").write_text(json.dumps({"marker": str(marker), "folder": str(other)}))
    with HostileFederation(kits) as hostile:
        write_job(tmp_path / "job", HOSTILE, run.name, ["site-1"])
        hostile.server.submit_folder(tmp_path / "job")
        assert until((run / "attacks.json").exists, 120)
        attacks = json.loads((run / "attacks.json").read_text())
        # The site is still there, for an honest run as well.
        assert until(lambda: hostile.server.connected() == {"site-1"}, 30)
    log = site_log(kit)
    assert "message-too-large" in attacks["oversized_call"]
    assert "1125899906842624 bytes are announced" in log
    assert "message-invalid" in attacks["pickle"][0]
    assert not marker.exists()
    assert attacks["task"] == "TASK_UNKNOWN"
    assert "task refused" in log
    assert all("invalid_request" in answer for answer in attacks["commands"].values()), attacks["commands"]
    assert all("job-refused" in answer for answer in attacks["traversal"]), attacks["traversal"]
    assert "is no job's name" in log
    assert "The job brings" in log
    assert attacks["frame"] != "ok"
    assert "a message was larger than allowed" in log
    for folder in (precious, other):
        assert (folder / "study.nii").read_text() == "a patient's"
    assert (kit / "startup/client.key").exists()
    assert not list(kits.coordinator.parent.rglob("evil*"))


def test_coordinator_refuses_code_shipped_with_a_job(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An honest one, told so by a driver that was taken over."""
    kits = prepared(tmp_path_factory.mktemp("honest"), ["site-1"])
    job = written(tmp_path / "job", ["site-1"])
    (job / "coordinator/custom").mkdir()
    (job / "coordinator/custom/evil.py").write_text("")
    with FlareFederation(kits, ENV) as federation:
        assert ended(federation, federation.server.submit_folder(job))
        do(federation, make_run(kits, sites=["site-1"], min_sites=1))
    assert "BYOC not permitted" in engine_log(kits.coordinator)
