# SPDX-License-Identifier: Apache-2.0
"""Setting a run back to an earlier round. What came after is put aside in the database, never erased."""

import time

import sqlalchemy as sa

from ucadi.errors import FederationError
from ucadi.store.audit import Audit
from ucadi.store.database import METADATA, Database
from ucadi.store.run_tables import (
    EVENTS,
    METRICS,
    ROUNDS,
    UPDATES,
    RunState,
    change_run,
    find_run,
    read_run,
)

__all__ = ["ROLLED_BACK", "roll_back"]

ROLLED_BACK = "rolled-back"
"""The kind of the event that a run was set back; its round is the one that the run goes on from."""

_ASIDE = sa.Table(
    "rounds_aside",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.seq"), nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("model_hash", sa.Text, nullable=False),
    sa.Column("aside", sa.Double, nullable=False),
)


def roll_back(database: Database, run_id: str, number: int, *, actor: str = "coordinator") -> int:
    """Set a run that stopped or failed back to a complete round; return how many rounds were put aside.

    Whoever drove the run before can no longer write to it. Doing it again changes nothing.

    Args:
        database: The coordinator's database.
        run_id: The run.
        number: The round to go on from; 0 is the initial model.
        actor: Who does it.

    Raises:
        FederationError: ``run-unknown``, ``run-state`` unless the run stopped or failed, ``round-unknown``.
    """
    now = time.time()
    with database.begin() as connection:
        run = find_run(connection, run_id)
        if run["state"] not in (RunState.STOPPED, RunState.FAILED):
            raise FederationError(
                "run-state",
                f"Run {run_id!r} is {run['state']}; only one that stopped or failed can be set back.",
            )
        of_run = sa.select(ROUNDS).where(ROUNDS.c.run == run["seq"]).order_by(ROUNDS.c.round)
        kept = connection.execute(of_run).mappings().all()
        # The last round may only have validated a model; it makes none to go on from.
        last = min(len(kept), read_run(run).plan.rounds)
        if not 0 <= number <= last:
            raise FederationError("round-unknown", f"Run {run_id!r} has rounds 0 to {last}, not {number}.")
        later = [row for row in kept if row["round"] > number]
        if not later:
            return 0
        connection.execute(_ASIDE.insert(), [{**row, "aside": now} for row in later])
        for table in (UPDATES, METRICS, ROUNDS):  # the rounds last: the others refer to them
            connection.execute(table.delete().where(table.c.run == run["seq"], table.c.round > number))
        change_run(connection, run, token=run["token"] + 1, driver=None, changed=now)
        words = f"{len(later)} later rounds are kept aside."
        line = {"time": now, "kind": ROLLED_BACK, "round": number, "site": "", "detail": words}
        connection.execute(EVENTS.insert().values(run=run["seq"], **line))
        aside = {str(row["round"]): row["model_hash"] for row in later}
        Audit(database).append(connection, actor, "run-rolled-back", run_id, {"to": number, "aside": aside})
    return len(later)
