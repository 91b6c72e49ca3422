# SPDX-License-Identifier: Apache-2.0
"""A coordinator and three sites as their people run them: homes, commands, and what keeps them running.

Everything is done by the ``ucadi`` command. As root, each of them is a host of its own.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from ucadi.config import RunSettings, SimulateConfig, SiteSettings, TrainingSettings
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.site import MemoryOutbox, OpenGate, Site
from ucadi.types import Task
from ucadi.workflows.federate import simulate
from ucadi.workflows.phantom import make_cohort
from ucadi.workflows.site_runtime import LocalTrainer

from .links import Network

__all__ = ["SITES", "Process", "World", "WorldError"]

SITES = ("alpha", "beta", "gamma")
HUB = "hub"

_UCADI = str(Path(sys.executable).with_name("ucadi"))
_MARK = "UCADI_CHAOS"
"""Environment variable by which every process of a world is found, whoever its parent is."""

_TRAINING = TrainingSettings(
    task=Task.CLASSIFIER,
    network="densenet3d",
    preset="compact",
    iterations=1,
    batch_size=2,
    learning_rate=0.002,
)
_SEED = 3

_POLICY = """\
config_version = 1

[policy]
approve = "within-policy"
min_patients = 1
"""


class WorldError(Exception):
    """A command did not do what it says, or something did not happen in time."""


@dataclass(frozen=True)
class Process:
    """A living process of the world.

    Attributes:
        role: What it is: ``coordinator serve``, ``coordinator engine``, ``coordinator job``, ``site start``,
            ``site engine``, ``site job``, each with `` child`` when another of its own.
        host: The hub's or a site's name.
        handle: To kill it with.
    """

    role: str
    host: str
    handle: psutil.Process


class World:
    """A federation of processes on this machine.

    Args:
        folder: For all homes; must be empty.
        network: Hosts of their own; None puts everything on the loopback.
        rounds: Of each run.
        database: URL of the coordinator's state; empty for its own file.
        env: Settings for all processes.
        before_serve: Called with the coordinator's home before it is served.
    """

    def __init__(
        self,
        folder: Path,
        network: Network | None = None,
        *,
        rounds: int = 4,
        database: str = "",
        env: Mapping[str, str] | None = None,
        before_serve: Callable[[Path], None] = lambda home: None,
    ) -> None:
        self.folder = folder
        self.network = network
        self.rounds = rounds
        self.mark = secrets.token_hex(6)
        self.restarts = 0
        self._database = database
        self._before_serve = before_serve
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {}), _MARK: self.mark}
        self._roots: dict[str, subprocess.Popen[bytes]] = {}
        self._is_up = False

    # -- life ---------------------------------------------------------------------------------------------

    def __enter__(self) -> "World":
        """Make homes and cohorts, start everything, let the sites join."""
        try:
            self._make_coordinator()
            for number, site in enumerate(SITES):
                self._make_site(site, number)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything that is left, by force."""
        self._is_up = False
        for process in self.processes():
            process.handle.kill()
        for root in self._roots.values():
            root.wait()

    def stop(self, patience_s: float = 40.0) -> list[str]:
        """End everything as an administrator would; return what is left after that."""
        self._is_up = False
        for root in self._roots.values():
            if root.poll() is None:
                root.send_signal(signal.SIGTERM)
        until = time.monotonic() + patience_s
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.25)
        for root in self._roots.values():
            if root.poll() is None:
                root.kill()
            root.wait()
        return [f"{process.role} of {process.host}" for process in left]

    def keep_up(self) -> None:
        """Start again what has no other supervisor, as the machine's own would."""
        for host in self._roots:
            if self._is_up and self._roots[host].poll() is not None:
                self.restarts += 1
                self.start(host)

    def start(self, host: str) -> None:
        """Start the program of a host that runs for good."""
        words = ("coordinator", "serve") if host == HUB else ("site", "start")
        with (self.folder / f"{host}.log").open("ab") as log:
            self._roots[host] = subprocess.Popen(
                self._command(host, *words),
                env=self._env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # -- what people do -----------------------------------------------------------------------------------

    def do(self, host: str, *words: str, timeout_s: float = 120.0) -> str:
        """Run one command at a host's home and return its output.

        Raises:
            WorldError: With what it said, if it failed.
        """
        command = self._command(host, *words)
        done = subprocess.run(
            command, env=self._env, cwd=self.folder, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise WorldError(f"{' '.join(words)} at {host}: {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def ask(self, host: str, *words: str) -> Any:
        """Run one command and return its JSON."""
        return json.loads(self.do(host, *words, "--json"))

    def lines(self, host: str, *words: str) -> list[Any]:
        """Run one command and return its JSON lines."""
        return [json.loads(line) for line in self.do(host, *words, "--json").splitlines()]

    def submit(self, run: str) -> None:
        """Queue a run; its plan differs from the others' by its name alone."""
        training = "\n".join(f"{key} = {json.dumps(value)}" for key, value in _TRAINING.model_dump().items())
        text = f"""\
config_version = 1
[run]
name = "{run}"
rounds = {self.rounds}
seed = {_SEED}
min_sites = {len(SITES)}
sites = {json.dumps(SITES)}
ready_deadline_s = 30
train_deadline_s = 60
[training]
{training}
"""
        plan = self.folder / f"{run}.toml"
        plan.write_text(text, encoding="utf-8")
        self.do(HUB, "run", "submit", str(plan))

    def run_folder(self, run: str) -> Path:
        """Return where the coordinator keeps a run."""
        return self.home(HUB) / "runs" / run

    def has_ended(self, run: str) -> bool:
        """Tell whether a run has left its outcome."""
        return (self.run_folder(run) / "outcome.json").exists()

    def home(self, host: str) -> Path:
        """Return a host's home."""
        return self.folder / f"{host}-home"

    # -- what an observer sees ----------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """Return all living processes with their roles, commands that people run left out."""
        return list(self._look())

    def _look(self) -> Iterator[Process]:
        """Find the world's processes."""
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if environment.get(_MARK) != self.mark or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = process.cmdline()
            except (psutil.Error, OSError):
                continue
            home = environment.get("UCADI_HOME", "")
            host = next((name for name in (HUB, *SITES) if home == str(self.home(name))), "")
            yield Process(_role(words, host), host, process)

    def reference(self) -> list[str]:
        """Return the models' hashes after each round of an undisturbed run, and of the selected one."""
        sites = {site: self._settings(site) for site in SITES}
        config = SimulateConfig(
            config_version=1,
            run=RunSettings(name="reference", rounds=self.rounds, seed=_SEED, min_sites=len(SITES)),
            training=_TRAINING,
            sites=sites,
        )

        def make_site(name: str) -> Site:
            return Site(name, LocalTrainer(name, sites[name]), PlaintextCipher(), MemoryOutbox(), OpenGate())

        simulate(config, self.folder / "reference", make_site)
        return hashes(self.folder / "reference")

    # -- making it ----------------------------------------------------------------------------------------

    def _command(self, host: str, *words: str) -> list[str]:
        """Return the command line of ``ucadi`` at a host."""
        command = ["env", f"UCADI_HOME={self.home(host)}", _UCADI, *words]
        return self.network.command(host, *command) if self.network else command

    def _make_coordinator(self) -> None:
        """Make the coordinator's home and serve it."""
        address = self.network.address(HUB) if self.network else "127.0.0.1"
        ports = ("8102", "8103") if self.network else (str(_free_port()), str(_free_port()))
        words = ["coordinator", "init", "--name", "chaos", "--host", address]
        words += ["--port", ports[0], "--api-port", ports[1]]
        self.do(HUB, *words, *(("--database", self._database) if self._database else ()))
        settings = self.home(HUB) / "coordinator.toml"
        text = "\n".join(
            "retry_s = 1.0" if line.startswith("retry_s") else line
            for line in settings.read_text(encoding="utf-8").splitlines()
        )
        settings.write_text(text + "\n", encoding="utf-8")
        self._before_serve(self.home(HUB))
        self._is_up = True
        self.start(HUB)

    def _make_site(self, site: str, number: int) -> None:
        """Let a site join, then start it."""
        make_cohort(
            "ABC"[number], 6, 5, self._settings(site).cohort, matrix=64, dicom=False, splits=(0.5, 0.5, 0.0)
        )
        invitation = self.folder / f"{site}.invitation.json"
        self.do(HUB, "coordinator", "invite", site, "--out", str(invitation))
        self.do(site, "site", "init", "--name", site)
        (self.home(site) / "policy.toml").write_text(_POLICY, encoding="utf-8")
        self._write_settings(site)
        self.until(lambda: self._joins(site, invitation), f"{site} joins", 60)
        self.start(site)

    def _joins(self, site: str, invitation: Path) -> bool:
        """Apply, get approved, fetch the certificate; False while the coordinator does not answer yet."""
        try:
            self.do(site, "site", "join", str(invitation))
        except WorldError as error:
            if ": 5:" not in str(error):
                raise
            return False
        self.do(HUB, "coordinator", "approve", site, "--yes")
        self.do(site, "site", "join")
        return True

    def until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait."""
        until = time.monotonic() + seconds
        while not condition():
            self.keep_up()
            if time.monotonic() > until:
                raise WorldError(f"not in {seconds:.0f} s: {what}")
            time.sleep(0.5)

    def _settings(self, site: str) -> SiteSettings:
        """Return a site's own settings."""
        return SiteSettings(
            cohort=self.folder / "cohorts" / site,
            cache=self.folder / "cache" / site,
            min_studies=1,
            min_class_studies=1,
        )

    def _write_settings(self, site: str) -> None:
        """Put a site's own settings into its home."""
        settings = self._settings(site).model_dump(mode="json")
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        text = "config_version = 1\n\n[site]\n" + "\n".join(lines) + "\n"
        (self.home(site) / "site.toml").write_text(text, encoding="utf-8")


def hashes(folder: Path) -> list[str]:
    """Return the hashes of a run's models, round by round, then the selected model's."""
    rounds = [json.loads(path.read_bytes())["model_hash"] for path in sorted(folder.glob("rounds/*.json"))]
    return [*rounds, json.loads((folder / "outcome.json").read_bytes())["model_hash"]]


def _role(words: Sequence[str], host: str) -> str:
    """Say what a process is, from its command line."""
    line = " ".join(words)
    side = "coordinator" if host == HUB else "site"
    if "ucadi.engines.flare.start" in line:
        return f"{side} engine"
    if "ucadi.engines.flare.work" in line:
        return f"{side} job"
    if line.endswith(("coordinator serve", "site start")):
        return line[line.index("coordinator serve" if host == HUB else "site start") :]
    return f"{side} child"


def _free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
