# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object per line, to a file or to stderr. Files that have grown are put aside."""

import contextlib
import fcntl
import json
import logging
import os
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

__all__ = ["event", "get_logger", "log_to_file", "rotate"]

_LARGEST = 20 << 20
"""Bytes from which a log file is put aside."""

_KEPT = 5
"""Files that are kept of those put aside."""


class _JsonLines(logging.Formatter):
    """Writes a record as one JSON line: time, level, logger, message and fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _RotatingFile(WatchedFileHandler):
    """Writes to a file that several processes share; each of them may put it aside, all follow."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            rotate(Path(self.baseFilename))
        except OSError:  # a log that grows is better than none
            self.handleError(record)
        super().emit(record)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a part of ucadi."""
    return logging.getLogger(f"ucadi.{name}")


def event(logger: logging.Logger, message: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Log one message with named fields. Never pass anything that could identify a patient."""
    logger.log(level, message, extra={"fields": fields})


def log_to_file(path: Path) -> None:
    """Send all of ucadi's logs to a JSON-lines file, and nowhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _RotatingFile(path, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    logger = logging.getLogger("ucadi")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def rotate(path: Path) -> None:
    """Put a log file aside if it has grown: ``x`` becomes ``x.1``, that ``x.2``, and the oldest goes.

    The file itself is the lock. Who had to wait for it finds another one at the path, or none, and is done.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size < _LARGEST:
            return
        with path.open("rb") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            if os.path.samestat(path.stat(), os.fstat(log.fileno())):
                _put_aside(path)


def _put_aside(path: Path) -> None:
    """Give a file and the older ones the next numbers."""
    for number in range(_KEPT - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(f"{path.name}.{number}").replace(path.with_name(f"{path.name}.{number + 1}"))
    path.replace(path.with_name(f"{path.name}.1"))
