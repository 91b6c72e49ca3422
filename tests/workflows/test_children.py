# SPDX-License-Identifier: Apache-2.0
"""Real processes. One that waits forever is `ucadi train` on a pipe into which nobody writes."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ucadi import __version__
from ucadi.errors import EngineError
from ucadi.workflows.children import run_commands


@pytest.fixture
def pipe(tmp_path):
    """The path of a pipe; its name finds the processes that wait for it."""
    path = tmp_path / "pipe.toml"
    os.mkfifo(path)
    return path


def waiting(pipe, tmp_path) -> list[str]:
    return ["train", str(pipe), "-o", str(tmp_path / "out")]


def alive(pipe) -> list[int]:
    """Processes of ucadi that wait for the pipe."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if "ucadi" in words and str(pipe) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def wait_until(condition, seconds=30):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_all_commands_run_and_leave_their_output(tmp_path):
    done = []
    run_commands(
        {name: ["--version"] for name in "abc"}, tmp_path / "logs", at_once=2, env={}, on_poll=done.append
    )
    assert [(tmp_path / "logs" / f"{name}.log").read_text() for name in "abc"] == [
        f"ucadi {__version__}\n"
    ] * 3
    assert done == sorted(done)
    assert done[-1] == 3


def test_no_more_run_at_once_than_allowed(tmp_path):
    counts = []
    run_commands(
        {name: ["--version"] for name in "abc"},
        tmp_path / "logs",
        at_once=1,
        env={},
        on_poll=lambda done: counts.append(len(psutil.Process().children())),
    )
    assert max(counts) <= 1


def test_the_environment_reaches_the_children(tmp_path):
    run_commands({"a": ["--version"]}, tmp_path, at_once=1, env={"PYTHONVERBOSE": "1"})
    assert "import " in (tmp_path / "a.log").read_text()


def test_a_failing_child_stops_the_others_and_shows_the_end_of_its_output(tmp_path, pipe):
    commands = {"slow": waiting(pipe, tmp_path), "bad": ["bogus"], "later": waiting(pipe, tmp_path)}
    with pytest.raises(EngineError) as caught:
        run_commands(commands, tmp_path / "logs", at_once=2, env={})
    assert caught.value.code == "engine-failed"
    assert caught.value.detail.startswith("bad ended with status 2")
    assert "No such command 'bogus'" in caught.value.detail
    assert "bad.log" in caught.value.cure
    assert not (tmp_path / "logs" / "later.log").exists()
    assert alive(pipe) == []


def test_an_error_of_the_caller_stops_the_children(tmp_path, pipe):
    def fail(done):
        if alive(pipe):
            raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="own"):
        run_commands({"slow": waiting(pipe, tmp_path)}, tmp_path / "logs", at_once=1, env={}, on_poll=fail)
    assert alive(pipe) == []


def test_ctrl_c_leaves_no_child_behind(tmp_path, pipe):
    code = (
        "import pathlib, sys\nfrom ucadi.workflows.children import run_commands\n"
        "command = sys.argv[2:]\n"
        "run_commands({'a': command, 'b': command}, pathlib.Path(sys.argv[1]), at_once=2, env={})\n"
    )
    arguments = [str(tmp_path / "logs"), *waiting(pipe, tmp_path)]
    parent = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: len(alive(pipe)) == 2)
        parent.send_signal(signal.SIGINT)
        _, said = parent.communicate(timeout=20)
    finally:
        parent.kill()
        parent.wait()
    assert b"KeyboardInterrupt" in said
    assert parent.returncode == -signal.SIGINT
    assert alive(pipe) == []
