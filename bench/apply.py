"""Apply: ms for a whole table and for one port more, by reconcile in this process."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

import nftables

from bench.figure import Figure, progress
from bench.guard import Guard, ports
from bench.namespace import Namespace
from nftguard import nftscript
from nftguard.kernel import Nftables
from nftguard.plan import diff
from nftguard.reconcile import reconcile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nftguard.model import Table

_ONE = "1023"  # the port that is added; no layout lists it
_LAYOUTS = {
    "11 ports": (ports(11), 40),
    "1,000 ports": (ports(1000), 15),
    "10,000 ports": (ports(10000), 7),
    "1024-65535": (('"1024-65535"',), 40),
}


def measure() -> list[Figure]:
    """Measure milliseconds of `reconcile` in this process: snapshot, comparison, script and transaction.

    The baseline is libnftables running the same script, by a lasting context of its own, in turns.
    """
    return [figure for name, (listed, trials) in _LAYOUTS.items() for figure in _layout(name, listed, trials)]


def _layout(name: str, listed: Sequence[str], trials: int) -> list[Figure]:
    progress(f"apply: {name}")
    with Namespace() as namespace, Guard(namespace, listed) as guard, Guard(namespace, (*listed, _ONE)) as more:
        with namespace.entered():
            kernel, floor = Nftables(), nftables.Nftables()
        before, after = guard.table(), more.table()
    scripts = {"whole": nftscript.script(diff(None, before)), "one": nftscript.script(diff(before, after))}
    found: dict[str, list[float]] = {}

    def timed(what: str, work: Callable[[], object]) -> None:
        begun = time.perf_counter_ns()
        work()
        found.setdefault(what, []).append((time.perf_counter_ns() - begun) / 1e6)

    for _ in range(trials):
        for way in ("reconcile", "floor"):
            _run(floor, "flush ruleset")
            timed(f"{way} whole", _work(way, kernel, before, floor, scripts["whole"]))
            timed(f"{way} one", _work(way, kernel, after, floor, scripts["one"]))
    return [
        Figure(
            f"{name}, {label}",
            median(found[f"reconcile {what}"]),
            "ms",
            "libnftables alone",
            median(found[f"floor {what}"]),
            trials,
        )
        for what, label in (("whole", "from nothing"), ("one", "one port more"))
    ]


def _work(way: str, kernel: Nftables, desired: Table, floor: Any, script: str) -> Callable[[], object]:
    return (lambda: reconcile(kernel, desired)) if way == "reconcile" else (lambda: _run(floor, script))


def _run(nft: Any, script: str) -> None:
    code, _, error = nft.cmd(script)
    if code:
        raise RuntimeError(error)
