# SPDX-License-Identifier: Apache-2.0
"""What a site does now, as its people see it: connection, work, waiting decisions, what left, disk."""

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ucadi.store.site_state import CONNECTION, LEFT, PAUSED, WORK, Decision, Sent, SiteState
from ucadi.workflows.site_home import SiteHome

__all__ = ["SiteView", "follow_site", "look_at_site", "set_paused"]

_LAST_SENT = 8


@dataclass(frozen=True)
class SiteView:
    """A site at one moment.

    Attributes:
        time: Seconds since 1970.
        site: Its name; empty before it joined.
        coordinator: Where it joined; empty before.
        paused: Whether it takes part in nothing until somebody resumes it.
        left: Whether it left the federation.
        connection: What its processes last said about the connection, with ``time``; empty when nothing.
        work: What they last said about their work, with ``time``; empty when nothing.
        waiting: Plans that wait for a decision, by id with the run's name.
        sent: What left last.
        sent_count: How many messages ever left.
        outbox_bytes: Size of the replies that are kept.
        free_bytes: Room on the home's disk.
    """

    time: float
    site: str
    coordinator: str
    paused: bool
    left: bool
    connection: Mapping[str, Any]
    work: Mapping[str, Any]
    waiting: Mapping[str, str]
    sent: tuple[Sent, ...]
    sent_count: int
    outbox_bytes: int
    free_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def look_at_site(home: SiteHome, state: SiteState) -> SiteView:
    """Return what a site does now.

    Raises:
        ConfigError: If the site's settings are wrong.
        StoreError: If its memory cannot be read.
    """
    address = home.read_settings().coordinator
    status = state.status()
    sent = state.sent(last=_LAST_SENT)
    return SiteView(
        time=time.time(),
        site=address.site if address else "",
        coordinator=f"{address.name} at {address.host}:{address.port}" if address else "",
        paused=state.flag(PAUSED),
        left=state.flag(LEFT),
        connection=_said(status, CONNECTION),
        work=_said(status, WORK),
        waiting={seen.short: seen.run_id for seen in state.plans() if seen.decision is Decision.WAITING},
        sent=sent,
        sent_count=sent[-1].number if sent else 0,
        outbox_bytes=_folder_bytes(home),
        free_bytes=shutil.disk_usage(home.folder).free,
    )


def set_paused(state: SiteState, value: bool, by: str) -> None:
    """Let a site take part in nothing, or in runs again; every process reads it at its next request."""
    state.set_flag(PAUSED, value, by)


def follow_site(home: SiteHome, state: SiteState, interval_s: float) -> Iterator[SiteView]:
    """Look again and again; only the caller ends it."""
    while True:
        yield look_at_site(home, state)
        time.sleep(interval_s)


def _said(status: Mapping[str, tuple[Any, float]], key: str) -> Mapping[str, Any]:
    """Return what was said last under a key, with the time."""
    if key not in status:
        return {}
    value, when = status[key]
    return {**(value if isinstance(value, dict) else {"state": value}), "time": when}


def _folder_bytes(home: SiteHome) -> int:
    """Return the size of the replies that are kept."""
    try:
        return sum(path.stat().st_size for path in home.outbox.iterdir())
    except FileNotFoundError:  # no outbox yet, or a reply was dropped at this moment
        return 0
