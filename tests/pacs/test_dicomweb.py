# SPDX-License-Identifier: Apache-2.0
"""DICOMweb against a real HTTP server that says what a test tells it to, right or wrong."""

import gzip
import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest

from ucadi.errors import ConfigError, DataError, NotAuthorizedError, UcadiError, UnreachableError
from ucadi.pacs import dicomweb
from ucadi.pacs.dicomweb import Credentials, DicomWeb
from ucadi.pacs.inbox import Inbox, Limits
from ucadi.pacs.multipart import boundary_of, read_parts
from ucadi.pacs.server import Level, Query, Trust, find_instances

STUDY, SERIES = "1.2.3", "1.2.3.4"
SECRET = "NOBODY^JANE"  # what a server holds and no message may tell


@dataclass
class Answer:
    """What the server says to one request."""

    body: bytes = b"[]"
    status: int = 200
    headers: dict = field(default_factory=lambda: {"Content-Type": "application/dicom+json"})
    stated_length: int | None = None  # another one than the body's


@dataclass
class Server:
    """A server with a list of answers, by the end of a request's path; the last one is given again."""

    url: str = ""
    answers: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)

    def answer(self, path, *answers):
        self.answers[path] = list(answers)

    def take(self, method, path, headers, body):
        self.requests.append((method, path, headers, body))
        route = path.partition("?")[0].rpartition("/")[2]
        waiting = self.answers.get(f"{method} {route}") or self.answers.get(route) or [Answer()]
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(dicomweb, "_BACKOFF_S", 0.01)
    scripted = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said = scripted.take(self.command, self.path, dict(self.headers), body)
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(said.stated_length or len(said.body)))
            self.send_header("Connection", "close")
            self.end_headers()
            with suppress(OSError):  # the client has had enough
                self.wfile.write(said.body)
            self.close_connection = True

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    scripted.url = f"http://127.0.0.1:{listening.server_port}/dicom-web"
    yield scripted
    listening.shutdown()
    listening.server_close()


@pytest.fixture(scope="module")
def images(make_ct, make_series):
    """Two images of the series 1.2.3.4, as the bytes of files."""
    return [encoded(image) for image in make_series(make_ct(), PatientName=SECRET)[:2]]


@pytest.fixture
def paths(images, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / f"{number}.dcm").write_bytes(image)
    return folder


def encoded(dataset):
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def as_json(*items):
    return Answer(json.dumps(items[0] if len(items) == 1 and isinstance(items[0], list) else items).encode())


def element(vr, *values):
    return {"vr": vr, "Value": list(values)}


def study_item(uid=STUDY, **more):
    return {"0020000D": element("UI", uid), **more}


def instance_items(images):
    return [{"00080018": element("UI", uid_of(image))} for image in images]


def uid_of(image):
    from pydicom import dcmread

    return str(dcmread(BytesIO(image)).SOPInstanceUID)


def multipart(images, head="Content-Type: application/dicom"):
    body = b"".join(f"\r\n--b\r\n{head}\r\n\r\n".encode() + image for image in images) + b"\r\n--b--"
    return Answer(body, headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'})


def offer(server, images, series_answer=None):
    """A server that lists images and sends them, or what is given instead."""
    server.answer("instances", as_json(instance_items(images)), Answer())
    server.answer(SERIES, series_answer or multipart(images))


def pull(server, folder, **options):
    with Inbox(folder, study=STUDY, series=SERIES, **options) as inbox:
        DicomWeb(server.url).pull(STUDY, SERIES, inbox, lambda done, total: None)
    return sorted(path.read_bytes() for path in folder.rglob("*.dcm"))


def code_of(call, kind=UcadiError):
    with pytest.raises(kind) as caught:
        call()
    assert SECRET not in str(caught.value)
    return caught.value.code


# -- addresses and identity -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["https://", "ftp://host/x", "host/dicom-web", "https://h/x?y=1", "https://h/#x"]
)
def test_an_address_that_is_none_is_refused(url):
    assert code_of(lambda: DicomWeb(url), ConfigError) == "pacs-address"


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ConfigError) as caught:
        DicomWeb("https://user:hunter2@host/dicom-web")
    assert caught.value.code == "pacs-address"
    assert "hunter2" not in str(caught.value)


