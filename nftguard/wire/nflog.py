"""Blocked attempts: packets that the rules log to an NFLOG group, from the kernel to `Attempt`.

Formats: linux/include/uapi/linux/netfilter/nfnetlink_log.h. The packets are made by whoever abuses the host: nothing in
them is trusted, and what does not parse is counted as malformed.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from functools import lru_cache

from nftguard.errors import UnavailableError
from nftguard.model import Hook, Protocol
from nftguard.wire import netlink

_BATCH = 256  # datagrams read at a time
_BUFFER = 4 << 20

_PACKET, _CONFIG = netlink.NFNL_SUBSYS_ULOG << 8, netlink.NFNL_SUBSYS_ULOG << 8 | 1
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH, _CFG_FLAGS = 1, 2, 5, 6
_CMD_BIND, _COPY_PACKET, _FLAG_SEQ = 1, 2, 1
_PACKET_HDR, _INDEV, _OUTDEV, _PAYLOAD, _PREFIX, _UID, _SEQ, _GID = 1, 4, 5, 9, 10, 11, 12, 14

# Enough for an IPv6 header and the ports behind a routing header of the full 2 KiB, which any user may set; of what is
# forwarded, for a whole packet of the usual size.
_SNAP = 2200
# A message from the kernel for each packet, so that its sender can be looked for while he is there: with more to a
# message, the kernel would wait to fill it. That costs it 2.8 times as much a packet (measured, kernel 6.18), but our
# rules log no more than 4,000 a second (`policy`).
_THRESHOLD = 1

_HOOKS = {1: Hook.INPUT, 2: Hook.FORWARD, 3: Hook.OUTPUT}  # NF_INET_LOCAL_IN, _FORWARD, _LOCAL_OUT
_PROTOCOLS = {protocol.number: protocol for protocol in Protocol}
# IPv6 extension headers with a length in units of 8 bytes: hop-by-hop, routing, destination options (RFC 8200)
_EXTENSIONS = {0, 43, 60}
_ROUTING, _FRAGMENT, _AUTH = 43, 44, 51
# Types of routing header whose first address is where the packet goes in the end: mobility (RFC 6275, 6.4), segments
# (RFC 8754, 2). As long as there are segments left, the header's destination is only the next stop.
_FINAL_FIRST = {2, 4}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One blocked packet that opens a connection. `uid` and `gid` are None where no local socket sent it."""

    block: str
    hook: Hook
    protocol: Protocol
    source: str
    source_port: int
    destination: str
    port: int
    uid: int | None = None
    gid: int | None = None
    sequence: int = 0
    """The 32 bits at offset 4 of the transport header: TCP's initial sequence number."""
    size: int = 0
    """The bytes of the whole packet, as the kernel counts them."""
    inbound: str = ""
    outbound: str = ""
    """Names of the interfaces, empty where there is none."""
    ttl: int = 0
    """How many routers may still pass it on; of IPv6 the hop limit."""

    @property
    def flow(self) -> tuple[object, ...]:
        """What the repeats of a packet share, and another attempt does not."""
        mark = self.sequence if self.protocol is Protocol.TCP else self.uid
        return (self.block, self.hook, self.protocol, self.source, self.source_port, self.destination, self.port, mark)


