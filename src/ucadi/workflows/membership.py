# SPDX-License-Identifier: Apache-2.0
"""What a coordinator does about its members: invite, list, approve, revoke, and serve the sites that ask."""

import getpass
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ucadi.crypto.identity import write_secret
from ucadi.engines.flare.kit import bar_sites
from ucadi.enrolment.api import Router, make_api
from ucadi.enrolment.authority import Authority
from ucadi.enrolment.registrar import Registrar
from ucadi.enrolment.server import ApiServer, bind_address
from ucadi.errors import ConfigError
from ucadi.store.audit import Audit, AuditEntry
from ucadi.store.database import Database
from ucadi.store.members import Member, MemberState
from ucadi.workflows.coordinator_home import CoordinatorHome

__all__ = [
    "Candidate",
    "api_server",
    "approve",
    "audit_entries",
    "bar_ended",
    "invite",
    "list_sites",
    "look_at",
    "member_document",
    "revoke",
    "verify_audit",
]

_DISPLAYED = ("name", "organization", "state", "reason", "version", "since", "joined", "last_seen")


@dataclass(frozen=True)
class Candidate:
    """A site that waits for approval, and what its people must read out.

    Attributes:
        member: The site, with the keys that it handed in.
        fingerprint: Covers the site's keys and this federation's.
    """

    member: Member
    fingerprint: str


def invite(home: CoordinatorHome, site: str, days: float, file: Path) -> dict[str, Any]:
    """Write an invitation for one site; earlier ones that it did not use are withdrawn.

    Args:
        home: The coordinator's home.
        site: The site's name.
        days: How long it can be used.
        file: Where it goes; only its owner may read it.

    Returns:
        The invitation's document without its secret.

    Raises:
        FederationError: ``member-state`` if the site cannot be invited.
        ConfigError: ``output-exists``.
    """
    if file.exists():  # before the invitation is noted, which would withdraw the earlier one
        raise ConfigError("output-exists", f"{file} exists.", cure="Choose another file with --out.")
    with _registrar(home) as registrar:
        document = registrar.invite(site, days, _actor())
    write_secret(file, json.dumps(document, indent=1).encode() + b"\n")
    return {name: value for name, value in document.items() if name not in ("secret", "signature")}


def list_sites(home: CoordinatorHome) -> list[Member]:
    """Return all sites by name."""
    with _registrar(home) as registrar:
        return registrar.members.sites()


def look_at(home: CoordinatorHome, site: str) -> Candidate:
    """Return a site that applied and its fingerprint.

    Raises:
        FederationError: ``member-unknown``, or ``member-state`` if it does not wait for approval.
    """
    with _registrar(home) as registrar:
        member = registrar.members.site(site)
        registrar.require_pending(member)
        return Candidate(member, registrar.fingerprint(member))


def approve(home: CoordinatorHome, candidate: Candidate) -> Member:
    """Admit a site with exactly the keys that were looked at.

    Raises:
        FederationError: ``member-state`` if it changed meanwhile.
        ConfigError: ``key-missing`` if the authority's key is kept elsewhere.
    """
    with _registrar(home) as registrar:
        return registrar.approve(candidate.member, Authority.load(home.keys), _actor())


def revoke(home: CoordinatorHome, site: str, reason: str) -> Member:
    """End a site's membership from the next round on.

    Raises:
        FederationError: ``member-unknown``, or ``member-state`` if it has ended already.
    """
    with _registrar(home) as registrar:
        return registrar.revoke(site, reason, _actor())


def audit_entries(home: CoordinatorHome, after: int = 0) -> list[AuditEntry]:
    """Return the audit log from an entry on."""
    with _database(home) as database:
        return Audit(database).entries(after=after)


def verify_audit(home: CoordinatorHome) -> int:
    """Check the audit log's chain and return how many entries it has.

    Raises:
        StoreError: ``audit-broken``.
    """
    with _database(home) as database:
        return Audit(database).verify()


def api_server(home: CoordinatorHome, database: Database, routers: Sequence[Router] = ()) -> ApiServer:
    """Return the HTTPS interface, not yet serving. It does not need the authority's key.

    Args:
        home: The coordinator's home.
        database: Its state, open as long as the interface serves.
        routers: Further routes.

    Raises:
        ConfigError: If a key is missing or exposed.
    """
    settings = home.settings
    app = make_api(home.registrar(database), routers)
    return ApiServer(
        app,
        bind_address(settings.host),
        settings.api_port,
        home.keys / "api.crt",
        home.keys / "api.key",
    )


def bar_ended(home: CoordinatorHome, database: Database) -> frozenset[str]:
    """Tell the engine, before it starts, whom to refuse; return their names."""
    barred = home.registrar(database).members.barred()
    bar_sites(home.kit, barred)
    return barred


def member_document(member: Member) -> dict[str, Any]:
    """Return what is shown of a site: no keys, no certificate."""
    values = asdict(member)
    shown = {name: values[name] for name in _DISPLAYED}
    return {**shown, "state": str(member.state), "may_take_part": member.state is MemberState.APPROVED}


@contextmanager
def _database(home: CoordinatorHome) -> Iterator[Database]:
    """Open the state for one command."""
    database = home.open_database()
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _registrar(home: CoordinatorHome) -> Iterator[Registrar]:
    """Open the desk for one command."""
    with _database(home) as database:
        yield home.registrar(database)


def _actor() -> str:
    """Return who gives the command, as this machine knows them."""
    try:
        return f"operator {getpass.getuser()}"[:100]
    except (OSError, KeyError):  # a container's user may have no name
        return "operator"
