# SPDX-License-Identifier: Apache-2.0
"""Real processes over mutual TLS on the loopback, with a trainer that takes no time."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from nvflare.fuel.flare_api.api_spec import AuthorizationError, InternalError
from nvflare.fuel.flare_api.flare_api import new_secure_session
from toy_app import ToyTrainer, toy_plan

from ucadi.engines.flare.job import write_job
from ucadi.engines.flare.kit import ADMIN, FlareApp, Kits, make_kits
from ucadi.engines.flare.process import FlareFederation, check_port, free_port
from ucadi.engines.inprocess import InProcessTransport
from ucadi.errors import EngineError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Coordinator
from ucadi.federation.rounds import run_rounds
from ucadi.federation.site import Site
from ucadi.tensors import unpack

# The engine's own deprecated calls would fail in its threads, where nobody sees them.
pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

APP = FlareApp("toy_app.ToyController", "toy_app.ToyExecutor")
ENV = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
SITES = ["site-1", "site-2", "site-3"]


def set_site(kits: Kits, site: str, text: str = "") -> None:
    (kits.sites[site] / "local/ucadi.toml").write_text(text)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


@pytest.fixture(scope="module")
def all_kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    kits = make_kits(tmp_path_factory.mktemp("kits"), [*SITES, "site-4"], APP, port=free_port())
    for site in kits.sites:
        set_site(kits, site)
    return kits


@pytest.fixture(scope="module")
def kits(all_kits: Kits) -> Kits:
    return dataclasses.replace(all_kits, sites={site: all_kits.sites[site] for site in SITES})


@pytest.fixture(scope="module")
def federation(kits: Kits) -> Iterator[FlareFederation]:
    with FlareFederation(kits, ENV) as running:
        yield running


def make_run(folder: Path, **plan: object) -> Path:
    run = folder / "run"
    run.mkdir()
    (run / "plan.json").write_text(json.dumps({"rounds": 2, "sites": SITES, **plan}))
    return run


def records(run: Path) -> list[dict]:
    return json.loads((run / "outcome.json").read_text())["records"]


def engine_log(kit: Path) -> str:
    return (kit / "logs/engine.log").read_text(errors="replace")


def processes_of(federation: FlareFederation, site: str) -> list[psutil.Process]:
    kit = str(federation.kits.sites[site])
    return [process for process in federation.processes() if kit in process.cmdline()]


def test_run_gives_the_same_bits_as_in_one_process(federation: FlareFederation, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    federation.wait(federation.submit(run, 3), timeout_s=60.0)
    sites = {name: Site(name, ToyTrainer(name), PlaintextCipher()) for name in SITES}
    plan, model = toy_plan(run)
    coordinator = Coordinator(plan, model, PlaintextCipher())
    run_rounds(coordinator, InProcessTransport(sites), lambda record, made: None)
    parameters, _ = unpack((run / "round-2.st").read_bytes())
    assert parameters.keys() == coordinator.model.parameters.keys()
    for name, expected in coordinator.model.parameters.items():
        np.testing.assert_array_equal(parameters[name], expected)
    assert [record["participants"] for record in records(run)] == [SITES, SITES, []]


def test_all_sockets_that_listen_are_on_the_loopback(federation: FlareFederation) -> None:
    listening = [
        connection.laddr.ip
        for process in federation.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) == {"127.0.0.1"}


def test_faulty_sites_become_refusals_without_a_detail(
    federation: FlareFederation, kits: Kits, tmp_path: Path
) -> None:
    """Also the second run of the same federation."""
    set_site(kits, "site-1", "fault = 'crash'")
    set_site(kits, "site-2", "broken [")
    run = make_run(tmp_path, min_sites=1, rounds=1)
    try:
        federation.wait(federation.submit(run, 3), timeout_s=60.0)
    finally:
        set_site(kits, "site-1")
        set_site(kits, "site-2")
    assert records(run)[0]["missing"] == {"site-1": "site-failed", "site-2": "site-failed"}
    assert records(run)[0]["participants"] == ["site-3"]
    crossed = engine_log(kits.coordinator) + "".join(
        p.read_text() for p in run.iterdir() if p.suffix != ".st"
    )
    assert "patient-4711" not in crossed
    assert "patient-4711" in (kits.sites["site-1"] / "logs/ucadi.jsonl").read_text()


def test_run_without_quorum_is_no_success(federation: FlareFederation, kits: Kits, tmp_path: Path) -> None:
    for site in SITES:
        set_site(kits, site, "fault = 'decline'")
    try:
        with pytest.raises(EngineError, match="ended without a result"):
            federation.wait(federation.submit(make_run(tmp_path), 3), timeout_s=60.0)
    finally:
        for site in SITES:
            set_site(kits, site)


def test_too_few_sites_are_refused_before_a_job_is_submitted(
    federation: FlareFederation, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="3 sites are connected, 4 are needed"):
        federation.submit(tmp_path, 4)


def ended(federation: FlareFederation, job_id: str) -> bool:
    return until(lambda: federation.status(job_id).startswith("FINISHED"), 90)


def ship_code(job: Path, marker: Path) -> Path:
    """Make a job bring a class that leaves a marker when it is imported."""
    write_job(job, APP, job.parent, 3)
    code = f"open({str(marker)!r}, 'w').close()\nfrom toy_app import ToyExecutor as Evil\n"
    (job / "app/custom").mkdir()
    (job / "app/custom/evil.py").write_text(code)
    config = job / "app/config/config_fed_client.json"
    config.write_text(config.read_text().replace("toy_app.ToyExecutor", "evil.Evil"))
    return job


def test_coordinator_refuses_code_shipped_with_a_job(
    federation: FlareFederation, kits: Kits, tmp_path: Path
) -> None:
    assert ended(federation, federation.submit_folder(ship_code(tmp_path / "job", tmp_path / "marker")))
    assert "BYOC not permitted" in engine_log(kits.coordinator)
    assert not (tmp_path / "marker").exists()


class HostileFederation(FlareFederation):
    """Hardened sites under a coordinator that allows everything, as if it had been taken over."""

    def _start(self, name: str, folder: Path) -> None:
        if name != "coordinator":
            super()._start(name, folder)
            return
        for part, loosen in (
            ("resources", lambda settings: settings | {"class_allow_list": ["*"]}),
            ("authorization", lambda settings: settings | {"permissions": {"lead": "any"}}),
        ):
            path = folder / f"local/{part}.json"
            path.write_text(json.dumps(loosen(json.loads(path.read_text()))))
        program = "nvflare.private.fed.app.server.server_train"
        settings = ["secure_train=true", "org=x", "config_folder=config"]
        with (folder / "logs/engine.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    program,
                    "-m",
                    str(folder),
                    "-s",
                    "fed_server.json",
                    "--set",
                    *settings,
                ],
                cwd=folder,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def ship_foreign_classes(job: Path, marker: Path) -> Path:
    """Make one job with another attack for each site."""
    run = make_run(job.parent, ready_deadline_s=5.0)
    write_job(job, APP, run, 3)
    touch = {"path": "subprocess.Popen", "args": {"args": ["touch", str(marker)]}}
    attacks = {
        "site-1": {"executor": touch},
        "site-2": {"executor": {"path": APP.executor, "args": {"data": "/etc"}}},
        "site-3": {"executor": {"path": APP.executor, "args": {"data": touch}}},
    }
    deploy = {"app": ["server"]}
    for site, attack in attacks.items():
        shutil.copytree(job / "app", job / f"app-{site}")
        config = job / f"app-{site}/config/config_fed_client.json"
        document = json.loads(config.read_text())
        document["executors"][0].update(attack)
        config.write_text(json.dumps(document))
        deploy[f"app-{site}"] = [site]
    meta = json.loads((job / "meta.json").read_text())
    (job / "meta.json").write_text(json.dumps({**meta, "deploy_map": deploy}))
    return job


def test_sites_refuse_what_a_hostile_coordinator_sends(tmp_path: Path) -> None:
    kits = make_kits(tmp_path / "kits", SITES, APP, port=free_port())
    for site in SITES:
        set_site(kits, site)
    with HostileFederation(kits, ENV) as hostile:
        code = hostile.submit_folder(ship_code(tmp_path / "code", tmp_path / "imported"))
        assert ended(hostile, code)
        classes = hostile.submit_folder(ship_foreign_classes(tmp_path / "classes", tmp_path / "touched"))
        assert ended(hostile, classes)
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "touched").exists()
    logs = {site: engine_log(kits.sites[site]) for site in SITES}
    assert "not in allow_list" in logs["site-1"]
    assert "unexpected keyword argument" in logs["site-2"]
    assert "not in allow_list" in logs["site-3"]
    assert not any("evil" in path.name for kit in kits.sites.values() for path in kit.rglob("*"))


def test_administrator_cannot_look_into_a_site(
    kits: Kits, federation: FlareFederation, tmp_path: Path
) -> None:
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
        before = {process.pid for process in federation.processes()}
        session.restart("client", wait=False)
        assert not until(lambda: not before <= {process.pid for process in federation.processes()}, 3)
    finally:
        session.close()


def test_site_with_a_foreign_certificate_cannot_join(
    federation: FlareFederation, all_kits: Kits, tmp_path: Path
) -> None:
    port = json.loads((all_kits.admin / "kit.json").read_text())["port"]
    foreign = make_kits(tmp_path / "kits", ["site-4"], APP, port=port).sites["site-4"]
    with running([sys.executable, "-m", "ucadi.engines.flare.start", str(foreign)], tmp_path / "log"):
        assert not until(lambda: "site-4" in federation.connected(), 8)
        assert "created backbone external connector" in (tmp_path / "log").read_text()  # it did try
        assert "Successfully registered" not in (tmp_path / "log").read_text()


def test_site_cannot_claim_another_name(federation: FlareFederation, all_kits: Kits, tmp_path: Path) -> None:
    thief = tmp_path / "thief"
    shutil.copytree(all_kits.sites["site-4"], thief)
    for part in ("client.crt", "client.key"):
        shutil.copy(all_kits.sites["site-1"] / "startup" / part, thief / "startup" / part)
    program = "nvflare.private.fed.app.client.client_train"
    settings = ["secure_train=true", "uid=site-4", "org=x", "config_folder=config"]
    command = [sys.executable, "-m", program, "-m", str(thief), "-s", "fed_client.json", "--set", *settings]
    with running(command, tmp_path / "log"):
        assert not until(lambda: "site-4" in federation.connected(), 8)
    assert "authenticated as 'site-1' but claimed endpoint 'site-4'" in engine_log(all_kits.coordinator)


def test_altered_kit_is_refused_at_start(all_kits: Kits, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    shutil.copytree(all_kits.sites["site-4"], kit)
    resources = kit / "local/resources.json"
    resources.write_text(resources.read_text().replace('"enforce"', '"warn"'))
    ended = subprocess.run(
        [sys.executable, "-m", "ucadi.engines.flare.start", str(kit)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1
    assert b"local/resources.json was changed" in ended.stderr


def test_killed_sites_are_missing_and_the_others_go_on(
    federation: FlareFederation, kits: Kits, tmp_path: Path
) -> None:
    """One site loses its job's process, as when memory runs out; another is gone altogether."""
    set_site(kits, "site-2", "seconds = 300")
    set_site(kits, "site-3", "seconds = 300")
    run = make_run(tmp_path, rounds=1, min_sites=1, deadline_s=120.0)
    job = federation.submit(run, 3)
    assert until(lambda: count(run, "update") == 1, 40)
    begin = time.monotonic()
    for process in processes_of(federation, "site-2"):
        if "worker_process" in " ".join(process.cmdline()):
            process.kill()
    for process in processes_of(federation, "site-3"):
        process.kill()
    federation.wait(job, timeout_s=120.0)
    assert time.monotonic() - begin < 60
    assert records(run)[0]["participants"] == ["site-1"]
    assert records(run)[0]["missing"] == {"site-2": "no-answer", "site-3": "no-answer"}
    assert federation.connected() == {"site-1", "site-2"}


