# SPDX-License-Identifier: Apache-2.0
"""`ucadi site start`: keeps a site in the federation, whatever ends in between."""

import contextlib
import threading
import time
from collections.abc import Callable

from ucadi.engines.flare.process import FlareClient
from ucadi.errors import NotAuthorizedError, StoreError, UcadiError, UnreachableError
from ucadi.logs import event, get_logger, log_to_file
from ucadi.store.members import MemberState
from ucadi.store.site_state import CONNECTION, Decision, SiteState
from ucadi.workflows.home_lock import only_one
from ucadi.workflows.join import Membership, check_joined, read_membership, refresh_roster
from ucadi.workflows.signals import stop_on_signals
from ucadi.workflows.site_home import SiteHome

__all__ = ["start"]

_LOG = get_logger("workflows.site_start")

_TURN_S = 0.5
_ROSTER_S = 15.0
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
        EngineError: ``site-kit-altered``, or ``home-in-use`` if another process runs this site.
        ConfigError: If the settings or the policy are wrong.
    """
    ends = stop or stop_on_signals()
    membership = check_joined(home)
    home.read_settings()
    home.read_policy()
    with only_one(home.folder):
        log_to_file(home.logs / "site.jsonl")
        state, client = home.open_state(), FlareClient(home.kit)
        on_words(f"{membership.site} takes part; stop with Ctrl-C")
        try:
            _Keeper(home, membership, state, client, on_words).run(ends)
        finally:
            client.stop()
            with contextlib.suppress(StoreError):  # those who watch see less; why it ends is what counts
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
        self._shown: set[str] = set()

    def run(self, ends: threading.Event) -> None:
        """Go on until told to end or until the site is no member any more."""
        while not ends.wait(_TURN_S):
            self._check_membership()
            if not self._client.is_alive() and time.monotonic() >= self._start_at:
                self._start()
            if time.monotonic() >= self._ask_at:
                self._ask()
                self._say_what_waits()

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
        try:
            check_joined(self._home)  # whoever altered the kit meanwhile has ended the site's part
            self._client.start()
        except OSError as error:  # a full disk, no memory, too many processes: all of that may pass
            self._failures = min(self._failures + 1, len(_PAUSES_S) - 1)
            self._started = 0.0
            self._say(f"the engine's process cannot be started: {error.strerror or error}")
        else:
            self._started = time.monotonic()
        self._start_at = time.monotonic() + _PAUSES_S[self._failures]

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
        except OSError as error:  # the roster is asked for again; until then the one before is kept
            self._tell("file-error", f"The roster cannot be kept: {error.strerror or error}.")
        else:
            self._tell("connected", f"roster {roster.epoch} with {len(roster.sites)} sites")

    def _say_what_waits(self) -> None:
        """Tell the site's people, once, of each plan that waits for them."""
        with contextlib.suppress(StoreError):
            waiting = [seen for seen in self._state.plans() if seen.decision is Decision.WAITING]
            for seen in waiting:
                if seen.short not in self._shown:
                    self._shown.add(seen.short)
                    self._on_words(
                        f"run {seen.run_id} waits for your decision: ucadi site plans {seen.short}, then "
                        f"ucadi site approve {seen.short} or reject"
                    )

    def _tell(self, state: str, detail: str) -> None:
        """Write down how the connection is, for those who watch."""
        self._say(f"{state}: {detail}")
        try:
            self._state.set_status(CONNECTION, {"state": state, "detail": detail})
        except StoreError as error:  # those who watch see less; the site goes on and tells at the next turn
            event(_LOG, "status not written", code=error.code, detail=error.detail)

    def _say(self, words: str) -> None:
        """Say something once, to people and to the log."""
        if words != self._said:
            self._said = words
            event(_LOG, words)
            self._on_words(words)
