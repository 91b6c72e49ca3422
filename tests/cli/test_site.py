# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import subprocess
import sys

import pytest

from site_homes import make_home, write_policy
from ucadi.cli.main import main
from ucadi.store.site_state import Decision

COMMANDS = (
    "init",
    "join",
    "leave",
    "preflight",
    "start",
    "status",
    "watch",
    "pause",
    "resume",
    "plans",
    "approve",
    "reject",
    "sent",
)


@pytest.fixture
def home(tmp_path):
    return make_home(tmp_path)


@pytest.fixture
def state(home):
    opened = home.open_state()
    yield opened
    opened.close()


@pytest.fixture
def run(capsys, home):
    """Runs a command of the site in this process; returns status, stdout and stderr."""

    def start(command, *arguments):
        status = main(["site", command, *map(str, arguments), "--home", str(home.folder)])
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return status, seen.out, seen.err

    return start


@pytest.fixture
def seen(state, make_run_plan):
    """A plan that has come."""
    return state.see(make_run_plan())


def test_every_command_of_a_site_has_help(capsys):
    for command in COMMANDS:
        assert main(["site", command, "--help"]) == 0
        assert "--home" in capsys.readouterr().out


def test_a_folder_that_is_no_home_is_named(capsys, tmp_path):
    for command in ("status", "plans", "sent", "pause"):
        assert main(["site", command, "--home", str(tmp_path)]) == 2
        assert "site-home-missing" in capsys.readouterr().err


def test_the_home_is_taken_from_the_environment(capsys, home, monkeypatch):
    monkeypatch.setenv("UCADI_HOME", str(home.folder))
    assert main(["site", "plans"]) == 0
    assert capsys.readouterr().out == "no plan has come yet\n"


def test_a_plan_is_shown_in_plain_words(run, seen):
    status, out, _ = run("plans")
    assert status == 0
    assert out.split()[0] == seen.short
    assert out.endswith("run-1  waiting\n")
    status, out, _ = run("plans", seen.short[:6])
    assert status == 0
    words = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert words["Run"] == "run-1"
    assert words["Plan"] == seen.hash
    for part in ("classifier", "densenet3d", "2 rounds", "4 steps of 2 samples", "learning rate 0.01"):
        assert part in out
    for part in (
        "the coordinator can read each site's update",
        "loss, validation",
        "MB per round",
        "at least 2",
    ):
        assert part in out
    assert "24 training studies of 12 patients; a round passes 0.3 times over them" in out


def test_a_plan_is_approved_by_hand_exactly_as_shown(run, seen, state):
    status, out, _ = run("approve", seen.short, "--yes")
    assert status == 0
    assert "plaintext" in out, "what is approved is shown first"
    assert state.find(seen.hash).decision is Decision.APPROVED
    status, out, _ = run("reject", seen.short, "--reason", "holidays", "--json")
    assert status == 0
    assert json.loads(out)["reason"] == "holidays"
    assert state.find(seen.hash).decision is Decision.REJECTED


def test_nobody_approves_without_being_asked(run, seen, state, monkeypatch):
    for answer, expected in (("n", Decision.WAITING), ("", Decision.WAITING), ("y", Decision.APPROVED)):
        monkeypatch.setattr("sys.stdin", _Input(answer))
        status, _, err = run("approve", seen.short)
        assert f"Approve plan {seen.short}?" in err
        assert (status == 0) is (expected is Decision.APPROVED)
        assert state.find(seen.hash).decision is expected


class _Input:
    """A terminal on which one line is written."""

    def __init__(self, line: str) -> None:
        self._lines = [f"{line}\n"] if line else []

    def readline(self) -> str:
        return self._lines.pop() if self._lines else ""

    def isatty(self) -> bool:
        return True


def test_a_plan_that_the_policy_forbids_cannot_be_approved(run, seen, state, home):
    write_policy(home, "min_sites = 3", "require_encryption = true")
    status, out, err = run("approve", seen.short, "--yes")
    assert status == 2
    assert "plan-forbidden" in err
    for rule in ("min_sites: there are 2, at least 3 are required.", "require_encryption"):
        assert rule in err
        assert rule in out
    assert state.find(seen.hash).decision is Decision.WAITING


