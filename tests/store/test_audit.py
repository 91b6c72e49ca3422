# SPDX-License-Identifier: Apache-2.0
"""The audit log: whatever is changed, taken out, put in or moved afterwards is found."""

import math
import re

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ucadi.errors import StoreError
from ucadi.store.audit import Audit, AuditHead
from ucadi.store.database import METADATA, Database

TABLE = METADATA.tables["audit"]

APPEND = """
import sys
from ucadi.store.audit import Audit
from ucadi.store.database import Database
database = Database.open(sys.argv[1])
audit = Audit(database)
for n in range(int(sys.argv[3])):
    with database.begin() as connection:
        audit.append(connection, sys.argv[2], "counted", "numbers", {"n": n})
        audit.append(connection, sys.argv[2], "counted-on", "numbers", {})
    print(n, flush=True)
"""


@pytest.fixture
def audit(database: Database) -> Audit:
    return Audit(database)


def write(database: Database, *details: dict) -> None:
    audit = Audit(database)
    with database.begin() as connection:
        for each in details:
            audit.append(connection, "coordinator", "site-approved", "Site_A", each)


def execute(database: Database, statement: sa.Executable) -> None:
    with database.begin() as connection:
        connection.execute(statement)


def test_entries_come_back_as_they_were_written(database, audit):
    write(database, {"x": 1.5, "none": None, "list": [1, "ä\x00\ud800"], "deep": {"b": 1, "a": True}})
    entry = audit.entries()[0]
    assert (entry.seq, entry.actor, entry.action, entry.subject) == (
        1,
        "coordinator",
        "site-approved",
        "Site_A",
    )
    assert entry.details == {"x": 1.5, "none": None, "list": [1, "ä\x00\ud800"], "deep": {"b": 1, "a": True}}
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.time)
    assert audit.verify() == 1


def test_entries_are_read_from_where_one_stopped(database, audit):
    write(database, *({"n": n} for n in range(5)))
    assert [entry.details["n"] for entry in audit.entries(after=3)] == [3, 4]
    assert [entry.seq for entry in audit.entries(after=1, limit=2)] == [2, 3]


def test_an_empty_log_is_whole(audit):
    assert audit.verify() == 0
    assert audit.verify(audit.head()) == 0


def test_an_entry_is_there_only_if_its_transaction_is(database, audit):
    with pytest.raises(InterruptedError), database.begin() as connection:
        append_then_fail(audit, connection)
    write(database, {})
    assert audit.verify() == 1


def append_then_fail(audit: Audit, connection: sa.Connection) -> None:
    audit.append(connection, "coordinator", "tried", "it", {})
    raise InterruptedError


@pytest.mark.parametrize(
    ("word", "details"),
    [
        ("a\nb", {}),
        ("\x00", {}),
        ("\ud800", {}),
        ("x" * 201, {}),
        ("fine", {"n": math.nan}),
        ("fine", {"n": b"bytes"}),
    ],
)
def test_what_no_database_can_keep_is_refused(database, audit, word, details):
    with pytest.raises(ValueError), database.begin() as connection:
        audit.append(connection, "coordinator", "did", word, details)
    assert audit.verify() == 0


# -- what is found ----------------------------------------------------------------------------------------

VALUES = {
    "time": st.just("2020-01-01T00:00:00.000Z"),
    "actor": st.sampled_from(["", "site", "coordinator "]),
    "action": st.sampled_from(["", "site-revoked"]),
    "subject": st.sampled_from(["", "Site_B", "site_A"]),
    "details": st.sampled_from(["", "{}", '{"n": 1}', '{"n":1,"n":1}', "[]", "null", "{", '{"n":1e0}']),
    "hash": st.sampled_from(["", "0" * 64]),
}


