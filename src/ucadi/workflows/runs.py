# SPDX-License-Identifier: Apache-2.0
"""A coordinator's runs: submit, look at, follow, stop and resume them.

The process that drives the runs is another one. Both meet in the database, which readers never lock, and in
the runs' folders, whose files appear complete or not at all.
"""

import getpass
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ucadi.errors import CheckpointError, FederationError, StoreError
from ucadi.federation.plans import RunPlan
from ucadi.federation.ports import Wish
from ucadi.federation.records import Progress
from ucadi.io.checkpoint import read_model, read_tensors, write_json
from ucadi.models.registry import build_network
from ucadi.store.database import Database
from ucadi.store.members import MemberStore
from ucadi.store.run_rollback import ROLLED_BACK, roll_back
from ucadi.store.runs import LIVE, KeptRound, Run, RunEvent, RunState, RunStore
from ucadi.tensors import Tensors, hash_tensors
from ucadi.workflows.run_happenings import Happening, happenings_between
from ucadi.workflows.run_view import RESUMED, RunView, view_run

__all__ = [
    "Database",
    "Look",
    "RunReader",
    "follow_run",
    "initial_parameters",
    "list_runs",
    "look_at_run",
    "resume_run",
    "stop_run",
    "submit_run",
]

_POLL_S = 0.5
_PATIENCE_S = 600.0
"""How long a watcher waits for a database that is gone."""


# -- submit -----------------------------------------------------------------------------------------------


def submit_run(folder: Path, database: Database, plan: RunPlan, *, start_from: Path | None = None) -> Run:
    """Write a run's folder and queue the run. Submitting the same again changes nothing.

    Args:
        folder: The home's folder of all runs.
        database: The coordinator's state.
        plan: What to do.
        start_from: A model folder whose parameters the run starts from; freshly drawn ones otherwise.

    Raises:
        FederationError: ``run-exists`` if another plan or model has the name.
        ModelError: If the network is not registered.
        CheckpointError: If the model to start from is damaged or does not fit the plan.
    """
    parameters = initial_parameters(plan, start_from)
    initial_hash = hash_tensors(parameters)
    runs = RunStore(database)
    earlier = [run for run in runs.runs() if run.run_id == plan.run_id]
    if earlier and (earlier[0].plan.hash, earlier[0].initial_hash) != (plan.hash, initial_hash):
        raise FederationError(
            "run-exists", f"Run {plan.run_id!r} was submitted with another plan or another initial model."
        )
    if not earlier:
        _write_folder(folder / plan.run_id, plan, parameters, start_from)
    return runs.submit(plan, initial_hash, actor=_actor())


def initial_parameters(plan: RunPlan, start_from: Path | None) -> Tensors:
    """Return the model of round 0: drawn with the plan's seed, or another run's result.

    Raises:
        ModelError: If the network is not registered.
        CheckpointError: If the model to start from is damaged, or is not of the plan's network and preset.
    """
    from ucadi.models.parameters import parameters_of  # loads torch, which looking at runs does not need

    training = plan.training
    fresh = parameters_of(build_network(training.network, training.task, plan.seed))
    if start_from is None:
        return fresh
    model = read_model(start_from)
    card = model.cards.get(training.task)
    if card is None or (card.network, card.preset) != (training.network, training.preset):
        has = ", ".join(f"{task}: {c.network} with preset {c.preset}" for task, c in model.cards.items())
        raise CheckpointError(
            "checkpoint-invalid",
            f"{start_from} holds {has}; the plan trains {training.network} with preset {training.preset}.",
            cure="Start from a model of the same network and preset.",
        )
    parameters = model.parameters[training.task]
    if [(n, a.shape, a.dtype) for n, a in parameters.items()] != [
        (n, a.shape, a.dtype) for n, a in fresh.items()
    ]:
        raise CheckpointError(
            "checkpoint-invalid",
            f"The parameters in {start_from} are not those of this release's {training.network}.",
            cure="Start from a model that this release made.",
        )
    return parameters


