# SPDX-License-Identifier: Apache-2.0
"""`ucadi run`: submit, look at, follow, stop, resume and export the federation's runs."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ucadi.cli.output import check_free, claim_folder, print_json
from ucadi.cli.watch import exit_status_of, line_of, watch_as_json, watch_as_lines, watch_live

if TYPE_CHECKING:
    from ucadi.workflows.coordinator_home import CoordinatorHome
    from ucadi.workflows.run_view import RunView
    from ucadi.workflows.runs import Database

__all__ = ["run"]

run = typer.Typer(help="The federation's runs, at the coordinator.", no_args_is_help=True)

Home = Annotated[Path, typer.Option("--home", envvar="UCADI_HOME", help="The coordinator's home.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON line per happening.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")]

_HOME = Path("ucadi-coordinator")
_HASH_SHOWN = 12


@run.command()
def submit(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan in a TOML file.")],
    home: Home = _HOME,
    start_from: Annotated[
        Path | None, typer.Option(help="A model folder to start from, instead of a fresh model.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done; needs no home.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Queue a run. The sites decide about the plan before anything is trained."""
    from ucadi.workflows.plan_file import describe_plan, load_plan

    plan = load_plan(plan_file)
    words = describe_plan(plan)
    state = "not submitted"
    if not dry_run:
        from ucadi.workflows.runs import submit_run

        with _opened(home) as (place, database):
            state = submit_run(place.runs, database, plan, start_from=start_from).state.value
    elif start_from is not None:
        from ucadi.workflows.runs import initial_parameters

        initial_parameters(plan, start_from)  # says when it does not fit
    if as_json:
        described = dict(words)
        print_json({"run_id": plan.run_id, "plan_hash": plan.hash, "state": state, "plan": described})
        return
    for heading, said in words:
        typer.echo(f"{heading:<14} {said}")
    typer.echo("")
    if dry_run:
        typer.echo("Nothing was submitted.")
        return
    typer.echo(f"Run {plan.run_id} is {state}. Follow it with: ucadi run watch {plan.run_id}")


@run.command("list")
def list_(home: Home = _HOME, as_json: Json = False) -> None:
    """List all runs, the oldest first."""
    from ucadi.workflows.runs import list_runs

    with _opened(home) as (_, database):
        views = list_runs(database)
    if as_json:
        keys = ("run_id", "state", "reason", "plan_hash", "submitted_s", "complete_rounds", "best_round")
        rows = [{key: view.to_json()[key] for key in keys} for view in views]
        print_json({"runs": [row | {"rounds": v.plan.rounds} for row, v in zip(rows, views, strict=True)]})
        return
    if not views:
        typer.echo("No run was submitted yet.")
        return
    rows_shown = [
        [
            view.run.run_id,
            view.run.state.value,
            f"{view.trained_rounds}/{view.plan.rounds}",
            _score(dict(view.validations).get(view.best_round)) if view.best_round is not None else "-",
            view.plan.hash[:_HASH_SHOWN],
        ]
        for view in views
    ]
    _print_table(["run", "state", "rounds", "best score", "plan"], rows_shown, right=(2, 3))


@run.command()
def show(run_id: RunName, home: Home = _HOME, as_json: Json = False) -> None:
    """Show a run's plan, state, rounds and best models."""
    from ucadi.workflows.runs import look_at_run

    with _opened(home) as (_, database):
        view = look_at_run(database, run_id)
    if as_json:
        print_json(view.to_json())
        return
    _print_run(view)


@run.command()
def watch(
    run_id: RunName,
    home: Home = _HOME,
    as_json: JsonLines = False,
    interval_s: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds.")] = 0.5,
) -> None:
    """Follow a run live until it ends; exit status 0 when it was completed, else 1."""
    from ucadi.workflows.runs import follow_run

    with _opened(home) as (_, database):
        looks = follow_run(database, run_id, poll_s=interval_s)
        if as_json:
            state = watch_as_json(looks)
        elif sys.stdout.isatty():
            state = watch_live(looks)
        else:
            state = watch_as_lines(looks)
    raise typer.Exit(exit_status_of(state))


@run.command()
def logs(
    run_id: RunName,
    home: Home = _HOME,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    as_json: JsonLines = False,
) -> None:
    """Print everything that happened in a run, one line each."""
    from ucadi.workflows.runs import RunReader, follow_run

    with _opened(home) as (_, database):
        looks = follow_run(database, run_id) if follow else [RunReader(database, run_id).look()]
        for look in looks:
            for happening in look.happenings:
                typer.echo(json.dumps(happening.to_json()) if as_json else line_of(happening))


@run.command()
def stop(run_id: RunName, home: Home = _HOME, as_json: Json = False) -> None:
    """Stop a run at its next round boundary; nothing that is complete is lost."""
    from ucadi.workflows.runs import stop_run

    with _opened(home) as (_, database):
        stopped = stop_run(database, run_id)
    if as_json:
        print_json({"run_id": run_id, "state": stopped.state.value, "wish": stopped.wish.value})
    elif stopped.state.value == "stopped":
        typer.echo(f"Run {run_id} is stopped.")
    else:
        typer.echo(f"Run {run_id} stops at the end of its round, or at once while it waits for sites.")


