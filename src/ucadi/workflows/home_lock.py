# SPDX-License-Identifier: Apache-2.0
"""One process per home: a second start must not touch what the first one runs."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ucadi.errors import EngineError

__all__ = ["only_one"]


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold a home as long as the context lasts; the system lets go of it however this process ends.

    Raises:
        EngineError: ``home-in-use`` if another process holds it.
    """
    with (home / "running.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EngineError("home-in-use", f"Another process runs {home}.") from error
        yield
