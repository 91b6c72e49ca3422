# SPDX-License-Identifier: Apache-2.0
"""The audit log: who did what when. Each entry holds the hash of the one before, so no change goes unseen.

Whoever may write to the database could still write the whole log anew, or cut off its end. Both show
against a head (number and hash of the last entry) that was written down elsewhere.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from ucadi.errors import StoreError
from ucadi.store.database import METADATA, Database

__all__ = ["Audit", "AuditEntry", "AuditHead"]

_ENTRIES = sa.Table(
    "audit",
    METADATA,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)

_BEFORE_ALL = "0" * 64
_LONGEST_WORD = 200
_BATCH = 1000


@dataclass(frozen=True)
class AuditHead:
    """The end of the log at some moment; of an empty one by default.

    Attributes:
        seq: Number of the last entry.
        hash: Its hash.
    """

    seq: int = 0
    hash: str = _BEFORE_ALL


@dataclass(frozen=True)
class AuditEntry:
    """One line of the log.

    Attributes:
        seq: From 1, without gaps.
        time: UTC, as in ``2026-11-21T17:40:28.123Z``. The clock may jump; the order is that of ``seq``.
        actor: Who did it.
        action: What was done, in kebab-case.
        subject: To what.
        details: Plain JSON values.
        hash: SHA-256 over the previous entry's hash and everything above.
    """

    seq: int
    time: str
    actor: str
    action: str
    subject: str
    details: Mapping[str, Any]
    hash: str


class Audit:
    """The audit log of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self, connection: sa.Connection, actor: str, action: str, subject: str, details: Mapping[str, Any]
    ) -> None:
        """Add an entry within a transaction of `Database.begin`: it is there if and only if the rest is.

        Args:
            connection: The transaction.
            actor: Who does it.
            action: What is done, in kebab-case.
            subject: To what.
            details: Plain JSON values.

        Raises:
            ValueError: If a word is too long or not printable, or the details are not plain JSON.
        """
        for word in (actor, action, subject):
            if len(word) > _LONGEST_WORD or not word.isprintable():
                raise ValueError(f"{word!r:.80} cannot stand in the audit log")
        head = _head(connection)  # transactions that may write come one after the other, so it stays the last
        row = {
            "seq": head.seq + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "actor": actor,
            "action": action,
            "subject": subject,
            "details": _canonical(dict(details)),
        }
        connection.execute(_ENTRIES.insert().values(**row, hash=_hash(head.hash, row)))

    def head(self) -> AuditHead:
        """Return the end of the log, to be written down elsewhere."""
        with self._database.read() as connection:
            return _head(connection)

    def entries(
        self, after: int = 0, limit: int | None = None, *, subject: str | None = None
    ) -> list[AuditEntry]:
        """Return the entries after a number, in order, as they are stored.

        Args:
            after: Number of the last entry that is not wanted.
            limit: How many at most; all by default.
            subject: Only those about it; about anything by default.

        Raises:
            StoreError: ``audit-broken`` if one cannot be read.
        """
        with self._database.read() as connection:
            query = sa.select(_ENTRIES).where(_ENTRIES.c.seq > after).limit(limit)
            if subject is not None:
                query = query.where(_ENTRIES.c.subject == subject)
            return list(_read(connection, query))

    def verify(self, expected_head: AuditHead | None = None) -> int:
        """Check the whole log and return how many entries it has.

        Args:
            expected_head: An end of the log that was written down earlier; without one, entries that were
                cut off at the end are not missed.

        Raises:
            StoreError: ``audit-broken`` with the first entry that is not as it was written.
        """
        known, last = expected_head or AuditHead(), AuditHead()
        with self._database.read() as connection:
            for entry in _read(connection, sa.select(_ENTRIES)):
                if entry.seq != last.seq + 1:
                    raise _broken(last.seq + 1, f"is not there; the next one is {entry.seq}")
                if entry.hash != _hash(last.hash, _row_of(entry)):
                    raise _broken(entry.seq, "or the one before it was changed")
                last = AuditHead(entry.seq, entry.hash)
                if last.seq == known.seq and last != known:
                    raise _broken(last.seq, "is not the one that was written down")
        if last.seq < known.seq:
            raise _broken(last.seq + 1, f"is not there, and the log had {known.seq}")
        return last.seq


def _head(connection: sa.Connection) -> AuditHead:
    """Return the end of the log."""
    query = sa.select(_ENTRIES.c.seq, _ENTRIES.c.hash).order_by(_ENTRIES.c.seq.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return AuditHead() if row is None else AuditHead(row.seq, row.hash)


def _read(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[AuditEntry]:
    """Read entries by number, a batch at a time: a log may be longer than the memory."""
    query = query.order_by(_ENTRIES.c.seq)
    with connection.execute(query, execution_options={"yield_per": _BATCH}) as rows:
        for row in rows:
            yield _entry(row._asdict())


def _entry(row: dict[str, Any]) -> AuditEntry:
    """Return an entry; what was written in another form than ours was written by somebody else."""
    try:
        # SQLite keeps any kind of value in any column.
        if [type(value) for value in row.values()] != [int, *[str] * (len(row) - 1)]:
            raise ValueError("another type")
        details = json.loads(row["details"])
        # A second form of the same values (spaces, keys given twice) would have the same hash.
        if not isinstance(details, dict) or _canonical(details) != row["details"]:
            raise ValueError("another form")
        return AuditEntry(**{**row, "details": details})
    except (TypeError, ValueError, RecursionError) as error:
        raise _broken(row["seq"], "was changed") from error


def _row_of(entry: AuditEntry) -> dict[str, Any]:
    """Return an entry's values as they are stored."""
    return {**vars(entry), "details": _canonical(entry.details)}


def _hash(previous: str, row: Mapping[str, Any]) -> str:
    """Return the hash that chains a row to the one before."""
    names = ("seq", "time", "actor", "action", "subject")
    link = [previous, *(row[name] for name in names), json.loads(row["details"])]
    return hashlib.sha256(_canonical(link).encode()).hexdigest()


def _canonical(value: object) -> str:
    """Return the one JSON text of a value.

    Raises:
        ValueError: If it is not plain JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _broken(seq: object, what: str) -> StoreError:
    """Return the error of a log that was changed."""
    return StoreError("audit-broken", f"Entry {seq} of the audit log {what}.")
