# SPDX-License-Identifier: Apache-2.0
import time
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ucadi.errors import FederationError
from ucadi.store.audit import Audit
from ucadi.store.database import Database
from ucadi.store.members import Application, MemberState, MemberStore


@pytest.fixture
def members(database: Database) -> MemberStore:
    return MemberStore(database)


def application(site: str = "lyon", key: str = "key") -> Application:
    return Application(site, "A hospital", key, f"request of {key}", "1.0")


def invite(members: MemberStore, site: str = "lyon", number: str = "i1") -> None:
    members.invite(site, number, "hash", time.time() + 60, "operator")


def admit(members: MemberStore, site: str = "lyon", number: str = "i1") -> None:
    invite(members, site, number)
    members.apply(number, application(site))
    members.approve(site, "key", "certificate", "operator")


def actions(database: Database) -> list[tuple[str, str, str]]:
    return [(entry.actor, entry.action, entry.subject) for entry in Audit(database).entries()]


def test_a_site_is_invited_applies_and_is_approved(members: MemberStore, database: Database) -> None:
    invite(members)
    assert members.site("lyon").state is MemberState.INVITED
    pending = members.apply("i1", application())
    assert (pending.state, pending.identity, pending.joined) == (MemberState.PENDING, "key", None)
    assert members.approved() == set()
    approved = members.approve("lyon", "key", "certificate", "operator")
    assert (approved.state, approved.certificate) == (MemberState.APPROVED, "certificate")
    assert approved.joined is not None
    assert members.approved() == {"lyon"}
    assert actions(database) == [
        ("operator", "invite", "lyon"),
        ("lyon", "apply", "lyon"),
        ("operator", "approve", "lyon"),
    ]
    assert Audit(database).verify() == 3


def test_the_epoch_rises_with_every_change_of_membership(members: MemberStore) -> None:
    epochs = [members.epoch()]
    invite(members)
    members.apply("i1", application())
    epochs.append(members.epoch())
    members.approve("lyon", "key", "certificate", "operator")
    epochs.append(members.epoch())
    members.revoke("lyon", "lost laptop", "operator")
    epochs.append(members.epoch())
    assert epochs == [0, 1, 2, 3]
    epoch, began, sites = members.roster()
    assert (epoch, [site.name for site in sites]) == (3, ["lyon"])
    assert abs(began - time.time()) < 60


def test_a_revoked_site_is_barred_until_it_is_approved_again(members: MemberStore) -> None:
    admit(members)
    assert members.barred() == set()
    members.revoke("lyon", "", "operator")
    assert members.barred() == {"lyon"}
    invite(members, number="i2")
    members.apply("i2", application())
    assert members.barred() == {"lyon"}
    members.approve("lyon", "key", "certificate", "operator")
    assert members.barred() == set()


def test_the_same_application_again_changes_nothing(members: MemberStore, database: Database) -> None:
    invite(members)
    first = members.apply("i1", application())
    assert members.apply("i1", application()) == first
    assert members.epoch() == 1
    assert Audit(database).verify() == 2


def test_an_invitation_is_good_for_one_application(members: MemberStore) -> None:
    invite(members)
    members.apply("i1", application())
    with pytest.raises(FederationError) as caught:
        members.apply("i1", application(key="thief"))
    assert caught.value.code == "invitation-used"
    assert members.site("lyon").identity == "key"


def test_a_newer_invitation_withdraws_the_older(members: MemberStore) -> None:
    invite(members)
    invite(members, number="i2")
    with pytest.raises(FederationError) as caught:
        members.apply("i1", application())
    assert caught.value.code == "invitation-used"
    members.apply("i2", application())


def test_a_revoked_invitation_is_good_for_nothing(members: MemberStore) -> None:
    invite(members)
    members.revoke("lyon", "sent to the wrong people", "operator")
    with pytest.raises(FederationError) as caught:
        members.apply("i1", application())
    assert caught.value.code == "invitation-used"


def test_an_invitation_is_good_for_its_site_only(members: MemberStore) -> None:
    invite(members)
    invite(members, "milan", "i2")
    with pytest.raises(FederationError) as caught:
        members.apply("i1", application("milan"))
    assert caught.value.code == "invitation-used"


