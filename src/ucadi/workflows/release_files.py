# SPDX-License-Identifier: Apache-2.0
"""A released model as files: a flat folder with one signed statement that names and hashes all others.

NAME/release.json        the statement, the coordinator's public key and its signature
NAME/manifest.json       the model folder that `ucadi predict --model` reads, with its parameters
NAME/model_card.md       for people; card.json says the same for programs

The same files may lie in a folder, in a zip archive or behind the coordinator's HTTPS door. Whatever they
come from is not trusted: only plain names that the statement lists are read, no longer than it says, and a
new release becomes visible complete and checked, or not at all.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ucadi.crypto.identity import Identity, canonical_json, fingerprint, verify
from ucadi.errors import CheckpointError, ConfigError, NotAuthorizedError, UcadiError
from ucadi.io.checkpoint import MANIFEST_FILE, read_model, write_bytes

__all__ = [
    "CARD_FILE",
    "CARD_RECORD",
    "CURRENT",
    "RELEASE_FILE",
    "ArchiveSource",
    "FolderSource",
    "ReleaseSource",
    "Statement",
    "check_release",
    "check_release_name",
    "export_release",
    "install_release",
    "key_fingerprint",
    "locked_folder",
    "read_statement",
    "sign_release",
    "use_release",
]

RELEASE_FILE = "release.json"
CARD_FILE = "model_card.md"
CARD_RECORD = "card.json"
CURRENT = "current"
"""Link in a site's ``models`` folder to the release in use."""

_VERSION = 1
_PURPOSE = "model release"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]|\.(?=[a-z0-9])){0,62}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+){1,2}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_STATEMENT_BYTES = 2**20
_MAX_FILE_BYTES = 2**36
_MAX_FILES = 64
_BLOCK_BYTES = 2**20
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can state: the same release makes the same archive."""


@dataclass(frozen=True)
class Statement:
    """What the coordinator signs about a release.

    Attributes:
        name: The release's name; never given twice.
        model_id: Of the model folder inside.
        created: UTC time, ISO 8601.
        ucadi_version: What made it.
        parent: Name and hash of the release that was current before; None for the first.
        files: SHA-256 and size by file name, without the statement's own file.
        public_key: Whose signature it carries, base64.
        signature: Base64.
    """

    name: str
    model_id: str
    created: str
    ucadi_version: str
    parent: Mapping[str, str] | None
    files: Mapping[str, tuple[str, int]]
    public_key: str
    signature: str

    @property
    def signed(self) -> dict[str, Any]:
        """The document that the signature covers."""
        return {
            "release_version": _VERSION,
            "name": self.name,
            "model_id": self.model_id,
            "created": self.created,
            "ucadi_version": self.ucadi_version,
            "parent": None if self.parent is None else dict(self.parent),
            "files": {name: {"sha256": sha, "bytes": size} for name, (sha, size) in self.files.items()},
        }

    @property
    def hash(self) -> str:
        """SHA-256 of the signed document: it stands for every byte of the release."""
        return hashlib.sha256(canonical_json(self.signed)).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files.values())

    def summary(self) -> dict[str, Any]:
        """Return what lists show."""
        return {
            "name": self.name,
            "hash": self.hash,
            "model_id": self.model_id,
            "created": self.created,
            "parent": None if self.parent is None else self.parent["name"],
            "bytes": self.size,
        }


@runtime_checkable  # for the type checks at test time
class ReleaseSource(Protocol):
    """Where a release's files come from."""

    def names(self) -> Collection[str] | None:
        """Return the names of all files; None where only what is asked for is given."""

    def blocks(self, name: str) -> Iterator[bytes]:
        """Return a file's content piece by piece.

        Raises:
            UcadiError: ``release-altered`` if there is no such plain file.
        """


