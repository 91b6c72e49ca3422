# SPDX-License-Identifier: Apache-2.0
"""The database: whole transactions or nothing, one writer at a time, and every way to be gone."""

import contextlib
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from postgres_server import PostgresServer
from ucadi.errors import ConfigError, ExitStatus, StoreError, StoreUnreachableError, UcadiError
from ucadi.store.database import METADATA, Database, patiently

Children = Callable[..., "subprocess.Popen[str]"]

NOTES = """
import sqlalchemy as sa, sys, time
from ucadi.store.database import METADATA, Database
columns = sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer)
NOTES = sa.Table("test_notes", METADATA, *columns)
"""


@pytest.fixture
def notes() -> Iterator[sa.Table]:
    """A table that only these tests know."""
    yield sa.Table(
        "test_notes", METADATA, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer)
    )
    METADATA.remove(METADATA.tables["test_notes"])


def count(database: Database, table: sa.Table) -> int:
    with database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def insert_then_fail(connection: sa.Connection, table: sa.Table) -> None:
    connection.execute(table.insert(), [{"n": 3}])
    raise InterruptedError


def everything_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


# -- transactions -----------------------------------------------------------------------------------------


def test_a_transaction_is_kept_as_a_whole_or_not_at_all(database_url, notes):
    database = Database.open(database_url)
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 1}, {"n": 2}])
    with pytest.raises(InterruptedError), database.begin() as connection:
        insert_then_fail(connection, notes)
    database.close()
    again = Database.open(database_url)
    assert count(again, notes) == 2
    again.close()


def test_a_reading_transaction_sees_one_state_and_cannot_write(database, notes):
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 1}])

    def add() -> None:
        with database.begin() as other:
            other.execute(notes.insert(), [{"n": 2}])

    with database.read() as connection:
        before = connection.execute(sa.select(notes)).all()
        writer = threading.Thread(target=add)
        writer.start()
        writer.join(20)
        assert not writer.is_alive(), "a reader must not hold up the writer"
        assert connection.execute(sa.select(notes)).all() == before
    assert count(database, notes) == 2
    with pytest.raises((UcadiError, sa.exc.DBAPIError)), database.read() as connection:
        connection.execute(notes.insert(), [{"n": 3}])
    assert count(database, notes) == 2


def test_a_transaction_inside_another_is_a_fault_of_the_program_at_once(database):
    with database.begin(), pytest.raises(RuntimeError), database.begin():
        pass
    with database.begin():
        pass


def test_a_row_that_contradicts_another_is_a_conflict(database, notes):
    with pytest.raises(StoreError) as caught, database.begin() as connection:
        connection.execute(notes.insert(), [{"id": 1, "n": 1}, {"id": 1, "n": 2}])
    assert caught.value.code == "store-conflict"
    assert count(database, notes) == 0


def test_tables_of_modules_that_are_loaded_later_are_made_too(database, notes):
    assert count(database, notes) == 0


@pytest.mark.e2e
def test_processes_that_open_an_empty_database_at_once_all_succeed(database_url, start_child):
    code = NOTES + "Database.open(sys.argv[1]).close(); print('open')"
    children = [start_child(code, database_url) for _ in range(4)]
    assert [child.communicate(timeout=60) for child in children] == [("open\n", "")] * 4


@pytest.mark.e2e
def test_two_processes_that_read_and_write_never_lose_an_increment(database_url, notes, start_child):
    database = Database.open(database_url)
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"id": 1, "n": 0}])
    code = (
        NOTES
        + """
database = Database.open(sys.argv[1])
for _ in range(50):
    with database.begin() as c:
        n = c.execute(sa.select(NOTES.c.n)).scalar_one()
        c.execute(NOTES.update().values(n=n + 1))
"""
    )
    children = [start_child(code, database_url) for _ in range(3)]
    assert [child.communicate(timeout=120)[1] for child in children] == [""] * 3
    with database.read() as connection:
        assert connection.execute(sa.select(notes.c.n)).scalar_one() == 150
    database.close()


