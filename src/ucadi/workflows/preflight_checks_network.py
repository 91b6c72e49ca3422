# SPDX-License-Identifier: Apache-2.0
"""The preflight's checks of the way to the coordinator: name, proxy, ports, TLS, clock, versions, speed.

A site talks to two ports: HTTPS for enrolment and releases, and the engine's web sockets over TLS for the
rounds. The first takes the proxy that the environment names, the second takes none; so does each check.
"""

import base64
import http.client
import ipaddress
import json
import os
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ucadi.enrolment.chain import issuer_of
from ucadi.enrolment.signing import MOST_SKEW_S
from ucadi.versions import WIRE_VERSION
from ucadi.workflows.preflight_checks import Line, failed, ok, readable_bytes, warning

__all__ = [
    "Bandwidth",
    "Route",
    "SignRequest",
    "ask_time",
    "check_api",
    "check_bandwidth",
    "check_clock",
    "check_engine",
    "check_name",
    "check_proxy",
    "check_wire",
]

SignRequest = Callable[[str, str, bytes], Mapping[str, str]]
"""Takes method, path and body; returns the headers that prove who asks."""

_TIMEOUT_S = 5.0
_CLOCK_WARNING_S = 5.0
_LARGEST_ECHO = 4 * 2**20
_FIRST_ECHO = 64 * 2**10
_ECHO_S = 3.0
_ECHO_DEADLINE_S = 8.0
_SOCKET_PATH = "/f3"  # the engine's own
_FIRST_LINE = 200
_WRONG_NAME, _EXPIRED, _NOT_YET = 62, 10, 9  # OpenSSL's X509_V_ERR_*; 64 is the same as 62 for addresses
_WRONG_ADDRESS = 64


@dataclass(frozen=True)
class Route:
    """Where the coordinator is and how a site proves who it is.

    Attributes:
        host: Name or address of the coordinator.
        api_port: HTTPS, for enrolment.
        engine_port: Web sockets over TLS, for the rounds.
        authority: PEM file of the federation's own authority, the only one that is trusted.
        certificate: PEM file of the site's certificate.
        key: PEM file of its private key.
    """

    host: str
    api_port: int
    engine_port: int
    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Bandwidth:
    """Speed of the link in bytes per second; None where it was not measured."""

    up: float | None = None
    down: float | None = None


# -- name and proxy ---------------------------------------------------------------------------------------


def check_name(route: Route) -> Line:
    """Tell what the coordinator's name resolves to."""
    name = "name"
    try:
        ipaddress.ip_address(route.host)
        return ok(name, f"{route.host} is an address")
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(route.host, route.api_port, type=socket.SOCK_STREAM)
    except OSError as error:
        cure = "Check the spelling in site.toml; ask your IT for an entry in DNS or in /etc/hosts."
        return failed(name, f"{route.host} does not resolve: {error.strerror}", cure)
    addresses = sorted({str(entry[4][0]) for entry in found})
    return ok(name, f"{route.host} is {', '.join(addresses)}")


def check_proxy(route: Route) -> Line:
    """Tell which way enrolment goes. The engine goes directly, whatever the environment says."""
    proxy = _api_proxy(route.host)
    if not proxy:
        return ok("proxy", f"none for {route.host}: connects directly")
    found = f"HTTPS goes by {_without_password(proxy)}; the engine takes no proxy and connects directly"
    return ok("proxy", found)


def _api_proxy(host: str) -> str:
    """Return the proxy that HTTPS requests take; empty for none."""
    if urllib.request.proxy_bypass(host):
        return ""
    found = urllib.request.getproxies()
    return found.get("https", found.get("all", ""))


