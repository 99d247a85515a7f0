"""How things stand, from the kernel's state: one document for people and for machines. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nftguard import plan
from nftguard.allowed import words
from nftguard.look import PIPE, Look, Role
from nftguard.model import ORPHAN, OWNED, Chain, Hook, Vmap
from nftguard.policy import blocked
from nftguard.ports import totals
from nftguard.wording import lasting, local_time, many

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nftguard.model import Table


class State(StrEnum):
    """How well the host is protected."""

    PROTECTED = "protected"
    DEGRADED = "degraded"
    UNPROTECTED = "unprotected"

    @property
    def exit_code(self) -> int:
        """Give the exit code of `nftguard status`."""
        return list(State).index(self)


STALE = 3
"""The exit code of `nftguard status` when the daemon's last word is too old to count."""


_ROLES = {State.PROTECTED: Role.GOOD, State.DEGRADED: Role.DOUBT}
_LONG = 50  # rows of a list that a terminal is not filled with
_COLUMNS = (16, 8, 5, 11, 9, 11)  # at least, so that the table looks the same from one host to the next


@dataclass(frozen=True, slots=True)
class Standing:
    """The state, and what is wrong in so many words."""

    state: State
    reasons: tuple[str, ...] = ()


def judge(live: Table | None, desired: Table | None, problems: tuple[str, ...] = ()) -> Standing:
    """Judge the live table against the desired one; `desired` is None where the configuration is refused."""
    if live is None:
        return Standing(State.UNPROTECTED, (*problems, "the table is missing: nothing is blocked"))
    differences = plan.diff(live, desired).found if desired else ()
    if live.flags not in {frozenset(), OWNED, ORPHAN} or not any(map(_leads, live.chains.values())):
        return Standing(State.UNPROTECTED, (*problems, *differences, "the table is there, but blocks nothing"))
    if problems or differences:
        return Standing(State.DEGRADED, (*problems, *differences))
    return Standing(State.PROTECTED)


def _leads(chain: Chain) -> bool:
    """Whether the kernel finds its way from a hook to what is blocked."""
    return chain.base is not None and any(isinstance(rule[0], Vmap) for rule in chain.rules if rule)


def summary(table: Table) -> str:
    """Say what is blocked in one line: `11 tcp ports blocked on output`."""
    counts = totals(((hook, protocol), ports) for _, hook, protocol, ports, _ in blocked(table))
    parts = []
    for hook in Hook:
        told = [f"{count:,} {protocol}" for (at, protocol), count in sorted(counts.items()) if at == hook]
        if told:
            one = len(told) == 1 and told[0].startswith("1 ")
            parts.append(f"{' and '.join(told)} port{'' if one else 's'} blocked on {hook}")
    return ", ".join(parts) or "nothing is blocked"


def told_changes(count: int) -> str:
    """Say how much was changed."""
    return "already in force" if not count else f"{count} change{'s' if count > 1 else ''}"


def document(
    standing: Standing,
    live: Table | None,
    *,
    seen: Mapping[str, float],
    warnings: tuple[str, ...] = (),
    allowed: Iterable[Mapping[str, Any]] = (),
    daemon: Mapping[str, Any] | None = None,
    at: float,
) -> dict[str, Any]:
    """Build the document of `status --json`; times are seconds since the epoch. `seen`: counter name to time."""
    rows = [] if live is None else blocked(live)
    return {
        "state": standing.state.value,
        "reasons": list(standing.reasons),
        "warnings": list(warnings),
        "summary": summary(live) if live else "nothing is blocked",
        "ports": [
            {
                "block": block,
                "hook": hook.value,
                "protocol": protocol.value,
                "port": ports.first if ports.size == 1 else str(ports),
                "packets": counter.packets,
                "bytes": counter.bytes,
                "last_seen": seen.get(counter.name),
            }
            for block, hook, protocol, ports, counter in rows
        ],
        "allowed": [dict(one) for one in allowed],
        "daemon": dict(daemon) if daemon else None,
        "at": at,
    }


