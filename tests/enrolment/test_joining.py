# SPDX-License-Identifier: Apache-2.0
"""From an invitation to a member, and all that must not lead there."""

import dataclasses
import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from coordinator_hub import Hub
from ucadi.crypto.identity import Identity
from ucadi.engines.flare.kit import check_kit
from ucadi.enrolment.invitation import new_invitation
from ucadi.errors import ConfigError, UcadiError
from ucadi.store.members import MemberState
from ucadi.workflows import membership
from ucadi.workflows.coordinator_home import CoordinatorHome, init_coordinator, settings_from
from ucadi.workflows.join import (
    api_client,
    check_joined,
    init_site,
    join,
    leave,
    read_membership,
    refresh_roster,
)
from ucadi.workflows.site_home import SiteHome

NewSite = Callable[..., SiteHome]


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(UcadiError) as caught:
        act()
    assert caught.value.cure
    return caught.value.code


def states(hub: Hub) -> dict[str, str]:
    return {member.name: str(member.state) for member in membership.list_sites(hub.home)}


# -- the way in -------------------------------------------------------------------------------------------


def test_a_site_joins_and_has_a_kit_of_its_own_key(hub: Hub, site: SiteHome) -> None:
    invitation = hub.invite()
    pending = join(site, invitation, organization="CHU de Lyon")
    assert (pending.state, pending.site, pending.federation) == (MemberState.PENDING, "lyon", "study")
    candidate = membership.look_at(hub.home, "lyon")
    assert candidate.fingerprint == pending.fingerprint
    assert candidate.member.organization == "CHU de Lyon"
    membership.approve(hub.home, candidate)
    assert join(site, None).state is MemberState.APPROVED

    card = check_kit(site.kit)
    assert (card.name, card.port, card.coordinator) == ("lyon", 8102, "coordinator")
    assert (site.kit / "startup/client.key").read_bytes() == (site.keys / "tls.key").read_bytes()
    certificate = x509.load_pem_x509_certificate((site.kit / "startup/client.crt").read_bytes())
    assert certificate.subject.rfc4514_string() == "O=lyon,CN=lyon"
    assert check_joined(site).state is MemberState.APPROVED
    assert [entry.action for entry in membership.audit_entries(hub.home)] == [
        "init",
        "invite",
        "apply",
        "approve",
    ]


def test_a_join_writes_where_it_joined_and_leaves_the_sites_own_settings(hub: Hub, site: SiteHome) -> None:
    text = site.settings_file.read_text().replace("threads = 1", "threads = 2  # ours")
    site.settings_file.write_text(text)
    hub.admit(site)
    joined = site.settings_file.read_text()
    assert joined.startswith(text.rstrip())
    address = site.read_settings().coordinator
    assert address is not None
    assert (address.site, address.name, address.port) == ("lyon", "study", 8102)
    assert join(site, None).state is MemberState.APPROVED  # again: the section is replaced, not added
    assert site.settings_file.read_text() == joined


@pytest.mark.slow
def test_a_waiting_join_goes_on_by_itself_when_approved(hub: Hub, site: SiteHome) -> None:
    shown: list[str] = []
    approval = threading.Timer(1.0, hub.approve)
    approval.start()
    joined = join(site, hub.invite(), wait_s=30.0, on_applied=lambda each: shown.append(each.fingerprint))
    approval.join()
    assert joined.state is MemberState.APPROVED
    assert shown == [joined.fingerprint]


def test_a_join_that_waited_in_vain_says_so(hub: Hub, site: SiteHome) -> None:
    invitation = hub.invite()
    assert refused(lambda: join(site, invitation, wait_s=0.1)) == "join-waiting"
    assert states(hub) == {"lyon": "pending"}