@run.command()
def resume(
    run_id: RunName,
    home: Home = _HOME,
    from_round: Annotated[
        int | None,
        typer.Option(min=0, help="Go back to this complete round; later ones are kept aside."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Queue a run again that was stopped or failed."""
    from ucadi.workflows.runs import resume_run

    with _opened(home) as (place, database):
        aside = resume_run(place.runs, database, run_id, from_round=from_round)
    if as_json:
        print_json({"run_id": run_id, "state": "queued", "rounds_aside": aside})
        return
    words = f"; {aside} later rounds are kept aside" if aside else ""
    typer.echo(f"Run {run_id} is queued{words}.")


@run.command()
def export(
    run_id: RunName,
    home: Home = _HOME,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the files.")] = None,
    models: Annotated[str, typer.Option(help="none, best, last or all.")] = "best",
    tensorboard: Annotated[
        Path | None, typer.Option(help="TensorBoard's log folder; the run gets its own in it.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="MLflow's address, or a folder for a local database.")
    ] = None,
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder for the files.")] = False,
) -> None:
    """Write a run's metrics, records and models for other programs."""
    from ucadi.workflows.run_export import ModelChoice, export_run, export_to_mlflow, export_to_tensorboard

    if out is None and tensorboard is None and mlflow is None:
        raise typer.BadParameter("Give -o, --tensorboard or --mlflow.")
    if models not in list(ModelChoice):
        raise typer.BadParameter(f"{models!r} is none of: {', '.join(ModelChoice)}.", param_hint="--models")
    done: dict[str, object] = {"run_id": run_id}
    with _opened(home) as (place, database):
        if out is not None:
            check_free(out, force=force, inputs=(place.folder,))
            _require_run(database, run_id)
            claim_folder(out, force=force, inputs=(place.folder,))
            done["files"] = export_run(place.runs, database, run_id, out, ModelChoice(models))
        if tensorboard is not None:
            done["tensorboard"] = export_to_tensorboard(database, run_id, tensorboard).name
        if mlflow is not None:
            done["mlflow"] = export_to_mlflow(database, run_id, mlflow)
    if as_json:
        print_json(done)
        return
    if out is not None:
        typer.echo(f"{out}: {', '.join(map(str, done['files']))}")  # type: ignore[call-overload]  # a list
    if tensorboard is not None:
        typer.echo(f"TensorBoard: {tensorboard / run_id}; see it with: tensorboard --logdir {tensorboard}")
    if mlflow is not None:
        typer.echo(f"MLflow: run {done['mlflow']} in {mlflow}")


@contextmanager
def _opened(home: Path) -> "Iterator[tuple[CoordinatorHome, Database]]":
    """Open a coordinator's home and its database."""
    from ucadi.workflows.coordinator_home import CoordinatorHome

    place = CoordinatorHome.open(home)
    database = place.open_database()
    try:
        yield place, database
    finally:
        database.close()


def _require_run(database: "Database", run_id: str) -> None:
    """Refuse an unknown run before an old export is given up."""
    from ucadi.workflows.runs import look_at_run

    look_at_run(database, run_id)


def _print_run(view: "RunView") -> None:
    """Print a run for a person."""
    from ucadi.workflows.plan_file import describe_plan
    from ucadi.workflows.run_happenings import size_words, time_words

    for heading, said in describe_plan(view.plan):
        typer.echo(f"{heading:<14} {said}")
    reason = f": {view.run.reason}" if view.run.reason else ""
    typer.echo(f"{'State':<14} {view.run.state}{reason}")
    if view.run.wish.value == "stop" and not view.is_over:
        typer.echo(f"{'Wish':<14} stop at the end of the round")
    if view.waiting:
        typer.echo(f"{'Waiting':<14} {view.waiting}")
    if view.elapsed_s is not None:
        typer.echo(f"{'So far':<14} {time_words(view.elapsed_s)}, {size_words(view.upload_bytes)} received")
    scores = dict(view.validations)
    if view.best_round is not None:
        typer.echo(f"{'Best model':<14} round {view.best_round}, score {scores[view.best_round]:.3f}")
        own = ", ".join(f"{site} round {number}" for site, number in view.own_best.items())
        typer.echo(f"{'Own best':<14} {own}")
    rows = [["0", "", "", _score(scores.get(0)), "", ""]] if 0 in scores else []
    for kept in view.rounds[: view.plan.rounds]:
        record = kept.record
        rows.append(
            [
                str(record.round),
                ", ".join(record.participants),
                ", ".join(f"{site} ({why})" for site, why in sorted(record.missing.items())),
                _score(scores.get(record.round)),
                time_words(kept.seconds),
                size_words(record.upload_bytes),
            ]
        )
    if rows:
        typer.echo("")
        _print_table(["round", "participants", "missing", "score", "time", "bytes"], rows, right=(0, 3, 4, 5))


def _score(value: float | None) -> str:
    """Return a score, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def _print_table(heads: list[str], rows: list[list[str]], *, right: tuple[int, ...]) -> None:
    """Print a table to stdout, folded to the width of the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
