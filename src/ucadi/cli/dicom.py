# SPDX-License-Identifier: Apache-2.0
"""`ucadi dicom`: studies to and from image servers, and de-identification."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ucadi.cli.output import check_free, console_error, mark_folder, print_json
from ucadi.errors import ConfigError, ExitStatus

if TYPE_CHECKING:
    from ucadi.workflows.pacs import Trust

__all__ = ["dicom"]

dicom = typer.Typer(
    help="Studies to and from image servers.\n\n"
    "An address is https://host/path for DICOMweb, or dicom://TITLE@host:port for DIMSE; dicoms:// has TLS.",
    no_args_is_help=True,
)

User = Annotated[str, typer.Option(help="User for DICOMweb [default: $UCADI_PACS_USER].")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="File with the password [default: $UCADI_PACS_PASSWORD]."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="File with a bearer token [default: $UCADI_PACS_TOKEN]."),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca", exists=True, dir_okay=False, help="PEM file of authorities to trust instead of the usual."
    ),
]
Certificate = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="PEM file of our own certificate.")
]
Key = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="PEM file of its key.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Accept a network without encryption.")]
Title = Annotated[str, typer.Option("--aet", help="Our own application entity title, for DIMSE.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Address = "Address of the server."


@dicom.command()
def send(
    files: Annotated[list[Path], typer.Argument(exists=True, help="DICOM files and folders.")],
    to: Annotated[str, typer.Option("--to", help=Address)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Greet the server and send nothing.")] = False,
    user: User = "",
    password_file: PasswordFile = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    insecure: Insecure = False,
    aet: Title = "UCADI",
    as_json: Json = False,
) -> None:
    """Store DICOM files on a server."""
    from ucadi.workflows.pacs import connect, read_credentials
    from ucadi.workflows.pacs import send as send_files

    credentials = read_credentials(user, password_file, token_file)
    server = connect(to, title=aet, credentials=credentials, trust=_trust(ca, certificate, key, insecure))
    sent = send_files(server, files, on_progress=_tell, dry_run=dry_run)
    stored = 0 if dry_run else sent.files - len(sent.rejected)
    for rejected in sent.rejected:
        console_error().print(f"{rejected.path}: {rejected.reason}", markup=False, highlight=False)
    if as_json:
        print_json({"files": sent.files, "stored": stored, "rejected": sent.reasons})
    elif dry_run:
        typer.echo(f"{sent.files} files would be sent; the server answers.")
    else:
        typer.echo(f"{stored} of {sent.files} files stored.")
    if sent.rejected:
        raise typer.Exit(ExitStatus.FAILED)


@dicom.command()
def query(
    source: Annotated[str, typer.Option("--from", help=Address)],
    level: Annotated[Literal["study", "series"], typer.Option(help="What to list.")] = "study",
    study: Annotated[str, typer.Option(help="UID of a study; needed to list series.")] = "",
    patient_id: Annotated[str, typer.Option(help="The patient's id at the server.")] = "",
    study_date: Annotated[str, typer.Option(help="20210131, or 20210101-20210131.")] = "",
    modality: Annotated[str, typer.Option(help="Such as CT.")] = "",
    user: User = "",
    password_file: PasswordFile = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    insecure: Insecure = False,
    aet: Title = "UCADI",
    as_json: Json = False,
) -> None:
    """List studies on a server, or the series of one study."""
    from dataclasses import asdict

    from ucadi.workflows.pacs import Level, Query, connect, read_credentials

    wanted = Query(Level(level), patient_id, study_date, modality, study)
    credentials = read_credentials(user, password_file, token_file)
    server = connect(source, title=aet, credentials=credentials, trust=_trust(ca, certificate, key, insecure))
    found = server.query(wanted)
    if as_json:
        print_json({"matches": [asdict(match) for match in found]})
        return
    for match in found:
        images = "?" if match.images is None else match.images
        parts = (
            match.series or match.study,
            match.patient_id,
            match.study_date,
            match.modality,
            f"{images} images",
        )
        typer.echo("  ".join(part for part in (*parts, match.description) if part))
    console_error().print(f"{len(found)} {'series' if level == 'series' else 'studies'}", highlight=False)


@dicom.command()
def pull(
    source: Annotated[str, typer.Option("--from", help=Address)],
    study: Annotated[str, typer.Option(help="UID of the study.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images.")],
    series: Annotated[str, typer.Option(help="UID of one series [default: all].")] = "",
    move_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Have the images sent to this port by C-MOVE [default: C-GET]."),
    ] = None,
    user: User = "",
    password_file: PasswordFile = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    insecure: Insecure = False,
    aet: Title = "UCADI",
    as_json: Json = False,
) -> None:
    """Bring a study, or one series of it, from a server into a new folder."""
    from ucadi.workflows.pacs import connect, read_credentials
    from ucadi.workflows.pacs import pull as pull_images

    check_free(out, force=None)
    credentials = read_credentials(user, password_file, token_file)
    trust = _trust(ca, certificate, key, insecure)
    server = connect(source, title=aet, credentials=credentials, trust=trust, move_port=move_port)
    images = pull_images(server, study, series, out, on_progress=_tell)
    if as_json:
        print_json({"images": images})
    else:
        typer.echo(f"{images} images in {out}")


@dicom.command()
def listen(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any that is free.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images.")],
    aet: Annotated[str, typer.Option("--aet", help="Our application entity title.")] = "UCADI",
    allow: Annotated[
        list[str] | None, typer.Option(help="Title that may send; give it again for more [default: any].")
    ] = None,
    bind: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines send.")
    ] = "127.0.0.1",
    once: Annotated[bool, typer.Option("--once", help="Stop after the first delivery.")] = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Take in the images that others send by C-STORE."""
    from ucadi.workflows.pacs import listen as take_in

    def ready(at: int) -> None:
        console_error().print(f"Listening as {aet} at {bind}:{at}; Ctrl-C ends it.", highlight=False)

    trust = _trust(ca, certificate, key, insecure)
    images = take_in(
        out,
        (bind, port),
        aet,
        allow=allow or [],
        trust=trust,
        once=once,
        on_ready=ready,
        on_stored=lambda images: _tell(images, 0),
    )
    if as_json:
        print_json({"images": images})
    else:
        typer.echo(f"{images} images in {out}")