def test_a_join_broken_off_after_sending_goes_on(hub: Hub, site: SiteHome, tmp_path: Path) -> None:
    invitation = hub.invite()
    before = Path(shutil.copytree(site.folder, tmp_path / "before"))
    join(site, invitation)
    # As if the machine had died before it wrote down that the application arrived.
    again = join(SiteHome(before), invitation)
    assert again.state is MemberState.PENDING
    hub.approve()
    assert join(SiteHome(before), invitation).state is MemberState.APPROVED
    assert len(membership.audit_entries(hub.home)) == 4


@pytest.mark.slow
def test_a_join_goes_on_after_the_coordinator_was_away(hub: Hub, site: SiteHome) -> None:
    invitation = hub.invite()
    join(site, invitation)
    hub.stop()
    assert join(site, None).state is MemberState.PENDING
    hub.approve()
    hub.start()
    assert join(site, None).state is MemberState.APPROVED


@pytest.mark.slow
def test_the_same_invitation_makes_a_damaged_kit_anew(hub: Hub, site: SiteHome) -> None:
    invitation = hub.invite()
    join(site, invitation)
    hub.approve()
    join(site, None)
    (site.kit / "local/resources.json").write_text("{}")
    assert refused(lambda: check_joined(site)) == "site-kit-altered"
    join(site, invitation)
    check_joined(site)


@pytest.mark.slow
def test_the_roster_is_kept_and_grows(hub: Hub, site: SiteHome, new_site: NewSite) -> None:
    hub.admit(site)
    assert set(refresh_roster(site).sites) == {"lyon"}
    hub.admit(new_site(1), "milan")
    roster = refresh_roster(site)
    assert {name: entry.state for name, entry in roster.sites.items()} == {
        "lyon": MemberState.APPROVED,
        "milan": MemberState.APPROVED,
    }
    assert read_membership(site).epoch == roster.epoch == 4


# -- invitations that are refused -------------------------------------------------------------------------


def test_an_invitation_is_used_once(hub: Hub, site: SiteHome, new_site: NewSite) -> None:
    invitation = hub.invite()
    join(site, invitation)
    thief = new_site(1)
    assert refused(lambda: join(thief, invitation)) == "invitation-used"
    assert read_membership(thief).state is MemberState.INVITED


@pytest.mark.slow
def test_who_was_first_with_a_stolen_invitation_shows_other_digits(
    hub: Hub, site: SiteHome, new_site: NewSite
) -> None:
    invitation = hub.invite()
    thief = join(new_site(1), invitation)
    assert refused(lambda: join(site, invitation)) == "invitation-used"
    assert membership.look_at(hub.home, "lyon").fingerprint == thief.fingerprint
    membership.revoke(hub.home, "lyon", "the digits differed")
    assert join(site, hub.invite()).fingerprint != thief.fingerprint


def test_an_invitation_for_another_site_is_refused(hub: Hub, new_site: NewSite) -> None:
    invitation = hub.invite("milan")
    assert refused(lambda: join(new_site(name="lyon"), invitation)) == "invitation-foreign"
    assert states(hub) == {"milan": "invited"}


