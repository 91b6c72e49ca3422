# SPDX-License-Identifier: Apache-2.0
"""The coordinator's HTTPS interface: applications, standing, roster, leaving; other parts add their routes.

Every request but an application is signed by its site. Answers to failures carry a registered code and its
public sentence, nothing else, and the interface does not describe itself.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from ucadi.enrolment.registrar import Registrar
from ucadi.enrolment.signing import read_headers
from ucadi.errors import CODES, FederationError, NotAuthorizedError, StoreError, UcadiError
from ucadi.logs import event, get_logger
from ucadi.store.members import Member, MemberState

__all__ = ["MAX_BODY_BYTES", "RawSite", "Router", "SignedSite", "make_api", "signed_by", "signed_site"]

_LOG = get_logger("enrolment.api")

MAX_BODY_BYTES = 4 * 2**20
"""Largest request that the interface takes."""

_MOST_DROPPED_BYTES = 64 * 2**20
"""So much of a request that is too large is still received, and dropped."""

_MAX_DOCUMENT_BYTES = 64 * 1024
"""Largest JSON document that enrolment reads."""

_SMALL = {"/v1/application": _MAX_DOCUMENT_BYTES, "/v1/leave": _MAX_DOCUMENT_BYTES}
"""Largest request by path, where it is not `MAX_BODY_BYTES`: an application comes from anybody."""

_STATUS = {
    "clock-skewed": 401,
    "invitation-expired": 410,
    "invitation-used": 409,
    "join-waiting": 403,
    "member-state": 409,
    "member-unknown": 404,
    "not-authorized": 403,
    "request-replayed": 409,
    "request-too-large": 413,
    "signature-invalid": 401,
    "site-key-changed": 409,
    "site-left": 403,
    "site-revoked": 403,
    "store-unreachable": 503,
}
"""HTTP statuses by code; 400 for all others."""

_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


async def signed_by(request: Request) -> Member:
    """Return the site that signed a request, whatever its state; a dependency for routes.

    Raises:
        NotAuthorizedError: As `Registrar.authenticate`.
    """
    registrar: Registrar = request.app.state.registrar
    signed = read_headers(request.headers)
    path = request.scope["raw_path"] + (b"?" + query if (query := request.scope["query_string"]) else b"")
    body = await request.body()
    return await run_in_threadpool(
        registrar.authenticate, signed, request.method, path.decode("latin-1"), body
    )


async def signed_site(member: Annotated[Member, Depends(signed_by)]) -> Member:
    """Return the approved site that signed a request; a dependency for routes.

    Raises:
        NotAuthorizedError: Also ``site-revoked``, ``site-left`` or ``join-waiting``.
    """
    codes = {MemberState.REVOKED: "site-revoked", MemberState.LEFT: "site-left"}
    if member.state is not MemberState.APPROVED:
        raise NotAuthorizedError(
            codes.get(member.state, "join-waiting"),
            f"{member.name} is {member.state}, and asked as a member.",
        )
    return member


Router = APIRouter
"""Some routes, for those who pass them on without knowing the library."""

RawSite = Annotated[Member, Depends(signed_by)]
"""For a route's argument: the site that signed the request, whatever its state."""

SignedSite = Annotated[Member, Depends(signed_site)]
"""For a route's argument: the approved site that signed the request."""