class FolderSource:
    """A release in a folder.

    Args:
        folder: The release's own folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> Collection[str]:
        """Return the names of all entries, also of those that no release has."""
        if not self._folder.is_dir():
            raise ConfigError("release-unknown", f"There is no release in {self._folder}.")
        return {entry.name for entry in os.scandir(self._folder)}

    def blocks(self, name: str) -> Iterator[bytes]:
        """Read a plain file; links are not followed."""
        try:
            handle = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise _altered(f"{self._folder / name} cannot be read: {error.strerror}.") from error
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _altered(f"{self._folder / name} is no plain file.")
            while block := file.read(_BLOCK_BYTES):
                yield block


class ArchiveSource:
    """A release in a zip archive, as `export_release` writes it.

    Args:
        path: The archive.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> Collection[str]:
        """Return the members' names as they stand, odd ones too."""
        with self._open() as archive:
            names = [info.filename for info in archive.infolist()]
        if len(set(names)) != len(names):
            raise _altered(f"{self._path} holds a name twice.")
        return set(names)

    def blocks(self, name: str) -> Iterator[bytes]:
        """Read a member; what the archive says about its size is not believed."""
        try:
            with self._open() as archive:
                if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise NotImplementedError("it is packed in another way")
                with archive.open(name) as file:
                    while block := file.read(_BLOCK_BYTES):
                        yield block
        except (KeyError, RuntimeError, EOFError, zlib.error) as error:
            raise _altered(f"{name!r:.80} in {self._path} cannot be read: {error}.") from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place before the archive's beginning
                raise
            raise _altered(f"{name!r:.80} in {self._path} lies outside of it.") from error

    @contextlib.contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        """Open the archive."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                yield archive
        except (zipfile.BadZipFile, ValueError, OverflowError) as error:
            raise _altered(f"{self._path} is no intact archive: {error}.") from error


def check_release_name(name: str) -> str:
    """Return a name that a release may have: it becomes a folder's name and part of an address.

    Raises:
        ConfigError: ``release-name``.
    """
    if not _NAME.fullmatch(name) or name == CURRENT:
        raise ConfigError("release-name", f"{name[:80]!r} cannot be the name of a release.")
    return name


def key_fingerprint(public_key: str) -> str:
    """Return a coordinator's key as two people can compare it by phone."""
    return fingerprint({"public_key": public_key})


def sign_release(
    folder: Path,
    identity: Identity,
    *,
    name: str,
    model_id: str,
    created: str,
    ucadi_version: str,
    parent: Statement | None,
) -> Statement:
    """Hash all files of a folder and write the signed statement about them; the folder is then frozen."""
    files = {}
    for path in sorted(folder.iterdir()):
        digest = hashlib.sha256()
        for block in FolderSource(folder).blocks(path.name):
            digest.update(block)
        files[path.name] = (digest.hexdigest(), path.stat().st_size)
    before = None if parent is None else {"name": parent.name, "hash": parent.hash}
    draft = Statement(name, model_id, created, ucadi_version, before, files, identity.public_key, "")
    document = {
        "statement": draft.signed,
        "public_key": identity.public_key,
        "signature": identity.sign(_PURPOSE, draft.signed),
    }
    statement = _parse(json.dumps(document).encode())  # what is written is what a site can read
    write_bytes(folder / RELEASE_FILE, (json.dumps(document, indent=2) + "\n").encode())
    for path in folder.iterdir():
        path.chmod(0o400)
    return statement


def read_statement(source: ReleaseSource, key: str | None) -> Statement:
    """Read a release's statement and check its signature; its files are not looked at.

    Args:
        source: The release.
        key: The coordinator's public key, base64; None takes the key that the statement names, which
            proves that nothing was changed since but not by whom it was signed.

    Raises:
        NotAuthorizedError: ``release-signer``.
        CheckpointError: ``release-altered`` if the statement cannot be read.
    """
    return _read_statement(source, key)[0]


def check_release(source: ReleaseSource, key: str | None) -> Statement:
    """Check the signature and every file of a release: changed, missing and added ones.

    Raises:
        NotAuthorizedError: ``release-signer``.
        CheckpointError: ``release-altered``, with the first file at fault.
    """
    statement, _ = _read_statement(source, key)
    _check_names(source, statement)
    for name in statement.files:
        for _ in _verified(source, statement, name):
            pass
    return statement


