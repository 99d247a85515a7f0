"""What was translated, as the text of a configuration. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nftguard.migrate.rules import Kind, Rule
from nftguard.model import Hook, Protocol
from nftguard.names import clean
from nftguard.ports import Ports, merge, without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nftguard.migrate.translate import Part, Translation

WIDTH = 110
_KEYS = {
    Kind.USER: "users",
    Kind.GROUP: "groups",
    Kind.TO: "to",
    Kind.FROM: "from",
    Kind.OUT: "interfaces",
    Kind.IN: "interfaces",
}
_ALLOW = ("users", "groups", "to", "from", "interfaces")
Allow = tuple[tuple[str, tuple[str, ...]], ...]
"""Keys of `allow` with their values, both in the order in which they are written."""


@dataclass(slots=True)
class Block:
    """One `[[block]]` to be written."""

    ports: tuple[Ports, ...]
    protocols: tuple[Protocol, ...]
    hooks: tuple[Hook, ...]
    reject: bool
    new: bool
    allow: Allow
    rules: set[Rule] = field(default_factory=set)


def gather(parts: Iterable[Part]) -> list[Block]:
    """Join what differs in nothing but its ports, then what differs in nothing but its protocol, or its hook."""
    found: dict[tuple[Hook, Protocol, bool, bool, Allow], tuple[list[Ports], set[Rule]]] = {}
    for part in parts:
        values: defaultdict[str, set[str]] = defaultdict(set)
        for fact in part.facts:
            if fact.kind in _KEYS:
                values[_KEYS[fact.kind]].update(fact.values)
        allow = tuple((key, tuple(sorted(values[key], key=_order))) for key in _ALLOW if key in values)
        new = any(fact.kind is Kind.OPENED for fact in part.facts)
        key = (part.hook, part.protocol, part.rule.target == "REJECT", new, allow)
        ports, rules = found.setdefault(key, ([], set()))
        ports.append(part.ports)
        rules.add(part.rule)
    by_protocol: dict[tuple[object, ...], Block] = {}
    for (hook, protocol, reject, new, allow), (listed, rules) in found.items():
        joined = tuple(merge(listed, touching=True))
        block = by_protocol.setdefault(
            (joined, hook, reject, new, allow), Block(joined, (), (hook,), reject, new, allow)
        )
        block.protocols += (protocol,)
        block.rules |= rules
    hooked: dict[tuple[object, ...], Block] = {}
    for block in by_protocol.values():
        if same := hooked.get(which := (block.ports, block.protocols, block.reject, block.new, block.allow)):
            same.hooks += block.hooks
            same.rules |= block.rules
        else:
            hooked[which] = block
    return sorted(hooked.values(), key=lambda block: (min(rule.line for rule in block.rules), block.ports))


def _order(value: str) -> tuple[int, int, str]:
    try:
        network = ipaddress.ip_network(value)
    except ValueError:
        return (9, int(value) if value.isdecimal() else 0, value)
    return (network.version, int(network.network_address), value)


def toml(blocks: Sequence[Block], head: Iterable[str], found: Translation, named: Callable[[str, str], str]) -> str:
    """Write the configuration. `named` gives the name of a user or group ("users", "1000") where it has one.

    `head` are lines of a comment at its beginning.
    """
    lines = [f"# {clean(line, 200)}" for line in head]
    names = {"bridge"}  # which is refused as a name
    for block in blocks:
        lines += ["", f"# {_stems(block.rules)}", "[[block]]", f'name = "{_name(block, names)}"']
        lines += _ports(block.ports)
        if block.protocols != (Protocol.TCP,):
            lines.append(_list("protocols", block.protocols))
        lines.append(_list("hooks", block.hooks))
        if block.reject:
            lines.append('action = "reject"  # tcp is answered with a reset, others with "administratively prohibited"')
        if block.new:
            lines.append('connections = "new"  # told by the packet that opens one, without connection tracking')
        if block.allow:
            allow = [(key, sorted({named(key, value) for value in values}, key=_order)) for key, values in block.allow]
            lines.append(f"allow = {{ {', '.join(_list(key, values) for key, values in allow)} }}")
    return "\n".join([*lines, *_log(found), ""])


def _stems(rules: Iterable[Rule]) -> str:
    lines = sorted({rule.line for rule in rules})
    if len(lines) <= 6:
        return f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines))}"
    return f"{len(lines)} rules from line {lines[0]} to {lines[-1]}"


def _name(block: Block, taken: set[str]) -> str:
    comments = {rule.comment for rule in block.rules}
    base = ""
    if len(comments) == 1:
        base = re.sub(r"[^A-Za-z0-9_]+", "-", comments.pop()).lstrip("-_0123456789")[:24].rstrip("-_")
    base = base or "-".join(block.hooks)
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    taken.add(name)
    return name


def _ports(ports: Sequence[Ports]) -> list[str]:
    if sum(span.size for span in ports) <= 32768:
        return [_list("ports", _written(ports))]
    gaps = without(Ports(1, 65535), ports)
    return [_list("ports", ["1-65535"]), *([_list("except_ports", _written(gaps))] if gaps else [])]


def _written(ports: Iterable[Ports]) -> list[str | int]:
    written: list[str | int] = []
    for span in ports:
        written += range(span.first, span.last + 1) if span.size <= 4 else [str(span)]
    return written


def _list(key: str, values: Iterable[str | int]) -> str:
    words = [str(value) if isinstance(value, int) else json.dumps(str(value)) for value in values]
    line = f"{key} = [{', '.join(words)}]"
    if len(line) <= WIDTH:
        return line
    rows = [""]
    for word in words:
        if rows[-1] and len(rows[-1]) + len(word) + 6 > WIDTH:
            rows.append("")
        rows[-1] += f"{' ' if rows[-1] else '    '}{word},"
    return "\n".join([f"{key} = [", *rows, "]"])


def _log(found: Translation) -> list[str]:
    """Say how the lines of the old LOG rules are kept, where there were any."""
    written = {rule.prefix: template(rule) for rule in found.seen if rule.prefix}
    if not written:
        return []
    first, templates = min(written, key=lambda prefix: (len(prefix), prefix)), sorted(set(written.values()))
    lines = [
        f"The old rules wrote to the kernel log, with the prefix {clean(first)!r}{' and others' * (len(written) > 1)}.",
        "nftguard tells of attempts by itself (nftguard report), without that. If something waits for those lines,",
        "a filter of rsyslog's for one, this writes them as before:",
    ]
    lines += ["[log]", 'target = "kernel"', *(f"prefix = {json.dumps(text)}" for text in templates[:5])]
    if len(templates) > 1:
        lines.append("one of these prefixes for all: {port}, {protocol}, {hook} and {block} stand for what was blocked")
    return ["", *(f"# {clean(line, 200)}" for line in lines)]


def template(rule: Rule) -> str:
    """Give the prefix of a LOG rule as `[log] prefix` takes it, {port} in place of the one port it logs."""
    text = re.sub(r'["\\$]|[^\x20-\x7e]', "_", rule.prefix).replace("{", "{{").replace("}", "}}")
    if len(rule.ports) == 1 and rule.ports[0].size == 1:
        return re.sub(rf"(?<!\d){rule.ports[0]}(?!\d)", "{port}", text)
    return text
