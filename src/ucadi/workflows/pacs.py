# SPDX-License-Identifier: Apache-2.0
"""Send, find, pull and receive studies: one address says which protocol is spoken."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ucadi.errors import ConfigError
from ucadi.pacs.dicomweb import Credentials, DicomWeb
from ucadi.pacs.dimse import Dimse
from ucadi.pacs.dimse_store import StorageServer, server_tls
from ucadi.pacs.inbox import Inbox
from ucadi.pacs.peer import is_title, parse_peer
from ucadi.pacs.server import (
    Level,
    OnProgress,
    Pacs,
    Query,
    Rejected,
    Trust,
    find_instances,
    is_loopback,
    is_uid,
)

__all__ = ["Level", "Query", "Sent", "Trust", "connect", "listen", "pull", "read_credentials", "send"]

_SECRET_BYTES = 2**16


@dataclass(frozen=True)
class Sent:
    """What became of files that were to be sent.

    Attributes:
        files: How many DICOM files were found.
        rejected: Those that the server did not take, with its reasons.
    """

    files: int
    rejected: tuple[Rejected, ...]

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason was given."""
        return dict(Counter(rejected.reason for rejected in self.rejected))


def connect(
    url: str,
    *,
    title: str = "UCADI",
    credentials: Credentials | None = None,
    trust: Trust | None = None,
    move_port: int | None = None,
) -> Pacs:
    """Return the image server at an address; nothing is sent to it yet.

    Args:
        url: ``https://host/path`` for DICOMweb; ``dicom://TITLE@host:port`` for DIMSE, or ``dicoms://``.
        title: Our own application entity title, for DIMSE.
        credentials: Who we are, for DICOMweb.
        trust: Whom we trust.
        move_port: Our port for images to come in by C-MOVE, for DIMSE; None for C-GET.

    Raises:
        ConfigError: ``pacs-address``, ``pacs-insecure``, or ``config-invalid`` for a title that is none.
    """
    trust = trust or Trust()
    if url.startswith(("dicom://", "dicoms://")):
        _check_title(title)
        return Dimse(parse_peer(url, allow_plain=trust.allow_plain), title, trust, move_port=move_port)
    return DicomWeb(url, credentials, trust)


def read_credentials(
    user: str,
    password_file: Path | None,
    token_file: Path | None,
    environment: Mapping[str, str] = os.environ,
) -> Credentials:
    """Return who we are. Secrets come from files or the environment, never from a command line.

    Args:
        user: The user's name; empty for ``UCADI_PACS_USER``.
        password_file: Holds the password; None for ``UCADI_PACS_PASSWORD``.
        token_file: Holds a bearer token; None for ``UCADI_PACS_TOKEN``.
        environment: Where the variables are.

    Raises:
        ConfigError: ``pacs-credentials`` for a user without a password, or a secret that is not one line.
    """
    user = user or environment.get("UCADI_PACS_USER", "")
    password = _secret(password_file, environment.get("UCADI_PACS_PASSWORD", ""))
    token = _secret(token_file, environment.get("UCADI_PACS_TOKEN", ""))
    if bool(user) != bool(password):
        raise ConfigError("pacs-credentials", "A user needs a password, and a password a user.")
    if ":" in user:
        raise ConfigError("pacs-credentials", "A user's name cannot hold a colon.")
    if user and token:
        raise ConfigError("pacs-credentials", "Both a password and a token were given.")
    return Credentials(user, password, token)


def send(
    pacs: Pacs,
    paths: Sequence[Path],
    *,
    on_progress: OnProgress = lambda done, total: None,
    dry_run: bool = False,
) -> Sent:
    """Store all DICOM files among paths and below folders on a server.

    Args:
        pacs: The server.
        paths: Files and folders.
        on_progress: Called with how many files are done and how many there are.
        dry_run: Greet the server and send nothing.

    Raises:
        DicomError: ``dicom-none``.
    """
    instances = find_instances(paths)
    if dry_run:
        pacs.check()
        return Sent(len(instances), ())
    return Sent(len(instances), pacs.send(instances, on_progress))


def pull(
    pacs: Pacs,
    study: str,
    series: str,
    folder: Path,
    *,
    on_progress: OnProgress = lambda done, total: None,
) -> int:
    """Bring a study, or one series of it, into a new or empty folder: all of it, or nothing appears there.

    Args:
        pacs: The server.
        study: UID.
        series: UID; empty for the whole study.
        folder: Where ``<study>/<series>/<instance>.dcm`` go, all named by hashes.
        on_progress: Called with how many images have come and how many there are, 0 when that is not known.

    Returns:
        How many images came.

    Raises:
        ConfigError: ``config-invalid`` for a UID that is none.
        DataError: ``pacs-no-match``.
    """
    if not is_uid(study) or (series and not is_uid(series)):
        raise ConfigError("config-invalid", "A UID is not digits and dots.", cure="Mend --study or --series.")
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, so that renaming moves no bytes.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", suffix=".part", dir=folder.parent) as part:
        with Inbox(Path(part) / "images", study=study, series=series) as inbox:
            pacs.pull(study, series, inbox, on_progress)
        inbox.folder.replace(folder)
    return len(inbox)


def listen(
    folder: Path,
    address: tuple[str, int],
    title: str,
    *,
    allow: Sequence[str] = (),
    trust: Trust | None = None,
    once: bool = False,
    on_ready: Callable[[int], None] = lambda port: None,
    on_stored: Callable[[int], None] = lambda images: None,
) -> int:
    """Take in what others send by C-STORE, until interrupted.

    Args:
        folder: Where images go.
        address: Host and port to listen at; port 0 for any that is free.
        title: Our application entity title.
        allow: Titles that may call; empty for any.
        trust: Our certificate, for TLS.
        once: Stop when the first sender that stored something has hung up.
        on_ready: Called with the port once it listens.
        on_stored: Called with the number of images after each.

    Returns:
        How many images came.

    Raises:
        ConfigError: ``config-invalid`` for a title that is none; ``pacs-insecure`` when other machines could
            send to us unencrypted.
        UcadiError: ``port-taken``.
    """
    for name in (title, *allow):
        _check_title(name)
    trust = trust or Trust()
    tls = server_tls(trust)
    if not (tls or is_loopback(address[0]) or trust.allow_plain):
        raise ConfigError(
            "pacs-insecure",
            "Others would send images over the network unencrypted.",
            cure="Give --certificate and --key, or accept an open network with --insecure.",
        )
    with Inbox(folder) as inbox:

        def stored() -> None:
            on_stored(len(inbox))

        with StorageServer(inbox, address, title, allow=allow, tls=tls, on_stored=stored) as server:
            on_ready(server.port)
            try:
                while not (server.wait(seconds=1.0) and once):
                    pass
            except KeyboardInterrupt:  # the usual way to end it
                pass
        return len(inbox)


def _check_title(title: str) -> None:
    """Refuse what is no application entity title."""
    if not is_title(title):
        raise ConfigError(
            "config-invalid", "A title has more than 16 or odd characters.", cure="Mend --aet or --allow."
        )


def _secret(file: Path | None, value: str) -> str:
    """Return a secret from a file's first line or, without a file, the given one."""
    if file is not None:
        with file.open("rb") as opened:
            value = opened.read(_SECRET_BYTES).decode("utf-8", "replace").strip("\r\n")
        if not value:
            raise ConfigError("pacs-credentials", "A file that should hold a secret is empty.")
    if not value.isprintable() or "\ufffd" in value:
        raise ConfigError("pacs-credentials", "A secret is not one line of text.")
    return value
