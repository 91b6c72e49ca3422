# SPDX-License-Identifier: Apache-2.0
"""A coordinator's home: the folder that holds its settings, keys, kits, state, runs and releases."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ucadi.config import CoordinatorFile, CoordinatorSettings, load_config
from ucadi.crypto.identity import Identity, write_secret
from ucadi.engines.flare.kit import (
    ADMIN,
    Papers,
    bar_sites,
    check_path,
    make_coordinator_kit,
    make_driver_kit,
)
from ucadi.enrolment.authority import Authority, CertificateUse, load_tls_key, make_tls_key
from ucadi.enrolment.invitation import Federation
from ucadi.enrolment.registrar import Registrar
from ucadi.enrolment.server import near_address
from ucadi.errors import ConfigError
from ucadi.store.audit import Audit
from ucadi.store.database import Database
from ucadi.store.members import MemberStore
from ucadi.versions import CONFIG_VERSION
from ucadi.workflows.flare_names import APP

__all__ = ["COORDINATOR", "CoordinatorHome", "init_coordinator", "settings_from"]

COORDINATOR = "coordinator"
"""The coordinator's name in its certificate."""

_FILE = "coordinator.toml"
_LOCAL = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class CoordinatorHome:
    """Where everything of a coordinator lies.

    Attributes:
        folder: The home itself, absolute.
        settings: As its settings file says.
    """

    folder: Path
    settings: CoordinatorSettings

    @classmethod
    def open(cls, folder: Path) -> "CoordinatorHome":
        """Return an existing home.

        Raises:
            ConfigError: ``home-missing``, or ``config-invalid``.
        """
        folder = folder.absolute()
        if not (folder / _FILE).is_file():
            raise ConfigError(
                "home-missing",
                f"There is no {_FILE} in {folder}.",
                cure="Make a home with `ucadi coordinator init`, or name it with --home.",
            )
        return cls(folder, load_config(CoordinatorFile, folder / _FILE).coordinator)

    @property
    def keys(self) -> Path:
        """Private keys, which never leave."""
        return self.folder / "keys"

    @property
    def kit(self) -> Path:
        """The engine's kit."""
        return self.folder / "kits" / COORDINATOR

    @property
    def driver_kit(self) -> Path:
        """The kit with which jobs are submitted."""
        return self.folder / "kits" / ADMIN

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.folder / "runs"

    @property
    def releases(self) -> Path:
        """Released models."""
        return self.folder / "releases"

    @property
    def database_url(self) -> str:
        """Where the state is kept."""
        return self.settings.database or f"sqlite:///{self.folder / 'state.sqlite'}"

    def open_database(self) -> Database:
        """Open the state.

        Raises:
            StoreError: If it cannot be used.
        """
        return Database.open(self.database_url)

    def identity(self) -> Identity:
        """Return the coordinator's signing key.

        Raises:
            ConfigError: ``key-missing``, ``key-exposed`` or ``key-invalid``.
        """
        return Identity.load(self.keys / "identity.key")

    def federation(self) -> Federation:
        """Return what everybody knows of this federation.

        Raises:
            ConfigError: If a key is missing.
        """
        settings = self.settings
        return Federation(
            name=settings.name,
            host=settings.host,
            port=settings.port,
            api_port=settings.api_port,
            coordinator=COORDINATOR,
            authority=(self.keys / "authority.crt").read_text(encoding="ascii"),
            identity=self.identity().public_key,
        )

    def registrar(self, database: Database) -> Registrar:
        """Return the desk for membership; the engine's list of barred sites follows every change."""
        members = MemberStore(database)
        return Registrar(
            self.federation(), self.identity(), members, lambda: bar_sites(self.kit, members.barred())
        )


def settings_from(**values: Any) -> CoordinatorSettings:
    """Return settings that came from a command line.

    Raises:
        ConfigError: ``config-invalid``, with the option at fault.
    """
    try:
        return CoordinatorSettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise ConfigError(
            "config-invalid", f"{name}: {first['msg']} (seen: {first['input']!r:.80})."
        ) from error


