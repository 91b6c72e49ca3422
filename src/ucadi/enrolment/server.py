# SPDX-License-Identifier: Apache-2.0
"""Serves the coordinator's interface over TLS in a thread of this process."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType

import uvicorn
from fastapi import FastAPI

from ucadi.errors import EngineError

__all__ = ["ApiServer", "bind_address", "near_address"]

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - sites come from other machines

_FINISH_S = 2.0
_STOP_S = 10.0


class ApiServer:
    """Serves on entry, stops on exit.

    Args:
        app: What answers.
        address: Where to listen, an IPv4 address.
        port: Where to listen; 0 takes a free one.
        certificate: PEM file.
        key: PEM file of its private key.
    """

    def __init__(self, app: FastAPI, address: str, port: int, certificate: Path, key: Path) -> None:
        self._address, self._port = address, port
        config = uvicorn.Config(
            app,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=True,
            limit_concurrency=256,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=3,
            lifespan="off",
            ws="none",
        )
        config.load()
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def is_alive(self) -> bool:
        """Tell whether it serves."""
        return self._thread.is_alive()

    def __enter__(self) -> "ApiServer":
        """Listen and serve.

        Raises:
            EngineError: ``port-taken``, or ``engine-failed`` if it does not start.
        """
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((self._address, self._port))
            self._socket.listen(256)
        except OSError as error:
            self._socket.close()
            raise EngineError(
                "port-taken", f"Port {self._port} of {self._address} cannot be used: {error.strerror}."
            ) from error
        self._port = int(self._socket.getsockname()[1])
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving; requests under way have a few seconds."""
        self._server.should_exit = True
        self._thread.join(_FINISH_S)
        if self._loop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it ended just now
                self._loop.call_soon_threadsafe(self._drop_connections)
        self._thread.join(_STOP_S)
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        """Serve until told to stop."""
        with contextlib.suppress(SystemExit):  # how uvicorn reports that it could not start
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        """Serve on the socket that is open."""
        self._loop = asyncio.get_running_loop()
        await self._server.serve([self._socket] if self._socket is not None else None)

    def _drop_connections(self) -> None:
        """End what is still open: an idle client does not answer TLS' good-bye."""
        for connection in list(self._server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def bind_address(host: str) -> str:
    """Return where to listen for a host by which sites reach the coordinator: loopback hosts stay local."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _EVERYWHERE
    return host if address.is_loopback else _EVERYWHERE


def near_address(host: str) -> str:
    """Return where this machine itself reaches what listens at `bind_address`."""
    address = bind_address(host)
    return "127.0.0.1" if address == _EVERYWHERE else address
