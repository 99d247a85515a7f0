"""Which way the kernel would send a packet now: the interface, and the source address that it would give it.

Format: linux/include/uapi/linux/rtnetlink.h, RTM_GETROUTE without NLM_F_DUMP. Rules of `ip rule` that look at marks
are not covered: the mark of a packet to come is not known.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from typing import NamedTuple

from nftguard.errors import UnavailableError
from nftguard.names import shown
from nftguard.wire import netlink, rtnl

_NEWROUTE, _GETROUTE = 24, 26
_TO, _FROM, _ENTERS, _LEAVES, _PREFERRED, _USER = 1, 2, 3, 4, 7, 25


class Way(NamedTuple):
    """The way out; a field is empty where the kernel names none."""

    interface: str
    source: str


def toward(destination: str, source: str = "", uid: int | None = None, inbound: str = "", outbound: str = "") -> Way:
    """Ask for the way to an address, of a packet that this host sends or, with `inbound`, forwards.

    Raises UnavailableError where there is none, or no such interface.
    """
    to = ipaddress.ip_address(destination)
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    start = ipaddress.ip_address(source).packed if source else b""
    try:
        asked = [(_TO, to.packed), (_FROM, start)]
        asked += [(_USER, struct.pack("=I", uid))] if uid is not None else []
        asked += [
            (kind, struct.pack("=I", socket.if_nametoindex(name)))
            for kind, name in ((_ENTERS, inbound), (_LEAVES, outbound))
            if name
        ]
        body = rtnl.ROUTE.pack(family, len(to.packed) * 8, len(start) * 8, 0, 0, 0, 0, 0, 0)
        body += b"".join(netlink.attribute(kind, value) for kind, value in asked if value)
        with netlink.open_socket(netlink.NETLINK_ROUTE, 1 << 16) as sock:
            for answer in netlink.ask(sock, _GETROUTE, body):
                if answer.kind == _NEWROUTE:
                    return _way(dict(netlink.attributes(answer.body, rtnl.ROUTE.size)))
    except OSError as error:
        ends = "".join(
            f" {word} {shown(name)}"
            for word, name in (("from", source), ("in by", inbound), ("out by", outbound))
            if name
        )
        raise UnavailableError(f"the kernel knows no way to {destination}{ends}: {error.strerror or error}") from None
    return Way("", "")


def _way(found: dict[int, bytes]) -> Way:
    index, source = found.get(_LEAVES, b""), found.get(_PREFERRED, b"")
    try:
        name = socket.if_indextoname(int.from_bytes(index, sys.byteorder)) if index else ""
    except OSError:  # gone meanwhile
        name = ""
    return Way(name, str(ipaddress.ip_address(source)) if len(source) in {4, 16} else "")
