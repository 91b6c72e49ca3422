# SPDX-License-Identifier: Apache-2.0
"""A site that takes part goes on when its disk is full or a process cannot be started."""

import contextlib
import errno
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator_hub import Hub
from ucadi.engines.flare.process import FlareClient
from ucadi.errors import StoreError
from ucadi.store.site_state import CONNECTION, SiteState
from ucadi.workflows import site_start
from ucadi.workflows.site_home import SiteHome


class Disk:
    """A small disk of its own, where this computer lets us mount one; else writing is made to fail."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
        with contextlib.suppress(OSError):
            self.is_real = subprocess.run(command, check=False, capture_output=True).returncode == 0

    is_real = False

    def fill(self) -> None:
        if self.is_real:
            with contextlib.suppress(OSError), (self.folder / "filler").open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            return

        def write(path: Path, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        def set_status(state: SiteState, key: str, value: object) -> None:
            raise StoreError("disk-full", "No space left on device.")

        self._monkeypatch.setattr("ucadi.workflows.join._write", write)
        self._monkeypatch.setattr(SiteState, "set_status", set_status)

    def clear(self) -> None:
        if self.is_real:
            (self.folder / "filler").unlink()
        else:
            self._monkeypatch.undo()

    def unmount(self) -> None:
        if self.is_real:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A small disk."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Disk(tmp_path / "disk", monkeypatch)
        yield made
        made.unmount()


@pytest.fixture
def home(disk: Disk, hub: Hub, site_templates: list[Path]) -> SiteHome:
    """The home of a member, on the small disk."""
    home = SiteHome(Path(shutil.copytree(site_templates[0], disk.folder / "home")))
    hub.admit(home)
    return home


class Client(FlareClient):
    """Starts a process that only sleeps."""

    program = sys.executable

    def command(self) -> list[str]:
        return [self.program, "-c", "import time; time.sleep(600)"]


class Running:
    """`ucadi site start` in a thread."""

    def __init__(self, home: SiteHome) -> None:
        self.words: list[str] = []
        self.fault: BaseException | None = None
        self._home = home
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            site_start.start(self._home, self.words.append, self._stop)
        except BaseException as error:
            self.fault = error

    def wait_for(self, said: str) -> None:
        until = time.monotonic() + 20
        while not any(said in words for words in self.words):
            assert self._thread.is_alive(), self.fault
            assert time.monotonic() < until, self.words
            time.sleep(0.05)
        self.words.clear()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def start(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Running]]:
    """Starts the site; it asks for the roster all the time."""
    monkeypatch.setattr(site_start, "_ROSTER_S", 0.1)
    monkeypatch.setattr(site_start, "_TURN_S", 0.05)
    monkeypatch.setattr(site_start, "FlareClient", Client)
    started: list[Running] = []

    def begin() -> Running:
        started.append(Running(home))
        return started[-1]

    yield begin
    for each in started:
        each.stop()


def connection(home: SiteHome) -> str:
    state = home.open_state()
    try:
        return str(state.status()[CONNECTION][0]["state"])
    finally:
        state.close()


def test_a_full_disk_does_not_end_a_sites_part(
    disk: Disk, home: SiteHome, start: Callable[[], Running]
) -> None:
    running = start()
    running.wait_for("connected")
    disk.fill()
    running.wait_for("The roster cannot be kept: No space left on device")
    disk.clear()
    running.wait_for("connected")
    assert connection(home) == "connected"
    running.stop()
    assert running.fault is None
    assert connection(home) == "stopped"


def test_a_site_stops_in_order_on_a_full_disk(disk: Disk, start: Callable[[], Running]) -> None:
    running = start()
    running.wait_for("connected")
    disk.fill()
    running.stop()
    assert running.fault is None
    assert "stopped" in running.words


def test_a_process_that_cannot_be_started_is_tried_again(
    start: Callable[[], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "program", "/nowhere/python")
    running = start()
    running.wait_for("the engine's process cannot be started: No such file or directory")
    monkeypatch.setattr(Client, "program", sys.executable)
    until = time.monotonic() + 20
    while not Client(running._home.kit).processes():
        assert time.monotonic() < until
        time.sleep(0.1)
    running.stop()
    assert running.fault is None
