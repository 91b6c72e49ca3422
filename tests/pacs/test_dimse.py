# SPDX-License-Identifier: Apache-2.0
"""DIMSE between our own two sides, and against a PACS that does as a test tells it, right or wrong."""

import gc
import socket
import struct
import time
import zlib
from socketserver import BaseServer

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)
from pynetdicom import AE, evt

from ucadi.errors import ConfigError, DataError, NotAuthorizedError, UcadiError, UnreachableError
from ucadi.pacs import dimse_store
from ucadi.pacs.dimse import _FIND, _GET, _MOVE, Dimse
from ucadi.pacs.dimse_store import VERIFICATION, StorageServer, new_entity
from ucadi.pacs.inbox import Inbox, Limits
from ucadi.pacs.peer import parse_peer
from ucadi.pacs.server import Level, Query, find_instances

STUDY, SERIES = "1.2.3", "1.2.3.4"
SECRET = "NOBODY^JANE"


@pytest.fixture(autouse=True)
def _quick_to_end(monkeypatch):
    """Servers look every half second whether they are to end."""
    monkeypatch.setattr(BaseServer.serve_forever, "__defaults__", (0.01,))


@pytest.fixture(scope="module")
def folder(make_ct, make_series, save_series, tmp_path_factory):
    """A series of three images."""
    images = make_series(make_ct(), PatientName=SECRET)[:3]
    return save_series(images, tmp_path_factory.mktemp("series"))


@pytest.fixture
def listening(tmp_path):
    """Starts our own server; returns it with its inbox."""
    opened = []

    def start(*, limits=None, **options):
        inbox = Inbox(tmp_path / "in", limits=limits).__enter__()
        server = StorageServer(inbox, ("127.0.0.1", 0), "US", **options).__enter__()
        opened.extend([server, inbox])
        return server, inbox

    yield start
    for each in opened:
        each.__exit__(None, None, None)


@pytest.fixture
def pacs():
    """Starts a PACS with some services; what each does is given as pynetdicom's handlers."""
    entities = []

    def start(*handlers):
        entity = new_entity("PACS")
        for uid in (VERIFICATION, _FIND, _GET, _MOVE):
            entity.add_supported_context(uid)
        entity.add_supported_context(CTImageStorage, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=list(handlers))
        entities.append(entity)
        return server.server_address[1]

    yield start
    for entity in entities:
        entity.shutdown()


def client(port, title="US", ours="THEM", **options):
    return Dimse(parse_peer(f"dicom://{title}@127.0.0.1:{port}", allow_plain=False), ours, **options)


def send(port, *paths, **options):
    return client(port, **options).send(find_instances(paths), lambda done, total: None)


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def pixels_in(folder):
    return sorted(dcmread(path).PixelData for path in files_in(folder))


def code_of(call, kind=UcadiError):
    with pytest.raises(kind) as caught:
        call()
    assert SECRET not in str(caught.value)
    return caught.value.code


# -- addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "dicom://127.0.0.1:104",
        "dicom://@127.0.0.1",
        "dicom://A@",
        "dicom://A@host:99999",
        "dicom://A@host:x",
        "dicom://A:b@127.0.0.1",
        "dicom://A@127.0.0.1/path",
        "dicom://SEVENTEENLETTERSX@127.0.0.1",
        "dicom://A%5CB@127.0.0.1",
        "dicom://A%0AB@127.0.0.1",
        "ftp://A@127.0.0.1",
        "dicom://[::1",
    ],
)
def test_an_address_that_is_none_is_refused(url):
    assert code_of(lambda: parse_peer(url, allow_plain=True), ConfigError) == "pacs-address"


def test_an_address_has_the_standards_ports_unless_it_says_others():
    assert parse_peer("dicom://MY%20PACS@localhost", allow_plain=False).title == "MY PACS"
    assert parse_peer("dicom://A@localhost", allow_plain=False).port == 104
    assert parse_peer("dicoms://A@pacs.example.org", allow_plain=False).port == 2762
    assert parse_peer("dicom://A@localhost:4242", allow_plain=False).port == 4242


