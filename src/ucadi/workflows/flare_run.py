# SPDX-License-Identifier: Apache-2.0
"""A federation through NVIDIA FLARE on this machine: kits, sites' settings, runs."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ucadi.config import SiteSettings
from ucadi.engines.flare.kit import FlareApp, make_kits
from ucadi.engines.flare.process import FlareFederation, free_port
from ucadi.federation.messages import RunPlan
from ucadi.versions import CONFIG_VERSION
from ucadi.workflows.federate import EVENTS_FILE, RunOutcome, prepare_run, read_outcome

__all__ = ["APP", "local_federation", "run_over_flare"]

APP = FlareApp(
    controller="ucadi.workflows.flare_app.UcadiController",
    executor="ucadi.workflows.flare_app.UcadiExecutor",
)
"""The only classes that a site lets a job build."""

OnEvent = Callable[[Mapping[str, Any]], None]
"""Called with each line of a run's progress."""


@contextmanager
def local_federation(
    folder: Path,
    sites: Mapping[str, SiteSettings],
    env: Mapping[str, str],
    *,
    port: int | None,
    on_words: Callable[[str], None],
) -> Iterator[FlareFederation]:
    """Make kits, give each site its settings, start all processes; stop them at the end.

    Args:
        folder: For the kits.
        sites: Each site's own settings.
        env: Environment of all processes.
        port: Where the coordinator listens on the loopback; None takes a free one.
        on_words: Told what has started.
    """
    kits = make_kits(folder, sorted(sites), APP, port=port or free_port())
    for name, settings in sites.items():
        (kits.sites[name] / "local" / "ucadi.toml").write_text(_toml(settings), encoding="utf-8")
    with FlareFederation(kits, env, on_progress=on_words) as federation:
        yield federation


def run_over_flare(federation: FlareFederation, folder: Path, plan: RunPlan, on_event: OnEvent) -> RunOutcome:
    """Run a plan on a started federation and return its outcome.

    Raises:
        EngineError: If the run failed, with its reason.
    """
    prepare_run(folder, plan)
    job = federation.submit(folder, plan.min_sites)
    follow = _Follower(folder / EVENTS_FILE, on_event)
    federation.wait(job, follow)
    follow()
    return read_outcome(folder)


class _Follower:
    """Passes on the lines that were added to a file since the last call."""

    def __init__(self, path: Path, on_event: OnEvent) -> None:
        self._path = path
        self._on_event = on_event
        self._offset = 0

    def __call__(self) -> None:
        """Read on; an incomplete last line waits for the next call."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._on_event(json.loads(line))


def _toml(settings: SiteSettings) -> str:
    """Write a site's settings file. A JSON string is also a TOML string."""
    lines = [f"config_version = {CONFIG_VERSION}", "", "[site]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.model_dump(mode="json").items()]
    return "\n".join(lines) + "\n"
