# SPDX-License-Identifier: Apache-2.0
"""One coordinator and up to a thousand sites: peak memory and time per update.

    python benchmarks/coordinator_scale.py --json

The coordinator's state machine gets real messages of synthetic sites, one after the other, as from a
transport: an update of 12 million parameters is made and encoded, handed over, and let go of before the next
one is made. Each number of sites runs in a process of its own, because a peak never falls. The floor is what
must be there: the global model (float32), one accumulator (float64) and one update in a message (float32).
"""

import json
import os
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from harness import arguments

from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.coordinator import Checkpoint, Coordinator
from ucadi.federation.messages import GlobalModel, Readiness, Update, encode_reply
from ucadi.federation.plans import RunPlan, TrainingPlan
from ucadi.federation.ports import Answer
from ucadi.types import Task

MEBI = 2**20


def rss_mb() -> float:
    """Return the memory that this process holds now."""
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MEBI


def measure(sites: int, parameters: int) -> dict[str, float]:
    """Run one round with so many sites in this process."""
    names = [f"site-{k}" for k in range(sites)]
    training = TrainingPlan(Task.CLASSIFIER, "densenet3d", "compact", 10, 2, 0.01)
    plan = RunPlan("scale", training, 1, 0, tuple(names), min_sites=sites)
    rng = np.random.default_rng(0)
    tensors = {f"layer{k}": rng.random(parameters // 20, np.float32) for k in range(20)}
    before = rss_mb()
    coordinator = Coordinator(plan, Checkpoint.at_start(GlobalModel(0, tensors)), PlaintextCipher())

    coordinator.call(names)
    for name in names:
        coordinator.receive(Answer(name, encode_reply(Readiness("scale", 1, name, 10))))
    coordinator.close_phase()
    coordinator.call(names)
    seconds = cpu = 0.0
    delta = {name: array.copy() for name, array in tensors.items()}  # a site's own memory
    for number, name in enumerate(names):
        for array in delta.values():  # another update for each site, at no price worth naming
            array[0] = number
        body = encode_reply(Update("scale", 1, name, delta, 10, 1.0, 10, {"loss": 1.0}))
        wall, process = time.perf_counter(), time.process_time()
        coordinator.receive(Answer(name, body))
        seconds += time.perf_counter() - wall
        cpu += time.process_time() - process
        del body
    wall = time.perf_counter()
    record = coordinator.close_phase()
    assert record is not None
    assert len(record.participants) == sites
    return {
        "sites": sites,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "rss_before_coordinator_mb": round(before, 1),
        "ms_per_update": round(1e3 * seconds / sites, 2),
        "cpu_ms_per_update": round(1e3 * cpu / sites, 2),
        "close_ms": round(1e3 * (time.perf_counter() - wall), 1),
    }


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "measure":
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
        return
    options = arguments(__doc__)
    counts, parameters = ((1, 10), 1_000_000) if options.quick else ((1, 10, 100, 1000), 12_000_000)
    rows = []
    for sites in counts:
        command = [sys.executable, __file__, "measure", str(sites), str(parameters)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
        rows.append(json.loads(done.stdout))
        if not options.json:
            print(rows[-1], flush=True)
    model = parameters * 4 / MEBI
    peaks = [row["peak_rss_mb"] for row in rows]
    document = {
        "benchmark": "coordinator_scale",
        "parameters": parameters,
        "floor_mb": {"model": round(model), "accumulator": round(2 * model), "update": round(model)},
        "results": rows,
        "peak_growth_mb": round(max(peaks) - peaks[0], 1),
        "is_constant": max(peaks) - peaks[0] < model,
        "load": round(os.getloadavg()[0], 2),
        "versions": {"python": sys.version.split()[0], "numpy": version("numpy")},
    }
    print(json.dumps(document, indent=2) if options.json else document)


if __name__ == "__main__":
    main()
