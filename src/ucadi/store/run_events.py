# SPDX-License-Identifier: Apache-2.0
"""Writes a run's progress from a thread of its own, so that no round waits for the database."""

import logging
import threading
import time
from collections import deque
from functools import partial

from ucadi.errors import StoreError
from ucadi.federation.records import Progress
from ucadi.logs import event, get_logger
from ucadi.store.database import patiently
from ucadi.store.runs import RunStore

__all__ = ["EventWriter"]

_LOG = get_logger("store.run_events")

_MOST_LINES = 100_000
_PATIENCE_S = 366 * 86400.0  # the lines are in nobody's way


class EventWriter:
    """Takes progress at once and writes it in order, many lines at a time.

    While the database is gone the lines are kept in memory; a process that dies then takes them along.
    They are for people: a run goes on from its rounds alone.

    Args:
        store: Where to write.
        run_id: The run.
    """

    def __init__(self, store: RunStore, run_id: str) -> None:
        self._store = store
        self._run_id = run_id
        self._lines: deque[tuple[float, Progress]] = deque(maxlen=_MOST_LINES)
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name=f"events of {run_id}", daemon=True)
        self._thread.start()

    def __call__(self, progress: Progress) -> None:
        """Take a line; fits `OnProgress`."""
        with self._changed:
            self._lines.append((time.time(), progress))
            self._changed.notify()

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is left, if the database is there.

        Args:
            timeout_s: How long that may take.
        """
        with self._changed:
            self._closing.set()
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive() or self._lines:
            event(_LOG, "progress was not written", logging.WARNING, run=self._run_id)

    def _write(self) -> None:
        """Write until closed and empty, or until the database is gone when closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closing.is_set())
                batch = list(self._lines)
                self._lines.clear()
            if not batch:
                return
            try:
                write = partial(self._store.add_events, self._run_id, batch)
                patiently(write, _PATIENCE_S, stop=self._closing)
            except StoreError as error:
                event(_LOG, "progress was lost", logging.WARNING, code=error.code, lines=len(batch))
                if self._closing.is_set():
                    return
