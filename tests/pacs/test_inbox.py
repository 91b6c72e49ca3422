# SPDX-License-Identifier: Apache-2.0
import stat
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, generate_uid

from ucadi.errors import DataError, UcadiError
from ucadi.pacs.inbox import Inbox, Limits


@pytest.fixture(scope="module")
def images(make_ct, make_series):
    """Three images of one series, as the bytes of files."""
    return [encoded(image) for image in make_series(make_ct())[:3]]


def encoded(dataset):
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_images_lie_by_study_and_series_as_they_came(images, tmp_path):
    with Inbox(tmp_path / "in") as inbox:
        for image in images:
            inbox.take([image[:7], image[7:]])
    files = files_in(tmp_path / "in")
    assert len(inbox.received) == 3
    assert sorted(file.read_bytes() for file in files) == sorted(images)
    assert len({file.parent for file in files}) == 1
    assert {len(file.relative_to(tmp_path / "in").parts) for file in files} == {3}


def test_only_this_user_may_read_what_came(images, tmp_path):
    with Inbox(tmp_path / "in") as inbox:
        inbox.take([images[0]])
    assert stat.S_IMODE((tmp_path / "in").stat().st_mode) == 0o700
    assert stat.S_IMODE(files_in(tmp_path / "in")[0].stat().st_mode) == 0o600


@pytest.mark.parametrize("uid", ["../../../etc/x", "1.2/../../x", "..", "1.2\\x", "1" * 64, "1.2\n3"])
def test_no_uid_leads_out_of_the_folder(uid, make_ct, make_series, tmp_path):
    image = make_series(make_ct())[0]
    content = encoded(image).replace(b"1.2.3\0", uid.encode()[:6].ljust(6, b"\0"))
    with Inbox(tmp_path / "a" / "b" / "in") as inbox:
        inbox.take([content])
    (file,) = files_in(tmp_path)
    assert file.is_relative_to(tmp_path / "a" / "b" / "in")
    assert all(set(part) <= set("0123456789abcdef") for part in file.parent.parts[-2:])


def test_the_same_image_twice_is_one_file(images, tmp_path):
    with Inbox(tmp_path / "in", limits=Limits(total_bytes=2 * len(images[0]) + 10)) as inbox:
        inbox.take([images[0]])
        inbox.take([images[0]])
    assert len(files_in(tmp_path / "in")) == len(inbox.received) == 1


def of_study(dataset, number):
    """The image as the bytes of a file, under another study's UID."""
    copy = deepcopy(dataset)
    copy.StudyInstanceUID = f"1.2.3.{number}"
    return encoded(copy)


@pytest.mark.parametrize("limits", [Limits(instances=3), Limits(total_bytes=20_000)])
def test_one_instances_uid_under_many_studies_passes_no_limit(limits, make_ct, make_series, tmp_path):
    image = make_series(make_ct())[0]
    refused = []
    with Inbox(tmp_path / "in", limits=limits) as inbox:
        for number in range(12):
            try:
                inbox.take([of_study(image, number)])
            except DataError as error:
                refused.append(error.code)
        assert len(inbox) == len(files_in(tmp_path / "in"))
    sizes = [file.stat().st_size for file in files_in(tmp_path / "in")]
    assert 1 < len(sizes) <= limits.instances
    assert sum(sizes) <= limits.total_bytes
    assert refused == ["pacs-too-large"] * (12 - len(sizes))


@pytest.mark.parametrize("is_later", [False, True])
def test_another_image_under_the_same_uids_is_refused_and_the_first_one_stays(is_later, images, tmp_path):
    first, other = images[0], images[0][:-1] + bytes([images[0][-1] ^ 1])
    with Inbox(tmp_path / "in") as inbox:
        inbox.take([first])
        if not is_later:
            with pytest.raises(DataError) as caught:
                inbox.take([other])
    if is_later:  # by another run that takes in
        with Inbox(tmp_path / "in") as inbox:
            with pytest.raises(DataError) as caught:
                inbox.take([other])
            assert len(inbox) == 0
            inbox.take([first])
            assert len(inbox) == 1
    assert caught.value.code == "pacs-duplicate"
    assert [file.read_bytes() for file in files_in(tmp_path / "in")] == [first]