@pytest.mark.parametrize("name", ["lyon", "Lyon"])
def test_a_member_is_not_invited_again_under_any_spelling(members: MemberStore, name: str) -> None:
    admit(members)
    with pytest.raises(FederationError) as caught:
        invite(members, name, "i2")
    assert caught.value.code == "member-state"


def test_keys_that_changed_after_the_look_are_not_approved(members: MemberStore) -> None:
    invite(members)
    members.apply("i1", application())
    with pytest.raises(FederationError) as caught:
        members.approve("lyon", "another key", "certificate", "operator")
    assert caught.value.code == "member-state"


def test_a_site_that_left_is_no_member(members: MemberStore, database: Database) -> None:
    admit(members)
    assert members.leave("lyon", "no time").reason == "no time"
    assert members.approved() == set()
    for end in (lambda: members.leave("lyon", ""), lambda: members.revoke("lyon", "", "operator")):
        with pytest.raises(FederationError) as caught:
            end()
        assert caught.value.code == "member-state"
    assert actions(database)[-1] == ("lyon", "leave", "lyon")


def test_an_unknown_site_is_said(members: MemberStore) -> None:
    for act in (
        lambda: members.site("x"),
        lambda: members.revoke("x", "", "operator"),
        lambda: members.leave("x", ""),
        lambda: members.approve("x", "", "", "operator"),
    ):
        with pytest.raises(FederationError) as caught:
            act()
        assert caught.value.code == "member-unknown"


def test_a_request_counts_once_and_is_forgotten_when_its_date_refuses_it(members: MemberStore) -> None:
    admit(members)
    now = time.time()
    assert members.note_request("lyon", "n", now, forget_before=now - 600)
    assert not members.note_request("lyon", "n", now, forget_before=now - 600)
    assert members.note_request("milan", "n", now, forget_before=now - 600)
    assert members.note_request("lyon", "m", now, forget_before=now + 1)
    assert members.note_request("lyon", "n", now, forget_before=now - 600)
    seen = members.site("lyon").last_seen
    assert seen is not None
    assert seen >= now


def test_what_was_kept_is_there_after_opening_again(new_url: Callable[[], str]) -> None:
    url = new_url()
    database = Database.open(url)
    admit(MemberStore(database))
    before = MemberStore(database).sites()
    database.close()
    database = Database.open(url)
    assert MemberStore(database).sites() == before
    database.close()


def test_whatever_happens_in_whatever_order_roster_and_log_agree(new_url: Callable[[], str]) -> None:
    sites = st.sampled_from(["lyon", "milan"])

    class Membership(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.database = Database.open(new_url())
            self.members = MemberStore(self.database)
            self.changes = 0
            self.invitations: dict[str, str] = {}

        def attempt(self, act: Callable[[], object], *, changes: int = 1) -> None:
            code = ""
            try:
                act()
            except FederationError as error:
                code = error.code
            assert code in ("", "member-state", "member-unknown", "invitation-used")
            self.changes += 0 if code else changes

        @rule(site=sites)
        def invite(self, site: str) -> None:
            number = f"i{len(self.invitations)}"
            self.invitations[site] = number
            self.attempt(lambda: invite(self.members, site, number), changes=0)

        @rule(site=sites)
        def apply(self, site: str) -> None:
            before = self.members.epoch()
            self.attempt(
                lambda: self.members.apply(self.invitations.get(site, ""), application(site)), changes=0
            )
            self.changes += self.members.epoch() - before

        @rule(site=sites)
        def approve(self, site: str) -> None:
            self.attempt(lambda: self.members.approve(site, "key", "certificate", "operator"))

        @rule(site=sites)
        def revoke(self, site: str) -> None:
            self.attempt(lambda: self.members.revoke(site, "", "operator"))

        @rule(site=sites)
        def leave(self, site: str) -> None:
            self.attempt(lambda: self.members.leave(site, ""))

        @invariant()
        def epochs_count_changes_and_no_ended_site_is_approved(self) -> None:
            assert self.members.epoch() == self.changes
            assert not self.members.approved() & self.members.barred()
            logged = [
                entry.details["epoch"] for entry in Audit(self.database).entries() if "epoch" in entry.details
            ]
            assert logged == list(range(1, self.changes + 1))

        def teardown(self) -> None:
            Audit(self.database).verify()
            self.database.close()

    from hypothesis import settings

    run_state_machine_as_test(
        Membership, settings=settings(max_examples=6, stateful_step_count=20, deadline=None)
    )
