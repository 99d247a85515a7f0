"""What a table holds, as frozen values: the same ones whether they were built from a configuration or read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nftguard.ports import Ports

FAMILY = "inet"
TABLE = "nftguard"

OWNED = frozenset({"owner", "persist"})
"""The flags of a table that only its owner may change, and that outlives it (nft 1.1.0, Linux 6.9)."""

ORPHAN = frozenset({"persist"})
"""The flags that such a table has left when its owner's socket is closed: anybody may change or adopt it."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a kernel, and its nft, can do for us."""

    flags: frozenset[str] = frozenset()
    """The flags that a table can be given: those of OWNED, or none."""
    cgroups: bool = True
    """Whether the control group of a socket can be noted (Linux 5.13 and its module nft_socket)."""


PLAIN = Features()
"""What every kernel that nftguard supports can do."""


class Hook(StrEnum):
    """Where in the kernel's path of a packet a block applies."""

    OUTPUT = "output"
    FORWARD = "forward"
    INPUT = "input"


class Protocol(StrEnum):
    """A transport protocol with ports, by the name that nft gives it."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"
    DCCP = "dccp"


class Action(StrEnum):
    """What happens to a blocked packet."""

    DROP = "drop"
    REJECT = "reject"


class Key(StrEnum):
    """What a dynamic set remembers packets by."""

    FLOW4 = "IPv4 flow"
    FLOW6 = "IPv6 flow"
    USER = "user"
    SOURCE4 = "IPv4 source"
    SOURCE6 = "IPv6 source network"
    FAMILY = "address family"
    ATTEMPT = "attempt"
    """The control group of the socket, the source port, and the 32 bits at offset 4 of the transport header: of a TCP
    SYN those are the initial sequence number, which its repeats share, and another attempt from the same port not."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`drop`, `return`, or a `jump` or `goto` to the chain `target`."""

    kind: Literal["accept", "drop", "return", "jump", "goto"]
    target: str = ""


@dataclass(frozen=True, slots=True)
class Vmap:
    """Look the packet's destination port up in the verdict map `name`."""

    protocol: Protocol
    name: str


@dataclass(frozen=True, slots=True)
class Count:
    """Count the packet in the counter that the counter map `name` holds for its destination port."""

    protocol: Protocol
    name: str


@dataclass(frozen=True, slots=True)
class Initial:
    """Match a packet that opens a connection (a bare TCP SYN, an SCTP INIT, a DCCP REQUEST); `is_not`: any other."""

    protocol: Protocol
    is_not: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """`rate` packets per `unit` and `burst` at once; it matches what stays under it or, with `over`, what does not."""

    rate: int
    unit: str
    burst: int = 1
    over: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """Remember the packet in the dynamic set `name`, and match it, as long as there is room and the limit matches.

    `level` says how deep below the root of the control groups to look; a packet whose socket has none there does not
    match. nft lists it wrongly or not at all (1.0.6, 1.1.3), so that it is not compared.
    """

    key: Key
    name: str
    limit: Limit | None = None
    level: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Log:
    """Log the packet: to the NFLOG group, or to the kernel log where `group` is None."""

    prefix: str
    group: int | None


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse the packet so that its sender notices at once."""

    kind: Literal["tcp reset", "icmpx admin-prohibited"]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A statement that nftguard does not write: equal to nothing that it wants."""

    text: str


Statement = Verdict | Vmap | Count | Initial | Update | Log | Reject | Foreign
Rule = tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Base:
    """What makes a chain a base chain: the kernel calls it at `hook`, in the order of `priority`."""

    hook: str
    priority: int = 0
    policy: str = "accept"
    type: str = "filter"


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules that are tried in order."""

    name: str
    rules: tuple[Rule, ...] = ()
    base: Base | None = None


@dataclass(frozen=True, slots=True)
class Map:
    """Destination ports to a verdict each, or to the name of a counter each."""

    name: str
    value: Literal["verdict", "counter"]
    elements: Mapping[Ports, Verdict | str] = field(default_factory=dict)
    interval: bool = False
    foreign: str = ""  # what of its declaration or elements nftguard would never write


@dataclass(frozen=True, slots=True)
class DynamicSet:
    """A set that packets fill. Its elements are the kernel's, never compared."""

    name: str
    key: Key
    size: int
    timeout: int  # seconds
    foreign: str = ""


@dataclass(frozen=True, slots=True)
class Counter:
    """A named counter."""

    name: str
    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A whole table, each kind of object by its name."""

    chains: Mapping[str, Chain] = field(default_factory=dict)
    maps: Mapping[str, Map] = field(default_factory=dict)
    sets: Mapping[str, DynamicSet] = field(default_factory=dict)
    counters: Mapping[str, Counter] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()  # objects of kinds that nftguard never makes, as "flowtable ft"
