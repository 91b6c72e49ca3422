# SPDX-License-Identifier: Apache-2.0
"""Every test of the store runs on SQLite and on a real PostgreSQL server."""

import contextlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postgres_server import PostgresServer
from ucadi.store.database import Database


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.e2e)])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes empty databases and returns their URLs."""
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        return server.new_database

    def make() -> str:
        return f"sqlite:///{tmp_path / f'state-{len(list(tmp_path.iterdir()))}.sqlite'}"

    return make


@pytest.fixture
def database_url(new_url: Callable[[], str]) -> str:
    """The URL of an empty database."""
    return new_url()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open, empty database."""
    opened = Database.open(database_url)
    yield opened
    opened.close()


@pytest.fixture
def start_child() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts Python code in a process of its own; its arguments are in ``sys.argv[1:]``."""
    children = []

    def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def outage(
    request: pytest.FixtureRequest, database_url: str
) -> Callable[[], contextlib.AbstractContextManager]:
    """Takes the database away for the time of a block."""

    @contextlib.contextmanager
    def away() -> Iterator[None]:
        if database_url.startswith("sqlite"):
            folder = Path(database_url.removeprefix("sqlite:///")).parent
            folder.rename(folder.with_name("moved"))
            try:
                yield
            finally:
                folder.with_name("moved").rename(folder)
        else:
            server = request.getfixturevalue("postgres_server")
            server.stop()
            try:
                yield
            finally:
                server.start()

    return away