def install_release(
    source: ReleaseSource, key: str, models: Path, *, name: str | None = None, is_used: bool = False
) -> tuple[Statement, Path]:
    """Copy a release into a folder of models, checking every byte; all of it appears at once, or nothing.

    A release that is installed already is checked and left as it is; a damaged one is replaced.

    Args:
        source: Where it comes from.
        key: The coordinator's public key, as it was pinned at the join.
        models: A site's folder of models.
        name: What was asked for; another release is refused.
        is_used: Whether ``models/current`` is to point to it.

    Returns:
        The statement and the installed folder.

    Raises:
        NotAuthorizedError: ``release-signer``.
        CheckpointError: ``release-altered``; nothing is left of it.
        ConfigError: ``release-exists`` if another release with that name is here.
    """
    with locked_folder(models):
        statement, written = _read_statement(source, key)
        if name is not None and statement.name != name:
            raise _altered(f"Release {name!r} was asked for, {statement.name!r} came.")
        _check_names(source, statement)
        target = models / statement.name
        if not _is_installed(target, key, statement):
            _install(source, statement, written, target)
        if is_used:
            _point(models, statement.name)
    return statement, target


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time change a folder of releases, freed of what a killed one left half done.

    The folder is made when it is not there; the lock ends with its process, however that ends.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.glob(".*.partial"):
            shutil.rmtree(left)
        yield


def use_release(models: Path, name: str) -> None:
    """Point ``models/current`` to an installed release, atomically.

    Raises:
        ConfigError: ``release-unknown``.
    """
    if not (models / check_release_name(name) / RELEASE_FILE).is_file():
        raise ConfigError("release-unknown", f"There is no release {name} in {models}.")
    with locked_folder(models):
        _point(models, name)


def export_release(folder: Path, archive: Path, key: str | None) -> Statement:
    """Write a checked release into one archive; the same release always makes the same bytes."""
    source = FolderSource(folder)
    statement = check_release(source, key)
    draft = archive.with_name(f".{archive.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as writer:
            for name in (RELEASE_FILE, *sorted(statement.files)):
                info = zipfile.ZipInfo(name, _ZIP_DATE)
                with writer.open(info, "w", force_zip64=True) as file:
                    for block in source.blocks(name):
                        file.write(block)
        with draft.open("rb") as finished:
            os.fsync(finished.fileno())
        draft.replace(archive)
    finally:
        draft.unlink(missing_ok=True)
    return statement


def _read_statement(source: ReleaseSource, key: str | None) -> tuple[Statement, bytes]:
    """Return the checked statement and the bytes that it was read from."""
    content = bytearray()
    for block in source.blocks(RELEASE_FILE):
        content += block
        if len(content) > _MAX_STATEMENT_BYTES:
            raise _altered(f"{RELEASE_FILE} is larger than {_MAX_STATEMENT_BYTES} bytes.")
    statement = _parse(bytes(content))
    if key is not None and statement.public_key != key:
        raise NotAuthorizedError(
            "release-signer",
            f"{statement.name} is signed by {key_fingerprint(statement.public_key)}, not by "
            f"{key_fingerprint(key)}.",
        )
    try:
        verify(statement.public_key, _PURPOSE, statement.signed, statement.signature)
    except NotAuthorizedError as error:
        raise NotAuthorizedError("release-signer", f"{statement.name}: {error.detail}") from error
    return statement, bytes(content)


def _parse(content: bytes) -> Statement:
    """Return the statement of a file, as strictly as if it came from an enemy."""
    try:
        document = json.loads(content)
        signed = document["statement"]
        files = {name: (entry["sha256"], entry["bytes"]) for name, entry in signed["files"].items()}
        parent = signed["parent"]
        statement = Statement(
            check_release_name(signed["name"]),
            signed["model_id"],
            signed["created"],
            signed["ucadi_version"],
            parent,
            files,
            document["public_key"],
            document["signature"],
        )
        texts = [statement.model_id, statement.created, statement.ucadi_version]
        texts += [statement.public_key, statement.signature, *(parent or {}).values()]
        if not all(isinstance(text, str) and len(text) <= 500 for text in texts):
            raise ValueError("a field is no short text")
        if parent is not None and parent.keys() != {"name", "hash"}:
            raise ValueError("the parent is not named")
        _check_files(files)
        if canonical_json(statement.signed) != canonical_json(signed):
            raise ValueError("it has other fields")  # or of another version
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, ConfigError) as error:
        raise _altered(f"{RELEASE_FILE} cannot be read: {error}.") from error
    return statement