@st.composite
def meddling(draw: st.DrawFn) -> tuple[int, list[sa.Executable], int]:
    """How long the log is, what is done to it, and the first entry that is wrong after it."""
    length = draw(st.integers(2, 6))
    seq = draw(st.integers(1, length))
    here = seq == TABLE.c.seq
    match draw(st.sampled_from(["edit", "delete", "cut the front", "swap", "renumber", "insert"])):
        case "edit":
            column = draw(st.sampled_from(sorted(VALUES)))
            return length, [TABLE.update().where(here).values({column: draw(VALUES[column])})], seq
        case "delete":
            seq = min(seq, length - 1)  # the last one is only missed against a head
            return length, [TABLE.delete().where(seq == TABLE.c.seq)], seq
        case "cut the front":
            seq = min(seq, length - 1)
            renumbered = TABLE.update().values(seq=TABLE.c.seq - seq)
            return length, [TABLE.delete().where(TABLE.c.seq <= seq), renumbered], 1
        case "swap":
            other = seq % length + 1
            steps = [(seq, -1), (other, seq), (-1, other)]
            return (
                length,
                [TABLE.update().where(a == TABLE.c.seq).values(seq=b) for a, b in steps],
                min(seq, other),
            )
        case "renumber":
            return length, [TABLE.update().where(here).values(seq=draw(st.sampled_from([0, -5])))], 1
    late = [TABLE.update().where(TABLE.c.seq >= seq).values(seq=-TABLE.c.seq - 1)]
    late.append(TABLE.update().where(TABLE.c.seq < 0).values(seq=-TABLE.c.seq))
    copied = [sa.literal(seq), *(column for column in TABLE.c if column.name != "seq")]
    source = sa.select(*copied).where((seq + 1) == TABLE.c.seq)
    return length, [*late, TABLE.insert().from_select(list(TABLE.c), source)], seq + 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(meddled=meddling())
def test_whatever_is_done_to_the_log_is_found(database, meddled):
    length, statements, first_wrong = meddled
    execute(database, TABLE.delete())
    write(database, *({"n": n} for n in range(length)))
    audit = Audit(database)
    assert audit.verify() == length
    for statement in statements:
        execute(database, statement)
    with pytest.raises(StoreError, match=rf"Entry {first_wrong} ") as caught:
        audit.verify()
    assert caught.value.code == "audit-broken"


def test_another_form_of_the_same_values_is_found(database, audit):
    write(database, {"n": 1})
    execute(database, TABLE.update().values(details='{"n": 1}'))
    with pytest.raises(StoreError, match="Entry 1 "):
        audit.verify()
    with pytest.raises(StoreError, match="Entry 1 "):
        audit.entries()


def test_values_of_another_type_are_found(tmp_path):
    database = Database.open(f"sqlite:///{tmp_path}/state.sqlite")  # only SQLite lets them in
    for column in ("time", "actor", "details", "hash"):
        execute(database, TABLE.delete())
        write(database, {})
        with database.begin() as connection:
            blob = sa.cast(TABLE.c[column], sa.LargeBinary)
            connection.execute(TABLE.update().values({column: blob}))
        with pytest.raises(StoreError, match="Entry 1 "):
            Audit(database).verify()
    database.close()


def test_a_cut_end_is_missed_only_against_a_head_that_was_written_down(database, audit):
    write(database, {}, {}, {})
    head = audit.head()
    write(database, {})
    assert audit.verify(head) == 4, "the log may have grown since"
    execute(database, TABLE.delete().where(TABLE.c.seq >= 3))
    assert audit.verify() == 2
    with pytest.raises(StoreError, match=r"Entry 3 .* had 3"):
        audit.verify(head)


def test_a_log_written_anew_is_found_against_a_head(database, audit):
    write(database, {"n": 1}, {"n": 2})
    head = audit.head()
    execute(database, TABLE.delete())
    assert audit.head() == AuditHead()
    write(database, {"n": 1}, {"n": 3}, {"n": 4})
    assert audit.verify() == 3
    with pytest.raises(StoreError, match="Entry 2 "):
        audit.verify(head)


# -- several processes ------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_processes_that_append_at_once_make_one_chain(database_url, start_child):
    children = [start_child(APPEND, database_url, f"process-{n}", 40) for n in range(3)]
    assert [child.communicate(timeout=120)[1] for child in children] == [""] * 3
    database = Database.open(database_url)
    assert Audit(database).verify() == 3 * 40 * 2
    actors = [entry.actor for entry in Audit(database).entries()]
    assert actors[::2] == actors[1::2], "a transaction's entries stand together"
    database.close()


@pytest.mark.e2e
def test_a_process_that_is_killed_leaves_a_whole_chain(database_url, start_child):
    survivor = start_child(APPEND, database_url, "survivor", 60)
    said = []
    for _ in range(3):
        child = start_child(APPEND, database_url, "victim", 100_000)
        said.append(max(int(child.stdout.readline()) for _ in range(20)))
        child.kill()
        child.wait()
    assert survivor.communicate(timeout=120)[1] == ""
    database = Database.open(database_url)
    audit = Audit(database)
    audit.verify()
    entries = audit.entries()
    assert sum(entry.actor == "survivor" for entry in entries) == 120
    assert sum(entry.actor == "victim" for entry in entries) >= 2 * sum(n + 1 for n in said), "said is kept"
    database.close()