def init_coordinator(folder: Path, settings: CoordinatorSettings) -> CoordinatorHome:
    """Make a home: keys, the federation's authority, certificates, kits and state.

    Args:
        folder: Must be missing or empty.
        settings: What its settings file will say.

    Raises:
        ConfigError: ``output-exists``, or ``config-invalid`` for the database's URL.
        EngineError: If the path cannot be used.
    """
    folder = folder.absolute()
    check_path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            "output-exists", f"{folder} exists and is not empty.", cure="Choose another folder with --home."
        )
    existed = folder.exists()
    home = CoordinatorHome(folder, settings)
    try:
        for path in (home.folder, home.keys, home.folder / "kits", home.runs, home.releases):
            path.mkdir(mode=0o700, parents=path == folder, exist_ok=path == folder)
        folder.chmod(0o700)
        Identity.make(home.keys / "identity.key")
        authority = Authority.make(home.keys, settings.name)
        _make_certificates(home, authority)
        _make_kits(home, authority.pem)
        _open_book(home)
        # Last, since its presence says that the home is complete.
        write_secret(folder / _FILE, _text(settings).encode())
    except BaseException:
        _clear(folder, remove=not existed)
        raise
    return home


def _make_certificates(home: CoordinatorHome, authority: Authority) -> None:
    """Make the keys and certificates of the engine, the driver and the HTTPS interface."""
    hosts = list(dict.fromkeys((home.settings.host, *_LOCAL)))
    for name, use, common_name, names in (
        ("engine", CertificateUse.COORDINATOR, COORDINATOR, hosts),
        ("driver", CertificateUse.DRIVER, ADMIN, []),
        ("api", CertificateUse.API, COORDINATOR, hosts),
    ):
        key = make_tls_key(home.keys / f"{name}.key")
        certificate = authority.issue(key.public_key(), use, common_name, names)
        write_secret(home.keys / f"{name}.crt", certificate.encode())


def _make_kits(home: CoordinatorHome, authority: str) -> None:
    """Make the coordinator's and the driver's kits."""
    settings = home.settings
    where = f"config_version = {CONFIG_VERSION}\nhome = {json.dumps(str(home.folder))}\n"
    papers = {name: _papers(home, name, authority) for name in ("engine", "driver")}
    make_coordinator_kit(
        home.kit,
        COORDINATOR,
        papers["engine"],
        APP,
        host=settings.host,
        port=settings.port,
        settings=where,
    )
    # The driver is on the same machine, where the host's outer name may lead nowhere.
    near = near_address(settings.host)
    make_driver_kit(
        home.driver_kit, papers["driver"], APP, host=near, port=settings.port, coordinator=COORDINATOR
    )


def _papers(home: CoordinatorHome, name: str, authority: str) -> Papers:
    """Return one of the coordinator's own certificates with its key."""
    load_tls_key(home.keys / f"{name}.key")  # refuses one that others may read
    certificate = (home.keys / f"{name}.crt").read_text(encoding="ascii")
    return Papers(certificate, (home.keys / f"{name}.key").read_bytes(), authority)


def _open_book(home: CoordinatorHome) -> None:
    """Make the state and note the beginning."""
    database = home.open_database()
    try:
        with database.begin() as connection:
            details = {"name": home.settings.name, "identity": home.identity().public_key}
            Audit(database).append(connection, COORDINATOR, "init", home.settings.name, details)
    finally:
        database.close()


def _text(settings: CoordinatorSettings) -> str:
    """Return the text of the settings file."""
    values = {name: json.dumps(value) for name, value in settings.model_dump(mode="json").items()}
    return f"""\
# A coordinator's settings. Name, host and ports also stand in the sites' invitations and in certificates:
# changing them here does not change them there.
config_version = {CONFIG_VERSION}

[coordinator]
name = {values["name"]}
# Where the sites reach this machine, the engine's port, and the port of the HTTPS interface.
host = {values["host"]}
port = {values["port"]}
api_port = {values["api_port"]}
# Where the state is kept; empty is state.sqlite in this folder. Or postgresql://user@host/name.
database = {values["database"]}
# Pause in seconds before something that failed is tried again.
retry_s = {values["retry_s"]}
"""


def _clear(folder: Path, *, remove: bool) -> None:
    """Take back what a failed start made, or the next one would find the folder in use."""
    for child in folder.iterdir() if folder.is_dir() else ():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)
        else:
            child.unlink(missing_ok=True)
    if remove and folder.is_dir():
        folder.rmdir()
