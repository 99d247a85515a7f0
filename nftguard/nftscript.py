"""A Plan as an nft script: the one text that `plan` shows, libnftables is given and the boot script holds. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nftguard.model import (
    FAMILY,
    OWNED,
    TABLE,
    Base,
    Chain,
    Count,
    Counter,
    DynamicSet,
    Foreign,
    Initial,
    Key,
    Limit,
    Log,
    Map,
    Protocol,
    Reject,
    Statement,
    Update,
    Verdict,
    Vmap,
)
from nftguard.plan import (
    Add,
    AddElements,
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
    from collections.abc import Mapping

    from nftguard.ports import Ports

# A set's key type, and the expression that gives its elements. nft 1.0.6 lists `level` as 0, whatever it was.
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
    Key.ATTEMPT: (
        "typeof socket cgroupv2 level 1 . th sport . @th,32,32",
        "socket cgroupv2 level {level} . th sport . @th,32,32",
    ),
}
_INITIAL = {
    # tcp(7): SYN without ACK; FIN and RST would make it none (RFC 9293, 3.5)
    Protocol.TCP: ("tcp flags & (fin | syn | rst | ack) == syn", "tcp flags & (fin | syn | rst | ack) != syn"),
    Protocol.SCTP: ("sctp chunk init exists", "sctp chunk init missing"),
    Protocol.DCCP: ("dccp type request", "dccp type != request"),
}


def script(plan: Plan) -> str:
    """Render the whole plan, one command a line; libnftables makes one transaction of it."""
    return "".join(f"{_step(step)}\n" for step in plan.steps)


def _step(step: Step) -> str:
    table = f"{FAMILY} {TABLE}"
    match step:
        case AddTable(flags):
            # create, not add: a table that another writer made in the meantime must not be mixed with ours.
            return f"create table {table}{_flags(flags)}"
        case Adopt():
            return f"add table {table}{_flags(OWNED)}"
        case DeleteTable():
            return f"delete table {table}"
        case Add(thing):
            return f"add {_declaration(thing)}"
        case Delete(kind, name):
            return f"delete {kind} {table} {name}"
        case Flush(kind, name):
            return f"flush {kind} {table} {name}"
        case AddRule(chain, rule):
            return f"add rule {table} {chain} {' '.join(map(_statement, rule))}"
        case AddElements(name, elements):
            return f"add element {table} {name} {{ {_elements(elements)} }}"
        case DeleteElements(name, keys):
            return f"delete element {table} {name} {{ {', '.join(map(str, keys))} }}"


def _flags(flags: frozenset[str]) -> str:
    return f" {{ flags {', '.join(sorted(flags))}; }}" if flags else ""


def _declaration(thing: Chain | Map | DynamicSet | Counter) -> str:
    table = f"{FAMILY} {TABLE}"
    match thing:
        case Chain(name=name, base=None):
            return f"chain {table} {name}"
        case Chain(name=name, base=Base() as base):
            return (
                f"chain {table} {name} "
                f"{{ type {base.type} hook {base.hook} priority {base.priority}; policy {base.policy}; }}"
            )
        case Map(name=name, value=value, interval=interval):
            return f"map {table} {name} {{ type inet_service : {value};{' flags interval;' if interval else ''} }}"
        case DynamicSet(name, key, size, timeout):
            return f"set {table} {name} {{ {_KEY[key][0]}; size {size}; flags dynamic, timeout; timeout {timeout}s; }}"
        case Counter(name, packets, count):
            return f"counter {table} {name}" + (f" {{ packets {packets} bytes {count} }}" if packets else "")
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
