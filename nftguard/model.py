"""What a table holds, as frozen values: the same whether they were built from a configuration or read back. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nftguard.ports import Ports

FAMILY, BRIDGE = "inet", "bridge"
TABLE = "nftguard"
"""The name of the table, and of the one beside it in the bridge family where bridged guests are blocked too."""


def family(name: str) -> str:
    """Give the family of the table that holds an object: of the bridge family are those with that word in their name.

    Names of objects are words with dots in between; no block may be called `bridge`.
    """
    return BRIDGE if BRIDGE in name.split(".") else FAMILY


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
    BRIDGE = "bridge"
    """From one port of a bridge to another: the kernel calls it forward, and only a table of that family sees it."""


class Protocol(StrEnum):
    """A transport protocol with ports, by the name that nft gives it."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"
    DCCP = "dccp"

    @property
    def number(self) -> int:
        """Give the number that a packet carries (IANA, Protocol Numbers)."""
        return {"tcp": 6, "udp": 17, "sctp": 132, "dccp": 33}[self]


class Action(StrEnum):
    """What happens to a blocked packet."""

    DROP = "drop"
    REJECT = "reject"


class Key(StrEnum):
    """What of a packet is looked up in a set."""

    FLOW4 = "IPv4 flow"
    FLOW6 = "IPv6 flow"
    USER = "user"
    SOURCE4 = "IPv4 source"
    SOURCE6 = "IPv6 source network"
    FAMILY = "address family"
    ETHERNET = "Ethernet protocol"
    """The same in the bridge family."""
    ATTEMPT = "attempt"
    """The control group of the socket, the source port, and the 32 bits at offset 4 of the transport header: of a TCP
    SYN those are the initial sequence number, which its repeats share, and another attempt from the same port not."""
    GROUP = "group"
    UNIT = "control group"
    TO4 = "IPv4 destination"
    TO6 = "IPv6 destination"
    FROM4 = "IPv4 origin"
    FROM6 = "IPv6 origin"
    ENTERS = "interface it comes in by"
    LEAVES = "interface it goes out by"
    PROTOCOL = "protocol"
    PORT = "destination port"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`accept`, `drop`, `return`, or a `jump` or `goto` to the chain `target`."""

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
class Match:
    """Match a packet that the set `name` holds, by these keys; `level` as for Update."""

    keys: tuple[Key, ...]
    name: str
    level: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class HasUser:
    """Match a packet whose socket still has a user: one that was closed with data left to send has none."""


@dataclass(frozen=True, slots=True)
class Underway:
    """Match a TCP segment of a connection that is open already, or was: neither a SYN nor the answer to one."""


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


Statement = Verdict | Vmap | Count | Initial | Update | Match | HasUser | Underway | Log | Reject | Foreign
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
class Set:
    """What exceptions list: the elements are ours, as nft lists them (`104`, `10.0.0.0/8`, `tcp . 587 . 104`)."""

    name: str
    types: tuple[str, ...]
    """As nft names them: `("uid",)`, `("inet_proto", "inet_service", "ipv4_addr")`."""
    elements: frozenset[str] = frozenset()
    timed: bool = False
    """Whether elements end by themselves."""
    foreign: str = ""
    written: Mapping[str, str] = field(default_factory=dict, compare=False)
    """How elements are written, where that is not how they are listed: with quotes, a timeout, a path for an id."""
    left: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Seconds after which an element ends, of a timed set."""

    @property
    def interval(self) -> bool:
        """Whether an element may stand for many values."""
        return not {"ipv4_addr", "ipv6_addr", "ifname"}.isdisjoint(self.types)

    @property
    def groups(self) -> bool:
        """Whether it holds control groups: listed as ids, and written as paths."""
        return "cgroupsv2" in self.types


@dataclass(frozen=True, slots=True)
class Counter:
    """A named counter."""

    name: str
    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """All that is ours, each kind of object by its name; `family` says in which of the two tables it is."""

    chains: Mapping[str, Chain] = field(default_factory=dict)
    maps: Mapping[str, Map] = field(default_factory=dict)
    sets: Mapping[str, DynamicSet | Set] = field(default_factory=dict)
    counters: Mapping[str, Counter] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    families: frozenset[str] = frozenset({FAMILY})
    foreign: frozenset[str] = frozenset()  # objects of kinds that nftguard never makes, as "flowtable ft"
