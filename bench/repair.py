"""Repair: ms that traffic passes after a flush of the whole ruleset; 11 ports."""

from __future__ import annotations

import multiprocessing
import select
import signal
import time
from contextlib import contextmanager
from statistics import median, quantiles
from typing import TYPE_CHECKING

import nftables

from bench import traffic
from bench.figure import Figure, Goal, progress
from bench.guard import Guard
from bench.namespace import Namespace
from bench.traffic import BLOCKED, Tap
from nftguard.wire import netlink
from nftguard.wire.watch import RulesetWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection

TRIALS = 200
_RUN = 16  # trials before a restart: after 20 repairs at once nftguard takes the flushes for a fight, and slows down
_CLOSED = 0.06  # seconds without a packet after which the gap counts as closed, and the kernel has cleaned up
_STARVED = 200_000  # nanoseconds without a packet at an edge of the gap, after which its length is not known
_PATIENCE = 10.0  # seconds for a repair
_LIMIT = 200.0  # seconds for all of it; on a busy machine, where many trials do not count, there are fewer
_GOALS = {"median": Goal(2, "value"), "p99": Goal(10, "value")}

_fork = multiprocessing.get_context("fork")


def measure() -> list[Figure]:
    """Measure gaps at 11 ports: milliseconds from the first to the last SYN to port 25 that gets out after a flush.

    One process sends them without a pause. The flush comes from a lasting libnftables context, or from a new nft
    process, whose end holds the kernel's commit lock for an RCU grace period, if it comes before the repair. The
    baseline, in turns with nftguard, is a loop that does nothing but replay the ready script on any event.
    """
    with Namespace() as namespace, Guard(namespace) as guard:
        namespace.add_sink()
        with namespace.entered():
            tap = Tap()
        repairers: dict[str, Callable[[], AbstractContextManager[object]]] = {
            "nftguard": guard.daemon,
            "floor": lambda: _floor(namespace, guard.script()),
        }
        with _process(namespace, traffic.flood), _flusher(namespace) as flush:
            flushes = {
                "by libnftables": flush,
                "by a new nft": lambda: namespace.run("nft", "flush", "ruleset"),
            }
            gaps: dict[tuple[str, str], list[float]] = {(who, how): [] for who in repairers for how in flushes}
            begun = time.monotonic()
            while (done := min(map(len, gaps.values()))) < TRIALS and time.monotonic() - begun < _LIMIT:
                progress(f"repair: {done} of {TRIALS}, of 4 kinds")
                for who, repairer in repairers.items():
                    with repairer():
                        for how, act in list(flushes.items()) * (_RUN // len(flushes)):
                            gaps[who, how] += _gap(tap, act)
                flush()  # what is left of the floor
    if done < TRIALS:
        progress(f"repair: only {done} of {TRIALS} trials count, since the sender often had to wait for a CPU")
    return [
        Figure(
            f"flush {how}, {what}",
            value(gaps["nftguard", how]),
            "ms",
            "bare loop, same script",
            value(gaps["floor", how]),
            len(gaps["nftguard", how]),
            _GOALS[what],
        )
        for how in flushes
        for what, value in (("median", median), ("p99", _p99))
    ]


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]


def _gap(tap: Tap, flush: Callable[[], None]) -> list[float]:
    """Flush, wait for the repair, and give the gap in milliseconds; nothing when the sender did not run at its edges.

    What goes on between the edges is of no account, so that a long gap is not left out more easily than a short one.
    """
    tap.clear()
    time.sleep(0.002)  # a few beats
    flush()
    packets: list[tuple[int, int]] = []
    begun = last = time.monotonic()
    while time.monotonic() - last < _CLOSED:
        time.sleep(0.01)  # not a wait for packets: this process must not take the CPU that the repair needs
        found = tap.read()
        packets += found
        if any(port == BLOCKED for _, port in found):
            last = time.monotonic()
        if last - begun > _PATIENCE:
            raise TimeoutError(f"nothing was repaired in {_PATIENCE:g} s")
    passed = [at for at, (_, port) in enumerate(packets) if port == BLOCKED]
    if not passed:
        return []
    first, last_one = passed[0], passed[-1]
    edges = packets[max(first - 1, 0) : first + 1], packets[last_one : last_one + 2]
    if any(len(edge) < 2 or edge[1][0] - edge[0][0] > _STARVED for edge in edges):
        return []
    return [(packets[last_one][0] - packets[first][0]) / 1e6]


@contextmanager
def _process(namespace: Namespace, work: Callable[[], None]) -> Iterator[None]:
    """Keep a process of the namespace."""

    def run() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
        with namespace.entered():
            work()

    process = _fork.Process(target=run, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


@contextmanager
def _flusher(namespace: Namespace) -> Iterator[Callable[[], None]]:
    """Keep a process that flushes the ruleset when told, and has its libnftables ready."""
    ours, its = _fork.Pipe()

    def work() -> None:
        nft = nftables.Nftables()
        while its.recv():
            its.send(nft.cmd("flush ruleset"))

    def flush() -> None:
        ours.send(True)
        _answer(ours)

    with _process(namespace, work):
        yield flush


@contextmanager
def _floor(namespace: Namespace, script: str) -> Iterator[None]:
    """Keep a process that replays the script on any event."""
    ours, its = _fork.Pipe()

    def work() -> None:
        events, nft = RulesetWatch().socket, nftables.Nftables()
        its.send(nft.cmd(script))
        while True:
            netlink.receive(events, 1 << 20)  # its own events
            select.select([events], [], [])
            nft.cmd(script)

    with _process(namespace, work):
        _answer(ours)
        time.sleep(0.1)
        yield


def _answer(pipe: Connection) -> None:
    """Wait for libnftables' answer in the other process. Raises RuntimeError when it is not that all went well."""
    code, _, error = pipe.recv() if pipe.poll(_PATIENCE) else (1, "", "a process of the bench does not answer")
    if code:
        raise RuntimeError(error)