def test_a_writer_that_is_killed_inside_a_transaction_loses_nothing_and_leaves_nothing(
    database_url, notes, start_child
):
    code = (
        NOTES
        + """
database = Database.open(sys.argv[1])
with database.begin() as c:
    c.execute(NOTES.insert(), [{"n": i} for i in range(100)])
with database.begin() as c:
    c.execute(NOTES.insert(), [{"n": i} for i in range(50_000)])
    print("inside", flush=True)
    time.sleep(600)
"""
    )
    child = start_child(code, database_url)
    assert child.stdout.readline() == "inside\n"
    child.kill()
    child.wait()
    database = Database.open(database_url)
    assert count(database, notes) == 100
    started = time.monotonic()
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 1}])
    assert time.monotonic() - started < 10, "the dead writer's lock must be gone"
    database.check()
    database.close()


# -- layouts ----------------------------------------------------------------------------------------------


def test_a_layout_of_another_release_is_refused(database_url):
    database = Database.open(database_url)
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE ucadi_layout SET version = 99")
    database.close()
    with pytest.raises(StoreError, match="99") as caught:
        Database.open(database_url)
    assert caught.value.code == "store-version"


@pytest.mark.parametrize("damage", ["DROP TABLE ucadi_layout", "DELETE FROM ucadi_layout"])
def test_tables_without_a_layout_are_refused(database_url, notes, damage):
    database = Database.open(database_url)
    with database.begin() as connection:
        connection.exec_driver_sql(damage)
    database.close()
    with pytest.raises(StoreError) as caught:
        Database.open(database_url)
    assert caught.value.code in ("store-damaged", "store-version")


def test_a_table_that_vanished_is_called_damage(database, notes):
    count(database, notes)
    with database.begin() as connection:
        notes.drop(connection)
    with pytest.raises(StoreError) as caught:
        count(database, notes)
    assert caught.value.code == "store-damaged"


# -- gone and back ----------------------------------------------------------------------------------------


def test_a_database_that_is_gone_is_named_and_works_again_when_it_is_back(database, notes, outage):
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 1}])
    with outage():
        for _ in range(2):
            with pytest.raises(StoreUnreachableError) as caught:
                count(database, notes)
        assert caught.value.code == "store-unreachable"
        assert caught.value.exit_status == ExitStatus.UNREACHABLE
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 2}])
    assert count(database, notes) == 2


def test_a_database_that_goes_in_the_middle_of_a_transaction_keeps_nothing_of_it(database, notes, outage):
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 1}])
    with contextlib.suppress(StoreError), contextlib.ExitStack() as stack, database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 2}])
        stack.enter_context(outage())
        connection.execute(notes.insert(), [{"n": 3}])
    # A moved file goes on being written by who holds it open; a server that fell forgets what was under way.
    assert count(database, notes) in (1, 3)


def test_patience_outlasts_an_outage_and_says_so_once(database, notes, outage, caplog):
    caplog.set_level(logging.INFO, "ucadi")

    def add() -> str:
        with database.begin() as connection:
            connection.execute(notes.insert(), [{"n": 1}])
        return "done"

    results = []
    with outage():
        thread = threading.Thread(target=lambda: results.append(patiently(add, 60.0)))
        thread.start()
        time.sleep(1.5)
        assert thread.is_alive()
    thread.join(60)
    assert results == ["done"]
    assert count(database, notes) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for the database",
        "the database is back",
    ]


def failing(code: str) -> Callable[[], None]:
    def action() -> None:
        raise StoreError(code, "Once more.")

    return action


def test_patience_ends():
    started = time.monotonic()
    with pytest.raises(StoreError, match="Once more"):
        patiently(failing("disk-full"), 0.5)
    assert 0.4 < time.monotonic() - started < 5


def test_patience_ends_at_once_when_it_is_stopped():
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    with pytest.raises(StoreError):
        patiently(failing("store-unreachable"), 60.0, stop=stop)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("code", ["store-conflict", "store-damaged", "store-version", "audit-broken"])
def test_patience_is_not_for_what_waiting_cannot_mend(code):
    started = time.monotonic()
    with pytest.raises(StoreError):
        patiently(failing(code), 60.0)
    assert time.monotonic() - started < 5


