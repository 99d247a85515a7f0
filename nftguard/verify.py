"""Proof that what is to be blocked is blocked: the rules compared, and canaries sent that have to be stopped."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nftguard import canary, policy, reach, standing, trace
from nftguard.canary import Canary, Fate
from nftguard.errors import UnavailableError
from nftguard.kernel import Nftables
from nftguard.look import PIPE, Look, Role
from nftguard.model import Hook, Table
from nftguard.packet import Packet
from nftguard.status import State
from nftguard.who.cgroups import ids, mounted
from nftguard.wire.route import toward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nftguard.model import Protocol
    from nftguard.ports import Ports
    from nftguard.trace import Trace
    from nftguard.wire.nfnl import Nfnl
    from nftguard.wire.route import Way

UNPROVEN = 3
"""The exit code of `nftguard verify` where nothing is wrong, but not everything could be tried."""

_SENDERS = (65534, 65533, 65532)  # nobody, and two that are hardly anybody's
_TRIED = 64  # combinations of port, address and sender that are thought through for one that no exception lets pass
_NAMED = 5  # differences


class Result(StrEnum):
    """How a check ended."""

    OK = "ok"
    FAILED = "FAILED"
    SKIPPED = "skipped"
    """It could not be tried: something is not proven."""
    NOTE = "note"
    """There is nothing to be proven."""


_ROLES = {Result.OK: Role.GOOD, Result.FAILED: Role.BAD, Result.SKIPPED: Role.DOUBT}


@dataclass(frozen=True, slots=True)
class Check:
    """One check: of what, how it ended, and the reason in words."""

    what: str
    result: Result
    detail: str

    def document(self) -> dict[str, object]:
        """Give it for a machine; `ok` is null where it was not tried."""
        ok = {Result.OK: True, Result.FAILED: False}.get(self.result)
        return {"what": self.what, "ok": ok, "result": self.result.lower(), "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found."""

    summary: str
    checks: tuple[Check, ...]
    unreached: tuple[str, ...]
    """What the rules cannot reach on this host."""

    @property
    def exit_code(self) -> int:
        """Give 0 where all is proven, 1 where something is wrong, else UNPROVEN."""
        results = {check.result for check in self.checks}
        return 1 if Result.FAILED in results else UNPROVEN if Result.SKIPPED in results else 0

    def document(self) -> dict[str, Any]:
        """Give it for a machine."""
        return {
            "proven": self.exit_code == 0,
            "checks": [check.document() for check in self.checks],
            "out_of_reach": list(self.unreached),
        }

    def render(self, look: Look = PIPE) -> list[str]:
        """Draw it for people."""
        failed = sum(check.result is Result.FAILED for check in self.checks)
        word, text, role = {
            0: ("proven", f": {self.summary}", Role.GOOD),
            1: ("FAILED", f": {failed} of {len(self.checks)} checks", Role.BAD),
            UNPROVEN: (
                "not proven",
                ": nothing is wrong as far as seen, but not everything could be tried",
                Role.DOUBT,
            ),
        }[self.exit_code]
        lines = look.lead(look.fold(word + text), word, role)
        for check in self.checks:
            folded = look.fold(f"{check.result:<8} {check.what}: {check.detail}", 9)
            lines += look.lead(folded, check.result, _ROLES[check.result]) if check.result in _ROLES else folded
        lines += ["out of reach here:"] if self.unreached else []
        for text in self.unreached:
            lines += look.fold(f"  - {text}")
        return lines


def verify(config: Path, step: Callable[[int, int], None] = lambda *_: None) -> Findings:
    """Check everything; `step` is told how many packets were tried, and of how many.

    Raises NotPermittedError, KernelError, UnavailableError.
    """
    with closing(Nftables()) as kernel:
        seen = standing.from_kernel(config, kernel)
        found, live = seen.document, seen.live
        # Where the configuration is refused, which the first check tells, what is in force is to hold all the same.
        wanted = seen.desired or live or Table()
        checks = (_rules(found), *canaries(kernel.nfnl, live, wanted, step), _daemon(found["daemon"]))
    return Findings(found["summary"], checks, tuple(reach.unreached(live or wanted)))


def _rules(found: Mapping[str, Any]) -> Check:
    if found["state"] == State.PROTECTED:
        return Check("rules", Result.OK, "the kernel's are what the configuration says")
    reasons = found["reasons"]
    more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    return Check("rules", Result.FAILED, f"{found['state']}: {'; '.join(reasons[:_NAMED])}{more}")


def _daemon(daemon: Mapping[str, Any] | None) -> Check:
    """Tell of the daemon; that there is none is no failure, since rules hold without one."""
    if not daemon:
        return Check("daemon", Result.NOTE, "not running; nothing repairs the rules (systemctl start nftguard)")
    owner = "owns the table" if daemon["owner"] else "does not own the table, and repairs it"
    log = {"journal": "are recorded in the journal", "kernel": "go to the kernel log alone"}
    attempts = log.get(daemon["log"], "are not recorded")
    return Check("daemon", Result.OK, f"process {daemon['pid']} {owner}; attempts {attempts}")


