"""What becomes of a packet, and why, in words and as a document. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nftguard.model import Hook, Key, Reject, Set
from nftguard.names import clean
from nftguard.wording import endpoint, many

if TYPE_CHECKING:
    from collections.abc import Callable

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
_OTHERS = "rules of other programs are not looked at"


def render(trace: Trace, packet: Packet, table: Table, named: Named, notes: list[str]) -> str:
    """Tell it to people: the verdict first, then each block that was asked."""
    what = _told(packet, named)
    if trace.passes is None:
        lines = [f"unknown: what becomes of {what} cannot be said: {trace.reason}"]
    elif trace.passes:
        lines = [f"passes: {what}: {trace.reason or _passing(trace, packet)}"]
    else:
        last = trace.steps[-1]
        lines = [f"blocked: {what} would be {_done(last)} by {_by(last)}"]
    for step in trace.steps:
        stops = trace.passes is False and step is trace.steps[-1]
        lines.append(f"  {_by(step)} {'stops it' if stops else 'lets it pass'}: {_why(step, table, named)}")
    if trace.unless:
        lines.append(f"  {_by(trace.unless[-1])} would let it pass if it were")
        lines += [f"    {' and '.join(_hit(hit, table, named) for hit in step.hits)}" for step in trace.unless]
    return "\n".join([*lines, *(f"note: {note}" for note in notes), _OTHERS])


def _told(packet: Packet, named: Named) -> str:
    text = f"{packet.protocol} {endpoint(packet.destination, packet.port)}"
    if packet.uid is not None:
        text += f" from user {named(Key.USER, str(packet.uid)) or packet.uid}"
    elif packet.gid is not None:
        text += f" from group {named(Key.GROUP, str(packet.gid)) or packet.gid}"
    return text if packet.hook is Hook.OUTPUT else f"{text} on {packet.hook}"


def _passing(trace: Trace, packet: Packet) -> str:
    if not trace.steps:
        return f"no block names {packet.protocol} port {packet.port} on {packet.hook}"
    if len(trace.steps) == 1:
        return f"{_by(trace.steps[0])} names the port, and makes an exception"
    return f"{many(len(trace.steps), 'block')} name the port, and each makes an exception"


def _by(step: Step) -> str:
    return f"block {step.block}" if step.block else f"chain {step.chain}"


def _done(step: Step) -> str:
    return "rejected" if step.rule and isinstance(step.rule[-1], Reject) else "dropped"


def _why(step: Step, table: Table, named: Named) -> str:
    if not step.rule:
        base = table.chains[step.chain].base
        return f"the policy of chain {step.chain}" if base else f"nothing in chain {step.chain} stops it"
    parts = [f"in chain {step.chain}", *(_hit(hit, table, named) for hit in step.hits)]
    if step.counter:
        parts.append(f"counter {step.counter}, {many(table.counters[step.counter].packets, 'packet')} so far")
    return f"{step.text}\n    {'; '.join(parts)}"


def _hit(hit: Hit, table: Table, named: Named) -> str:
    """Name the elements: `sent by user 104 (postfix) or 33 (www-data), in set mail.users`."""
    key = hit.keys[-1]
    listed = [element.split(" . ")[-1] for element in hit.elements[:_MOST]]
    told = [f"{clean(part)} ({name})" if (name := named(key, part)) else clean(part) for part in listed]
    more = f" or {len(hit.elements) - _MOST:,} more" if len(hit.elements) > _MOST else ""
    found = table.sets[hit.name]
    left = found.left.get(hit.elements[0], 0) if hit.known and isinstance(found, Set) else 0
    until = f", for another {left // 60} min {left % 60} s" if left else ""
    return f"{_WORDS[key]} {' or '.join(told)}{more}, in set {hit.name}{until}"


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