def _check_files(files: Mapping[str, tuple[object, object]]) -> None:
    """Refuse file names that could lead elsewhere or hide each other, and sizes without a bound."""
    if len({name.lower() for name in files}) != len(files) or not 1 <= len(files) <= _MAX_FILES:
        raise ValueError("the files' names are too many or too alike")
    for name, (sha256, size) in files.items():
        if not _FILE.fullmatch(name) or len(name) > 100 or name.lower() == RELEASE_FILE:
            raise ValueError(f"a file cannot be named {name[:80]!r}")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ValueError(f"{name} has no hash")
        if type(size) is not int or not 0 <= size <= _MAX_FILE_BYTES:
            raise ValueError(f"{name} has no size")
    if not {MANIFEST_FILE, CARD_FILE} <= files.keys():
        raise ValueError(f"{MANIFEST_FILE} or {CARD_FILE} is not among the files")


def _check_names(source: ReleaseSource, statement: Statement) -> None:
    """Refuse a release with missing or additional files."""
    names = source.names()
    if names is None:
        return
    expected = {RELEASE_FILE, *statement.files}
    if missing := sorted(expected - set(names)):
        raise _altered(f"{statement.name} lacks {missing[0]}.")
    if added := sorted(set(names) - expected):
        raise _altered(f"{statement.name} holds {added[0][:80]!r}, which its statement does not name.")


def _verified(source: ReleaseSource, statement: Statement, name: str) -> Iterator[bytes]:
    """Yield a file's content; raise before its end is reached when it is not what was signed."""
    sha256, size = statement.files[name]
    digest, count = hashlib.sha256(), 0
    for block in source.blocks(name):
        digest.update(block)
        count += len(block)
        if count > size:
            raise _altered(f"{name} of {statement.name} is longer than the {size} bytes that were signed.")
        yield block
    if count < size:
        raise _altered(f"{name} of {statement.name} has {count} of {size} bytes.")
    if digest.hexdigest() != sha256:
        raise _altered(f"{name} of {statement.name} was changed: its hash is not the one that was signed.")


def _is_installed(target: Path, key: str, statement: Statement) -> bool:
    """Tell whether exactly this release is here and intact.

    Raises:
        ConfigError: ``release-exists`` if another intact one has its name.
    """
    if not target.exists():
        return False
    try:
        present = check_release(FolderSource(target), key)
    except UcadiError:
        return False
    if present.hash != statement.hash:
        raise ConfigError(
            "release-exists",
            f"Another release named {statement.name} is installed, and both are signed.",
            cure="Ask the coordinator why a name was given twice.",
        )
    return True


def _install(source: ReleaseSource, statement: Statement, written: bytes, target: Path) -> None:
    """Copy, check and show a release; a damaged one in its place is put aside first."""
    free = shutil.disk_usage(target.parent).free
    if statement.size > free:
        raise ConfigError("disk-full", f"{statement.name} has {statement.size} bytes, {free} are free.")
    draft = target.with_name(f".{target.name}.partial")
    damaged = target.with_name(f".{target.name}.damaged.partial")
    draft.mkdir(mode=0o700)
    try:
        for name in statement.files:
            _write(draft / name, _verified(source, statement, name))
        _write(draft / RELEASE_FILE, iter([written]))
        read_model(draft)  # parameters that cannot be loaded are not installed either
        _sync(draft)
        if target.exists():
            target.rename(damaged)
        draft.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)


def _write(path: Path, blocks: Iterator[bytes]) -> None:
    """Write a new file that is safe on disk when this returns."""
    with path.open("xb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o400)


def _point(models: Path, name: str) -> None:
    """Make the link to the release in use; whoever opens it meanwhile finds the old or the new one."""
    draft = models / f".{CURRENT}.new"
    draft.unlink(missing_ok=True)
    draft.symlink_to(name)
    draft.replace(models / CURRENT)
    _sync(models)


def _sync(folder: Path) -> None:
    """Make renames in a folder safe on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _altered(detail: str) -> CheckpointError:
    """Return the refusal of a release."""
    return CheckpointError("release-altered", detail)
