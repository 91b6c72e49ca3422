# SPDX-License-Identifier: Apache-2.0
"""The short edition: some kills and cuts, a full disk, a locked database, a clock that jumps."""

import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from chaos.edition import disturb
from chaos.links import Network, can_make_hosts
from chaos.world import HUB, SITES, World, hashes

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the engine's own
]

WRONG_CLOCK = """
import os, time
_time, _time_ns, _file = time.time, time.time_ns, os.environ["CHAOS_CLOCK"]
def _offset():
    try:
        with open(_file) as file:
            return int(file.read() or 0)
    except (OSError, ValueError):
        return 0
time.time = lambda: _time() + _offset()
time.time_ns = lambda: _time_ns() + _offset() * 10**9
"""
"""Makes the wall clock of all Python code wrong. libfaketime would reach libraries in C too, but with it
Python's sleep fails; so the validity of certificates is judged by the right time here."""

DISK_MB = 300


def small_disk(home: Path) -> None:
    """Put the coordinator's runs on a disk of their own, where root may."""
    (home / "runs").mkdir(exist_ok=True)
    if can_make_hosts():
        options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs"]
        subprocess.run(["mount", *options, str(home / "runs")], check=True)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says by how many seconds all clocks of the world are wrong."""
    file = tmp_path_factory.mktemp("clock") / "offset"
    file.write_text("0")
    return file


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, clock: Path) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    modules = tmp_path_factory.mktemp("modules")
    (modules / "sitecustomize.py").write_text(WRONG_CLOCK)
    env = {"PYTHONPATH": str(modules), "CHAOS_CLOCK": str(clock)}
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "-l", str(folder / "hub-home" / "runs")], check=False)
        network = stack.enter_context(Network([HUB, *SITES])) if can_make_hosts() else None
        made = World(folder, network, rounds=3, env=env, before_serve=small_disk)
        yield stack.enter_context(made)


@pytest.fixture(scope="module")
def expected(world: World) -> list[str]:
    return world.reference()


def rounds_of(world: World, run: str) -> int:
    return len(list(world.run_folder(run).glob("rounds/*.json")))


def test_runs_under_kills_and_cuts_end_as_if_undisturbed(world: World, expected: list[str]) -> None:
    result = disturb(world, expected, kills=5, seed=0)
    assert result.failures == []
    assert result.identical == result.runs
    assert result.kills == 5
    assert result.audited > 0


@pytest.mark.skipif(not can_make_hosts(), reason="a disk of its own needs root")
def test_full_disk_at_the_coordinator_is_said_and_survived(world: World, expected: list[str]) -> None:
    world.submit("full-disk")
    filler = world.run_folder("full-disk").parent / "filler"
    free = shutil.disk_usage(filler.parent).free
    filler.write_bytes(bytes(free - 100_000))  # less than one model
    said = world.home(HUB) / "kits/coordinator/logs/ucadi.jsonl"
    world.until(lambda: "disk" in said.read_text() or "file-error" in said.read_text(), "it is said", 180)
    time.sleep(5)
    assert not world.has_ended("full-disk")
    filler.unlink()
    world.until(lambda: world.has_ended("full-disk"), "the run ends", 240)
    assert hashes(world.run_folder("full-disk")) == expected


def test_locked_database_is_waited_for(world: World, expected: list[str]) -> None:
    world.submit("locked")
    world.until(lambda: rounds_of(world, "locked") >= 1, "a round is complete", 240)
    with closing(sqlite3.connect(world.home(HUB) / "state.sqlite", timeout=60)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(20)
        database.execute("ROLLBACK")
    world.until(lambda: world.has_ended("locked"), "the run ends", 240)
    assert hashes(world.run_folder("locked")) == expected


@pytest.mark.parametrize(("run", "offset"), [("clock-ahead", 3600), ("clock-back", -3600)])
def test_clock_that_jumps_loses_no_run(
    world: World, expected: list[str], clock: Path, run: str, offset: int
) -> None:
    world.submit(run)
    try:
        world.until(lambda: rounds_of(world, run) >= 1, "a round is complete", 240)
        clock.write_text(str(offset))
        world.until(lambda: world.has_ended(run), "the run ends", 300)
    finally:
        clock.write_text("0")
    assert hashes(world.run_folder(run)) == expected


def test_nothing_is_left_when_all_are_stopped(world: World) -> None:
    assert world.ask(HUB, "coordinator", "audit", "--verify")["verified"] > 0
    assert world.stop() == []
