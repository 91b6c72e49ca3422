# SPDX-License-Identifier: Apache-2.0
"""This process' reader of scans that nobody vouches for, which all studies of a worker share."""

import atexit
import threading
from functools import cache
from pathlib import Path

from ucadi.io.guard import GuardedReader
from ucadi.io.reader import LoadedCt

__all__ = ["read_guarded"]

_LOCK = threading.Lock()  # the reader takes one input at a time


def read_guarded(path: Path) -> LoadedCt:
    """Read a chest CT as `ucadi.io.guard.load_untrusted` does.

    The helper process that starts with the first study stays for the next ones, as long as this process.
    """
    with _LOCK:
        return _reader().load(path)


@cache
def _reader() -> GuardedReader:
    """Return this process' reader."""
    reader = GuardedReader()
    atexit.register(reader.__exit__, None, None, None)
    return reader
