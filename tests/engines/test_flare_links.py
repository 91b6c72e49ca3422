# SPDX-License-Identifier: Apache-2.0
"""Large updates, and the links that hospitals have."""

import sys
import time
from pathlib import Path

import pytest
from federations import ENV, do, make_run, prepared, records, running, site_log
from tests.chaos.links import Cut, Network, Shape, can_make_hosts

from ucadi.engines.flare.local import FlareFederation

# The engine's own deprecated calls would fail in its threads, where nobody sees them.
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

_DRIVER = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from federations import ENV
from ucadi.engines.flare.process import FlareServer
from ucadi.errors import UnreachableError
kits, run = Path(sys.argv[1]), Path(sys.argv[2])
server = FlareServer(kits / "coordinator", kits / "driver@ucadi.local", ENV)
server.start()
try:
    while True:
        try:
            if server.connected():
                break
        except UnreachableError:
            pass
        time.sleep(0.5)
    job = server.submit(run.name, ["site-1"])
    print("submitted", flush=True)
    while not (run / "outcome.json").exists():
        time.sleep(0.2)
finally:
    server.stop()
"""


def run_over(network: Network, folder: Path, cut_s: float = 0.0, **plan: object) -> tuple[Path, float]:
    """Run a federation of one site at two hosts; return the run's folder and its seconds."""
    kits = prepared(folder, ["site-1"], host=network.address("hub"))
    run = make_run(kits, sites=["site-1"], min_sites=1, **plan)
    client = network.command(
        "site", sys.executable, "-m", "ucadi.engines.flare.start", str(kits.sites["site-1"])
    )
    driver = network.command("hub", sys.executable, "-c", _DRIVER, str(folder), str(run))
    with running(client, folder / "client.log"), running(driver, folder / "driver.log"):
        begin = 0.0
        for _ in range(6000):
            if not begin and "submitted" in (folder / "driver.log").read_text():
                begin = time.monotonic()
                if cut_s:
                    time.sleep(15)
                    network.cut("site", Cut.BOTH)
                    time.sleep(cut_s)
                    network.mend("site")
            if (run / "outcome.json").exists():
                break
            time.sleep(0.1)
        return run, time.monotonic() - begin


@pytest.mark.skipif(not can_make_hosts(), reason="needs root to make network namespaces")
def test_update_of_100_mb_passes_a_slow_and_lossy_link(tmp_path: Path) -> None:
    """20 Mbit/s, a round trip of 100 ms, 1 % loss, and a cut of ten seconds in the middle."""
    shape = Shape(mbit_s=20.0, delay_ms=50.0, loss=0.01)
    with Network(["hub", "site"], {"site": shape}) as network:
        plan = {"rounds": 1, "size": 25_000_000, "deadline_s": 1500.0}
        run, seconds = run_over(network, tmp_path / "kits", cut_s=10.0, **plan)
    assert seconds < 600
    assert records(run)[0]["participants"] == ["site-1"]
    assert "not fetched" not in site_log(tmp_path / "kits/coordinator")


def test_update_of_1_gb_passes_and_memory_holds_one(tmp_path: Path) -> None:
    kits = prepared(tmp_path / "kits", ["site-1", "site-2"])
    run = make_run(kits, rounds=1, sites=["site-1", "site-2"], size=256_000_000, deadline_s=1500.0)
    with FlareFederation(kits, ENV) as federation:
        do(federation, run, timeout_s=900.0)
    assert sorted(records(run)[0]["participants"]) == ["site-1", "site-2"]
