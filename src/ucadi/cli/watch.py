# SPDX-License-Identifier: Apache-2.0
"""The live view of a run: a picture that stays in place on a terminal, plain lines everywhere else."""

import json
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from ucadi.errors import ExitStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ucadi.workflows.run_happenings import Happening
    from ucadi.workflows.run_view import RunView, SiteLine
    from ucadi.workflows.runs import Look

__all__ = [
    "draw_run",
    "exit_status_of",
    "line_of",
    "sparkline",
    "watch_as_json",
    "watch_as_lines",
    "watch_live",
]

_BLOCKS = "▁▂▃▄▅▆▇█"
_SHOWN_HAPPENINGS = 8
_REDRAWS_PER_S = 2
_LINK_S = 12.0
"""A site that was connected so lately counts as connected: the coordinator looks every few seconds."""

_SLOTS = 24
"""Widest sparkline; of a longer run the newest values are shown."""

_STATE_STYLES = {"failed": "bold red", "stopped": "yellow", "waiting": "yellow"}

_COLORS = {
    "missing": "red",
    "revoked": "red",
    "left": "yellow",
    "sent": "green",
    "training": "cyan",
    "validating": "cyan",
    "ready": "cyan",
    "joined": "magenta",
}


def exit_status_of(state: str) -> ExitStatus:
    """Return what a command that waited for a run's end reports."""
    return ExitStatus.OK if state == "completed" else ExitStatus.FAILED


def watch_as_json(looks: "Iterator[Look]") -> str:
    """Print one JSON line per happening until the run ends; return its last state."""
    state = ""
    for look in looks:
        state = look.view.run.state
        for happening in look.happenings:
            typer.echo(json.dumps(happening.to_json()))
    return state


def watch_as_lines(looks: "Iterator[Look]") -> str:
    """Print one plain line per happening until the run ends; return its last state."""
    state = ""
    for look in looks:
        state = look.view.run.state
        for happening in look.happenings:
            typer.echo(line_of(happening))
    return state


def watch_live(looks: "Iterator[Look]") -> str:
    """Draw the run on the terminal until it ends; return its last state."""
    from rich.console import Console
    from rich.live import Live

    recent: deque[Happening] = deque(maxlen=_SHOWN_HAPPENINGS)
    state = ""
    with Live(console=Console(), refresh_per_second=_REDRAWS_PER_S, transient=False) as live:
        for look in looks:
            state = look.view.run.state
            recent.extend(look.happenings)
            live.update(draw_run(look.view, recent, time.time()))
    return state


def draw_run(view: "RunView", recent: "deque[Happening]", now_s: float) -> "RenderableType":
    """Return the picture of a run, for 80 columns and more.

    Args:
        view: The run.
        recent: What happened last.
        now_s: The present, in seconds since 1970.
    """
    from rich.console import Group
    from rich.text import Text

    head = Text(no_wrap=True, overflow="ellipsis")
    head.append(view.plan.run_id, style="bold")
    head.append("  ")
    head.append(
        view.run.state, style={"failed": "bold red", "waiting": "yellow"}.get(view.run.state, "bold green")
    )
    head.append(f"  {_where(view)}")
    parts: list[RenderableType] = [head, Text(_numbers(view, now_s), no_wrap=True, overflow="ellipsis")]
    curve = _curve(view)
    if curve:
        parts.append(Text(curve, no_wrap=True, overflow="ellipsis"))
    words = view.waiting or (view.run.reason if view.run.state in _STATE_STYLES else "")
    if words:
        parts.append(Text(words, style="yellow"))
    parts += [Text(""), _site_table(view, now_s), Text("")]
    parts += [
        Text(line_of(happening), style="dim", no_wrap=True, overflow="ellipsis") for happening in recent
    ]
    return Group(*parts)


def line_of(happening: "Happening") -> str:
    """Return a happening as one line with the time of day."""
    return f"{time.strftime('%H:%M:%S', time.localtime(happening.time_s))}  {happening.words}"


def sparkline(values: list[float]) -> str:
    """Return numbers as a row of blocks between the lowest and the highest."""
    values = values[-_SLOTS:]
    if not values:
        return ""
    low, high = min(values), max(values)
    if high == low:
        return _BLOCKS[3] * len(values)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / (high - low) * top)] for value in values)


def _where(view: "RunView") -> str:
    """Say how far the run is."""
    if view.is_over:
        return f"{view.trained_rounds} of {view.plan.rounds} rounds"
    if view.round > view.plan.rounds:
        return f"all {view.plan.rounds} rounds done, the last model is validated"
    return f"round {view.round} of {view.plan.rounds}"


def _numbers(view: "RunView", now_s: float) -> str:
    """Return progress, time, bytes and the number of sites in one line."""
    from ucadi.workflows.run_happenings import size_words, time_words

    width = 20
    done = round(width * view.trained_rounds / view.plan.rounds)
    elapsed = view.elapsed_s
    if view.began_s is not None and not view.is_over:
        elapsed = max(now_s - view.began_s, 0.0)
    taking_part = sum(site.state in ("ready", "training", "validating", "sent") for site in view.sites)
    parts = [
        "█" * done + "░" * (width - done),
        "not begun" if elapsed is None else time_words(elapsed),
        f"{size_words(view.upload_bytes)} received",
    ]
    if not view.is_over:
        parts.append(f"{taking_part} sites in, {view.plan.min_sites} needed")
    return "  ".join(parts)


def _curve(view: "RunView") -> str:
    """Return the validation curve with its ends and its best."""
    scores = view.validations
    if not scores:
        return ""
    values = [value for _, value in scores]
    best = view.best_round
    top = dict(scores)[best] if best is not None else values[-1]
    return (
        f"validation  {sparkline(values)}  {values[0]:.3f} to {values[-1]:.3f}; "
        f"best {top:.3f}, model of round {best}"
    )


def _site_table(view: "RunView", now_s: float) -> "RenderableType":
    """Return the sites as rows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False, show_edge=False)
    table.add_column("site", no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column("state", overflow="ellipsis", no_wrap=True, max_width=28)
    for name in ("for", "rounds", "score", "link"):
        table.add_column(name, justify="right", no_wrap=True)
    for site in view.sites:
        table.add_row(
            site.site,
            Text(_state_words(site), style=_COLORS.get(site.state, "")),
            "" if site.since_s is None else _short(now_s - site.since_s),
            str(site.rounds),
            "-" if site.validation is None else f"{site.validation:.3f}",
            _link(site.connected_s, now_s),
        )
    return table


def _link(connected_s: float | None, now_s: float) -> str:
    """Say whether a site is connected, or for how long it has not been."""
    if connected_s is None:
        return "-"
    away_s = now_s - connected_s
    return "up" if away_s < _LINK_S else f"down {_short(away_s)}"


def _state_words(site: "SiteLine") -> str:
    """Return a site's state with the reason when it is missing."""
    return f"{site.state}: {site.why}" if site.why else site.state


def _short(seconds: float) -> str:
    """Return a time in whole seconds."""
    from ucadi.workflows.run_happenings import time_words

    whole = max(round(seconds), 0)
    return f"{whole} s" if whole < 60 else time_words(float(whole))
