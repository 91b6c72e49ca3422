# SPDX-License-Identifier: Apache-2.0
"""Kits: keys, certificates and hardened settings with which a coordinator and its sites find each other.

The engine's own defaults are open: jobs may bring code, administrators may read a site's files and a site's
log travels to the server. A kit closes all of that, and `check_kit` refuses one that was altered. What a
site may build in a job is one class of the installed package, and nothing else.
"""

import hashlib
import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from ucadi.engines.flare.settings import (
    ADMIN,
    ADMIN_ROLE,
    PROJECT,
    FlareApp,
    KitCard,
    Role,
    hardened_files,
)
from ucadi.errors import EngineError

__all__ = [
    "ADMIN",
    "FlareApp",
    "KitCard",
    "Kits",
    "Papers",
    "Role",
    "bar_sites",
    "barred_sites",
    "check_kit",
    "check_path",
    "make_coordinator_kit",
    "make_driver_kit",
    "make_kits",
    "make_site_kit",
]

_CARD = "kit.json"
_SETTINGS = "local/ucadi.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_BARRED = "disabled_clients.json"  # FLARE's name, read when its coordinator starts
_BARRED_KEY = "disabled_clients"
_AUTHORITY_DAYS = 3650


@dataclass(frozen=True)
class Papers:
    """What proves who a kit's owner is.

    Attributes:
        certificate: Signed by the authority, PEM.
        key: The private key that belongs to it, PEM. It never leaves its owner's machine.
        authority: The federation's authority, PEM.
    """

    certificate: str
    key: bytes = field(repr=False)
    authority: str


@dataclass(frozen=True)
class Kits:
    """The folders of one federation's kits."""

    coordinator: Path
    admin: Path
    sites: Mapping[str, Path]
    app: FlareApp


def make_coordinator_kit(
    folder: Path, name: str, papers: Papers, app: FlareApp, *, host: str, port: int, settings: str = ""
) -> Path:
    """Make the coordinator's kit; one that is there is replaced.

    Args:
        folder: Where it goes.
        name: The name in its certificate.
        papers: Certificate, key and authority.
        app: The classes of a job.
        host: Where sites reach it; on a loopback address it listens on the loopback alone.
        port: Where it listens.
        settings: Text of ``local/ucadi.toml``, which its owner may change.

    Raises:
        EngineError: If the path cannot be used, or the papers do not belong together.
    """
    card = KitCard(Role.COORDINATOR, name, host, port, name, app, {})
    return _make(folder, card, papers, settings)


def make_site_kit(
    folder: Path,
    name: str,
    papers: Papers,
    app: FlareApp,
    *,
    host: str,
    port: int,
    coordinator: str = "coordinator",
    settings: str = "",
) -> Path:
    """Make a site's kit; one that is there is replaced.

    Args:
        folder: Where it goes.
        name: The name in its certificate.
        papers: Certificate, key and authority.
        app: The classes of a job.
        host: Where the coordinator is reached.
        port: Where it listens.
        coordinator: The name in its certificate.
        settings: Text of ``local/ucadi.toml``, which the site may change.

    Raises:
        EngineError: As `make_coordinator_kit`.
    """
    card = KitCard(Role.SITE, name, host, port, coordinator, app, {})
    return _make(folder, card, papers, settings)


def make_driver_kit(
    folder: Path, papers: Papers, app: FlareApp, *, host: str, port: int, coordinator: str = "coordinator"
) -> Path:
    """Make the kit with which the driver submits jobs; one that is there is replaced.

    Args:
        folder: Where it goes.
        papers: Certificate, key and authority.
        app: The classes of a job.
        host: Where the coordinator is reached from the driver's machine.
        port: Where it listens.
        coordinator: The name in its certificate.

    Raises:
        EngineError: As `make_coordinator_kit`.
    """
    return _make(folder, KitCard(Role.ADMIN, ADMIN, host, port, coordinator, app, {}), papers, "")