# -- URLs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite://",
        "sqlite:///state.sqlite",
        "sqlite:////somewhere/state.sqlite?mode=memory",
        "mysql://user:geheim@host/name",
        "nonsense://user:geheim@host/name",
        "postgresql:/user:geheim@host:port/name",
        "user:geheim@host",
        "postgresql://user:geheim@host:port/name",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigError) as caught:
        Database.open(url)
    assert "geheim" not in everything_said(caught.value)
    assert "sqlite:////" in caught.value.cure


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:geheim@127.0.0.1:1/name",
        "postgresql+psycopg://user@127.0.0.1:1/name?password=geheim&sslmode=disable",
        "postgresql+psycopg2://user:geheim@127.0.0.1:1/name",
    ],
)
def test_no_error_shows_the_password_of_a_url(url):
    with pytest.raises(StoreUnreachableError, match=r"127\.0\.0\.1:1/name") as caught:
        Database.open(url)
    assert "geheim" not in everything_said(caught.value)


@pytest.mark.e2e
def test_the_password_may_stand_in_the_environment(postgres_server: PostgresServer, monkeypatch):
    url = postgres_server.new_database()
    monkeypatch.setenv("PGPASSWORD", postgres_server.password)
    database = Database.open(url.replace(f":{postgres_server.password}@", "@"))
    with database.begin():
        pass
    database.close()


@pytest.mark.e2e
def test_a_wrong_password_is_said_and_not_shown(postgres_server: PostgresServer):
    url = postgres_server.new_database().replace(postgres_server.password, "geheim")
    with pytest.raises(StoreError, match="password") as caught:
        Database.open(url)
    assert "geheim" not in everything_said(caught.value)


@pytest.mark.e2e
def test_values_do_not_stand_in_the_errors_of_the_database(database, notes):
    with pytest.raises(StoreError) as caught, database.begin() as connection:
        connection.execute(notes.insert(), [{"id": 4711_0815, "n": 1}, {"id": 4711_0815, "n": 2}])
    assert "[parameters" not in everything_said(caught.value) or "hidden" in everything_said(caught.value)


@pytest.mark.e2e
def test_a_session_waits_for_the_servers_disk_but_for_nobody_for_ever(postgres_server: PostgresServer):
    database = Database.open(postgres_server.new_database())
    names = ("synchronous_commit", "lock_timeout", "idle_in_transaction_session_timeout")
    with database.begin() as connection:
        found = [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]
    assert found == ["on", "30s", "1min"]
    database.close()


def test_a_missing_driver_is_said_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"ucadi\[postgres\]"):
        Database.open("postgresql://user@127.0.0.1:1/name")


@pytest.mark.e2e
def test_a_server_that_lost_its_tables_is_damaged_and_not_filled_again(
    postgres_server: PostgresServer, notes
):
    database = Database.open(postgres_server.new_database())
    with database.begin() as connection:
        METADATA.drop_all(connection)
    with pytest.raises(StoreError) as caught:
        count(database, notes)
    assert caught.value.code == "store-damaged"
    database.close()


# -- SQLite's file ----------------------------------------------------------------------------------------


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_nobody_else_may_read_the_file_or_its_companions(tmp_path, notes):
    database = Database.open(f"sqlite:///{tmp_path}/state.sqlite")
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 1}])
    assert modes(tmp_path) == dict.fromkeys(("state.sqlite", "state.sqlite-wal", "state.sqlite-shm"), 384)
    database.close()
    (tmp_path / "state.sqlite").chmod(0o644)
    Database.open(f"sqlite:///{tmp_path}/state.sqlite").close()
    assert modes(tmp_path)["state.sqlite"] == 0o600


def test_every_connection_is_set_for_safety(tmp_path):
    database = Database.open(f"sqlite:///{tmp_path}/odd %41?#name.sqlite".replace("?", "%3F"))
    with database.begin() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    database.close()


def test_a_folder_that_is_not_there_is_unreachable(tmp_path):
    with pytest.raises(StoreUnreachableError) as caught:
        Database.open(f"sqlite:///{tmp_path}/nowhere/state.sqlite")
    assert caught.value.exit_status == ExitStatus.UNREACHABLE
    assert not (tmp_path / "nowhere").exists()


def test_a_file_that_is_no_database_is_damaged_and_stays_as_it_is(tmp_path):
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError) as caught:
        Database.open(f"sqlite:///{path}")
    assert caught.value.code == "store-damaged"
    assert path.read_bytes() == b"something else entirely" * 100


