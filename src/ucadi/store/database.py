# SPDX-License-Identifier: Apache-2.0
"""The database behind a coordinator or a site: one SQLite file, or a PostgreSQL server by URL.

Both behave alike: one writer at a time, and a transaction that has returned is safe on disk. Several
processes may work on one database at once. A `Database` belongs to the process that opened it, not to a fork.
"""

import errno
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ucadi.errors import ConfigError, StoreError, StoreUnreachableError
from ucadi.logs import event, get_logger

__all__ = ["METADATA", "STORE_VERSION", "Database", "patiently"]

_LOG = get_logger("store.database")
_Result = TypeVar("_Result")

STORE_VERSION = 1
"""Number of the tables' layout. A database with another number is refused."""

METADATA = sa.MetaData()
"""The tables of all modules of this package."""

_LAYOUT = sa.Table(
    "ucadi_layout",
    METADATA,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

_BUSY_S = 30
"""How long a transaction waits for the one that writes before it gives up."""

_ROOM_BYTES = 1 << 20
"""With less free space than this, a failed write is the full disk's fault."""

_WRITER_LOCK = 0x75636164  # "ucad": any number does, as long as all processes take the same
_SECRET_OPTIONS = {"password", "sslpassword", "passfile", "oauth_client_secret"}

_LONGEST_PAUSE_S = 15.0


class Database:
    """An open database; made by `Database.open`. Threads may share it."""

    def __init__(self, url: sa.URL) -> None:
        self._path = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
        self.name = _printable(url)
        """The URL without passwords, for messages."""
        self._identity: tuple[int, int] | None = None
        self._tables: frozenset[str] = frozenset()
        self._inside = threading.local()
        if self._path is None:
            self._writer = self._reader = _postgres_engine(url)
        else:
            self._writer = _sqlite_engine(self._path, is_reader=False)
            self._reader = _sqlite_engine(self._path, is_reader=True)

    @classmethod
    def open(cls, url: str, *, must_exist: bool = False) -> "Database":
        """Open a database and make the tables that it lacks.

        Args:
            url: ``sqlite:////absolute/path`` or ``postgresql://user@host/name``. A password may stand in the
                environment (``PGPASSWORD``) or in ``~/.pgpass`` instead.
            must_exist: Refuse an empty one. It is what a program finds whose disk is not mounted.

        Raises:
            ConfigError: If it is no such URL.
            StoreError: ``store-unreachable``, ``store-version`` for a layout of another release,
                ``store-damaged``, or ``disk-full``.
        """
        database = cls(_parse(url))
        try:
            if database._path is not None:
                _make_private_file(database._path, must_exist=must_exist)
            database._prepare(may_be_empty=not must_exist)
        except OSError as error:
            raise database._away(error) from error
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Let go of all connections. The next transaction makes new ones."""
        self._writer.dispose()
        self._reader.dispose()

    def begin(self) -> AbstractContextManager[sa.Connection]:
        """Return a transaction that may write: all of it is on disk when the block ends, or nothing.

        No other process writes meanwhile, so keep it short and do not open another one inside.

        Raises:
            StoreError: ``store-unreachable``, ``disk-full``, ``store-damaged``, or ``store-conflict`` when a
                row contradicts another.
        """
        return self._transaction(self._writer)

    def read(self) -> AbstractContextManager[sa.Connection]:
        """Return a transaction that sees one unchanging state and holds nobody up; it cannot write.

        Raises:
            StoreError: As `begin`.
        """
        return self._transaction(self._reader, is_reader=True)

    def check(self) -> None:
        """Read the whole database for damage; a matter of seconds per gigabyte. PostgreSQL does so itself.

        Raises:
            StoreError: ``store-damaged``.
        """
        if self._path is None:
            return
        with self.read() as connection:
            said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if said != "ok":
            raise self._damaged(str(said))

    @contextmanager
    def _transaction(self, engine: sa.Engine, *, is_reader: bool = False) -> Iterator[sa.Connection]:
        """Open a transaction on checked ground and name what goes wrong."""
        if self._path is not None:
            self._check_place(self._path)
        if self._tables != METADATA.tables.keys():
            self._prepare(may_be_empty=False)
        with self._raw_transaction(engine, is_reader) as connection:
            yield connection

    @contextmanager
    def _raw_transaction(self, engine: sa.Engine, is_reader: bool) -> Iterator[sa.Connection]:
        """Open a transaction and name what goes wrong."""
        if getattr(self._inside, "is_open", False):
            raise RuntimeError("a transaction is open in this thread already")
        self._inside.is_open = True
        try:
            with engine.connect() as connection, connection.begin():
                if self._path is not None:
                    # A transaction that may write must say so first: SQLite cannot wait for the lock later.
                    connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")
                elif is_reader:
                    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                else:
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")
                yield connection
        except (DBAPIError, PoolTimeoutError) as error:
            raise self._explain(error, is_reader) from error
        finally:
            self._inside.is_open = False

    def _prepare(self, *, may_be_empty: bool) -> None:
        """Check the layout's number and make missing tables; several processes may do so at once."""
        with self._raw_transaction(self._writer, is_reader=False) as connection:
            found = set(sa.inspect(connection).get_table_names()) & METADATA.tables.keys()
            if found and _LAYOUT.name not in found:
                raise self._damaged(f"it has {', '.join(sorted(found))} but not {_LAYOUT.name}")
            if not found and not may_be_empty:
                raise self._unreachable("it is empty, which it was not before")
            METADATA.create_all(connection)
            version = connection.execute(sa.select(_LAYOUT.c.version)).scalar()
            if version is None and not found:
                version = STORE_VERSION
                connection.execute(_LAYOUT.insert().values(id=1, version=version))
        if version != STORE_VERSION:
            raise StoreError(
                "store-version", f"{self.name} has layout {version}, this release works with {STORE_VERSION}."
            )
        if self._path is not None:
            self._identity = _identity(self._path)
        self._tables = frozenset(METADATA.tables)

    def _check_place(self, path: Path) -> None:
        """See that the file is still the one that connections hold, or what they write would be lost."""
        try:
            identity = _identity(path)
        except OSError as error:
            self.close()
            raise self._away(error) from error
        if identity != self._identity:
            self.close()
            self._prepare(may_be_empty=False)

    def _explain(self, error: DBAPIError | PoolTimeoutError, is_reader: bool) -> Exception:
        """Return what a driver's error means; the error itself when it is a fault of this program."""
        if isinstance(error, PoolTimeoutError):
            return self._unreachable("too many threads wait for it")
        words = str(error.orig).strip().split("\n")[0]
        if isinstance(error, IntegrityError):
            return StoreError("store-conflict", f"{self.name}: {words}.")
        is_file = self._path is not None
        code = _sqlite_meaning(error.orig, is_reader) if is_file else _postgres_meaning(error)
        if code == "store-unreachable" and self._has_no_room():
            code = "disk-full"
        match code:
            case "store-unreachable":
                return self._unreachable(words)
            case "disk-full":
                return StoreError("disk-full", f"{self.name}: {words}.")
            case "store-damaged":
                return self._damaged(words)
        return error

    def _has_no_room(self) -> bool:
        """Tell whether the file's disk is full."""
        try:
            return self._path is not None and shutil.disk_usage(self._path.parent).free < _ROOM_BYTES
        except OSError:
            return False

    def _away(self, error: OSError) -> StoreError:
        """Return what the operating system's error about the file means."""
        words = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreError("disk-full", f"{self.name}: {words}.")
        return self._unreachable(words)

    def _unreachable(self, words: str) -> StoreError:
        """Return the error of a database that does not answer."""
        return StoreUnreachableError("store-unreachable", f"{self.name}: {words}.")

    def _damaged(self, words: str) -> StoreError:
        """Return the error of a database that cannot be relied on."""
        return StoreError("store-damaged", f"{self.name}: {words}.")


def patiently(
    action: Callable[[], _Result], patience_s: float, *, stop: threading.Event | None = None
) -> _Result:
    """Do something with a database, again and again while it is gone or its disk is full.

    An action whose connection broke may have been done: it must be one that may be done twice.

    Args:
        action: Does one or several whole transactions.
        patience_s: How long to go on trying, in seconds.
        stop: Ends the waiting early.

    Raises:
        StoreError: The last one, when the patience is over or ``stop`` was set.
    """
    stop = stop or threading.Event()
    started, pause_s, failures = time.monotonic(), 0.1, 0
    while True:
        try:
            result = action()
        except StoreError as error:
            if error.code not in ("store-unreachable", "disk-full"):
                raise
            left_s = started + patience_s - time.monotonic()
            if left_s <= 0:
                raise
            if not failures:
                event(_LOG, "waiting for the database", code=error.code, detail=error.detail)
            failures += 1
            if stop.wait(min(pause_s, left_s)):
                raise
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        else:
            if failures:
                event(_LOG, "the database is back", seconds=round(time.monotonic() - started, 1))
            return result


# -- places -----------------------------------------------------------------------------------------------


def _parse(url: str) -> sa.URL:
    """Return a URL's parts. Its text is never repeated: it may hold a password."""
    try:
        parts = sa.make_url(url)
        if parts.get_backend_name() == "postgresql":
            return parts.set(drivername="postgresql+psycopg")
        is_file = bool(parts.database) and Path(parts.database or "").is_absolute()
        if parts.drivername == "sqlite" and is_file and not parts.query:
            return parts
    except (ArgumentError, NoSuchModuleError, ValueError):
        pass
    raise ConfigError(
        "config-invalid",
        "The database's URL cannot be used.",
        cure="Write sqlite:////absolute/path/state.sqlite, or postgresql://user@host/name.",
    )


def _printable(url: sa.URL) -> str:
    """Return a URL without anything secret."""
    return url.difference_update_query(_SECRET_OPTIONS).render_as_string(hide_password=True)


def _identity(path: Path) -> tuple[int, int]:
    """Return which file lies at a path."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _make_private_file(path: Path, *, must_exist: bool) -> None:
    """Make an empty file that only its owner may read, or let nobody else read the one that is there.

    SQLite gives its companions (-wal, -shm) the mode of the file.
    """
    create = 0 if must_exist else os.O_CREAT
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | create, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


# -- SQLite -----------------------------------------------------------------------------------------------


def _sqlite_engine(path: Path, *, is_reader: bool) -> sa.Engine:
    """Return an engine for a file that exists; one that vanished is never made anew."""
    uri = f"file:{quote(str(path))}?mode=rw"

    def connect() -> sqlite3.Connection:
        # No isolation level: the driver would begin transactions by its own rules.
        connection = sqlite3.connect(
            uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL may lose the last commits
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA query_only = {int(is_reader)}")
        except BaseException:
            connection.close()
            raise
        return connection

    return sa.create_engine(
        "sqlite://", creator=connect, poolclass=sa.QueuePool, max_overflow=30, hide_parameters=True
    )


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging, in which readers and the writer do not wait for each other."""
    for _ in range(100):
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            # The switch itself does not wait when another process makes the same one.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(0.05)
    else:
        mode = "busy"
    if mode != "wal":
        raise sqlite3.OperationalError(f"write-ahead logging is not possible there (journal mode {mode})")


def _sqlite_meaning(error: BaseException | None, is_reader: bool) -> str:
    """Return the code for SQLite's error, or an empty one."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # our own, of a place that cannot do it
        return "store-unreachable" if isinstance(error, sqlite3.OperationalError) else ""
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return "disk-full"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return "store-damaged"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN:
            return "store-unreachable"
        case sqlite3.SQLITE_READONLY if not is_reader:  # the disk turned read-only
            return "store-unreachable"
        case sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return "store-unreachable"
    return "store-damaged" if "no such table" in str(error) else ""


# -- PostgreSQL -------------------------------------------------------------------------------------------

_SESSION = (
    "SET synchronous_commit = on",
    f"SET lock_timeout = '{_BUSY_S}s'",
    # A process that was frozen inside a transaction must not hold up the others for ever.
    "SET idle_in_transaction_session_timeout = '60s'",
)

_CONNECT = {
    "application_name": "ucadi",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""A cut connection is noticed after about 25 s; without these it may take hours."""


def _postgres_engine(url: sa.URL) -> sa.Engine:
    """Return an engine for a server."""
    options = {name: value for name, value in _CONNECT.items() if name not in url.query}
    try:
        engine = sa.create_engine(
            url, connect_args=options, pool_pre_ping=True, max_overflow=30, hide_parameters=True
        )
    except ImportError as error:
        raise ConfigError(
            "config-invalid",
            "The database is a PostgreSQL server, and its driver is not installed.",
            cure="Install ucadi[postgres].",
        ) from error

    @sa.event.listens_for(engine, "connect")
    def settle(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        for statement in _SESSION:
            cursor.execute(statement)
        cursor.close()
        connection.commit()

    return engine


def _postgres_meaning(error: DBAPIError) -> str:
    """Return the code for PostgreSQL's error, or an empty one."""
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        is_lost = error.connection_invalidated or isinstance(error, sa.exc.OperationalError)
        return "store-unreachable" if is_lost else ""
    if state == "53100":
        return "disk-full"
    if state.startswith("XX") or state == "42P01":  # corrupted pages; a table is gone
        return "store-damaged"
    # Connection, resources, operator, access, rolled back, lock time over, read-only standby, idle too long.
    away = ("08", "53", "57", "58", "28", "3D", "40", "55P03", "25006", "25P03", "42501")
    return "store-unreachable" if state.startswith(away) else ""
