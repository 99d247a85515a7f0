"""One rule of the kernel's JSON reply to its statements. Pure.

The schema is libnftables-json(5). Whatever this module does not know becomes `Foreign`, so that it shows as drift.
"""

from __future__ import annotations

import json
from typing import Any

from nftguard.model import (
    Count,
    Foreign,
    HasUser,
    Initial,
    Key,
    Limit,
    Log,
    Match,
    Protocol,
    Reject,
    Rule,
    Statement,
    Underway,
    Update,
    Verdict,
    Vmap,
)

Json = Any  # a reply's shape is found out by matching, branch by branch

_IMPLIED = [[{"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": tcp}] for tcp in ("tcp", 6)]


def _field(protocol: str, name: str) -> Json:
    return {"payload": {"protocol": protocol, "field": name}}


def _flow(family: str) -> Json:
    return {"concat": [_field(family, "saddr"), _field("th", "sport"), _field(family, "daddr"), _field("th", "dport")]}


_BITS = {"payload": {"base": "th", "offset": 32, "len": 32}}
ELEMENT: dict[Key, Json] = {
    Key.FLOW4: _flow("ip"),
    Key.FLOW6: _flow("ip6"),
    Key.USER: {"meta": {"key": "skuid"}},
    Key.SOURCE4: _field("ip", "saddr"),
    Key.SOURCE6: {"&": [_field("ip6", "saddr"), "ffff:ffff:ffff:ffff::"]},
    Key.FAMILY: {"meta": {"key": "nfproto"}},
    Key.ETHERNET: {"meta": {"key": "protocol"}},
    Key.GROUP: {"meta": {"key": "skgid"}},
    Key.UNIT: {"socket": {"key": "cgroupv2"}},
    Key.TO4: _field("ip", "daddr"),
    Key.TO6: _field("ip6", "daddr"),
    Key.FROM6: _field("ip6", "saddr"),
    Key.ENTERS: {"meta": {"key": "iifname"}},
    Key.LEAVES: {"meta": {"key": "oifname"}},
    Key.PROTOCOL: {"meta": {"key": "l4proto"}},
    Key.PORT: _field("th", "dport"),
    Key.ATTEMPT: {"concat": [{"socket": {"key": "cgroupv2"}}, _field("th", "sport"), _BITS]},
}


# IPv4 origins and sources are the same expression: a dynamic set's key is the one, and that of an exception the other.
_LOOKED_UP = {
    json.dumps(ELEMENT[key], sort_keys=True): key
    for key in (
        Key.USER, Key.GROUP, Key.UNIT, Key.TO4, Key.TO6, Key.FROM6, Key.ENTERS, Key.LEAVES, Key.PROTOCOL, Key.PORT
    )
} | {json.dumps(ELEMENT[Key.SOURCE4], sort_keys=True): Key.FROM4}  # fmt: skip


def rule(parts: Json) -> Rule:
    """Read a rule: the list of its statements, in order."""
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
        case {"set": {"op": "update", "elem": element, "set": str(name), **rest}}:
            return Update(_key(element), _reference(name), _limit(rest))
        case {"log": {"prefix": str(prefix), **rest}}:
            return _log(prefix, rest)
        case {"reject": {"type": "tcp reset", **rest}} if not rest:
            return Reject("tcp reset")
        case {"reject": {"type": "icmpx", "expr": "admin-prohibited", **rest}} if not rest:
            return Reject("icmpx admin-prohibited")
    return verdict(part)


def _dport(key: Json) -> Protocol:
    match key:
        case {"payload": {"protocol": str(protocol), "field": "dport"}}:
            return Protocol(protocol)
    raise ValueError(key)


def _reference(name: str) -> str:
    if not name.startswith("@"):
        raise ValueError(name)
    return name[1:]


def _match(match: Json) -> Initial | Match | HasUser | Underway:
    # {"match": {"op": "==", "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}},
    #                                       ["fin", "syn", "rst", "ack"]]}, "right": "syn"}}
    # {"match": {"op": "==", "left": {"sctp chunk": {"name": "init"}}, "right": true}}
    # {"match": {"op": "!=", "left": {"payload": {"protocol": "dccp", "field": "type"}}, "right": "request"}}
    # {"match": {"op": "==", "left": {"concat": [{"meta": {"key": "l4proto"}}, ...]}, "right": "@allowed.output.users"}}
    op, left, right = match["op"], match["left"], match["right"]
    if isinstance(right, str) and right.startswith("@") and op == "==":
        parts = left["concat"] if set(left) == {"concat"} else [left]
        return Match(tuple(_LOOKED_UP[json.dumps(part, sort_keys=True)] for part in parts), right[1:])
    if (op, left, right) == (">=", ELEMENT[Key.USER], 0):
        return HasUser()
    if op not in {"==", "!="}:
        raise ValueError(op)
    match left:
        case {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, mask]} if (
            _flags(mask) == ["syn"] and op == "!="
        ):
            if right == "syn":
                return Underway()
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


def _key(element: Json) -> Key:
    for key, known in ELEMENT.items():
        if element == known:
            return key
    raise ValueError(element)


def _limit(rest: Json) -> Limit | None:
    # {"stmt": [{"limit": {"rate": 1000, "burst": 1000, "per": "second", "inv": true}}]}
    if not rest:
        return None
    match rest:
        case {"stmt": [{"limit": limit}], **more} if not more and limit.get("rate_unit", "packets") == "packets":
            return Limit(int(limit["rate"]), limit["per"], int(limit.get("burst", 1)), bool(limit.get("inv")))
    raise ValueError(rest)


def _log(prefix: str, rest: Json) -> Log:
    # {"log": {"prefix": "mail", "group": 25}} or {"log": {"prefix": "...", "level": "info", "flags": "skuid"}}
    if set(rest) == {"group"}:
        return Log(prefix, int(rest["group"]))
    if rest.get("level") == "info" and names(rest.get("flags")) == ["skuid"] and set(rest) == {"level", "flags"}:
        return Log(prefix, None)
    raise ValueError(rest)


def verdict(goal: Json) -> Verdict:
    """Read a verdict. Raises ValueError when it is none."""
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


def names(value: Json) -> list[str]:
    """A single flag is a string in some places and versions (of a log, in 1.0.6) and a list in others."""
    return [] if value is None else [str(value)] if isinstance(value, str) else [str(name) for name in value]
