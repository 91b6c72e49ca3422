# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import subprocess
import sys

import pytest

from ucadi import __version__
from ucadi.cli.main import main
from ucadi.errors import CODES

SIMULATE = """
config_version = 1

[run]
name = "run-1"
rounds = 1

[training]
task = "classifier"
network = "densenet3d"
preset = "compact"
iterations = 1
batch_size = 8
learning_rate = 0.01

[sites.A]
cohort = "nothing"
cache = "cache"

[sites.B]
cohort = "nothing"
cache = "cache"
"""


@pytest.fixture
def config(tmp_path):
    """A valid configuration whose sites have no cohort."""
    path = tmp_path / "simulate.toml"
    path.write_text(SIMULATE)
    return path


@pytest.fixture
def run(capsys):
    """Runs a command in this process; returns status, stdout and stderr."""

    def start(*arguments):
        status = main([str(argument) for argument in arguments])
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return status, seen.out, seen.err

    return start


def assert_one_sentence(error, code):
    """One line says what happened under its code, the next how to mend it."""
    lines = error.strip().splitlines()
    assert lines[0].startswith(f"Error ({code}): ")
    assert len(lines) == 2
    assert all(line.strip().endswith(".") for line in lines)


def test_the_version_is_shown(run):
    assert run("--version") == (0, f"ucadi {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["phantom", "make", "--help"]])
def test_help_is_shown_on_stdout(run, arguments):
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith("Usage: ucadi")


def test_without_a_command_the_commands_are_listed(run):
    status, out, err = run()
    assert status == 2
    assert "simulate" in out + err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "bogus"),
        (["train", "--bogus", "x"], "--bogus"),
        (["train"], "config"),
        (["train", "x.toml"], "--out"),
        (["phantom", "make", "--site", "Z", "-o", "x"], "--site"),
        (["phantom", "make", "--site", "A", "-o", "x", "--patients", "0"], "--patients"),
        (["phantom", "make", "--site", "A", "-o", "x", "--patients", "many"], "--patients"),
        (["demo", "--port", "80"], "--port"),
    ],
)
def test_a_wrong_use_is_said_on_stderr_with_status_2(run, arguments, said):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err.lower()
    assert "Usage: ucadi" in err


@pytest.mark.parametrize("command", ["train", "simulate"])
def test_a_refused_setting_is_one_sentence_with_status_2(run, config, tmp_path, command):
    config.write_text(SIMULATE.replace("rounds = 1", "rounds = 0"))
    status, out, err = run(command, config, "-o", tmp_path / "out")
    assert (status, out) == (2, "")
    assert_one_sentence(err, "config-invalid")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nothing.toml", "."])
def test_a_missing_configuration_is_one_sentence(run, tmp_path, name):
    status, _, err = run("train", tmp_path / name, "-o", tmp_path / "out")
    assert status == 2
    assert_one_sentence(err, "config-invalid")


def test_with_json_an_error_is_one_object_on_stdout(run, tmp_path):
    status, out, err = run("simulate", tmp_path / "nothing.toml", "-o", tmp_path / "out", "--json")
    assert status == 2
    error = json.loads(out)
    assert error.keys() == {"code", "reason", "cure"}
    assert error["code"] == "config-invalid"
    assert error["reason"] == CODES["config-invalid"].public_message
    assert "nothing.toml" not in json.dumps(error)
    assert_one_sentence(err, "config-invalid")


def test_words_in_brackets_are_shown_as_they_are(run, tmp_path):
    _, _, err = run("train", tmp_path / "[bold]x[/].toml", "-o", tmp_path / "out")
    assert "[bold]x[/].toml" in err


@pytest.mark.parametrize("what", ["folder", "file"])
def test_existing_output_is_never_overwritten_unasked(run, config, tmp_path, what):
    out = tmp_path / "out"
    kept = out / "kept.txt" if what == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    status, _, err = run("simulate", config, "-o", out)
    assert status == 2
    assert_one_sentence(err, "output-exists")
    assert kept.read_text() == "mine"


