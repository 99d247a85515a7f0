"""Exceptions: what of a block's `allow`, and of allowances given at run time, stands in rules and sets. Pure.

set mail.users, mail.to4, ...       the members of a block's lists; a change of one touches no rule
chain mail.output.tcp               first the exceptions, each a rule that returns: it leaves this block only
set uplinks, inner                  interfaces: what comes in by an uplink and goes to the inside passes forward
chain allowed.output                allowances at run time; accepts, since they hold for every block
set allowed.output.users, ...       their members, each with its protocol and port, and with the time it has left
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from nftguard import addresses, values
from nftguard.model import BRIDGE, HasUser, Hook, Key, Match, Protocol, Rule, Set, Underway, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nftguard.config import Allow, Block, Config
    from nftguard.host import Host


class _Kind(NamedTuple):
    type: str
    key: Key


KINDS = {
    "interfaces": _Kind("ifname", Key.LEAVES),
    "to4": _Kind("ipv4_addr", Key.TO4),
    "to6": _Kind("ipv6_addr", Key.TO6),
    "from4": _Kind("ipv4_addr", Key.FROM4),
    "from6": _Kind("ipv6_addr", Key.FROM6),
    "units": _Kind("cgroupsv2", Key.UNIT),
    "groups": _Kind("gid", Key.GROUP),
    "users": _Kind("uid", Key.USER),
    "ports": _Kind("", Key.PORT),  # of allowances only: whoever sends
}
_SENDERS = ("units", "groups", "users")  # known of what this host itself sends
_LEVELS = range(8, 0, -1)  # how deep below the root a unit may be: in a container with systemd inside it is five
_PORT = (Key.PROTOCOL, Key.PORT)
_RETURN, _ACCEPT = Verdict("return"), Verdict("accept")


class Allowance(NamedTuple):
    """What an administrator let through for a while, of one port, whatever block names it."""

    hook: Hook
    protocol: Protocol
    port: int
    kind: str
    """One of KINDS but `interfaces`."""
    value: str
    """A user, group or unit by its name, an address or prefix; empty for the kind `ports`."""
    left: int
    """Seconds."""


def _set(block: str, hook: Hook, kind: str) -> str:
    return f"{block}.{BRIDGE}.{kind}" if hook is Hook.BRIDGE else f"{block}.{kind}"


def _lists(allow: Allow) -> dict[str, tuple[str, ...]]:
    """Give what each kind of set lists, as it stands in the configuration."""
    return {
        "interfaces": allow.interfaces,
        "to4": allow.to,
        "to6": allow.to,
        "from4": allow.from_,
        "from6": allow.from_,
        "units": allow.units,
        "groups": allow.groups,
        "users": allow.users,
    }


def _kinds(block: Block, hook: Hook, cgroups: bool) -> list[str]:
    """List the kinds of exceptions that the block makes on a hook."""
    found = [kind for kind, listed in _lists(block.allow).items() if listed]
    if hook is not Hook.OUTPUT:
        return [kind for kind in found if kind not in _SENDERS]
    return found if cgroups else [kind for kind in found if kind != "units"]


def sets(block: Block, hook: Hook, cgroups: bool) -> list[Set]:
    """Declare the sets that the block's exceptions on a hook need; `cgroups`: control groups can be told."""
    found = [Set(_set(block.name, hook, kind), (KINDS[kind].type,)) for kind in _kinds(block, hook, cgroups)]
    if hook in {Hook.FORWARD, Hook.BRIDGE}:
        found += [Set(_way(hook, end), ("ifname",)) for end in ("uplinks", "inner")]
    return found


def _way(hook: Hook, end: str) -> str:
    return f"{BRIDGE}.{end}" if hook is Hook.BRIDGE else end


def rules(block: Block, hook: Hook, protocol: Protocol, cgroups: bool, blocked: str) -> list[Rule]:
    """Build what comes first in a block's chain; `blocked` is the chain of what is no exception, where it is needed.

    A socket that is closed with data left to send has no owner any more (seen: an allowed sender got a third of its
    bytes through). So where senders are allowed, TCP without a sender passes too, if it has no part in opening a
    connection: that was let through when it was opened. Answers to a SYN have none either, where a SYN cookie or a full
    backlog makes the kernel give them for itself; let through, they would complete a connection of anybody's.
    """
    found: list[Rule] = []
    if hook in {Hook.FORWARD, Hook.BRIDGE}:
        ends = (Match((Key.ENTERS,), _way(hook, "uplinks")), Match((Key.LEAVES,), _way(hook, "inner")))
        found.append((*ends, _RETURN))
    kinds = _kinds(block, hook, cgroups)
    for kind in kinds:
        key = Key.ENTERS if kind == "interfaces" and hook is Hook.INPUT else KINDS[kind].key
        found += _matches((key,), _set(block.name, hook, kind), _RETURN)
    if protocol is Protocol.TCP and any(kind in _SENDERS for kind in kinds):
        found.append((HasUser(), Verdict("goto", blocked)))
        found.append((Underway(), _RETURN))
        found.append((Verdict("goto", blocked),))
    return found


