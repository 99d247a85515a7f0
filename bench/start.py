"""Start: ms from exec to live rules, as seen from outside the process; 11 ports."""

from __future__ import annotations

import select
import sys
import time
from statistics import median
from typing import TYPE_CHECKING

import nftables

from bench.figure import Figure, Goal, progress
from bench.guard import Guard
from bench.namespace import Namespace
from nftguard.model import FAMILY, TABLE
from nftguard.wire.watch import RulesetWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

TRIALS = 40
_SETTLE = 0.06  # seconds; the kernel's clean-up after a killed process holds the next transaction for up to 0.036
_GOAL = Goal(2)


def measure() -> list[Figure]:
    """Measure starts with 11 ports: milliseconds from exec to the event of the transaction that makes the table.

    The baseline is the least that it could take: `nft -f` of the same script, timed alike, and a start of the bare
    interpreter, from exec to exit. The kernel tells of a transaction as soon as it is in force.
    """
    with Namespace() as namespace, Guard(namespace) as guard:
        guard.run(*guard.python, "apply")  # leaves the boot script that a start looks for
        starts = _Starts(namespace, guard)
        script = guard.folder / "script.nft"
        script.write_text(guard.script(), encoding="ascii")
        starts.lift()
        found: dict[str, list[float]] = {}
        for trial in range(TRIALS):
            if trial % 10 == 0:
                progress(f"start: {trial} of {TRIALS}")
            cold = str(guard.folder / f"state-{trial}")  # empty, so that nothing is found in it
            rounds = {
                "bare": starts.to_exit((sys.executable, "-c", "pass")),
                "nft": starts.to_live(("nft", "-f", str(script))),
                "python -m nftguard run": starts.to_live((*guard.python, "run")),
                "nftguard run": starts.to_live((*guard.console_script, "run")),
                "nftguard run, no boot script": starts.to_live((*guard.console_script, "run"), STATE_DIRECTORY=cold),
            }
            for name, took in rounds.items():
                found.setdefault(name, []).append(took)
    floor = median(found.pop("bare")) + median(found.pop("nft"))
    return [
        Figure(name, median(took), "ms", "nft -f + bare python", floor, TRIALS, None if "no boot" in name else _GOAL)
        for name, took in found.items()
    ]


class _Starts:
    def __init__(self, namespace: Namespace, guard: Guard) -> None:
        self._guard = guard
        with namespace.entered():
            self._watch = RulesetWatch()
            self._nft = nftables.Nftables()

    def to_exit(self, command: Sequence[str]) -> float:
        begun = time.monotonic_ns()
        self._guard.start(command).wait()
        return (time.monotonic_ns() - begun) / 1e6

    def to_live(self, command: Sequence[str], **environment: str) -> float:
        begun = time.monotonic_ns()
        process = self._guard.start(command, **environment)
        try:
            if not select.select([self._watch.socket], [], [], 30)[0]:
                raise TimeoutError(f"{' '.join(command)} made no rules in 30 s")
            took = (time.monotonic_ns() - begun) / 1e6
        finally:
            process.kill()  # not SIGTERM: whether it lifts its rules then depends on how far it came
            process.wait()
        self.lift()
        return took

    def lift(self) -> None:
        code, _, error = self._nft.cmd(f"delete table {FAMILY} {TABLE}")
        if code:
            raise RuntimeError(error)
        time.sleep(_SETTLE)
        self._watch.read()
