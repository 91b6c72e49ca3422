# SPDX-License-Identifier: Apache-2.0
"""The coordinator's side of membership: invites, takes applications, admits, ends, and says who belongs.

Nothing here needs the authority's key but `Registrar.approve`, which is given it for that one call.
"""

import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any

from ucadi.crypto.identity import Identity, check_public_key, verify
from ucadi.enrolment.authority import Authority, CertificateUse, check_request, public_key_of
from ucadi.enrolment.invitation import (
    SITE_NAME,
    Federation,
    application_fingerprint,
    new_invitation,
    secret_hash,
)
from ucadi.enrolment.roster import signed_roster
from ucadi.enrolment.signing import MOST_SKEW_S, Signed, verify_request
from ucadi.errors import FederationError, NotAuthorizedError
from ucadi.store.members import Application, Member, MemberState, MemberStore

__all__ = ["APPLICATION_PURPOSE", "Registrar"]

APPLICATION_PURPOSE = "application"

_FIELDS = {"invitation", "secret", "site", "organization", "identity", "request", "version", "signature"}
_RESERVED = {"server", "client", "admin", "driver", "relay", "coordinator"}
"""What others in a federation are called: a certificate in such a name could be taken for theirs."""

_LONGEST = 200
_LONGEST_REQUEST = 16 * 1024


