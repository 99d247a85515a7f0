"""A Plan as an nft script: the one text that `plan` shows, libnftables is given and the boot script holds. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nftguard.look import Role
from nftguard.model import (
    OWNED,
    TABLE,
    Base,
    Chain,
    Count,
    Counter,
    DynamicSet,
    Foreign,
    HasUser,
    Initial,
    Key,
    Limit,
    Log,
    Map,
    Match,
    Protocol,
    Reject,
    Set,
    Statement,
    Underway,
    Update,
    Verdict,
    Vmap,
    family,
)
from nftguard.plan import (
    Add,
    AddElements,
    AddMembers,
    AddRule,
    AddTable,
    Adopt,
    Delete,
    DeleteElements,
    DeleteTable,
    Flush,
    Plan,
    Step,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nftguard.look import Look
    from nftguard.model import Rule
    from nftguard.ports import Ports

# A dynamic set's key type, and the expression that gives its elements. nft 1.0.6 lists `level` as 0, whatever it was.
_KEY = {
    Key.FLOW4: (
        "type ipv4_addr . inet_service . ipv4_addr . inet_service",
        "ip saddr . th sport . ip daddr . th dport",
    ),
    Key.FLOW6: (
        "type ipv6_addr . inet_service . ipv6_addr . inet_service",
        "ip6 saddr . th sport . ip6 daddr . th dport",
    ),
    Key.USER: ("type uid", "meta skuid"),
    Key.SOURCE4: ("type ipv4_addr", "ip saddr"),
    Key.SOURCE6: ("type ipv6_addr", "ip6 saddr & ffff:ffff:ffff:ffff::"),
    Key.FAMILY: ("type nf_proto", "meta nfproto"),
    Key.ETHERNET: ("type ether_type", "meta protocol"),
    Key.ATTEMPT: (
        "typeof socket cgroupv2 level 1 . th sport . @th,32,32",
        "socket cgroupv2 level {level} . th sport . @th,32,32",
    ),
}
_LOOKED_UP = {
    Key.USER: "meta skuid",
    Key.GROUP: "meta skgid",
    Key.UNIT: "socket cgroupv2 level {level}",
    Key.TO4: "ip daddr",
    Key.TO6: "ip6 daddr",
    Key.FROM4: "ip saddr",
    Key.FROM6: "ip6 saddr",
    Key.ENTERS: "iifname",
    Key.LEAVES: "oifname",
    Key.PROTOCOL: "meta l4proto",
    Key.PORT: "th dport",
}
"""The expressions of sets whose elements are ours."""
_INITIAL = {
    # tcp(7): SYN without ACK; FIN and RST would make it none (RFC 9293, 3.5)
    Protocol.TCP: ("tcp flags & (fin | syn | rst | ack) == syn", "tcp flags & (fin | syn | rst | ack) != syn"),
    Protocol.SCTP: ("sctp chunk init exists", "sctp chunk init missing"),
    Protocol.DCCP: ("dccp type request", "dccp type != request"),
}


_REMOVING = ("delete ", "flush ")


def script(plan: Plan, name: str = TABLE) -> str:
    """Render the whole plan for a table of this name, one command a line; libnftables makes one transaction of it."""
    return lines(plan.steps + plan.late, name)


def shown(found: Iterable[str], text: str, look: Look) -> list[str]:
    """Draw a script for people, which folded is a script all the same; `found`: what it mends, above it as comments."""
    told = []
    for difference in found:
        told += [line if line.startswith("#") else f"#{line[1:]}" for line in look.fold(f"# {difference}")]
    for line in text.splitlines():
        role = Role.REMOVED if line.startswith(_REMOVING) else Role.ADDED
        told += [look.paint(part, role) for part in look.fold_script(line)]
    return told


def lines(steps: Iterable[Step], name: str = TABLE) -> str:
    """Render some of a plan's steps."""
    return "".join(f"{_step(step, name)}\n" for step in steps)


def rule_text(rule: Rule) -> str:
    """Write what a rule says, without where it stands."""
    return " ".join(map(_statement, rule))


