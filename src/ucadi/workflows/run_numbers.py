# SPDX-License-Identifier: Apache-2.0
"""The federation's numbers for Prometheus, from the coordinator's database."""

from collections import Counter
from threading import Lock

from ucadi.reporting.prometheus import FederationNumbers, RunNumbers, render
from ucadi.store.database import Database
from ucadi.store.members import MemberState, MemberStore
from ucadi.store.runs import LIVE, Run, RunState, RunStore
from ucadi.workflows.run_view import RunView
from ucadi.workflows.runs import RunReader

__all__ = ["NumbersReader"]


class NumbersReader:
    """Reads the numbers again and again; runs that ended are read once.

    Args:
        database: The coordinator's state.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._readers: dict[str, RunReader] = {}
        self._ended: dict[str, RunNumbers] = {}
        self._lock = Lock()

    def text(self) -> bytes:
        """Return everything in Prometheus' text format.

        Raises:
            StoreError: If the database does not answer.
        """
        return render(self.numbers())

    def numbers(self) -> FederationNumbers:
        """Return everything.

        Raises:
            StoreError: If the database does not answer.
        """
        with self._lock:  # two Prometheus servers may ask at once
            members = Counter(member.state for member in MemberStore(self._database).sites())
            runs = tuple(self._of(run) for run in RunStore(self._database).runs())
        return FederationNumbers(
            runs=runs,
            run_states=tuple(state.value for state in RunState),
            sites_by_state={state.value: members[state] for state in MemberState},
        )

    def _of(self, run: Run) -> RunNumbers:
        """Return a run's numbers."""
        key = f"{run.run_id} {run.state} {run.changed}"
        if run.state not in LIVE and (known := self._ended.get(key)):
            return known
        reader = self._readers.setdefault(run.run_id, RunReader(self._database, run.run_id))
        numbers = _run_numbers(reader.look().view)
        if run.state not in LIVE:
            self._ended[key] = numbers
            del self._readers[run.run_id]
        return numbers


def _run_numbers(view: RunView) -> RunNumbers:
    """Return what is reported of a run."""
    trained = view.rounds[: view.plan.rounds]
    last = trained[-1] if trained else None
    scores = view.validations
    return RunNumbers(
        run_id=view.run.run_id,
        state=view.run.state.value,
        round=view.trained_rounds,
        rounds=view.plan.rounds,
        participants=len(last.record.participants) if last else 0,
        missing=Counter(last.record.missing.values()) if last else {},
        validation=scores[-1][1] if scores else None,
        site_validation={s.site: s.validation for s in view.sites if s.validation is not None},
        upload_bytes=view.upload_bytes,
        phase_seconds=dict(last.phase_seconds) if last else {},
        waiting=bool(view.waiting),
    )
