"""What this host is connected to: interfaces to the world, interfaces to its own guests, networks that are near. Pure.

Whatever is not known is in none of the sets: a forwarded packet passes only from an uplink to an inner interface, so
that an empty survey blocks more, never less.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOOPBACK = 1  # LOOPBACK_IFINDEX in linux/include/net/flow.h: `lo` has it in every namespace, also when renamed
_NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")  # the kernel takes any name without "/" and blanks: "eth*", "}", "é"
_BONDS = {"bond", "team"}


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel describes it; an index is 0 where there is none."""

    index: int
    name: str
    kind: str  # as `ip -details link` shows it: "bridge", "veth", "tun"; "": a piece of hardware
    master: int  # the index of the bridge, bond or VRF that it belongs to
    up: bool  # switched on, with or without a carrier
    lower: int = 0  # the index of the interface that it sits on, when that is in this namespace; a veth's is its peer


@dataclass(frozen=True, slots=True)
class Address:
    """A network that an interface has an address in: "10.0.2.0/24", "fe80::/64"."""

    index: int
    network: str


@dataclass(frozen=True, slots=True)
class Default:
    """A route to the world; `links` are the indexes of the interfaces that it may take."""

    links: tuple[int, ...]
    whole: bool = True  # False: to a large part of the world alone, as 64.0.0.0/2


@dataclass(frozen=True, slots=True)
class Network:
    """Interfaces by name, and networks."""

    uplinks: frozenset[str] = frozenset()
    """Interfaces that are up and have a default route; never `lo` or a VRF."""
    inner: frozenset[str] = frozenset()
    """Interfaces that are up and lead to no large part of the world; never `lo`, a VRF, or what belongs to another."""
    outer_ports: frozenset[str] = frozenset()
    """Ports of bridges that are hardware, or a VLAN, bond or team of it."""
    inner_ports: frozenset[str] = frozenset()
    """All other ports of bridges: containers, virtual machines, tunnels."""
    local: frozenset[str] = frozenset()
    """Networks that this host has an address in, on an interface that is up."""
    vast: frozenset[str] = frozenset()
    """Those of them that are no neighbourhood: shorter than /8 (IPv4) or /32 (IPv6). A netmask comes from a DHCP or VPN
    server as well, and `@local` must not become half of the world by its word."""


def survey(links: Iterable[Link], addresses: Iterable[Address], defaults: Iterable[Default]) -> Network:
    """Tell uplinks, inner interfaces, the two kinds of bridge ports and local networks apart.

    An interface whose name would have to be quoted in an nft script is in no set.

    A VRF is neither uplink nor inner, and its ports are not inner: the forward hook sees everything that enters any of
    its ports, the guests' too, as entering the VRF itself (drivers/net/vrf.c, vrf_ip_rcv), so that the name tells
    nothing. What a VRF forwards to a blocked port is stopped.
    """
    known = {link.index: link for link in links}
    routes = list(defaults)
    world = {index for route in routes if route.whole for index in route.links}
    large = {index for route in routes for index in route.links}
    usable = [link for link in known.values() if link.index != _LOOPBACK and _NAME.fullmatch(link.name)]
    plain = [link for link in usable if link.up and link.kind != "vrf"]
    bridges = {link.index for link in known.values() if link.kind == "bridge"}
    ports = {link.index: link.name for link in usable if link.master in bridges}
    hardware = _hardware(known)
    near = {found.network for found in addresses if found.index in known and known[found.index].up}
    vast = {network for network in near if int(network.partition("/")[2] or 128) < (32 if ":" in network else 8)}
    return Network(
        uplinks=frozenset(link.name for link in plain if link.index in world),
        inner=frozenset(link.name for link in plain if link.index not in large and not link.master),
        outer_ports=frozenset(name for index, name in ports.items() if index in hardware),
        inner_ports=frozenset(name for index, name in ports.items() if index not in hardware),
        local=frozenset(near - vast),
        vast=frozenset(vast),
    )


def _hardware(links: dict[int, Link]) -> set[int]:
    """Give the indexes of what is hardware, or stands on nothing else: a VLAN on it, a bond of it, a VLAN on that."""
    found = {link.index for link in links.values() if not link.kind}
    below: dict[int, set[int]] = {link.index: {link.lower} for link in links.values() if link.kind == "vlan"}
    for link in links.values():
        if (master := links.get(link.master)) and master.kind in _BONDS:
            below.setdefault(master.index, set()).add(link.index)
    while more := {index for index, lower in below.items() if lower <= found and index not in found}:
        found |= more
    return found
