"""What changed outside: events of the ruleset, links, addresses and default routes, as reasons to look.

An event carries no state: it only wakes the reconcile, and tells who did it.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from nftguard.model import TABLE
from nftguard.names import clean
from nftguard.wire import netlink, rtnl

_BATCH = 512  # datagrams read at a time, so that a storm of events never keeps the loop from its watchdog

# linux/include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
_NFNLGRP_NFTABLES = 7
_NFT_MSG_NEWGEN = 15
_NFTA_TABLE = 1  # the table's name is attribute 1 of every message about a table, chain, rule, set, element or object
_NFTA_GEN_PROC_PID, _NFTA_GEN_PROC_NAME = 2, 3

# linux/include/uapi/linux/rtnetlink.h: RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE, _NEXTHOP
_RTNL_GROUPS = (1, 5, 7, 9, 11, 32)
_RTM_ROUTE = (24, 25)  # RTM_NEWROUTE, RTM_DELROUTE

_RULESET_BUFFER = 8 << 20  # replacing one table of 1,000 rules overflows the default of 208 KiB
_NETWORK_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction that named our table. `pid` is the kernel's id of the thread that made it; 0: not known."""

    at: float  # seconds on the monotonic clock, when it was seen
    pid: int = 0
    command: str = ""


class RulesetWatch:
    """Transactions of any program that touch our table. Raises OSError where the kernel has no nf_tables."""

    def __init__(self) -> None:
        self.socket = netlink.open_socket(netlink.NETLINK_NETFILTER, _RULESET_BUFFER, _NFNLGRP_NFTABLES)
        self._touched = False
        self.overruns = 0
        """How often the kernel had more to say than there was room for."""

    def read(self) -> list[Change]:
        """Read what waits: a Change for each transaction, and one by nobody known when events were lost."""
        found, lost = netlink.receive(self.socket, _BATCH)
        self.overruns += lost
        changes = [change for data in found for change in self._changes(data)]
        return [*changes, Change(time.monotonic())] if lost else changes

    def _changes(self, data: bytes) -> list[Change]:
        changes: list[Change] = []
        for kind, body in netlink.messages(data):
            if kind >> 8 != netlink.NFNL_SUBSYS_NFTABLES:
                continue
            if kind & 0xFF != _NFT_MSG_NEWGEN:
                self._touched = self._touched or _names_ours(body)
            elif self._touched:  # NEWGEN ends a transaction
                self._touched = False
                changes.append(_change(body))
        return changes


def _names_ours(body: bytes) -> bool:
    if body[:1] not in {bytes([netlink.NFPROTO_INET]), bytes([netlink.NFPROTO_BRIDGE])}:
        return False
    name = next((value for kind, value in netlink.attributes(body, netlink.NFGENMSG) if kind == _NFTA_TABLE), b"")
    return name.rstrip(b"\0") == TABLE.encode()


def _change(body: bytes) -> Change:
    found = dict(netlink.attributes(body, netlink.NFGENMSG))
    pid = found.get(_NFTA_GEN_PROC_PID, b"")
    command = found.get(_NFTA_GEN_PROC_NAME, b"").rstrip(b"\0")
    return Change(time.monotonic(), struct.unpack("!I", pid)[0] if len(pid) == 4 else 0, clean(command))


class NetworkWatch:
    """Links, addresses, default routes and the nexthop objects that these may go by. Raises OSError."""

    def __init__(self) -> None:
        self.socket = netlink.open_socket(netlink.NETLINK_ROUTE, _NETWORK_BUFFER, *_RTNL_GROUPS)
        self.overruns = 0

    def read(self) -> bool:
        """Read what waits, and tell whether something happened that may matter."""
        found, lost = netlink.receive(self.socket, _BATCH)
        self.overruns += lost
        return lost or any(_matters(kind, body) for data in found for kind, body in netlink.messages(data))


def _matters(kind: int, body: bytes) -> bool:
    """Routes matter when they lead to a large part of the world, of whichever type: one may replace another unsaid."""
    return kind not in _RTM_ROUTE or rtnl.is_short(body)
