# SPDX-License-Identifier: Apache-2.0
"""What one check of the preflight says: a state, what was found with its value, and the cure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from ucadi.errors import UcadiError
from ucadi.logs import event, get_logger

__all__ = ["Line", "State", "attempt", "failed", "ok", "readable_bytes", "skipped", "warning"]

_LOG = get_logger("workflows.preflight")


class State(StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Line:
    """One line of the preflight.

    Attributes:
        name: What was looked at.
        state: How it went.
        found: What was found, with the value seen. Never a patient's name.
        cure: What to do; empty when there is nothing to do.
    """

    name: str
    state: State
    found: str
    cure: str = ""


def ok(name: str, found: str) -> Line:
    """Return a line with nothing to do."""
    return Line(name, State.OK, found)


def warning(name: str, found: str, cure: str) -> Line:
    """Return a line that lets the site take part all the same."""
    return Line(name, State.WARNING, found, cure)


def failed(name: str, found: str, cure: str) -> Line:
    """Return a line that keeps the site from taking part."""
    return Line(name, State.FAILED, found, cure)


def skipped(name: str, why: str) -> Line:
    """Return a line of a check that could not be made."""
    return Line(name, State.SKIPPED, why)


def attempt(name: str, check: Callable[[], Line | Iterable[Line]]) -> tuple[Line, ...]:
    """Make a check; whatever it raises becomes a failed line.

    Args:
        name: Stands on the line if the check raises.
        check: Returns one line or several.
    """
    try:
        made = check()
        return (made,) if isinstance(made, Line) else tuple(made)
    except UcadiError as error:
        return (failed(name, error.detail, error.cure),)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        words = error.strerror or str(error) or type(error).__name__
        return (failed(name, f"{where}{words}", "Check that it exists and that this user may use it."),)
    except Exception as error:  # one broken check must not hide what the others find
        event(_LOG, "check raised", check=name, kind=type(error).__name__)
        words = " ".join(str(error).split())[:200]
        found = f"The check itself failed: {type(error).__name__}: {words}"
        return (failed(name, found, "Report this with the line's text."),)


def readable_bytes(size: int | float) -> str:
    """Write a number of bytes for people, in decimal units."""
    size = float(size)
    for unit in ("B", "kB", "MB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