def _without_password(url: str) -> str:
    """Return a proxy's address without user and password."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 80}"


# -- ports and TLS ----------------------------------------------------------------------------------------


def check_api(route: Route) -> Line:
    """Reach the HTTPS port and check the coordinator's certificate against the federation's authority."""
    context = ssl.create_default_context(cafile=str(route.authority))
    return _check_port("API port", route, route.api_port, _api_proxy(route.host), context, is_engine=False)


def check_engine(route: Route) -> Line:
    """Reach the engine's port, show it the site's certificate and open a web socket, as the engine does."""
    context = ssl.create_default_context(cafile=str(route.authority))
    context.check_hostname = False  # the engine asks for the name of the coordinator, not of its host
    context.load_cert_chain(route.certificate, route.key)
    return _check_port("engine port", route, route.engine_port, "", context, is_engine=True)


def _check_port(
    name: str, route: Route, port: int, proxy: str, context: ssl.SSLContext, *, is_engine: bool
) -> Line:
    """Connect, shake hands and, for the engine, open a web socket."""
    where = f"{route.host}:{port}"
    started = time.monotonic()
    try:
        link = _connect(route.host, port, proxy)
    except OSError as error:
        return _unreachable(name, where, error, proxy)
    try:
        with link, context.wrap_socket(link, server_hostname=route.host) as secured:
            if is_engine:
                answer = _open_web_socket(secured, where)
                if not answer:
                    return _refused_certificate(name, f"{where} refused this site's certificate")
                if not answer.startswith(b"HTTP/1.1 101 "):
                    cure = "A proxy or firewall may not let web sockets pass. " + _RIGHT_PORT
                    return failed(name, f"{where} opens no web socket: {answer.decode('latin-1')!r}", cure)
            words = f"{secured.version()}, {1000 * (time.monotonic() - started):.0f} ms{_through(proxy)}"
            return ok(name, f"{where} answers and its certificate is the federation's ({words})")
    except ssl.SSLCertVerificationError as error:
        return _wrong_certificate(name, route, port, proxy, error)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return failed(name, f"{where} does not speak TLS as expected: {reason}", _RIGHT_PORT)
    except OSError as error:
        found = f"{where} broke off: {_words(error)}"
        cure = "A firewall may open or cut TLS: ask your IT to let it pass, unopened."
        return failed(name, found, cure)


_RIGHT_PORT = "Check the ports in site.toml with the coordinator."


def _open_web_socket(link: ssl.SSLSocket, where: str) -> bytes:
    """Ask for a web socket; return the first line of the answer, which is empty if the link was closed.

    With TLS 1.3 a server refuses a client's certificate only now, after the handshake.
    """
    request = [
        f"GET {_SOCKET_PATH} HTTP/1.1",
        f"Host: {where}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    try:
        link.sendall(("\r\n".join(request) + "\r\n\r\n").encode())
        return link.recv(_FIRST_LINE).split(b"\r\n")[0]
    except (ssl.SSLError, ConnectionError):
        return b""


def _connect(host: str, port: int, proxy: str) -> socket.socket:
    """Open a connection, through a proxy if there is one.

    Raises:
        OSError: Whatever went wrong; `ConnectionError` with the proxy's answer if it declines.
    """
    if not proxy:
        return socket.create_connection((host, port), _TIMEOUT_S)
    parts = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    tunnel = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_TIMEOUT_S)
    tunnel.set_tunnel(host, port)
    tunnel.connect()
    return tunnel.sock


def _unreachable(name: str, where: str, error: OSError, proxy: str) -> Line:
    """Say why a port cannot be reached."""
    through = _through(proxy)
    if isinstance(error, ConnectionRefusedError) and not proxy:
        cure = f"Ask whether `ucadi coordinator serve` runs there. {_RIGHT_PORT}"
        return failed(name, f"{where} refuses connections: nothing listens there", cure)
    if isinstance(error, TimeoutError):
        cure = f"A firewall drops it: ask your IT to allow outgoing TCP to {where}, without a proxy."
        if proxy:
            cure = f"Ask your IT whether the proxy may CONNECT to {where}."
        return failed(name, f"{where} does not answer within {_TIMEOUT_S:.0f} s{through}", cure)
    if proxy:
        cure = f"Ask your IT to let the proxy CONNECT to {where}, or put the host into no_proxy."
        return failed(name, f"{where} cannot be reached{through}: {_words(error)}", cure)
    cure = "Check the network, and host and ports in site.toml."
    return failed(name, f"{where} cannot be reached: {_words(error)}", cure)


def _refused_certificate(name: str, found: str) -> Line:
    """Return the line for a certificate that the coordinator does not take."""
    return failed(name, found, "Ask whether the site was revoked; if not, enrol again with a new invitation.")


def _wrong_certificate(
    name: str, route: Route, port: int, proxy: str, error: ssl.SSLCertVerificationError
) -> Line:
    """Say what is wrong with the certificate that came."""
    where = f"{route.host}:{port}"
    if error.verify_code in (_EXPIRED, _NOT_YET):
        cure = "Set this machine's clock; if it is right, the coordinator must renew its certificate."
        return failed(name, f"{where}: {error.verify_message}", cure)
    if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        cure = "Use the host name that the invitation states."
        return failed(name, f"{where}: its certificate is for another name: {error.verify_message}", cure)
    found = f"{where} shows a certificate of {_issuer(route.host, port, proxy)}, not of this federation"
    cure = "A proxy that opens TLS must let this host pass unopened; else ask for a new invitation."
    return failed(name, found, cure)


def _issuer(host: str, port: int, proxy: str) -> str:
    """Return who signed the certificate that a port shows, trusted or not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only to name the stranger; nothing is sent
    with _connect(host, port, proxy) as link, context.wrap_socket(link) as secured:
        return issuer_of(secured.getpeercert(binary_form=True) or b"")