class Reader:
    """Reads one NFLOG group. Raises UnavailableError where another program has it, or the kernel has no NFLOG."""

    def __init__(self, group: int) -> None:
        self.group = group
        self._lost = 0
        self._next: int | None = None
        try:
            self.socket = netlink.open_socket(netlink.NETLINK_NETFILTER, _BUFFER)
        except OSError as error:
            raise UnavailableError(f"blocked attempts cannot be read from the kernel: {error.strerror}") from None
        try:
            for attribute in (
                netlink.attribute(_CFG_CMD, struct.pack("B", _CMD_BIND)),
                netlink.attribute(_CFG_MODE, struct.pack("!IBB", _SNAP, _COPY_PACKET, 0)),
                netlink.attribute(_CFG_QTHRESH, struct.pack("!I", _THRESHOLD)),
                netlink.attribute(_CFG_FLAGS, struct.pack("!H", _FLAG_SEQ)),
            ):
                self._configure(attribute)
        except OSError as error:
            self.socket.close()
            taken = error.errno in {errno.EBUSY, errno.EPERM}  # EPERM: bound by another socket (nfnetlink_log.c)
            reason = "another program reads it; set another [log] group" if taken else os.strerror(error.errno or 0)
            raise UnavailableError(f"blocked attempts cannot be read from NFLOG group {group}: {reason}") from None

    def _configure(self, attribute: bytes) -> None:
        # struct nfgenmsg: family, version, resource id, which is the group here
        body = struct.pack("!BBH", socket.AF_UNSPEC, 0, self.group) + attribute
        self.socket.send(netlink.message(_CONFIG, body))
        # The kernel answers within the call to send(); packets may come first.
        while True:
            for found in netlink.messages(self.socket.recv(1 << 16)):
                if netlink.raise_for_error(found):
                    return

    def read(self) -> list[Attempt]:
        """Read the attempts that wait, up to a bound."""
        datagrams, overrun = netlink.receive(self.socket, _BATCH)
        _interface.cache_clear()  # names change
        attempts: list[Attempt] = []
        for data in datagrams:
            for kind, body in netlink.messages(data):
                if kind != _PACKET:
                    continue
                found = dict(netlink.attributes(body, netlink.NFGENMSG))
                self._follow(found.get(_SEQ, b""))
                attempt = decode(found)
                if attempt:
                    attempts.append(attempt)
                else:
                    self._lost += 1
        if overrun and self._next is None:
            self._lost += 1  # before the first sequence number nobody can say how many
        return attempts

    def _follow(self, sequence: bytes) -> None:
        if len(sequence) != 4:
            return
        (number,) = struct.unpack("!I", sequence)
        if self._next is not None:
            self._lost += (number - self._next) & 0xFFFFFFFF
        self._next = (number + 1) & 0xFFFFFFFF

    def take_lost(self) -> int:
        """Give how many packets were lost on the way, or malformed, since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def close(self) -> None:
        """Give the group up."""
        self.socket.close()


def decode(found: dict[int, bytes]) -> Attempt | None:
    """Decode the attributes of one packet message; None where they are no packet that our rules log."""
    header, packet = found.get(_PACKET_HDR, b""), found.get(_PAYLOAD, b"")
    try:
        hook = _HOOKS[header[2]]
        source, destination, number, at, size, ttl = _network(packet)
        protocol = _PROTOCOLS[number]
        source_port, port, sequence = struct.unpack_from("!HHI", packet, at)  # ports: the same place in all four
        block = found.get(_PREFIX, b"").rstrip(b"\0").decode("ascii")
        uid, gid, inbound, outbound = (
            struct.unpack("!I", found[key])[0] if key in found else None for key in (_UID, _GID, _INDEV, _OUTDEV)
        )
    except (IndexError, KeyError, ValueError, struct.error):
        return None
    names = _interface(inbound), _interface(outbound)
    return Attempt(
        block, hook, protocol, source, source_port, destination, port, uid, gid, sequence, size, *names, ttl=ttl
    )


@lru_cache(maxsize=64)
def _interface(index: int | None) -> str:
    try:
        return socket.if_indextoname(index) if index else ""
    except (OSError, OverflowError):  # it is gone by now
        return ""


def _network(packet: bytes) -> tuple[str, str, int, int, int, int]:
    """Give source, destination, protocol number, the offset of the transport header, the packet's size and its TTL."""
    version = packet[0] >> 4
    if version == 4:
        source, destination = (ipaddress.IPv4Address(packet[at : at + 4]) for at in (12, 16))
        at, size = (packet[0] & 15) * 4, int.from_bytes(packet[2:4])
        return str(source), str(destination), packet[9], at, size, packet[8]
    if version != 6:
        raise ValueError(version)
    addresses = [str(ipaddress.IPv6Address(packet[at : at + 16])) for at in (8, 24)]
    number, at = packet[6], 40
    final = addresses[1]
    while number in _EXTENSIONS or number in {_FRAGMENT, _AUTH}:
        length = 8 if number == _FRAGMENT else (packet[at + 1] + 2) * 4 if number == _AUTH else (packet[at + 1] + 1) * 8
        if number == _ROUTING and packet[at + 2] in _FINAL_FIRST and packet[at + 3]:
            final = str(ipaddress.IPv6Address(packet[at + 8 : at + 24]))
        number, at = packet[at], at + length
    return addresses[0], final, number, at, 40 + int.from_bytes(packet[4:6]), packet[7]