def canaries(
    nfnl: Nfnl, live: Table | None, wanted: Table, step: Callable[[int, int], None] = lambda *_: None
) -> list[Check]:
    """Send a canary for each block and protocol on output, over IPv4 and IPv6, and see what becomes of it.

    `wanted` says which ports are to be blocked, `live` which exceptions a canary has to keep clear of.
    """
    targets: dict[tuple[str, Protocol], list[Ports]] = {}
    untried: set[Hook] = set()
    for block, hook, protocol, ports, _ in policy.blocked(wanted):
        if hook is Hook.OUTPUT:
            targets.setdefault((block, protocol), []).append(ports)
        else:
            untried.add(hook)
    notes = [Check(hook, Result.NOTE, "compared alone; no packet can be sent to try it") for hook in sorted(untried)]
    if not targets:
        return [*notes, Check("packets", Result.SKIPPED, "no block is on output, and no other can be tried from here")]
    ways = {
        version: {address: way for address in addresses if (way := _way(address))}
        for version, addresses in canary.ADDRESSES.items()
    }
    if not any(ways.values()):
        why = "no route from this host, neither over IPv4 nor over IPv6"
        return [*notes, Check("packets", Result.SKIPPED, why)]
    sender = _Sender(nfnl, live, wanted)
    tries = [(target, version) for target in targets for version in ways if ways[version]]
    checks = []
    for number, (target, version) in enumerate(tries):
        step(number, len(tries))
        checks.append(sender.check(*target, version, targets[target], ways[version]))
    notes += [
        Check(f"IPv{version}", Result.NOTE, "no route from this host, nothing to prove")
        for version in ways
        if not ways[version]
    ]
    return checks + notes


def _way(destination: str) -> Way | None:
    try:
        return toward(destination)
    except UnavailableError:
        return None


class _Sender:
    def __init__(self, nfnl: Nfnl, live: Table | None, wanted: Table) -> None:
        self.nfnl, self.live, self.wanted = nfnl, live, wanted
        # Not root: it is the likeliest to be excepted.
        self.users = [uid for uid in _SENDERS if canary.may_be(uid)] or [os.geteuid()]
        self.groups = _own_groups()

    def check(
        self, block: str, protocol: Protocol, version: int, ports: Sequence[Ports], ways: Mapping[str, Way]
    ) -> Check:
        what = f"{block} {protocol} over IPv{version}"
        combined = product((stretch.first for stretch in ports), ways, self.users)
        tried = [Canary(protocol, address, port, uid) for port, address, uid in islice(combined, _TRIED)]
        bird, expected = self._choose(block, tried, ways)
        where = f"port {bird.port} to {bird.destination}"
        if expected and (why := _excepted(expected)):
            return Check(what, Result.SKIPPED, f"cannot be tried: {why}")
        stopped = expected and expected.passes is False
        step = expected.steps[-1] if expected and stopped else None
        counter = step.counter if step else ""
        counter = counter or policy.counter_of(self.wanted, block, Hook.OUTPUT, protocol, bird.port)
        try:
            fate = canary.prove(self.nfnl, bird, counter)
        except PermissionError:
            return Check(what, Result.SKIPPED, "cannot be tried: sending it needs root, or CAP_NET_RAW")
        except OSError as error:
            return Check(what, Result.SKIPPED, f"cannot be tried: {where} was not sent: {error.strerror}")
        if fate is Fate.PROVEN:
            by = f" by block {step.block}" if step and step.block != block else ""
            return Check(what, Result.OK, f"{where} {fate}{by}")
        if fate is Fate.UNCOUNTED and stopped:
            return Check(what, Result.SKIPPED, f"{where} was stopped before nftguard saw it: by another's rules")
        return Check(what, Result.FAILED, f"{where} was {fate}")

    def _choose(self, block: str, tried: Iterable[Canary], ways: Mapping[str, Way]) -> tuple[Canary, Trace | None]:
        """Choose a canary that the block itself should stop; give with it what the live rules say of it."""
        best: tuple[int, Canary, Trace | None] | None = None
        for bird in tried:
            expected = self._expect(bird, ways[bird.destination])
            rank = _rank(block, expected)
            if best is None or rank < best[0]:
                best = rank, bird, expected
            if rank == 0:
                break
        assert best  # noqa: S101 - a block has ports
        return best[1:]

    def _expect(self, bird: Canary, way: Way) -> Trace | None:
        if self.live is None:
            return None
        return trace.walk(
            self.live,
            Packet(
                Hook.OUTPUT,
                bird.protocol,
                bird.destination,
                bird.port,
                source=way.source or None,
                uid=bird.uid,
                gid=bird.uid,
                groups=self.groups,
                outbound=way.interface,
            ),
        )


def _rank(block: str, expected: Trace | None) -> int:
    """Say how much a canary is worth: most if the block stops it, least if an exception lets it pass."""
    if expected is None:
        return 0
    if expected.passes is False:
        return 0 if expected.steps[-1].block == block else 2
    return 3 if _excepted(expected) else 1  # it passes, and nothing that is ours lets it: that must come out


def _excepted(expected: Trace) -> str:
    """Say which exceptions let a packet pass; empty where they do not."""
    hits = [hit for step in expected.steps for hit in step.hits] if expected.passes else []
    return ", ".join(f"it is excepted by {hit.elements[0]} in set {hit.name}" for hit in hits)


def _own_groups() -> tuple[int, ...] | None:
    """Give the ids of the control groups that this process is in, from below the root on; None where not known."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        return ids(mounted(), next(line[3:] for line in lines if line.startswith("0::")))
    except (OSError, StopIteration, UnavailableError):
        return None
