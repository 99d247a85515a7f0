"""The kernel's JSON reply to the live Table. Pure; every nft version's quirks live here.

The schema is libnftables-json(5). Whatever this module does not know becomes `Foreign` or a `foreign` mark, which no
desired table has, so that it shows as drift: a reply is never guessed at.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from nftguard.model import (
    Base,
    Chain,
    Count,
    Counter,
    FlowLimit,
    FlowSet,
    Foreign,
    Initial,
    IpFamily,
    Log,
    Map,
    Protocol,
    Reject,
    Rule,
    Statement,
    Table,
    Verdict,
    Vmap,
)
from nftguard.ports import Ports

Json = Any  # a reply's shape is found out by matching, branch by branch

_FLOW_KEY = {
    IpFamily.IPV4: ["ipv4_addr", "inet_service", "ipv4_addr", "inet_service"],
    IpFamily.IPV6: ["ipv6_addr", "inet_service", "ipv6_addr", "inet_service"],
}
_IMPLIED = [[{"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": tcp}] for tcp in ("tcp", 6)]


class MalformedError(ValueError):
    """The reply is not what libnftables-json(5) describes."""


def parse(reply: str) -> Table:
    """Read the reply to `list table inet nftguard`.

    Raises MalformedError when it is no such reply at all.
    """
    try:
        things = json.loads(reply)["nftables"]
        return _table(things)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise MalformedError(f"{type(error).__name__}: {error}; the reply begins {reply[:200]!r}") from None


def parse_counters(reply: str) -> dict[str, Counter]:
    """Read the reply to `list counters table inet nftguard`. Raises MalformedError."""
    try:
        entries = [entry["counter"] for entry in json.loads(reply)["nftables"] if "counter" in entry]
        return {thing["name"]: _counter(thing) for thing in entries}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MalformedError(f"{type(error).__name__}: {error}; the reply begins {reply[:200]!r}") from None


def _counter(thing: Json) -> Counter:
    return Counter(thing["name"], int(thing["packets"]), int(thing["bytes"]))


def _table(things: Json) -> Table:
    chains: dict[str, Chain] = {}
    rules: dict[str, list[Rule]] = {}
    maps: dict[str, Map] = {}
    sets: dict[str, FlowSet] = {}
    counters: dict[str, Counter] = {}
    present = False
    foreign: set[str] = set()
    for entry in things:
        ((kind, thing),) = entry.items()
        match kind:
            case "metainfo":
                pass
            case "table":
                present = True  # its flags are asked for elsewhere: nft 1.0.6 lists garbage for them
            case "chain":
                chains[thing["name"]] = Chain(thing["name"], base=_base(thing))
            case "rule":
                rules.setdefault(thing["chain"], []).append(_rule(thing["expr"]))
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


def _names(value: Json) -> list[str]:
    """A single flag is a string in some places and versions (of a log, in 1.0.6) and a list in others."""
    return [] if value is None else [str(value)] if isinstance(value, str) else [str(name) for name in value]


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
    flags = set(_names(thing.get("flags")))
    odd += sorted(f"flag {flag}" for flag in flags - {"interval"})
    odd += [key for key in ("timeout", "gc-interval", "size", "auto-merge") if thing.get(key)]
    elements: dict[Ports, Verdict | str] = {}
    for element in thing.get("elem", []):
        try:
            key, goal = element
            elements[_ports(key)] = goal if isinstance(goal, str) else _verdict(goal)
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


def _verdict(goal: Json) -> Verdict:
    match goal:
        case {"accept": None}:
            return Verdict("accept")
        case {"drop": None}:
            return Verdict("drop")
        case {"return": None}:
            return Verdict("return")
        case {"jump": {"target": str(target)}}:
            return Verdict("jump", target)
        case {"goto": {"target": str(target)}}:
            return Verdict("goto", target)
    raise ValueError(goal)


def _set(thing: Json) -> FlowSet:
    # {"set": {"name": "flows4", "type": ["ipv4_addr", "inet_service", "ipv4_addr", "inet_service"],
    #          "size": 4096, "flags": ["timeout"], "timeout": 60, "elem": [...]}}
    # nft 1.0.6 does not list the flag dynamic; the elements are the kernel's and are not looked at.
    family = next((family for family, key in _FLOW_KEY.items() if key == thing["type"]), None)
    odd = [] if family else [f"type {thing['type']}"]
    flags = set(_names(thing.get("flags"))) - {"dynamic"}
    odd += [f"flags {sorted(flags)}"] if flags != {"timeout"} else []
    timeout, size = thing.get("timeout", 0), thing.get("size", 0)
    return FlowSet(thing["name"], family or IpFamily.IPV4, int(size), int(timeout), "; ".join(odd))


def _rule(parts: Json) -> Rule:
    # A `reject with tcp reset` comes back with the protocol match that it implies in front of it.
    if [part.get("match") for part in parts[-2:-1]] in _IMPLIED and parts[-1] == {"reject": {"type": "tcp reset"}}:
        parts = [*parts[:-2], parts[-1]]
    return tuple(_statement(part) for part in parts)


def _statement(part: Json) -> Statement:
    try:
        return _known(part)
    except (KeyError, TypeError, ValueError):
        return Foreign(json.dumps(part)[:200])


def _known(part: Json) -> Statement:
    match part:
        case {"vmap": {"key": key, "data": str(name)}}:
            return Vmap(_dport(key), _reference(name))
        case {"counter": {"map": {"key": key, "data": str(name)}}}:
            return Count(_dport(key), _reference(name))
        case {"match": match}:
            return _match(match)
        case {"set": {"op": "update", "elem": {"concat": key}, "set": str(name), "stmt": [{"limit": limit}]}}:
            return _flow_limit(key, name, limit)
        case {"log": {"prefix": str(prefix), **rest}}:
            return _log(prefix, rest)
        case {"reject": {"type": "tcp reset", **rest}} if not rest:
            return Reject("tcp reset")
        case {"reject": {"type": "icmpx", "expr": "admin-prohibited", **rest}} if not rest:
            return Reject("icmpx admin-prohibited")
    return _verdict(part)


def _dport(key: Json) -> Protocol:
    match key:
        case {"payload": {"protocol": str(protocol), "field": "dport"}}:
            return Protocol(protocol)
    raise ValueError(key)


def _reference(name: str) -> str:
    if not name.startswith("@"):
        raise ValueError(name)
    return name[1:]


def _match(match: Json) -> Initial:
    # {"match": {"op": "==", "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}},
    #                                       ["fin", "syn", "rst", "ack"]]}, "right": "syn"}}
    # {"match": {"op": "==", "left": {"sctp chunk": {"name": "init"}}, "right": true}}
    # {"match": {"op": "!=", "left": {"payload": {"protocol": "dccp", "field": "type"}}, "right": "request"}}
    op, left, right = match["op"], match["left"], match["right"]
    if op not in {"==", "!="}:
        raise ValueError(op)
    match left:
        case {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, mask]} if (
            sorted(_flags(mask)) == ["ack", "fin", "rst", "syn"] and right == "syn"
        ):
            return Initial(Protocol.TCP, is_not=op == "!=")
        case {"sctp chunk": {"name": "init", **rest}} if not rest and isinstance(right, bool):
            return Initial(Protocol.SCTP, is_not=right is (op == "!="))
        case {"payload": {"protocol": "dccp", "field": "type"}} if right == "request":
            return Initial(Protocol.DCCP, is_not=op == "!=")
    raise ValueError(match)


def _flags(mask: Json) -> list[str]:
    """Newer versions list a mask as {"|": [...]}, nested in pairs or flat; 1.0.6 as a list."""
    if isinstance(mask, dict):
        return [flag for side in mask["|"] for flag in _flags(side)]
    if isinstance(mask, list):
        return [flag for side in mask for flag in _flags(side)]
    return [str(mask)]


def _flow_limit(key: Json, name: str, limit: Json) -> FlowLimit:
    # {"set": {"op": "update", "elem": {"concat": [saddr, sport, daddr, dport]}, "set": "@flows4",
    #          "stmt": [{"limit": {"rate": 1, "burst": 1, "per": "minute"}}]}}
    for family in IpFamily:
        wanted = [(family, "saddr"), ("th", "sport"), (family, "daddr"), ("th", "dport")]
        if [(part["payload"]["protocol"], part["payload"]["field"]) for part in key] == wanted:
            if limit.get("burst", 1) != 1 or limit.get("inv"):
                break
            if limit.get("rate_unit", "packets") != "packets":
                break
            return FlowLimit(family, _reference(name), int(limit["rate"]), limit["per"])
    raise ValueError(key)


def _log(prefix: str, rest: Json) -> Log:
    # {"log": {"prefix": "mail", "group": 25}} or {"log": {"prefix": "...", "level": "info", "flags": "skuid"}}
    if set(rest) == {"group"}:
        return Log(prefix, int(rest["group"]))
    if rest.get("level") == "info" and _names(rest.get("flags")) == ["skuid"] and set(rest) == {"level", "flags"}:
        return Log(prefix, None)
    raise ValueError(rest)
