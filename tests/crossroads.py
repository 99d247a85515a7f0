"""A guarded host between two others, and packets by the thousand: who sends them is chosen, and what arrives is told.

Every packet carries a number, in the sequence number of TCP or the payload of UDP. Checksums are wrong on purpose:
raw sockets hear the packet all the same, and nobody answers it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from nftguard.kernel import Nftables
from nftguard.model import Hook, Protocol
from nftguard.who import cgroups
from tests.netns import Namespace, connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from nftguard.packet import Packet

INSIDE, OUTSIDE = ("docker0", "wg0"), ("eth0", "wg1")
LINKS = {name: number for number, name in enumerate((*INSIDE, *OUTSIDE), 1)}
"""The guarded host's interfaces, and the number in the networks behind each."""
FAR = range(2, 6)
"""The hosts behind an interface, by the last part of their addresses; the guarded host is 1."""
_SOURCE_PORT, _CLOSED_PORT = 40000, 60000
_SYN, _ACK = 0x02, 0x10
_BATCH = 200  # fewer than net.core.netdev_max_backlog

_OPEN = """
import ctypes, socket, sys
libc, channel = ctypes.CDLL(None), socket.socket(fileno=int(sys.argv[1]))
for sender in sys.argv[2:]:
    uid, gid, folder = sender.split(":", 2)
    with open(folder + "/cgroup.procs", "w") as file:
        file.write("0")
    libc.setfsgid(int(gid)), libc.setfsuid(int(uid))  # a socket's owner is who opened it
    made = [socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) for family in (socket.AF_INET, socket.AF_INET6)]
    libc.setfsuid(0), libc.setfsgid(0)
    socket.send_fds(channel, [b"."], [one.fileno() for one in made])
    channel.recv(1)
"""


class Sender(NamedTuple):
    """Who sends on the guarded host."""

    uid: int
    gid: int
    folder: Path
    """Of the control group."""

    groups: tuple[int, ...]
    """Its id, and before it those of the groups above it."""


def sender(uid: int, gid: int, folder: Path) -> Sender:
    root = cgroups.mounted()
    above = [one for one in folder.parents if one != root and one.is_relative_to(root)]
    return Sender(uid, gid, folder, tuple(one.stat().st_ino for one in [*reversed(above), folder] if one != root))


def address(link: str, version: int, host: int) -> str:
    return f"10.0.{LINKS[link]}.{host}" if version == 4 else f"fd00:{LINKS[link]}::{host}"


