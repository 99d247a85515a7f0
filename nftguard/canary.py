"""Canaries: packets that nobody wants and nobody answers, sent to see whether they are stopped; and how to know one.

A canary goes to an address of the documentation (RFC 5737, RFC 3849, RFC 9637), to which nothing on the internet is
routed, with a TTL or hop limit of 1, so that no router passes it on, and with a checksum of 0, so that no receiver
takes it. To leave such packets out of the records hides nothing: they reach nobody, whoever sends them, and the
counters count them all the same.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from nftguard.model import Hook, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nftguard.wire.nflog import Attempt
    from nftguard.wire.nfnl import Nfnl

ADDRESSES = {
    4: ("192.0.2.1", "198.51.100.1", "203.0.113.1"),
    6: ("2001:db8::1", "3fff::1"),
}
"""Where canaries go, one for each network of the documentation."""
_NETWORKS = [
    ipaddress.ip_network(network)
    for network in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")
]

_SOURCE_PORT = 9  # discard: nobody waits for an answer there
_TEXT = b"nftguard verify"  # for whoever finds one in a trace
_TRIES = 8

_libc = ctypes.CDLL(None)


def is_canary(attempt: Attempt) -> bool:
    """Whether it is a canary, of whoever."""
    return attempt.ttl == 1 and attempt.hook is Hook.OUTPUT and _documented(attempt.destination)


@lru_cache(maxsize=256)
def _documented(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return any(found in network for network in _NETWORKS)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def may_be(uid: int) -> bool:
    """Whether this process may send as that user, and the group of the same number."""
    with _being(uid):
        # An id that cannot be: nothing changes, and the one in force comes back (setfsuid(2)).
        return bool(_libc.setfsuid(-1) == uid == _libc.setfsgid(-1))


@contextmanager
def _being(uid: int) -> Iterator[None]:
    """Make files, and so sockets, as another user: `meta skuid` is the fsuid that a socket was made with.

    Unlike the effective one it can be changed without giving CAP_NET_RAW up (capabilities(7)); only this thread is it.
    """
    group, user = _libc.setfsgid(uid), _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(user)
        _libc.setfsgid(group)


@dataclass(frozen=True, slots=True)
class Canary:
    """A packet that would open a connection, sent as the user `uid` and the group of the same number."""

    protocol: Protocol
    destination: str
    port: int
    uid: int

    @property
    def packet(self) -> bytes:
        """Give it from the transport header on."""
        ports = struct.pack("!HH", _SOURCE_PORT, self.port)
        match self.protocol:
            case Protocol.TCP:  # sequence, acknowledgement, 5 words and SYN, window, checksum, urgent
                return ports + struct.pack("!IIHHHH", 0, 0, 5 << 12 | 2, 1024, 0, 0) + _TEXT
            case Protocol.UDP:  # length, checksum
                return ports + struct.pack("!HH", 8 + len(_TEXT), 0) + _TEXT
            case Protocol.SCTP:  # tag, checksum; INIT, flags, length; tag, window, streams out and in, sequence
                return ports + struct.pack("!IIBBHIIHHI", 0, 0, 1, 0, 20, 1, 1500, 1, 1, 0) + _TEXT
            case Protocol.DCCP:  # words, coverage, checksum; REQUEST with the long sequence; service
                return ports + struct.pack("!BBHBBHII", 5, 0, 0, 0 << 1 | 1, 0, 0, 0, 0) + _TEXT

    @property
    def size(self) -> int:
        """Count the bytes of the whole packet, as a counter does."""
        return len(self.packet) + (40 if ":" in self.destination else 20)

    def send(self) -> bool:
        """Send it; tell whether it was stopped on its way out.

        A raw socket, since it works for every protocol and at once: it is told by EPERM when the packet was dropped or
        rejected at the hook output (ip_local_out() in linux/net/ipv4/ip_output.c), where a connect() would go on
        trying. Raises OSError when it could not be sent, PermissionError without CAP_NET_RAW.
        """
        family = _family(self.destination)
        with _being(self.uid):
            sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self.protocol.number)
        with sock:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            try:
                sock.sendto(self.packet, socket.MSG_DONTWAIT, (self.destination, 0))
            except OSError as error:
                if error.errno == errno.EPERM:
                    return True
                raise
        return False


class Fate(StrEnum):
    """What became of a canary."""

    PROVEN = "stopped and counted"
    PASSED = "NOT stopped"
    UNCOUNTED = "stopped, but not counted by nftguard"


def prove(nfnl: Nfnl, canary: Canary, counter: str) -> Fate:
    """Send it, and see what became of it; `counter` names the one that is to count it.

    Proven is: the kernel told its sender that it was dropped, and meanwhile the counter rose by this one packet and
    its bytes. Where others' packets are counted in the same moment it is sent again, and only if that never ends is
    a larger rise enough. Raises OSError when it could not be sent.
    """
    last = (0, 0)
    for _ in range(_TRIES):
        before = nfnl.counter(counter)
        if not canary.send():
            return Fate.PASSED
        after = nfnl.counter(counter)
        if not before or not after:
            return Fate.UNCOUNTED
        last = after[0] - before[0], after[1] - before[1]
        if last == (1, canary.size):
            return Fate.PROVEN
    return Fate.PROVEN if last[0] > 1 and last[1] > canary.size else Fate.UNCOUNTED