def test_senders_at_the_same_time_pass_no_limit_together(images, tmp_path):
    start = threading.Barrier(3)

    def slow(image):
        yield image[:9]
        start.wait(10)  # all are let in before the first is stored
        yield image[9:]

    def take(image):
        try:
            inbox.take(slow(image))
        except DataError as error:
            return error.code
        return ""

    with Inbox(tmp_path / "in", limits=Limits(instances=1)) as inbox, ThreadPoolExecutor(3) as pool:
        said = sorted(pool.map(take, images))
    assert said == ["", "pacs-too-large", "pacs-too-large"]
    assert len(files_in(tmp_path / "in")) == 1


@pytest.mark.parametrize("junk", [b"", b"<html>", bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\xff" * 99])
def test_what_is_no_image_leaves_nothing_behind(junk, tmp_path):
    with pytest.raises(DataError) as caught, Inbox(tmp_path / "in") as inbox:
        inbox.take([junk])
    assert caught.value.code == "input-unreadable"
    assert files_in(tmp_path / "in") == []


@pytest.mark.parametrize("wanted", [{"study": "1.9"}, {"study": "1.2.3", "series": "1.9"}])
def test_an_image_that_was_not_asked_for_is_refused(wanted, images, tmp_path):
    with pytest.raises(DataError) as caught, Inbox(tmp_path / "in", **wanted) as inbox:
        inbox.take([images[0]])
    assert caught.value.code == "pacs-foreign"
    assert files_in(tmp_path / "in") == []


def test_an_image_under_another_uid_than_announced_is_refused(images, tmp_path):
    with pytest.raises(DataError, match="SOPInstanceUID"), Inbox(tmp_path / "in") as inbox:
        inbox.take([images[0]], instance=generate_uid())


@pytest.mark.parametrize(
    ("limits", "taken"),
    [({"instances": 1}, 1), ({"total_bytes": 10_000}, 1), ({"instance_bytes": 5_000}, 0)],
)
def test_no_limit_is_passed(limits, taken, images, tmp_path):
    assert 5_000 < len(images[0]) < 10_000 < 2 * len(images[0])
    with Inbox(tmp_path / "in", limits=Limits(**limits)) as inbox:
        for image in images[:taken]:
            inbox.take([image])
        with pytest.raises(DataError) as caught:
            inbox.take([images[taken]])
    assert caught.value.code == "pacs-too-large"
    assert len(files_in(tmp_path / "in")) == taken


def test_an_endless_image_is_cut_off(tmp_path):
    def endless():
        while True:
            yield bytes(2**16)

    with pytest.raises(DataError), Inbox(tmp_path / "in", limits=Limits(instance_bytes=2**20)) as inbox:
        inbox.take(endless())
    assert files_in(tmp_path / "in") == []


def test_nothing_is_taken_when_the_disk_is_nearly_full(images, tmp_path):
    with (
        pytest.raises(UcadiError) as caught,
        Inbox(tmp_path / "in", limits=Limits(free_bytes=2**60)) as inbox,
    ):
        inbox.take([images[0]])
    assert caught.value.code == "disk-full"


def test_a_deflated_image_is_taken_as_it_is(make_ct, make_series, tmp_path):
    image = make_series(make_ct())[0]
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = encoded(image)
    with Inbox(tmp_path / "in") as inbox:
        inbox.take([content])
    (file,) = files_in(tmp_path / "in")
    assert file.read_bytes() == content
    assert np.array_equal(dcmread(file).pixel_array, image.pixel_array)


def test_a_deflated_bomb_is_refused(make_ct, make_series, tmp_path):
    image = make_series(make_ct())[0]
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = encoded(image)
    start = content.index(DeflatedExplicitVRLittleEndian.encode()) + 22
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join([deflate.compress(bytes(2**24)) for _ in range(4)]) + deflate.flush()
    with pytest.raises(DataError) as caught, Inbox(tmp_path / "in") as inbox:
        inbox.take([content[:start], bomb])
    assert caught.value.code == "input-unreadable"
