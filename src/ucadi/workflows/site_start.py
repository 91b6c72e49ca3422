# SPDX-License-Identifier: Apache-2.0
"""`ucadi site start`: keeps a site in the federation, whatever ends in between."""

import threading
import time
from collections.abc import Callable

from ucadi.engines.flare.process import FlareClient
from ucadi.errors import NotAuthorizedError, UcadiError, UnreachableError
from ucadi.logs import event, get_logger, log_to_file
from ucadi.store.members import MemberState
from ucadi.store.site_state import CONNECTION, SiteState
from ucadi.workflows.join import Membership, check_joined, read_membership, refresh_roster
from ucadi.workflows.signals import stop_on_signals
from ucadi.workflows.site_home import SiteHome

__all__ = ["start"]

_LOG = get_logger("workflows.site_start")

_TURN_S = 0.5
_ROSTER_S = 30.0
_PAUSES_S = (1.0, 2.0, 5.0, 15.0, 60.0)
_STEADY_S = 60.0
"""A process that lived so long did not fail at its start."""

_NO_MEMBER = frozenset({"site-left", "site-revoked", "member-revoked", "not-authorized"})

OnWords = Callable[[str], None]
"""Told in words what changes."""


def start(home: SiteHome, on_words: OnWords, stop: threading.Event | None = None) -> None:
    """Take part until stopped by a signal or an event, or until the site is no member any more.

    Raises:
        NotAuthorizedError: ``site-not-joined``, ``join-waiting``, ``site-left`` or ``site-revoked``.
        EngineError: ``site-kit-altered``, or ``engine-failed`` if another process runs this site.
        ConfigError: If the settings or the policy are wrong.
    """
    ends = stop or stop_on_signals()
    log_to_file(home.logs / "site.jsonl")
    membership = check_joined(home)
    home.read_settings()
    home.read_policy()
    state, client = home.open_state(), FlareClient(home.kit)
    on_words(f"{membership.site} takes part; stop with Ctrl-C")
    try:
        _Keeper(home, membership, state, client, on_words).run(ends)
    finally:
        client.stop()
        state.set_status(CONNECTION, {"state": "stopped"})
        on_words("stopped")


class _Keeper:
    """Starts the engine's process again when it ends, and asks the coordinator who is a member."""

    def __init__(
        self,
        home: SiteHome,
        membership: Membership,
        state: SiteState,
        client: FlareClient,
        on_words: OnWords,
    ) -> None:
        self._home = home
        self._membership = membership
        self._state = state
        self._client = client
        self._on_words = on_words
        self._failures = 0
        self._start_at = self._ask_at = self._started = 0.0
        self._said = ""

    def run(self, ends: threading.Event) -> None:
        """Go on until told to end or until the site is no member any more."""
        while not ends.wait(_TURN_S):
            self._check_membership()
            if not self._client.is_alive() and time.monotonic() >= self._start_at:
                self._start()
            if time.monotonic() >= self._ask_at:
                self._ask()

    def _check_membership(self) -> None:
        """Notice that somebody here let the site leave, or join anew, meanwhile."""
        now = read_membership(self._home)
        if now.state is not MemberState.APPROVED or now.invitation != self._membership.invitation:
            raise NotAuthorizedError("site-left", f"{now.site} has left, or joined anew, meanwhile.")

    def _start(self) -> None:
        """Start the engine's process; pauses grow while it fails at once."""
        if self._started:
            lived = time.monotonic() - self._started
            self._failures = 0 if lived > _STEADY_S else min(self._failures + 1, len(_PAUSES_S) - 1)
            self._say(f"the engine's process ended after {lived:.0f} s and is started again")
        check_joined(self._home)  # whoever altered the kit meanwhile has ended the site's part
        self._client.start()
        self._started = time.monotonic()
        self._start_at = self._started + _PAUSES_S[self._failures]

    def _ask(self) -> None:
        """Fetch the roster, which also tells whether this site is still in it."""
        self._ask_at = time.monotonic() + _ROSTER_S
        try:
            roster = refresh_roster(self._home)
        except UnreachableError as error:
            self._tell("unreachable", error.detail)
        except UcadiError as error:
            if error.code in _NO_MEMBER:
                raise NotAuthorizedError("site-revoked", error.detail) from error
            self._tell(error.code, error.detail)
        else:
            self._tell("connected", f"roster {roster.epoch} with {len(roster.sites)} sites")

    def _tell(self, state: str, detail: str) -> None:
        """Write down how the connection is, for those who watch."""
        self._state.set_status(CONNECTION, {"state": state, "detail": detail})
        self._say(f"{state}: {detail}")

    def _say(self, words: str) -> None:
        """Say something once, to people and to the log."""
        if words != self._said:
            self._said = words
            event(_LOG, words)
            self._on_words(words)