def test_a_file_in_the_outputs_place_is_not_removed_even_when_forced(run, config, tmp_path):
    (tmp_path / "out").write_text("mine")
    status, _, _ = run("simulate", config, "-o", tmp_path / "out", "--force")
    assert status == 2
    assert (tmp_path / "out").read_text() == "mine"


def test_a_refused_configuration_does_not_cost_the_old_results(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("mine")
    status, _, _ = run("simulate", tmp_path / "nothing.toml", "-o", tmp_path / "out", "--force")
    assert status == 2
    assert (tmp_path / "out" / "kept.txt").read_text() == "mine"


def test_a_run_without_any_cohort_ends_with_the_sites_reasons(run, config, tmp_path):
    status, out, err = run("simulate", config, "-o", tmp_path / "out")
    assert (status, out) == (1, "")
    assert_one_sentence(err, "quorum-missed")
    assert "A (cohort-invalid), B (cohort-invalid)" in err
    assert json.loads((tmp_path / "out" / "outcome.json").read_text())["code"] == "quorum-missed"


def test_an_output_folder_below_a_file_is_one_sentence(run, config):
    status, _, err = run("simulate", config, "-o", config / "out")
    assert status == 1
    assert_one_sentence(err, "file-error")


def test_an_output_folder_that_cannot_be_made_is_one_sentence(run, config):
    status, out, err = run("simulate", config, "-o", "/proc/ucadi/out", "--json")
    assert status == 1
    assert json.loads(out)["code"] == "file-error"
    assert_one_sentence(err, "file-error")


def test_a_full_disk_is_one_sentence(config, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    # A real disk of 64 KB, seen by this one process only and gone with it.
    alone = ["unshare", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=64k none {small}"
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("this machine allows no mounts")
    command = f"{sys.executable} -m ucadi simulate {config} -o {small / 'out'}"
    ran = subprocess.run([*alone, "sh", "-c", f"{mount} && {command}"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert_one_sentence(ran.stderr, "disk-full")
    assert "No space left on device" in ran.stderr


def test_a_missing_input_is_refused_with_status_3(run, tmp_path):
    status, out, err = run("inspect", tmp_path / "nothing")
    assert status == 3
    assert "input-not-found" in out + err


def test_a_missing_input_is_refused_as_one_object(run, tmp_path):
    status, out, _ = run("inspect", tmp_path / "nothing", "--json")
    assert status == 3
    assert json.loads(out)["code"] == "input-not-found"


def test_force_empties_only_what_ucadi_made(run, tmp_path):
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    make = ("phantom", "make", "--site", "C", "--patients", "1", "--matrix", "64", "--no-dicom")
    assert run(*make, "-o", own)[0] == 0
    assert run(*make, "-o", own)[0] == 2
    assert run(*make, "-o", own, "--force")[0] == 0
    foreign.mkdir()
    (foreign / "manifest.json").write_text("{}")
    status, _, err = run(*make, "-o", foreign, "--force")
    assert status == 2
    assert_one_sentence(err, "output-exists")
    assert (foreign / "manifest.json").exists()


def test_results_may_not_replace_what_a_command_reads(run, tmp_path):
    (tmp_path / "out").mkdir()
    status, _, err = run(
        "predict", tmp_path / "out" / "ct", "-o", tmp_path / "out", "--model", tmp_path, "--force"
    )
    assert status == 2
    assert_one_sentence(err, "output-exists")


@pytest.mark.parametrize(("given", "missing"), [("--certificate", "--key"), ("--key", "--certificate")])
def test_half_a_client_certificate_is_a_usage_error(tmp_path, capsys, given, missing) -> None:
    (tmp_path / "half.pem").write_text("")
    command = ["dicom", "query", "--from", "https://localhost:1/dicom-web", given, str(tmp_path / "half.pem")]
    assert main(command) == 2
    assert f"{missing} is not" in capsys.readouterr().err
