# SPDX-License-Identifier: Apache-2.0
"""The roster: who belongs to the federation and by which keys, signed by the coordinator, counted in epochs.

A site keeps the newest one that it saw and takes no older one, so nobody can bring back a member that was
revoked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ucadi.crypto.identity import Identity, check_public_key, verify
from ucadi.errors import FederationError, NotAuthorizedError
from ucadi.store.members import Member, MemberState

__all__ = ["Roster", "RosterEntry", "read_roster", "signed_roster"]

_FORMAT = "ucadi-roster-1"
_PURPOSE = "roster"


@dataclass(frozen=True)
class RosterEntry:
    """One site of the roster.

    Attributes:
        name: As in its certificate.
        state: Where it stands; only approved sites take part.
        identity: Its Ed25519 public key, base64.
    """

    name: str
    state: MemberState
    identity: str


@dataclass(frozen=True)
class Roster:
    """A roster whose signature was checked.

    Attributes:
        federation: Its name.
        epoch: Rises with every change.
        sites: By name.
    """

    federation: str
    epoch: int
    sites: Mapping[str, RosterEntry]


def signed_roster(
    identity: Identity, federation: str, epoch: int, began: float, members: Iterable[Member]
) -> dict[str, Any]:
    """Return the roster's document; the same epoch gives the same bytes.

    Args:
        identity: The coordinator's key.
        federation: The federation's name.
        epoch: Its number.
        began: When the epoch began, seconds since 1970.
        members: All sites that have a key.
    """
    document = {
        "format": _FORMAT,
        "federation": federation,
        "epoch": epoch,
        "since": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
        "sites": [
            {"name": member.name, "state": str(member.state), "identity": member.identity}
            for member in members
        ],
    }
    return {**document, "signature": identity.sign(_PURPOSE, document)}


def read_roster(document: object, federation: str, coordinator: str, *, newer_than: int = 0) -> Roster:
    """Check a roster.

    Args:
        document: As it came.
        federation: The federation's name.
        coordinator: The coordinator's public key, base64.
        newer_than: The epoch of the one that is known; an older one is refused.

    Raises:
        FederationError: ``message-invalid``.
        NotAuthorizedError: ``signature-invalid``.
    """
    try:
        content = dict(document)  # type: ignore[call-overload]  # a TypeError is an answer here
        verify(
            coordinator,
            _PURPOSE,
            {k: v for k, v in content.items() if k != "signature"},
            content["signature"],
        )
        if content["format"] != _FORMAT or content["federation"] != federation:
            raise ValueError("another format or federation")
        if type(content["epoch"]) is not int or content["epoch"] < newer_than:
            raise ValueError(f"epoch {content['epoch']!r:.20} is older than {newer_than}")
        entries = [
            RosterEntry(str(each["name"]), MemberState(each["state"]), check_public_key(each["identity"]))
            for each in content["sites"]
        ]
    except NotAuthorizedError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise FederationError("message-invalid", f"The roster cannot be used: {error}.") from error
    return Roster(federation, content["epoch"], {entry.name: entry for entry in entries})
