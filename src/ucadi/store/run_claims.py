# SPDX-License-Identifier: Apache-2.0
"""Who drives which run: of all the processes on one database, never two the same run."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ucadi.store.audit import Audit
from ucadi.store.database import Database
from ucadi.store.run_tables import LIVE, RUNS, RunState, change_run, find_run

__all__ = ["Claim", "RunClaims"]


@dataclass(frozen=True)
class Claim:
    """The right to drive a run. Whoever claims the run later has a higher token."""

    run_id: str
    owner: str
    token: int


class RunClaims:
    """The claims on runs, seen by one process, which keeps this object for as long as it drives or waits."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = Audit(database)
        self._seen: dict[str, tuple[int, int, float]] = {}
        """Of each run that another process drives: its token and beat, and when they were first seen."""

    def claim(self, run_id: str, owner: str, lease_s: float = 20.0) -> Claim | None:
        """Take the right to drive a run that goes on; None while somebody else has it.

        The other one loses it when it was not renewed for ``lease_s`` of this process's own watching, so
        ask again and again. No clock is compared with another: a jump of the time takes no run away.

        Args:
            run_id: The run.
            owner: This driver. Who asks under the same name as before gets the right at once.
            lease_s: How long the other one may be silent.

        Raises:
            FederationError: ``run-unknown``.
        """
        with self._database.begin() as connection:
            row = find_run(connection, run_id)
            if RunState(row["state"]) not in LIVE:
                return None
            if row["driver"] not in (None, owner) and not self._is_silent(row, lease_s):
                return None
            change_run(connection, row, driver=owner, token=row["token"] + 1)
            if row["driver"] != owner:
                details = {"token": row["token"] + 1, "before": row["driver"]}
                self._audit.append(connection, owner, "run-claimed", run_id, details)
            return Claim(run_id, owner, row["token"] + 1)

    def renew(self, claim: Claim) -> bool:
        """Show that a claim's owner lives; tell whether it still drives the run. Call every few seconds."""
        return self._with_claim(claim, beat=RUNS.c.beat + 1)

    def release(self, claim: Claim) -> bool:
        """Give a claim back; tell whether it was still valid."""
        return self._with_claim(claim, driver=None)

    def _is_silent(self, row: Mapping[str, Any], lease_s: float) -> bool:
        """Tell whether a run's driver gave no sign for long enough."""
        now = time.monotonic()
        token, beat, since = self._seen.get(row["run_id"], (-1, -1, now))
        if (token, beat) != (row["token"], row["beat"]):
            self._seen[row["run_id"]] = (row["token"], row["beat"], now)
            return False
        return now - since >= lease_s

    def _with_claim(self, claim: Claim, **values: Any) -> bool:
        """Change a run's row if a claim on it is the last one."""
        is_mine = (RUNS.c.run_id == claim.run_id) & (RUNS.c.token == claim.token)
        with self._database.begin() as connection:
            return connection.execute(RUNS.update().where(is_mine).values(**values)).rowcount == 1