def _write_folder(folder: Path, plan: RunPlan, parameters: Tensors, start_from: Path | None) -> None:
    """Write a new run's folder so that it appears complete or not at all."""
    if (folder / "rounds").exists():
        raise FederationError(
            "run-exists",
            f"{folder} holds rounds of a run that the database does not know.",
            cure="Give the plan a new name, or check the database's URL.",
        )
    if folder.exists():  # of a submission that was killed before it reached the database
        shutil.rmtree(folder)
    from ucadi.workflows.federate import prepare_run  # loads torch

    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700, parents=True)
    try:
        prepare_run(draft, plan, parameters)
        if start_from is not None:
            path = draft / "manifest.json"
            manifest = json.loads(path.read_bytes())
            write_json(path, {**manifest, "start_from": read_model(start_from).model_id})
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


# -- look -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """One look at a run.

    Attributes:
        view: The run as it stands.
        happenings: What happened since the look before.
    """

    view: RunView
    happenings: tuple[Happening, ...]


class RunReader:
    """Looks at a run again and again, and reads each time only what is new.

    Args:
        database: The coordinator's state.
        run_id: The run.
    """

    def __init__(self, database: Database, run_id: str) -> None:
        self._runs = RunStore(database)
        self._members = MemberStore(database)
        self._run_id = run_id
        self._rounds: list[KeptRound] = []
        self._events: list[RunEvent] = []
        self._view: RunView | None = None

    def look(self) -> Look:
        """Read what is new.

        Raises:
            FederationError: ``run-unknown``.
            StoreError: If the database does not answer.
        """
        # The run comes first: whatever ended it was written before its state, so nothing is missed.
        run = self._runs.run(self._run_id)
        rounds = self._runs.rounds(self._run_id, after=len(self._rounds))
        events = self._runs.events(self._run_id, after=self._events[-1].seq if self._events else 0)
        members = self._members.sites()
        if any(event.progress.kind == ROLLED_BACK for event in events):
            self._rounds, rounds = [], self._runs.rounds(self._run_id)
        self._rounds += rounds
        self._events += events
        before = self._view
        is_same = before is not None and (before.run, [*before.members.values()]) == (run, members)
        if before is None or rounds or events or not is_same:
            self._view = view_run(run, self._rounds, self._events, members)
        view = self._view if self._view is not None else view_run(run, [], [], members)
        return Look(view, tuple(happenings_between(before, view)))


def list_runs(database: Database) -> list[RunView]:
    """Return all runs as they stand, the oldest first."""
    return [look_at_run(database, run.run_id) for run in RunStore(database).runs()]


def look_at_run(database: Database, run_id: str) -> RunView:
    """Return a run as it stands.

    Raises:
        FederationError: ``run-unknown``.
    """
    return RunReader(database, run_id).look().view


def follow_run(
    database: Database, run_id: str, *, poll_s: float = _POLL_S, patience_s: float = _PATIENCE_S
) -> Iterator[Look]:
    """Yield a look at a run every moment until nothing happens any more; the first tells all from before.

    Args:
        database: The coordinator's state.
        run_id: The run.
        poll_s: Seconds between two looks.
        patience_s: How long the database may be gone, in seconds.

    Raises:
        FederationError: ``run-unknown``.
        StoreError: If the database is damaged, or gone for longer than the patience.
    """
    reader = RunReader(database, run_id)
    look = reader.look()
    gone_since: float | None = None
    while True:
        yield look
        if look.view.is_over:
            return
        time.sleep(poll_s)
        try:
            look = reader.look()
            gone_since = None
        except StoreError as error:
            now = time.monotonic()
            if error.code != "store-unreachable" or now - (gone_since or now) > patience_s:
                raise
            happening = Happening(time.time(), "database", "the database does not answer; trying again")
            look = Look(look.view, (happening,) if gone_since is None else ())
            gone_since = gone_since or now


# -- stop and resume --------------------------------------------------------------------------------------


def stop_run(database: Database, run_id: str) -> Run:
    """Wish that a run stops at its next round boundary; one that nobody drives stops at once.

    Raises:
        FederationError: ``run-unknown``, or ``run-state`` if the run has ended.
    """
    runs = RunStore(database)
    run = runs.run(run_id)
    if run.state not in LIVE:
        raise FederationError(
            "run-state", f"Run {run_id!r} is {run.state}: there is nothing to stop.", cure="None is needed."
        )
    runs.set_wish(run_id, Wish.STOP, actor=_actor())
    if run.state is RunState.QUEUED and run.driver is None:
        runs.set_state(run_id, RunState.STOPPED, "Stopped before it began.", actor=_actor())
    return runs.run(run_id)


def resume_run(folder: Path, database: Database, run_id: str, *, from_round: int | None = None) -> int:
    """Queue a run again that stopped or failed; return how many rounds were put aside.

    Args:
        folder: The home's folder of all runs.
        database: The coordinator's state.
        run_id: The run.
        from_round: The complete round to go on from; 0 is the initial model. The last one when not given.

    Raises:
        FederationError: ``run-unknown``, ``run-state`` or ``round-unknown``.
        CheckpointError: If the model to go on from is not the one that the database names.
    """
    runs = RunStore(database)
    standing = runs.state(run_id)
    run = standing.run
    if run.state not in (RunState.STOPPED, RunState.FAILED):
        cure = "Watch it with `ucadi run watch`." if run.state in LIVE else "Submit a new plan."
        raise FederationError(
            "run-state",
            f"Run {run_id!r} is {run.state}; only one that stopped or failed can be resumed.",
            cure=cure,
        )
    number = standing.last_round if from_round is None else from_round
    if number not in standing.model_hashes:
        raise FederationError(
            "round-unknown", f"Run {run_id!r} has rounds 0 to {standing.last_round}, not {number}."
        )
    _check_model(folder / run_id, number, standing.model_hashes[number])
    count = 0
    if from_round is not None:
        _copy_aside(folder / run_id, number)
        count = roll_back(database, run_id, number, actor=_actor())
        _remove_later(folder / run_id, number)
    (folder / run_id / "outcome.json").unlink(missing_ok=True)  # it told how the run had ended
    runs.add_event(run_id, Progress(RESUMED, number + 1, ""))
    runs.set_state(run_id, RunState.QUEUED, actor=_actor())
    return count


def _check_model(folder: Path, number: int, model_hash: str) -> None:
    """Refuse to go on from a model that is damaged."""
    path = folder / "rounds" / f"{number:04d}.safetensors" if number else folder / "initial.safetensors"
    if hash_tensors(read_tensors(path)[0]) != model_hash:
        raise CheckpointError(
            "checkpoint-invalid",
            f"{path} is not the model that the database names for round {number}.",
            cure="Restore the file, or resume from another round with --from-round.",
        )


def _later_files(folder: Path, number: int) -> list[Path]:
    """Return the files of all rounds after one, and of the outcome that followed from them."""
    rounds = [p for p in (folder / "rounds").glob("*") if p.stem.isdigit() and int(p.stem) > number]
    return rounds + [p for p in (folder / "outcome.json", folder / "model.safetensors") if p.is_file()]


def _copy_aside(folder: Path, number: int) -> None:
    """Copy the files of later rounds to a folder of their own, before anything is changed."""
    later = _later_files(folder, number)
    if not later:
        return
    earlier = [int(path.name) for path in (folder / "aside").glob("*") if path.name.isdigit()]
    aside = folder / "aside" / f"{max(earlier, default=0) + 1:04d}"
    aside.mkdir(mode=0o700, parents=True)
    for path in later:
        shutil.copy2(path, aside / path.name)


def _remove_later(folder: Path, number: int) -> None:
    """Remove the files of later rounds, which were copied aside."""
    for path in _later_files(folder, number):
        path.unlink()


def _actor() -> str:
    """Return who gives a command, for the audit log."""
    try:
        return f"operator:{getpass.getuser()[:60]}"
    except (KeyError, OSError):  # a container's user without a name
        return f"operator:{os.getuid()}"
