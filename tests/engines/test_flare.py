# SPDX-License-Identifier: Apache-2.0
"""Real processes over mutual TLS on the loopback, with a trainer that takes no time."""

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from federations import (
    APP,
    ENV,
    SITES,
    count,
    do,
    engine_log,
    job_processes,
    make_run,
    prepared,
    records,
    running,
    set_site,
    site_log,
    until,
)
from toy_app import ToyDesk, toy_plan, toy_site

from ucadi.engines.flare.kit import Kits, make_kits
from ucadi.engines.flare.local import FlareFederation
from ucadi.engines.flare.process import FlareServer, KitProcess, check_port
from ucadi.engines.inprocess import InProcessTransport
from ucadi.errors import EngineError, UnreachableError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Checkpoint, Coordinator
from ucadi.federation.rounds import run_rounds
from ucadi.tensors import unpack

# The engine's own deprecated calls would fail in its threads, where nobody sees them.
pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def all_kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return prepared(tmp_path_factory.mktemp("kits"), [*SITES, "site-4"])


@pytest.fixture(scope="module")
def kits(all_kits: Kits) -> Kits:
    return dataclasses.replace(all_kits, sites={site: all_kits.sites[site] for site in SITES})


@pytest.fixture(scope="module")
def federation(kits: Kits) -> Iterator[FlareFederation]:
    with FlareFederation(kits, ENV) as running_one:
        yield running_one


def test_run_gives_the_same_bits_as_in_one_process(
    federation: FlareFederation, kits: Kits, tmp_path: Path
) -> None:
    run = make_run(kits, size=3_000_000)  # 12 MB: several pieces, and replies that wait on disk
    do(federation, run)
    plan, model = toy_plan(run)
    coordinator = Coordinator(plan, Checkpoint.at_start(model), PlaintextCipher())
    sites = {name: toy_site(name) for name in SITES}
    run_rounds(coordinator, InProcessTransport(sites), ToyDesk(tmp_path, SITES))
    parameters, _ = unpack((run / "round-2.st").read_bytes())
    assert parameters.keys() == coordinator.model.parameters.keys()
    for name, expected in coordinator.model.parameters.items():
        np.testing.assert_array_equal(parameters[name], expected)
    assert [sorted(record["participants"]) for record in records(run)] == [SITES, SITES, []]


def test_all_sockets_that_listen_are_on_the_loopback(federation: FlareFederation) -> None:
    listening = [
        connection.laddr.ip
        for process in federation.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) == {"127.0.0.1"}


def test_faulty_sites_become_refusals_without_a_detail(federation: FlareFederation, kits: Kits) -> None:
    """Also the second run of the same federation."""
    set_site(kits, "site-1", "fault = 'crash'")
    set_site(kits, "site-2", "broken [")
    run = make_run(kits, min_sites=1, rounds=1)
    try:
        do(federation, run)
    finally:
        set_site(kits, "site-1")
        set_site(kits, "site-2")
    assert records(run)[0]["missing"] == {"site-1": "site-failed", "site-2": "site-failed"}
    assert records(run)[0]["participants"] == ["site-3"]
    crossed = engine_log(kits.coordinator) + site_log(kits.coordinator)
    crossed += "".join(path.read_text() for path in run.iterdir() if path.suffix != ".st")
    assert "patient-4711" not in crossed
    assert "patient-4711" in site_log(kits.sites["site-1"])


def test_run_without_quorum_is_no_success(federation: FlareFederation, kits: Kits) -> None:
    for site in SITES:
        set_site(kits, site, "fault = 'decline'")
    try:
        with pytest.raises(EngineError, match="ended without a result"):
            do(federation, make_run(kits))
    finally:
        for site in SITES:
            set_site(kits, site)


def test_too_few_sites_are_refused_before_a_job_is_submitted(federation: FlareFederation) -> None:
    with pytest.raises(EngineError, match="3 sites are connected, 4 are needed"):
        federation.submit("run", 4)


