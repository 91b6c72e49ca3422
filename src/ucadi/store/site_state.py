# SPDX-License-Identifier: Apache-2.0
"""What a site remembers: plans and the decisions about them, everything that ever left, and its flags.

Every decision, every flag and every message that leaves is also an entry of the hash chain, written in the
same transaction, so that nothing can be taken out or changed afterwards without being seen.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from ucadi.errors import ConfigError, StoreError
from ucadi.federation.plans import RunPlan, plan_document, read_plan
from ucadi.store.audit import Audit
from ucadi.store.database import METADATA, Database

__all__ = ["CONNECTION", "LEFT", "PAUSED", "WORK", "Decision", "KeptReply", "SeenPlan", "Sent", "SiteState"]

LEFT, PAUSED = "left", "paused"
"""Flags: a site takes part in nothing while one is up."""

CONNECTION, WORK = "connection", "work"
"""Keys of the status: how the site is connected, and what it is doing."""

_HASH_CHARS = 64
_SHORT_CHARS = 12
_MOST_WAITING = 200
"""So many undecided plans are kept; a coordinator that sends more cannot fill the disk."""

_PLANS = sa.Table(
    "site_plans",
    METADATA,
    sa.Column("hash", sa.String(_HASH_CHARS), primary_key=True),
    sa.Column("run_id", sa.String(64), nullable=False, index=True),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("first_seen", sa.Float, nullable=False),
    sa.Column("decision", sa.String(16), nullable=False),
    sa.Column("decided_by", sa.String(128), nullable=False),
    sa.Column("decided_at", sa.Float, nullable=True),
    sa.Column("reason", sa.Text, nullable=False),
)

_SENT = sa.Table(
    "site_sent",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("run_id", sa.String(64), nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(_HASH_CHARS), nullable=False),
    sa.Column("protection", sa.String(32), nullable=False),
    sa.Column("recipient", sa.String(256), nullable=False),
)

_ANSWERS = sa.Table(
    "site_answers",
    METADATA,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("request", sa.String(_HASH_CHARS), primary_key=True),
    sa.Column("sha256", sa.String(_HASH_CHARS), primary_key=True),
)

_REPLIES = sa.Table(
    "site_replies",
    METADATA,
    sa.Column("name", sa.String(_HASH_CHARS), primary_key=True),
    sa.Column("run_id", sa.String(64), nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(_HASH_CHARS), nullable=False),
    sa.Column("time", sa.Float, nullable=False),
)

_NOTES = sa.Table(
    "site_notes",
    METADATA,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
)

_FLAG = "flag "
"""Notes whose key begins so are flags; all others say what the site's processes do."""


class Decision(StrEnum):
    """What a site decided about a plan."""

    WAITING = "waiting"
    APPROVED = "approved"
    REJECTED = "rejected"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True)
class SeenPlan:
    """A plan that a coordinator asked for, and what became of it.

    Attributes:
        hash: Of the whole plan; another form of a run has another one.
        run_id: Name of the run.
        document: The plan as plain JSON values.
        first_seen: Seconds since 1970.
        decision: What the site decided.
        decided_by: ``policy``, or who decided.
        decided_at: Seconds since 1970; None while it waits.
        reason: Why, in words that stay at the site.
    """

    hash: str
    run_id: str
    document: Mapping[str, Any]
    first_seen: float
    decision: Decision
    decided_by: str
    decided_at: float | None
    reason: str

    @property
    def short(self) -> str:
        """The id under which people speak of the plan."""
        return self.hash[:_SHORT_CHARS]

    @property
    def plan(self) -> RunPlan:
        """The plan itself.

        Raises:
            StoreError: ``store-damaged`` if it cannot be read or is not the one that was stored.
        """
        try:
            plan = read_plan(self.document)
        except ValueError as error:
            raise StoreError("store-damaged", f"Plan {self.short} cannot be read: {error}.") from error
        if plan.hash != self.hash:
            raise StoreError("store-damaged", f"Plan {self.short} is not the one that was stored.")
        return plan


@dataclass(frozen=True)
class Sent:
    """One message that left the site.

    Attributes:
        number: From 1, in the order of leaving.
        time: Seconds since 1970.
        kind: ``readiness``, ``update``, ``validation``, ``refusal``, ``join`` or ``leave``.
        run_id: Name of the run; empty when it belongs to none.
        round: From 1; 0 when it belongs to none.
        size_bytes: Length of the message.
        sha256: Of the message's bytes.
        protection: How its content is hidden from the recipient.
        recipient: Who got it.
    """

    number: int
    time: float
    kind: str
    run_id: str
    round: int
    size_bytes: int
    sha256: str
    protection: str
    recipient: str


@dataclass(frozen=True)
class KeptReply:
    """A reply that lies in the outbox.

    Attributes:
        name: Of its file.
        run_id: Name of the run.
        round: From 1.
        sha256: Of its bytes.
        time: When it was kept, seconds since 1970.
    """

    name: str
    run_id: str
    round: int
    sha256: str
    time: float


class SiteState:
    """A site's memory in its database; several processes may use it at once.

    Args:
        database: The site's own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = Audit(database)

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    # -- plans ---------------------------------------------------------------------------------------------

    def see(self, plan: RunPlan) -> SeenPlan:
        """Return what is known of a plan; a new one is written down as waiting.

        When too many plans wait already, a new one waits without being written down.
        """
        query = sa.select(_PLANS).where(_PLANS.c.hash == plan.hash)
        with self._database.read() as conn:
            row = conn.execute(query).one_or_none()
        if row is not None:
            return _seen({**row._mapping})
        with self._database.begin() as conn:
            row = conn.execute(query).one_or_none()
            if row is not None:  # another process was quicker
                return _seen({**row._mapping})
            seen = SeenPlan(
                plan.hash, plan.run_id, plan_document(plan), time.time(), Decision.WAITING, "", None, ""
            )
            open_ones = _PLANS.c.decision.in_([Decision.WAITING, Decision.FORBIDDEN])
            waiting = conn.execute(sa.select(sa.func.count()).select_from(_PLANS).where(open_ones)).scalar()
            if (waiting or 0) < _MOST_WAITING:
                text = json.dumps(seen.document, sort_keys=True)
                conn.execute(_PLANS.insert().values({**_columns(seen), "document": text}))
                self._audit.append(
                    conn, "coordinator", "plan-seen", plan.run_id, {"hash": plan.hash, "plan": text}
                )
            return seen

    def plans(self) -> tuple[SeenPlan, ...]:
        """Return all plans, the newest first."""
        with self._database.read() as conn:
            rows = conn.execute(sa.select(_PLANS).order_by(_PLANS.c.first_seen.desc(), _PLANS.c.hash)).all()
        return tuple(_seen({**row._mapping}) for row in rows)

    def find(self, short: str) -> SeenPlan:
        """Return the plan whose hash begins with an id.

        Raises:
            ConfigError: ``plan-unknown`` if there is none, or more than one.
        """
        found = [plan for plan in self.plans() if short and plan.hash.startswith(short.lower())]
        if len(found) == 1:
            return found[0]
        said = "There is no plan" if not found else f"There are {len(found)} plans"
        raise ConfigError("plan-unknown", f"{said} whose id begins with {short[:80]!r}.")

    def other_forms(self, plan: RunPlan) -> tuple[SeenPlan, ...]:
        """Return the plans of the same run that are not this one, approved ones first."""
        query = sa.select(_PLANS).where(_PLANS.c.run_id == plan.run_id, _PLANS.c.hash != plan.hash)
        with self._database.read() as conn:
            rows = conn.execute(query.order_by(_PLANS.c.first_seen, _PLANS.c.hash)).all()
        found = [_seen({**row._mapping}) for row in rows]
        return tuple(sorted(found, key=lambda seen: seen.decision is not Decision.APPROVED))

    def decide(self, seen: SeenPlan, decision: Decision, by: str, reason: str = "") -> bool:
        """Write down a decision, unless somebody decided since the plan was looked up.

        Approving one form of a run takes back the approval of any other, and what the outbox holds for it
        is made anew.

        Args:
            seen: The plan as it was looked up.
            decision: The new one.
            by: Who decides.
            reason: In words that stay at the site.

        Returns:
            Whether the decision counts.
        """
        with self._database.begin() as conn:
            change = {"decision": decision, "decided_by": by, "decided_at": time.time(), "reason": reason}
            unchanged = (_PLANS.c.hash == seen.hash) & (_PLANS.c.decision == seen.decision)
            if not conn.execute(_PLANS.update().where(unchanged).values(change)).rowcount:
                return False
            details = {"hash": seen.hash, "reason": reason}
            self._audit.append(conn, by, f"plan-{decision}", seen.run_id, details)
            if decision is Decision.APPROVED:
                change |= {"decision": Decision.REJECTED, "reason": "another form of the run was approved"}
                others = (
                    (_PLANS.c.run_id == seen.run_id)
                    & (_PLANS.c.hash != seen.hash)
                    & (_PLANS.c.decision == Decision.APPROVED)
                )
                if conn.execute(_PLANS.update().where(others).values(change)).rowcount:
                    conn.execute(_REPLIES.delete().where(_REPLIES.c.run_id == seen.run_id))
        return True

    # -- what left -----------------------------------------------------------------------------------------

    def note_sent(
        self,
        kind: str,
        size_bytes: int,
        sha256: str,
        *,
        run_id: str = "",
        round_number: int = 0,
        request: str = "",
        protection: str = "plaintext",
        recipient: str = "coordinator",
    ) -> None:
        """Write down that a message leaves the site. Call it before the message leaves.

        Args:
            kind: ``readiness``, ``update``, ``validation``, ``refusal``, ``join`` or ``leave``.
            size_bytes: Length of the message.
            sha256: Of the message's bytes, in hexadecimal digits.
            run_id: Name of the run, if it belongs to one.
            round_number: From 1, if it belongs to one.
            request: What it answers, in hexadecimal digits: the same for a request that is repeated.
            protection: How its content is hidden from the recipient.
            recipient: Who gets it.
        """
        with self._database.begin() as conn:
            values: dict[str, Any] = {
                "time": time.time(),
                "kind": kind,
                "run_id": run_id,
                "round": round_number,
                "size_bytes": size_bytes,
                "sha256": sha256,
                "protection": str(protection),
                "recipient": recipient,
            }
            number = conn.execute(_SENT.insert().values(values).returning(_SENT.c.number)).scalar_one()
            self._audit.append(conn, "site", "sent", run_id, {"number": number, **values})
            answer = {"run_id": run_id, "kind": kind, "request": request, "sha256": sha256}
            if conn.execute(sa.select(_ANSWERS).filter_by(**answer)).first() is None:
                conn.execute(_ANSWERS.insert().values(answer))

    def sent(self, run_id: str | None = None, after: int = 0, last: int | None = None) -> tuple[Sent, ...]:
        """Return what left, in the order of leaving.

        Args:
            run_id: Only of this run.
            after: Only what left after this number.
            last: Only so many of the last ones.
        """
        query = sa.select(_SENT).where(_SENT.c.number > after)
        if run_id is not None:
            query = query.where(_SENT.c.run_id == run_id)
        with self._database.read() as conn:
            rows = conn.execute(query.order_by(_SENT.c.number.desc()).limit(last)).all()
        return tuple(Sent(**row._mapping) for row in reversed(rows))

    def answers_sent(self, run_id: str, kind: str) -> int:
        """Return how many different answers of a kind left for a run; repeated ones count once.

        The same bytes in answer to another request are another answer: that two models have the same score
        is a thing to know.
        """
        query = sa.select(sa.func.count()).select_from(_ANSWERS).filter_by(run_id=run_id, kind=kind)
        with self._database.read() as conn:
            return int(conn.execute(query).scalar_one())

    def verify(self) -> int:
        """Check the hash chain, and that the list of what left says what the chain says.

        Returns:
            Number of entries in the chain.

        Raises:
            StoreError: ``audit-broken`` if something was changed, taken out or added.
        """
        count = self._audit.verify()
        chained = [entry.details for entry in self._audit.entries() if entry.action == "sent"]
        listed = [asdict(row) for row in self.sent()]
        for place, (expected, found) in enumerate(zip(chained, listed, strict=False), start=1):
            if dict(expected) != found:
                raise StoreError("audit-broken", f"Line {place} of the list of what left was changed.")
        if len(chained) != len(listed):
            raise StoreError(
                "audit-broken", f"The list of what left has {len(listed)} lines, the chain {len(chained)}."
            )
        return count

    # -- replies that are kept -----------------------------------------------------------------------------

    def keep_reply(self, reply: KeptReply) -> None:
        """Write down that a reply lies in the outbox."""
        with self._database.begin() as conn:
            conn.execute(_REPLIES.delete().where(_REPLIES.c.name == reply.name))
            conn.execute(_REPLIES.insert().values(_columns(reply)))

    def kept_reply(self, name: str) -> KeptReply | None:
        """Return what is known of a reply in the outbox."""
        with self._database.read() as conn:
            row = conn.execute(sa.select(_REPLIES).where(_REPLIES.c.name == name)).one_or_none()
        return None if row is None else KeptReply(**row._mapping)

    def drop_reply(self, name: str) -> None:
        """Forget a reply."""
        with self._database.begin() as conn:
            conn.execute(_REPLIES.delete().where(_REPLIES.c.name == name))

    def reply_names(self) -> frozenset[str]:
        """Return the names of all replies in the outbox."""
        with self._database.read() as conn:
            return frozenset(conn.execute(sa.select(_REPLIES.c.name)).scalars())

    def old_replies(self, run_id: str, before_round: int, before_time: float) -> tuple[KeptReply, ...]:
        """Return what the outbox need not hold any longer: a run's earlier rounds, and all that is old."""
        query = sa.select(_REPLIES).where(
            ((_REPLIES.c.run_id == run_id) & (_REPLIES.c.round < before_round))
            | (_REPLIES.c.time < before_time)
        )
        with self._database.read() as conn:
            return tuple(KeptReply(**row._mapping) for row in conn.execute(query).all())

    # -- flags and status ----------------------------------------------------------------------------------

    def flag(self, name: str) -> bool:
        """Tell whether a flag is up, for example ``paused`` or ``left``."""
        with self._database.read() as conn:
            query = sa.select(_NOTES.c.value).where(_NOTES.c.key == _FLAG + name)
            return conn.execute(query).scalar_one_or_none() == "true"

    def set_flag(self, name: str, value: bool, by: str) -> None:
        """Raise or lower a flag."""
        with self._database.begin() as conn:
            _note(conn, _FLAG + name, value)
            self._audit.append(conn, by, f"flag-{'up' if value else 'down'}", name, {})

    def set_status(self, key: str, value: Any) -> None:
        """Write down what a process of the site does, for the people who watch.

        Args:
            key: What it is about, for example ``connection`` or ``step``; the last value counts.
            value: Plain JSON values.
        """
        with self._database.begin() as conn:
            _note(conn, key, value)

    def status(self) -> dict[str, tuple[Any, float]]:
        """Return the last value by key, each with the time at which it was written."""
        with self._database.read() as conn:
            rows = conn.execute(sa.select(_NOTES).order_by(_NOTES.c.key)).all()
        return {row.key: (json.loads(row.value), row.time) for row in rows if not row.key.startswith(_FLAG)}


def _seen(row: Mapping[str, Any]) -> SeenPlan:
    """Return a plan's row as a record."""
    document = json.loads(row["document"])
    return SeenPlan(**{**row, "document": document, "decision": Decision(row["decision"])})


def _columns(record: SeenPlan | KeptReply) -> dict[str, Any]:
    """Return a record's values by column."""
    return dict(vars(record))


def _note(conn: sa.Connection, key: str, value: Any) -> None:
    """Replace a note."""
    conn.execute(_NOTES.delete().where(_NOTES.c.key == key))
    conn.execute(_NOTES.insert().values(key=key, value=json.dumps(value), time=time.time()))
