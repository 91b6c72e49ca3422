# SPDX-License-Identifier: Apache-2.0
"""How a service learns that it is to end."""

import signal
import threading

__all__ = ["stop_on_signals"]


def stop_on_signals() -> threading.Event:
    """Return an event that Ctrl-C or a service manager's stop sets. Call it in the main thread."""
    ends = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ends.set())
    return ends