def make_api(registrar: Registrar, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """Return the interface as an application.

    Args:
        registrar: The membership.
        routers: Further routes; those of other parts take `SignedSite` where only members may ask.
    """
    api = FastAPI(title="ucadi coordinator", docs_url=None, redoc_url=None, openapi_url=None)
    api.state.registrar = registrar
    api.add_middleware(_BodyLimit)
    api.add_exception_handler(UcadiError, _say_error)
    api.add_exception_handler(HTTPException, _say_http_error)
    api.add_exception_handler(404, _say_http_error)
    api.add_exception_handler(405, _say_http_error)
    api.include_router(_enrolment())
    for router in routers:
        api.include_router(router)
    return api


def _enrolment() -> APIRouter:
    """Return the routes of enrolment."""
    router = APIRouter(prefix="/v1")

    @router.post("/application", status_code=202)
    async def apply(request: Request) -> Response:
        registrar: Registrar = request.app.state.registrar
        document = _document(await request.body())
        member = await run_in_threadpool(registrar.apply, document)
        event(_LOG, "application", site=member.name)
        return JSONResponse({"site": member.name, "state": str(member.state)}, status_code=202)

    @router.get("/standing")
    async def standing(request: Request, site: RawSite) -> Response:
        registrar: Registrar = request.app.state.registrar
        return JSONResponse(await run_in_threadpool(registrar.standing, site))

    @router.get("/roster")
    async def roster(request: Request, site: SignedSite) -> Response:
        registrar: Registrar = request.app.state.registrar
        return JSONResponse(await run_in_threadpool(registrar.roster))

    @router.post("/leave")
    async def leave(request: Request, site: RawSite) -> Response:
        registrar: Registrar = request.app.state.registrar
        reason = _document(await request.body()).get("reason", "")
        if not isinstance(reason, str) or len(reason) > 500 or not reason.isprintable():
            raise FederationError("message-invalid", "The reason for leaving is too long.")
        if site.state is not MemberState.LEFT:  # the answer to a first request may have been lost
            site = await run_in_threadpool(registrar.leave, site, reason)
            event(_LOG, "site left", site=site.name)
        return JSONResponse({"site": site.name, "state": str(site.state)})

    return router


def _document(body: bytes) -> Mapping[str, Any]:
    """Return a request's JSON object.

    Raises:
        FederationError: ``message-invalid`` or ``request-too-large``.
    """
    if len(body) > _MAX_DOCUMENT_BYTES:
        raise FederationError("request-too-large", f"A document of {len(body)} bytes came.")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FederationError("message-invalid", "The request is not JSON.") from error
    if not isinstance(document, dict):
        raise FederationError("message-invalid", "The request is not a JSON object.")
    return document


async def _say_error(request: Request, error: Exception) -> Response:
    """Answer with the error's code and public sentence; the detail stays in the coordinator's log."""
    if not isinstance(error, UcadiError):
        raise error
    event(_LOG, "request refused", path=request.url.path, code=error.code, detail=error.detail)
    status = 503 if isinstance(error, StoreError) else _STATUS.get(error.code, 400)
    return _answer(error.code, status)


async def _say_http_error(request: Request, error: Exception) -> Response:
    """Answer what no route takes."""
    return _answer("request-unknown", getattr(error, "status_code", 404))


def _answer(code: str, status: int) -> Response:
    """Return a failure in the one shape that all have."""
    said = {"code": code, "reason": CODES[code].public_message, "cure": CODES[code].cure}
    return JSONResponse(said, status_code=status)


class _TooLargeError(Exception):
    """More came than the limit.

    Args:
        has_more: Whether the body goes on.
    """

    def __init__(self, has_more: bool) -> None:
        super().__init__()
        self.has_more = has_more


class _BodyLimit:
    """Ends requests whose body grows beyond the limit, whatever length they state."""

    def __init__(self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Pass a request on, counting."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken, has_started = 0, False
        limit = _SMALL.get(scope["path"], MAX_BODY_BYTES)

        async def count() -> _Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _TooLargeError(bool(message.get("more_body", False)))
            return message

        async def note(message: _Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, count, note)
        except _TooLargeError as error:
            if not has_started:
                if error.has_more:
                    await _drain(receive)
                await _answer("request-too-large", 413)(scope, receive, send)


async def _drain(receive: _Receive) -> None:
    """Let go of the rest of a body, so that its sender comes to read the answer."""
    dropped = 0
    while dropped < _MOST_DROPPED_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        if not message.get("more_body", False):
            return
