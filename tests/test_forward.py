"""Forwarding as hosts do it: containers on a bridge behind masquerade, VPN clients behind a tunnel, a daemon."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from tests.guard import Guard
from tests.hosts import FAMILIES, address, attempt, listening
from tests.netns import Namespace, connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STOPPED = errno.ETIMEDOUT
NAT = """
table {family} nat {{
    chain postrouting {{ type nat hook postrouting priority 100; oifname "eth" ip{six} saddr {net} masquerade; }}
    chain prerouting {{
        type nat hook prerouting priority -100; ip{six} daddr {here} tcp dport {{ 25, 26 }} dnat to {to};
    }}
}}
"""


class Site:
    """A host with a container behind `docker0`, a VPN client behind the tunnel `wg0`, and the world behind `eth`."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.host, self.container, self.world = (Namespace() for _ in range(3))
        for namespace in (self.host, self.container, self.world):
            stack.callback(namespace.close)
        connect(self.host, self.world, "eth", 2)
        connect(self.host, self.container, "veth", 17)
        for command in (
            "address flush dev veth",
            "link add docker0 type bridge mcast_snooping 0",
            "link set veth master docker0",
            "link set docker0 up",
            "address add 10.0.17.1/24 dev docker0",
            "address add fd00:17::1/64 dev docker0 nodad",
            "route add default via 10.0.2.2",
            "-6 route add default via fd00:2::2",
        ):
            self.host.run("ip", *command.split())
        for where, net in ((self.container, 17), (self.world, 2)):
            where.run("ip", "route", "add", "default", "via", f"10.0.{net}.1")
            where.run("ip", "-6", "route", "add", "default", "via", f"fd00:{net}::1")
        self.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.host.run("sysctl", "-qe", "-w", *(f"net.bridge.bridge-nf-call-ip{six}tables=0" for six in ("", "6")))
        self.host.nft(NAT.format(family="ip", six="", net="10.0.17.0/24", here="10.0.2.1", to="10.0.17.2"))
        self.host.nft(NAT.format(family="ip6", six="6", net="fd00:17::/64", here="fd00:2::1", to="fd00:17::2"))
        with self.host.entered():
            self.tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, self.tunnel)
        # linux/include/uapi/linux/if_tun.h: TUNSETIFF; IFF_TUN, IFF_NO_PI
        fcntl.ioctl(self.tunnel, 0x400454CA, struct.pack("16sH22x", b"wg0", 0x0001 | 0x1000))
        for command in (
            "address add 10.0.8.1/24 dev wg0",
            "address add fd00:8::1/64 dev wg0 nodad",
            "link set wg0 up",
        ):
            self.host.run("ip", *command.split())

        for family in (socket.AF_INET, socket.AF_INET6):  # until neighbours have found each other
            end = time.monotonic() + 10
            while attempt(self.world, family, address(family, 17), 80) == STOPPED:
                assert time.monotonic() < end

    def members(self, name: str) -> set[str]:
        """Give the elements of a set of interfaces, as the kernel has them."""
        listed = self.host.run("nft", "list", "set", "inet", "nftguard", name).stdout
        return set(listed.split('"')[1::2])


@pytest.fixture
def site(_kernel_there: None) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        yield Site(stack)


@pytest.fixture
def guard(site: Site, folders: Path) -> Iterator[Guard]:
    """A daemon on the host that blocks one port of what is forwarded."""
    path = folders / "nftguard.toml"
    path.write_text('[[block]]\nname = "mail"\nports = [25]\nhooks = ["forward"]\n')
    with Guard(site.host, path, folders) as guard:
        guard.ready()
        yield guard


def syn(family: int, source: str, target: str, port: int) -> bytes:
    """Build a packet that opens a connection from port 40000."""
    near, far = socket.inet_pton(family, source), socket.inet_pton(family, target)
    pseudo = near + far + (struct.pack("!BBH", 0, 6, 20) if len(near) == 4 else struct.pack("!IHBB", 20, 0, 0, 6))
    segment = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 2, 8192, 0, 0)
    total = _sum(pseudo + segment)
    segment = segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:]
    if len(near) == 16:
        return struct.pack("!IHBB", 6 << 28, 20, 6, 64) + near + far + segment
    header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + near + far
    return header[:10] + struct.pack("!H", ~_sum(header) & 0xFFFF) + header[12:] + segment


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ports(descriptor: int, family: int, patience: float = 0.3) -> set[int]:
    """Read the packets that come out of the tunnel; give the destination ports of the TCP segments among them."""
    found = set()
    end = time.monotonic() + patience
    while select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
        packet = os.read(descriptor, 65536)
        at = 20 if family == socket.AF_INET else 40
        if packet[0] >> 4 == (4 if family == socket.AF_INET else 6) and packet[9 if at == 20 else 6] == 6:
            found.add(struct.unpack_from("!H", packet, at + 2)[0])
    return found


