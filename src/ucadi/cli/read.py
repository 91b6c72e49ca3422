# SPDX-License-Identifier: Apache-2.0
"""`ucadi inspect` and `ucadi predict`."""

from pathlib import Path
from typing import Annotated

import typer

from ucadi.cli.output import check_free, console_error, mark_folder, print_json
from ucadi.errors import ExitStatus

__all__ = ["inspect", "predict"]

Source = Annotated[Path, typer.Argument(help="DICOM folder, file or zip, or a NIfTI file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]


def inspect(source: Source, as_json: Json = False) -> None:
    """Tell what an input holds and whether a result may rest on it."""
    from ucadi.workflows.inspect import describe, inspect_ct

    report = inspect_ct(source)
    if as_json:
        print_json(report.to_json())
    else:
        typer.echo(describe(report))
    if report.verdict == "refused":
        raise typer.Exit(ExitStatus.REFUSED_INPUT)


def predict(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    model: Annotated[
        Path | None, typer.Option(help="Released model folder [default: $UCADI_MODEL or demo-out/model].")
    ] = None,
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the results folder.")] = False,
) -> None:
    """Read a chest CT: probabilities, lesion mask, volumes, pictures and a report."""
    from ucadi.workflows.predict import RESULT_FILES, default_model
    from ucadi.workflows.predict import predict as read

    folder = model or default_model()
    check_free(out, force=force, inputs=(source, folder))
    record = read(source, out, folder)
    mark_folder(out)
    if as_json:
        print_json(record.to_json())
        return
    found, measured = record.classification, record.segmentation
    typer.echo(found.statement)
    typer.echo(f"Lesions: {measured.lesion_ml:.1f} mL, {measured.lesion_share_percent:.1f} % of the lungs.")
    typer.echo(f"Report: {out / RESULT_FILES['report']}")
    console_error().print(record.to_json()["notice"], style="dim")
