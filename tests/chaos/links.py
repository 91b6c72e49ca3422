# SPDX-License-Identifier: Apache-2.0
"""Hosts of their own on this machine: network namespaces on one bridge, with links that fail and crawl.

A host is a namespace with one address. Nothing here touches the machine's own network, and no kernel module
beyond namespaces, veth and bridge is needed.

* A cut is silent: frames go to a hardware address that nobody has, in one direction or in both, so that
  neither end learns of it, as when a cable far away is dug up. `Network.unplug` takes the carrier instead.
* A shaped link (`Shape`) passes a small program in user space that holds every Ethernet frame for the delay,
  lets them pass at the rate behind a queue that overflows, and loses, repeats and swaps them at random. The
  loss is real: both ends' own TCP sees it and retransmits. What it is not: the program adds some tens of
  microseconds of jitter of its own, losses are independent (no bursts), the rate is the same both ways, and
  offloading is off at all hosts, so that a frame is never larger than the MTU.

``python tests/chaos/links.py A B ...`` is that program; `Network` starts it.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import TracebackType

__all__ = ["Cut", "Network", "Shape", "can_make_hosts"]

_NOBODY = "02:00:00:00:00:fe"
"""A hardware address without owner."""

_OFFLOADS = {"tx checksum": 0x17, "tcp segmentation": 0x1F, "segmentation": 0x24, "receive merging": 0x2C}
"""The kernel's numbers of the requests that switch each offload (linux/ethtool.h)."""


class Cut(StrEnum):
    """Which frames between a host and the hub are lost."""

    BOTH = "both"
    TO_HUB = "to_hub"
    FROM_HUB = "from_hub"


@dataclass(frozen=True)
class Shape:
    """How a link is worse than a wire, the same both ways.

    Attributes:
        mbit_s: Rate in 10^6 bits per second of Ethernet payload; 0 for no limit.
        delay_ms: One-way delay; a round trip takes twice as long.
        loss: Share of frames lost.
        repeat: Share of frames that come twice.
        swap: Share of frames that are overtaken by the next ones (held for 20 ms more).
        queue_kb: What waits before the rate's limit at most; the rest is dropped.
        seed: Of all chances.
    """

    mbit_s: float = 0.0
    delay_ms: float = 0.0
    loss: float = 0.0
    repeat: float = 0.0
    swap: float = 0.0
    queue_kb: float = 500.0
    seed: int = 0


