"""What becomes of a packet, and why, in words and as a document. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nftguard import allow, values
from nftguard.look import PIPE, Look, Role
from nftguard.model import Hook, Initial, Key, Reject, Set
from nftguard.names import clean, shown
from nftguard.wording import endpoint, lasting, many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nftguard.config import Block
    from nftguard.host import Host
    from nftguard.model import Table
    from nftguard.packet import Packet
    from nftguard.trace import Hit, Step, Trace

    Named = Callable[[Key, str], str]
    """Gives what a part of an element is called: the user's name for `104`; empty where it has no other name."""

_MOST = 8  # exceptions of one list that are named; of 5,000 addresses nobody reads the rest
_WORDS = {
    Key.USER: "sent by user",
    Key.GROUP: "sent by group",
    Key.UNIT: "sent by control group",
    Key.TO4: "going to",
    Key.TO6: "going to",
    Key.FROM4: "coming from",
    Key.FROM6: "coming from",
    Key.ENTERS: "coming in by",
    Key.LEAVES: "going out by",
    Key.PORT: "going to port",
}
VERDICTS = {True: "passes", False: "blocked", None: "unknown"}
_ROLES = {True: Role.GOOD, False: Role.BAD, None: Role.DOUBT}
_INWARD = "it comes in by an uplink, for an inner interface"
_HOURS = 7200  # seconds; from here on nobody needs the minutes
_OTHERS = "rules of other programs are not looked at"


def render(trace: Trace, packet: Packet, table: Table, named: Named, notes: list[str], look: Look = PIPE) -> list[str]:
    """Tell it to people: the verdict first, then each block that was asked."""
    what = _told(packet, named)
    if trace.passes is None:
        lines = [f"unknown: what becomes of {what} cannot be said: {trace.reason}"]
    elif trace.passes:
        lines = [f"passes: {what}: {trace.reason or _passing(trace, packet, table)}"]
    else:
        last = trace.steps[-1]
        lines = [f"blocked: {what} would be {_done(last)} by {_by(last)}"]
    for step in trace.steps:
        stops = trace.passes is False and step is trace.steps[-1]
        does = f"{_by(step)} {'stops it' if stops else 'lets it pass'}"
        if _is_allowance(step):
            does = _allowed(step, table)
        elif _inward(step):
            does += f", since {_INWARD}"
        lines += f"  {does}: {_why(step, table, named)}".split("\n")
    if trace.unless:
        lines.append(f"  it would get past {_by(trace.unless[-1])} if it were")
        lines += [f"    {' and '.join(_hit(hit, named) for hit in step.hits)}" for step in trace.unless]
    lines += [*(f"note: {note}" for note in notes), _OTHERS]
    folded = [part for line in lines for part in look.fold(line, 4)]
    return look.lead(folded, VERDICTS[trace.passes], _ROLES[trace.passes])


def _told(packet: Packet, named: Named) -> str:
    text = f"{packet.protocol} {endpoint(packet.destination, packet.port)}"
    if packet.uid is not None:
        text += f" from user {named(Key.USER, str(packet.uid)) or packet.uid}"
    elif packet.gid is not None:
        text += f" from group {named(Key.GROUP, str(packet.gid)) or packet.gid}"
    text += "" if packet.opens else " of an open connection"
    return text if packet.hook is Hook.OUTPUT else f"{text} on {packet.hook}"


def _passing(trace: Trace, packet: Packet, table: Table) -> str:
    """Say what lets it pass: of a block it may be another thing than an exception that it makes."""
    if not trace.steps:
        return f"no block names {packet.protocol} port {packet.port} on {packet.hook}"
    last = trace.steps[-1]
    if _is_allowance(last):  # it overrides every block
        return _allowed(last, table)
    if all(map(_inward, trace.steps)):
        return _INWARD
    if len(trace.steps) > 1:
        return f"{many(len(trace.steps), 'block')} name the port, and each lets it pass"
    if not last.rule:
        return f"nothing in {_by(last)} stops it"
    if any(isinstance(statement, Initial) for statement in last.rule):
        return f"{_by(last)} stops only what opens a connection"
    return f"{_by(last)} names the port, and makes an exception"


def _is_allowance(step: Step) -> bool:
    return step.chain in {allow.chain(hook) for hook in Hook}


def _inward(step: Step) -> bool:
    """Whether it passes since it goes from an uplink to the inside, which no block stops."""
    return [hit.keys for hit in step.hits] == [(Key.ENTERS,), (Key.LEAVES,)]


