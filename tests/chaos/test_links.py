# SPDX-License-Identifier: Apache-2.0
import hashlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from chaos.links import Cut, Network, Shape, can_make_hosts

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not can_make_hosts(), reason="network namespaces need root"),
]

KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=0.5)
except ConnectionRefusedError:
    print("there")
except OSError:
    print("silent")
"""
LISTEN = """
import hashlib, socket
server = socket.create_server(("0.0.0.0", 5555))
print("ready", flush=True)
server.settimeout(30)
connection, _ = server.accept()
connection.settimeout(30)
digest = hashlib.sha256()
while data := connection.recv(65536):
    digest.update(data)
print(digest.hexdigest(), flush=True)
"""
SEND = """
import random, socket, sys, time
data = random.Random(1).randbytes(int(sys.argv[2]) // 20)
connection = socket.create_connection((sys.argv[1], 5555), timeout=30)
for _ in range(20):
    connection.sendall(data)
    time.sleep(float(sys.argv[3]))
connection.shutdown(socket.SHUT_WR)
connection.recv(1)
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(["hub", "a", "b"]) as made:
        yield made


def knock(network: Network, source: str, target: str) -> str:
    command = network.command(source, sys.executable, "-c", KNOCK, network.address(target))
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_hosts_reach_each_other_and_nothing_else(network: Network) -> None:
    assert knock(network, "a", "hub") == knock(network, "hub", "b") == "there"
    command = network.command("a", "ip", "-4", "route")
    assert "default" not in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("which", list(Cut))
def test_cut_link_is_silent_until_it_is_mended_and_others_are_not_touched(
    network: Network, which: Cut
) -> None:
    network.cut("a", which)
    try:
        assert knock(network, "a", "hub") == "silent"
        assert knock(network, "b", "hub") == "there"
    finally:
        network.mend("a")
    assert knock(network, "a", "hub") == "there"


def test_bytes_still_arrive_in_the_direction_that_is_not_cut(network: Network) -> None:
    def received() -> int:
        command = network.command("hub", "cat", "/sys/class/net/eth0/statistics/rx_packets")
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    network.cut("a", Cut.FROM_HUB)
    try:
        before = received()
        assert knock(network, "a", "hub") == "silent"
        assert received() > before
    finally:
        network.mend("a")


def test_established_connection_survives_a_cut_that_is_mended(network: Network) -> None:
    listener = subprocess.Popen(
        network.command("hub", sys.executable, "-c", LISTEN), stdout=subprocess.PIPE, text=True
    )
    assert listener.stdout is not None
    with listener, listener.stdout as output:
        assert output.readline() == "ready\n"
        command = network.command("a", sys.executable, "-c", SEND, network.address("hub"), "20000000", "0.1")
        with subprocess.Popen(command):
            time.sleep(0.7)
            network.cut("a", Cut.BOTH)
            time.sleep(1.0)
            network.mend("a")
            assert output.readline().strip() == digest(20_000_000)


@pytest.mark.parametrize("congestion", ["reno", ""])
def test_lossy_link_keeps_its_rate_and_every_byte(congestion: str) -> None:
    shape = Shape(mbit_s=20, delay_ms=50, loss=0.01, repeat=0.01, swap=0.01)
    size = 2_000_000
    with Network(["hub", "a"], {"a": shape}, congestion) as network:
        with subprocess.Popen(
            network.command("hub", sys.executable, "-c", LISTEN), stdout=subprocess.PIPE, text=True
        ) as listener:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"
            start = time.monotonic()
            command = network.command("a", sys.executable, "-c", SEND, network.address("hub"), str(size), "0")
            subprocess.run(command, check=True)
            seconds = time.monotonic() - start
            assert listener.stdout.readline().strip() == digest(size)
        counts = network.counts("a")
    assert seconds > size * 8 / 20e6
    assert counts["lost"] > 0.005 * counts["frames"]
    assert counts["repeated"] > 0
    assert counts["swapped"] > 0


def test_nothing_is_left_of_a_network() -> None:
    before = subprocess.run(["ip", "netns"], capture_output=True, check=True).stdout
    with Network(["hub", "a"], {"a": Shape(loss=0.1)}) as network:
        sleeper = subprocess.Popen(network.command("a", "sleep", "60"))
        time.sleep(0.2)
    assert sleeper.wait(timeout=5) != 0
    assert subprocess.run(["ip", "netns"], capture_output=True, check=True).stdout == before
    assert not any(name.startswith("port") for _, name in socket.if_nameindex())


def digest(size: int) -> str:
    return hashlib.sha256(20 * random.Random(1).randbytes(size // 20)).hexdigest()  # noqa: S311 - test data
