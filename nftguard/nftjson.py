"""The kernel's JSON reply to the live Table; every nft version's quirks live here. Pure.

The schema is libnftables-json(5). Whatever this module does not know becomes `Foreign` or a `foreign` mark, which no
desired table has, so that it shows as drift: a reply is never guessed at.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nftguard.model import FAMILY, Base, Chain, Counter, DynamicSet, Key, Map, Rule, Set, Table, Verdict, family
from nftguard.nftexpr import ELEMENT, names, rule, verdict
from nftguard.ports import Ports

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
Json = Any  # a reply's shape is found out by matching, branch by branch


_KEY_TYPE: dict[Key, list[Json]] = {
    Key.FLOW4: [["ipv4_addr", "inet_service", "ipv4_addr", "inet_service"]],
    Key.FLOW6: [["ipv6_addr", "inet_service", "ipv6_addr", "inet_service"]],
    Key.USER: ["uid"],
    Key.SOURCE4: ["ipv4_addr"],
    Key.SOURCE6: ["ipv6_addr"],
    Key.FAMILY: ["nf_proto"],
    Key.ETHERNET: ["ether_type"],
    # as nft 1.0.6 lists it, and as 1.1.3 does
    Key.ATTEMPT: [["cgroupsv2", "inet_service", "integer"], {"typeof": ELEMENT[Key.ATTEMPT]}],
}


class MalformedError(ValueError):
    """The reply is not what libnftables-json(5) describes."""


def parse(reply: str, of: str = FAMILY) -> Table:
    """Read the reply to `list table FAMILY nftguard`, which may be terse: elements are then missing.

    Raises MalformedError when it is no such reply at all.
    """
    return _read(reply, lambda things: _table(things, of))


def parse_map(reply: str) -> Map:
    """Read the reply to `list map inet nftguard NAME`. Raises MalformedError."""
    return _read(reply, lambda things: next(_map(entry["map"]) for entry in things if "map" in entry))


def parse_counters(reply: str) -> dict[str, Counter]:
    """Read the reply to `list counters table inet nftguard`. Raises MalformedError."""

    def read(things: Json) -> dict[str, Counter]:
        counters = [_counter(entry["counter"]) for entry in things if "counter" in entry]
        return {counter.name: counter for counter in counters}

    return _read(reply, read)


def _read(reply: str, reader: Callable[[Json], _T]) -> _T:
    try:
        return reader(json.loads(reply)["nftables"])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, StopIteration) as error:
        raise MalformedError(f"{type(error).__name__}: {error}; the reply begins {reply[:200]!r}") from None


def _counter(thing: Json) -> Counter:
    return Counter(thing["name"], int(thing["packets"]), int(thing["bytes"]))


def _table(things: Json, of: str) -> Table:
    chains: dict[str, Chain] = {}
    rules: dict[str, list[Rule]] = {}
    maps: dict[str, Map] = {}
    sets: dict[str, DynamicSet | Set] = {}
    counters: dict[str, Counter] = {}
    present = False
    foreign: set[str] = set()
    for entry in things:
        ((kind, thing),) = entry.items()
        if kind in {"chain", "map", "set", "counter"} and family(thing["name"]) != of:
            foreign.add(f"{kind} {thing['name']} in a table of the family {of}")
            continue
        match kind:
            case "metainfo":
                pass
            case "table":
                present = True  # its flags are asked for elsewhere: nft 1.0.6 lists garbage for them
            case "chain":
                chains[thing["name"]] = Chain(thing["name"], base=_base(thing))
            case "rule" if family(thing["chain"]) != of:
                pass  # of a chain that was named
            case "rule":
                rules.setdefault(thing["chain"], []).append(rule(thing["expr"]))
            case "map":
                maps[thing["name"]] = _map(thing)
            case "set":
                sets[thing["name"]] = _set(thing)
            case "counter":
                counters[thing["name"]] = _counter(thing)
            case _:
                foreign.add(f"{kind} {thing['name']}")
    if not present:
        raise MalformedError("no table in it")
    for name, listed in rules.items():
        chains[name] = Chain(name, tuple(listed), chains[name].base)
    return Table(chains, maps, sets, counters, foreign=frozenset(foreign))


def _base(thing: Json) -> Base | None:
    # {"chain": {"name": "output", "type": "filter", "hook": "output", "prio": 0, "policy": "accept"}}
    if "hook" not in thing:
        return None
    return Base(thing["hook"], int(thing["prio"]), thing.get("policy", "accept"), thing["type"])


def _map(thing: Json) -> Map:
    # {"map": {"name": "output.tcp", "type": "inet_service", "map": "verdict", "flags": ["interval"],
    #          "elem": [[25, {"goto": {"target": "mail.output.tcp"}}], [{"range": [1024, 65535]}, ...]]}}
    odd = [f"type {thing['type']}"] if thing["type"] != "inet_service" else []
    value: Literal["verdict", "counter"] = "counter" if thing["map"] == "counter" else "verdict"
    odd += [f"value {thing['map']}"] if thing["map"] not in {"verdict", "counter"} else []
    flags = set(names(thing.get("flags")))
    odd += sorted(f"flag {flag}" for flag in flags - {"interval"})
    odd += [key for key in ("timeout", "gc-interval", "size", "auto-merge") if thing.get(key)]
    elements: dict[Ports, Verdict | str] = {}
    for element in thing.get("elem", []):
        try:
            key, goal = element
            elements[_ports(key)] = goal if isinstance(goal, str) else verdict(goal)
        except (KeyError, TypeError, ValueError):
            odd.append(f"element {json.dumps(element)[:80]}")
    return Map(thing["name"], value, elements, "interval" in flags, "; ".join(odd))


def _ports(key: Json) -> Ports:
    match key:
        case int(port):
            return Ports(port, port)
        case {"range": [int(first), int(last)]}:
            return Ports(first, last)
        case {"prefix": {"addr": int(first), "len": int(length)}}:  # how a range that is a power of two may be listed
            return Ports(first, first + (1 << 16 - length) - 1)
        case "*":
            return Ports(0, 65535)
    raise ValueError(key)


def _set(thing: Json) -> DynamicSet | Set:
    # nft 1.0.6 does not list the flag dynamic; but only those sets have a size, and a timeout for each element.
    return _dynamic_set(thing) if thing.get("size") or thing.get("timeout") else _members(thing)


def _members(thing: Json) -> Set:
    # {"set": {"name": "mail.to4", "type": "ipv4_addr", "flags": ["interval"]}}
    # {"set": {"name": "allowed.output.users", "type": ["inet_proto", "inet_service", "uid"], "flags": ["timeout"]}}
    # The elements are asked for elsewhere.
    types = (thing["type"],) if isinstance(thing["type"], str) else tuple(map(str, thing["type"]))
    flags = set(names(thing.get("flags")))
    odd = [f"flags {sorted(flags)}"] if flags - {"interval", "timeout"} else []
    odd += [key for key in ("gc-interval", "auto-merge", "comment") if thing.get(key)]
    made = Set(thing["name"], types, timed="timeout" in flags)
    odd += ["flag interval"] if ("interval" in flags) is not made.interval else []
    return replace(made, foreign="; ".join(odd))


def _dynamic_set(thing: Json) -> DynamicSet:
    # {"set": {"name": "flows4", "type": ["ipv4_addr", "inet_service", "ipv4_addr", "inet_service"],
    #          "size": 4096, "flags": ["timeout"], "timeout": 60}}
    # The elements are the kernel's and are not looked at.
    key = next((key for key, types in _KEY_TYPE.items() if thing["type"] in types), None)
    odd = [] if key else [f"type {thing['type']}"]
    flags = set(names(thing.get("flags"))) - {"dynamic"}
    odd += [f"flags {sorted(flags)}"] if flags != {"timeout"} else []
    timeout, size = thing.get("timeout", 0), thing.get("size", 0)
    return DynamicSet(thing["name"], key or Key.FLOW4, int(size), int(timeout), "; ".join(odd))
