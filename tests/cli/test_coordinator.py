# SPDX-License-Identifier: Apache-2.0
"""A federation made by commands alone, on fresh folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coordinator_hub import Hub
from ucadi.cli.main import app, main
from ucadi.engines.flare.kit import check_kit
from ucadi.engines.flare.process import free_port
from ucadi.errors import ExitStatus
from ucadi.workflows.coordinator_home import CoordinatorHome

Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs one command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UCADI_HOME", raising=False)
    runner = CliRunner()
    return lambda *words, said=None: runner.invoke(app, [str(word) for word in words], input=said)


@pytest.mark.slow
def test_two_fresh_homes_become_a_federation(command: Command, tmp_path: Path) -> None:
    ports = ("--port", free_port(), "--api-port", free_port())
    made = command("coordinator", "init", "--name", "study", "--host", "127.0.0.1", *ports)
    assert made.exit_code == 0, made.output
    assert command("coordinator", "sites").stdout == "no site has been invited yet\n"
    assert command("coordinator", "invite", "lyon", "--days", "2").exit_code == 0
    assert command("site", "init").exit_code == 0

    hub = Hub(CoordinatorHome.open(tmp_path / "ucadi-coordinator"), tmp_path)
    hub.start()
    try:
        joined = command("site", "join", "lyon.invitation.json", "--organization", "CHU de Lyon", "--json")
        assert joined.exit_code == 0, joined.output
        answer = json.loads(joined.stdout)
        assert answer["state"] == "pending"
        assert answer["fingerprint"] in joined.stderr

        asked = command("coordinator", "approve", "lyon", said="n\n")
        assert asked.exit_code == 1
        assert answer["fingerprint"] in asked.stderr
        assert "CHU de Lyon" in asked.stderr
        assert "pending" in command("coordinator", "sites").stdout
        approved = command("coordinator", "approve", "lyon", said="y\n")
        assert approved.exit_code == 0
        assert "is approved" in approved.stdout

        assert "member of study" in command("site", "join").stdout
        check_kit(tmp_path / "ucadi-site" / "kit")
        listed = json.loads(command("coordinator", "sites", "--json").stdout)["sites"]
        assert [(site["name"], site["state"], site["organization"]) for site in listed] == [
            ("lyon", "approved", "CHU de Lyon")
        ]
        assert command("site", "leave", said="n\n").exit_code == 1
        left = command("site", "leave", "--yes", "--reason", "done", "--json")
        assert json.loads(left.stdout) == {"state": "left", "coordinator_told": True}
    finally:
        hub.stop()

    log = command("coordinator", "audit", "--verify")
    assert log.stdout.endswith("5 entries, none changed\n")
    lines = command("coordinator", "audit", "--json", "--after", "4").stdout.splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["leave"]
    assert json.loads(command("coordinator", "audit", "--verify", "--json").stdout) == {"verified": 5}


def test_an_invitation_is_written_once_and_for_its_owner_alone(hub: Hub, command: Command) -> None:
    home = ("--home", hub.home.folder)
    answer = json.loads(command("coordinator", "invite", "lyon", *home, "-o", "for-lyon", "--json").stdout)
    assert (answer["site"], answer["file"]) == ("lyon", "for-lyon")
    assert Path("for-lyon").stat().st_mode & 0o777 == 0o600
    before = Path("for-lyon").read_text()
    assert main(["coordinator", "invite", "lyon", *map(str, home), "-o", "for-lyon"]) == ExitStatus.USAGE
    assert Path("for-lyon").read_text() == before


def test_a_revoked_invitation_is_listed_as_revoked(hub: Hub, command: Command) -> None:
    home = ("--home", hub.home.folder)
    command("coordinator", "invite", "lyon", *home)
    revoked = command("coordinator", "revoke", "lyon", "--reason", "sent astray", *home, "--json")
    assert json.loads(revoked.stdout)["state"] == "revoked"
    assert main(["coordinator", "revoke", "lyon", "--home", str(hub.home.folder)]) == ExitStatus.FAILED


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["coordinator", "sites"], ExitStatus.USAGE, "home-missing"),
        (["coordinator", "invite", "lyon"], ExitStatus.USAGE, "home-missing"),
        (["coordinator", "serve"], ExitStatus.USAGE, "home-missing"),
        (["coordinator", "init", "--name", "a b", "--host", "x"], ExitStatus.USAGE, "config-invalid"),
        (["site", "join", "missing"], ExitStatus.USAGE, "site-home-missing"),
        (["site", "leave", "--yes"], ExitStatus.USAGE, "site-home-missing"),
        (["site", "init", "--name", "../x"], ExitStatus.USAGE, "config-invalid"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_code(
    command: Command, capsys: pytest.CaptureFixture[str], words: list[str], status: ExitStatus, code: str
) -> None:
    assert main(words) == status
    assert f"({code})" in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_an_unknown_site_is_said(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["approve", "x", "--yes"], ["revoke", "x"]):
        assert main(["coordinator", *words, "--home", str(hub.home.folder), "--json"]) == ExitStatus.FAILED
        assert json.loads(capsys.readouterr().out)["code"] == "member-unknown"


def test_the_environment_names_the_home(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UCADI_HOME", str(hub.home.folder))
    assert main(["coordinator", "sites", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"sites": []}