def test_plain_dimse_to_another_machine_needs_an_explicit_word():
    url = "dicom://A@pacs.example.org"
    assert code_of(lambda: parse_peer(url, allow_plain=False), ConfigError) == "pacs-insecure"
    assert not parse_peer(url, allow_plain=True).is_encrypted


# -- sending and receiving --------------------------------------------------------------------------------


def test_images_arrive_with_all_their_elements(folder, listening):
    server, inbox = listening()
    assert send(server.port, folder) == ()
    sent = {d.SOPInstanceUID: d for d in map(dcmread, files_in(folder))}
    came = {d.SOPInstanceUID: d for d in map(dcmread, files_in(inbox.folder))}
    assert sent == came
    assert inbox.received == set(sent)


def test_compressed_images_arrive_compressed(folder, listening, tmp_path):
    image = dcmread(files_in(folder)[0])
    image.compress(RLELossless, generate_instance_uid=False)
    image.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    server, inbox = listening()
    assert send(server.port, tmp_path / "rle.dcm") == ()
    (came,) = map(dcmread, files_in(inbox.folder))
    assert came.file_meta.TransferSyntaxUID == RLELossless
    assert came.PixelData == image.PixelData


def test_no_text_of_a_sender_stands_in_a_path(folder, listening):
    server, inbox = listening()
    send(server.port, folder)
    for path in files_in(inbox.folder):
        parts = path.relative_to(inbox.folder).with_suffix("").parts
        assert all(set(part) <= set("0123456789abcdef") for part in parts)


def test_a_greeting_is_answered(listening):
    client(listening()[0].port).check()


def test_only_titles_on_the_list_may_send(folder, listening):
    server, _ = listening(allow=["THEM"])
    assert send(server.port, folder, ours="THEM") == ()
    assert (
        code_of(lambda: send(server.port, folder, ours="OTHER"), NotAuthorizedError) == "pacs-not-authorized"
    )


def test_a_call_for_another_title_is_refused(folder, listening):
    server, inbox = listening()
    assert (
        code_of(lambda: send(server.port, folder, title="OTHER"), NotAuthorizedError) == "pacs-not-authorized"
    )
    assert files_in(inbox.folder) == []


@pytest.mark.parametrize(
    "limits", [Limits(free_bytes=2**60), Limits(instance_bytes=100), Limits(instances=0)]
)
def test_a_full_inbox_says_so_with_the_status_of_the_standard(limits, folder, listening):
    server, inbox = listening(limits=limits)
    rejected = send(server.port, folder)
    assert len(rejected) == 3
    assert {r.reason for r in rejected} == {"it is out of resources (0xA700)"}
    assert files_in(inbox.folder) == []


