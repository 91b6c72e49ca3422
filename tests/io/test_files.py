# SPDX-License-Identifier: Apache-2.0
import os
import socket
import struct
import zipfile
from pathlib import Path

import pytest

from ucadi.errors import DataError
from ucadi.io import files
from ucadi.io.files import file_of_path, files_of_folder, open_zip, opener


def contents(found) -> list[bytes]:
    out = []
    for open_file in found:
        with open_file() as file:
            out.append(file.read())
    return out


def of_zip(path) -> list[bytes]:
    with open_zip(path) as found:
        return contents(found)


def code_of(read, path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert path.name not in str(caught.value)
    return caught.value.code


# -- folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"another patient")
    (tmp_path / "folder-77" / "b" / "c").mkdir(parents=True)
    (tmp_path / "folder-77" / "b" / "2").write_bytes(b"two")
    (tmp_path / "folder-77" / "a").write_bytes(b"one")
    (tmp_path / "folder-77" / "b" / "c" / "3").write_bytes(b"three")
    return tmp_path / "folder-77"


def test_all_files_under_a_folder_come_in_the_order_of_their_paths(folder) -> None:
    assert contents(files_of_folder(folder)) == [b"one", b"two", b"three"]


def test_a_link_that_the_user_names_is_followed(folder, tmp_path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert contents(files_of_folder(tmp_path / "link")) == [b"one", b"two", b"three"]
    (tmp_path / "file").symlink_to(folder / "a")
    assert contents([file_of_path(tmp_path / "file")]) == [b"one"]


@pytest.mark.parametrize("target", ["../secret", "..", "nowhere", "/etc", "loop"])
def test_a_link_out_of_the_folder_or_nowhere_is_refused(folder, target) -> None:
    (folder / "loop").symlink_to(target)
    assert code_of(files_of_folder, folder) == "input-links"


def test_a_link_inside_adds_no_file_and_no_endless_walk(folder) -> None:
    (folder / "again").symlink_to("a")
    (folder / "b" / "up").symlink_to("..")
    assert contents(files_of_folder(folder)) == [b"one", b"two", b"three"]


def test_a_file_that_becomes_a_link_after_the_listing_is_not_opened(folder, tmp_path) -> None:
    found = files_of_folder(folder)
    (folder / "a").unlink()
    (folder / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        found[0]()


def test_pipes_and_sockets_are_passed_over_and_never_block(folder, monkeypatch) -> None:
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert contents(files_of_folder(folder)) == [b"one", b"two", b"three"]
    with pytest.raises(OSError, match="not a regular file"):
        file_of_path(folder / "pipe")()
    with pytest.raises(OSError, match="not a regular file"):
        opener(Path("/dev/zero"))()


def test_a_folder_with_too_many_entries_is_refused(folder, monkeypatch) -> None:
    monkeypatch.setattr(files, "MAX_ENTRIES", 5)
    assert len(files_of_folder(folder)) == 3
    monkeypatch.setattr(files, "MAX_ENTRIES", 4)
    assert code_of(files_of_folder, folder) == "input-too-costly"


def test_a_deep_tree_is_walked_without_recursion(tmp_path) -> None:
    levels = [os.open(tmp_path, os.O_RDONLY)]
    try:
        for _ in range(1200):
            os.mkdir("d", dir_fd=levels[-1])
            levels.append(os.open("d", os.O_RDONLY, dir_fd=levels[-1]))
        assert files_of_folder(tmp_path) == []
    finally:  # what pytest uses to empty its folders is recursive
        os.close(levels.pop())
        while levels:
            os.rmdir("d", dir_fd=levels[-1])
            os.close(levels.pop())


@pytest.mark.skipif(os.getuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_cannot_be_listed_is_refused_and_not_passed_over(folder) -> None:
    (folder / "b").chmod(0)
    assert code_of(files_of_folder, folder) == "input-unreadable"
    (folder / "b").chmod(0o700)


def test_a_folder_that_vanishes_is_refused(folder) -> None:
    assert code_of(files_of_folder, folder / "nowhere") == "input-unreadable"


# -- archives ---------------------------------------------------------------------------------------------


def make_zip(path, entries, compression=zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def patch(path, mark, offset, data, *, last=False) -> None:
    """Overwrite bytes behind the first or last mark."""
    content = bytearray(path.read_bytes())
    at = content.rfind(mark) if last else content.find(mark)
    content[at + offset : at + offset + len(data)] = data
    path.write_bytes(content)


DIRECTORY, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def test_entries_are_read_whatever_their_names(tmp_path) -> None:
    names = ["../../up", "/root", "C:\\x", "a\nb", "é", "folder/"]
    make_zip(tmp_path / "upload-77", [(name, b"" if name == "folder/" else name.encode()) for name in names])
    assert of_zip(tmp_path / "upload-77") == [name.encode() for name in names[:-1]]


def test_an_entry_without_a_name_is_read(tmp_path) -> None:
    make_zip(tmp_path / "upload-77", [("n", b"one")])
    patch(tmp_path / "upload-77", LOCAL, 26, struct.pack("<HH", 0, 1))  # the name becomes an extra field
    patch(tmp_path / "upload-77", DIRECTORY, 28, struct.pack("<HH", 0, 1))
    assert of_zip(tmp_path / "upload-77") == [b"one"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_of_the_same_name_are_both_read(tmp_path) -> None:
    make_zip(tmp_path / "upload-77", [("a", b"one"), ("a", b"two")])
    assert of_zip(tmp_path / "upload-77") == [b"one", b"two"]


def test_links_in_an_archive_are_passed_over(tmp_path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    make_zip(tmp_path / "upload-77", [(link, b"/etc/passwd"), ("a", b"one")])
    assert of_zip(tmp_path / "upload-77") == [b"one"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_a_bound_is_refused(tmp_path, method) -> None:
    make_zip(tmp_path / "upload-77", [("a", b"one")], method)
    assert code_of(of_zip, tmp_path / "upload-77") == "archive-unsafe"


def test_unknown_compression_is_refused(tmp_path) -> None:
    make_zip(tmp_path / "upload-77", [("a", b"one")])
    patch(tmp_path / "upload-77", DIRECTORY, 10, b"\x09\x00")  # Deflate64
    assert code_of(of_zip, tmp_path / "upload-77") == "archive-unsafe"


@pytest.mark.parametrize("stated", [10, 99_999])
def test_an_entry_that_expands_to_more_than_stated_gives_an_error_and_no_more_bytes(tmp_path, stated) -> None:
    make_zip(tmp_path / "upload-77", [("a", os.urandom(1000) * 100)])
    patch(tmp_path / "upload-77", DIRECTORY, 24, struct.pack("<I", stated))
    read = 0
    with open_zip(tmp_path / "upload-77") as found, found[0]() as file:
        while read <= stated:
            try:
                read += len(file.read1(5000))
            except files.READ_ERRORS:
                break
    assert read <= stated


def test_a_stored_entry_that_claims_more_bytes_than_the_archive_has_is_refused(tmp_path) -> None:
    make_zip(tmp_path / "upload-77", [("a", b"one"), ("b", b"two")], zipfile.ZIP_STORED)
    patch(tmp_path / "upload-77", DIRECTORY, 20, struct.pack("<II", 1000, 1000))
    assert code_of(of_zip, tmp_path / "upload-77") == "archive-unsafe"


def test_entries_that_share_bytes_are_refused(tmp_path) -> None:
    make_zip(tmp_path / "upload-77", [("a", bytes(200_000)), ("b", b"")])
    content = (tmp_path / "upload-77").read_bytes()
    first = content.find(DIRECTORY)
    entry = content[first : content.find(DIRECTORY, first + 1)]
    end = bytearray(content[content.find(END) :])
    end[8:16] = struct.pack("<HHI", 500, 500, 500 * len(entry))
    (tmp_path / "upload-77").write_bytes(content[:first] + 500 * entry + end)
    assert code_of(of_zip, tmp_path / "upload-77") == "archive-unsafe"


@pytest.mark.parametrize("attack", ["directory", "zip64"])
def test_a_huge_list_of_entries_is_refused_before_it_is_taken_in(tmp_path, attack, monkeypatch) -> None:
    make_zip(tmp_path / "upload-77", [(f"{n:04d}", b"") for n in range(1000)])
    monkeypatch.setattr(files, "MAX_DIRECTORY_BYTES", 20_000)
    if attack == "zip64":
        content = (tmp_path / "upload-77").read_bytes()
        at = content.find(END)
        size, start = struct.unpack("<II", content[at + 12 : at + 20])
        large = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1000, 1000, size, start)
        place = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
        end = END + bytes(4) + b"\xff" * 12 + bytes(2)
        (tmp_path / "upload-77").write_bytes(content[:at] + large + place + end)
    assert code_of(of_zip, tmp_path / "upload-77") == "input-unreadable"
    monkeypatch.setattr(files, "MAX_DIRECTORY_BYTES", 200_000)
    assert len(of_zip(tmp_path / "upload-77")) == 1000


def test_an_archive_of_very_many_empty_entries_is_refused(tmp_path) -> None:
    make_zip(tmp_path / "upload-77", [(str(n), b"") for n in range(files.MAX_ENTRIES + 1)])
    assert code_of(of_zip, tmp_path / "upload-77") == "archive-unsafe"


def test_a_large_stored_entry_is_read_in_one_go(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "MAX_DIRECTORY_BYTES", 1000)
    data = os.urandom(300_000)
    make_zip(tmp_path / "upload-77", [("a", data)], zipfile.ZIP_STORED)
    assert of_zip(tmp_path / "upload-77") == [data]


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_refused(tmp_path, content) -> None:
    (tmp_path / "upload-77").write_bytes(content)
    assert code_of(of_zip, tmp_path / "upload-77") == "input-unreadable"


def test_files_are_closed_with_the_archive(tmp_path) -> None:
    make_zip(tmp_path / "upload-77", [("a", b"one")])
    before = len(list(Path("/proc/self/fd").iterdir()))
    of_zip(tmp_path / "upload-77")
    (tmp_path / "broken").write_bytes(b"no archive")
    code_of(of_zip, tmp_path / "broken")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
