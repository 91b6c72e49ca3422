# SPDX-License-Identifier: Apache-2.0
"""What the coordinator's interface answers to those who are not, or not quite, its sites."""

import dataclasses
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi import APIRouter, Request

from coordinator_hub import Hub
from ucadi.crypto.identity import Identity
from ucadi.enrolment.api import MAX_BODY_BYTES, SignedSite
from ucadi.enrolment.client import ApiClient
from ucadi.enrolment.roster import read_roster
from ucadi.enrolment.signing import sign_request
from ucadi.errors import EngineError, UcadiError
from ucadi.workflows import membership
from ucadi.workflows.join import api_client, join, read_membership
from ucadi.workflows.site_home import SiteHome

pytestmark = pytest.mark.slow

STRANGER = {f"x-ucadi-{name}": "1" for name in ("site", "time", "nonce", "signature")}


@pytest.fixture
def member(hub: Hub, site: SiteHome) -> SiteHome:
    """An approved site's home."""
    hub.admit(site)
    return site


def ask(hub: Hub, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    """Make a request as it stands, without our client."""
    base = f"https://127.0.0.1:{hub.home.settings.api_port}"
    with requests.Session() as session:
        answer = session.request(
            method, base + path, data=body, headers=headers, verify=str(hub.home.keys / "authority.crt")
        )
        return answer.status_code, answer.json()


def signed(home: SiteHome, method: str, path: str, body: bytes = b"", site: str = "lyon") -> dict[str, str]:
    federation = read_membership(home).federation
    assert federation is not None
    identity = Identity.load(home.keys / "identity.key")
    return sign_request(identity, site, federation.identity, method, path, body)


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(UcadiError) as caught:
        act()
    return caught.value.code


# -- signatures -------------------------------------------------------------------------------------------


def test_a_request_is_good_once(hub: Hub, member: SiteHome) -> None:
    headers = signed(member, "GET", "/v1/roster")
    assert ask(hub, "GET", "/v1/roster", **headers)[0] == 200
    status, said = ask(hub, "GET", "/v1/roster", **headers)
    assert (status, said["code"]) == (409, "request-replayed")
    hub.stop()
    hub.start()
    assert ask(hub, "GET", "/v1/roster", **headers)[1]["code"] == "request-replayed"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/leave", b'{"reason": "y"}'),
        ("POST", "/v1/leave", b""),
        ("POST", "/v1/leave?x=1", b'{"reason": "x"}'),
        ("GET", "/v1/roster", b""),
    ],
)
def test_a_signature_covers_method_path_and_body(
    hub: Hub, member: SiteHome, method: str, path: str, body: bytes
) -> None:
    headers = signed(member, "POST", "/v1/leave", b'{"reason": "x"}')
    assert ask(hub, method, path, body, **headers)[1]["code"] == "signature-invalid"


@pytest.mark.parametrize("name", ["site", "time", "nonce", "signature"])
def test_a_signature_covers_every_header_and_needs_all(hub: Hub, member: SiteHome, name: str) -> None:
    headers = signed(member, "GET", "/v1/roster")
    for value in ("1", "x" * 500, ""):
        changed = headers | {f"x-ucadi-{name}": value}
        assert ask(hub, "GET", "/v1/roster", **changed)[1]["code"] == "signature-invalid"
    del headers[f"x-ucadi-{name}"]
    assert ask(hub, "GET", "/v1/roster", **headers)[1]["code"] == "signature-invalid"


def test_a_site_cannot_ask_in_anothers_name(
    hub: Hub, member: SiteHome, new_site: Callable[..., SiteHome]
) -> None:
    hub.admit(new_site(1), "milan")
    headers = signed(member, "GET", "/v1/roster", site="milan")
    assert ask(hub, "GET", "/v1/roster", **headers)[1]["code"] == "signature-invalid"
    headers = signed(member, "GET", "/v1/roster", site="nobody")
    assert ask(hub, "GET", "/v1/roster", **headers)[1]["code"] == "signature-invalid"