def _through(proxy: str) -> str:
    """Name the proxy, if there is one."""
    return f" through {_without_password(proxy)}" if proxy else ""


def _words(error: OSError) -> str:
    """Return an operating system's words."""
    return error.strerror or str(error) or type(error).__name__


# -- what the coordinator says ----------------------------------------------------------------------------


@dataclass(frozen=True)
class CoordinatorTime:
    """What the coordinator says about itself.

    Attributes:
        ahead_s: How far its clock is ahead of this machine's.
        round_trip_s: How long the question took; the clocks' difference is known to half of it.
        ucadi: Its release.
        wire_version: Its number of the messages' format.
    """

    ahead_s: float
    round_trip_s: float
    ucadi: str
    wire_version: int


def ask_time(route: Route) -> CoordinatorTime:
    """Ask the coordinator's clock and versions; of three answers the fastest is taken.

    Raises:
        OSError: If the API cannot be reached.
        ValueError: If it answers something else.
    """
    answers = []
    with _Api(route) as api:
        for _ in range(3):
            before = time.time()
            taken, body = api.ask("GET", "/v1/time")
            answers.append((taken, before, body))
    taken, before, body = min(answers)
    document: dict[str, Any] = json.loads(body)
    return CoordinatorTime(
        float(document["time"]) - before - taken / 2,
        taken,
        str(document["ucadi"])[:40],
        int(document["wire_version"]),
    )


def check_clock(asked: CoordinatorTime) -> Line:
    """Compare the clocks: certificates and signed requests are valid only for a time."""
    late = asked.ahead_s
    direction = "behind" if late > 0 else "ahead of"
    found = (
        f"this clock is {abs(late):.1f} s {direction} the coordinator's (to {asked.round_trip_s / 2:.3f} s)"
    )
    cure = "Set the clock by NTP (timedatectl set-ntp true)."
    if abs(late) > MOST_SKEW_S:
        return failed("clock", found, cure)
    return warning("clock", found, cure) if abs(late) > _CLOCK_WARNING_S else ok("clock", found)


