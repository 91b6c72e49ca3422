# SPDX-License-Identifier: Apache-2.0
"""`ucadi cohort import`, `check` and `show`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ucadi.cli.output import console_error, print_json
from ucadi.cli.progress import progress_bars
from ucadi.errors import ExitStatus

if TYPE_CHECKING:
    from ucadi.workflows.cohort import ImportResult
    from ucadi.workflows.cohort_check import CohortSummary
    from ucadi.workflows.cohort_plan import ImportPlan

__all__ = ["cohort"]

cohort = typer.Typer(help="A site's studies: import, check, count.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The cohort's folder.")]
Jobs = Annotated[int, typer.Option(min=0, max=64, help="Processes; 0 takes two, or one on a single core.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]

_MOST_SHOWN = 50
"""Lines per list on the screen; --json gives all."""


@cohort.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder of studies, or a CSV table that names them.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the cohort; may hold an earlier import.")
    ],
    key_file: Annotated[Path, typer.Option(help="The site's key, which never leaves the site.")],
    labels: Annotated[
        Path | None, typer.Option(help="CSV with path, study or patient, and label, severity, mask.")
    ] = None,
    split: Annotated[str, typer.Option(help="Shares of training/validation/test.")] = "70/15/15",
    jobs: Jobs = 0,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make the key file first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be imported.")] = False,
    as_json: Json = False,
) -> None:
    """Make a cohort of a site's studies; what was converted before is not converted again."""
    from ucadi.workflows.cohort import import_cohort
    from ucadi.workflows.cohort_plan import ImportSettings, plan_import
    from ucadi.workflows.parallel import usual_jobs

    settings = ImportSettings.from_options(
        source, labels, out, key_file, split, jobs or usual_jobs(), is_new_key=new_key
    )
    with progress_bars() as show:
        plan = plan_import(settings, show)
    _print_lines([str(problem) for problem in (*plan.problems, *plan.unused)])
    _print_lines([f"{name}: cannot be read" for name in plan.damaged])
    if plan.problems:
        if as_json:
            print_json({"problems": [vars(problem) for problem in plan.problems]})
        raise typer.Exit(ExitStatus.REFUSED_INPUT)
    if dry_run:
        _print_plan(plan, as_json=as_json)
        return
    with progress_bars() as show:
        result = import_cohort(plan, settings, show)
    _print_left_out(result)
    if as_json:
        print_json(result.to_json())
        return
    typer.echo(
        f"{result.imported} of {len(plan.studies)} studies imported ({result.reused} of them earlier); "
        f"{len(result.cohort.studies)} in {out}"
    )


@cohort.command()
def check(
    folder: Folder,
    quick: Annotated[bool, typer.Option("--quick", help="Leave images and masks unread.")] = False,
    jobs: Jobs = 0,
    as_json: Json = False,
) -> None:
    """List everything that is wrong with a cohort; exit status 3 when there is something."""
    from ucadi.workflows.cohort_check import check_cohort
    from ucadi.workflows.parallel import usual_jobs

    with progress_bars() as show:
        result = check_cohort(folder, is_quick=quick, jobs=jobs or usual_jobs(), on_progress=show)
    if as_json:
        print_json(result.to_json())
    else:
        for problem in result.problems:
            typer.echo(problem)
        notes = sum(problem.is_note for problem in result.problems)
        typer.echo(f"{result.studies} studies, {len(result.problems) - notes} problems, {notes} notes")
    if not result.is_fine:
        raise typer.Exit(ExitStatus.REFUSED_INPUT)


@cohort.command()
def show(
    folders: Annotated[list[Path], typer.Argument(help="Folders of cohorts, for example one a site.")],
    as_json: Json = False,
) -> None:
    """Count studies by split, class and severity."""
    from ucadi.workflows.cohort_check import summarize_cohort

    summaries = [summarize_cohort(folder) for folder in folders]
    if as_json:
        print_json({"cohorts": [vars(summary) for summary in summaries]})
        return
    for summary in summaries:
        _print_summary(summary)


def _print_lines(lines: list[str]) -> None:
    """Print lines on stderr, as many as a person reads."""
    screen = console_error()
    for line in lines[:_MOST_SHOWN]:
        screen.print(line, markup=False, highlight=False)
    if len(lines) > _MOST_SHOWN:
        screen.print(f"... and {len(lines) - _MOST_SHOWN} more")


def _print_plan(plan: "ImportPlan", *, as_json: bool) -> None:
    """Print what an import would do."""
    usable = [study for study in plan.studies if not study.fault[0]]
    _print_lines([f"{s.name}: {s.fault[0]}: {s.fault[1]}" for s in plan.studies if s.fault[0]])
    counts: dict[str, Any] = {
        "files": plan.files,
        "passed_over": plan.passed_over,
        "damaged": len(plan.damaged),
        "studies": len(plan.studies),
        "usable": len(usable),
        "patients": len({study.patient_key for study in usable}),
        "without_patient": plan.without_patient,
        "by_class": plan.counts(),
    }
    if as_json:
        print_json(counts)
        return
    typer.echo(
        f"{len(usable)} of {len(plan.studies)} studies of {counts['patients']} patients would be imported; "
        f"{plan.passed_over} of {plan.files} files belong to no study"
    )
    if plan.without_patient:
        typer.echo(
            f"{plan.without_patient} studies name no patient: each counts as a patient of its own. "
            "Name patients in the table of labels if some have several studies."
        )
    for name, classes in plan.counts().items():
        typer.echo(f"{name}: " + (", ".join(f"{label} {n}" for label, n in classes.items()) or "none"))


def _print_left_out(result: "ImportResult") -> None:
    """Print what was left out: each study with its place in the source, then the number by code."""
    _print_lines([f"{s.name} ({s.study_key}): {s.code}: {s.reason} {s.cure}" for s in result.left_out])
    for code, count in result.to_json()["left_out_by_code"].items():
        console_error().print(f"left out: {count} x {code}", markup=False, highlight=False)


def _print_summary(summary: "CohortSummary") -> None:
    """Print one cohort's numbers as a table."""
    from ucadi.types import FindingClass, Severity

    typer.echo(f"{summary.name}: {summary.studies} studies, {summary.patients} patients")
    names = [*FindingClass.__members__, *Severity.__members__]
    heads = [
        "split",
        *FindingClass.__members__,
        *(f"severity {name}" for name in Severity.__members__),
        "all",
    ]
    rows = [heads]
    for split, classes in summary.by_class.items():
        counts = classes | summary.by_severity[split]
        rows.append([split, *(str(counts.get(name, 0)) for name in names), str(sum(classes.values()))])
    for first, *others in rows:
        cells = (f"{cell:>{len(head)}}" for cell, head in zip(others, heads[1:], strict=True))
        typer.echo("  ".join([f"{first:<10}", *cells]))
    verdicts = ", ".join(f"{verdict} {count}" for verdict, count in summary.by_verdict.items())
    typer.echo(f"{summary.masks} with a lesion mask; loader's verdicts: {verdicts or 'none'}")