def test_plain_http_to_another_machine_needs_an_explicit_word():
    assert code_of(lambda: DicomWeb("http://pacs.example.org/x"), ConfigError) == "pacs-insecure"
    assert code_of(lambda: DicomWeb("http://127.0.0.1.example.org/x"), ConfigError) == "pacs-insecure"
    DicomWeb("http://pacs.example.org/x", trust=Trust(allow_plain=True))
    for near in ("127.0.0.1", "localhost", "[::1]:8042"):
        DicomWeb(f"http://{near}/x")


def test_user_and_password_are_sent_and_never_shown(server):
    credentials = Credentials("jo", "hunter2")
    DicomWeb(server.url, credentials).check()
    assert server.requests[0][2]["Authorization"] == "Basic am86aHVudGVyMg=="
    assert "hunter2" not in repr(credentials)


def test_a_token_is_sent_even_where_a_netrc_file_names_the_server(server, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    DicomWeb(server.url, Credentials(token="t0")).check()
    DicomWeb(server.url).check()
    assert [headers.get("Authorization") for _, _, headers, _ in server.requests] == ["Bearer t0", None]


def test_a_proxy_never_sees_what_stays_on_this_machine(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    DicomWeb(server.url).check()
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_is_told_apart(server, status):
    server.answer("studies", Answer(SECRET.encode(), status))
    assert code_of(DicomWeb(server.url).check, NotAuthorizedError) == "pacs-not-authorized"
    assert len(server.requests) == 1


# -- servers that are not there, or not ready -------------------------------------------------------------


def test_a_server_that_is_not_there_is_unreachable(server, monkeypatch):
    assert code_of(DicomWeb("http://127.0.0.1:9/x").check, UnreachableError) == "pacs-unreachable"


def test_a_server_that_is_not_ready_is_asked_again(server):
    server.answer("studies", Answer(status=503), Answer(status=502), as_json(study_item()), Answer())
    assert len(DicomWeb(server.url).query(Query())) == 1


def test_a_server_that_is_never_ready_is_unreachable(server):
    server.answer("studies", Answer(status=503))
    assert code_of(lambda: DicomWeb(server.url).query(Query()), UnreachableError) == "pacs-unreachable"
    assert len(server.requests) == 3


def test_images_are_not_sent_twice_when_a_server_is_not_ready(server, paths):
    server.answer("POST studies", Answer(status=503))
    client = DicomWeb(server.url)
    assert (
        code_of(lambda: client.send(find_instances([paths]), lambda done, total: None)) == "pacs-unreachable"
    )
    assert [method for method, *_ in server.requests].count("POST") == 1


# -- answers that are not DICOMweb ------------------------------------------------------------------------

ODD = {
    "page": Answer(b"<html>log in, NOBODY^JANE</html>", headers={"Content-Type": "text/html"}),
    "number": Answer(b"17"),
    "text": Answer(b'"NOBODY^JANE"'),
    "texts": Answer(b'["NOBODY^JANE"]'),
    "no uid": as_json({"00100010": element("PN", SECRET)}),
    "uid with a path": as_json(study_item(f"../{SECRET}")),
    "deep": Answer(b"[" * 100_000 + b"]" * 100_000),
    "not utf-8": Answer(b"\xff\xfe["),
    "value is no list": as_json({"0020000D": {"vr": "UI", "Value": "1.2.3"}}),
    "count is no number": as_json(study_item(**{"00201208": element("IS", SECRET)})),
    "false gzip": Answer(
        b"no gzip", headers={"Content-Encoding": "gzip", "Content-Type": "application/json"}
    ),
    "server error": Answer(SECRET.encode(), 500),
    "moved": Answer(b"", 302, {"Location": "/elsewhere"}),
}


@pytest.mark.parametrize("name", ODD)
def test_an_answer_that_is_not_dicomweb_is_refused_in_plain_words(name, server):
    server.answer("studies", ODD[name])
    assert code_of(lambda: DicomWeb(server.url).query(Query())) == "pacs-answer"


def test_credentials_do_not_follow_to_another_address(server):
    server.answer("studies", Answer(b"", 307, {"Location": server.url + "/elsewhere"}))
    with pytest.raises(UcadiError):
        DicomWeb(server.url, Credentials("jo", "hunter2")).check()
    assert len(server.requests) == 1


def test_an_answer_that_expands_without_end_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(dicomweb, "_MAX_JSON_BYTES", 10**6)
    bomb = gzip.compress(b"[" + b" " * 10**8 + b"]")
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/dicom+json"}
    server.answer("studies", Answer(bomb, headers=headers))
    assert code_of(lambda: DicomWeb(server.url).query(Query()), DataError) == "pacs-too-large"


def test_an_answer_cut_short_is_unreachable(server):
    server.answer("studies", Answer(b"[{", stated_length=100))
    assert code_of(lambda: DicomWeb(server.url).query(Query())) == "pacs-unreachable"


# -- queries ----------------------------------------------------------------------------------------------


def test_a_query_sends_its_filters_and_reads_the_matches(server):
    item = study_item(
        **{
            "00100020": element("LO", "P-1"),
            "00080020": element("DA", "20200101"),
            "00080061": element("CS", "CT", "SR"),
            "00081030": element("LO", "Chest"),
            "00201208": element("IS", "64"),
        }
    )
    server.answer("studies", as_json(item), Answer())
    (match,) = DicomWeb(server.url).query(Query(patient_id="P-1", study_date="20200101-", modality="CT"))
    assert (match.study, match.patient_id, match.study_date) == (STUDY, "P-1", "20200101")
    assert (match.modality, match.description, match.images) == ("CT/SR", "Chest", 64)
    asked = server.requests[0][1]
    for part in ("PatientID=P-1", "StudyDate=20200101-", "ModalitiesInStudy=CT"):
        assert part in asked
    assert "P-1" not in repr(match)


def test_series_are_listed_of_one_study(server):
    item = {"0020000E": element("UI", SERIES), "00080060": element("CS", "CT"), "00201209": element("IS", 3)}
    server.answer("series", as_json(item), Answer())
    (match,) = DicomWeb(server.url).query(Query(Level.SERIES, study=STUDY))
    assert (match.study, match.series, match.modality, match.images) == (STUDY, SERIES, "CT", 3)
    assert f"/studies/{STUDY}/series?" in server.requests[0][1]


def test_pages_are_asked_for_until_nothing_new_comes(server):
    pages = [as_json([study_item(f"1.{page}.{k}") for k in range(3)]) for page in range(3)]
    server.answer("studies", *pages, pages[2])  # like a server that does not know where a page begins
    assert len(DicomWeb(server.url).query(Query())) == 9
    assert "offset=9" in server.requests[-1][1]


def test_a_servers_text_cannot_steer_the_terminal(server):
    item = study_item(**{"00081030": element("LO", "\x1b[2Jall clear\r\n\x07\u202e" + "x" * 10_000)})
    server.answer("studies", as_json(item), Answer())
    (match,) = DicomWeb(server.url).query(Query())
    assert match.description.isprintable()
    assert len(match.description) < 200


# -- pulling ----------------------------------------------------------------------------------------------


def test_images_come_byte_for_byte(server, images, tmp_path):
    offer(server, images)
    assert pull(server, tmp_path / "in") == sorted(images)
    assert "transfer-syntax=*" in server.requests[-1][2]["Accept"]


def test_one_image_without_a_wrapping_is_taken_too(server, images, tmp_path):
    alone = Answer(images[0], headers={"Content-Type": "application/dicom"})
    offer(server, images[:1], alone)
    assert pull(server, tmp_path / "in") == images[:1]


def test_names_that_a_server_gives_are_not_used(server, images, tmp_path):
    head = "Content-Type: application/dicom\r\nContent-Location: ../../x\r\nContent-Disposition: filename=/x"
    offer(server, images, multipart(images, head))
    pull(server, tmp_path / "in")
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert all(name.startswith("in/") and "x" not in name for name in names)


def test_a_stream_that_breaks_is_asked_for_again(server, images, tmp_path):
    whole = multipart(images)
    broken = Answer(whole.body[:9000], headers=whole.headers)
    server.answer("instances", as_json(instance_items(images)), Answer())
    server.answer(SERIES, broken, whole)
    assert pull(server, tmp_path / "in") == sorted(images)


@pytest.mark.parametrize("stated", [None, 10**6])
def test_a_stream_that_always_breaks_is_no_success(stated, server, images, tmp_path):
    whole = multipart(images)
    offer(server, images, Answer(whole.body[:-9], headers=whole.headers, stated_length=stated))
    assert code_of(lambda: pull(server, tmp_path / "in"), UnreachableError) == "pacs-unreachable"


def test_an_image_that_is_missing_is_noticed(server, images, tmp_path):
    offer(server, images, multipart(images[:1]))
    assert code_of(lambda: pull(server, tmp_path / "in")) == "pacs-incomplete"


@pytest.mark.parametrize("status", [200, 404])
def test_a_study_that_is_not_there_is_told_apart(status, server, tmp_path):
    server.answer("instances", Answer(status=status))
    assert code_of(lambda: pull(server, tmp_path / "in"), DataError) == "pacs-no-match"


def test_an_image_of_another_patient_is_refused(server, images, make_ct, make_series, tmp_path):
    other = encoded(make_series(make_ct(), StudyInstanceUID="9.9.9", PatientName=SECRET)[0])
    offer(server, images, multipart([images[0], other]))
    assert code_of(lambda: pull(server, tmp_path / "in"), DataError) == "pacs-foreign"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(b"<html>", headers={"Content-Type": "text/html"}), "pacs-answer"),
        (Answer(b"x", headers={"Content-Type": "multipart/related; type=x"}), "pacs-answer"),
        (Answer(b"x", headers={}), "pacs-answer"),
        (multipart([b"no image"]), "input-unreadable"),
        (multipart([], ""), "pacs-incomplete"),
    ],
)
def test_what_comes_instead_of_images_is_refused(answer, code, server, images, tmp_path):
    offer(server, images, answer)
    assert code_of(lambda: pull(server, tmp_path / "in")) == code


