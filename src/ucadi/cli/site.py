# SPDX-License-Identifier: Apache-2.0
"""`ucadi site`: run a site, decide about plans, see everything that left."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ucadi.cli.output import console_error, print_json
from ucadi.cli.preflight import preflight
from ucadi.cli.site_setup import init, join, leave

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ucadi.workflows.site_home import SiteHome, SiteState
    from ucadi.workflows.site_plans import PlanView, SeenPlan
    from ucadi.workflows.site_watch import SiteView

__all__ = ["site"]

site = typer.Typer(help="A hospital's side: join, decide, take part, see what left.", no_args_is_help=True)

Home = Annotated[Path, typer.Option("--home", envvar="UCADI_HOME", help="The site's home.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
PlanId = Annotated[str, typer.Argument(metavar="ID", help="A plan's id, or the beginning of it.")]

_HOME = Path("ucadi-site")
_INTERVAL_S = 1.0
_HASH_SHOWN = 12


for _command in (init, join, preflight):
    site.command()(_command)


@site.command()
def start(home: Home = _HOME) -> None:
    """Take part in the federation until stopped; comes back by itself after a failure."""
    from ucadi.workflows.site_home import SiteHome
    from ucadi.workflows.site_start import start as start_site

    start_site(SiteHome.open(home), lambda words: typer.echo(f"{_clock(time.time())}  {words}", err=True))


@site.command()
def status(home: Home = _HOME, as_json: Json = False) -> None:
    """Show connection, work, waiting decisions, what left last, and the disk."""
    from ucadi.workflows.site_watch import look_at_site

    with _opened(home) as (place, state):
        view = look_at_site(place, state)
    if as_json:
        print_json(view.to_json())
        return
    _out(*_lines(view))


@site.command()
def watch(
    home: Home = _HOME,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per change.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds.")] = _INTERVAL_S,
) -> None:
    """Show the same, live, until Ctrl-C."""
    from ucadi.workflows.site_watch import follow_site

    with _opened(home) as (place, state):
        views = follow_site(place, state, interval_s)
        if as_json:
            _watch_as_json(views)
        else:
            _watch_live(views)


@site.command()
def pause(home: Home = _HOME, as_json: Json = False) -> None:
    """Take part in nothing until resumed; training that is under way ends at once."""
    _set_paused(home, True, as_json=as_json)


@site.command()
def resume(home: Home = _HOME, as_json: Json = False) -> None:
    """Take part again."""
    _set_paused(home, False, as_json=as_json)


@site.command()
def plans(
    short: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Show this plan in plain words; without it, list all."),
    ] = None,
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """List the plans that a coordinator asked for, or show one in plain words."""
    from ucadi.workflows.site_plans import list_plans, view_plan

    with _opened(home) as (place, state):
        if short is not None:
            view = view_plan(place, state, short)
            print_json(view.to_json()) if as_json else _print_plan(view)
            return
        found = list_plans(state)
    if as_json:
        print_json({"plans": [{**vars(seen), "short": seen.short} for seen in found]})
        return
    if not found:
        typer.echo("no plan has come yet")
    for seen in found:
        typer.echo(_plan_line(seen))


@site.command()
def approve(
    short: PlanId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Approve a plan, exactly in the form that is shown."""
    from ucadi.workflows.site_plans import approve_plan, view_plan

    with _opened(home) as (place, state):
        view = view_plan(place, state, short)
        if not as_json:
            _print_plan(view)
        if not (yes or view.broken):
            typer.confirm(f"Approve plan {view.seen.short}?", abort=True, err=True)
        approve_plan(state, view, _person())
        _print_decision(state.find(view.seen.hash), as_json=as_json)


