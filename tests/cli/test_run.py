# SPDX-License-Identifier: Apache-2.0
import json
import os
import pty
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from ucadi.cli.main import main
from ucadi.cli.watch import draw_run, sparkline, watch_live
from ucadi.federation.records import Progress, RoundRecord
from ucadi.store.runs import RunState, RunStore
from ucadi.workflows.coordinator_home import CoordinatorHome
from ucadi.workflows.runs import RunReader

PLAN = """
config_version = 1

[run]
name = "covid-1"
rounds = 3

[training]
task = "classifier"
network = "densenet3d"
preset = "compact"
iterations = 16
batch_size = 8
learning_rate = 0.004
"""

HOME = """
config_version = 1

[coordinator]
name = "test"
host = "127.0.0.1"
port = 8102
api_port = 8103
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of a coordinator with its settings alone; the commands need nothing else of it."""
    folder = tmp_path / "ucadi-coordinator"
    (folder / "runs").mkdir(parents=True)
    (folder / "coordinator.toml").write_text(HOME)
    (tmp_path / "plan.toml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return folder


@pytest.fixture
def database(home):
    """The coordinator's database."""
    opened = CoordinatorHome.open(home).open_database()
    yield opened
    opened.close()


@pytest.fixture
def store(database, make_run_plan):
    """The store with a running run: one complete round, site C missing, the second under way."""
    runs = RunStore(database)
    runs.submit(make_run_plan(run_id="covid-1", rounds=3), "hash-0")
    runs.set_state("covid-1", RunState.RUNNING)
    tell(runs, ("ready", 1, "A"), ("ready", 1, "B"), ("missing", 1, "C", "site-lost"), ("update", 1, "A"))
    runs.keep_round("covid-1", record(1), "hash-1")
    tell(runs, ("ready", 2, "A"), ("ready", 2, "B"), ("missing", 2, "C", "site-failed"), ("update", 2, "B"))
    return runs


@pytest.fixture
def run(capsys):
    """Runs a command in this process; returns status, stdout and stderr."""

    def start(*arguments):
        status = main(["run", *map(str, arguments)])
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return status, seen.out, seen.err

    return start


def record(number):
    metrics = {site: {"validation": number / 10} for site in ("A", "B")}
    return RoundRecord(number, ["A", "B"], {"C": "site-lost"}, metrics, number / 10, 2_000_000)


def tell(store, *lines):
    for kind, number, site, *detail in lines:
        store.add_event("covid-1", Progress(kind, number, site, *detail))


def complete(store):
    """End the run well."""
    for number in (2, 3, 4):
        store.keep_round("covid-1", record(number), "hash-x")
    store.set_state("covid-1", RunState.COMPLETED)


def test_a_dry_run_says_the_plan_and_its_hash_and_needs_no_home(run, tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    status, out, err = run("submit", tmp_path / "plan.toml", "--dry-run", "--home", tmp_path / "nowhere")
    assert (status, err) == (0, "")
    assert "the coordinator can read each site's update" in out
    assert "Nothing was submitted." in out
    assert not (tmp_path / "nowhere").exists()


def test_a_submitted_run_is_listed_and_stopped_and_resumed(run, home, tmp_path):
    status, out, _ = run("submit", tmp_path / "plan.toml", "--json")
    assert (status, json.loads(out)["state"]) == (0, "queued")
    assert run("submit", tmp_path / "plan.toml")[0] == 0
    (listed,) = json.loads(run("list", "--json")[1])["runs"]
    assert (listed["run_id"], listed["state"], listed["rounds"]) == ("covid-1", "queued", 3)
    assert "covid-1" in run("list")[1]
    assert run("stop", "covid-1") == (0, "Run covid-1 is stopped.\n", "")
    assert run("resume", "covid-1", "--from-round", 0) == (0, "Run covid-1 is queued.\n", "")
    assert json.loads(run("stop", "covid-1", "--json")[1])["state"] == "stopped"
    (tmp_path / "plan.toml").write_text(PLAN.replace("rounds = 3", "rounds = 4"))
    status, out, _ = run("submit", tmp_path / "plan.toml", "--json")
    assert (status, json.loads(out)["code"]) == (1, "run-exists")


def test_without_runs_the_list_says_so(run, home):
    assert run("list") == (0, "No run was submitted yet.\n", "")


@pytest.mark.parametrize("command", ["show", "watch", "logs", "stop", "resume"])
def test_an_unknown_run_is_one_sentence(run, home, command):
    status, out, err = run(command, "nothing")
    assert (status, out) == (1, "")
    assert err.startswith("Error (run-unknown): ")


def test_without_a_home_the_way_to_make_one_is_said(run, tmp_path):
    status, _, err = run("list", "--home", tmp_path / "nothing")
    assert status == 2
    assert "ucadi coordinator init" in err


def test_show_tells_rounds_reasons_and_best_models_in_80_columns(run, store):
    status, out, _ = run("show", "covid-1")
    assert status == 0
    assert "C (site-lost)" in out
    assert "Best model     round 0, score 0.100" in out
    assert "Own best       A round 0, B round 0" in out
    table = out[out.index("participants") :]
    assert all(len(line) <= 80 for line in table.splitlines())
    document = json.loads(run("show", "covid-1", "--json")[1])
    assert document["rounds"][0]["missing"] == {"C": "site-lost"}
    assert {site["site"]: site["state"] for site in document["sites"]} == {
        "A": "training",
        "B": "sent",
        "C": "missing",
    }


def test_logs_print_one_line_for_each_happening(run, store):
    lines = run("logs", "covid-1")[1].splitlines()
    assert len(lines) == 11
    assert any("round 1 is complete" in line and "missing C (site-lost)" in line for line in lines)
    kinds = [json.loads(line)["kind"] for line in run("logs", "covid-1", "--json")[1].splitlines()]
    assert kinds.count("ready") == 4
    complete(store)
    assert "the run is completed" in run("logs", "covid-1", "-f")[1].splitlines()[-1]


@pytest.mark.parametrize(("state", "status"), [("completed", 0), ("failed", 1), ("stopped", 1)])
def test_watch_ends_with_the_run_and_its_status(run, store, state, status):
    if state == "completed":
        complete(store)
    else:
        store.set_state("covid-1", RunState(state), "Reasons.")
    ended, out, _ = run("watch", "covid-1", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert ended == status
    assert lines[-1]["kind"] == "state"
    assert lines[-1]["state"] == state
    assert run("watch", "covid-1")[1].splitlines()[-1].endswith(f"the run is {state}{': Reasons.' * status}")


def test_watch_prints_lines_as_they_happen_when_nobody_looks_at_a_terminal(run, store):
    thread = threading.Timer(0.3, complete, [store])
    thread.start()
    status, out, _ = run("watch", "covid-1", "--interval", "0.1")
    thread.join()
    assert status == 0
    assert "\x1b" not in out
    assert out.splitlines()[-1].endswith("the run is completed")
    assert [line for line in out.splitlines() if "round 3 is complete" in line]


def picture(reader, width=80):
    """What a terminal of a width shows."""
    look = reader.look()
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(draw_run(look.view, look.happenings, time.time()))
    return captured.get()


def test_the_picture_fits_into_80_columns_and_names_every_sites_state(database, store):
    shown = picture(RunReader(database, "covid-1"))
    assert all(len(line.rstrip()) <= 80 for line in shown.splitlines())
    assert "covid-1  running  round 2 of 3" in shown
    rows = {words[0]: words for line in shown.splitlines() if (words := line.split())}
    assert rows["A"][1] == "training"
    assert rows["B"][1] == "sent"
    assert rows["C"][1:3] == ["missing:", "site-failed"]
    assert "2.0 MB received" in shown
    assert "best 0.100, model of round 0" in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_picture_of_any_state_can_be_drawn(database, store, width):
    reader = RunReader(database, "covid-1")
    tell(store, ("waiting", 2, "", "Round 2: 1 sites take part, 2 are needed."))
    assert "1 sites take part" in " ".join(picture(reader, width).split())
    complete(store)
    shown = picture(reader, width)
    assert "completed" in shown
    assert "▁" in shown


def test_a_sparkline_runs_from_the_lowest_to_the_highest():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.3, 0.3]) == "▄▄"
    assert sparkline([]) == ""
    assert len(sparkline([float(n) for n in range(100)])) == 24


@pytest.mark.slow
def test_a_terminal_shows_a_live_picture_while_another_process_writes(home, store):
    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    code = "import sys; from ucadi.cli.main import main; sys.exit(main(['run', 'watch', 'covid-1']))"
    environment = {**os.environ, "COLUMNS": "80", "LINES": "30", "TERM": "xterm-256color"}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=follower, stderr=follower, stdin=follower, env=environment
    )
    os.close(follower)
    seen = b""
    deadline = time.monotonic() + 60
    is_told = False
    while child.poll() is None and time.monotonic() < deadline:
        try:
            seen += os.read(leader, 65536)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            break
        if b"training" in seen and not is_told:
            is_told = True
            complete(store)
    assert child.wait(10) == 0
    os.close(leader)
    text = seen.decode()
    assert "\x1b[" in text
    assert "running" in text
    assert "the run is completed" in text


def test_export_writes_files_and_tensorboard_and_says_where(run, home, store, tmp_path):
    status, out, _ = run("export", "covid-1", "-o", "out", "--models", "none", "--tensorboard", "logs")
    assert status == 0
    assert "metrics.csv" in out
    assert "tensorboard --logdir logs" in out
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert [p.name for p in (tmp_path / "logs").iterdir()] == ["covid-1"]
    status, _, err = run("export", "covid-1", "-o", "out", "--models", "none")
    assert (status, err.splitlines()[0].split(":")[0]) == (2, "Error (output-exists)")
    assert run("export", "covid-1", "-o", "out", "--models", "none", "--force")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"), [([], "-o, --tensorboard or --mlflow"), (["-o", "x", "--models", "some"], "best")]
)
def test_a_wrong_use_of_export_is_said_with_status_2(run, home, arguments, said):
    status, out, err = run("export", "covid-1", *arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_a_live_view_returns_the_last_state(database, store, capsys):
    complete(store)
    assert watch_live(iter([RunReader(database, "covid-1").look()])) == "completed"
    assert "completed" in capsys.readouterr().out
