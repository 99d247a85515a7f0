"""The codec and the questions; a real tunnel is asked in tests/vm, on Debian's own kernels."""

from __future__ import annotations

import base64
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.wire import netlink, wireguard
from nftguard.wire.netlink import attribute
from nftguard.wire.wireguard import Peer, Routes, Tunnels

if TYPE_CHECKING:
    from tests.netns import Namespace

KEYS = [bytes([number]) * 32 for number in (1, 2)]
NAMES = [base64.b64encode(key).decode() for key in KEYS]
GENERIC = 16


def entry(network: str) -> bytes:
    address, bits = network.split("/")
    packed = ipaddress.ip_address(address).packed
    kind = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    fields = (1, struct.pack("=H", kind)), (2, packed), (3, bytes([int(bits)]))
    return attribute(0, b"".join(attribute(number, value) for number, value in fields))


def peer(key: bytes, *networks: str, endpoint: bytes = b"") -> bytes:
    found = attribute(1, key) + (attribute(4, endpoint) if endpoint else b"")
    return attribute(0x8000, found + attribute(0x8000 | 9, b"".join(map(entry, networks))))


def device(*peers: bytes) -> bytes:
    """A message of the kernel's about wg0, as WG_CMD_GET_DEVICE gives it."""
    named = attribute(2, b"wg0\0") + attribute(3, b"\xff" * 32)  # the private key
    return bytes(4) + named + attribute(0x8000 | 8, b"".join(peers))


FOUR = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 51820, socket.inet_aton("203.0.113.9"))
SIX = struct.pack("=H", socket.AF_INET6) + struct.pack(
    "!HI16sI", 51820, 0, ipaddress.ip_address("2001:db8::9").packed, 0
)


def find(routes: Routes, address: str) -> Peer | None:
    return routes.find(ipaddress.ip_address(address))


def test_the_peer_with_the_longest_prefix_is_the_sender() -> None:
    messages = [device(peer(KEYS[0], "10.8.0.0/24", "fd00::/64", endpoint=FOUR), peer(KEYS[1], "10.8.0.7/32"))]
    routes = Routes(wireguard.allowed(messages))
    assert find(routes, "10.8.0.7") == Peer(NAMES[1])
    assert find(routes, "10.8.0.8") == Peer(NAMES[0], "203.0.113.9")
    assert find(routes, "fd00::1") == Peer(NAMES[0], "203.0.113.9")
    assert find(routes, "10.9.0.1") is None
    assert find(routes, "fe80::1") is None


def test_everything_may_be_allowed_to_one_peer() -> None:
    routes = Routes(wireguard.allowed([device(peer(KEYS[0], "0.0.0.0/0", "::/0", endpoint=SIX))]))
    assert find(routes, "198.51.100.1") == find(routes, "2001:db8::1") == Peer(NAMES[0], "2001:db8::9")


def test_a_peer_is_continued_in_the_next_message() -> None:
    messages = [device(peer(KEYS[0], "10.8.0.1/32", endpoint=FOUR)), device(peer(KEYS[0], "10.8.0.2/32"))]
    routes = Routes(wireguard.allowed(messages))
    assert find(routes, "10.8.0.2") == Peer(NAMES[0], "203.0.113.9")


@given(st.data())
def test_no_message_makes_it_fail(data: st.DataObject) -> None:
    whole = bytearray(device(peer(KEYS[0], "10.8.0.0/24", "fd00::/64", endpoint=SIX)))
    for _ in range(data.draw(st.integers(0, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    routes = Routes(wireguard.allowed([bytes(whole[: data.draw(st.integers(0, len(whole)))])]))
    find(routes, "10.8.0.7")
    find(routes, "fd00::1")


@pytest.mark.parametrize("name", ["lo", "veth7", "missing", "x" * 40, "a\udcff", ""])
def test_an_interface_that_is_no_tunnel_has_no_peers(netns: Namespace, name: str) -> None:
    netns.run("ip", "link", "add", "veth7", "type", "veth", "peer", "name", "veth8")
    with netns.entered():
        assert Tunnels().peer(name, "10.0.0.1") is None


def test_the_kernel_tells_the_kind_of_an_interface(netns: Namespace) -> None:
    netns.run("ip", "link", "add", "veth7", "type", "veth", "peer", "name", "veth8")
    with netns.entered():
        assert wireguard.kind("veth7") == "veth"
        assert wireguard.kind("lo") == ""
        with pytest.raises(OSError, match="No such device"):
            wireguard.kind("missing")


def test_the_kernel_tells_the_number_of_a_family() -> None:
    with netlink.open_socket(GENERIC, 1 << 16) as sock:
        assert wireguard.family(sock, "nlctrl") == 16
        with pytest.raises(OSError, match="No such file"):
            wireguard.family(sock, "nftguard-none")


def test_the_answer_is_asked_for_again_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    clock = [1000.0]

    def routes(interface: str) -> Routes:
        asked.append(interface)
        return Routes([(ipaddress.ip_address("10.8.0.7"), 32, Peer(f"key {len(asked)}"))])

    monkeypatch.setattr(wireguard, "_routes", routes)
    tunnels = Tunnels(lambda: clock[0])
    assert tunnels.peer("wg0", "10.8.0.7") == tunnels.peer("wg0", "10.8.0.7") == Peer("key 1")
    clock[0] += 1.5
    assert tunnels.peer("wg0", "10.8.0.7") == Peer("key 2")
    assert tunnels.peer("wg0", "no address") is None
    for number in range(1000):
        tunnels.peer(f"wg{number}", "10.8.0.7")
    assert len(tunnels._seen) <= 256