def test_more_images_than_the_limits_allow_are_refused(server, images, tmp_path):
    offer(server, images)
    call = lambda: pull(server, tmp_path / "in", limits=Limits(instances=1))  # noqa: E731
    assert code_of(call, DataError) == "pacs-too-large"


# -- sending ----------------------------------------------------------------------------------------------


def outcome(stored=(), failed=()):
    return {
        "00081199": element("SQ", *({"00081155": element("UI", uid)} for uid in stored)),
        "00081198": element(
            "SQ", *({"00081155": element("UI", u), "00081197": element("US", why)} for u, why in failed)
        ),
    }


def send(server, paths):
    return DicomWeb(server.url).send(find_instances([paths]), lambda done, total: None)


def test_files_are_sent_byte_for_byte(server, images, paths):
    server.answer("POST studies", Answer(json.dumps(outcome(map(uid_of, images))).encode()))
    assert send(server, paths) == ()
    (_, path, headers, body) = server.requests[0]
    assert path == "/dicom-web/studies"
    parts = read_parts([body], boundary_of(headers["Content-Type"]))
    assert [b"".join(part) for part in parts] == images


@pytest.mark.parametrize("status", [200, 202, 409])
def test_each_file_that_a_server_does_not_store_is_named_with_the_reason(status, server, images, paths):
    stored, failed = map(uid_of, images)
    answer = json.dumps(outcome([stored], [(failed, 0xA700)])).encode()
    server.answer("POST studies", Answer(answer, status))
    (rejected,) = send(server, paths)
    assert rejected.path.read_bytes() == images[1]
    assert "out of resources" in rejected.reason
    assert str(rejected.path) not in repr(rejected)


def test_a_file_that_a_server_says_nothing_about_is_not_taken_for_stored(server, images, paths):
    server.answer("POST studies", Answer(json.dumps(outcome([uid_of(images[0])])).encode(), 202))
    assert len(send(server, paths)) == 1


def test_a_server_that_only_says_yes_is_believed(server, paths):
    server.answer("POST studies", Answer(b"", 200, {}))
    assert send(server, paths) == ()


def test_an_outcome_that_cannot_be_read_is_no_success(server, paths):
    server.answer("POST studies", Answer(b"{"))
    assert code_of(lambda: send(server, paths)) == "pacs-answer"


def test_a_refusal_without_a_list_means_all_files(server, paths):
    server.answer("POST studies", Answer(b"<x/>", 409, {"Content-Type": "text/xml"}))
    assert len(send(server, paths)) == 2


def test_many_files_go_in_several_messages(server, images, paths, monkeypatch):
    monkeypatch.setattr(dicomweb, "_BATCH_BYTES", len(images[0]) + 10)
    server.answer(
        "POST studies", *(Answer(json.dumps(outcome([uid_of(image)])).encode()) for image in images)
    )
    assert send(server, paths) == ()
    assert len(server.requests) == 2
