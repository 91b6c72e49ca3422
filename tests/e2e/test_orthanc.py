# SPDX-License-Identifier: Apache-2.0
"""Series, masks and measurements through a real image server and back: nothing changes on the way."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import dcmread

from ucadi.io.dicom_write import SeriesHeader, TransferSyntax, write_ct_series
from ucadi.io.reader import load_ct
from ucadi.results import codes
from ucadi.results.identity import Maker
from ucadi.results.seg import Segment, read_segmentation, write_segmentation
from ucadi.results.sr import Finding, Quantity, read_report, write_report

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

HEADER = SeriesHeader("P-1", "S-1", "maker", "kernel")
STUDY, SERIES = HEADER.uid("study"), HEADER.uid("series")
MAKER = Maker("0123456789ab", "toy model")


@pytest.fixture
def series(make_ct, tmp_path):
    """A chest of 48 slices, compressed, as files of one series."""
    volume = make_ct((48, 96, 96), (4.0, 3.7, 3.7))
    write_ct_series(volume, tmp_path / "series", HEADER, transfer_syntax=TransferSyntax.RLE)
    return tmp_path / "series"


@pytest.fixture(params=["web", "dimse-get", "dimse-move"])
def way(request, orthanc, password):
    """An address of Orthanc, the options to send and query, and those to pull."""
    if request.param == "web":
        return orthanc.web, password, password
    move = ["--move-port", orthanc.move_port] if request.param == "dimse-move" else []
    return orthanc.dimse, [], move


def segments_of(lungs):
    finder = "Lung finder"
    return [
        Segment(
            "Right lung", lungs.right, codes.ANATOMY, codes.LUNG, (143, 144, 255), finder, side=codes.RIGHT
        ),
        Segment("Left lung", lungs.left, codes.ANATOMY, codes.LUNG, (143, 255, 144), finder, side=codes.LEFT),
    ]


def write_results(loaded, folder):
    """Segmentation and report of a reading, as for a PACS."""
    folder.mkdir()
    volume, lungs = loaded.require()
    masks = write_segmentation(segments_of(lungs), volume.grid, loaded.source, MAKER, folder / "seg.dcm")
    findings = [
        Finding(
            name,
            codes.LUNG,
            (Quantity(codes.VOLUME, ml, codes.MILLILITER),),
            segment=number,
            category=codes.ANATOMY,
        )
        for number, (name, ml) in enumerate([("right", lungs.right_ml), ("left", lungs.left_ml)], start=1)
    ]
    write_report(findings, loaded.source, MAKER, folder / "sr.dcm", masks)


def by_modality(folder):
    """Files below a folder by modality."""
    found = {}
    for path in sorted(folder.rglob("*.dcm")):
        found.setdefault(dcmread(path, stop_before_pixels=True).Modality, []).append(path)
    return found


def test_a_series_goes_out_and_its_masks_and_millilitres_come_back_the_same(
    way, series, make_ct, ucadi, tmp_path
):
    url, options, pulling = way
    sent = ucadi("dicom", "send", series, "--to", url, *options, "--json")
    assert json.loads(sent.stdout) == {"files": 48, "stored": 48, "rejected": {}}

    # found and read back
    found = json.loads(
        ucadi("dicom", "query", "--from", url, "--patient-id", "P-1", *options, "--json").stdout
    )["matches"]
    assert [(match["study"], match["images"]) for match in found] == [(STUDY, 48)]
    pulled = ucadi("dicom", "pull", "--from", url, "--study", STUDY, "-o", tmp_path / "ct", *pulling)
    assert pulled.returncode == 0, pulled.stderr
    before = {path.name: dcmread(path) for path in series.iterdir()}
    for path in (tmp_path / "ct").rglob("*.dcm"):
        after = dcmread(path)
        (same,) = [d for d in before.values() if d.SOPInstanceUID == after.SOPInstanceUID]
        assert after.pixel_array.tobytes() == same.pixel_array.tobytes()
    loaded = load_ct(tmp_path / "ct")
    volume, lungs = loaded.require()
    assert np.array_equal(volume.voxels, make_ct((48, 96, 96), (4.0, 3.7, 3.7)).voxels)

    # results go out and come back
    write_results(loaded, tmp_path / "results")
    assert ucadi("dicom", "send", tmp_path / "results", "--to", url, *options).returncode == 0
    listed = ucadi("dicom", "query", "--from", url, "--level", "series", "--study", STUDY, *options, "--json")
    kinds = {match["modality"]: match["series"] for match in json.loads(listed.stdout)["matches"]}
    assert kinds.keys() == {"CT", "SEG", "SR"}
    for kind in ("SEG", "SR"):
        out = tmp_path / "back" / kind
        done = ucadi(
            "dicom", "pull", "--from", url, "--study", STUDY, "--series", kinds[kind], "-o", out, *pulling
        )
        assert done.returncode == 0, done.stderr
    back = by_modality(tmp_path / "back")
    (seg,), (sr,) = back["SEG"], back["SR"]
    masks = read_segmentation(seg)
    findings = read_report(sr)
    for mask, truth, ml, name in zip(
        masks, (lungs.right, lungs.left), (lungs.right_ml, lungs.left_ml), ("right", "left"), strict=True
    ):
        assert np.array_equal(mask.volume().voxels, truth)
        assert mask.volume().grid.is_close(volume.grid)
        assert mask.ml == pytest.approx(ml, rel=1e-9)
        assert findings[name].numbers[codes.VOLUME.value] == pytest.approx(ml, rel=1e-9)
        assert findings[name].segment[0] == dcmread(seg, stop_before_pixels=True).SOPInstanceUID


def test_files_come_back_over_dicomweb_byte_for_byte(orthanc, password, series, ucadi, tmp_path):
    ucadi("dicom", "send", series, "--to", orthanc.web, *password)
    ucadi("dicom", "pull", "--from", orthanc.web, "--study", STUDY, "-o", tmp_path / "out", *password)
    sent = {path.read_bytes() for path in series.iterdir()}
    assert {path.read_bytes() for path in (tmp_path / "out").rglob("*.dcm")} == sent


def test_another_client_sees_what_ours_has_stored(orthanc, password, series, ucadi):
    ucadi("dicom", "send", series, "--to", orthanc.web, *password)
    import requests

    with requests.Session() as session:
        session.auth = ("reader", "a password: with ümlaut".encode())
        session.trust_env = False
        client = DICOMwebClient(orthanc.web, session)
        images = client.retrieve_series(STUDY, SERIES)
        assert {d.SOPInstanceUID: d.pixel_array.tobytes() for d in images} == {
            d.SOPInstanceUID: d.pixel_array.tobytes() for d in map(dcmread, series.iterdir())
        }


def test_orthanc_delivers_to_our_listener(orthanc, password, series, ucadi, tmp_path):
    """As a PACS that forwards: what `listen` receives is what was stored."""
    ucadi("dicom", "send", series, "--to", orthanc.web, *password)
    command = [sys.executable, "-m", "ucadi", "dicom", "listen", "--port", str(orthanc.move_port)]
    command += ["-o", str(tmp_path / "in"), "--allow", "ORTHANC", "--once", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as listener:
        assert re.search(r"Listening as UCADI", listener.stderr.readline())
        titles = ["-aet", "UCADI", "-aec", "ORTHANC", "-aem", "UCADI"]
        keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}"]
        port = orthanc.dimse.rpartition(":")[2]
        moved = subprocess.run(
            ["movescu", *titles, "-S", *keys, "127.0.0.1", port], capture_output=True, text=True, timeout=60
        )
        assert moved.returncode == 0, moved.stderr
        out, _ = listener.communicate(timeout=30)
    assert json.loads(out) == {"images": 48}
    assert np.array_equal(load_ct(tmp_path / "in").volume.voxels, load_ct(series).volume.voxels)


# -- when it does not work --------------------------------------------------------------------------------


def test_a_wrong_password_ends_with_the_status_for_it(orthanc, password, series, ucadi, tmp_path):
    (tmp_path / "password").write_text("wrong")
    for command in (
        ["send", series, "--to"],
        ["query", "--from"],
        ["pull", "--study", "1.2", "-o", "x", "--from"],
    ):
        done = ucadi("dicom", *command, orthanc.web, *password, "--json")
        assert done.returncode == 4
        assert json.loads(done.stdout)["code"] == "pacs-not-authorized"
        assert "wrong" not in done.stdout + done.stderr


def test_an_unknown_title_ends_with_the_same_status(orthanc, series, ucadi):
    done = ucadi("dicom", "query", "--from", orthanc.dimse.replace("ORTHANC", "OTHER"))
    assert done.returncode == 4
    done = ucadi("dicom", "send", series, "--to", orthanc.dimse, "--aet", "STRANGER")
    assert done.returncode != 0


def test_a_server_that_is_down_ends_with_the_status_for_it(orthanc, password, series, ucadi):
    orthanc.stop()
    for url, options in ((orthanc.web, password), (orthanc.dimse, [])):
        done = ucadi("dicom", "send", series, "--to", url, *options, "--json")
        assert done.returncode == 5
        assert json.loads(done.stdout)["code"] == "pacs-unreachable"


def test_a_study_that_is_not_there_is_refused_and_leaves_nothing(way, ucadi, tmp_path):
    url, _, pulling = way
    done = ucadi(
        "dicom", "pull", "--from", url, "--study", "1.2.3", "-o", tmp_path / "out", *pulling, "--json"
    )
    assert done.returncode == 3
    assert json.loads(done.stdout)["code"] == "pacs-no-match"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_stores_nothing(way, series, ucadi):
    url, options, _ = way
    done = ucadi("dicom", "send", series, "--to", url, *options, "--dry-run", "--json")
    assert json.loads(done.stdout) == {"files": 48, "stored": 0, "rejected": {}}
    assert json.loads(ucadi("dicom", "query", "--from", url, *options, "--json").stdout) == {"matches": []}


def test_a_folder_that_holds_something_is_not_written_into(orthanc, password, ucadi, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    done = ucadi("dicom", "pull", "--from", orthanc.web, "--study", STUDY, "-o", tmp_path / "out", *password)
    assert done.returncode == 2
    assert (tmp_path / "out" / "mine").read_text() == "mine"
