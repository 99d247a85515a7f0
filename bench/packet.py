"""Packet: ns that the rules add to a packet which they do not block."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from bench.figure import Figure, Goal, progress
from bench.guard import Guard, ports
from bench.namespace import Namespace
from bench.traffic import ACK, Sender
from bench.turns import in_turns

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 1500
_BATCH = 512
_SHORT = 16  # different ports; and packets in a batch of a layout that takes tens of microseconds for each
_FLAT = Goal(1.25)
_BASE_CHAIN = (
    "add table inet nftguard\n"
    "add chain inet nftguard output { type filter hook output priority filter; policy accept; }\n"
)


def measure() -> list[Figure]:
    """Measure nanoseconds added to a TCP packet to an unlisted port, on its way through the output hook.

    Each layout of rules has a namespace; one thread on one CPU sends a short batch into each in turn, in random order,
    and the median of the differences within a round to the namespace without rules is what a layout adds.
    """
    found = _rounds()
    bare = median(found["none"])
    added = {
        name: median(layout - none for layout, none in zip(times, found["none"], strict=True))
        for name, times in found.items()
    }

    figures = [Figure("a packet, 11 ports listed", bare + added["nftguard 11"], "ns", "no rules", bare, ROUNDS)]
    for count, against, goal in (
        ("11", "iptables-legacy, 11", Goal(0.4)),
        ("11", "an empty base chain", None),
        ("1,000", "nftguard 11", _FLAT),
        ("10,000", "nftguard 11", _FLAT),
        ("1,000", "iptables-legacy, 1,000", None),
    ):
        if against in added:
            value, baseline = added[f"nftguard {count}"], added[against]
            figures.append(Figure(f"added, {count} ports listed", value, "ns", against, baseline, ROUNDS, goal))
    return figures


def _rounds() -> dict[str, list[float]]:
    layouts: dict[str, Callable[[Namespace], None]] = {
        "none": lambda _: None,
        "an empty base chain": lambda namespace: namespace.run("nft", "-f", "-", text=_BASE_CHAIN),
        **{f"nftguard {count:,}": _nftguard(count) for count in (11, 1000, 10000)},
        **{f"iptables-legacy, {count:,}": _iptables(count) for count in (11, 1000)},
    }
    # Even numbers, which no layout lists. A host speaks to few ports at a time: with hundreds, at 10,000 listed ones
    # another 100 ns go into caches that the other layouts have just emptied.
    unlisted = [20002 + 1000 * (at % _SHORT) for at in range(_BATCH)]
    senders: dict[str, Sender] = {}
    for name, load in layouts.items():
        progress(f"packet: loading {name}")
        with Namespace() as namespace:
            namespace.add_sink()
            try:
                load(namespace)
            except (OSError, RuntimeError) as error:
                if "iptables" not in name:
                    raise
                progress(f"packet: {name} left out: {error}")  # newer kernels may come without it
                continue
            with namespace.entered():
                senders[name] = Sender(unlisted[: _SHORT if name.endswith("legacy, 1,000") else None], ACK)
    return in_turns("packet", {name: sender.timed for name, sender in senders.items()}, ROUNDS)


def _nftguard(count: int) -> Callable[[Namespace], None]:
    def load(namespace: Namespace) -> None:
        with Guard(namespace, ports(count)) as guard:
            namespace.run("nft", "-f", "-", text=guard.script())

    return load


def _iptables(count: int) -> Callable[[Namespace], None]:
    """The rules that nftguard replaces: a pair for each port, the first of which logs and the second drops."""

    def load(namespace: Namespace) -> None:
        with Guard(namespace, ports(count)) as guard:
            listed = [port for block in guard.config().block for port in block.resolved()]
        pairs = "".join(
            f"-A OUTPUT -p tcp --dport {port} -j LOG\n-A OUTPUT -p tcp --dport {port} -j DROP\n" for port in listed
        )
        namespace.run("iptables-legacy-restore", text=f"*filter\n{pairs}COMMIT\n")

    return load
