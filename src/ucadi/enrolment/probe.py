# SPDX-License-Identifier: Apache-2.0
"""What a site may ask before it takes part: the coordinator's clock and versions, and how fast the link is.

``GET /v1/time`` answers anybody, since who has a wrong clock cannot sign a request. ``POST /v1/echo`` takes
and gives megabytes, so it answers members only.
"""

import os
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from ucadi import __version__
from ucadi.enrolment.api import MAX_BODY_BYTES, SignedSite
from ucadi.errors import FederationError
from ucadi.versions import WIRE_VERSION

__all__ = ["probe_router"]


def probe_router() -> APIRouter:
    """Return the routes, to be given to `make_api`."""
    router = APIRouter(prefix="/v1")

    @router.get("/time")
    async def now() -> dict[str, Any]:
        return {"time": time.time(), "ucadi": __version__, "wire_version": WIRE_VERSION}

    @router.post("/echo")
    async def echo(request: Request, site: SignedSite) -> Response:
        asked = request.query_params.get("back", "0")
        if not asked.isdecimal() or len(asked) > 9 or int(asked) > MAX_BODY_BYTES:
            raise FederationError("request-too-large", f"{site.name} asked for {asked[:20]!r} bytes.")
        # Random, so that no link on the way looks faster by compressing it.
        return Response(await run_in_threadpool(os.urandom, int(asked)))

    return router
