# SPDX-License-Identifier: Apache-2.0
"""`ucadi model` as a person types it."""

import json
from dataclasses import asdict

import pytest

from kept_runs import overwrite, write_run
from ucadi.cli.main import main
from ucadi.crypto.identity import Identity
from ucadi.enrolment.authority import Authority
from ucadi.enrolment.invitation import Federation
from ucadi.federation.evaluation import Candidate, Cell, Matrix, Row
from ucadi.io.checkpoint import read_model
from ucadi.types import Task
from ucadi.workflows.cross_site import write_matrix
from ucadi.workflows.kept_models import read_run

SETTINGS = 'config_version = 1\n\n[coordinator]\nname = "lungs"\nhost = "localhost"\n'


@pytest.fixture
def home(tmp_path, make_run_plan, make_model):
    """What a coordinator's home needs for its releases, with one complete run."""
    folder = tmp_path / "coordinator"
    write_run(folder, make_run_plan(sites=("A", "B")), make_model, studies={"A": 40, "B": 12})
    (folder / "keys").mkdir()
    Identity.make(folder / "keys" / "identity.key")
    (folder / "coordinator.toml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """The certificate that a site pins besides the coordinator's key."""
    return Authority.make(tmp_path_factory.mktemp("authority"), "lungs").pem


@pytest.fixture
def site(tmp_path, home, authority):
    """What a site's home needs to install releases."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "site.toml").write_text("config_version = 1\n")
    key = Identity.load(home / "keys" / "identity.key").public_key
    federation = Federation("lungs", "localhost", 8102, 8103, "coordinator", authority, key)
    membership = {"format": 1, "site": "A", "state": "approved", "federation": asdict(federation)}
    (folder / "membership.json").write_text(json.dumps(membership))
    return folder


@pytest.fixture
def ucadi(capsys):
    """Runs a `ucadi model` command; returns status, stdout and stderr."""

    def start(*arguments):
        status = main(["model", *map(str, arguments)])
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return status, seen.out, seen.err

    return start


@pytest.fixture
def at_home(ucadi, home):
    """Runs a command in the coordinator's home that must succeed; returns its object."""

    def start(*arguments):
        status, out, err = ucadi(*arguments, "--home", home, "--json")
        assert status == 0, err
        return json.loads(out)

    return start


def test_a_model_is_released_promoted_carried_to_a_site_and_rolled_back(at_home, ucadi, home, site, tmp_path):
    first = at_home("release", "run-1", "--round", "1", "--name", "lung-1")
    at_home("promote", "lung-1")
    second = at_home("release", "run-1", "--name", "lung-2", "--licence", "CC0", "--limit", "Misses much.")
    assert second["parent"] == {"name": "lung-1", "hash": first["hash"]}
    at_home("promote", "lung-2")
    assert at_home("list")["current"] == "lung-2"
    archive = tmp_path / "lung-2.zip"
    assert at_home("export", "lung-2", "-o", archive)["hash"] == second["hash"]
    status, out, err = ucadi("pull", "--from", archive, "--use", "--home", site)
    assert status == 0, err
    assert "ucadi predict" in out
    assert read_model(site / "models" / "current").cards[Task.CLASSIFIER].rounds == 2
    status, out, _ = ucadi("list", "--home", site)
    assert status == 0
    assert out.startswith("* lung-2")
    assert at_home("rollback")["name"] == "lung-1"
    shown = at_home("show", "lung-1")
    assert [entry["kind"] for entry in shown["promotions"]] == ["promoted", "rolled_back"]


def test_the_card_is_text_for_people_and_an_object_for_programs(at_home, ucadi, home):
    at_home("release", "run-1", "--name", "lung-1", "--licence", "CC0", "--limit", "Misses much.")
    _, text, _ = ucadi("card", "lung-1", "--home", home)
    assert "# Model card: lung-1" in text
    assert "| A | 2 | 40 | 0.700 | not reported | not recorded |" in text
    assert "- Misses much." in text
    assert at_home("card", "lung-1")["licence"] == "CC0"


def test_verify_tells_a_changed_release_from_an_intact_one(at_home, ucadi, home, site, tmp_path):
    key = at_home("release", "run-1", "--name", "lung-1")["public_key"]
    folder = home / "releases" / "lung-1"
    assert at_home("verify", folder)["is_signer_checked"] is True
    (tmp_path / "key.txt").write_text(key + "\n")
    for options in (["--key", key], ["--key", tmp_path / "key.txt"], ["--home", site]):
        status, out, err = ucadi("verify", folder, *options)
        assert status == 0, err
        assert "Signed by the coordinator" in out
    status, _, err = ucadi("verify", folder)
    assert status == 0
    assert "Who signed it was not checked" in err
    stranger = Identity.make(tmp_path / "stranger.key").public_key
    status, _, err = ucadi("verify", folder, "--key", stranger)
    assert status != 0
    assert "(release-signer)" in err
    overwrite(folder / "card.json", b"{}")
    status, _, err = ucadi("verify", folder, "--key", key)
    assert status != 0
    assert "(release-altered)" in err
    assert "card.json" in err


def test_lists_and_promotions_are_lines_for_people(at_home, ucadi, home):
    assert ucadi("list", "--home", home)[1] == "no releases\n"
    at_home("release", "run-1", "--name", "lung-1")
    status, out, _ = ucadi("promote", "lung-1", "--home", home)
    assert status == 0
    assert out.startswith("lung-1 is current")
    assert ucadi("list", "--home", home)[1].startswith("* lung-1")
    _, out, _ = ucadi("show", "lung-1", "--home", home)
    assert "classifier.safetensors" in out
    assert "promoted" in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("release", "run-9", "--name", "a"), "run-unknown"),
        (("release", "run-1", "--name", "../a"), "release-name"),
        (("release", "run-1", "--name", "a", "--round", "9"), "model-not-kept"),
        (("promote", "a"), "release-unknown"),
        (("card", "../../keys"), "release-name"),
        (("rollback",), "release-unknown"),
        (("matrix", "run-1"), "evaluation-missing"),
        (("evaluate", "run-1", "--models", "newest"), "model-not-kept"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(ucadi, home, arguments, code):
    status, _, err = ucadi(*arguments, "--home", home)
    assert status != 0
    assert f"Error ({code}):" in err


def test_a_name_and_an_archive_together_are_a_wrong_use(ucadi, site, tmp_path):
    status, _, err = ucadi("pull", "lung-1", "--from", tmp_path / "a.zip", "--home", site)
    assert status == 2
    assert "not both" in err


def test_models_are_asked_to_be_measured_and_the_matrix_is_shown(at_home, ucadi, home):
    asked = at_home("evaluate", "run-1", "--models", "best, own")
    assert [model["round"] for model in asked["models"]] == [1, 2]
    _, _, err = ucadi("matrix", "run-1", "--home", home)
    assert "awaited" in err
    run = read_run(home / "runs" / "run-1")
    row = Row(Candidate(2, run.hashes[2], ("best",)), {"A": Cell(0.7, 20, 0.6, 0.8)}, 0.7)
    write_matrix(run.folder, Matrix("run-1", ("A",), (row,)), Task.CLASSIFIER)
    _, out, _ = ucadi("matrix", "run-1", "--home", home)
    assert "| best | 2 | 0.700 [0.600, 0.800] (n = 20) | 0.700 |" in out
    assert at_home("matrix", "run-1")["best_round"] == 2


def test_an_existing_archive_is_not_replaced_unasked(at_home, ucadi, home, tmp_path):
    at_home("release", "run-1", "--name", "lung-1")
    out = tmp_path / "lung-1.zip"
    out.write_text("mine")
    status, _, err = ucadi("export", "lung-1", "-o", out, "--home", home)
    assert (status, out.read_text()) == (2, "mine")
    assert "(output-exists)" in err
    at_home("export", "lung-1", "-o", out, "--force")
