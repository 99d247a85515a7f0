"""A packet, as far as it is known, and whether it is what an element of a set stands for. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from nftguard.model import Hook, Key, Protocol

_VERSIONS = {Key.TO4: 4, Key.TO6: 6, Key.FROM4: 4, Key.FROM6: 6}


@dataclass(frozen=True, slots=True)
class Packet:
    """What is known of a packet; None where it is not known."""

    hook: Hook
    protocol: Protocol
    destination: str
    port: int
    source: str | None = None
    opens: bool = True
    """Whether it opens a connection: a TCP SYN, an SCTP INIT, a DCCP REQUEST; of no meaning for udp."""
    owned: bool = True
    """Whether the socket that sends it is still open; of no meaning but on output."""
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None
    """The ids of the control groups that the socket is in, from below the root on."""
    inbound: str | None = None
    outbound: str | None = None


def has_user(packet: Packet) -> bool:
    """Whether nft finds a socket with an owner: a closed one has none, and what is not sent by this host neither."""
    return packet.hook is Hook.OUTPUT and packet.owned


def fits(packet: Packet, key: Key, part: str, level: int) -> bool | None:
    """Whether a part of an element is so of the packet; None: it is not known. Raises ValueError."""
    match key:
        case Key.PROTOCOL:
            return part == packet.protocol
        case Key.PORT:
            return part == str(packet.port)
        case Key.TO4 | Key.TO6 | Key.FROM4 | Key.FROM6 if _VERSIONS[key] != _version(packet.destination):
            return False
        case Key.TO4 | Key.TO6:
            return _within(packet.destination, part)
        case Key.FROM4 | Key.FROM6:
            return None if packet.source is None else _within(packet.source, part)
        case Key.ENTERS:
            return _called(packet.inbound, part) if packet.hook is not Hook.OUTPUT else False
        case Key.LEAVES:
            return _called(packet.outbound, part) if packet.hook is not Hook.INPUT else False
        case Key.USER | Key.GROUP:
            number = packet.uid if key is Key.USER else packet.gid
            if not has_user(packet):
                return False
            return None if number is None else part == str(number)
        case Key.UNIT:
            if packet.hook is not Hook.OUTPUT:
                return False
            # nft lists no level: of our rules there is one for each, so that any will do.
            asked = packet.groups if not level or packet.groups is None else packet.groups[level - 1 : level]
            return None if asked is None else part in map(str, asked)
    raise ValueError(key)


def _called(name: str | None, pattern: str) -> bool | None:
    if name is None:
        return None
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _within(address: str, element: str) -> bool:
    first, last = _span(element)
    return first <= _number(address) <= last


@lru_cache(maxsize=8192)
def _number(address: str) -> int:
    return int(ipaddress.ip_address(address))


@lru_cache(maxsize=1024)
def _version(address: str) -> int:
    return ipaddress.ip_address(address).version


@lru_cache(maxsize=8192)
def _span(element: str) -> tuple[int, int]:
    """Read an element of addresses: `10.0.0.1`, `10.0.0.0/8`, `10.0.0.1-10.0.0.3`. Raises ValueError."""
    first, dash, last = element.partition("-")
    if dash:
        return int(ipaddress.ip_address(first)), int(ipaddress.ip_address(last))
    network = ipaddress.ip_network(element)
    return int(network[0]), int(network[-1])
