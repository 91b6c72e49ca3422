# SPDX-License-Identifier: Apache-2.0
"""The coordinator's runs: plans, states, wishes, complete rounds with updates and metrics, and progress.

A round is kept once and never changed. Whatever a process does twice, because it was killed in between, has
no second effect; whatever contradicts what is kept is refused. Changes are audited in their own transaction.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from ucadi.errors import FederationError, StoreError
from ucadi.federation.plans import RunPlan, plan_document
from ucadi.federation.ports import Wish
from ucadi.federation.records import Progress, RoundRecord
from ucadi.store.audit import Audit
from ucadi.store.database import Database
from ucadi.store.run_tables import (
    EVENTS,
    LIVE,
    METRICS,
    ROUNDS,
    RUNS,
    UPDATES,
    KeptRound,
    Metric,
    Run,
    RunEvent,
    RunState,
    SiteUpdate,
    Standing,
    change_run,
    check_token,
    find_run,
    plain_text,
    read_run,
)

__all__ = [
    "LIVE",
    "KeptRound",
    "Metric",
    "Run",
    "RunEvent",
    "RunState",
    "RunStore",
    "SiteUpdate",
    "Standing",
]

_LONGEST_KEY = 100

_NEXT: Mapping[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.WAITING, RunState.STOPPED, RunState.FAILED}),
    RunState.RUNNING: frozenset(RunState) - {RunState.RUNNING},
    RunState.WAITING: frozenset(RunState) - {RunState.WAITING},
    RunState.STOPPED: frozenset({RunState.QUEUED}),
    RunState.FAILED: frozenset({RunState.QUEUED}),
    RunState.COMPLETED: frozenset(),
}


class RunStore:
    """The runs of a coordinator's database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = Audit(database)

    # -- runs ---------------------------------------------------------------------------------------------

    def submit(self, plan: RunPlan, initial_hash: str, *, actor: str = "coordinator") -> Run:
        """Queue a run. Submitting the same again changes nothing.

        Args:
            plan: What to do.
            initial_hash: Hash of the model of round 0.
            actor: Who submits it.

        Raises:
            FederationError: ``run-exists`` if another plan or model has the name.
        """
        now = time.time()
        with self._database.begin() as connection:
            row = (
                connection.execute(sa.select(RUNS).where(RUNS.c.run_id == plan.run_id))
                .mappings()
                .one_or_none()
            )
            if row is None:
                document = json.dumps(plan_document(plan), sort_keys=True, allow_nan=False)
                values = {"plan": document, "plan_hash": plan.hash, "initial_hash": initial_hash}
                states = {"state": "queued", "reason": "", "wish": "go_on", "token": 0, "beat": 0}
                connection.execute(
                    RUNS.insert().values(run_id=plan.run_id, created=now, changed=now, **values, **states)
                )
                hashes = {"plan": plan.hash, "model": initial_hash}
                self._audit.append(connection, actor, "run-submitted", plan.run_id, hashes)
            elif (row["plan_hash"], row["initial_hash"]) != (plan.hash, initial_hash):
                raise FederationError("run-exists", f"Run {plan.run_id!r} was submitted with another plan.")
            return read_run(find_run(connection, plan.run_id))

    def runs(self, *states: RunState) -> list[Run]:
        """Return all runs, or those in given states, the oldest first."""
        query = sa.select(RUNS).order_by(RUNS.c.seq)
        if states:
            query = query.where(RUNS.c.state.in_([state.value for state in states]))
        with self._database.read() as connection:
            return [read_run(dict(row)) for row in connection.execute(query).mappings()]

    def run(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            FederationError: ``run-unknown``.
        """
        with self._database.read() as connection:
            return read_run(find_run(connection, run_id))

    def set_state(
        self,
        run_id: str,
        state: RunState,
        reason: str = "",
        *,
        actor: str = "coordinator",
        token: int | None = None,
    ) -> None:
        """Change a run's state. The same state again only changes the reason.

        A run that is queued again after it was stopped or failed has no wish left of before.

        Args:
            run_id: The run.
            state: The new state.
            reason: Why, for people.
            actor: Who does it.
            token: Of the claim under which it is done; any when not given.

        Raises:
            FederationError: ``run-unknown``.
            StoreError: ``store-conflict`` if the run's state cannot become this one, or somebody else has
                claimed the run since.
        """
        reason = plain_text(reason)
        with self._database.begin() as connection:
            row = find_run(connection, run_id)
            check_token(row, token)
            values: dict[str, Any] = {"state": state.value, "reason": reason}
            if state != row["state"]:
                if state not in _NEXT[RunState(row["state"])]:
                    raise StoreError(
                        "store-conflict", f"Run {run_id!r} is {row['state']}, it cannot be {state}."
                    )
                if RunState(row["state"]) not in LIVE:
                    values["wish"] = Wish.GO_ON.value
                details = {"from": row["state"], "to": state, "reason": reason}
                self._audit.append(connection, actor, "run-state", run_id, details)
            elif reason == row["reason"]:
                return
            change_run(connection, row, changed=time.time(), **values)

    def wish(self, run_id: str) -> Wish:
        """Return what is to become of a run at the next boundary."""
        return self.run(run_id).wish

    def set_wish(
        self, run_id: str, wish: Wish, *, actor: str = "coordinator", token: int | None = None
    ) -> bool:
        """Say what is to become of a run at the next boundary; tell whether that is now the wish.

        A wish to stop stays until the run has stopped and is queued again, whatever a driver wishes.

        Raises:
            FederationError: ``run-unknown``.
            StoreError: ``store-conflict`` if the run does not go on, or was claimed since.
        """
        with self._database.begin() as connection:
            row = find_run(connection, run_id)
            check_token(row, token)
            if RunState(row["state"]) not in LIVE:
                raise StoreError(
                    "store-conflict", f"Run {run_id!r} is {row['state']}: nothing can be wished."
                )
            if row["wish"] == wish:
                return True
            if row["wish"] == Wish.STOP:
                return False
            self._audit.append(connection, actor, "run-wish", run_id, {"from": row["wish"], "to": wish})
            change_run(connection, row, changed=time.time(), wish=wish.value)
            return True

    # -- rounds -------------------------------------------------------------------------------------------

    def keep_round(
        self,
        run_id: str,
        record: RoundRecord,
        model_hash: str,
        *,
        update_bytes: Mapping[str, int] | None = None,
        token: int | None = None,
    ) -> bool:
        """Keep a complete round for ever; tell whether it was not there before.

        The model itself must be on disk already: a run goes on from what is kept here.

        Args:
            run_id: The run.
            record: What happened in the round. One more than the plan's rounds only validates the last model.
            model_hash: Hash of the model that it made, or validated.
            update_bytes: Sizes of accepted updates by site, as far as noted.
            token: Of the claim under which it is done; any when not given.

        Raises:
            FederationError: ``run-unknown``.
            StoreError: ``store-conflict`` if the round is kept with other content, is not the next one, the
                run does not go on, or somebody else has claimed the run since.
        """
        text = json.dumps(asdict(record), sort_keys=True, default=dict, allow_nan=False)
        with self._database.begin() as connection:
            row = find_run(connection, run_id)
            rounds = sa.select(ROUNDS).where(ROUNDS.c.run == row["seq"])
            kept = connection.execute(rounds.where(ROUNDS.c.round == record.round)).one_or_none()
            if kept is not None:
                if (kept.record, kept.model_hash) == (text, model_hash):
                    return False
                raise StoreError(
                    "store-conflict", f"Round {record.round} of run {run_id!r} is kept with other content."
                )
            check_token(row, token)
            last = connection.execute(
                sa.select(sa.func.coalesce(sa.func.max(ROUNDS.c.round), 0)).where(ROUNDS.c.run == row["seq"])
            ).scalar_one()
            _check_next(read_run(row), last, record.round)
            place = {"run": row["seq"], "round": record.round}
            connection.execute(
                ROUNDS.insert().values(**place, time=time.time(), record=text, model_hash=model_hash)
            )
            _insert_all(connection, UPDATES, place, _updates_of(record, update_bytes or {}))
            _insert_all(connection, METRICS, place, _metrics_of(record))
            self._audit.append(connection, "coordinator", "round-kept", run_id, _proof(text, model_hash))
        return True

    def rounds(self, run_id: str, after: int = 0) -> list[KeptRound]:
        """Return a run's complete rounds after a number, in order."""
        with self._database.read() as connection:
            return _kept(connection, find_run(connection, run_id), after)

    def state(self, run_id: str) -> Standing:
        """Return all that a run needs to go on where it was.

        Raises:
            FederationError: ``run-unknown``.
            StoreError: ``store-damaged`` if what is kept cannot be read.
        """
        with self._database.read() as connection:
            row = find_run(connection, run_id)
            run, kept = read_run(row), _kept(connection, row)
        records = tuple(each.record for each in kept)
        hashes = {0: run.initial_hash}
        hashes.update((k.record.round, k.model_hash) for k in kept if k.record.round <= run.plan.rounds)
        last = max(hashes)
        best, validation = last, None
        for record in records:  # a record's validation judges the model that its round started from
            if record.validation is not None and (validation is None or record.validation > validation):
                best, validation = record.round - 1, record.validation
        return Standing(run, records, hashes, last, best, validation, len(records) > run.plan.rounds)

    def verify(self, run_id: str) -> int:
        """Check the audit log and that a run's rounds are those of which it tells; return how many there are.

        Raises:
            FederationError: ``run-unknown``.
            StoreError: ``audit-broken`` with what does not fit.
        """
        self._audit.verify()
        with self._database.read() as connection:
            run = find_run(connection, run_id)["seq"]
            query = sa.select(ROUNDS).where(ROUNDS.c.run == run).order_by(ROUNDS.c.round)
            kept = [_proof(row.record, row.model_hash) for row in connection.execute(query)]
        entries = self._audit.entries(subject=run_id)
        told = {e.details["round"]: e.details for e in entries if e.action == "round-kept"}
        for proof in kept:
            if told.get(proof["round"]) != proof:
                raise StoreError(
                    "audit-broken",
                    f"Round {proof['round']} of run {run_id!r} is not the one of which the audit log tells.",
                )
        return len(kept)

    def updates(self, run_id: str) -> list[SiteUpdate]:
        """Return what each complete round has from each site, by round and name."""
        return [SiteUpdate(**row) for row in self._of(run_id, UPDATES, ("round", "site"))]

    def metrics(self, run_id: str) -> list[Metric]:
        """Return every number that sites reported, by round, site and key."""
        return [Metric(**row) for row in self._of(run_id, METRICS, ("round", "site", "key"))]

    # -- events -------------------------------------------------------------------------------------------

    def add_event(self, run_id: str, progress: Progress) -> None:
        """Add a line to a run's progress."""
        self.add_events(run_id, [(time.time(), progress)])

    def add_events(self, run_id: str, lines: list[tuple[float, Progress]]) -> None:
        """Add lines to a run's progress at once, each with its time in seconds since 1970."""
        with self._database.begin() as connection:
            run = find_run(connection, run_id)["seq"]
            rows = [
                {"time": when, "round": line.round}
                | {name: plain_text(getattr(line, name)) for name in ("kind", "site", "detail")}
                for when, line in lines
            ]
            _insert_all(connection, EVENTS, {"run": run}, rows)

    def events(self, run_id: str, after: int = 0, limit: int | None = None) -> list[RunEvent]:
        """Return a run's progress.

        Args:
            run_id: The run.
            after: Number of the last event that is not wanted.
            limit: How many at most; all by default.
        """
        with self._database.read() as connection:
            run = find_run(connection, run_id)["seq"]
            query = sa.select(EVENTS).where(EVENTS.c.run == run, EVENTS.c.seq > after)
            return [
                RunEvent(row.seq, row.time, Progress(row.kind, row.round, row.site, row.detail))
                for row in connection.execute(query.order_by(EVENTS.c.seq).limit(limit))
            ]

    def _of(self, run_id: str, table: sa.Table, order: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return a table's rows of a run without the run itself."""
        with self._database.read() as connection:
            run = find_run(connection, run_id)["seq"]
            columns = [column for column in table.c if column.name != "run"]
            query = sa.select(*columns).where(table.c.run == run).order_by(*(table.c[name] for name in order))
            return [dict(row) for row in connection.execute(query).mappings()]


def _kept(connection: sa.Connection, row: Mapping[str, Any], after: int = 0) -> list[KeptRound]:
    """Return the complete rounds of a run's row."""
    query = sa.select(ROUNDS).where(ROUNDS.c.run == row["seq"], ROUNDS.c.round > after)
    try:
        return [
            KeptRound(RoundRecord(**json.loads(kept.record)), kept.model_hash, kept.time)
            for kept in connection.execute(query.order_by(ROUNDS.c.round))
        ]
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            "store-damaged", f"A round of run {row['run_id']!r} cannot be read: {error}."
        ) from error


def _proof(record: str, model_hash: str) -> dict[str, Any]:
    """Return what the audit log tells of a round: enough to find any change of it."""
    body = json.loads(record)
    digest = hashlib.sha256(record.encode()).hexdigest()
    return {
        "round": body["round"],
        "model": model_hash,
        "record": digest,
        "participants": body["participants"],
    }


def _check_next(run: Run, last: int, number: int) -> None:
    """Refuse a round that is not the next one, or of a run that does not go on."""
    if run.state not in LIVE:
        raise StoreError("store-conflict", f"Run {run.run_id!r} is {run.state}: it has no further rounds.")
    if number != last + 1 or number > run.plan.rounds + 1:
        raise StoreError(
            "store-conflict",
            f"Round {number} cannot follow round {last} of run {run.run_id!r}, "
            f"which has {run.plan.rounds} rounds.",
        )


def _updates_of(record: RoundRecord, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a round's rows of updates."""
    there = [
        {"site": site, "is_accepted": True, "bytes": sizes.get(site), "reason": ""}
        for site in record.participants
    ]
    return there + [
        {"site": site, "is_accepted": False, "bytes": None, "reason": plain_text(why)}
        for site, why in record.missing.items()
        if site not in record.participants
    ]


def _metrics_of(record: RoundRecord) -> list[dict[str, Any]]:
    """Return a round's rows of metrics. Sites choose the names: what is no word stays in the record only."""
    return [
        {"site": site, "key": key, "value": float(value)}
        for site, metrics in record.metrics.items()
        for key, value in metrics.items()
        if len(key) <= _LONGEST_KEY and key.isprintable()
    ]


def _insert_all(
    connection: sa.Connection, table: sa.Table, place: Mapping[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Insert rows that share some values."""
    if rows:
        connection.execute(table.insert(), [{**place, **row} for row in rows])
