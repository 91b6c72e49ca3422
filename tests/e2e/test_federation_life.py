# SPDX-License-Identifier: Apache-2.0
"""Sites come and go while a run goes on: by the commands alone, in real processes over TLS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from federation_by_commands import Federation, lines_of, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    yield made
    made.stop()


def test_a_site_joins_mid_run_another_leaves_and_returns_a_third_is_revoked(federation: Federation) -> None:
    at = federation
    at.serve()
    for name in "ABC":
        at.admit(name)
        at.start(name)
    at.submit("life", rounds=400, min_sites=2)
    seen = at.watch("life")

    def participants() -> set[str]:
        number = at.kept_rounds("life")
        return set(at.record("life", number)["participants"]) if number else set()

    until(lambda: participants() == {"A", "B", "C"}, 120)
    at.admit("D")
    at.start("D")
    until(lambda: "D" in participants())

    at.command("coordinator", "revoke", "C", "--reason", "a test", "--home", at.home)
    until(lambda: "C" not in participants())
    until(lambda: at.running["C"].poll() is not None, 60)  # a revoked site stops by itself
    assert "revoked" in (at.folder / "C.out").read_text()

    at.end("B")
    until(lambda: participants() == {"A", "D"})
    at.start("B")
    until(lambda: "B" in participants())

    at.command("site", "leave", "--yes", "--home", at.folder / "B")
    until(lambda: at.running["B"].poll() is not None, 60)
    until(lambda: "B" not in participants())
    at.invite("B")
    at.command("site", "join", at.folder / "B.json", "--home", at.folder / "B")
    at.command("coordinator", "approve", "B", "--yes", "--home", at.home)
    at.command("site", "join", "--home", at.folder / "B")
    at.start("B")
    until(lambda: "B" in participants())

    at.command("run", "stop", "life", "--home", at.home)
    until(lambda: at.ask("run", "show", "life")["state"] == "stopped", 60)
    happened = lines_of(seen)
    sites = {line.get("site") for line in happened}
    assert {"A", "B", "C", "D"} <= sites
    assert at.command("coordinator", "audit", "--verify", "--home", at.home)
