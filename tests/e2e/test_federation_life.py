# SPDX-License-Identifier: Apache-2.0
"""Sites come and go, database and coordinator fall: by the commands alone, in real processes over TLS."""

import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from federation_by_commands import Federation, lines_of, until
from postgres_server import PostgresServer
from ucadi.config import RunSettings, SimulateConfig, SiteSettings, TrainingSettings
from ucadi.workflows.federate import RunFolder, simulate
from ucadi.workflows.site_runtime import build_site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

AWAY_S = 6.0


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    yield made
    made.stop()


def test_a_site_joins_mid_run_another_leaves_and_returns_a_third_is_revoked(federation: Federation) -> None:
    at = federation
    at.serve()
    for name in "ABC":
        at.admit(name)
        at.start(name)
    at.submit("life", rounds=400, min_sites=2)
    seen = at.watch("life")

    def participants() -> set[str]:
        number = at.kept_rounds("life")
        return set(at.record("life", number)["participants"]) if number else set()

    until(lambda: participants() == {"A", "B", "C"}, 120)
    at.admit("D")
    at.start("D")
    until(lambda: "D" in participants())

    at.command("coordinator", "revoke", "C", "--reason", "a test", "--home", at.home)
    until(lambda: "C" not in participants())
    until(lambda: at.running["C"].poll() is not None, 60)  # a revoked site stops by itself
    assert "revoked" in (at.folder / "C.out").read_text()

    at.end("B")
    until(lambda: participants() == {"A", "D"})
    at.start("B")
    until(lambda: "B" in participants())

    at.command("site", "leave", "--yes", "--home", at.folder / "B")
    until(lambda: at.running["B"].poll() is not None, 60)
    until(lambda: "B" not in participants())
    at.invite("B")
    at.command("site", "join", at.folder / "B.json", "--home", at.folder / "B")
    at.command("coordinator", "approve", "B", "--yes", "--home", at.home)
    at.command("site", "join", "--home", at.folder / "B")
    at.start("B")
    until(lambda: "B" in participants())

    at.command("run", "stop", "life", "--home", at.home)
    until(lambda: at.ask("run", "show", "life")["state"] == "stopped", 60)
    happened = lines_of(seen)
    sites = {line.get("site") for line in happened}
    assert {"A", "B", "C", "D"} <= sites
    assert at.command("coordinator", "audit", "--verify", "--home", at.home)


@pytest.fixture
def on_postgres(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Federation]:
    """A federation whose coordinator keeps everything in PostgreSQL."""
    made = Federation(tmp_path, database=postgres_server.new_database())
    yield made
    made.stop()


def test_on_postgresql_a_run_survives_the_database_and_the_coordinator(
    on_postgres: Federation, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    at, rounds = on_postgres, 12
    at.serve()
    for name in "AB":
        at.admit(name)
        at.start(name)
    at.submit("kept", rounds=rounds, min_sites=2)
    until(lambda: at.kept_rounds("kept") >= 2, 120)

    postgres_server.stop()  # as if it crashed
    try:
        time.sleep(AWAY_S)
        assert at.running["coordinator"].poll() is None
    finally:
        postgres_server.start()
    before = at.kept_rounds("kept")
    assert before < rounds, "the run ended before the database fell"
    until(lambda: at.kept_rounds("kept") > before, 60)

    at.end("coordinator", signal.SIGKILL)
    assert at.kept_rounds("kept") < rounds, "the run ended before the coordinator fell"
    at.serve()
    until(lambda: at.ask("run", "show", "kept")["state"] == "completed", 150)

    assert not (at.home / "state.sqlite").exists()
    assert postgres_server.password not in (at.folder / "coordinator.out").read_text()
    assert at.command("coordinator", "audit", "--verify", "--home", at.home)
    run = at.home / "runs" / "kept"
    alone = tmp_path / "alone"
    simulated(at, run, alone, "AB")
    for number in range(1, rounds + 1):
        assert at.record("kept", number)["participants"] == ["A", "B"]
        name = f"rounds/{number:04d}.safetensors"
        assert (run / name).read_bytes() == (alone / name).read_bytes(), f"round {number} differs"
    assert (run / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()


def simulated(at: Federation, run: Path, folder: Path, names: str) -> None:
    """Run the same plan in this process, undisturbed."""
    plan = RunFolder(run).plan
    config = SimulateConfig(
        config_version=1,
        run=RunSettings(name=plan.run_id, rounds=plan.rounds, seed=plan.seed, min_sites=plan.min_sites),
        training=TrainingSettings(**asdict(plan.training)),
        sites={
            name: SiteSettings(
                cohort=at.folder / "cohorts" / name,
                cache=at.folder / "cache" / name,
                min_studies=1,
                min_class_studies=1,
            )
            for name in names
        },
    )
    simulate(config, folder, lambda name: build_site(name, config.sites[name]))
