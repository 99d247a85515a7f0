"""Links, addresses and default routes, as the kernel has them now.

Formats: linux/include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, nexthop.h. What a message lacks or says wrongly
is left out.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from nftguard.errors import UnavailableError
from nftguard.network import Address, Default, Link, Network, survey
from nftguard.wire import netlink

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEWLINK, _GETLINK, _NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE, _NEWNEXTHOP, _GETNEXTHOP = (
    16,
    18,
    20,
    22,
    24,
    26,
    104,
    106,
)

_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, changed flags
_LINK_NAME, _LINK_LOWER, _LINK_MASTER, _LINK_INFO, _INFO_KIND, _LINK_ELSEWHERE = 3, 5, 10, 18, 1, 37
_UP = 1  # IFF_UP

_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, length of the prefix, flags, scope, index
_ADDRESS_ADDRESS, _ADDRESS_LOCAL = 1, 2
_BITS: dict[int, int] = {socket.AF_INET: 32, socket.AF_INET6: 128}

ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, lengths of destination and source, 4 more, type, flags."""
_ROUTE_TO, _ROUTE_LINK, _ROUTE_MULTIPATH, _ROUTE_NEXTHOP = 1, 4, 9, 30
_UNICAST = 1  # and no blackhole, unreachable, prohibit, throw, local
_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, weight, index
# A destination shorter than this is no network of a site's own: those are 10.0.0.0/8 and fc00::/7 at the most.
_SHORT: dict[int, int] = {socket.AF_INET: 8, socket.AF_INET6: 7}
_MULTICAST = 224  # 224.0.0.0/4 and the reserved 240.0.0.0/4: often routed to any interface, never to the world
_GLOBAL = 0x20  # 2000::/3, all of the public IPv6

_NEXTHOP = struct.Struct("=BBBBI")  # struct nhmsg
_NEXTHOP_ID, _NEXTHOP_GROUP, _NEXTHOP_LINK = 1, 2, 5
_MEMBER = struct.Struct("=IBBH")  # struct nexthop_grp: id, weight, …

_BUFFER = 1 << 20
_MOST = 1 << 26  # messages of one dump: a route left out could be a default route
_TRIES = 5


def look() -> Network:
    """Ask for everything, and give the survey of it. Raises UnavailableError when the kernel does not answer."""
    for _ in range(_TRIES):
        try:
            with netlink.open_socket(netlink.NETLINK_ROUTE, _BUFFER) as sock:
                return survey(links(sock), addresses(sock), defaults(sock))
        except InterruptedError:  # something changed in the middle: ask again
            continue
        except OSError as error:
            raise UnavailableError(
                f"the kernel does not list this host's links, addresses and routes: {error.strerror}; "
                "are netlink sockets (AF_NETLINK) allowed here?"
            ) from None
    raise UnavailableError(
        f"this host's links, addresses and routes changed during each of {_TRIES} looks at them; try again later"
    )


def is_short(body: bytes) -> bool:
    """Whether a message about a route, from its struct rtmsg on, is about a large part of the world.

    This reads two bytes: of 100,000 routes, all but a few are never taken apart.
    """
    return len(body) >= ROUTE.size and body[1] < _SHORT.get(body[0], 0)


def links(sock: socket.socket) -> list[Link]:
    """List the interfaces. Raises OSError; InterruptedError: they changed meanwhile, and the socket is to be closed."""
    return [link for body in _dump(sock, _GETLINK, _NEWLINK, bytes(_LINK.size)) if (link := _link(body))]


def addresses(sock: socket.socket) -> list[Address]:
    """List the networks of all addresses, and raise, as `links` does."""
    return [found for body in _dump(sock, _GETADDR, _NEWADDR, bytes(_ADDRESS.size)) for found in _networks(body)]


def defaults(sock: socket.socket) -> list[Default]:
    """List the routes of any table that lead to the world or a large part of it, and raise, as `links` does.

    The world: 0.0.0.0/0 and ::/0; their halves, which VPN clients set (OpenVPN's `def1`), each of which counts;
    2000::/3 and its halves. Several routes may be the same.
    """
    routes = [
        route
        for family in _SHORT
        for body in _dump(sock, _GETROUTE, _NEWROUTE, struct.pack("=B11x", family))
        if is_short(body) and (route := _route(body))
    ]
    hops = {number: _hops(sock, number) for number in {route.nexthop for route in routes if route.nexthop}}
    return [Default(route.links + hops.get(route.nexthop, ()), route.whole) for route in routes]