def count(run: Path, kind: str) -> int:
    events = run / "events.txt"
    return events.read_text().count(f"kind='{kind}'") if events.exists() else 0


def test_nothing_is_left_after_stop(federation: FlareFederation, kits: Kits) -> None:
    assert len(federation.processes()) >= 3
    begin = time.monotonic()
    federation.stop()
    assert time.monotonic() - begin < 5
    assert federation.processes() == []
    check_port(json.loads((kits.admin / "kit.json").read_text())["port"])


@pytest.mark.parametrize("reason", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_driver(tmp_path: Path, reason: signal.Signals) -> None:
    script = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from ucadi.engines.flare.kit import FlareApp, make_kits
from ucadi.engines.flare.process import FlareFederation, free_port
kits = make_kits(Path({str(tmp_path / "kits")!r}), ["site-1"], FlareApp("a.B", "a.C"), port=free_port())
with FlareFederation(kits) as federation:
    print("up", flush=True)
    time.sleep(60)
"""
    driver = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert driver.stdout is not None
    with driver.stdout:
        assert driver.stdout.readline() == "up\n"
        assert len(processes_naming(tmp_path)) == 2
        driver.send_signal(reason)
        driver.wait(timeout=20)
    assert until(lambda: not processes_naming(tmp_path), 10)


def processes_naming(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ucadi.engines.flare.start" in process.cmdline() and str(folder) in process.cmdline()[-1]:
                found.append(process)
    return found


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENV},
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin:
                process.stdin.close()
