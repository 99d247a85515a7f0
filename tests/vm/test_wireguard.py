"""The peer of a real tunnel, as Debian's own kernels tell it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.vm.machine import VirtualMachine

# Gives wg0 two peers, without the program `wg`: one with a network, one with 3,000 addresses of it, which the kernel
# tells in several messages. Then it asks as the service's user would, with CAP_NET_ADMIN alone, and without.
_SCRIPT = """
import base64, ipaddress, json, os, socket, struct, sys, time
from nftguard.wire import netlink, wireguard
from nftguard.wire.netlink import attribute
def entry(address, bits):
    packed = ipaddress.ip_address(address).packed
    family = struct.pack("=H", socket.AF_INET if len(packed) == 4 else socket.AF_INET6)
    return attribute(0x8000, attribute(1, family) + attribute(2, packed) + attribute(3, bytes([bits])))
def peer(key, allowed, endpoint=b""):
    ends = attribute(4, endpoint) if endpoint else b""
    return attribute(0x8000, attribute(1, key) + ends + attribute(0x8009, b"".join(allowed)))
def configure(*peers):
    with netlink.open_socket(16, 1 << 20) as sock:
        number = wireguard.family(sock, "wireguard")
        body = struct.pack("BBxx", 1, 1) + attribute(2, b"wg0\\0") + attribute(3, bytes(31) + b"A")
        sock.send(netlink.message(number, body + attribute(0x8008, b"".join(peers))))
        for found in netlink.messages(sock.recv(1 << 16)): netlink.raise_for_error(found)
one, two = bytes(31) + b"B", bytes(31) + b"C"
endpoint = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 51820, socket.inet_aton("203.0.113.9"))
configure(peer(one, [entry("10.8.0.0", 16), entry("fd08::", 64)], endpoint))
hosts = [f"10.8.{number >> 8}.{number & 255}" for number in range(3000)]
for at in range(0, 3000, 1000): configure(peer(two, [entry(host, 32) for host in hosts[at : at + 1000]]))
began = time.monotonic()
tunnels = wireguard.Tunnels()
asked = [tunnels.peer("wg0", address) for address in (hosts[0], hosts[-1], "10.8.200.1", "fd08::5", "10.9.0.1")]
figure = time.monotonic() - began
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
print(json.dumps({"asked": asked, "unprivileged": wireguard.Tunnels().peer("wg0", hosts[0]), "seconds": figure}))
"""
ONE, TWO = ("A" * 41 + letter for letter in ("EI=", "EM="))


def test_the_peer_behind_an_address_is_named(machine: VirtualMachine) -> None:
    machine.run(["ip", "link", "add", "wg0", "type", "wireguard"])
    try:
        python = machine.run(["head", "-n", "1", "/usr/bin/nftguard"]).stdout.strip().removeprefix("#!")
        found = json.loads(machine.run([python, "-c", _SCRIPT]).stdout)
    finally:
        machine.run(["ip", "link", "del", "wg0"])
    assert found["asked"] == [[TWO, ""], [TWO, ""], [ONE, "203.0.113.9"], [ONE, "203.0.113.9"], None]
    assert found["unprivileged"] is None
