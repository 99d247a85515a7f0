"""What the daemon counts for those who watch it from outside, since it began, in bounded memory. Pure."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nftguard.model import Hook
    from nftguard.who.culprit import Culprit

GAPS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Bounds, in seconds, below which gaps are counted together."""
PLACES, CROWD = 100, 20
"""Places that are told apart: in all, and of one user or interface. The rest is counted as "other"."""
UNKNOWN, OTHER = "unknown", "other"

_SLICE = re.compile(r"/(user-[0-9]+\.slice)/")


def place(culprit: Culprit) -> str:
    """Say in one name where he is: the container, the unit, or the slice of the user who is logged in.

    Login sessions are numbered without end, so that their user stands for them.
    """
    if culprit.container:
        return culprit.container
    if culprit.session and (found := _SLICE.search(culprit.cgroup)):
        return found[1]
    return culprit.unit or UNKNOWN


@dataclass(slots=True)
class Tally:
    """Counts that only grow, and what came last."""

    repairs: Counter[str] = field(default_factory=Counter)
    """By what made us look."""
    reloads: Counter[str] = field(default_factory=Counter)
    """By how they ended: "done" or "refused"."""
    reconciles: Counter[str] = field(default_factory=Counter)
    """By how they ended: "done" or "failed"."""
    lost: Counter[str] = field(default_factory=Counter)
    """Events that did not reach us, by their kind."""
    last: tuple[float, float] | None = None
    """When the last reconcile that was done ended, in seconds since the epoch, and how many seconds it took."""
    _attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _crowds: Counter[tuple[object, ...]] = field(default_factory=Counter)
    _gaps: list[int] = field(default_factory=lambda: [0] * (len(GAPS) + 1))
    _gap_sum: float = 0.0

    def attempted(self, hook: Hook, culprit: Culprit) -> None:
        """Count an attempt for the place that it was made from, or with others where there are too many places."""
        key = (hook.value, place(culprit))
        if key not in self._attempts:
            if len(self._attempts) >= PLACES or self._crowds[culprit.crowd] >= CROWD:
                key = (hook.value, OTHER)
            else:
                self._crowds[culprit.crowd] += 1
        self._attempts[key] += 1

    def mended(self, cause: str, gap: float | None) -> None:
        """Count a repair; `gap` is the seconds from the foreign change to its end, None where that is not known."""
        self.repairs[cause] += 1
        if gap is not None:
            self._gaps[next((at for at, bound in enumerate(GAPS) if gap <= bound), len(GAPS))] += 1
            self._gap_sum += gap

    def reconciled(self, at: float, seconds: float) -> None:
        """Count a reconcile that was done."""
        self.reconciles["done"] += 1
        self.last = at, seconds

    def document(self) -> dict[str, Any]:
        """Give it for status.json; of the gaps each bucket holds those of the ones before it, as Prometheus has it."""
        bounds = [*GAPS, None]
        return {
            "attempts": [
                {"hook": hook, "unit": unit, "attempts": count} for (hook, unit), count in self._attempts.items()
            ],
            "repairs": dict(self.repairs),
            "reloads": {"done": 0, "refused": 0} | self.reloads,
            "reconciles": {"done": 0, "failed": 0} | self.reconciles,
            "lost": dict(self.lost),
            "gaps": {
                "buckets": [(bound, sum(self._gaps[: at + 1])) for at, bound in enumerate(bounds)],
                "sum": self._gap_sum,
            },
            "last_reconcile": {"at": self.last[0], "seconds": self.last[1]} if self.last else None,
        }
