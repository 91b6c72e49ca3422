# SPDX-License-Identifier: Apache-2.0
"""`ucadi inspect`, `ucadi convert` and `ucadi predict`."""

from pathlib import Path
from typing import Annotated

import typer

from ucadi.cli.output import check_free, check_new_file, console_error, mark_folder, print_json
from ucadi.errors import ExitStatus

__all__ = ["convert", "inspect", "predict"]

Source = Annotated[
    Path, typer.Argument(help="DICOM folder, file, DICOMDIR or zip, or a NIfTI, NRRD or MetaImage file.")
]
SeriesOption = Annotated[
    str,
    typer.Option("--series", help="UID, number, or key as `ucadi inspect` prints it, of the series to take."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]


def inspect(source: Source, series: SeriesOption = "", as_json: Json = False) -> None:
    """Tell what an input holds and whether a result may rest on it."""
    from ucadi.workflows.inspect import describe, inspect_ct

    report = inspect_ct(source, series=series)
    if as_json:
        print_json(report.to_json())
    else:
        typer.echo(describe(report))
    if report.verdict == "refused":
        raise typer.Exit(ExitStatus.REFUSED_INPUT)


def convert(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="The volume's file, .nii or .nii.gz.")],
    series: SeriesOption = "",
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write the repaired volume as NIfTI, and beside it a report of what was found and done."""
    from ucadi.workflows.convert import convert as write
    from ucadi.workflows.convert import report_path
    from ucadi.workflows.inspect import describe

    for path in (out, report_path(out)):
        check_new_file(path, force=force, inputs=(source,))
    report = write(source, out, series=series)
    if as_json:
        print_json(report.to_json())
        return
    typer.echo(describe(report))
    typer.echo(f"Volume: {out}\nReport: {report_path(out)}")


def predict(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    model: Annotated[
        Path | None, typer.Option(help="Released model folder [default: $UCADI_MODEL or demo-out/model].")
    ] = None,
    series: SeriesOption = "",
    dicom: Annotated[
        bool, typer.Option("--dicom", help="Write results for the PACS too: SEG, SR and a key image.")
    ] = False,
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the results folder.")] = False,
) -> None:
    """Read a chest CT: probabilities, lesion and lung masks, volumes, pictures and a report."""
    from ucadi.workflows.predict import RESULT_FILES, default_model
    from ucadi.workflows.predict import predict as read

    folder = model or default_model()
    check_free(out, force=force, inputs=(source, folder))
    record = read(source, out, folder, series=series, dicom=dicom)
    mark_folder(out)
    if as_json:
        print_json(record.to_json())
        return
    found, measured = record.classification, record.segmentation
    typer.echo(found.statement)
    typer.echo(f"Lesions: {measured.lesion_ml:.1f} mL, {measured.lesion_share_percent:.1f} % of the lungs.")
    typer.echo(f"Report: {out / RESULT_FILES['report']}")
    console_error().print(record.to_json()["notice"], style="dim")
