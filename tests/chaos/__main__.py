# SPDX-License-Identifier: Apache-2.0
"""The long edition: ``python -m tests.chaos --kills 200 --seed 1 --json``."""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from .edition import chaos

parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
parser.add_argument("--kills", type=int, default=20, help="how many processes to kill")
parser.add_argument("--seed", type=int, default=0, help="of the faults")
parser.add_argument("--rounds", type=int, default=4, help="of each run")
parser.add_argument("--folder", type=Path, help="keep everything in this folder")
parser.add_argument("--json", action="store_true", help="print one JSON object")
options = parser.parse_args()
begin = time.monotonic()


def tell(words: str) -> None:
    sys.stderr.write(f"{time.monotonic() - begin:7.1f}  {words}\n")


with tempfile.TemporaryDirectory(prefix="ucadi-chaos-") as temporary:
    place = options.folder or Path(temporary)
    place.mkdir(parents=True, exist_ok=True)
    result = chaos(place.resolve(), options.kills, options.seed, rounds=options.rounds, on_words=tell)
document = asdict(result)
if options.json:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
else:
    for name, value in document.items():
        sys.stdout.write(f"{name:14s} {value}\n")
sys.exit(1 if result.failures or result.identical != result.runs else 0)
