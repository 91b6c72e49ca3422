# SPDX-License-Identifier: Apache-2.0
"""A real Orthanc of the test's own, and the real `ucadi` command."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

USER, PASSWORD = "reader", "a password: with ümlaut"
OUR_TITLE, THEIR_TITLE = "UCADI", "ORTHANC"
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")
READY_S = 30.0


@dataclass
class Orthanc:
    """A running server.

    Attributes:
        web: Address of its DICOMweb services.
        dimse: Address of its application entity.
        move_port: Where it sends images for our title.
        log: What it says.
        process: Itself.
    """

    web: str
    dimse: str
    move_port: int
    log: Path
    process: subprocess.Popen

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """An empty Orthanc with DICOMweb that asks for a password and serves this machine only."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugins = [p for folder in PLUGIN_FOLDERS for p in Path(folder).glob("libOrthancDicomWeb.so*")]
    if not program or not plugins:
        pytest.skip("no Orthanc with its DICOMweb plugin; install orthanc and orthanc-dicomweb")
    home = tmp_path / "orthanc"
    home.mkdir()
    http, dicom, move = free_ports(3)
    settings = {
        "Name": "test",
        "StorageDirectory": str(home / "storage"),
        "IndexDirectory": str(home / "storage"),
        "Plugins": [str(plugins[0])],
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": THEIR_TITLE,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomModalities": {"us": [OUR_TITLE, "127.0.0.1", move]},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
    }
    (home / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    log = home / "log"
    with log.open("wb") as said:
        process = subprocess.Popen([program, home / "orthanc.json"], stdout=said, stderr=said)
    server = Orthanc(
        f"http://127.0.0.1:{http}/dicom-web", f"dicom://{THEIR_TITLE}@127.0.0.1:{dicom}", move, log, process
    )
    try:
        wait_until_ready(server)
        yield server
    finally:
        server.stop()


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def wait_until_ready(server: Orthanc) -> None:
    """Wait until both protocols answer."""
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    dicom_port = int(server.dimse.rpartition(":")[2])
    for _ in range(int(READY_S / 0.1)):
        assert server.process.poll() is None, server.log.read_text(errors="replace")
        try:
            no_proxy.open(f"{server.web}/studies", timeout=1).close()
        except urllib.error.HTTPError as refused:
            refused.close()
            socket.create_connection(("127.0.0.1", dicom_port), timeout=1).close()
            return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"Orthanc is not ready: {server.log.read_text(errors='replace')}")


@pytest.fixture
def ucadi() -> Callable[..., subprocess.CompletedProcess]:
    """Runs the real command; it must not end with a traceback."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
        own = {name: value for name, value in os.environ.items() if not name.startswith("UCADI_")}
        done = subprocess.run(
            [sys.executable, "-m", "ucadi", *map(str, arguments)],
            env={**own, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def password(tmp_path: Path) -> list[str]:
    """The options that let a command into Orthanc."""
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n", encoding="utf-8")
    return ["--user", USER, "--password-file", str(file)]