@FAMILIES
def test_a_container_is_stopped_and_its_mail_server_still_receives(site: Site, guard: Guard, family: int) -> None:
    assert (site.members("uplinks"), site.members("inner")) == ({"eth"}, {"docker0", "wg0"})
    with listening(site.world, family, (25, 26)), listening(site.container, family, (25, 26)):
        assert attempt(site.container, family, address(family, 2), 25) == STOPPED
        assert attempt(site.container, family, address(family, 2), 26) == 0
        assert attempt(site.world, family, address(family, 2, 1), 25) == 0, "from outside, through the host's address"
    guard.logged("blocked")


@FAMILIES
def test_a_vpn_client_is_stopped_and_still_receives(site: Site, guard: Guard, family: int) -> None:
    client = "10.0.8.2" if family == socket.AF_INET else "fd00:8::2"
    with listening(site.world, family, (25, 26)) as listeners:
        for port in (25, 26):
            os.write(site.tunnel, syn(family, client, address(family, 2), port))
        assert ports(site.tunnel, family) == {40000}, "one answer, which is that of port 26"
        assert attempt(site.world, family, client, 25) == STOPPED  # nobody answers there; but it is asked:
        assert 25 in ports(site.tunnel, family)
        del listeners
    assert guard.status()["ports"][0]["packets"] >= 1


@FAMILIES
def test_uplinks_are_followed(site: Site, guard: Guard, family: int) -> None:
    """A default route that moves, one in halves as VPN clients set it, and none at all."""
    inet = "-4" if family == socket.AF_INET else "-6"
    halves = ("0.0.0.0/1", "128.0.0.0/1") if family == socket.AF_INET else ("::/1", "8000::/1")
    for half in halves:
        site.host.run("ip", inet, "route", "add", half, "dev", "wg0")
    guard.until(lambda: site.members("uplinks") == {"eth", "wg0"}, "the tunnel among the uplinks")
    assert site.members("inner") == {"docker0"}
    client = "10.0.8.2" if family == socket.AF_INET else "fd00:8::2"
    with listening(site.container, family, (25,)):
        ports(site.tunnel, family, patience=0)
        assert attempt(site.world, family, client, 25) == STOPPED
        assert ports(site.tunnel, family) & {25} == set(), "from one uplink to another nothing passes"
        assert attempt(site.world, family, address(family, 17), 25) == 0
        for half in halves:
            site.host.run("ip", inet, "route", "delete", half, "dev", "wg0")
        for every in ("-4", "-6"):
            site.host.run("ip", every, "route", "delete", "default")
        guard.until(lambda: site.members("uplinks") == set(), "no uplink")
        assert attempt(site.world, family, address(family, 17), 25) == STOPPED, "less is known: more is blocked"
    assert guard.status()["daemon"]["repairs"] == 0, "nobody touched the rules"
    assert guard.log().count("exceptions follow this host") == 2


def test_an_interface_that_nobody_has_looked_at_yet_is_no_way_in(site: Site, guard: Guard) -> None:
    site.host.run("ip", "link", "add", "new0", "type", "bridge")
    site.host.run("ip", "link", "set", "new0", "up")
    guard.until(lambda: "new0" in site.members("inner"), "the new bridge")
    os.kill(guard.process.pid, 9)
    guard.process.wait()
    site.host.run("ip", "link", "set", "docker0", "down")
    site.host.run("ip", "link", "set", "docker0", "name", "docker9")
    site.host.run("ip", "link", "set", "docker9", "up")
    site.host.run("ip", "-6", "address", "replace", "fd00:17::1/64", "dev", "docker9", "nodad")
    with listening(site.container, socket.AF_INET, (25, 26)):
        assert attempt(site.world, socket.AF_INET, "10.0.17.2", 26) == 0
        assert attempt(site.world, socket.AF_INET, "10.0.17.2", 25) == STOPPED