def _step(step: Step, table: str) -> str:
    match step:
        case AddTable(flags, of):
            # create, not add: a table that another writer made in the meantime must not be mixed with ours.
            return f"create table {of} {table}{_flags(flags)}"
        case Adopt(of):
            return f"add table {of} {table}{_flags(OWNED)}"
        case DeleteTable(of):
            return f"delete table {of} {table}"
        case Add(thing):
            return f"add {_declaration(thing, table)}"
        case Delete(kind, name):
            return f"delete {kind} {_at(name, table)}"
        case Flush(kind, name):
            return f"flush {kind} {_at(name, table)}"
        case AddRule(chain, rule):
            return f"add rule {_at(chain, table)} {rule_text(rule)}"
        case AddElements(name, elements):
            return f"add element {_at(name, table)} {{ {_elements(elements)} }}"
        case AddMembers(name, members):
            return f"add element {_at(name, table)} {{ {', '.join(members.values())} }}"
        case DeleteElements(name, keys):
            return f"delete element {_at(name, table)} {{ {', '.join(map(str, keys))} }}"


def _at(name: str, table: str) -> str:
    return f"{family(name)} {table} {name}"


def _flags(flags: frozenset[str]) -> str:
    return f" {{ flags {', '.join(sorted(flags))}; }}" if flags else ""


def _declaration(thing: Chain | Map | DynamicSet | Set | Counter, table: str) -> str:
    at = _at(thing.name, table)
    match thing:
        case Chain(base=None):
            return f"chain {at}"
        case Chain(base=Base() as base):
            return f"chain {at} {{ type {base.type} hook {base.hook} priority {base.priority}; policy {base.policy}; }}"
        case Map(value=value, interval=interval):
            return f"map {at} {{ type inet_service : {value};{' flags interval;' if interval else ''} }}"
        case DynamicSet(_, key, size, timeout):
            return f"set {at} {{ {_KEY[key][0]}; size {size}; flags dynamic, timeout; timeout {timeout}s; }}"
        case Set(types=types, interval=interval, timed=timed):
            flags = ", ".join(["interval"] * interval + ["timeout"] * timed)
            return f"set {at} {{ type {' . '.join(types)};{f' flags {flags};' if flags else ''} }}"
        case Counter(_, packets, count):
            return f"counter {at}" + (f" {{ packets {packets} bytes {count} }}" if packets else "")
    raise AssertionError(thing)


def _statement(statement: Statement) -> str:
    match statement:
        case Verdict(kind, target):
            return f"{kind} {target}" if target else kind
        case Vmap(protocol, name):
            return f"{protocol} dport vmap @{name}"
        case Count(protocol, name):
            return f"counter name {protocol} dport map @{name}"
        case Initial(protocol, is_not):
            return _INITIAL[protocol][is_not]
        case Update(key, name, limit, level):
            return f"update @{name} {{ {_KEY[key][1].format(level=level)}{_limit(limit) if limit else ''} }}"
        case Match(keys, name, level):
            return f"{' . '.join(_LOOKED_UP[key] for key in keys)} @{name}".format(level=level)
        case HasUser():
            return "meta skuid >= 0"
        case Underway():
            return "tcp flags & syn != syn"
        case Log(prefix, None):
            return f'log prefix "{prefix}" level info flags skuid'
        case Log(prefix, group):
            return f'log prefix "{prefix}" group {group}'
        case Reject(kind):
            return f"reject with {kind}"
        case Foreign(text):
            raise AssertionError(f"nftguard never writes what it does not know: {text}")


def _limit(limit: Limit) -> str:
    return f" limit rate {'over ' * limit.over}{limit.rate}/{limit.unit} burst {limit.burst} packets"


def _elements(elements: Mapping[Ports, Verdict | str]) -> str:
    return ", ".join(
        f"{ports} : {_statement(goal) if isinstance(goal, Verdict) else f'{chr(34)}{goal}{chr(34)}'}"
        for ports, goal in elements.items()
    )