def check_wire(asked: CoordinatorTime) -> Line:
    """Compare the versions of the messages' format."""
    name = "coordinator's version"
    if asked.wire_version == WIRE_VERSION:
        return ok(name, f"ucadi {asked.ucadi}, messages of version {WIRE_VERSION} as here")
    found = f"ucadi {asked.ucadi} with messages of version {asked.wire_version}; here it is {WIRE_VERSION}"
    return failed(name, found, f"Install ucadi {asked.ucadi} here, or the same release on both sides.")


def check_bandwidth(route: Route, sign: SignRequest) -> tuple[Line, Bandwidth]:
    """Measure how fast megabytes go up and come down, each for a few seconds at most."""
    with _Api(route) as api:
        up = _speed(lambda size: _echo(api, sign, bytes_up=size, bytes_back=0))
        down = _speed(lambda size: _echo(api, sign, bytes_up=0, bytes_back=size))
    found = f"up {readable_bytes(up)}/s, down {readable_bytes(down)}/s"
    return ok("bandwidth", found), Bandwidth(up, down)


def _speed(carry: Callable[[int], float]) -> float:
    """Return bytes per second: of a small load first, then of one that takes a few seconds at that speed."""
    seconds = carry(_FIRST_ECHO)
    size = min(_LARGEST_ECHO, int(_FIRST_ECHO * _ECHO_S / max(seconds, 1e-3)))
    if size <= 2 * _FIRST_ECHO:
        return _FIRST_ECHO / seconds
    return size / carry(size)


def _echo(api: "_Api", sign: SignRequest, *, bytes_up: int, bytes_back: int) -> float:
    """Carry bytes one way; return the seconds."""
    path, body = f"/v1/echo?back={bytes_back}", os.urandom(bytes_up)
    seconds, came = api.ask("POST", path, body, sign("POST", path, body))
    if len(came) != bytes_back:
        raise ConnectionError(f"{len(came)} of {bytes_back} bytes came back")
    return seconds


class _Api:
    """One HTTPS connection to the coordinator, kept for all questions, and bounded in time.

    Args:
        route: Where it is and whom to trust.
    """

    def __init__(self, route: Route) -> None:
        context = ssl.create_default_context(cafile=str(route.authority))
        proxy = _api_proxy(route.host)
        if proxy:
            parts = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
            self._connection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port or 80, timeout=_TIMEOUT_S, context=context
            )
            self._connection.set_tunnel(route.host, route.api_port)
        else:
            self._connection = http.client.HTTPSConnection(
                route.host, route.api_port, timeout=_TIMEOUT_S, context=context
            )

    def __enter__(self) -> "_Api":
        """Connect, so that no question's time holds the handshake."""
        self._connection.connect()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[float, bytes]:
        """Send one request; return the seconds that it took and what came back.

        Raises:
            OSError: If the connection fails, takes too long, or the answer is not 200.
        """
        started = time.monotonic()
        deadline = started + _ECHO_DEADLINE_S
        lengths = {"Content-Length": str(len(body))} if method == "POST" else {}
        self._connection.putrequest(method, path)
        for key, value in {**lengths, **(headers or {})}.items():
            self._connection.putheader(key, value)
        self._connection.endheaders()
        for part in _parts(body):
            _require_time(deadline)
            self._connection.send(part)
        answer = self._connection.getresponse()
        came = bytearray()
        with answer:  # a connection takes its next question when the last answer is closed
            while part := answer.read1(_FIRST_ECHO):
                _require_time(deadline)
                came += part
        if answer.status != http.client.OK:
            raise ConnectionError(f"{path.split('?')[0]} was answered with {answer.status} {answer.reason}")
        return time.monotonic() - started, bytes(came)


def _parts(body: bytes) -> Iterator[bytes]:
    """Cut a body, so that the time can be looked at between."""
    for start in range(0, len(body), _FIRST_ECHO):
        yield body[start : start + _FIRST_ECHO]


def _require_time(deadline: float) -> None:
    """Stop what takes too long."""
    if time.monotonic() > deadline:
        raise TimeoutError(f"no answer within {_ECHO_DEADLINE_S:.0f} s")
