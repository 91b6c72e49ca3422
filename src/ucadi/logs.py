# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object per line, to a file or to stderr."""

import json
import logging
import time
from pathlib import Path
from typing import Any

__all__ = ["event", "get_logger", "log_to_file"]


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


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a part of ucadi."""
    return logging.getLogger(f"ucadi.{name}")


def event(logger: logging.Logger, message: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Log one message with named fields. Never pass anything that could identify a patient."""
    logger.log(level, message, extra={"fields": fields})


def log_to_file(path: Path) -> None:
    """Send all of ucadi's logs to a JSON-lines file, and nowhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    logger = logging.getLogger("ucadi")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
