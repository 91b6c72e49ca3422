# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server of the tests' own: started once, on the loopback, with a password, gone afterwards."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

USER = "ucadi"


def find_binaries() -> Path | None:
    """Where initdb and pg_ctl are: on the path, or where Debian has them."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


class PostgresServer:
    """A server that can be stopped, killed and started again, with its data kept."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.password = secrets.token_hex(12)
        self._folder = folder
        self._binaries = binaries
        # PostgreSQL refuses to run as root.
        self._as: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        secret = folder / "password"
        secret.write_text(self.password)
        if self._as:
            user = pwd.getpwnam("postgres")
            for path in (folder, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
        self._run(
            "initdb", "-D", folder / "data", "-U", USER, "-A", "scram-sha-256", "--pwfile", secret, "-N"
        )

    def start(self) -> None:
        """Start; returns when connections are taken."""
        # No fsync: these tests end clients, not the machine.
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run(
            "pg_ctl", "-D", self._folder / "data", "-l", self._folder / "log", "-o", options, "-w", "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        """Stop: ``immediate`` as if it crashed, ``fast`` breaks connections in good order."""
        self._run("pg_ctl", "-D", self._folder / "data", "-m", mode, "-w", "stop")

    def url(self, database: str) -> str:
        """The URL of a database, password included."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty place for tables and return its URL: a schema, made a hundred times faster."""
        name = f"test_{secrets.token_hex(6)}"
        engine = sa.create_engine(
            self.url("postgres").replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool
        )
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        return f"{self.url('postgres')}?options=-csearch_path%3D{name}"

    def _run(self, program: str, *arguments: Any) -> None:
        done = subprocess.run(
            [self._binaries / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,  # the server inherits it
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            text=True,
            check=False,
            timeout=120,
            **self._as,
        )
        if done.returncode:
            log = self._folder / "log"
            raise RuntimeError(f"{program}: {done.stdout} {log.read_text() if log.is_file() else ''}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running PostgreSQL server; tests that stop it start it again."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL binaries")
    if os.geteuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user for it")
    folder = Path(
        tempfile.mkdtemp(prefix="ucadi-postgres-")
    )  # not pytest's: only its own user may enter that
    try:
        server = PostgresServer(folder, binaries)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