@dicom.command()
def deid(
    source: Annotated[Path, typer.Argument(help="DICOM or NIfTI file, or a folder of them.")],
    out: Annotated[Path, typer.Argument(help="Folder for the files without identity.")],
    key_file: Annotated[Path, typer.Option(help="The site's key, which never leaves the site.")],
    new_key: Annotated[bool, typer.Option("--new-key", help="Make the key file first.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Replace who the patient is by pseudonyms, UIDs and dates that follow from the site's key."""
    from ucadi.workflows.deidentify import deidentify, describe_deid

    check_free(out, force=force, inputs=(source, key_file))
    report = deidentify(source, out, key_file, new_key=new_key, on_progress=_tell)
    mark_folder(out)
    if as_json:
        print_json(report.to_json())
    else:
        typer.echo(describe_deid(report))
    if report.damaged:
        raise typer.Exit(ExitStatus.REFUSED_INPUT)


def _trust(ca: Path | None, certificate: Path | None, key: Path | None, insecure: bool) -> "Trust":
    """Return the options about encryption as one record."""
    from ucadi.workflows.pacs import Trust

    if (certificate is None) != (key is None):
        given, missing = ("--certificate", "--key") if key is None else ("--key", "--certificate")
        raise ConfigError("config-invalid", f"{given} is given, {missing} is not.", cure="Give both.")
    return Trust(ca, certificate, key, insecure)


def _tell(done: int, total: int) -> None:
    """Show progress to a person: all on one line, or a line now and then when the end is not known."""
    if sys.stderr.isatty():
        if total:
            typer.echo(f"\rfile {done}/{total}", nl=done == total, err=True)
        elif done % 100 == 0:
            typer.echo(f"{done} images", err=True)
