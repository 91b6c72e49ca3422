# SPDX-License-Identifier: Apache-2.0
"""FLARE's connections, made fit for a hospital's network: bounded frames, and dead connections noticed.

FLARE 2.9 lets a peer send frames of 2 GiB, which are collected in memory before anything looks at them, and
waits for the kernel's quarter of an hour when a firewall has silently dropped a connection.
"""

import contextlib
import socket
from typing import Any

from ucadi.errors import EngineError
from ucadi.logs import event, get_logger

__all__ = ["LARGEST_FRAME", "make_fit"]

_LOG = get_logger("engines.flare")

LARGEST_FRAME = 8 << 20
"""Bytes of one frame beyond which a connection is closed. Our messages have one piece; a site's own
bound, aiohttp's 4 MiB, is smaller still."""

_DEAD_MS = 20_000
"""Milliseconds after which unacknowledged data closes a connection."""

_TOO_LARGE = 1009
"""WebSocket's code for it."""

_CONGESTION = b"bbr"
"""Keeps most of a link's rate when 1 % of the packets is lost; the usual control keeps a tenth."""

_PROBES = (
    (socket.SO_KEEPALIVE, 1),
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
)


def make_fit() -> None:
    """Change FLARE's driver in this process.

    Raises:
        EngineError: If this FLARE is built otherwise; then nothing is known to be bounded.
    """
    from nvflare.fuel.f3.drivers import aio_http_driver as module

    driver = module.AioHttpDriver
    if not hasattr(module, "MAX_FRAME_SIZE") or not hasattr(driver, "_connection_handler"):
        raise EngineError("engine-failed", "The engine's network driver is not that of the pinned release.")
    module.MAX_FRAME_SIZE = LARGEST_FRAME
    handle = driver._connection_handler

    async def watched(self: Any, websocket: Any) -> None:
        _tune(websocket.get_extra_info("socket"))
        await handle(self, websocket)
        if websocket.close_code == _TOO_LARGE:
            event(_LOG, "connection closed: a message was larger than allowed")

    driver._connection_handler = watched


def _tune(connection: Any) -> None:
    """Let the kernel notice in half a minute when the other side is gone, and bear lost packets."""
    if connection is None:
        return
    level = socket.IPPROTO_TCP
    for option, value in _PROBES:
        connection.setsockopt(socket.SOL_SOCKET if option == socket.SO_KEEPALIVE else level, option, value)
    connection.setsockopt(level, socket.TCP_USER_TIMEOUT, _DEAD_MS)
    with contextlib.suppress(OSError):  # not every system has it, or lets everybody use it
        connection.setsockopt(level, socket.TCP_CONGESTION, _CONGESTION)
