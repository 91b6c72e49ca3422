# SPDX-License-Identifier: Apache-2.0
"""Which released model is current at a coordinator, and which were before: nothing is ever taken out."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import sqlalchemy as sa

from ucadi.errors import ConfigError, StoreError
from ucadi.store.audit import Audit
from ucadi.store.database import METADATA, Database

__all__ = ["Promotion", "PromotionKind", "ReleaseStore"]

_PROMOTIONS = sa.Table(
    "model_promotions",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
)


class PromotionKind(StrEnum):
    """How a release became the current one."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class Promotion:
    """One change of the current release.

    Attributes:
        seq: From 1.
        time: UTC, ISO 8601.
        kind: Forwards or back.
        name: The release that became current.
        hash: Its hash.
        actor: Who did it.
    """

    seq: int
    time: str
    kind: PromotionKind
    name: str
    hash: str
    actor: str


class ReleaseStore:
    """The history of promotions in a coordinator's database, audited in the same transactions.

    Args:
        database: The coordinator's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = Audit(database)

    def note_release(self, connection: sa.Connection, name: str, release_hash: str, actor: str) -> None:
        """Write into the audit log that a release was made, within the transaction that shows it."""
        self._audit.append(connection, actor, "model-released", name, {"hash": release_hash})

    def promote(self, name: str, release_hash: str, actor: str) -> Promotion:
        """Make a release the current one; if it is already, nothing is written."""
        with self._database.begin() as connection:
            history = _history(connection)
            current = _stack(history)[-1:]
            if current and (current[0].name, current[0].hash) == (name, release_hash):
                return current[0]
            return self._add(connection, history, PromotionKind.PROMOTED, name, release_hash, actor)

    def previous(self) -> Promotion:
        """Return what a rollback would make current: the release before the current one.

        Raises:
            ConfigError: ``release-unknown`` if there was none before.
        """
        return _previous(self.history())

    def rollback(self, actor: str, expected: Promotion) -> Promotion:
        """Make the release current that was before the current one; again and again leads further back.

        Args:
            actor: Who does it.
            expected: What `previous` returned and the caller has checked.

        Raises:
            ConfigError: ``release-unknown`` if there was none before.
            StoreError: ``store-conflict`` if somebody else changed the current release meanwhile.
        """
        with self._database.begin() as connection:
            history = _history(connection)
            before = _previous(history)
            if before != expected:
                raise StoreError("store-conflict", "Another release was promoted meanwhile.")
            return self._add(connection, history, PromotionKind.ROLLED_BACK, before.name, before.hash, actor)

    def current(self) -> Promotion | None:
        """Return the promotion that made the current release current; None before the first."""
        stack = _stack(self.history())
        return stack[-1] if stack else None

    def history(self) -> list[Promotion]:
        """Return all changes in order."""
        with self._database.read() as connection:
            return _history(connection)

    def _add(
        self,
        connection: sa.Connection,
        history: list[Promotion],
        kind: PromotionKind,
        name: str,
        release_hash: str,
        actor: str,
    ) -> Promotion:
        """Write one change with its line in the audit log."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = Promotion(len(history) + 1, now, kind, name, release_hash, actor)
        connection.execute(_PROMOTIONS.insert().values(**{**vars(row), "kind": kind.value}))
        action = {
            PromotionKind.PROMOTED: "model-promoted",
            PromotionKind.ROLLED_BACK: "model-rolled-back",
        }
        self._audit.append(connection, actor, action[kind], name, {"hash": release_hash})
        return row


def _history(connection: sa.Connection) -> list[Promotion]:
    """Read all changes in order."""
    rows = connection.execute(sa.select(_PROMOTIONS).order_by(_PROMOTIONS.c.seq))
    return [Promotion(**{**row._mapping, "kind": PromotionKind(row.kind)}) for row in rows]


def _previous(history: list[Promotion]) -> Promotion:
    """Return the release below the current one."""
    stack = _stack(history)
    if len(stack) < 2:
        raise ConfigError(
            "release-unknown", "No release was current before this one.", cure="Promote another release."
        )
    return stack[-2]


def _stack(history: list[Promotion]) -> list[Promotion]:
    """Return the current release last, below it those to which a rollback leads."""
    stack: list[Promotion] = []
    for promotion in history:
        if promotion.kind is PromotionKind.PROMOTED:
            stack.append(promotion)
        else:
            stack.pop()
    return stack
