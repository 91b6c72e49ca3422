# SPDX-License-Identifier: Apache-2.0
"""Who belongs to a federation: invitations, sites with their keys and states, and the roster's epochs.

Every change of membership raises the epoch and is audited in the same transaction, so no reader ever sees
one without the other. Secrets of invitations are kept as hashes only.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Integer,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)

from ucadi.errors import FederationError
from ucadi.store.audit import Audit
from ucadi.store.database import METADATA, Database

__all__ = ["Application", "Invited", "Member", "MemberState", "MemberStore"]

_INVITATIONS = Table(
    "invitations",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("site", String(63), nullable=False, index=True),
    Column("secret_hash", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
    Column("withdrawn", Float),
)

_SITES = Table(
    "sites",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("folded", String(63), nullable=False, unique=True),
    Column("organization", String(200), nullable=False, default=""),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("identity", String(64), nullable=False, default=""),
    Column("request", Text, nullable=False, default=""),
    Column("certificate", Text, nullable=False, default=""),
    Column("version", String(64), nullable=False, default=""),
    Column("since", Float, nullable=False),
    Column("joined", Float),
    Column("last_seen", Float),
    Column("last_connected", Float),
)

_EPOCHS = Table(
    "roster_epochs",
    METADATA,
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("site", String(63), nullable=False),
    Column("state", String(16), nullable=False),
)

_NONCES = Table(
    "request_nonces",
    METADATA,
    Column("site", String(63), primary_key=True),
    Column("nonce", String(64), primary_key=True),
    Column("time", Float, nullable=False, index=True),
)


class MemberState(StrEnum):
    """Where a site stands. Only an approved one is called to rounds."""

    INVITED = "invited"
    PENDING = "pending"
    APPROVED = "approved"
    REVOKED = "revoked"
    LEFT = "left"


@dataclass(frozen=True)
class Member:
    """One site.

    Attributes:
        name: As in its certificate.
        organization: In words, as the site says.
        state: Where it stands.
        reason: Why it was revoked or left, if somebody said so.
        identity: Its Ed25519 public key, base64; empty before it applied.
        request: Its certificate request, PEM; empty before it applied.
        certificate: What the federation signed, PEM; empty before it was approved.
        version: The release of ucadi with which it applied.
        since: When the state began, seconds since 1970.
        joined: When it was last approved, or None.
        last_seen: When it last made an authenticated request, or None.
        last_connected: When the engine last said that it is connected, or None.
    """

    name: str
    organization: str
    state: MemberState
    reason: str
    identity: str
    request: str
    certificate: str
    version: str
    since: float
    joined: float | None
    last_seen: float | None
    last_connected: float | None


@dataclass(frozen=True)
class Invited:
    """One invitation, as the coordinator remembers it."""

    id: str
    site: str
    secret_hash: str
    expires: float
    used: float | None
    withdrawn: float | None


@dataclass(frozen=True)
class Application:
    """What a site hands in with an invitation.

    Attributes:
        site: The name that it was invited under.
        organization: In words.
        identity: Its Ed25519 public key, base64.
        request: Its certificate request, PEM.
        version: Its release of ucadi.
    """

    site: str
    organization: str
    identity: str
    request: str
    version: str


class MemberStore:
    """The membership of one federation, in a database.

    Args:
        database: Where it is kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = Audit(database)

    # -- reading ------------------------------------------------------------------------------------------

    def sites(self) -> list[Member]:
        """Return all sites by name."""
        with self._database.read() as conn:
            rows = conn.execute(select(_SITES).order_by(_SITES.c.folded)).mappings()
            return [_member(row) for row in rows]

    def site(self, name: str) -> Member:
        """Return one site.

        Raises:
            FederationError: ``member-unknown``.
        """
        with self._database.read() as conn:
            return _find(conn, name)

    def approved(self) -> frozenset[str]:
        """Return the names of the sites that may be called to rounds now."""
        with self._database.read() as conn:
            names = select(_SITES.c.name).where(_SITES.c.state == MemberState.APPROVED)
            return frozenset(conn.execute(names).scalars())

    def barred(self) -> frozenset[str]:
        """Return the names of the sites that hold, or held, a certificate and are not approved."""
        with self._database.read() as conn:
            names = select(_SITES.c.name).where(
                _SITES.c.state != MemberState.APPROVED, _SITES.c.joined.is_not(None)
            )
            return frozenset(conn.execute(names).scalars())

    def epoch(self) -> int:
        """Return the number of the roster; it rises with every change of membership."""
        with self._database.read() as conn:
            return _epoch(conn)

    def roster(self) -> tuple[int, float, list[Member]]:
        """Return the epoch, when it began, and all sites that have a key, as of one moment."""
        with self._database.read() as conn:
            epoch = _epoch(conn)
            began = conn.execute(select(_EPOCHS.c.time).where(_EPOCHS.c.epoch == epoch)).scalar()
            rows = conn.execute(select(_SITES).where(_SITES.c.identity != "").order_by(_SITES.c.name))
            return epoch, float(began or 0.0), [_member(row) for row in rows.mappings()]

    def invitation(self, invitation_id: str) -> Invited | None:
        """Return an invitation, or None."""
        with self._database.read() as conn:
            return _invitation(conn, invitation_id)

    # -- changing -----------------------------------------------------------------------------------------

    def invite(self, site: str, invitation_id: str, secret_hash: str, expires: float, actor: str) -> None:
        """Keep a new invitation; earlier ones of the same site that nobody used are withdrawn.

        Raises:
            FederationError: ``member-state`` if the site is in the federation already, or its name differs
                from another's by the case of letters only.
        """
        now = time.time()
        with self._database.begin() as conn:
            row = conn.execute(select(_SITES).where(_SITES.c.folded == site.lower())).mappings().first()
            if row is not None and row["name"] != site:
                raise FederationError(
                    "member-state", f"There is a site {row['name']}; {site} reads the same."
                )
            if row is not None and row["state"] in (MemberState.PENDING, MemberState.APPROVED):
                raise FederationError(
                    "member-state",
                    f"{site} is {row['state']} already.",
                    cure="Revoke it first if it is to join with new keys.",
                )
            conn.execute(
                update(_INVITATIONS)
                .where(
                    _INVITATIONS.c.site == site,
                    _INVITATIONS.c.used.is_(None),
                    _INVITATIONS.c.withdrawn.is_(None),
                )
                .values(withdrawn=now)
            )
            conn.execute(
                insert(_INVITATIONS).values(
                    id=invitation_id, site=site, secret_hash=secret_hash, created=now, expires=expires
                )
            )
            if row is None:
                conn.execute(
                    insert(_SITES).values(
                        name=site, folded=site.lower(), state=MemberState.INVITED.value, since=now
                    )
                )
            details = {"invitation": invitation_id, "expires": expires}
            self._audit.append(conn, actor, "invite", site, details)

    def apply(self, invitation_id: str, application: Application) -> Member:
        """Use up an invitation; the site waits for approval. The same application again changes nothing.

        The caller has checked the invitation's secret and date and the application's signatures.

        Raises:
            FederationError: ``invitation-used`` if somebody used it before or the coordinator withdrew it.
        """
        now = time.time()
        with self._database.begin() as conn:
            member, invited = _find(conn, application.site), _invitation(conn, invitation_id)
            keys = (application.identity, application.request)
            if invited is not None and invited.used is not None:
                if keys == (member.identity, member.request) and invited.withdrawn is None:
                    return member
                raise FederationError("invitation-used", f"The invitation of {member.name} was used before.")
            if invited is None or invited.withdrawn is not None or invited.site != application.site:
                raise FederationError("invitation-used", f"The invitation of {member.name} was withdrawn.")
            conn.execute(update(_INVITATIONS).where(_INVITATIONS.c.id == invitation_id).values(used=now))
            self._change(
                conn,
                application.site,
                MemberState.PENDING,
                now,
                actor=application.site,
                action="apply",
                details={"invitation": invitation_id, "identity": application.identity},
                organization=application.organization,
                identity=application.identity,
                request=application.request,
                version=application.version,
                certificate="",
                reason="",
                last_seen=now,
            )
            return _find(conn, application.site)

    def approve(self, site: str, identity: str, certificate: str, actor: str) -> Member:
        """Admit a site that applied.

        Args:
            site: Its name.
            identity: The key whose fingerprint was compared; another one in the meantime is refused.
            certificate: What the federation signed, PEM.
            actor: Who did it.

        Raises:
            FederationError: ``member-unknown``, or ``member-state`` if it does not wait for approval.
        """
        now = time.time()
        with self._database.begin() as conn:
            member = _find(conn, site)
            if member.state is not MemberState.PENDING or member.identity != identity:
                raise FederationError("member-state", f"{site} is {member.state}, not waiting for approval.")
            details = {"identity": identity}
            self._change(
                conn,
                site,
                MemberState.APPROVED,
                now,
                actor=actor,
                action="approve",
                details=details,
                certificate=certificate,
                joined=now,
            )
            return _find(conn, site)

    def revoke(self, site: str, reason: str, actor: str) -> Member:
        """End a site's membership, or refuse its application or invitation.

        Raises:
            FederationError: ``member-unknown``, or ``member-state`` if it is no member any more.
        """
        return self._end(site, MemberState.REVOKED, reason, actor, "revoke")

    def leave(self, site: str, reason: str) -> Member:
        """Note that a site left by itself.

        Raises:
            FederationError: ``member-unknown``, or ``member-state`` if it is no member any more.
        """
        return self._end(site, MemberState.LEFT, reason, site, "leave")

    def note_request(self, site: str, nonce: str, sent: float, *, forget_before: float) -> bool:
        """Note an authenticated request; tell False if it came before.

        Args:
            site: Who made it.
            nonce: What makes it unique.
            sent: When, by the site's clock.
            forget_before: Requests that were sent earlier are refused by their date and need no memory.
        """
        mine = (_NONCES.c.site == site, _NONCES.c.nonce == nonce)
        with self._database.begin() as conn:
            conn.execute(delete(_NONCES).where(_NONCES.c.time < forget_before))
            if conn.execute(select(_NONCES.c.time).where(*mine)).first() is not None:
                return False
            conn.execute(insert(_NONCES).values(site=site, nonce=nonce, time=sent))
            conn.execute(update(_SITES).where(_SITES.c.name == site).values(last_seen=time.time()))
        return True

    def note_connected(self, sites: Collection[str]) -> None:
        """Note that sites are connected to the engine just now."""
        with self._database.begin() as conn:
            mine = _SITES.c.name.in_(sorted(sites))
            conn.execute(update(_SITES).where(mine).values(last_connected=time.time()))

    def _end(self, site: str, state: MemberState, reason: str, actor: str, action: str) -> Member:
        """End a membership; nothing of the site's invitations stays usable."""
        now = time.time()
        with self._database.begin() as conn:
            member = _find(conn, site)
            if member.state in (MemberState.REVOKED, MemberState.LEFT):
                raise FederationError("member-state", f"{site} is {member.state} already.")
            conn.execute(
                update(_INVITATIONS)
                .where(_INVITATIONS.c.site == site, _INVITATIONS.c.withdrawn.is_(None))
                .values(withdrawn=now)
            )
            details = {"was": str(member.state), "reason": reason}
            self._change(conn, site, state, now, actor=actor, action=action, details=details, reason=reason)
            return _find(conn, site)

    def _change(
        self,
        conn: Connection,
        site: str,
        state: MemberState,
        now: float,
        *,
        actor: str,
        action: str,
        details: dict[str, Any],
        **values: Any,
    ) -> None:
        """Set a site's state, raise the epoch and audit both."""
        number = _epoch(conn) + 1
        conn.execute(
            update(_SITES).where(_SITES.c.name == site).values(state=state.value, since=now, **values)
        )
        conn.execute(insert(_EPOCHS).values(epoch=number, time=now, site=site, state=state.value))
        self._audit.append(conn, actor, action, site, {**details, "epoch": number})


def _find(conn: Connection, name: str) -> Member:
    """Return one site."""
    row = conn.execute(select(_SITES).where(_SITES.c.name == name)).mappings().first()
    if row is None:
        raise FederationError("member-unknown", f"The federation has no site {name!r:.80}.")
    return _member(row)


def _invitation(conn: Connection, invitation_id: str) -> Invited | None:
    """Return one invitation, or None."""
    row = conn.execute(select(_INVITATIONS).where(_INVITATIONS.c.id == invitation_id)).mappings().first()
    if row is None:
        return None
    return Invited(row["id"], row["site"], row["secret_hash"], row["expires"], row["used"], row["withdrawn"])


def _epoch(conn: Connection) -> int:
    """Return the highest epoch."""
    return int(conn.execute(select(func.coalesce(func.max(_EPOCHS.c.epoch), 0))).scalar_one())


def _member(row: Any) -> Member:
    """Return a row, a mapping, as a record."""
    return Member(
        name=row["name"],
        organization=row["organization"],
        state=MemberState(row["state"]),
        reason=row["reason"],
        identity=row["identity"],
        request=row["request"],
        certificate=row["certificate"],
        version=row["version"],
        since=row["since"],
        joined=row["joined"],
        last_seen=row["last_seen"],
        last_connected=row["last_connected"],
    )