class Crossroads:
    """`inner` is behind docker0 and wg0, `outer` behind eth0 and wg1."""

    def __init__(self, stack: contextlib.ExitStack, senders: Iterable[Sender]) -> None:
        self.guarded, inner, outer = (Namespace() for _ in range(3))
        self._sockets: dict[tuple[object, int], socket.socket] = {}
        self._ears: dict[int, tuple[socket.socket, int, int]] = {}
        for namespace in (self.guarded, inner, outer):
            stack.callback(namespace.close)
            loose = [f"net.ipv4.conf.{one}.rp_filter=0" for one in ("all", "default")]
            namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", *loose)
        for namespace, links in ((inner, INSIDE), (outer, OUTSIDE)):
            for link in links:
                self._join(stack, namespace, link)
        for namespace in (self.guarded, inner, outer):
            self._listen(stack, namespace)
        self._open(stack, list(senders))
        with self.guarded.entered():
            self.kernel = Nftables()
            stack.callback(self.kernel.close)

    def _join(self, stack: contextlib.ExitStack, far: Namespace, link: str) -> None:
        connect(self.guarded, far, link, LINKS[link])
        for version, bits, family in ((4, 24, socket.AF_INET), (6, 64, socket.AF_INET6)):
            for host in FAR[1:]:
                options = ["nodad"] if version == 6 else []
                far.run(
                    "ip", "address", "add", f"{address(link, version, host)}/{bits}", "dev", f"{link}-far", *options
                )
            way = ("via", address(link, version, 1), "dev", f"{link}-far", "metric", str(LINKS[link]))
            far.run("ip", f"-{version}", "route", "add", "default", *way)
            with far.entered():
                sock = stack.enter_context(socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, f"{link}-far".encode())
            self._sockets[link, version] = sock

    def _listen(self, stack: contextlib.ExitStack, where: Namespace) -> None:
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                with where.entered():
                    ear = stack.enter_context(socket.socket(family, socket.SOCK_RAW, protocol))
                ear.setblocking(False)
                ear.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
                self._ears[ear.fileno()] = ear, version, protocol

    def _open(self, stack: contextlib.ExitStack, senders: list[Sender]) -> None:
        """Have a process open each sender's sockets; who it was at that moment, they keep."""
        mine, its = socket.socketpair()
        with mine, its:
            mine.settimeout(10)
            told = [f"{one.uid}:{one.gid}:{one.folder}" for one in senders]
            argv = (sys.executable, "-c", _OPEN, str(its.fileno()), *told)
            maker = self.guarded.popen(*argv, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
            its.close()
            for sender in senders:
                _, handles, _, _ = socket.recv_fds(mine, 1, 2)
                for version, handle in zip((4, 6), handles, strict=True):
                    self._sockets[sender, version] = stack.enter_context(socket.socket(fileno=handle))
                mine.send(b".")
            assert maker.wait(10) == 0

    def send(self, packets: Mapping[int, tuple[Packet, Sender | None]], wanted: set[int]) -> set[int]:
        """Send the packets by their numbers, wait for those that are wanted, and give all that arrived."""
        arrived: set[int] = set()
        numbers = list(packets)
        for at in range(0, len(numbers), _BATCH):
            batch = numbers[at : at + _BATCH]
            for number in batch:
                self._send(number, *packets[number])
            self._gather(arrived, wanted.intersection(batch))
        return arrived

    def warm(self, packets: Mapping[int, tuple[Packet, Sender | None]]) -> None:
        """Send until each has arrived once: then every neighbour is known."""
        missing = set(packets)
        for _ in range(10):
            missing -= self.send({number: packets[number] for number in missing}, missing)
            if not missing:
                return
        raise AssertionError(f"without rules these do not arrive: {[packets[number] for number in missing]}")

    def _gather(self, arrived: set[int], wanted: set[int], patience: float = 10.0) -> None:
        end = time.monotonic() + patience
        poll = select.poll()
        for handle in self._ears:
            poll.register(handle, select.POLLIN)
        while True:
            waiting = wanted - arrived
            ready = poll.poll(max(0.0, end - time.monotonic()) * 1000 if waiting else 0)
            if not ready:
                return
            for handle, _ in ready:
                arrived.update(self._hear(*self._ears[handle]))

    def _hear(self, ear: socket.socket, version: int, protocol: int) -> Iterable[int]:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = ear.recv(2048)
                segment = data[(data[0] & 15) * 4 :] if version == 4 else data
                at = 4 if protocol == socket.IPPROTO_TCP else 8
                if len(segment) >= 12 and (number := int.from_bytes(segment[at : at + 4])):
                    yield number

    def _send(self, number: int, packet: Packet, sender: Sender | None) -> None:
        source, destination = packet.source or "", packet.destination
        if not packet.owned:
            self._provoke(number, packet)
            return
        key = sender if packet.hook is Hook.OUTPUT else packet.inbound
        if packet.protocol is Protocol.TCP:
            flags = _SYN if packet.opens else _ACK
            segment = struct.pack("!HHIIBBHHH", _SOURCE_PORT, packet.port, number, 0, 5 << 4, flags, 8192, 0xDEAD, 0)
        else:
            segment = struct.pack("!HHHHI", _SOURCE_PORT, packet.port, 12, 0xDEAD, number)
        self._put(key, source, destination, packet.protocol, segment)

    def _provoke(self, number: int, packet: Packet) -> None:
        """Have the guarded host answer a stray ACK: its RST has no user, and the number that we choose."""
        source, destination = packet.destination, packet.source or ""
        segment = struct.pack("!HHIIBBHHH", packet.port, _CLOSED_PORT, 0, number, 5 << 4, _ACK, 8192, 0, 0)
        pseudo = _packed(source) + _packed(destination) + struct.pack("!II", len(segment), socket.IPPROTO_TCP)
        total = sum(word for (word,) in struct.iter_unpack("!H", pseudo + segment))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        segment = segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:]
        self._put(packet.outbound, source, destination, packet.protocol, segment)

    def _put(self, key: object, source: str, destination: str, protocol: Protocol, segment: bytes) -> None:
        number = socket.IPPROTO_TCP if protocol is Protocol.TCP else socket.IPPROTO_UDP
        version = 6 if ":" in destination else 4
        ends = _packed(source) + _packed(destination)
        if version == 4:
            header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, number, 0) + ends
        else:
            header = struct.pack("!IHBB", 6 << 28, len(segment), number, 64) + ends
        with contextlib.suppress(PermissionError):  # how a drop on output is told
            self._sockets[key, version].sendto(header + segment, (destination, 0))


def _packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed
