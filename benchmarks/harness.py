# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing: variants of one comparison run A B C A B C ... in one process.

Whatever else disturbs the machine then hits all variants alike, so ratios hold where seconds do not. CPU
time is reported beside wall time, because it hardly changes when other programs share the cores.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any


def interleave(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> dict[str, Any]:
    """Time each variant in turn; the first is the base of all ratios (above 1: faster than the base)."""
    for _ in range(warmup):
        for run in variants.values():
            run()
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - wall_start)
            cpu[name].append(time.process_time() - cpu_start)
    base = next(iter(variants))
    return {
        name: {
            "median_ms": round(1e3 * statistics.median(wall[name]), 3),
            "median_cpu_ms": round(1e3 * statistics.median(cpu[name]), 3),
            "ratio_cpu": round(statistics.median(cpu[base]) / max(statistics.median(cpu[name]), 1e-9), 2),
            "ratio_wall_min": round(min(wall[base]) / max(min(wall[name]), 1e-9), 2),
        }
        for name in variants
    }


def arguments(description: str) -> argparse.Namespace:
    """Parse the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    return parser.parse_args()


def report(
    options: argparse.Namespace, name: str, parity: Mapping[str, Any], results: dict[str, Any]
) -> None:
    """Print results with what is needed to judge them."""
    document = {
        "benchmark": name,
        "parity": dict(parity),
        "results": results,
        "load": round(os.getloadavg()[0], 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "versions": {
            "python": platform.python_version(),
            "numpy": version("numpy"),
            "torch": version("torch"),
        },
    }
    if options.json:
        print(json.dumps(document, indent=2))
        return
    print(f"{name}   parity {dict(parity)}   load {document['load']}")
    for variant, row in results.items():
        print(
            f"  {variant:34s} {row['median_ms']:10.2f} ms  cpu {row['median_cpu_ms']:10.2f} ms  "
            f"x{row['ratio_cpu']:.2f} cpu  x{row['ratio_wall_min']:.2f} wall"
        )
