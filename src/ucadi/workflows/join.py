# SPDX-License-Identifier: Apache-2.0
"""How a hospital becomes a site: its home and keys, joining with an invitation, leaving.

Private keys are made here and stay here: what is sent are a certificate request and public keys. Every step
is written down before the next one, so a join that was broken off goes on where it was.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ucadi import __version__
from ucadi.crypto.identity import Identity, canonical_json
from ucadi.engines.flare.kit import Papers, check_kit, check_path, make_site_kit
from ucadi.enrolment.authority import load_tls_key, make_request, make_tls_key, public_pem
from ucadi.enrolment.client import ApiClient
from ucadi.enrolment.invitation import (
    SITE_NAME,
    Federation,
    Invitation,
    application_fingerprint,
    check_expiry,
    read_invitation,
)
from ucadi.enrolment.registrar import APPLICATION_PURPOSE
from ucadi.enrolment.roster import Roster, read_roster
from ucadi.errors import ConfigError, FederationError, NotAuthorizedError, UcadiError, UnreachableError
from ucadi.store.members import MemberState
from ucadi.versions import CONFIG_VERSION
from ucadi.workflows.flare_names import APP
from ucadi.workflows.site_home import POLICY_TEXT, SiteHome

__all__ = [
    "JoinState",
    "Joined",
    "Membership",
    "api_client",
    "check_joined",
    "init_site",
    "join",
    "leave",
    "read_membership",
    "refresh_roster",
]

_FILE = "membership.json"
_ROSTER = "roster.json"
_AUTHORITY = "authority.crt"
_FORMAT = 1
_POLL_S = 3.0
_SECTION = re.compile(r"^\[coordinator\]\s*(?:#.*)?$.*?(?=^\[|\Z)", re.MULTILINE | re.DOTALL)

JoinState = MemberState
"""Where the site stands, as far as it knows; ``invited`` is a home that has not applied yet."""


@dataclass(frozen=True)
class Membership:
    """What a site knows of its own membership.

    Attributes:
        site: Its name; empty until an invitation gives one.
        state: Where it stands.
        invitation: The id of the invitation that it used last; empty before.
        federation: Whom it joined and trusts; None before.
        epoch: Of the newest roster that it saw.
        is_told: Whether the coordinator knows the state; a site may leave while it cannot be reached.
    """

    site: str = ""
    state: MemberState = MemberState.INVITED
    invitation: str = ""
    federation: Federation | None = None
    epoch: int = 0
    is_told: bool = True


@dataclass(frozen=True)
class Joined:
    """What came of a join.

    Attributes:
        site: The site's name.
        state: ``pending`` or ``approved``.
        fingerprint: What is read to the coordinator.
        federation: Its name.
    """

    site: str
    state: MemberState
    fingerprint: str
    federation: str


def init_site(folder: Path, name: str = "") -> SiteHome:
    """Make a site's home: keys, and templates of its settings and its policy.

    Args:
        folder: Must be missing or empty.
        name: The site's name; an invitation gives one otherwise.

    Raises:
        ConfigError: ``output-exists``, or ``config-invalid`` for a name that cannot be one.
        EngineError: If the path cannot be used.
    """
    if name and not SITE_NAME.fullmatch(name):
        raise ConfigError(
            "config-invalid",
            f"A site cannot be called {name!r:.80}.",
            cure="Take up to 63 letters, digits, '-' and '_'.",
        )
    home = SiteHome(folder.absolute())
    check_path(home.folder)
    if home.folder.exists() and (not home.folder.is_dir() or any(home.folder.iterdir())):
        raise ConfigError(
            "output-exists",
            f"{home.folder} exists and is not empty.",
            cure="Choose another folder with --home.",
        )
    home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.folder.chmod(0o700)
    for path in (home.keys, home.outbox, home.logs):
        path.mkdir(mode=0o700)
    Identity.make(home.keys / "identity.key")
    make_tls_key(home.keys / "tls.key")
    _write(home.policy_file, POLICY_TEXT)
    _keep(home, Membership(site=name))
    _write(home.settings_file, _SITE_TEXT)  # last, since its presence says that the home is complete
    return home


def read_membership(home: SiteHome) -> Membership:
    """Return where the site stands.

    Raises:
        ConfigError: ``config-invalid`` if the file is missing or damaged.
    """
    try:
        document = json.loads((home.folder / _FILE).read_text(encoding="utf-8"))
        if document.pop("format") != _FORMAT:
            raise ValueError("another format")
        federation = document.pop("federation")
        state = MemberState(document.pop("state"))
        return Membership(
            **document, state=state, federation=None if federation is None else Federation(**federation)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "config-invalid",
            f"{home.folder / _FILE} cannot be used ({type(error).__name__}).",
            cure="Restore it from a backup, or make a new home with `ucadi site init` and join again.",
        ) from error


def check_joined(home: SiteHome) -> Membership:
    """Return the membership of an approved site whose kit is in order; what a start asks first.

    Raises:
        NotAuthorizedError: ``site-not-joined``, ``join-waiting``, ``site-left`` or ``site-revoked``.
        EngineError: ``site-kit-altered`` or ``key-exposed``.
    """
    membership = read_membership(home)
    codes = {
        MemberState.INVITED: "site-not-joined",
        MemberState.PENDING: "join-waiting",
        MemberState.LEFT: "site-left",
        MemberState.REVOKED: "site-revoked",
    }
    if membership.state in codes:
        raise NotAuthorizedError(codes[membership.state], f"{home.folder} is no site's that takes part.")
    check_kit(home.kit)
    return membership


def join(
    home: SiteHome,
    invitation_file: Path | None,
    *,
    organization: str = "",
    wait_s: float = 0.0,
    on_applied: Callable[[Joined], None] = lambda joined: None,
) -> Joined:
    """Apply with an invitation and, once approved, make the site's kit. To be called again to go on.

    Args:
        home: The site's home.
        invitation_file: The file from the coordinator; None goes on with the one that was used.
        organization: In words, for the coordinator's list.
        wait_s: How long to wait for approval, in seconds.
        on_applied: Called when the application has arrived, before the waiting.

    Raises:
        FederationError: If the invitation cannot be used, or ``join-waiting`` when the time is over.
        NotAuthorizedError: If the coordinator refuses, or is not the one of the invitation.
        UnreachableError: If it does not answer.
    """
    membership = read_membership(home)
    if invitation_file is not None:
        membership = _use(home, membership, read_invitation(invitation_file), organization)
    if membership.federation is None or membership.state in (MemberState.INVITED, MemberState.LEFT):
        raise FederationError(
            "site-not-joined", "No invitation was used yet.", cure="Name the invitation's file."
        )
    joined = _joined(home, membership)
    until, has_told = time.monotonic() + wait_s, False
    while True:
        standing = _ask(home, membership)
        if standing is not None and standing.get("state") == MemberState.APPROVED:
            _settle(home, membership, standing)
            return replace(joined, state=MemberState.APPROVED)
        if not has_told:
            has_told = True
            on_applied(joined)
        left_s = until - time.monotonic()
        if left_s <= 0:
            break
        time.sleep(min(_POLL_S, left_s))
    if wait_s:
        raise FederationError("join-waiting", f"{joined.federation} has not approved {joined.site} yet.")
    return replace(joined, state=MemberState.PENDING)


def leave(home: SiteHome, reason: str = "") -> bool:
    """Leave the federation: nothing starts here any more, and the coordinator is told.

    Returns:
        Whether the coordinator knows; if not, call again.

    Raises:
        FederationError: ``site-not-joined``.
    """
    membership = read_membership(home)
    if membership.federation is None or membership.state is MemberState.INVITED:
        raise FederationError("site-not-joined", f"{home.folder} has joined no federation.")
    if membership.state is not MemberState.LEFT:
        membership = replace(membership, state=MemberState.LEFT, is_told=False)
        _keep(home, membership)
        _raise_flag(home, is_left=True)
    if not membership.is_told:
        try:
            document = {"reason": reason}
            with api_client(home, membership) as client:
                _note_sent(home, membership, "leave", document)
                client.post("/v1/leave", document)
        except UnreachableError:
            return False
        except UcadiError as error:
            if error.code not in ("member-state", "site-revoked"):  # there is nothing left to leave
                raise
        _keep(home, replace(membership, is_told=True))
    return True


def refresh_roster(home: SiteHome) -> Roster:
    """Fetch the newest roster, check it against the pinned key, and keep it.

    Raises:
        UcadiError: If the coordinator cannot be asked, refuses, or sends an older one.
    """
    membership = check_joined(home)
    with api_client(home, membership) as client:
        return _keep_roster(home, membership, client.get("/v1/roster"))


def api_client(home: SiteHome, membership: Membership | None = None) -> ApiClient:
    """Return a client for the coordinator's interface that asks in the site's name.

    Raises:
        FederationError: ``site-not-joined``.
        ConfigError: If a key is missing or exposed.
    """
    membership = membership or read_membership(home)
    federation = membership.federation
    if federation is None:
        raise FederationError("site-not-joined", f"{home.folder} has joined no federation.")
    return ApiClient(
        federation.host,
        federation.api_port,
        home.keys / _AUTHORITY,
        federation.identity,
        membership.site,
        Identity.load(home.keys / "identity.key"),
    )


def _use(home: SiteHome, membership: Membership, invitation: Invitation, organization: str) -> Membership:
    """Apply with an invitation, unless this very one was used already."""
    if membership.site and membership.site != invitation.site:
        raise FederationError(
            "invitation-foreign", f"The invitation is for {invitation.site}, this site is {membership.site}."
        )
    if membership.invitation == invitation.id and membership.state in (
        MemberState.PENDING,
        MemberState.APPROVED,
    ):
        return membership
    if membership.state is MemberState.APPROVED and not _has_ended(home, membership):
        raise FederationError(
            "member-state", f"{membership.site} is a member already.", cure="Leave first: `ucadi site leave`."
        )
    check_expiry(invitation)
    identity, key = Identity.load(home.keys / "identity.key"), load_tls_key(home.keys / "tls.key")
    document = {
        "invitation": invitation.id,
        "secret": invitation.secret,
        "site": invitation.site,
        "organization": organization,
        "identity": identity.public_key,
        "request": make_request(key, invitation.site),
        "version": __version__,
    }
    applied = Membership(
        invitation.site, MemberState.PENDING, invitation.id, invitation.federation, epoch=membership.epoch
    )
    if membership.federation is None or membership.federation.identity != invitation.federation.identity:
        applied = replace(applied, epoch=0)
    _write(home.keys / _AUTHORITY, invitation.federation.authority)
    with api_client(home, applied) as client:
        signed = {**document, "signature": identity.sign(APPLICATION_PURPOSE, document)}
        _note_sent(home, applied, "join", signed)
        client.post("/v1/application", signed, is_signed=False)
    _keep(home, applied)
    return applied


def _note_sent(home: SiteHome, membership: Membership, kind: str, document: dict[str, Any]) -> None:
    """Write a message into the list of what left, before it leaves."""
    federation = membership.federation
    if federation is None:
        raise FederationError("site-not-joined", "No invitation was used yet.")
    body = json.dumps(document).encode()  # as the client writes it
    state = home.open_state()
    try:
        state.note_sent(
            kind,
            len(body),
            hashlib.sha256(body).hexdigest(),
            recipient=f"{federation.name} at {federation.host}",
        )
    finally:
        state.close()


def _joined(home: SiteHome, membership: Membership) -> Joined:
    """Return what a site tells its people while it waits."""
    federation = membership.federation
    if federation is None:
        raise FederationError("site-not-joined", "No invitation was used yet.")
    identity = Identity.load(home.keys / "identity.key").public_key
    key = public_pem(load_tls_key(home.keys / "tls.key"))
    digits = application_fingerprint(federation, membership.site, identity, key)
    return Joined(membership.site, membership.state, digits, federation.name)


def _ask(home: SiteHome, membership: Membership) -> dict[str, Any] | None:
    """Ask where the site stands; None if the coordinator does not answer now."""
    try:
        with api_client(home, membership) as client:
            standing = dict(client.get("/v1/standing"))
    except UnreachableError:
        return None
    if standing.get("state") in (MemberState.REVOKED, MemberState.LEFT):
        state = MemberState(standing["state"])
        _keep(home, replace(membership, state=state))
        raise NotAuthorizedError(
            "site-revoked" if state is MemberState.REVOKED else "site-left",
            f"The coordinator counts {membership.site} as {state}.",
        )
    return standing


def _has_ended(home: SiteHome, membership: Membership) -> bool:
    """Tell whether the coordinator ended a membership that this site believes in."""
    try:
        _ask(home, membership)
    except NotAuthorizedError as error:
        if error.code in ("site-revoked", "site-left"):
            return True
        raise
    return False


def _settle(home: SiteHome, membership: Membership, standing: dict[str, Any]) -> None:
    """Check all that an approval brought, make the kit, and write down that the site is a member."""
    federation = membership.federation
    certificate = standing.get("certificate")
    if federation is None or not isinstance(certificate, str):
        raise FederationError("message-invalid", "The coordinator's answer has no certificate.")
    _keep_roster(home, membership, standing.get("roster"))
    make_site_kit(
        home.kit,
        membership.site,
        Papers(certificate, (home.keys / "tls.key").read_bytes(), federation.authority),
        APP,
        host=federation.host,
        port=federation.port,
        coordinator=federation.coordinator,
    )
    check_kit(home.kit)
    address = {
        "site": membership.site,
        "name": federation.name,
        "host": federation.host,
        "port": federation.port,
        "api_port": federation.api_port,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in address.items()]
    section = "\n".join(["[coordinator]", "# Written by `ucadi site join`.", *lines, ""])
    text = _SECTION.sub("", home.settings_file.read_text(encoding="utf-8")).rstrip()
    _write(home.settings_file, f"{text}\n\n{section}")
    _keep(home, replace(read_membership(home), state=MemberState.APPROVED))
    _raise_flag(home, is_left=False)


def _keep_roster(home: SiteHome, membership: Membership, document: object) -> Roster:
    """Check a roster and keep it; the site itself must stand in it with its own key."""
    federation = membership.federation
    if federation is None or not isinstance(document, dict):
        raise FederationError("message-invalid", "The coordinator's answer has no roster.")
    roster = read_roster(document, federation.name, federation.identity, newer_than=membership.epoch)
    mine = roster.sites.get(membership.site)
    if mine is None or mine.identity != Identity.load(home.keys / "identity.key").public_key:
        raise FederationError("message-invalid", "The roster does not name this site with its own key.")
    _write(home.folder / _ROSTER, canonical_json(document).decode())
    _keep(home, replace(membership, epoch=roster.epoch))
    return roster


def _raise_flag(home: SiteHome, *, is_left: bool) -> None:
    """Tell the site's running processes that it left, or is back."""
    state = home.open_state()
    try:
        if state.flag("left") is not is_left:
            state.set_flag("left", is_left, "join" if not is_left else "leave")
    finally:
        state.close()


def _keep(home: SiteHome, membership: Membership) -> None:
    """Write the membership down."""
    document = {"format": _FORMAT, **asdict(membership), "state": str(membership.state)}
    _write(home.folder / _FILE, json.dumps(document, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, for its owner only; what is safe on disk survives a crash."""
    draft = path.with_name(f".{path.name}.new")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


_SITE_TEXT = f"""\
# This site's own settings. No plan of a coordinator overrides them. Paths are taken from this folder.
# Changes count from the next start of the site on.
config_version = {CONFIG_VERSION}

[site]
# The folder that `ucadi cohort import` made.
cohort = "cohort"
# Where preprocessed studies are kept; it may grow to the size of the cohort.
cache = "cache"
# "use", or "none": then labels and lesion masks are never learned from; plans that need them are declined.
labels = "use"
# Processor threads for training.
threads = 1
# The most that this site does in a round, whatever a plan asks for.
max_iterations = 10000
max_batch_size = 64
max_learning_rate = 0.1
# Fewest training studies with which this site takes part.
min_studies = 5
# A metric that speaks of fewer studies of a class than these is not reported.
min_class_studies = 5
"""
