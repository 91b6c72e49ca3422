# SPDX-License-Identifier: Apache-2.0
import datetime
import gc
import os
import threading
from socketserver import BaseServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydicom import dcmread

from ucadi.errors import ConfigError, DataError, DicomError, NotAuthorizedError, UcadiError, UnreachableError
from ucadi.io.dicom_write import SeriesHeader, write_ct_series
from ucadi.pacs.dicomweb import DicomWeb
from ucadi.pacs.dimse import Dimse
from ucadi.pacs.server import find_instances
from ucadi.workflows.pacs import Trust, connect, listen, pull, read_credentials, send


@pytest.fixture(autouse=True)
def _quick_to_end(monkeypatch):
    """Servers look every half second whether they are to end."""
    monkeypatch.setattr(BaseServer.serve_forever, "__defaults__", (0.01,))


def make_certificate(folder, name):
    """A key and a certificate for this machine that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / f"{name}.pem", folder / f"{name}.key"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Certificate and key of three machines."""
    folder = tmp_path_factory.mktemp("tls")
    return {name: make_certificate(folder, name) for name in ("us", "them", "stranger")}


HEADER = SeriesHeader("P-1", "S-1", "maker", "kernel")


@pytest.fixture(scope="module")
def series(make_ct, tmp_path_factory):
    """A folder with three images, and a file that is none."""
    folder = tmp_path_factory.mktemp("series")
    write_ct_series(make_ct((3, 16, 16)), folder, HEADER)
    (folder / "README").write_text("no image")
    return folder


@pytest.fixture
def listening():
    """Starts `listen` in a thread until one delivery has come; returns the port."""
    threads = []

    def start(folder, **options):
        ready, port = threading.Event(), []

        def tell(at):
            port.append(at)
            ready.set()

        def run():
            listen(folder, ("localhost", 0), "US", once=True, on_ready=tell, **options)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        assert ready.wait(10)
        return port[0], threads[-1]

    return start


# -- addresses and credentials ----------------------------------------------------------------------------


def test_the_address_says_which_protocol_is_spoken():
    assert isinstance(connect("https://pacs.example.org/dicom-web"), DicomWeb)
    assert isinstance(connect("dicoms://PACS@pacs.example.org"), Dimse)
    with pytest.raises(ConfigError):
        connect("pacs.example.org")


def test_an_odd_title_is_refused():
    with pytest.raises(ConfigError, match="title"):
        connect("dicom://PACS@localhost", title="SEVENTEENLETTERSX")


def test_secrets_come_from_files_before_the_environment(tmp_path):
    (tmp_path / "password").write_text("from file\n")
    given = {"UCADI_PACS_USER": "jo", "UCADI_PACS_PASSWORD": "from environment"}
    assert read_credentials("", tmp_path / "password", None, given).password == "from file"
    assert read_credentials("", None, None, given).password == "from environment"
    assert read_credentials("ann", None, None, given).user == "ann"
    assert read_credentials("", None, tmp_path / "password", {}).token == "from file"
    assert not any(vars(read_credentials("", None, None, {})).values())


@pytest.mark.parametrize(
    ("user", "content"),
    [("jo", ""), ("jo", "two\nlines"), ("", "p"), ("j:o", "p"), ("jo", "\x00"), ("jo", "a\r\nX-Header: b")],
)
def test_credentials_that_cannot_be_used_are_refused_without_repeating_them(user, content, tmp_path):
    (tmp_path / "password").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_credentials(user, tmp_path / "password", None, {})
    assert caught.value.code == "pacs-credentials"
    assert "lines" not in str(caught.value)


def test_a_password_and_a_token_are_one_too_many(tmp_path):
    (tmp_path / "secret").write_text("x")
    with pytest.raises(ConfigError):
        read_credentials("jo", tmp_path / "secret", tmp_path / "secret", {})


# -- files ------------------------------------------------------------------------------------------------


def test_only_dicom_files_are_sent(series, tmp_path, listening):
    port, thread = listening(tmp_path / "in")
    sent = send(connect(f"dicom://US@localhost:{port}"), [series])
    thread.join(10)
    assert (sent.files, sent.rejected) == (3, ())
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == 3
    assert not thread.is_alive()
    assert {path.suffix for path in (tmp_path / "in").rglob("*") if path.is_file()} == {".dcm"}


def test_what_a_link_in_a_folder_leads_to_is_not_sent(series, tmp_path):
    images = sorted(path for path in series.iterdir() if path.suffix == ".dcm")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.dcm").write_bytes(images[0].read_bytes())
    (tmp_path / "mine" / "b.dcm").symlink_to(tmp_path / "mine" / "a.dcm")
    os.mkfifo(tmp_path / "mine" / "c.dcm")
    assert [i.path.name for i in find_instances([tmp_path / "mine"])] == ["a.dcm"]
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert [i.path.name for i in find_instances([tmp_path / "link"])] == ["a.dcm"]  # the user's own word
    (tmp_path / "mine" / "d.dcm").symlink_to(images[1])
    with pytest.raises(DataError) as caught:
        send(Whole([]), [tmp_path / "mine"])
    assert caught.value.code == "input-links"