@site.command()
def reject(
    short: PlanId,
    reason: Annotated[str, typer.Option("--reason", help="Why; stays at this site.")],
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Reject a plan, or take back its approval; the run goes on without this site."""
    from ucadi.workflows.site_plans import reject_plan

    with _opened(home) as (_, state):
        seen = state.find(short)
        reject_plan(state, seen, _person(), reason)
        _print_decision(state.find(seen.hash), as_json=as_json)


@site.command()
def sent(
    run: Annotated[str | None, typer.Option("--run", help="Only what left for this run.")] = None,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only so many of the last ones.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash chain of the list first.")] = False,
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """List everything that ever left this site: time, kind, size, hash, protection, recipient."""
    with _opened(home) as (_, state):
        entries = state.verify() if verify else None
        rows = state.sent(run_id=run, last=last)
    if as_json:
        print_json({"sent": [vars(row) for row in rows], "verified_entries": entries})
        return
    if entries is not None:
        console_error().print(f"the hash chain is whole: {entries} entries")
    if not rows:
        typer.echo("nothing has left")
        return
    cells = [("time", "kind", "run", "round", "bytes", "sha256", "protection, to")]
    cells += [
        (
            _clock(row.time),
            row.kind,
            row.run_id or "-",
            str(row.round or "-"),
            str(row.size_bytes),
            row.sha256[:_HASH_SHOWN],
            f"{row.protection}, {row.recipient}",
        )
        for row in rows
    ]
    for when, kind, name, number, size, sha256, where in cells:
        typer.echo(f"{when:<19}  {kind:<10}  {name:<20}  {number:>5}  {size:>11}  {sha256:<12}  {where}")


site.command()(leave)


@contextmanager
def _opened(folder: Path) -> "Iterator[tuple[SiteHome, SiteState]]":
    """Open a home and its memory."""
    from ucadi.workflows.site_home import SiteHome

    home = SiteHome.open(folder)
    state = home.open_state()
    try:
        yield home, state
    finally:
        state.close()


def _set_paused(folder: Path, value: bool, *, as_json: bool) -> None:
    """Raise or lower the flag that every process of the site reads at every request."""
    from ucadi.workflows.site_watch import set_paused

    with _opened(folder) as (_, state):
        set_paused(state, value, _person())
    if as_json:
        print_json({"paused": value})
    else:
        typer.echo("paused" if value else "taking part again")


def _person() -> str:
    """Return who decides, for the hash chain."""
    import getpass

    try:
        return getpass.getuser()[:100]
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _print_decision(seen: "SeenPlan", *, as_json: bool) -> None:
    """Say what is decided now."""
    if as_json:
        print_json({**vars(seen), "short": seen.short})
    else:
        typer.echo(f"plan {seen.short} of run {seen.run_id}: {seen.decision} by {seen.decided_by}")


def _plan_line(seen: "SeenPlan") -> str:
    """Return a plan in one line."""
    reason = f": {seen.reason}" if seen.reason else ""
    by = f" by {seen.decided_by}" if seen.decided_by else ""
    return f"{seen.short}  {_clock(seen.first_seen)}  {seen.run_id}  {seen.decision}{by}{reason}"


def _print_plan(view: "PlanView") -> None:
    """Print a plan in plain words; red what speaks against it."""
    from rich.console import Console
    from rich.text import Text

    screen = Console(soft_wrap=True, highlight=False)
    for heading, words in view.lines:
        is_alarming = (
            heading == "Changed"
            or (heading == "Policy" and bool(view.broken))
            or (heading == "Protection" and view.is_readable)
        )
        screen.print(
            Text.assemble((f"{heading:<14}", "bold"), " ", (words, "bold red" if is_alarming else ""))
        )


def _watch_as_json(views: "Iterator[SiteView]") -> None:
    """Print a line whenever something but the time changed."""
    before: dict[str, Any] = {}
    for view in views:
        now = view.to_json()
        seen = {key: value for key, value in now.items() if key not in ("time", "free_bytes")}
        if seen != before:
            typer.echo(json.dumps(now, default=str))
        before = seen


def _watch_live(views: "Iterator[SiteView]") -> None:
    """Draw the site in place on a terminal; elsewhere print its state whenever it changed."""
    from rich.console import Console
    from rich.live import Live

    screen = Console()
    if not screen.is_terminal:
        before: list[str] = []
        for view in views:
            lines = _lines(view)
            _out(*(line for line in lines if line not in before))
            before = lines
        return
    with Live(console=screen, auto_refresh=False) as live:
        for view in views:
            live.update(_draw(view), refresh=True)


def _draw(view: "SiteView") -> "RenderableType":
    """Return the picture of a site."""
    from rich.text import Text

    picture = Text()
    for line in _lines(view):
        heading, words = line[:_HEADING], line[_HEADING:]
        alarm = "yellow" if heading.strip() in ("waiting", "paused", "left") else ""
        picture.append(heading, style="bold").append(f"{words}\n", style=alarm)
    return picture


_HEADING = 13


def _lines(view: "SiteView") -> list[str]:
    """Return a site's state as lines with headings."""
    from ucadi.workflows.preflight_checks import readable_bytes

    lines = [
        ("site", f"{view.site or 'has not joined'}" + (f", joined {view.coordinator}" * bool(view.site)))
    ]
    lines += [("left", "the federation; it takes part in nothing")] if view.left else []
    lines += [("paused", "takes part in nothing until `ucadi site resume`")] if view.paused else []
    lines.append(("connection", _said(view.connection, "nothing is known: `ucadi site start`?")))
    lines.append(("work", _said(view.work, "nothing yet")))
    lines += [
        ("waiting", f"plan {short} of run {run}: `ucadi site plans {short}`")
        for short, run in view.waiting.items()
    ]
    lines.append(("sent so far", f"{view.sent_count} messages"))
    lines += [
        (
            "",
            f"{_clock(row.time)}  {row.kind} of {readable_bytes(float(row.size_bytes))}, {row.protection}"
            + (f", run {row.run_id} round {row.round}" if row.run_id else ""),
        )
        for row in view.sent
    ]
    free, kept = readable_bytes(float(view.free_bytes)), readable_bytes(float(view.outbox_bytes))
    lines.append(("disk", f"{free} free; {kept} kept in the outbox"))
    return [f"{heading:<{_HEADING}}{words}" for heading, words in lines]


def _said(status: Any, nothing: str) -> str:
    """Say what a process wrote down last, and when."""
    if not status:
        return nothing
    fields = dict(status)
    when = fields.pop("time")
    words = [str(fields.pop(key)) for key in ("state", "phase", "detail") if fields.get(key)]
    words += [f"{key} {value}" for key, value in fields.items() if value not in ("", None)]
    return f"{', '.join(words)} ({_clock(when)})"


def _clock(seconds: float) -> str:
    """Write a moment in local time."""
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _out(*lines: str) -> None:
    """Print lines to stdout."""
    for line in lines:
        typer.echo(line)