def can_make_hosts() -> bool:
    """Tell whether this process may make network namespaces and pairs of interfaces in them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"ucadi-{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "left", "type", "veth", "peer", "name", "right")
        _ip("-n", name, "link", "add", "switch", "type", "bridge")
    except subprocess.CalledProcessError:
        return False
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return True


class Network:
    """Namespaces on a bridge: the first host is the hub, the others reach it and it reaches them.

    Args:
        hosts: Names, the hub first; at most 200.
        shapes: Links that are worse than a wire, by host (not the hub's).
        congestion: TCP's congestion control at all hosts; empty for the machine's own.
    """

    def __init__(
        self, hosts: Sequence[str], shapes: Mapping[str, Shape] | None = None, congestion: str = ""
    ) -> None:
        self.hosts = tuple(hosts)
        self._shapes = dict(shapes or {})
        self._congestion = congestion
        self._mark = f"ucadi-{secrets.token_hex(3)}"
        self._shapers: dict[str, subprocess.Popen[bytes]] = {}
        self._made: list[str] = []

    def __enter__(self) -> "Network":
        """Make everything, or nothing."""
        try:
            self._make_space(self._wire)
            _ip("-n", self._wire, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._wire, "link", "set", "bridge", "up")
            for number, host in enumerate(self.hosts):
                self._make_host(number, host)
            for host in self.hosts[1:]:
                self.mend(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing."""
        self.close()

    def address(self, host: str) -> str:
        """Return a host's IPv4 address."""
        return f"10.99.0.{self.hosts.index(host) + 1}"

    def space(self, host: str) -> str:
        """Return the name of a host's namespace."""
        return f"{self._mark}-{self.hosts.index(host)}"

    def command(self, host: str, *words: str) -> list[str]:
        """Return the command line that runs a command at a host."""
        return ["ip", "netns", "exec", self.space(host), *words]

    def processes(self, host: str) -> list[int]:
        """Return the ids of all processes at a host."""
        return [int(word) for word in _ip("netns", "pids", self.space(host)).split()]

    def cut(self, host: str, which: Cut) -> None:
        """Lose all frames between a host and the hub, silently."""
        hub = self.hosts[0]
        if which in (Cut.BOTH, Cut.TO_HUB):
            self._point(host, hub, _NOBODY)
        if which in (Cut.BOTH, Cut.FROM_HUB):
            self._point(hub, host, _NOBODY)

    def unplug(self, host: str) -> None:
        """Take a host's carrier away."""
        _ip("-n", self._wire, "link", "set", self._port(host), "down")

    def mend(self, host: str) -> None:
        """Undo cuts and plug in again."""
        hub = self.hosts[0]
        _ip("-n", self._wire, "link", "set", self._port(host), "up")
        self._point(host, hub, self._hardware(hub))
        self._point(hub, host, self._hardware(host))

    def sent_bytes(self, host: str) -> int:
        """Return the bytes that a host has put on its link, frames' headers included."""
        name = f"{self.space(host)}"
        text = _ip("-j", "-s", "-n", name, "link", "show", "eth0")
        return int(json.loads(text)[0]["stats64"]["tx"]["bytes"])

    def close(self) -> None:
        """Remove everything and end what still runs at the hosts."""
        for shaper in self._shapers.values():
            shaper.terminate()
        for shaper in self._shapers.values():
            shaper.wait()
            if shaper.stdout:
                shaper.stdout.close()
        for space in reversed(self._made):
            for pid in _ip("netns", "pids", space).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "del", space)
        self._made.clear()
        self._shapers.clear()

    def counts(self, host: str) -> dict[str, int]:
        """Stop a shaped link's program and return what it did with the frames."""
        shaper = self._shapers.pop(host)
        shaper.terminate()
        text, _ = shaper.communicate()
        return {name: int(value) for name, value in json.loads(text).items()}

    @property
    def _wire(self) -> str:
        return f"{self._mark}-wire"

    def _port(self, host: str) -> str:
        """Return the name of the interface at the other end of a host's cable."""
        return f"port{self.hosts.index(host)}"

    def _hardware(self, host: str) -> str:
        return f"02:00:00:00:01:{self.hosts.index(host):02x}"

    def _make_space(self, name: str) -> None:
        _ip("netns", "add", name)
        self._made.append(name)
        _ip("-n", name, "link", "set", "lo", "up")

    def _make_host(self, number: int, host: str) -> None:
        """Make a host, its cable and what shapes it."""
        space, port = self.space(host), self._port(host)
        self._make_space(space)
        _ip("-n", self._wire, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("-n", space, "link", "set", "eth0", "address", self._hardware(host))
        _ip("-n", space, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", self._wire, "link", "set", port, "up")
        if self._congestion:
            setting = f"net.ipv4.tcp_congestion_control={self._congestion}"
            subprocess.run(self.command(host, "sysctl", "-qw", setting), check=True)
        if self._shapes:  # else a frame of 64 KiB would be lost as one
            for request in _OFFLOADS.values():
                script = f"import runpy; runpy.run_path({__file__!r})['switch_off']('eth0', {request})"
                subprocess.run(self.command(host, sys.executable, "-c", script), check=True)
        if host not in self._shapes:
            _ip("-n", self._wire, "link", "set", port, "master", "bridge")
            return
        near, far = f"near{number}", f"far{number}"
        _ip("-n", self._wire, "link", "add", near, "type", "veth", "peer", "name", far)
        _ip("-n", self._wire, "link", "set", near, "up")
        _ip("-n", self._wire, "link", "set", far, "up")
        _ip("-n", self._wire, "link", "set", far, "master", "bridge")
        self._shapers[host] = subprocess.Popen(
            [
                *("ip", "netns", "exec", self._wire, sys.executable, __file__),
                *(port, near, json.dumps(asdict(self._shapes[host]))),
            ],
            stdout=subprocess.PIPE,
        )

    def _point(self, host: str, other: str, hardware: str) -> None:
        """Set the hardware address at which a host believes another one to be."""
        _ip(
            *("-n", self.space(host), "neigh", "replace", self.address(other)),
            *("lladdr", hardware, "dev", "eth0", "nud", "permanent"),
        )


def switch_off(interface: str, request: int) -> None:
    """Switch one kind of offloading off, if the interface has it."""
    value = (ctypes.c_uint32 * 2)(request, 0)
    wanted = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, contextlib.suppress(OSError):
        fcntl.ioctl(control, 0x8946, wanted)  # SIOCETHTOOL


def _ip(*words: str) -> str:
    """Run one command of iproute2."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


# -- the program in the middle of a shaped link -----------------------------------------------------------

_MOST_FRAME = 65_536
_SWAP_S = 0.02
_OUTGOING = 4  # PACKET_OUTGOING: our own frames come back as such


def _open(interface: str) -> socket.socket:
    """Return a socket that sees and sends every frame of an interface."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.setsockopt(socket.SOL_SOCKET, 33, 64 * 2**20)  # SO_RCVBUFFORCE
    raw.bind((interface, 3))  # ETH_P_ALL
    index = socket.if_nametoindex(interface)
    raw.setsockopt(263, 1, struct.pack("iHH8s", index, 1, 0, b""))  # SOL_PACKET, PACKET_ADD_MEMBERSHIP
    raw.setblocking(False)
    return raw


class _Direction:
    """One direction of a shaped link."""

    def __init__(self, shape: Shape, salt: int, counts: dict[str, int]) -> None:
        self._shape = shape
        self._chance = random.Random(shape.seed * 2 + salt)  # noqa: S311 - a simulation
        self._counts = counts
        self._free_at = 0.0

    def release_times(self, now: float, size: int) -> list[float]:
        """Return when a frame leaves: never, once or twice."""
        shape, chance = self._shape, self._chance
        self._counts["frames"] += 1
        self._counts["bytes"] += size
        if chance.random() < shape.loss:
            self._counts["lost"] += 1
            return []
        if shape.mbit_s:
            byte_s = shape.mbit_s * 1e6 / 8
            if (self._free_at - now) * byte_s > shape.queue_kb * 1e3:
                self._counts["overflowed"] += 1
                return []
            self._free_at = max(now, self._free_at) + size / byte_s
            now = self._free_at
        leave = now + shape.delay_ms / 1e3
        if chance.random() < shape.swap:
            self._counts["swapped"] += 1
            leave += _SWAP_S
        if chance.random() < shape.repeat:
            self._counts["repeated"] += 1
            return [leave, leave + 1e-3]
        return [leave]


def _pass_frames(first: str, second: str, shape: Shape) -> None:
    """Carry frames between two interfaces until terminated; print what was done as JSON."""
    counts = dict.fromkeys(("frames", "bytes", "lost", "overflowed", "repeated", "swapped"), 0)
    sockets = (_open(first), _open(second))
    ways = {s: (_Direction(shape, salt, counts), sockets[1 - salt]) for salt, s in enumerate(sockets)}
    waiting: list[tuple[float, int, bytes, socket.socket]] = []
    is_over = False
    number = 0

    def end(signal_number: int, frame: object) -> None:
        nonlocal is_over
        is_over = True

    signal.signal(signal.SIGTERM, end)
    while not is_over:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.2
        for source in select.select(sockets, (), (), pause)[0]:
            way, target = ways[source]
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    frame, origin = source.recvfrom(_MOST_FRAME)
                    if origin[2] == _OUTGOING:
                        continue
                    for leave in way.release_times(time.monotonic(), len(frame)):
                        number += 1
                        heapq.heappush(waiting, (leave, number, frame, target))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, frame, target = heapq.heappop(waiting)
            with contextlib.suppress(OSError):
                target.send(frame)
    sys.stdout.write(json.dumps(counts))


if __name__ == "__main__":
    _pass_frames(sys.argv[1], sys.argv[2], Shape(**json.loads(sys.argv[3])))