def test_a_folder_with_files_without_end_is_not_sent(series, monkeypatch):
    monkeypatch.setattr("ucadi.io.files.MAX_ENTRIES", 2)
    with pytest.raises(DataError) as caught:
        send(Whole([]), [series])
    assert caught.value.code == "input-too-costly"


def test_a_dry_run_greets_the_server_and_sends_nothing(series, tmp_path, listening):
    port, _ = listening(tmp_path / "in")
    sent = send(connect(f"dicom://US@localhost:{port}"), [series], dry_run=True)
    assert sent.files == 3
    assert list((tmp_path / "in").rglob("*.dcm")) == []


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(b"no")
    with pytest.raises(DicomError) as caught:
        send(connect("dicom://US@localhost:9"), [tmp_path])
    assert caught.value.code == "dicom-none"


class Whole:
    """A server that has some images."""

    def __init__(self, images):
        self.images = images

    def check(self): ...

    def query(self, query): ...

    def send(self, instances, on_progress): ...

    def pull(self, study, series, inbox, on_progress):
        for image in self.images:
            inbox.take([image.read_bytes()])


class Half(Whole):
    """A server that breaks in the middle of a study."""

    def pull(self, study, series, inbox, on_progress):
        inbox.take([self.images[0].read_bytes()])
        raise UnreachableError("pacs-unreachable", "The server broke off.")


def test_half_a_study_never_appears(series, tmp_path):
    images = [path for path in sorted(series.iterdir()) if path.name != "README"]
    with pytest.raises(UnreachableError):
        pull(Half(images), HEADER.uid("study"), "", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert pull(Whole(images), HEADER.uid("study"), "", tmp_path / "out") == 3
    assert len({dcmread(path).SOPInstanceUID for path in (tmp_path / "out").rglob("*.dcm")}) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("uid", ["", "x", "1..2", "../1", "1" * 65, "1.2\n"])
def test_a_uid_that_is_none_is_refused(uid, tmp_path):
    with pytest.raises(ConfigError):
        pull(Whole([]), uid, "", tmp_path / "out")


# -- encryption -------------------------------------------------------------------------------------------


def trust_of(certificates, own, other):
    return Trust(
        authorities=certificates[other][0], certificate=certificates[own][0], key=certificates[own][1]
    )


def test_images_travel_encrypted_between_two_sides_that_know_each_other(
    series, tmp_path, listening, certificates
):
    port, thread = listening(tmp_path / "in", trust=trust_of(certificates, "us", "them"))
    server = connect(f"dicoms://US@localhost:{port}", trust=trust_of(certificates, "them", "us"))
    assert send(server, [series]).rejected == ()
    thread.join(10)
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == 3


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # pynetdicom closes no such socket
@pytest.mark.parametrize(("own", "other"), [("stranger", "us"), ("them", "stranger")])
def test_neither_side_talks_to_a_stranger(own, other, series, tmp_path, listening, certificates):
    port, _ = listening(tmp_path / "in", trust=trust_of(certificates, "us", "them"))
    server = connect(f"dicoms://US@localhost:{port}", trust=trust_of(certificates, own, other))
    with pytest.raises((UnreachableError, NotAuthorizedError)):
        send(server, [series])
    assert list((tmp_path / "in").rglob("*.dcm")) == []
    gc.collect()


def test_a_silent_caller_does_not_keep_an_encrypted_listener_from_others(
    series, tmp_path, listening, certificates
):
    import socket

    port, thread = listening(tmp_path / "in", trust=trust_of(certificates, "us", "them"))
    with socket.create_connection(("localhost", port)):
        server = connect(f"dicoms://US@localhost:{port}", trust=trust_of(certificates, "them", "us"))
        assert send(server, [series]).rejected == ()
        thread.join(10)
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == 3


def test_a_listener_for_other_machines_needs_encryption_or_an_explicit_word(tmp_path):
    with pytest.raises(ConfigError) as caught:
        listen(tmp_path / "in", ("0.0.0.0", 0), "US")  # noqa: S104 - refused
    assert caught.value.code == "pacs-insecure"
    assert not (tmp_path / "in").exists()


def test_a_port_in_use_is_reported(tmp_path, listening):
    port, _ = listening(tmp_path / "in")
    with pytest.raises(UcadiError) as caught:
        listen(tmp_path / "other", ("localhost", port), "US")
    assert caught.value.code == "port-taken"


def test_https_to_a_server_that_nobody_vouches_for_is_refused(certificates, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates["us"][0]))  # does not outweigh what is named
    import ssl
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates["us"])
    with ThreadingHTTPServer(("localhost", 0), Empty) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://localhost:{server.server_port}/dicom-web"
        with pytest.raises(UnreachableError) as caught:
            connect(url, trust=Trust(authorities=certificates["stranger"][0])).check()
        assert caught.value.code == "pacs-certificate"
        connect(url, trust=Trust(authorities=certificates["us"][0])).check()
        server.shutdown()
