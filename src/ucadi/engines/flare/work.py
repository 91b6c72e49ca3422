# SPDX-License-Identifier: Apache-2.0
"""The process of a job, at the coordinator or at a site: started beforehand, so that a job begins at once.

``python -m ucadi.engines.flare.work MODULE CLASS`` imports FLARE's program of a job and what the kit's class
of a job needs, then waits for one line on its standard input: the program's arguments and environment.
It ends when its standard input closes, that is with the process that started it, however that one ended.
"""

import importlib
import json
import os
import sys
import threading
from pathlib import Path

from ucadi.engines.flare.guard import hear_coordinator_only
from ucadi.engines.flare.wires import make_fit

__all__ = ["main"]


def main(program: str, app_class: str) -> None:
    """Import, wait for the job, do it."""
    module = importlib.import_module(program)
    make_fit()
    if "client" in program:
        hear_coordinator_only()
    _preload(app_class)
    order = json.loads(_read_line() or os._exit(0))
    os.environ.update(order["env"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = [program, *order["args"]]
    from nvflare.fuel.f3.mpm import MainProcessMonitor

    args = module.parse_arguments()
    run_folder = str(Path(args.workspace) / args.job_id)
    status = MainProcessMonitor.run(main_func=module.main, run_dir=run_folder, args=args)
    sys.stdout.flush()
    os._exit(int(status or 0))  # a training that was given up may still be running in its thread


def _preload(app_class: str) -> None:
    """Import the class of the job, and what it names as needed."""
    module, _, name = app_class.rpartition(".")
    try:
        loaded = getattr(importlib.import_module(module), name)
        for needed in loaded.NEEDS:
            importlib.import_module(needed)
    except Exception as error:  # the job will say it better
        print(f"cannot import {app_class}: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet


def _read_line() -> bytes:
    """Return one line of the standard input, and nothing of what follows it."""
    line = bytearray()
    while (letter := os.read(0, 1)) and letter != b"\n":
        line += letter
    return bytes(line)


def _end_with_parent() -> None:
    """Leave when the starting program is gone."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