def _dump(sock: socket.socket, asked: int, told: int, body: bytes) -> Iterator[bytes]:
    answer = netlink.ask(sock, asked, body, dump=True, most=_MOST, whole=True)
    return (found.body for found in answer if found.kind == told)


def _number(value: bytes | None) -> int:
    """Read an index or an id; 0: there is none."""
    return int.from_bytes(value, sys.byteorder) if value and len(value) == 4 else 0


def _link(body: bytes) -> Link | None:
    if len(body) < _LINK.size:
        return None
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = dict(netlink.attributes(body, _LINK.size))
    if index <= 0 or _LINK_NAME not in found:
        return None
    kind = dict(netlink.attributes(found.get(_LINK_INFO, b""))).get(_INFO_KIND, b"")
    # With a namespace's id beside it, the index is one of that namespace.
    lower = 0 if _LINK_ELSEWHERE in found else _number(found.get(_LINK_LOWER))
    master = _number(found.get(_LINK_MASTER))
    return Link(index, _text(found[_LINK_NAME]), _text(kind), master, bool(flags & _UP), lower)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _networks(body: bytes) -> Iterator[Address]:
    """Give the network of an address; of a point-to-point link, the own address and the peer's network."""
    if len(body) < _ADDRESS.size:
        return
    family, length, _, _, index = _ADDRESS.unpack_from(body)
    found = dict(netlink.attributes(body, _ADDRESS.size))
    bits = _BITS.get(family, 0)
    # IFA_LOCAL is the own address, IFA_ADDRESS the peer's; without a peer they are the same, or IFA_LOCAL is missing.
    peer = found.get(_ADDRESS_ADDRESS, b"")
    own = found.get(_ADDRESS_LOCAL, peer)
    pairs = [(peer or own, length)] + ([(own, bits)] if peer and own != peer else [])
    for address, prefix in pairs:
        # A network of length 0 would make the whole world local.
        if bits and len(address) * 8 == bits and 0 < prefix <= bits:
            yield Address(index, str(ipaddress.ip_network((address, prefix), strict=False)))


class _Route(NamedTuple):
    links: tuple[int, ...]
    nexthop: int  # the id of a nexthop object, where the kernel names no interface
    whole: bool


def _route(body: bytes) -> _Route | None:
    """Read a short route; None: it leads nowhere that matters."""
    family, length, _, _, _, _, _, kind, _ = ROUTE.unpack_from(body)
    found = dict(netlink.attributes(body, ROUTE.size))
    start = found.get(_ROUTE_TO, b"")[:1]
    first = start[0] if start else 0
    if kind != _UNICAST or (family == socket.AF_INET and first >= _MULTICAST):
        return None
    whole = length <= 1 or (family == socket.AF_INET6 and length in {3, 4} and first & 0xE0 == _GLOBAL)
    several = list(_multipath(found.get(_ROUTE_MULTIPATH, b"")))
    named = tuple(index for index in [_number(found.get(_ROUTE_LINK)), *several] if index)
    return _Route(named, 0 if named else _number(found.get(_ROUTE_NEXTHOP)), whole)


def _multipath(data: bytes) -> Iterator[int]:
    at = 0
    while at + _HOP.size <= len(data):
        length, _, _, index = _HOP.unpack_from(data, at)
        if length < _HOP.size:
            return
        yield index
        at += length + 3 & ~3


def _hops(sock: socket.socket, number: int) -> tuple[int, ...]:
    """Give the interfaces of a nexthop object; of a group, those of its members.

    Routes name them themselves unless net.ipv4.nexthop_compat_mode is 0.
    """
    found = _nexthop(sock, number)
    group = found.get(_NEXTHOP_GROUP, b"")
    members = [_MEMBER.unpack_from(group, at)[0] for at in range(0, len(group) - _MEMBER.size + 1, _MEMBER.size)]
    objects = [found, *(_nexthop(sock, member) for member in set(members))]  # a group has no groups in it
    return tuple(index for hop in objects if (index := _number(hop.get(_NEXTHOP_LINK))))


def _nexthop(sock: socket.socket, number: int) -> dict[int, bytes]:
    body = bytes(_NEXTHOP.size) + netlink.attribute(_NEXTHOP_ID, struct.pack("=I", number))
    try:
        for answer in netlink.ask(sock, _GETNEXTHOP, body):
            if answer.kind == _NEWNEXTHOP:
                return dict(netlink.attributes(answer.body, _NEXTHOP.size))
    except OSError as error:
        if error.errno != errno.ENOENT:  # gone by now, and its routes with it
            raise
    return {}