def test_a_disk_that_fills_up_says_so_too(folder, listening, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ucadi.pacs.inbox.os.fsync", full)
    server, inbox = listening()
    assert {r.reason for r in send(server.port, folder)} == {"it is out of resources (0xA700)"}
    assert files_in(inbox.folder) == []


def test_another_image_under_the_same_uids_is_answered_as_one_that_is_there(folder, listening, tmp_path):
    server, inbox = listening()
    (path, *_) = files_in(folder)
    assert send(server.port, path) == ()
    assert send(server.port, path) == ()  # the same again
    before = [file.read_bytes() for file in files_in(inbox.folder)]
    image = dcmread(path)
    image.PatientID = "SOMEBODY ELSE"
    image.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    (rejected,) = send(server.port, tmp_path / "x.dcm")
    assert rejected.reason == "it has the image already (0x0111)"
    assert [file.read_bytes() for file in files_in(inbox.folder)] == before


def test_a_deflated_file_that_expands_without_measure_is_not_sent(folder, tmp_path):
    image = dcmread(files_in(folder)[0])
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    content = (tmp_path / "x.dcm").read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    plain = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    bomb = deflate.compress(plain + bytes(2**24)) + deflate.flush()
    (tmp_path / "x.dcm").write_bytes(content[:start] + bomb)
    (instance,) = find_instances([tmp_path / "x.dcm"])
    assert "cannot be sent" in client(0)._store(None, instance)


def test_an_image_under_a_false_uid_is_refused(folder, listening, tmp_path):
    image = dcmread(files_in(folder)[0])
    image.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    content = (tmp_path / "x.dcm").read_bytes()
    uid = image.SOPInstanceUID.encode()
    end = content.rindex(uid)  # the data set's, not the file's
    other = b"8" if uid.endswith(b"7") else b"7"
    (tmp_path / "x.dcm").write_bytes(content[:end] + uid[:-1] + other + content[end + len(uid) :])
    server, _ = listening()
    (rejected,) = send(server.port, tmp_path / "x.dcm")
    assert "0xA900" in rejected.reason


def test_a_server_that_does_not_take_a_kind_of_image_is_reported(folder, tmp_path, pacs):
    image = dcmread(files_in(folder)[0])
    image.compress(RLELossless, generate_instance_uid=False)
    image.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    port = pacs((evt.EVT_C_STORE, lambda event: 0x0000))
    (rejected,) = send(port, files_in(folder)[0], tmp_path / "rle.dcm", title="PACS")
    assert rejected.path.name == "rle.dcm"
    assert "compression" in rejected.reason


def test_a_warning_counts_as_stored_and_a_failure_does_not(folder, pacs):
    statuses = iter([0xB000, 0xC001, 0x0000])
    port = pacs((evt.EVT_C_STORE, lambda event: next(statuses)))
    (rejected,) = send(port, folder, title="PACS")
    assert "cannot process" in rejected.reason


def test_a_server_that_hangs_up_is_unreachable(folder, pacs):
    port = pacs((evt.EVT_C_STORE, lambda event: event.assoc.abort() or 0))
    assert code_of(lambda: send(port, folder, title="PACS"), UnreachableError) == "pacs-unreachable"


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # pynetdicom closes no such socket
def test_a_server_that_is_not_there_is_unreachable(folder):
    assert code_of(lambda: send(free_port(), folder), UnreachableError) == "pacs-unreachable"
    gc.collect()


def test_a_port_in_use_is_reported(listening, tmp_path):
    server, inbox = listening()
    second = StorageServer(inbox, ("127.0.0.1", server.port), "US")
    assert code_of(second.__enter__) == "port-taken"


# -- callers who mean harm --------------------------------------------------------------------------------


def is_closed(sock, seconds=5.0):
    """Whether the other side hangs up."""
    sock.settimeout(seconds)
    try:
        return sock.recv(100) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    "greeting",
    [
        struct.pack(">BBL", 1, 0, 2**32 - 1) + bytes(100),  # announces 4 GiB
        struct.pack(">BBL", 4, 0, 2**31) + bytes(100),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_caller_who_announces_too_much_or_babbles_is_cut_off_and_others_are_served(
    greeting, folder, listening
):
    server, inbox = listening()
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(greeting)
        if greeting[0] == 1:
            assert is_closed(sock)
        assert send(server.port, folder) == ()
    assert len(files_in(inbox.folder)) == 3


def test_a_message_without_end_is_cut_off(folder, listening, monkeypatch):
    monkeypatch.setattr(dimse_store, "_MAX_PENDING_BYTES", 5_000)
    server, inbox = listening()
    with pytest.raises(UnreachableError):
        send(server.port, folder)
    assert files_in(inbox.folder) == []


def test_many_messages_over_one_connection_are_not_taken_for_one_without_end(folder, listening, monkeypatch):
    size = max(path.stat().st_size for path in files_in(folder))
    monkeypatch.setattr(dimse_store, "_MAX_PENDING_BYTES", 2 * size)
    server, _ = listening()
    assert send(server.port, folder) == ()


def test_a_caller_who_stops_in_the_middle_is_not_waited_for(listening, monkeypatch):
    monkeypatch.setattr(dimse_store, "_STALL_S", 0.2)
    server, _ = listening()
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(struct.pack(">BBL", 1, 0, 1000) + bytes(10))
        assert is_closed(sock)


# -- queries ----------------------------------------------------------------------------------------------


def match_of(**values):
    item = Dataset()
    item.StudyInstanceUID, item.PatientID, item.StudyDate = STUDY, "P-1", "20200101"
    for name, value in values.items():
        setattr(item, name, value)
    return item


def finding(*items, asked=None):
    def handle(event):
        if asked is not None:
            asked.append(event.identifier)
        for item in items:
            yield 0xFF00, item
        yield 0x0000, None

    return evt.EVT_C_FIND, handle


def test_a_query_sends_its_filters_and_reads_the_matches(pacs):
    asked = []
    item = match_of(
        ModalitiesInStudy=["CT", "SR"], StudyDescription="Chest", NumberOfStudyRelatedInstances=64
    )
    port = pacs(finding(item, asked=asked))
    (match,) = client(port, "PACS").query(Query(patient_id="P-1", study_date="20200101-", modality="CT"))
    assert (match.study, match.patient_id, match.study_date) == (STUDY, "P-1", "20200101")
    assert (match.modality, match.description, match.images) == ("CT/SR", "Chest", 64)
    assert (asked[0].PatientID, asked[0].StudyDate, asked[0].ModalitiesInStudy) == ("P-1", "20200101-", "CT")
    assert asked[0].QueryRetrieveLevel == "STUDY"


def test_series_are_listed_of_one_study(pacs):
    asked = []
    item = match_of(SeriesInstanceUID=SERIES, Modality="CT", SeriesDescription="Lung")
    port = pacs(finding(item, asked=asked))
    (match,) = client(port, "PACS").query(Query(Level.SERIES, study=STUDY))
    assert (match.series, match.modality, match.description, match.images) == (SERIES, "CT", "Lung", None)
    assert (asked[0].QueryRetrieveLevel, asked[0].StudyInstanceUID) == ("SERIES", STUDY)


def test_series_without_a_study_are_a_wrong_question():
    assert code_of(lambda: Query(Level.SERIES), ConfigError) == "config-invalid"


def test_a_query_that_fails_says_so(pacs):
    def handle(event):
        yield 0xA900, None

    port = pacs((evt.EVT_C_FIND, handle))
    assert code_of(lambda: client(port, "PACS").query(Query())) == "pacs-answer"


def test_a_match_without_a_uid_is_refused(pacs):
    item = match_of(PatientName=SECRET)
    del item.StudyInstanceUID
    port = pacs(finding(item))
    assert code_of(lambda: client(port, "PACS").query(Query())) == "pacs-answer"


def test_a_servers_text_cannot_steer_the_terminal(pacs):
    port = pacs(finding(match_of(StudyDescription="\x1b[2Jall clear")))
    (match,) = client(port, "PACS").query(Query())
    assert match.description.isprintable()


def test_matches_without_end_are_cut_off(pacs, monkeypatch):
    monkeypatch.setattr("ucadi.pacs.dimse.MAX_MATCHES", 20)

    def handle(event):
        while not event.is_cancelled:
            yield 0xFF00, match_of()

    port = pacs((evt.EVT_C_FIND, handle))
    assert len(client(port, "PACS").query(Query())) == 20


# -- pulling ----------------------------------------------------------------------------------------------


def getting(paths):
    def handle(event):
        yield len(paths)
        for path in paths:
            yield 0xFF00, dcmread(path)

    return evt.EVT_C_GET, handle


def moving(paths, port_of_title):
    def handle(event):
        port = port_of_title.get(event.move_destination)
        if port is None:
            yield None, None
            return
        yield "127.0.0.1", port, {"contexts": contexts_of_ct()}
        yield len(paths)
        for path in paths:
            yield 0xFF00, dcmread(path)

    return evt.EVT_C_MOVE, handle


def contexts_of_ct():
    entity = AE()
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    return entity.requested_contexts


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def pull(port, folder, series="", wanted=STUDY, **options):
    with Inbox(folder, study=wanted, series=series) as inbox:
        client(port, "PACS", **options).pull(wanted, series, inbox, lambda done, total: None)


def test_images_come_over_the_same_connection(folder, pacs, tmp_path):
    port = pacs(finding(match_of()), getting(files_in(folder)))
    pull(port, tmp_path / "in")
    assert pixels_in(tmp_path / "in") == pixels_in(folder)


def test_images_come_to_a_port_of_ours(folder, pacs, tmp_path):
    ours = free_port()
    port = pacs(finding(match_of()), moving(files_in(folder), {"THEM": ours}))
    pull(port, tmp_path / "in", move_port=ours)
    assert pixels_in(tmp_path / "in") == pixels_in(folder)


def test_a_server_that_does_not_know_where_we_are_is_told_apart(folder, pacs, tmp_path):
    port = pacs(finding(match_of()), moving(files_in(folder), {}))
    with pytest.raises(UcadiError, match="Enter THEM") as caught:
        pull(port, tmp_path / "in", move_port=free_port())
    assert caught.value.code == "pacs-answer"


def test_an_image_of_another_study_is_refused_and_counts_as_missing(folder, pacs, tmp_path):
    paths = files_in(folder)
    other = dcmread(paths[0])
    other.StudyInstanceUID = "9.9.9"
    other.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    port = pacs(finding(match_of()), getting([tmp_path / "other.dcm", *paths[1:]]))
    assert code_of(lambda: pull(port, tmp_path / "in")) == "pacs-incomplete"
    assert len(files_in(tmp_path / "in")) == 2


def test_a_full_disk_of_ours_is_not_the_servers_fault(folder, pacs, tmp_path):
    port = pacs(finding(match_of()), getting(files_in(folder)))
    with (
        pytest.raises(UcadiError, match="GB are free") as caught,
        Inbox(tmp_path / "in", study=STUDY, limits=Limits(free_bytes=2**60)) as inbox,
    ):
        client(port, "PACS").pull(STUDY, "", inbox, lambda done, total: None)
    assert caught.value.code == "disk-full"


def test_a_study_that_is_not_there_is_told_apart(pacs, tmp_path):
    port = pacs(finding())
    assert code_of(lambda: pull(port, tmp_path / "in"), DataError) == "pacs-no-match"


def test_fewer_images_than_the_server_has_are_noticed(folder, pacs, tmp_path):
    port = pacs(finding(match_of(NumberOfStudyRelatedInstances=4)), getting(files_in(folder)))
    assert code_of(lambda: pull(port, tmp_path / "in")) == "pacs-incomplete"


def test_all_kinds_of_a_chest_study_can_be_taken_in(pacs, tmp_path):
    offered = []

    def get(event):
        offered.extend(context.abstract_syntax for context in event.assoc.requestor.requested_contexts)
        yield 0

    port = pacs(finding(match_of()), (evt.EVT_C_GET, get))
    assert code_of(lambda: pull(port, tmp_path / "in"), DataError) == "pacs-no-match"
    assert {CTImageStorage, EnhancedCTImageStorage, SegmentationStorage, Comprehensive3DSRStorage} <= set(
        offered
    )
    assert len(offered) <= 128


def test_the_pause_of_a_small_last_packet_is_not_waited_for(folder, listening):
    server, _ = listening()
    started = time.perf_counter()
    send(server.port, *[folder])
    assert time.perf_counter() - started < 3.0


def test_what_a_message_holds_never_reaches_a_log(folder, listening, pacs, caplog):
    caplog.set_level("DEBUG")
    server, _ = listening()
    send(server.port, folder)
    client(pacs(finding(match_of(PatientName=SECRET))), "PACS").query(Query(patient_id=SECRET))
    assert SECRET not in caplog.text