class Registrar:
    """Joins the table of members with the coordinator's key.

    Args:
        federation: What everybody knows of it.
        identity: The coordinator's key.
        members: The table.
        on_change: Called after a membership has begun or ended, so that the engine can be told.
    """

    def __init__(
        self,
        federation: Federation,
        identity: Identity,
        members: MemberStore,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.federation = federation
        self.members = members
        self._identity = identity
        self._on_change = on_change

    # -- the coordinator's own commands -------------------------------------------------------------------

    def invite(self, site: str, days: float, actor: str) -> dict[str, Any]:
        """Return a new invitation's document.

        Raises:
            FederationError: ``member-state`` if the site is in the federation already, or its name cannot
                be used.
        """
        taken = _RESERVED | {self.federation.coordinator.lower(), self.federation.name.lower()}
        if not SITE_NAME.fullmatch(site) or site.lower() in taken:
            raise FederationError(
                "member-state",
                f"A site cannot be called {site!r:.80}.",
                cure="Take up to 63 letters, digits, '-' and '_', other than the federation's own names.",
            )
        invitation, document = new_invitation(self.federation, site, days, self._identity)
        expires = float(invitation.expires)
        self.members.invite(site, invitation.id, secret_hash(invitation.secret), expires, actor)
        return document

    def fingerprint(self, member: Member) -> str:
        """Return what the coordinator compares with the site before it approves.

        Raises:
            FederationError: ``member-state`` if the site has not applied.
        """
        if not member.identity:
            raise FederationError("member-state", f"{member.name} has not used its invitation yet.")
        key = public_key_of(member.request)
        return application_fingerprint(self.federation, member.name, member.identity, key)

    def require_pending(self, member: Member) -> None:
        """Return if a site waits for approval.

        Raises:
            FederationError: ``member-state``.
        """
        if member.state is not MemberState.PENDING:
            cure = "The site joins first." if member.state is MemberState.INVITED else None
            raise FederationError(
                "member-state", f"{member.name} is {member.state}, not waiting for approval.", cure=cure
            )

    def approve(self, member: Member, authority: Authority, actor: str) -> Member:
        """Admit a site: sign its certificate and put it into the roster.

        Args:
            member: The site, with the keys whose fingerprint was compared.
            authority: Signs.
            actor: Who decided it.

        Raises:
            FederationError: ``member-state`` if it does not wait for approval, or its keys have changed.
        """
        self.require_pending(member)
        key = check_request(member.request, member.name)
        certificate = authority.issue(key, CertificateUse.SITE, member.name)
        admitted = self.members.approve(member.name, member.identity, certificate, actor)
        self._on_change()
        return admitted

    def revoke(self, site: str, reason: str, actor: str) -> Member:
        """End a membership from the next round on.

        Raises:
            FederationError: ``member-unknown``, or ``member-state`` if it has ended already.
        """
        member = self.members.revoke(site, reason, actor)
        self._on_change()
        return member

    # -- what sites ask -----------------------------------------------------------------------------------

    def apply(self, document: Mapping[str, Any]) -> Member:
        """Take a site's application.

        Raises:
            FederationError: ``application-invalid``, ``invitation-expired``, ``invitation-used``, or
                ``site-key-changed`` if the name was a member's with other keys.
            NotAuthorizedError: ``not-authorized`` if the invitation is not ours or its secret is another.
        """
        if document.keys() != _FIELDS or not all(isinstance(value, str) for value in document.values()):
            raise FederationError(
                "application-invalid", "The application's fields are not the expected ones."
            )
        texts = (document["organization"], document["version"])
        if not all(len(text) <= _LONGEST and text.isprintable() for text in texts):
            raise FederationError("application-invalid", "The application's texts are too long.")
        invited = self.members.invitation(document["invitation"][:_LONGEST])
        is_ours = invited is not None and hmac.compare_digest(
            invited.secret_hash, secret_hash(document["secret"])
        )
        if invited is None or not is_ours or invited.site != document["site"]:
            raise NotAuthorizedError(
                "not-authorized", "The invitation is not one of this federation.", cure="Ask for a new one."
            )
        self._check_keys(document)
        if invited.used is None and time.time() >= invited.expires:
            raise FederationError("invitation-expired", f"The invitation of {invited.site} is too old.")
        self._check_same_key(self.members.site(invited.site), document["request"])
        names = ("site", "organization", "identity", "request", "version")
        return self.members.apply(invited.id, Application(**{name: document[name] for name in names}))

    def authenticate(self, signed: Signed, method: str, path: str, body: bytes) -> Member:
        """Return who made a request.

        Raises:
            NotAuthorizedError: ``signature-invalid`` (also for unknown sites), ``clock-skewed`` or
                ``request-replayed``.
        """
        try:
            member = self.members.site(signed.site)
        except FederationError as error:
            raise NotAuthorizedError("signature-invalid", "No site of this name signs.") from error
        verify_request(signed, member.identity, self.federation.identity, method, path, body)
        forget_before = time.time() - 2 * MOST_SKEW_S
        if not self.members.note_request(
            member.name, signed.nonce, float(signed.sent), forget_before=forget_before
        ):
            raise NotAuthorizedError("request-replayed", f"A request of {member.name} came twice.")
        return member

    def standing(self, member: Member) -> dict[str, Any]:
        """Return what a site is told about itself: its state and, when approved, all that it needs."""
        document: dict[str, Any] = {"site": member.name, "state": str(member.state)}
        if member.state is MemberState.APPROVED:
            document |= {
                "certificate": member.certificate,
                "roster": self.roster(),
            }
        return document

    def roster(self) -> dict[str, Any]:
        """Return the signed list of all members and their keys."""
        epoch, began, members = self.members.roster()
        return signed_roster(self._identity, self.federation.name, epoch, began, members)

    def leave(self, member: Member, reason: str) -> Member:
        """Take note that a site left.

        Raises:
            FederationError: ``member-state`` if its membership has ended already.
        """
        left = self.members.leave(member.name, reason)
        self._on_change()
        return left

    def _check_same_key(self, member: Member, request: str) -> None:
        """Refuse a second key under a name that was certified.

        The engine can bar a name but not a certificate: admitting the name again admits every certificate
        that it ever had, that of a stolen key too.
        """
        if member.joined is not None and public_key_of(member.request) != public_key_of(request):
            raise FederationError(
                "site-key-changed",
                f"{member.name} was a member with another key, and the name stays with it.",
            )

    def _check_keys(self, document: Mapping[str, Any]) -> None:
        """Refuse an application that is not signed with both of its keys."""
        try:
            check_public_key(document["identity"])
        except ValueError as error:
            raise FederationError("application-invalid", "The application's identity is no key.") from error
        if len(document["request"]) > _LONGEST_REQUEST:
            raise FederationError("application-invalid", "The application's certificate request is too long.")
        check_request(document["request"], document["site"])
        content = {name: value for name, value in document.items() if name != "signature"}
        try:
            verify(document["identity"], APPLICATION_PURPOSE, content, document["signature"])
        except NotAuthorizedError as error:
            raise FederationError("application-invalid", "The application was altered.") from error
