# SPDX-License-Identifier: Apache-2.0
"""Run some of ucadi's own commands as child processes, a few at once, and leave none behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ucadi.errors import EngineError

__all__ = ["run_commands"]

_POLL_S = 0.1
_GRACE_S = 5.0
_MESSAGE_CHARACTERS = 500


def run_commands(
    commands: Mapping[str, Sequence[str]],
    logs: Path,
    *,
    at_once: int,
    env: Mapping[str, str],
    on_poll: Callable[[int], None] = lambda done: None,
) -> None:
    """Run commands of ucadi until all have ended well.

    Args:
        commands: Arguments after ``ucadi``, by a name for messages and for the log file.
        logs: Folder for their output.
        at_once: How many run at the same time.
        env: Added to this process' environment.
        on_poll: Called often with how many have ended.

    Raises:
        EngineError: If one fails, with the end of its output. All others are stopped then, and also when
            this process is interrupted.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(commands.items())
    running: dict[str, subprocess.Popen[bytes]] = {}
    done = 0
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name, arguments = waiting.pop(0)
                running[name] = _start(arguments, logs / f"{name}.log", env)
            for name, child in list(running.items()):
                status = child.poll()
                if status is None:
                    continue
                del running[name]
                done += 1
                if status != 0:
                    tail = (logs / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip()
                    raise EngineError(
                        "engine-failed",
                        f"{name} ended with status {status}: {tail[-_MESSAGE_CHARACTERS:]}",
                        cure=f"See {logs / name}.log.",
                    )
            on_poll(done)
            time.sleep(_POLL_S)
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            try:
                child.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _start(arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one command in a session of its own, so that Ctrl-C reaches it through us only."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ucadi", *arguments],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
