# SPDX-License-Identifier: Apache-2.0
"""Peak memory of this process and all its descendants."""

import contextlib
import threading
from types import TracebackType

import psutil

__all__ = ["PeakMemory"]

_INTERVAL_S = 1.0


class PeakMemory:
    """Samples the memory of the process tree while in context.

    Counted is the proportional set size: a page that n processes share counts 1/n in each, so the libraries
    that all of them load are not counted again and again.
    """

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sampling."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        """Take a sample every second."""
        own = psutil.Process()
        while not self._ended.wait(_INTERVAL_S):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.peak_mb = max(self.peak_mb, total / 2**20)
