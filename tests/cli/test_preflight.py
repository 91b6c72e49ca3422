# SPDX-License-Identifier: Apache-2.0
"""`ucadi site preflight`: what it prints and how it ends."""

import json

import pytest
import typer
from typer.testing import CliRunner

from ucadi.cli.preflight import preflight
from ucadi.errors import ConfigError
from ucadi.workflows.phantom import make_cohort
from ucadi.workflows.site_home import POLICY_TEXT

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def program() -> typer.Typer:
    app = typer.Typer()
    app.command()(preflight)
    return app


@pytest.fixture
def home(tmp_path):
    """A site that has not joined, with a cohort of one study that cannot be trained on."""
    make_cohort("A", 1, 0, tmp_path / "cohort", matrix=32, masks=False, dicom=False)
    folder = tmp_path / "home"
    (folder / "keys").mkdir(mode=0o700, parents=True)
    (folder / "keys" / "identity.key").touch(0o600)
    (folder / "site.toml").write_text(
        'config_version = 1\n[site]\ncohort = "../cohort"\ncache = "../cache"\n'
    )
    (folder / "policy.toml").write_text(POLICY_TEXT.replace('"classifier", ', ""))
    return folder


def test_each_line_has_its_state_its_value_and_its_cure(program, home):
    (home / "keys" / "identity.key").chmod(0o644)
    (home.parent / "cohort" / "cohort.csv").unlink()
    result = RUNNER.invoke(program, ["--home", str(home)])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    (exposed,) = [number for number, line in enumerate(lines) if line.startswith("failed   key files")]
    assert "keys/identity.key (644)" in lines[exposed]
    assert "-> Run `chmod" in lines[exposed + 1]
    assert any(line.startswith("skipped  API port") for line in lines)
    assert lines[-1].endswith("skipped")
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_nothing_failed_is_status_0_and_json_has_every_line(program, home):
    result = RUNNER.invoke(program, ["--home", str(home), "--json"])
    document = json.loads(result.stdout)
    assert result.exit_code == (0 if document["is_fine"] else 1)
    assert sum(document["counts"].values()) == len(document["lines"])
    for line in document["lines"]:
        assert line.keys() == {"name", "state", "found", "cure"}
        assert line["found"]
    failed = [line["name"] for line in document["lines"] if line["state"] == "failed"]
    assert not failed


def test_a_folder_that_is_no_home_is_refused(program, tmp_path):
    result = RUNNER.invoke(program, ["--home", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert result.exception.code == "site-home-missing"