def test_damaged_pages_are_found(tmp_path, notes):
    path = tmp_path / "state.sqlite"
    database = Database.open(f"sqlite:///{path}")
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": i} for i in range(20_000)])
    database.check()
    database.close()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 8192)
    database = Database.open(f"sqlite:///{path}")
    with pytest.raises(StoreError) as caught:
        database.check()
    assert caught.value.code == "store-damaged"
    with pytest.raises(StoreError) as caught:
        count(database, notes)
    assert caught.value.code == "store-damaged"
    database.close()


def test_a_file_that_vanished_is_never_replaced_by_an_empty_one(tmp_path, notes):
    path = tmp_path / "state.sqlite"
    database = Database.open(f"sqlite:///{path}")
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 1}])
    path.unlink()
    with pytest.raises(StoreUnreachableError), database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 2}])
    assert not path.exists()
    database.close()


def test_an_empty_file_in_its_place_is_not_taken_for_the_database(tmp_path, notes):
    path = tmp_path / "state.sqlite"
    database = Database.open(f"sqlite:///{path}")
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 1}])
    folder = tmp_path.rename(tmp_path.with_name("unmounted"))
    tmp_path.mkdir()
    with pytest.raises(StoreUnreachableError):
        Database.open(f"sqlite:///{path}", must_exist=True)
    assert not path.exists()
    path.touch()
    for ask in (
        lambda: count(database, notes),
        lambda: Database.open(f"sqlite:///{path}", must_exist=True),
    ):
        with pytest.raises(StoreUnreachableError, match="empty"):
            ask()
    shutil.rmtree(tmp_path)
    folder.rename(tmp_path)
    assert count(database, notes) == 1
    Database.open(f"sqlite:///{path}", must_exist=True).close()
    database.close()


def test_a_restored_backup_takes_the_place_of_the_open_file(tmp_path, notes):
    path = tmp_path / "state.sqlite"
    database = Database.open(f"sqlite:///{path}")
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 1}])
    source, target = sqlite3.connect(path), sqlite3.connect(tmp_path / "backup.sqlite")
    with contextlib.closing(source), contextlib.closing(target):
        source.backup(target)
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 2}])
    (tmp_path / "backup.sqlite").replace(path)
    for companion in ("-wal", "-shm"):
        path.with_name(path.name + companion).unlink(missing_ok=True)
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 3}])
    with database.read() as connection:
        assert connection.execute(sa.select(notes.c.n).order_by(notes.c.n)).scalars().all() == [1, 3]
    database.close()


def test_a_file_that_cannot_grow_is_a_full_disk(tmp_path, notes):
    database = Database.open(f"sqlite:///{tmp_path}/state.sqlite")
    with database.begin() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # of this connection, which comes back
    with pytest.raises(StoreError) as caught, database.begin() as connection:
        connection.execute(notes.insert(), [{"n": i} for i in range(20_000)])
    assert caught.value.code == "disk-full"
    assert count(database, notes) == 0
    database.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.e2e
def test_a_disk_that_turns_read_only_is_unreachable_for_writers(small_disk, notes):
    database = Database.open(f"sqlite:///{small_disk}/state.sqlite")
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 1}])
    database.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreUnreachableError), database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 2}])
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": 2}])
    assert count(database, notes) == 2
    database.close()


@pytest.mark.e2e
def test_a_full_disk_is_named_loses_nothing_and_is_outlasted(small_disk, notes):
    database = Database.open(f"sqlite:///{small_disk}/state.sqlite")
    with database.begin() as connection:
        connection.execute(notes.insert(), [{"n": i} for i in range(100)])
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))

    def add() -> None:
        with database.begin() as connection:
            connection.execute(notes.insert(), [{"n": i} for i in range(20_000)])

    for action in (add, lambda: Database.open(f"sqlite:///{small_disk}/another.sqlite")):
        with pytest.raises(StoreError) as caught:
            action()
        assert caught.value.code == "disk-full"
    assert count(database, notes) == 100
    threading.Timer(1.0, filler.unlink).start()
    patiently(add, 60.0)
    assert count(database, notes) == 20_100
    database.check()
    database.close()