def _allowed(step: Step, table: Table) -> str:
    left = max((_left(hit, table) for hit in step.hits), default=0)
    return f"nftguard allow lets it pass{_for(left)}"


def _left(hit: Hit, table: Table) -> int:
    """Give the seconds for which an element that was found holds; 0: without end."""
    found = table.sets[hit.name]
    return found.left.get(hit.elements[0], 0) if hit.known and isinstance(found, Set) else 0


def _for(left: int) -> str:
    if not left:
        return ""
    return f", for another {lasting(left) if left >= _HOURS else f'{left // 60} min {left % 60} s'}"


def _by(step: Step) -> str:
    return f"block {step.block}" if step.block else f"chain {step.chain}"


def _done(step: Step) -> str:
    return "rejected" if step.rule and isinstance(step.rule[-1], Reject) else "dropped"


def _why(step: Step, table: Table, named: Named) -> str:
    if not step.rule:
        base = table.chains[step.chain].base
        return f"the policy of chain {step.chain}" if base else f"nothing in chain {step.chain} stops it"
    parts = [f"in chain {step.chain}", *(_hit(hit, named) for hit in step.hits)]
    if step.counter:
        parts.append(f"counter {step.counter}, {many(table.counters[step.counter].packets, 'packet')} so far")
    return f"{step.text}\n    {'; '.join(parts)}"


def _hit(hit: Hit, named: Named) -> str:
    """Name the elements: `sent by user 104 (postfix) or 33 (www-data), in set mail.users`."""
    key = hit.keys[-1]
    listed = [element.split(" . ")[-1] for element in hit.elements[:_MOST]]
    told = [f"{clean(part)} ({name})" if (name := named(key, part)) else clean(part) for part in listed]
    word = _WORDS[key]
    if key is Key.UNIT and (units := [named(key, part) for part in listed]) and all(units):
        word, told = "sent by", units  # the number of its control group is another at every start
    more = f" or {len(hit.elements) - _MOST:,} more" if len(hit.elements) > _MOST else ""
    return f"{word} {' or '.join(told)}{more}, in set {hit.name}"


def idle(block: Block, host: Host, packet: Packet) -> list[str]:
    """Name what a block allows and this host does not have now, so that no set lists it: in one note, or none.

    What is known of the packet is not asked for: where its user is, no other user matters.
    """
    found = list(dict.fromkeys(_idle(block, host, packet)))
    more = f" and {len(found) - _MOST:,} more" if len(found) > _MOST else ""
    return [f"block {block.name} also allows {', '.join(found[:_MOST])}{more}"] if found else []


def _idle(block: Block, host: Host, packet: Packet) -> Iterator[str]:
    listed = block.allow
    if packet.hook is Hook.OUTPUT:
        if packet.groups is None:
            yield from (f"{clean(unit)} (not running)" for unit in listed.units if not host.units.get(unit))
        for known, words, ids, what in (
            (packet.gid, listed.groups, host.groups, "group in /etc/group"),
            (packet.uid, listed.users, host.users, "user in /etc/passwd"),
        ):
            if known is None:
                yield from (f"{shown(word)} (no {what})" for word in words if not word.isdigit() and word not in ids)
    for place in listed.places:
        if values.is_host(place) and not host.names.get(place):
            yield f"{place} (no address)"


def document(trace: Trace, packet: Packet, table: Table, named: Named, notes: list[str]) -> dict[str, Any]:
    """Build the document of `--json`; what is not known is null."""
    return {
        "verdict": VERDICTS[trace.passes],
        "reason": trace.reason,
        "packet": {
            "hook": packet.hook.value,
            "protocol": packet.protocol.value,
            "destination": packet.destination,
            "port": packet.port,
            "source": packet.source,
            "opens": packet.opens,
            "uid": packet.uid,
            "gid": packet.gid,
            "cgroups": None if packet.groups is None else list(packet.groups),
            "in": packet.inbound,
            "out": packet.outbound,
        },
        "asked": [_step(step, table, named) for step in trace.steps],
        "unless": [_step(step, table, named) for step in trace.unless],
        "notes": notes,
    }


def _step(step: Step, table: Table, named: Named) -> dict[str, Any]:
    return {
        "block": step.block,
        "chain": step.chain,
        "rule": step.text,
        "exceptions": [
            {
                "set": hit.name,
                "elements": list(hit.elements),
                "names": [named(hit.keys[-1], element.split(" . ")[-1]) for element in hit.elements],
            }
            for hit in step.hits
        ],
        "counter": step.counter,
        "packets": table.counters[step.counter].packets if step.counter else None,
    }
