# SPDX-License-Identifier: Apache-2.0
"""Federations of real processes for the tests of this folder."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from ucadi.engines.flare.kit import FlareApp, Kits, make_kits
from ucadi.engines.flare.local import FlareFederation
from ucadi.engines.flare.process import Job, KitProcess, free_port

__all__ = [
    "APP",
    "ENV",
    "SITES",
    "count",
    "do",
    "engine_log",
    "job_processes",
    "make_run",
    "prepared",
    "records",
    "running",
    "set_site",
    "site_log",
    "until",
]

APP = FlareApp("toy_app.ToyController", "toy_app.ToyExecutor")
ENV = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
SITES = ["site-1", "site-2", "site-3"]

_NUMBERS = itertools.count(1)


def prepared(folder: Path, sites: list[str], app: FlareApp = APP, host: str = "127.0.0.1") -> Kits:
    """Make kits, and let the coordinator look for runs beside them."""
    kits = make_kits(folder, sites, app, port=free_port(), host=host)
    (kits.coordinator / "local/ucadi.toml").write_text(f"runs = {str(folder / 'runs')!r}")
    for site in sites:
        set_site(kits, site)
    return kits


def set_site(kits: Kits, site: str, text: str = "") -> None:
    (kits.sites[site] / "local/ucadi.toml").write_text(text)


def make_run(kits: Kits, **plan: object) -> Path:
    run = kits.coordinator.parent / "runs" / f"run-{next(_NUMBERS)}"
    run.mkdir(parents=True)
    (run / "plan.json").write_text(json.dumps({"rounds": 2, "sites": SITES, **plan}))
    return run


def do(federation: FlareFederation, run: Path, timeout_s: float = 60.0) -> Job:
    """Submit a run and wait for its outcome."""
    job = federation.submit(run.name)
    federation.wait(job, (run / "outcome.json").exists, timeout_s=timeout_s)
    return job


def records(run: Path) -> list[dict]:
    return json.loads((run / "outcome.json").read_text())["records"]


def count(run: Path, kind: str) -> int:
    events = run / "events.txt"
    return events.read_text().count(f"kind='{kind}'") if events.exists() else 0


def engine_log(kit: Path) -> str:
    return (kit / "logs/engine.log").read_text(errors="replace")


def site_log(kit: Path) -> str:
    return (kit / "logs/ucadi.jsonl").read_text(errors="replace")


def job_processes(part: KitProcess) -> list[psutil.Process]:
    """Return the processes of a kit that are connected for a job; a ready one is not."""
    return [
        process
        for process in part.processes()
        if "ucadi.engines.flare.work" in process.cmdline() and process.net_connections("inet")
    ]


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


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
