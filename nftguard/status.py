"""How things stand, from the kernel's state: one document for people and for machines. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from nftguard import plan
from nftguard.allowed import words
from nftguard.model import ORPHAN, OWNED, Chain, Hook, Vmap
from nftguard.policy import blocked
from nftguard.ports import merge
from nftguard.wording import lasting, local_time, many

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nftguard.model import Protocol, Table
    from nftguard.ports import Ports


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
    listed: dict[tuple[Hook, Protocol], list[Ports]] = {}
    for _, hook, protocol, ports, _ in blocked(table):
        listed.setdefault((hook, protocol), []).append(ports)
    counts = {place: sum(ports.size for ports in merge(stretches)) for place, stretches in listed.items()}
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


def render(found: Mapping[str, Any], width: int | None = None) -> str:
    """Draw the document for people, at most 80 columns wide where names allow; with `width` long lines are wrapped."""
    lines = [f"{found['state']}: {found['summary']}"]
    lines += [f"  - {reason}" for reason in found["reasons"]]
    lines += [f"  warning: {warning}" for warning in found["warnings"]]
    lines += words.lines(found["allowed"], found["at"])
    if daemon := found["daemon"]:
        owns = "owns the table, " if daemon["owner"] else ""
        lines.append(f"daemon: process {daemon['pid']}, {owns}since {local_time(daemon['since'])}")
        lines.append(f"since then: {many(daemon['repairs'], 'repair')}, {many(daemon['attempts'], 'attempt')} seen")
        if daemon["log"] != "journal":
            where = ", but in journalctl -k" if daemon["log"] == "kernel" else ""
            lines.append(f'attempts are not recorded here{where}: [log] target is "{daemon["log"]}"')
        if daemon["attempts_lost"] or daemon["records_dropped"]:
            lines.append(f"lost: {daemon['attempts_lost']} attempts, {daemon['records_dropped']} records")
        if last := daemon["last_attempt"]:
            text = f"last attempt: {_ago(last['at'], found['at'])}, {last['text']}"
            lines += wrap(text, width, subsequent_indent="  ", break_on_hyphens=False) if width else [text]
        lines += [f"daemon: suspended, {daemon['suspended']}"] if daemon["suspended"] else []
    else:
        lines.append("daemon: not running; nothing repairs the rules (systemctl start nftguard)")
    if rows := found["ports"]:
        lines += ["", f"{'BLOCK':<16} {'HOOK':<8} {'PROTO':<5} {'PORT':>11} {'PACKETS':>9} {'BYTES':>11}  LAST SEEN"]
        for row in rows:
            lines.append(
                f"{row['block']:<16} {row['hook']:<8} {row['protocol']:<5} {row['port']:>11} {row['packets']:>9} "
                f"{row['bytes']:>11}  {_ago(row['last_seen'], found['at'])}".rstrip()
            )
    return "\n".join(lines)


def _ago(when: float | None, now: float) -> str:
    return "-" if when is None else f"{lasting(now - when)} ago"
