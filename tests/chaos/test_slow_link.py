# SPDX-License-Identifier: Apache-2.0
"""Large updates over a link of 20 Mbit/s, 100 ms round trip and 1 % loss: no wrong byte.

``UCADI_LINK_MB=100`` measures the full size; ``UCADI_LINK_TCP=reno`` takes TCP's oldest congestion control
instead of the machine's own, for which 1 % loss costs nearly all of the rate.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chaos.links import Network, Shape, can_make_hosts
from ucadi.engines.flare.kit import FlareApp, make_kits
from ucadi.engines.inprocess import InProcessTransport
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Checkpoint, Coordinator
from ucadi.federation.messages import GlobalModel
from ucadi.federation.plans import RunPlan, TrainingPlan
from ucadi.federation.rounds import run_rounds
from ucadi.federation.site import MemoryOutbox, OpenGate, Site
from ucadi.tensors import hash_tensors, unpack
from ucadi.types import Task

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not can_make_hosts(), reason="network namespaces need root"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the engine's own
]

APPS = Path(__file__).parents[2] / "benchmarks" / "rounds"
SITES = ("near", "far")
SHAPE = Shape(mbit_s=20, delay_ms=50, loss=0.01)

HUB = """
import sys, time
from pathlib import Path
from ucadi.engines.flare.process import FlareServer
from ucadi.errors import UnreachableError
server = FlareServer(Path(sys.argv[1]), Path(sys.argv[2]))
server.start()
connected = set()
while connected < set(sys.argv[3].split(",")):
    time.sleep(0.5)
    try:
        connected = server.connected()
    except UnreachableError:
        pass
print("connected", flush=True)
job = server.submit("slow", connected)
try:
    while not (status := server.status(job.id)).startswith("FINISHED"):
        time.sleep(1)
    print(status, flush=True)
finally:
    server.stop()
"""
SITE = """
import sys, time
from pathlib import Path
from ucadi.engines.flare.process import FlareClient
client = FlareClient(Path(sys.argv[1]))
client.start()
try:
    while client.is_alive():
        time.sleep(1)
finally:
    client.stop()
"""


def expected(app: object, size: int, rounds: int) -> str:
    """Return the hash of the model that the same run has in one process."""

    class Desk(app._Desk):  # type: ignore[name-defined]
        def keep(self, record: object, model: GlobalModel) -> None:
            self.hash = model.hash

    training = TrainingPlan(Task.CLASSIFIER, "toy", "toy", 10, 2, 0.1)
    plan = RunPlan("slow", training, rounds, 0, SITES, min_sites=2)
    start = Checkpoint.at_start(GlobalModel(0, app.model_of(size)))
    sites = {
        name: Site(name, app._Trainer(name, size), PlaintextCipher(), MemoryOutbox(), OpenGate())
        for name in SITES
    }
    desk = Desk(Path(), SITES)
    run_rounds(Coordinator(plan, start, PlaintextCipher()), InProcessTransport(sites), desk)
    return desk.hash


def test_updates_pass_a_slow_lossy_link_without_a_wrong_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(APPS))
    import app

    size, rounds = int(os.environ.get("UCADI_LINK_MB", "10")) * 250_000, 1
    env = {**os.environ, "PYTHONPATH": str(APPS), "OMP_NUM_THREADS": "1"}
    with Network(["hub", *SITES], {"far": SHAPE}, os.environ.get("UCADI_LINK_TCP", "")) as network:
        kits = make_kits(
            tmp_path / "kits",
            SITES,
            FlareApp("app.Controller", "app.Executor"),
            port=8102,
            host=network.address("hub"),
        )
        settings = (
            f"size = {size}\nrounds = {rounds}\nsites = {json.dumps(SITES)}\nfolder = {str(tmp_path)!r}\n"
        )
        for kit in (kits.coordinator, *kits.sites.values()):
            (kit / "local" / "ucadi.toml").write_text(settings)
        words = [HUB, str(kits.coordinator), str(kits.admin), ",".join(SITES)]
        hub = subprocess.Popen(
            network.command("hub", sys.executable, "-c", *words), env=env, stdout=subprocess.PIPE, text=True
        )
        sites = [
            subprocess.Popen(
                network.command(site, sys.executable, "-c", SITE, str(kits.sites[site])), env=env
            )
            for site in SITES
        ]
        assert hub.stdout is not None
        assert hub.stdout.readline() == "connected\n"
        start = time.monotonic()
        ended = hub.stdout.readline()
        seconds = time.monotonic() - start
        for site in sites:
            site.terminate()
        for process in (*sites, hub):
            process.wait(timeout=30)
        hub.stdout.close()
        counts = network.counts("far")
    assert ended == "FINISHED:COMPLETED\n"
    parameters, _ = unpack((tmp_path / "model.st").read_bytes())
    assert hash_tensors(parameters) == expected(app, size, rounds)
    assert counts["lost"] > 0.005 * counts["frames"]
    # Twice down, to train and to validate, and once up.
    sys.stderr.write(f"3 x {size * 4 / 1e6:.0f} MB in {seconds:.1f} s; {counts}\n")