def test_a_changed_plan_says_what_changed(run, seen, state, make_run_plan):
    run("approve", seen.short, "--yes")
    changed = state.see(make_run_plan(rounds=9))
    _, out, _ = run("plans", changed.short)
    assert f"this run was approved in another form, {seen.short}: rounds was 2, is 9" in out
    _, out, _ = run("plans", changed.short, "--json")
    assert json.loads(out)["words"]["Changed"].endswith("rounds was 2, is 9")


def test_an_unknown_plan_is_named(run):
    for command in (("plans", "abc"), ("approve", "abc", "--yes"), ("reject", "abc", "--reason", "x")):
        status, _, err = run(*command)
        assert status == 2
        assert "plan-unknown" in err
        assert "abc" in err


def test_pausing_and_resuming_is_said_and_seen(run, state):
    assert run("pause")[:2] == (0, "paused\n")
    assert state.flag("paused")
    assert "takes part in nothing" in run("status")[1]
    assert json.loads(run("status", "--json")[1])["paused"] is True
    assert run("resume")[:2] == (0, "taking part again\n")
    assert not state.flag("paused")


def test_everything_that_left_is_listed(run, state):
    assert run("sent")[1] == "nothing has left\n"
    state.note_sent("join", 100, "ab" * 32, recipient="hub at hub.example")
    state.note_sent("update", 2_900_000, "cd" * 32, run_id="run-1", round_number=3)
    status, out, err = run("sent", "--verify")
    assert status == 0
    assert "the hash chain is whole: 2 entries" in err
    head, join, update = out.splitlines()
    assert head.split() == ["time", "kind", "run", "round", "bytes", "sha256", "protection,", "to"]
    assert join.split()[2:] == ["join", "-", "-", "100", "ab" * 6, "plaintext,", "hub", "at", "hub.example"]
    assert update.split()[2:7] == ["update", "run-1", "3", "2900000", "cd" * 6]
    assert len(run("sent", "--run", "run-1")[1].splitlines()) == 2
    assert len(run("sent", "--last", "1")[1].splitlines()) == 2
    found = json.loads(run("sent", "--json", "--verify")[1])
    assert [row["sha256"] for row in found["sent"]] == ["ab" * 32, "cd" * 32]
    assert found["verified_entries"] == 2


def test_a_list_that_was_changed_is_said_to_be(run, state):
    state.note_sent("update", 10, "ab" * 32, run_id="run-1", round_number=1)
    with state._database.begin() as conn:
        conn.exec_driver_sql("UPDATE site_sent SET size_bytes = 9")
    status, _, err = run("sent", "--verify")
    assert status != 0
    assert "audit-broken" in err


def test_the_status_says_what_waits_what_is_done_and_what_left(run, state, seen):
    state.set_status("connection", {"state": "connected"})
    state.set_status("work", {"phase": "training", "run": "run-1", "round": 2, "step": 3, "steps": 12})
    state.note_sent("update", 2_900_000, "cd" * 32, run_id="run-1", round_number=1)
    _, out, _ = run("status")
    assert "A, joined hub at hub.example:8002" in out
    assert "connected (" in out
    assert "training, run run-1, round 2, step 3, steps 12 (" in out
    assert f"plan {seen.short} of run run-1: `ucadi site plans {seen.short}`" in out
    assert "update of 2.9 MB, plaintext, run run-1 round 1" in out
    found = json.loads(run("status", "--json")[1])
    assert found["waiting"] == {seen.short: "run-1"}
    assert found["work"]["step"] == 3


@pytest.mark.parametrize("option", [["--json"], []])
def test_watching_tells_each_change_once(home, state, make_run_plan, option):
    command = [sys.executable, "-m", "ucadi", "site", "watch", "--home", home.folder, "--interval", "0.1"]
    watcher = subprocess.Popen([*command, *option], stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        first = watcher.stdout.readline()
        assert "hub at hub.example" in first
        seen = state.see(make_run_plan())
        for line in watcher.stdout:
            if seen.short in line:
                break
        else:
            pytest.fail("the plan was not told")
    finally:
        os.kill(watcher.pid, signal.SIGINT)
        rest = watcher.communicate(timeout=20)[0]
    assert seen.short not in rest
    assert watcher.returncode == 130
