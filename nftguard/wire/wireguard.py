"""Who is at the other end of a WireGuard tunnel, by the address of a packet that came out of it.

The kernel lets a peer send only from its own allowed IPs, so that the address proves the peer; of two that fit, the
longer prefix counts, as it does there. Needs CAP_NET_ADMIN. Formats: linux/include/uapi/linux/wireguard.h, genetlink.h,
rtnetlink.h, if_link.h.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from nftguard.wire import netlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_GENERIC = 16  # NETLINK_GENERIC
_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_GET_DEVICE, _VERSION, _DEVICE_NAME, _DEVICE_PEERS = 0, 1, 2, 8
_PEER_KEY, _PEER_ENDPOINT, _PEER_ALLOWED = 1, 4, 9
_ALLOWED_ADDRESS, _ALLOWED_BITS = 2, 3
_GET_LINK, _LINK_NAME, _LINK_INFO, _INFO_KIND = 18, 3, 18, 1
_GENERIC_HEADER = 4  # bytes: command, version, reserved
_LINK_HEADER = 16  # struct ifinfomsg

_FRESH = 1.0  # seconds that an answer of the kernel holds: a peer may lose an address to another
_INTERFACES = 256  # remembered
_BUFFER = 1 << 20

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Peer(NamedTuple):
    """One end of a tunnel: its public key as `wg` shows it, and where it sends from; "": it has not been heard yet."""

    key: str
    endpoint: str = ""


class Routes:
    """The allowed IPs of a tunnel's peers."""

    def __init__(self, allowed: Iterable[tuple[Address, int, Peer]] = ()) -> None:
        self._peers: dict[tuple[int, int, int], Peer] = {}  # by version, length of the prefix, and the prefix itself
        for address, bits, peer in allowed:
            self._peers[address.version, bits, int(address) >> (address.max_prefixlen - bits)] = peer
        self._lengths = sorted({key[:2] for key in self._peers}, reverse=True)

    def find(self, address: Address) -> Peer | None:
        """Give the peer that may send from this address."""
        for version, bits in self._lengths:
            if version == address.version:
                found = self._peers.get((version, bits, int(address) >> (address.max_prefixlen - bits)))
                if found:
                    return found
        return None


class Tunnels:
    """The WireGuard interfaces of this host, asked when needed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, Routes | None]] = {}

    def peer(self, interface: str, source: str) -> Peer | None:
        """Give who sent from `source` through `interface`; None: nobody known, or no WireGuard interface."""
        now = self._clock()
        at, routes = self._seen.get(interface, (-_FRESH, None))
        if now >= at + _FRESH:
            if len(self._seen) >= _INTERFACES:
                self._seen.clear()
            routes = _routes(interface)
            self._seen[interface] = (now, routes)
        try:
            return routes.find(ipaddress.ip_address(source)) if routes else None
        except ValueError:
            return None


def _routes(interface: str) -> Routes | None:
    try:
        if kind(interface) != "wireguard":  # asked before, since asking for its family would load the module
            return None
        with netlink.open_socket(_GENERIC, _BUFFER) as sock:
            number = family(sock, "wireguard")
            named = netlink.attribute(_DEVICE_NAME, interface.encode() + b"\0")
            body = struct.pack("BBxx", _GET_DEVICE, _VERSION) + named
            return Routes(allowed(found.body for found in netlink.ask(sock, number, body, dump=True)))
    except (OSError, UnicodeError):  # gone by now, or not permitted
        return None


def kind(interface: str) -> str:
    """Give the kind of an interface, as `ip -details link` shows it: "wireguard", "veth"; "": none. Raises OSError."""
    with netlink.open_socket(netlink.NETLINK_ROUTE, _BUFFER) as sock:
        body = bytes(_LINK_HEADER) + netlink.attribute(_LINK_NAME, interface.encode() + b"\0")
        for found in netlink.ask(sock, _GET_LINK, body):
            info = dict(netlink.attributes(found.body, _LINK_HEADER)).get(_LINK_INFO, b"")
            return dict(netlink.attributes(info)).get(_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
    return ""


def family(sock: socket.socket, name: str) -> int:
    """Ask for the number of a generic netlink family. Raises OSError where the kernel has none of that name."""
    body = struct.pack("BBxx", _GET_FAMILY, 1) + netlink.attribute(_FAMILY_NAME, name.encode() + b"\0")
    for found in netlink.ask(sock, _CONTROL, body):
        value = dict(netlink.attributes(found.body, _GENERIC_HEADER)).get(_FAMILY_ID, b"")
        if len(value) == 2:
            return int(struct.unpack("=H", value)[0])
    raise OSError(f"no number for {name}")


def allowed(bodies: Iterable[bytes]) -> Iterator[tuple[Address, int, Peer]]:
    """Read the allowed IPs out of the answer about a device: address, length of the prefix, peer.

    A peer with many of them is continued in the next message, with its key alone. The device's private key comes along:
    it is not looked at.
    """
    peers: dict[bytes, Peer] = {}
    for body in bodies:
        for number, listed in netlink.attributes(body, _GENERIC_HEADER):
            if number != _DEVICE_PEERS:
                continue
            for _, described in netlink.attributes(listed):
                found = dict(netlink.attributes(described))
                key = found.get(_PEER_KEY, b"")
                if len(key) != 32:
                    continue
                endpoint = _endpoint(found.get(_PEER_ENDPOINT, b""))
                peer = peers.setdefault(key, Peer(base64.b64encode(key).decode(), endpoint))
                for _, entry in netlink.attributes(found.get(_PEER_ALLOWED, b"")):
                    fields = dict(netlink.attributes(entry))
                    address, bits = fields.get(_ALLOWED_ADDRESS, b""), fields.get(_ALLOWED_BITS, b"")
                    if len(address) in {4, 16} and len(bits) == 1 and bits[0] <= 8 * len(address):
                        yield ipaddress.ip_address(address), bits[0], peer


def _endpoint(data: bytes) -> str:
    """Read a struct sockaddr_in or sockaddr_in6: the address alone."""
    (number,) = struct.unpack_from("=H", data) if len(data) >= 2 else (0,)
    if number == socket.AF_INET and len(data) >= 8:
        return str(ipaddress.IPv4Address(data[4:8]))
    if number == socket.AF_INET6 and len(data) >= 24:
        return str(ipaddress.IPv6Address(data[8:24]))
    return ""