def of_blocks(found: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Give the document with the ports of these blocks alone; all of them without names. Raises ValueError."""
    there = list(dict.fromkeys(row["block"] for row in found["ports"]))
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"no block {missing[0]!r} is in force; there is {', '.join(there) or 'none'}")
    wanted = {*names} or {*there}
    return {**found, "ports": [row for row in found["ports"] if row["block"] in wanted]}


def render(found: Mapping[str, Any], look: Look = PIPE, *, every: bool = True) -> list[str]:
    """Draw the document for people.

    Without `every` a long list of ports is cut, on a terminal, to those that have counted something; so are reasons.
    """
    short = not every and look.width is not None
    lines = look.fold(f"{found['state']}: {found['summary']}")
    lines = look.lead(lines, found["state"], _ROLES.get(found["state"], Role.BAD))
    told = [f"  - {reason}" for reason in found["reasons"]]
    if short and len(told) > _LONG:
        told[_LONG:] = [f"  and {len(told) - _LONG:,} more reasons (--all lists them)"]
    told += [f"  warning: {warning}" for warning in found["warnings"]]
    told += words.lines(found["allowed"], found["at"])
    told += _daemon(found["daemon"], found["at"])
    lines += [part for line in told for part in look.fold(line)]
    if rows := found["ports"]:
        quiet = [row for row in rows if not row["packets"]] if short and len(rows) > _LONG else []
        lines += ["", *_table([row for row in rows if row["packets"] or not quiet], found["at"], look)]
        lines += look.fold(f"and {many(len(quiet), 'port')} without a packet (--all lists them)") if quiet else []
    return lines


def _daemon(daemon: Mapping[str, Any] | None, now: float) -> list[str]:
    if not daemon:
        return ["daemon: not running; nothing repairs the rules (systemctl start nftguard)"]
    owns = "owns the table, " if daemon["owner"] else ""
    lines = [
        f"daemon: process {daemon['pid']}, {owns}since {local_time(daemon['since'])}",
        f"since then: {many(daemon['repairs'], 'repair')}, {many(daemon['attempts'], 'attempt')} seen",
    ]
    if daemon["log"] != "journal":
        where = ", but in journalctl -k" if daemon["log"] == "kernel" else ""
        lines.append(f'attempts are not recorded here{where}: [log] target is "{daemon["log"]}"')
    if daemon["attempts_lost"] or daemon["records_dropped"]:
        lines.append(f"lost: {daemon['attempts_lost']} attempts, {daemon['records_dropped']} records")
    if last := daemon["last_attempt"]:
        lines.append(f"last attempt: {_ago(last['at'], now)}, {last['text']}")
    return [*lines, *([f"suspended: {daemon['suspended']}"] if daemon["suspended"] else [])]


def _table(rows: Iterable[Mapping[str, Any]], now: float, look: Look) -> list[str]:
    """Draw the ports; where the terminal is too narrow for the names of the blocks, each has a line of its own."""
    keys = ("block", "hook", "protocol", "port", "packets", "bytes")
    cells = [(*(str(row[key]) for key in keys), _ago(row["last_seen"], now)) for row in rows]
    head = ("BLOCK", "HOOK", "PROTO", "PORT", "PACKETS", "BYTES", "LAST SEEN")
    sizes = [max(least, *(len(row[at]) for row in [head, *cells])) for at, least in enumerate(_COLUMNS)]
    last = max((len(row[-1]) for row in cells), default=0)
    apart = look.width is not None and sum(sizes) + len(sizes) + 1 + last > look.width

    def line(row: tuple[str, ...]) -> str:
        block, hook, protocol, *numbers, ago = row
        name = " " if apart else f"{block:<{sizes[0]}}"
        right = " ".join(f"{number:>{size}}" for number, size in zip(numbers, sizes[3:], strict=True))
        return f"{name} {hook:<{sizes[1]}} {protocol:<{sizes[2]}} {right}  {ago}".rstrip()

    lines, before = [look.paint(line(head), Role.HEAD)], ""
    for row in cells:
        if apart and row[0] != before:
            lines += look.fold(row[0])
        before = row[0]
        lines.append(line(row))
    return lines


def _ago(when: float | None, now: float) -> str:
    return "-" if when is None else f"{lasting(now - when)} ago"