def test_a_request_for_another_coordinator_is_refused(hub: Hub, member: SiteHome, tmp_path: Path) -> None:
    other = Identity.make(tmp_path / "other.key").public_key
    identity = Identity.load(member.keys / "identity.key")
    headers = sign_request(identity, "lyon", other, "GET", "/v1/roster", b"")
    assert ask(hub, "GET", "/v1/roster", **headers)[1]["code"] == "signature-invalid"


@pytest.mark.parametrize("off_s", [-301, -86400, 302, 86400])
def test_a_request_from_another_time_is_refused(
    hub: Hub, member: SiteHome, monkeypatch: pytest.MonkeyPatch, off_s: int
) -> None:
    real = time.time
    with monkeypatch.context() as patched:
        patched.setattr("ucadi.enrolment.signing.time.time", lambda: real() + off_s)
        headers = signed(member, "GET", "/v1/roster")
    status, said = ask(hub, "GET", "/v1/roster", **headers)
    assert (status, said["code"]) == (401, "clock-skewed")


def test_an_invited_site_cannot_ask_as_a_member(hub: Hub, site: SiteHome) -> None:
    join(site, hub.invite())
    status, said = ask(hub, "GET", "/v1/roster", **signed(site, "GET", "/v1/roster"))
    assert (status, said["code"]) == (403, "join-waiting")
    assert ask(hub, "GET", "/v1/standing", **signed(site, "GET", "/v1/standing")) == (
        200,
        {"site": "lyon", "state": "pending"},
    )


# -- shapes and sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/openapi.json", "/v1", "/v1/../docs"])
def test_the_interface_does_not_describe_itself(hub: Hub, path: str) -> None:
    status, said = ask(hub, "GET", path)
    assert (status, said["code"]) == (404, "request-unknown")


def test_answers_name_no_software(hub: Hub) -> None:
    answer = requests.get(
        f"https://127.0.0.1:{hub.home.settings.api_port}/docs",
        verify=str(hub.home.keys / "authority.crt"),
        timeout=10,
    )
    answer.close()
    assert set(answer.headers) == {"date", "content-length", "content-type"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "message-invalid"),
        (b"[]", "message-invalid"),
        (b"\xff\xfe", "message-invalid"),
        (b"[" * 60_000, "message-invalid"),
        (b" " * 70_000, "request-too-large"),
        (b"{}", "application-invalid"),
        (b'{"site": 1}', "application-invalid"),
    ],
)
def test_what_is_no_application_is_refused(hub: Hub, body: bytes, code: str) -> None:
    status, said = ask(hub, "POST", "/v1/application", body)
    assert said["code"] == code
    assert 400 <= status < 500


def test_every_field_of_an_application_is_checked(hub: Hub, site: SiteHome) -> None:
    join(site, hub.invite(), organization="CHU de Lyon")
    sent = next(content for path, content in hub.wire if path == "/v1/application")
    good = json.loads(sent[sent.index(b"]{") + 1 :])
    codes = set()
    for name, value in good.items():
        for other in (None, 7, "", "x" * 20_000, value[:-2] + "xx"):
            status, said = ask(hub, "POST", "/v1/application", json.dumps({**good, name: other}).encode())
            assert 400 <= status < 500, (name, other)
            codes.add(said["code"])
    assert codes == {"application-invalid", "not-authorized"}


@pytest.mark.parametrize("is_stated", [True, False])
def test_a_body_beyond_the_limit_is_refused_whatever_length_it_states(hub: Hub, is_stated: bool) -> None:
    body: Any = b"x" * (MAX_BODY_BYTES + 1)
    with requests.Session() as session:
        answer = session.post(
            f"https://127.0.0.1:{hub.home.settings.api_port}/v1/application",
            data=body if is_stated else iter([body[: 2**20]] * 5),
            verify=str(hub.home.keys / "authority.crt"),
        )
    assert (answer.status_code, answer.json()["code"]) == (413, "request-too-large")