def test_job_is_for_the_named_sites_only(federation: FlareFederation, kits: Kits) -> None:
    run = make_run(kits, rounds=1)
    job = federation.server.submit(run.name, ["site-1", "site-3"])
    federation.wait(job, (run / "outcome.json").exists, timeout_s=60.0)
    assert sorted(records(run)[0]["participants"]) == ["site-1", "site-3"]
    assert records(run)[0]["missing"] == {"site-2": "site-lost"}
    assert not any(
        "deploy" in line and job.id in line for line in engine_log(kits.sites["site-2"]).split("\n")
    )


def test_next_job_starts_within_seconds_of_the_last_one(federation: FlareFederation, kits: Kits) -> None:
    first, second = make_run(kits, rounds=1), make_run(kits, rounds=1)
    do(federation, first)
    begin = time.monotonic()
    do(federation, second)
    assert time.monotonic() - begin < 12  # two or three on an idle computer


def test_slow_site_is_late_and_the_run_goes_on(federation: FlareFederation, kits: Kits) -> None:
    set_site(kits, "site-2", "seconds = 60")
    run = make_run(kits, rounds=1, deadline_s=6.0, ready_deadline_s=5.0)
    try:
        do(federation, run)
    finally:
        set_site(kits, "site-2")
    assert sorted(records(run)[0]["participants"]) == ["site-1", "site-3"]
    assert records(run)[0]["missing"] == {"site-2": "site-late"}


def test_killed_sites_are_missing_and_the_others_go_on(federation: FlareFederation, kits: Kits) -> None:
    """One site loses its job's process, as when memory runs out; another is gone altogether."""
    set_site(kits, "site-2", "seconds = 300")
    set_site(kits, "site-3", "seconds = 300")
    run = make_run(kits, rounds=1, min_sites=1, deadline_s=300.0)
    job = federation.submit(run.name, 3)
    try:
        assert until(lambda: count(run, "update") == 1, 40)
        begin = time.monotonic()
        for process in job_processes(federation.clients["site-2"]):
            process.kill()
        main_process(federation.clients["site-3"]).kill()
        # Its job's process ends with it, and the one that was ready.
        assert until(lambda: not federation.clients["site-3"].processes(), 5)
        federation.wait(job, (run / "outcome.json").exists, timeout_s=120.0)
        assert time.monotonic() - begin < 45
        assert records(run)[0]["participants"] == ["site-1"]
        assert records(run)[0]["missing"] == {"site-2": "site-lost", "site-3": "site-lost"}
        assert until(lambda: federation.server.connected() == {"site-1", "site-2"}, 30)
    finally:
        set_site(kits, "site-2")
        set_site(kits, "site-3")
    federation.clients["site-3"].start()
    assert until(lambda: federation.server.connected() == set(SITES), 60)
    back = make_run(kits, rounds=1)
    do(federation, back)
    assert sorted(records(back)[0]["participants"]) == SITES


@pytest.mark.parametrize("victim", ["server", "job"])
def test_killed_coordinator_leaves_nothing_behind_and_goes_on_when_restarted(
    federation: FlareFederation, kits: Kits, victim: str
) -> None:
    for site in SITES:
        set_site(kits, site, "seconds = 300")
    run = make_run(kits, rounds=1, deadline_s=300.0)
    job = federation.submit(run.name, 3)
    assert until(lambda: count(run, "ready") == 3, 40)
    if victim == "job":
        for process in job_processes(federation.server):
            process.kill()
        assert until(lambda: federation.server.status(job.id).startswith("FINISHED"), 60)
    else:
        main_process(federation.server).kill()
        assert until(lambda: not federation.server.processes(), 10)  # the job's process and the ready one too
        with pytest.raises(UnreachableError):
            federation.server.connected()
        federation.server.start()
        assert until(lambda: connected(federation.server) == set(SITES), 60)
    for site in SITES:
        set_site(kits, site)
    # Sites end what belongs to no job any more.
    assert until(lambda: not any(job_processes(client) for client in federation.clients.values()), 60)
    again = make_run(kits, rounds=1)
    do(federation, again)
    assert sorted(records(again)[0]["participants"]) == SITES


