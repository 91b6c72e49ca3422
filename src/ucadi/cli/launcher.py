# SPDX-License-Identifier: Apache-2.0
"""The `ucadi` command: sets the allocator, then hands over to the commands.

glibc gives large freed blocks back to the system and takes page faults to get them again, which is a third
of a network's time on a CPU (inference 1.5 times faster without). The settings must be in the environment
when the process starts, so the launcher starts itself once more; with -P, so that a file in the working
folder cannot stand in for an installed module.
"""

import os
import signal
import sys

__all__ = ["ALLOCATOR", "run"]

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(16 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
}
"""Keep freed memory. Values that the user has set are left alone."""


def run() -> None:
    """Start ucadi's command line."""
    missing = {name: value for name, value in ALLOCATOR.items() if name not in os.environ}
    if missing and sys.platform == "linux":
        os.environ.update(missing)
        os.execv(sys.executable, [sys.executable, "-P", "-m", "ucadi", *sys.argv[1:]])  # noqa: S606 - ourselves
    from ucadi.cli.main import main

    # A closed terminal or a stop by the system ends a command like Ctrl-C: with all that it started.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)
    sys.exit(main())
