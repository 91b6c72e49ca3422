# SPDX-License-Identifier: Apache-2.0
"""Do the same with many items in a few processes, with only a few items under way at any time."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ucadi.errors import UcadiError

__all__ = ["OnProgress", "run_parallel", "usual_jobs"]

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_USUAL_JOBS = 2  # one study takes up to 2 GB
_WAITING_PER_JOB = 2  # so that no process waits for its next item


def usual_jobs() -> int:
    """Return how many processes are used when nobody says otherwise."""
    return min(_USUAL_JOBS, len(os.sched_getaffinity(0)))


def run_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], jobs: int
) -> Iterator[tuple[int, Result]]:
    """Yield each item's place and result, as they become ready.

    Args:
        function: A function of a module, or a partial of one. What it raises ends the whole.
        items: Taken up one by one, as there is room.
        jobs: Number of processes; 1 works in this one.

    Raises:
        UcadiError: ``worker-lost`` when a process was killed.
    """
    if jobs == 1:
        for place, item in enumerate(items):
            yield place, function(item)
        return
    # Not forked: this process may have threads, whose locks a fork would copy as they are.
    context = multiprocessing.get_context("spawn")
    running: dict[Future[Result], int] = {}
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_enter_worker) as pool:
        try:
            for place, item in enumerate(items):
                running[pool.submit(function, item)] = place
                if len(running) >= _WAITING_PER_JOB * jobs:
                    yield from _ended(running)
            while running:
                yield from _ended(running)
        except BrokenProcessPool as error:
            raise UcadiError("worker-lost", "A worker process was killed.") from error
        finally:
            for future in running:
                future.cancel()


def _ended(running: dict[Future[Result], int]) -> list[tuple[int, Result]]:
    """Wait for some items, take them out and return them by place."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    return sorted(((running.pop(future), future.result()) for future in done), key=lambda pair: pair[0])


def _enter_worker() -> None:
    """Make a worker end at once with Ctrl-C and with its parent; files appear whole or not at all."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_after, args=(parent,), daemon=True).start()


def _leave_after(parent: multiprocessing.process.BaseProcess) -> None:
    """End this process when another one has ended."""
    parent.join()
    os._exit(1)
