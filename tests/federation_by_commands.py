# SPDX-License-Identifier: Apache-2.0
"""A federation made and run by nothing but ucadi's commands, as its people would type them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ucadi.engines.flare.process import free_port
from ucadi.workflows.phantom import make_cohort

__all__ = ["PLAN", "Federation", "until"]

PLAN = """\
config_version = 1

[run]
name = "{name}"
rounds = {rounds}
seed = 3
min_sites = {min_sites}
ready_deadline_s = 60
train_deadline_s = 120

[training]
task = "classifier"
network = "densenet3d"
preset = "compact"
iterations = 1
batch_size = 2
learning_rate = 0.002
"""

COMMAND = (sys.executable, "-P", "-m", "ucadi")


def until(condition: Callable[[], Any], seconds: float = 90.0) -> Any:
    """Wait for a true answer and return it; fail loudly when it does not come."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"not so within {seconds:.0f} s"
        time.sleep(0.3)
    return answer


class Federation:
    """A coordinator and sites in a folder.

    Attributes:
        home: The coordinator's home.
        running: Processes by name; ``coordinator`` is one of them.
    """

    def __init__(self, folder: Path, retry_s: float = 1.0, database: str = "") -> None:
        self.folder = folder
        self.home = folder / "coordinator"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        options = ("--database", database) if database else ()
        self.command(
            *("coordinator", "init", "--home", self.home, "--name", "test", "--host", "127.0.0.1"),
            *("--port", free_port(), "--api-port", free_port(), *options),
        )
        settings = self.home / "coordinator.toml"
        settings.write_text(re.sub(r"retry_s = \S+", f"retry_s = {retry_s}", settings.read_text()))

    def command(self, *arguments: object, status: int = 0) -> str:
        """Run a command to its end; return what it printed."""
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def ask(self, *arguments: object, status: int = 0) -> Any:
        """Run a command with ``--json`` at the coordinator; return its object."""
        return json.loads(self.command(*arguments, "--home", self.home, "--json", status=status))

    def serve(self) -> None:
        """Start the coordinator."""
        self._start("coordinator", "coordinator", "serve", "--home", self.home)

    def admit(self, name: str, patients: int = 6) -> None:
        """Let a site be made, join and be approved."""
        home = self.folder / name
        self.command("site", "init", "--home", home, "--name", name)
        cohort = make_cohort(
            name, patients, 5, self.folder / "cohorts" / name, matrix=64, dicom=False, splits=(0.5, 0.5, 0.0)
        )
        settings = (home / "site.toml").read_text()
        for key, value in (
            ("cohort", json.dumps(str(cohort.root))),
            ("cache", json.dumps(str(self.folder / "cache" / name))),
            ("min_studies", "1"),
            ("min_class_studies", "1"),
        ):
            settings, found = re.subn(rf"(?m)^#? ?{key} = .*$", f"{key} = {value}", settings, count=1)
            assert found == 1, f"{key} is not in the template"
        (home / "site.toml").write_text(settings)
        policy = (home / "policy.toml").read_text().replace('approve = "ask"', 'approve = "within-policy"')
        (home / "policy.toml").write_text(policy.replace("min_patients = 10", "min_patients = 1"))
        self.invite(name)
        until(lambda: self._joins(home, self.folder / f"{name}.json"))
        self.command("coordinator", "approve", name, "--yes", "--home", self.home)
        self.command("site", "join", "--home", home)

    def invite(self, name: str) -> Path:
        """Write an invitation."""
        file = self.folder / f"{name}.json"
        file.unlink(missing_ok=True)
        self.command("coordinator", "invite", name, "-o", file, "--home", self.home)
        return file

    def start(self, name: str) -> None:
        """Start a site."""
        self._start(name, "site", "start", "--home", self.folder / name)

    def submit(self, name: str, rounds: int, min_sites: int, text: str = PLAN) -> None:
        """Submit a run."""
        plan = self.folder / f"{name}.toml"
        plan.write_text(text.format(name=name, rounds=rounds, min_sites=min_sites))
        self.command("run", "submit", plan, "--home", self.home)

    def watch(self, name: str) -> Path:
        """Watch a run from its beginning; return the file that takes what is seen, a JSON object a line."""
        seen = self.folder / f"{name}.watch.jsonl"
        self._start(f"watch-{name}", "run", "watch", name, "--json", "--home", self.home, log=seen)
        return seen

    def kept_rounds(self, name: str) -> int:
        """Return how many rounds of a run are complete."""
        return len(list((self.home / "runs" / name / "rounds").glob("*.json")))

    def record(self, name: str, number: int) -> dict[str, Any]:
        """Return what is kept of a round."""
        path = self.home / "runs" / name / "rounds" / f"{number:04d}.json"
        return json.loads(path.read_text())  # type: ignore[no-any-return]

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a process as a service manager would, or worse."""
        process = self.running.pop(name)
        process.send_signal(number)
        process.wait(40)

    def stop(self) -> None:
        """End everything."""
        for name in list(self.running):
            process = self.running[name]
            if process.poll() is None:
                self.end(name)

    def _joins(self, home: Path, file: Path) -> bool:
        """Try to join; the coordinator's interface may not have started yet."""
        done = subprocess.run(
            [*COMMAND, "site", "join", file, "--home", home], capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 5), done.stderr
        return done.returncode == 0

    def _start(self, name: str, *arguments: object, log: Path | None = None) -> None:
        """Start a command that goes on."""
        with (log or self.folder / f"{name}.out").open("ab") as out:
            self.running[name] = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL if log else subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )


def lines_of(file: Path) -> Sequence[dict[str, Any]]:
    """Return the JSON objects of a file, a last incomplete line left out."""
    text = file.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