def make_kits(
    folder: Path,
    sites: Sequence[str],
    app: FlareApp,
    *,
    port: int,
    coordinator: str = "coordinator",
    host: str = "127.0.0.1",
) -> Kits:
    """Make keys, certificates and kits for one federation on this machine.

    The certificate authority's key is forgotten afterwards, so nobody can be added to these kits. A real
    federation does not use this: there every site makes its own keys.

    Args:
        folder: Where the kits go, one folder each; must be empty or missing.
        sites: Names of the sites: letters, digits, ``-`` and ``_``.
        app: The classes of a job.
        port: Where the coordinator listens.
        coordinator: The coordinator's name, as its certificate states it.
        host: The address at which the sites reach the coordinator.

    Raises:
        EngineError: If the path cannot be used.
        ValueError: If a name cannot be used, or two are the same.
    """
    names = [coordinator, *sites]
    if len({name.lower() for name in names}) != len(names) or not all(map(_NAME.fullmatch, names)):
        raise ValueError(f"names must differ and be of letters, digits, '-' and '_': {', '.join(names)}")
    folder = folder.resolve()
    check_path(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()):
        raise ValueError(f"the folder for the kits is not empty: {folder}")
    papers = _make_papers(coordinator, sites, host)
    return Kits(
        make_coordinator_kit(
            folder / coordinator, coordinator, papers[coordinator], app, host=host, port=port
        ),
        make_driver_kit(folder / ADMIN, papers[ADMIN], app, host=host, port=port, coordinator=coordinator),
        {
            site: make_site_kit(
                folder / site, site, papers[site], app, host=host, port=port, coordinator=coordinator
            )
            for site in sites
        },
        app,
    )


def bar_sites(folder: Path, sites: Collection[str]) -> None:
    """Let a coordinator refuse sites by name, though their certificates are still valid.

    The coordinator reads it when it starts. While it runs, `FlareServer.bar` tells it, and it writes the
    same file by itself.

    Args:
        folder: The coordinator's kit.
        sites: All sites that are to be refused.
    """
    draft = folder / f"{_BARRED}.new"
    draft.touch(mode=0o600)
    draft.write_text(json.dumps({_BARRED_KEY: sorted(sites)}), encoding="utf-8")
    draft.replace(folder / _BARRED)


def barred_sites(folder: Path) -> frozenset[str]:
    """Return whom a coordinator refuses when it starts from its kit.

    Args:
        folder: The coordinator's kit.

    Raises:
        EngineError: ``engine-failed`` if the list is damaged; the coordinator would not start from it.
    """
    try:
        return frozenset(map(str, json.loads((folder / _BARRED).read_text(encoding="utf-8"))[_BARRED_KEY]))
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError("engine-failed", f"The list {folder / _BARRED} cannot be read.") from error


def check_path(folder: Path) -> None:
    """Refuse paths with which FLARE cannot start a job: it builds command lines without quoting.

    Raises:
        EngineError: With the path at fault, the folder's or Python's own.
    """
    for path in (str(folder.resolve()), sys.executable):
        if shlex.quote(path) != path:
            raise EngineError(
                "engine-failed",
                f"The engine cannot work with blanks or special letters in a path: {path}.",
                cure="Choose a folder with a plain path, or install ucadi into one.",
            )