def test_site_is_barred_and_let_in_again_while_the_coordinator_runs(
    federation: FlareFederation, kits: Kits
) -> None:
    """Also after the coordinator's process was started again."""
    server = federation.server
    others = set(SITES) - {"site-2"}
    server.bar({"site-2"})
    assert until(lambda: server.connected() == others, 20)
    assert not until(lambda: server.connected() != others, 8)  # it tries to come back
    main_process(server).kill()
    server.start()
    assert until(lambda: connected(server) == others, 60)
    server.bar({"site-2"})  # nothing has changed, so nothing is asked
    assert server.connected() == others
    server.bar(set())
    assert until(lambda: server.connected() == set(SITES), 30)
    assert bar_answers(kits) == ["Client site-2 disabled", "Client site-2 enabled"]
    run = make_run(kits, rounds=1)
    do(federation, run)
    assert sorted(records(run)[0]["participants"]) == SITES


def bar_answers(kits: Kits) -> list[str]:
    return re.findall(r"Client site-2 (?:dis|en)abled(?=\.)", engine_log(kits.coordinator))


def main_process(part: KitProcess) -> psutil.Process:
    (found,) = [p for p in part.processes() if "ucadi.engines.flare.start" in p.cmdline()]
    return found


def connected(server: FlareServer) -> set[str]:
    with contextlib.suppress(UnreachableError):
        return server.connected()
    return set()


def test_second_program_cannot_run_the_same_kit(federation: FlareFederation, kits: Kits) -> None:
    with pytest.raises(EngineError, match="Another program runs the kit"):
        FlareServer(kits.coordinator, kits.admin, ENV).start()


def test_site_with_a_foreign_certificate_cannot_join(
    federation: FlareFederation, all_kits: Kits, tmp_path: Path
) -> None:
    port = json.loads((all_kits.admin / "kit.json").read_text())["port"]
    foreign = make_kits(tmp_path / "kits", ["site-4"], APP, port=port).sites["site-4"]
    with running([sys.executable, "-m", "ucadi.engines.flare.start", str(foreign)], tmp_path / "log"):
        assert not until(lambda: "site-4" in federation.server.connected(), 8)
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
        assert not until(lambda: "site-4" in federation.server.connected(), 8)
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


def test_nothing_is_left_after_stop(federation: FlareFederation, kits: Kits) -> None:
    assert len(federation.processes()) >= 3
    begin = time.monotonic()
    federation.stop()
    assert time.monotonic() - begin < 6
    assert federation.processes() == []
    check_port(json.loads((kits.admin / "kit.json").read_text())["port"])


@pytest.mark.parametrize("reason", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_driver(tmp_path: Path, reason: signal.Signals) -> None:
    """Nor a job that trains."""
    script = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from federations import ENV, count, make_run, prepared, set_site, until
from ucadi.engines.flare.local import FlareFederation
kits = prepared(Path({str(tmp_path / "kits")!r}), ["site-1"])
set_site(kits, "site-1", "seconds = 300")
run = make_run(kits, sites=["site-1"], min_sites=1, deadline_s=300)
with FlareFederation(kits, ENV) as federation:
    federation.submit(run.name)
    assert until(lambda: count(run, "ready") == 1, 40)
    print("up", flush=True)
    time.sleep(60)
"""
    driver = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert driver.stdout is not None
    with driver.stdout:
        assert driver.stdout.readline() == "up\n"
        assert len(processes_naming(tmp_path)) >= 4
        driver.send_signal(reason)
        driver.wait(timeout=20)
    assert until(lambda: not processes_naming(tmp_path), 10)


def processes_naming(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("UCADI_KIT", "").startswith(str(folder)):
                found.append(process)
    return found
