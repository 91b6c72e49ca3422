# SPDX-License-Identifier: Apache-2.0
"""The `ucadi` command: sets the allocator, then hands over to the commands.

glibc gives large freed blocks back to the system and takes page faults to get them again, which is a third
of a network's time on a CPU (inference 1.5 times faster without). The settings must be in the environment
when the process starts, so the launcher starts itself once more.
"""

import os
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
        os.execv(sys.executable, [sys.executable, "-m", "ucadi", *sys.argv[1:]])  # noqa: S606 - ourselves
    from ucadi.cli.main import main

    sys.exit(main())