def check_kit(folder: Path) -> KitCard:
    """Return the kit's card after checking that every file is as it was made and none was added.

    Raises:
        EngineError: ``site-kit-altered``, with the first file that is wrong, or ``key-exposed``.
    """
    try:
        raw = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        card = KitCard(**{**raw, "role": Role(raw["role"]), "app": FlareApp(**raw["app"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError("site-kit-altered", f"The kit's card {_CARD} cannot be read.") from error
    _check_keys(folder)
    found = _files(folder)
    for path, digest in card.files.items():
        if path not in found:
            raise EngineError("site-kit-altered", f"The kit of {card.name} lacks {path}.")
        if _digest(found.pop(path)) != digest:
            raise EngineError("site-kit-altered", f"In the kit of {card.name}, {path} was changed.")
    if found:
        raise EngineError("site-kit-altered", f"The kit of {card.name} has a foreign file {min(found)}.")
    # The list alone could have been remade together with a loosened file.
    for path, text in hardened_files(folder, card).items():
        if (folder / path).read_text(encoding="utf-8") != text:
            raise EngineError("site-kit-altered", f"In the kit of {card.name}, {path} is not hardened.")
    return card


def _make(folder: Path, card: KitCard, papers: Papers, settings: str) -> Path:
    """Write a kit beside its place and put it there when it is complete."""
    folder = folder.absolute()
    check_path(folder)
    _check_papers(card, papers)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        base = "server" if card.role is Role.COORDINATOR else "client"
        secret = {f"startup/{base}.key": papers.key}
        texts = {
            f"startup/{base}.crt": papers.certificate,
            "startup/rootCA.pem": papers.authority,
            **({_SETTINGS: settings} if settings else {}),
            **hardened_files(folder, card),
        }
        for path, content in {**secret, **{path: text.encode() for path, text in texts.items()}}.items():
            (draft / path).parent.mkdir(exist_ok=True, mode=0o700)
            (draft / path).touch(mode=0o600)
            (draft / path).write_bytes(content)
        (draft / "logs").mkdir(mode=0o700)
        files = {path: _digest(where) for path, where in _files(draft).items()}
        (draft / _CARD).touch(mode=0o600)
        (draft / _CARD).write_text(json.dumps(asdict(replace(card, files=files)), indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder


def _check_papers(card: KitCard, papers: Papers) -> None:
    """Refuse papers that are not the owner's, before they fail in the engine without a reason."""
    try:
        certificate = x509.load_pem_x509_certificate(papers.certificate.encode())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(papers.authority.encode()))
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        # The owner wrote the key itself; testing its primes again would take long.
        key = load_pem_private_key(papers.key, None, unsafe_skip_rsa_key_validation=True)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise EngineError(
            "not-authorized", f"The certificate of {card.name} is not signed by the federation's authority."
        ) from error
    if [name.value for name in names] != [card.name] or key.public_key() != certificate.public_key():
        raise EngineError("not-authorized", f"The certificate is not that of {card.name}, or of another key.")


def _make_papers(coordinator: str, sites: Sequence[str], host: str) -> dict[str, Papers]:
    """Make an authority and everybody's keys and certificates, as FLARE's own provisioning does."""
    from nvflare.lighter import utils

    signer, signer_public = utils.generate_keys()
    issuer = utils.Identity(PROJECT)
    root = utils.generate_cert(issuer, issuer, signer, signer_public, ca=True, valid_days=_AUTHORITY_DAYS)
    authority = utils.serialize_cert(root).decode()
    made = {}
    for name in (coordinator, ADMIN, *sites):
        key, public = utils.generate_keys()
        organization = re.sub(r"\W", "_", name) if name in sites else PROJECT
        subject = utils.Identity(name, organization, ADMIN_ROLE if name == ADMIN else None)
        certificate = utils.generate_cert(
            subject, issuer, signer, public, server_default_host=host if name == coordinator else None
        )
        text = utils.serialize_cert(certificate).decode()
        made[name] = Papers(text, utils.serialize_pri_key(key), authority)
    return made


def _files(folder: Path) -> dict[str, Path]:
    """Return the files that must not change, by path; the site's own settings are not among them."""
    found = {
        path.relative_to(folder).as_posix(): path
        for part in ("startup", "local")
        for path in (folder / part).rglob("*")
        if not path.is_dir()
    }
    found.pop(_SETTINGS, None)
    return found


def _check_keys(folder: Path) -> None:
    """Refuse private keys that others may read."""
    for key in (folder / "startup").glob("*.key"):
        if key.stat().st_mode & 0o077:
            raise EngineError(
                "key-exposed", f"Others may read the key file {key}.", cure=f"Run `chmod 600 {key}`."
            )


def _digest(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
