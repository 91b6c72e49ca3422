# SPDX-License-Identifier: Apache-2.0
"""`ucadi phantom make`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ucadi.cli.output import claim_folder

__all__ = ["phantom"]

phantom = typer.Typer(help="Synthetic chest CTs with known truth.", no_args_is_help=True)


@phantom.callback()
def _group() -> None:
    """Keep `make` a command of its own group."""


@phantom.command()
def make(
    site: Annotated[Literal["A", "B", "C", "D"], typer.Option(help="Scanner style and class mix.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the cohort.")],
    patients: Annotated[int, typer.Option(min=1, max=100_000, help="How many patients.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same cohort.")] = 0,
    matrix: Annotated[int, typer.Option(min=64, max=512, help="Pixels per row and column.")] = 128,
    masks: Annotated[bool, typer.Option(help="Write lesion masks.")] = True,
    dicom: Annotated[bool, typer.Option(help="Write DICOM series beside the NIfTI files.")] = True,
    held_out: Annotated[bool, typer.Option("--held-out", help="All patients in the test split.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder.")] = False,
) -> None:
    """Make a cohort of synthetic patients: CT, lesion masks, labels and splits."""
    from ucadi.workflows.phantom import make_cohort

    claim_folder(out, force=force)

    def tell(done: int, total: int) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\rpatient {done}/{total}", nl=done == total, err=True)

    cohort = make_cohort(
        site,
        patients,
        seed,
        out,
        matrix=matrix,
        masks=masks,
        dicom=dicom,
        splits=(0.0, 0.0, 1.0) if held_out else (0.75, 0.25, 0.0),
        on_progress=tell,
    )
    typer.echo(f"{len(cohort.studies)} studies in {out}")
