"""What the rules do not reach on this host, as far as it can be seen from here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nftguard.model import Hook
from nftguard.policy import base_chain
from nftguard.wire import netlink, rtnl
from nftguard.wording import many

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nftguard.model import Table
    from nftguard.network import Link

PROC = Path("/proc")

_TRIES = 5  # a list that is not there would take a warning back, and the next one would give it anew
_GUESTS = {"macvlan", "macvtap", "ipvlan", "ipvtap"}
_TUNNELS = {
    *("wireguard", "tun", "ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "ip6gretap", "vxlan", "geneve"),
    *("vti", "vti6", "xfrm", "l2tp", "ppp"),
}


def open_ways(table: Table, proc: Path = PROC, links: Sequence[Link] | None = None) -> list[str]:
    """Name the ways of others through this host that a block could have a hook for, and none has; as `unreached`.

    It costs two small files and, without the hook bridge, one listing of the links.
    """
    lines = []
    if base_chain(Hook.FORWARD) not in table.chains and (routed := _routed(proc)):
        lines.append(f"what this host routes for others ({' and '.join(routed)}): no block has the hook forward")
    if base_chain(Hook.BRIDGE) not in table.chains:
        found = _links() if links is None else links
        masters = {link.master for link in found}  # a bridge without ports, as docker0 often is, carries nothing
        if bridges := _named([link for link in found if link.index in masters], {"bridge"}):
            lines.append(f"what goes from port to port of a bridge ({bridges}): no block has the hook bridge")
    return lines


def unreached(table: Table, proc: Path = PROC, links: Sequence[Link] | None = None) -> list[str]:
    """Name what applies here, each in one line: for a table, and, where they are not given, this host's links."""
    found = _links() if links is None else links
    lines, routed, forwards = open_ways(table, proc, found), _routed(proc), base_chain(Hook.FORWARD) in table.chains
    # With connection tracking, fragments are put together before they are looked at.
    if "IPv6" in routed and forwards and not (proc / "sys/net/netfilter/nf_conntrack_frag6_timeout").exists():
        lines.append(
            "routed IPv6 fragments whose first one is too short to hold the ports: most systems refuse them (RFC 7112)"
        )
    if guests := _named(found, _GUESTS):
        lines.append(f"guests on macvlan and ipvlan interfaces ({guests}): what they send meets none of these rules")
    if count := _namespaces(proc):
        lines.append(
            f"{many(count, 'other network namespace')} with a network, of containers for instance: "
            + ("what they send is blocked where this host routes it" if forwards else "what they send is not blocked")
        )
    if tunnels := _named([link for link in found if link.up], _TUNNELS):
        lines.append(f"what others wrap into tunnels ({tunnels}): of a wrapped packet only the outside is seen")
    if sockets := max(0, len(_read(proc / "net/packet").splitlines()) - 1):
        lines.append(f"what is sent through {many(sockets, 'packet socket')} that root opened: it goes past all rules")
    return lines


def _routed(proc: Path) -> list[str]:
    """Name the IP versions that this host routes for others."""
    switches = {"IPv4": "ipv4/ip_forward", "IPv6": "ipv6/conf/all/forwarding"}
    return [name for name, path in switches.items() if _read(proc / "sys/net" / path) not in {"", "0"}]


def _links() -> list[Link]:
    for _ in range(_TRIES):
        try:
            with netlink.open_socket(netlink.NETLINK_ROUTE, 1 << 20) as sock:
                return rtnl.links(sock)
        except InterruptedError:  # one came or went in the middle
            continue
        except OSError:
            break
    return []


def _named(links: Sequence[Link], kinds: set[str]) -> str:
    return ", ".join(sorted(link.name for link in links if link.kind in kinds))


def _namespaces(proc: Path) -> int:
    """Count the network namespaces of other processes in which there is an address or a route besides loopback."""
    members: dict[int, Path] = {}
    for folder in proc.iterdir():
        try:
            if folder.name.isdigit():
                members.setdefault((folder / "ns/net").stat().st_ino, folder / "net")
        except OSError:  # it has ended
            continue
    try:
        members.pop((proc / "self/ns/net").stat().st_ino, None)
    except OSError:
        return 0
    return sum(_connected(folder) for folder in members.values())


def _connected(net: Path) -> bool:
    routes = _read(net / "route").splitlines()[1:]
    addresses = _read(net / "if_inet6").splitlines()
    return bool(routes) or any(not line.endswith(" lo") for line in addresses)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