def _matches(keys: tuple[Key, ...], name: str, verdict: Verdict) -> list[Rule]:
    levels = _LEVELS if Key.UNIT in keys else range(1)
    return [(Match(keys, name, level), verdict) for level in levels]


def chain(hook: Hook) -> str:
    """Name the chain of a hook's allowances."""
    return f"allowed.{hook}"


def given(hook: Hook, kinds: Iterable[str]) -> tuple[list[Set], list[Rule]]:
    """Declare the sets that allowances of these kinds on a hook need, and build the rules of their chain."""
    there = [kind for kind in KINDS if kind in kinds]
    senders = any(kind in _SENDERS for kind in there)
    types = ("inet_proto", "inet_service")
    declared = [
        Set(f"{chain(hook)}.{kind}", (*types, KINDS[kind].type) if kind != "ports" else types, timed=True)
        for kind in there
    ]
    built = [
        rule
        for kind in there
        for rule in _matches((*_PORT, KINDS[kind].key) if kind != "ports" else _PORT, f"{chain(hook)}.{kind}", _ACCEPT)
    ]
    if senders:
        closing = f"{chain(hook)}.closing"
        declared.append(Set(closing, types, timed=True))
        built.append((HasUser(), _RETURN))
        built.append((Match(_PORT, closing), Underway(), _ACCEPT))
    return declared, built


def fill(declared: Mapping[str, Set], config: Config, host: Host, allowances: Iterable[Allowance]) -> dict[str, Set]:
    """Fill the sets that are declared with what the names stand for on this host."""
    members: dict[str, dict[str, str]] = {}  # name, element, how it is written
    network = host.network
    ways = {
        "uplinks": network.uplinks,
        "inner": network.inner,
        f"{BRIDGE}.uplinks": network.outer_ports,
        f"{BRIDGE}.inner": network.inner_ports,
    }
    members |= {name: _members("interfaces", links, host) for name, links in ways.items()}
    for block in config.block:
        for kind, listed in _lists(block.allow).items():
            for name in {_set(block.name, hook, kind) for hook in Hook} & set(declared):
                members[name] = _members(kind, listed, host)
    ends = _ends(allowances, host)
    filled: dict[str, Set] = {}
    for name, made in declared.items():
        written, left = members.get(name, {}), {}
        for element, (how, seconds) in ends.get(name, {}).items():
            written[element], left[element] = f"{how} timeout {seconds}s", seconds
        filled[name] = replace(made, elements=frozenset(written), written=written, left=left)
    return filled


def _ends(allowances: Iterable[Allowance], host: Host) -> dict[str, dict[str, tuple[str, int]]]:
    """Give for each set of allowances its elements: how each is written, and the seconds that it has left.

    Where several say the same, or networks overlap, which the kernel refuses, the longest counts.
    """
    found: dict[str, dict[str, tuple[str, int]]] = {}
    near: dict[tuple[str, str], list[tuple[str, int]]] = {}  # set and port to places, each with its seconds

    def put(name: str, element: str, how: str, left: int) -> None:
        if left > found.setdefault(name, {}).get(element, ("", 0))[1]:
            found[name][element] = how, left

    for one in allowances:
        name, port = f"{chain(one.hook)}.{one.kind}", f"{one.protocol} . {one.port}"
        if one.kind == "ports":
            put(name, port, port, one.left)
        elif one.kind in _SENDERS:
            for element, how in _members(one.kind, (one.value,), host).items():
                put(name, f"{port} . {element}", f"{port} . {how}", one.left)
            put(f"{chain(one.hook)}.closing", port, port, one.left)
        else:
            near.setdefault((name, port), []).extend((place, one.left) for place in _places((one.value,), host))
    for (name, port), places in near.items():
        for element, left in addresses.lasting(places, 4 if name.endswith("4") else 6).items():
            put(name, f"{port} . {element}", f"{port} . {element}", left)
    return found


def _members(kind: str, listed: Iterable[str], host: Host) -> dict[str, str]:
    """Look names up: to elements, and how each is written. What is not known is left out, and so not let through."""
    match kind:
        case "users" | "groups":
            known = host.users if kind == "users" else host.groups
            numbers = {
                word if word.isdigit() else str(known[word]) for word in listed if word.isdigit() or word in known
            }
            return {number: number for number in numbers}
        case "units":
            return {number: f'"{path}"' for unit in listed for number, path in host.units.get(unit, {}).items()}
        case "interfaces":
            stems = {word[:-1] for word in listed if word.endswith("*")}
            # The kernel refuses elements that overlap.
            single = {word for word in listed if not any(word.startswith(stem) for stem in stems)}
            stems = {stem for stem in stems if not any(stem != other and stem.startswith(other) for other in stems)}
            return {word: f'"{word}"' for word in single | {f"{stem}*" for stem in stems}}
    return {element: element for element in addresses.elements(_places(listed, host), 4 if kind.endswith("4") else 6)}


def _places(listed: Iterable[str], host: Host) -> set[str]:
    """Look addresses up: what is a name or `@local` as what it stands for."""
    places: set[str] = set()
    for word in listed:
        if word == values.LOCAL:
            places |= host.network.local
        elif values.is_host(word):
            places |= host.names.get(word, frozenset())
        else:
            places.add(word)
    return places