def test_an_expired_invitation_is_refused_at_both_ends(
    hub: Hub, site: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = hub.invite(days=1e-9)
    assert refused(lambda: join(site, invitation)) == "invitation-expired"
    # A site whose clock is wrong learns it from the coordinator.
    monkeypatch.setattr("ucadi.workflows.join.check_expiry", lambda invitation: None)
    assert refused(lambda: join(site, invitation)) == "invitation-expired"
    assert states(hub) == {"lyon": "invited"}


def leaves(document: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    if isinstance(document, dict):
        return [leaf for key, value in document.items() for leaf in leaves(value, (*path, key))]
    return [path]


def test_an_invitation_altered_anywhere_is_refused(hub: Hub, site: SiteHome) -> None:
    invitation = hub.invite()
    text = invitation.read_text()
    for path in leaves(json.loads(text)):
        for change in (lambda old: old + 1 if isinstance(old, int) else f"{old}x", lambda old: None):
            document = json.loads(text)
            place = document
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = change(place[path[-1]])
            invitation.write_text(json.dumps(document))
            assert refused(lambda: join(site, invitation)) == "invitation-invalid", path
    assert not hub.wire


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "no JSON", '{"signature": "x"}', "[" * 100_000, "x" * 100_000]
)
def test_what_is_no_invitation_is_said(site: SiteHome, tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert refused(lambda: join(site, tmp_path / "file")) == "invitation-invalid"
    assert refused(lambda: join(site, tmp_path / "missing")) == "invitation-invalid"


def test_an_invitation_with_another_signers_key_gives_other_digits_and_is_not_believed(
    hub: Hub, site: SiteHome, tmp_path: Path
) -> None:
    thief = Identity.make(tmp_path / "thief.key")
    federation = dataclasses.replace(hub.home.federation(), identity=thief.public_key)
    _, document = new_invitation(federation, "lyon", 7.0, thief)
    (tmp_path / "forged").write_text(json.dumps(document))
    assert refused(lambda: join(site, tmp_path / "forged")) == "not-authorized"


@pytest.mark.slow
def test_a_coordinator_of_another_authority_is_not_believed(hub: Hub, site: SiteHome, tmp_path: Path) -> None:
    port = hub.home.settings.api_port
    other = init_coordinator(
        tmp_path / "other", settings_from(name="study", host="127.0.0.1", port=8102, api_port=port)
    )
    membership.invite(other, "lyon", 7.0, tmp_path / "invitation")
    assert refused(lambda: join(site, tmp_path / "invitation")) == "coordinator-unproven"
    assert not hub.wire


def test_a_coordinator_at_a_host_that_its_certificate_does_not_name_is_not_believed(
    hub: Hub, site: SiteHome, tmp_path: Path
) -> None:
    hub.stop()
    hub.address = "127.0.0.2"
    hub.start()
    federation = dataclasses.replace(hub.home.federation(), host="127.0.0.2")
    _, document = new_invitation(federation, "lyon", 7.0, hub.home.identity())
    (tmp_path / "invitation").write_text(json.dumps(document))
    assert refused(lambda: join(site, tmp_path / "invitation")) == "coordinator-unproven"


def test_a_coordinator_that_is_away_is_said(hub: Hub, site: SiteHome) -> None:
    invitation = hub.invite()
    hub.stop()
    assert refused(lambda: join(site, invitation)) == "unreachable"
    assert read_membership(site).state is MemberState.INVITED


def test_a_member_does_not_join_again(hub: Hub, site: SiteHome) -> None:
    hub.admit(site)
    invitation = hub.folder / "other"
    _, document = new_invitation(hub.home.federation(), "lyon", 7.0, hub.home.identity())
    invitation.write_text(json.dumps(document))
    assert refused(lambda: join(site, invitation)) == "member-state"


@pytest.mark.parametrize(
    "name",
    [
        *("coordinator", "study", "a b", "../x", "", "é", "x" * 64, "driver@ucadi.local"),
        *("server", "Server", "client", "ADMIN", "driver", "relay", "Coordinator"),
    ],
)
def test_names_that_cannot_be_a_sites_are_not_invited(hub: Hub, name: str) -> None:
    assert refused(lambda: hub.invite(name)) == "member-state"
    assert not list(hub.folder.iterdir())


# -- ending -----------------------------------------------------------------------------------------------


def test_a_revoked_site_learns_it_and_is_barred(hub: Hub, site: SiteHome) -> None:
    hub.admit(site)
    membership.revoke(hub.home, "lyon", "audit failed")
    assert refused(lambda: refresh_roster(site)) == "site-revoked"
    assert refused(lambda: join(site, None)) == "site-revoked"
    assert refused(lambda: check_joined(site)) == "site-revoked"
    barred = json.loads((hub.home.kit / "disabled_clients.json").read_text())
    assert barred == {"disabled_clients": ["lyon"]}
    assert membership.verify_audit(hub.home) == 5


@pytest.mark.slow
def test_a_revoked_site_comes_back_with_its_own_keys_only(
    hub: Hub, site: SiteHome, new_site: NewSite
) -> None:
    hub.admit(site)
    membership.revoke(hub.home, "lyon", "")
    invitation = hub.invite()
    # Else the certificate of a stolen key would be good again together with the name.
    assert refused(lambda: join(new_site(1), invitation)) == "site-key-changed"
    hub_invitation = hub.invite()
    join(site, hub_invitation)
    hub.approve()
    assert join(site, None).state is MemberState.APPROVED
    assert json.loads((hub.home.kit / "disabled_clients.json").read_text()) == {"disabled_clients": []}


def assert_listed(hub: Hub, site: SiteHome, *paths: str) -> None:
    """Check that the list of what left names these messages, and nothing else, as they crossed the wire."""
    state = site.open_state()
    rows = state.sent()
    assert state.verify() >= len(rows)
    state.close()
    assert [row.kind for row in rows] == [{"/v1/application": "join", "/v1/leave": "leave"}[p] for p in paths]
    for row, path in zip(rows, paths, strict=True):
        crossed = next(seen for place, seen in hub.wire if place == path)
        assert row.sha256 == hashlib.sha256(crossed[-row.size_bytes :]).hexdigest()
        assert row.recipient == "study at 127.0.0.1"


def test_an_application_that_did_not_arrive_is_listed_too(hub: Hub, site: SiteHome) -> None:
    invitation = hub.invite()
    hub.stop()
    assert refused(lambda: join(site, invitation)) == "unreachable"
    state = site.open_state()
    assert [row.kind for row in state.sent()] == ["join"], "it may have left"
    state.close()


def test_a_site_leaves_and_does_not_start_until_it_is_invited_again(hub: Hub, site: SiteHome) -> None:
    hub.admit(site)
    assert leave(site, "moving house")
    assert_listed(hub, site, "/v1/application", "/v1/leave")
    assert refused(lambda: check_joined(site)) == "site-left"
    assert membership.list_sites(hub.home)[0].reason == "moving house"
    assert states(hub) == {"lyon": "left"}
    assert refused(lambda: join(site, None)) == "site-not-joined"
    hub.admit(site)
    check_joined(site)


@pytest.mark.slow
def test_a_site_leaves_at_once_and_tells_the_coordinator_when_it_can(hub: Hub, site: SiteHome) -> None:
    hub.admit(site)
    hub.stop()
    assert not leave(site)
    assert refused(lambda: check_joined(site)) == "site-left"
    hub.start()
    assert states(hub) == {"lyon": "approved"}
    assert leave(site)
    assert leave(site)
    assert states(hub) == {"lyon": "left"}


def test_an_application_can_be_refused(hub: Hub, site: SiteHome) -> None:
    join(site, hub.invite())
    membership.revoke(hub.home, "lyon", "unknown to us")
    assert refused(lambda: join(site, None)) == "site-revoked"
    assert refused(lambda: hub.approve()) == "member-state"


def test_a_home_that_never_joined_cannot_leave_or_ask(site: SiteHome) -> None:
    assert refused(lambda: leave(site)) == "site-not-joined"
    assert refused(lambda: api_client(site)) == "site-not-joined"
    assert refused(lambda: join(site, None)) == "site-not-joined"


# -- secrets ----------------------------------------------------------------------------------------------


def secrets_of(path: Path) -> list[bytes]:
    """A piece of a private key in every form in which it could be somewhere; the first one is in its file."""
    key = load_pem_private_key(path.read_bytes(), None, unsafe_skip_rsa_key_validation=True)
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # From the middle on: an RSA key begins with its public half.
    return [max(lines[len(lines) // 2 :], key=len) for lines in (path.read_bytes().split(), pem.split())] + [
        der[-32:]
    ]


def everything(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.slow
def test_no_private_key_leaves_its_home(hub: Hub, site: SiteHome) -> None:
    hub.admit(site)
    refresh_roster(site)
    leave(site)
    sent = b"".join(content for _, content in hub.wire)
    assert {path for path, _ in hub.wire} >= {"/v1/application", "/v1/standing", "/v1/roster", "/v1/leave"}
    assert b"BEGIN CERTIFICATE REQUEST" in sent.replace(b"\\n", b"\n")
    for name in ("identity.key", "tls.key"):
        assert secrets_of(site.keys / name)[0] in everything(site.folder)
        for form in secrets_of(site.keys / name):
            assert form not in sent
            assert form not in everything(hub.home.folder)
    for key in hub.home.keys.glob("*.key"):
        for form in secrets_of(key):
            assert form not in everything(site.folder)
            assert form not in everything(hub.folder)


def test_the_coordinator_keeps_no_invitations_secret(hub: Hub) -> None:
    secret = json.loads(hub.invite().read_text())["secret"]
    assert secret.encode() not in everything(hub.home.folder)


def test_all_files_of_both_homes_are_their_owners_alone(hub: Hub, site: SiteHome) -> None:
    hub.admit(site)
    for folder in (hub.home.folder, site.folder):
        for path in (folder, *folder.rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.slow
def test_serving_works_without_the_authoritys_key(hub: Hub, site: SiteHome, tmp_path: Path) -> None:
    key = hub.home.keys / "authority.key"
    key.rename(tmp_path / "safe")
    hub.stop()
    hub.start()
    join(site, hub.invite())
    assert refused(lambda: hub.approve()) == "key-missing"
    (tmp_path / "safe").rename(key)
    hub.approve()
    assert join(site, None).state is MemberState.APPROVED


@pytest.mark.slow
def test_an_exposed_key_stops_everything(hub: Hub, site: SiteHome) -> None:
    invitation = hub.invite()
    (site.keys / "identity.key").chmod(0o644)
    assert refused(lambda: join(site, invitation)) == "key-exposed"
    (hub.home.keys / "authority.key").chmod(0o640)
    (site.keys / "identity.key").chmod(0o600)
    join(site, invitation)
    assert refused(lambda: hub.approve()) == "key-exposed"


# -- homes ------------------------------------------------------------------------------------------------


def test_a_home_is_never_made_over_another(tmp_path: Path, site: SiteHome, hub: Hub) -> None:
    before = everything(site.folder)
    assert refused(lambda: init_site(site.folder)) == "output-exists"
    assert everything(site.folder) == before
    settings = settings_from(name="study", host="127.0.0.1")
    assert refused(lambda: init_coordinator(hub.home.folder, settings)) == "output-exists"


@pytest.mark.slow
def test_a_failed_init_leaves_no_half_home(tmp_path: Path) -> None:
    settings = settings_from(name="study", host="127.0.0.1", database="nonsense")
    assert refused(lambda: init_coordinator(tmp_path / "home", settings)) == "config-invalid"
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"name": "a b"}, "--name"),
        ({"host": "a b"}, "--host"),
        ({"host": "::1"}, "--host"),
        ({"api_port": 0}, "--api-port"),
    ],
)
def test_options_out_of_bounds_are_named(values: dict[str, object], option: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(option)):
        settings_from(**{"name": "study", "host": "localhost", **values})


def test_folders_that_are_no_homes_are_said(tmp_path: Path) -> None:
    assert refused(lambda: CoordinatorHome.open(tmp_path)) == "home-missing"
    assert refused(lambda: read_membership(SiteHome(tmp_path))) == "config-invalid"


def test_times_of_members_are_told(hub: Hub, site: SiteHome) -> None:
    hub.admit(site)
    shown = membership.member_document(membership.list_sites(hub.home)[0])
    assert shown["may_take_part"]
    assert shown["last_seen"] >= shown["since"] - 1
    assert abs(shown["joined"] - time.time()) < 60
    assert not {"identity", "certificate", "request"} & shown.keys()