@pytest.mark.parametrize("path", ["/v1/application", "/v1/leave"])
def test_a_strangers_body_is_not_collected_beyond_what_a_document_needs(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Ten pieces of 64 KiB: the second is too much, and nothing reads the body as a whole."""
    collected: list[int] = []
    original = Request.body

    async def body(self: Request) -> bytes:
        taken = await original(self)
        collected.append(len(taken))
        return taken

    monkeypatch.setattr(Request, "body", body)
    for pieces in (iter([b"x" * 65_536] * 10), b"x" * 70_000):
        with requests.Session() as session:
            answer = session.post(
                f"https://127.0.0.1:{hub.home.settings.api_port}{path}",
                data=pieces,
                headers=STRANGER,
                verify=str(hub.home.keys / "authority.crt"),
            )
        assert (answer.status_code, answer.json()["code"]) == (413, "request-too-large")
    assert collected == []


def test_plain_http_and_old_tls_get_nothing(hub: Hub) -> None:
    port = hub.home.settings.api_port
    with pytest.raises(requests.RequestException):
        requests.get(f"http://127.0.0.1:{port}/v1/standing", timeout=5)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA:@SECLEVEL=0")  # RSA key exchange, without forward secrecy
    with socket.create_connection(("127.0.0.1", port), 5) as raw, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(raw)


def test_a_taken_port_is_said(hub: Hub) -> None:
    other = Hub(hub.home, hub.folder)
    with pytest.raises(EngineError) as caught:
        other.start()
    assert caught.value.code == "port-taken"


# -- routes of other parts --------------------------------------------------------------------------------


def test_other_parts_add_routes_for_members(hub: Hub, member: SiteHome) -> None:
    router = APIRouter()

    @router.get("/v1/whoami")
    def whoami(site: SignedSite) -> dict[str, str]:
        return {"site": site.name}

    hub.stop()
    hub.routers.append(router)
    hub.start()
    with api_client(member) as client:
        assert client.get("/v1/whoami?a=%20b") == {"site": "lyon"}
        membership.revoke(hub.home, "lyon", "")
        assert refused(lambda: client.get("/v1/whoami")) == "site-revoked"
    assert ask(hub, "GET", "/v1/whoami")[0] == 401


# -- the client -------------------------------------------------------------------------------------------


class Proxy:
    """A proxy as hospitals have: it connects to where it is told, if it is allowed to."""

    def __init__(self, *, allows: bool = True) -> None:
        self.asked: list[bytes] = []
        self._allows = allows
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            head = client.recv(4096)
            self.asked.append(head.split(b"\r\n")[0])
            if not self._allows:
                client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                client.close()
                continue
            host, port = head.split()[1].decode().split(":")
            server = socket.create_connection((host, int(port)))
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with source, target:
            try:
                while data := source.recv(65536):
                    target.sendall(data)
            except OSError:
                return


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    made: list[Proxy] = []

    def make(**behavior: bool) -> Proxy:
        made.append(Proxy(**behavior))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def no_proxy_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_environments_proxy_is_used(
    hub: Hub, member: SiteHome, proxy: Callable[..., Proxy], no_proxy_settings: pytest.MonkeyPatch
) -> None:
    used = proxy()
    no_proxy_settings.setenv("HTTPS_PROXY", used.url)
    with api_client(member) as client:
        assert client.get("/v1/standing")["state"] == "approved"
    assert [asked.split()[:2] for asked in used.asked] == [
        [b"CONNECT", f"127.0.0.1:{hub.home.settings.api_port}".encode()]
    ]


def test_a_proxy_that_refuses_is_named(
    hub: Hub, member: SiteHome, proxy: Callable[..., Proxy], no_proxy_settings: pytest.MonkeyPatch
) -> None:
    no_proxy_settings.setenv("HTTPS_PROXY", proxy(allows=False).url)
    with api_client(member) as client, pytest.raises(UcadiError, match="NO_PROXY") as caught:
        client.get("/v1/standing")
    assert caught.value.code == "unreachable"


def test_authorities_and_passwords_of_this_machine_are_not_used(
    hub: Hub, member: SiteHome, tmp_path: Path, no_proxy_settings: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    no_proxy_settings.setenv("REQUESTS_CA_BUNDLE", str(empty))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret-of-netrc\n")
    (tmp_path / "netrc").chmod(0o600)
    no_proxy_settings.setenv("NETRC", str(tmp_path / "netrc"))
    with api_client(member) as client:
        client.get("/v1/standing")
    assert b"authorization" not in hub.wire[-1][1].lower()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", "message-invalid"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "unreachable"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 5\r\n\r\n<html", "unreachable"),
        (b'HTTP/1.1 400 Bad\r\ncontent-length: 16\r\n\r\n{"code": "evil"}', "unreachable"),
        (b'HTTP/1.1 403 No\r\ncontent-length: 24\r\n\r\n{"code": "site-revoked"}', "site-revoked"),
        (b"HTTP/1.1 302 Found\r\nlocation: https://evil/\r\ncontent-length: 0\r\n\r\n", "message-invalid"),
        (b"nonsense\r\n\r\n", "unreachable"),
        (b"", "unreachable"),
    ],
)
def test_odd_answers_are_said_in_our_words(
    hub: Hub, site: SiteHome, tmp_path: Path, answer: bytes, code: str
) -> None:
    keys = hub.home.keys
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "api.crt", keys / "api.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            raw, _ = listener.accept()
            with context.wrap_socket(raw, server_side=True) as connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        identity = Identity.load(site.keys / "identity.key")
        port = listener.getsockname()[1]
        with ApiClient("127.0.0.1", port, keys / "authority.crt", "key", "lyon", identity) as client:
            assert refused(lambda: client.get("/v1/standing")) == code
        thread.join()


def test_an_answer_without_end_is_cut_off(hub: Hub, member: SiteHome) -> None:
    with api_client(member) as client:
        assert refused(lambda: client.send("GET", "/v1/roster", b"", most_bytes=10)) == "message-invalid"


# -- the roster -------------------------------------------------------------------------------------------


def test_a_roster_is_believed_when_signed_and_not_older(hub: Hub, member: SiteHome, tmp_path: Path) -> None:
    federation = hub.home.federation()
    with api_client(member) as client:
        document = dict(client.get("/v1/roster"))
    roster = read_roster(document, "study", federation.identity, newer_than=2)
    assert roster.epoch == 2
    assert (
        refused(lambda: read_roster(document, "study", federation.identity, newer_than=3))
        == "message-invalid"
    )
    assert refused(lambda: read_roster(document, "other", federation.identity)) == "message-invalid"
    other = Identity.make(tmp_path / "other.key").public_key
    assert refused(lambda: read_roster(document, "study", other)) == "signature-invalid"
    for change in ({"epoch": 9}, {"sites": []}, {"signature": None}, {"extra": 1}):
        act = partial(read_roster, {**document, **change}, "study", federation.identity)
        assert refused(act) == "signature-invalid"
    for wrong in (None, [], "x", {}):
        assert refused(partial(read_roster, wrong, "study", federation.identity)) == "message-invalid"


def test_a_federation_that_cannot_be_one_is_refused(hub: Hub) -> None:
    federation = hub.home.federation()
    for change in (
        {"name": "a b"},
        {"host": "::1"},
        {"host": "a b"},
        {"port": 0},
        {"port": "8102"},
        {"api_port": 70000},
        {"authority": "no certificate"},
        {"identity": "no key"},
    ):
        with pytest.raises((ValueError, TypeError)):
            dataclasses.replace(federation, **change)
