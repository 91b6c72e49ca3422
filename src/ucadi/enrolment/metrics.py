# SPDX-License-Identifier: Apache-2.0
"""The coordinator's numbers for Prometheus, over HTTP."""

import ipaddress
from collections.abc import Callable

from fastapi import APIRouter, Request, Response

__all__ = ["CONTENT_TYPE", "metrics_router"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' plain format."""


def metrics_router(render: Callable[[], bytes]) -> APIRouter:
    """Return the route ``/metrics``, which answers this machine only.

    Everybody else gets the answer of a path that does not exist. Run names, sites' names and their scores are
    the federation's own affair: a Prometheus elsewhere reads through an agent or a tunnel on this machine.

    Args:
        render: Makes the text; called in a thread for each request.
    """
    router = APIRouter()

    @router.get("/metrics", include_in_schema=False)
    def metrics(request: Request) -> Response:
        if not _is_here(request):
            return Response(status_code=404)
        return Response(render(), media_type=CONTENT_TYPE)

    return router


def _is_here(request: Request) -> bool:
    """Tell whether a request comes from this machine and was not passed on for somebody else."""
    if "forwarded" in request.headers or "x-forwarded-for" in request.headers:
        return False
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
