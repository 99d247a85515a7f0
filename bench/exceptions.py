"""Exceptions: ns that 5,000 of them in 50 blocks add to a packet, and ms for a pass over them."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench.figure import Figure, Goal, progress
from bench.guard import ORIGIN, ports
from bench.namespace import Namespace
from bench.traffic import ACK, Sender
from bench.turns import Timer, in_turns
from nftguard import config, nftscript, policy
from nftguard.host import Host
from nftguard.kernel import Nftables
from nftguard.model import Set
from nftguard.plan import Plan, create
from nftguard.reconcile import reconcile

if TYPE_CHECKING:
    from nftguard.model import Table

ROUNDS = 1500
_BATCH = 128
_PASSES = 40
_BLOCKS, _EACH = 50, 20  # so many blocks, with so many of each kind of exception: of five kinds, 5,000 in all
_FLAT = Goal(1.15)
_FEW, _MANY, _PLAIN, _ALL = (
    "11 ports and a user",
    "50 blocks, 5,000 exceptions",
    "without exceptions",
    "with every kind",
)
_CLOSED = 20001  # the first port of the first block

_STEPS = {"from nothing": None, "after a change": None, "nothing changed": Goal(50, "value"), "one user more": None}
"""Passes that follow each other: only the second one reads the whole table."""


def measure() -> list[Figure]:
    """Measure nanoseconds of a packet that no block names, and of one that is dropped, and milliseconds of a pass.

    Layouts of rules take turns, in random order, as in `packet`. What is dropped is sent one packet a call, since a
    drop ends the call; that call's own price is in both figures.
    """
    with Namespace() as few, Namespace() as many, Namespace() as bare:
        tables = {_FEW: _table(ORIGIN, 'allow = { users = ["5000"] }\n'), _MANY: _table(ports(1), _blocks())}
        passing = _packets({"": bare, _FEW: few, _MANY: many}, tables)
        passes = _passes({_FEW: few, _MANY: many}, tables)
    with Namespace() as plain, Namespace() as every:
        dropping = {_PLAIN: _table(ports(1), ""), _ALL: _table(ports(1), _allow(0))}
        dropped = _drops({_PLAIN: plain, _ALL: every}, dropping)

    added = {
        name: median(layout - none for layout, none in zip(passing[name], passing[""], strict=True))
        for name in (_FEW, _MANY)
    }
    figures = [
        Figure(f"added to a packet that passes, {_MANY}", added[_MANY], "ns", _FEW, added[_FEW], ROUNDS, _FLAT),
        Figure(f"a dropped packet, {_ALL}", median(dropped[_ALL]), "ns", _PLAIN, median(dropped[_PLAIN]), ROUNDS),
    ]
    for what, goal in _STEPS.items():
        value, baseline = (median(passes[f"{what}, {name}"]) for name in (_MANY, _FEW))
        figures.append(Figure(f"a pass, {what}, {_MANY}", value, "ms", _FEW, baseline, _PASSES, goal))
    return figures


def _allow(number: int) -> str:
    """Write an `allow` with exceptions of each kind, none of them like another's."""
    start = number * _EACH
    spread = range(start, start + _EACH)
    listed = {
        "users": [str(5000 + at) for at in spread],
        "groups": [str(5000 + at) for at in spread],
        "to": [f"{IPv4Address(0x0A000000 + (at << 9))}/24" for at in spread],
        "from": [str(IPv6Address((0x20010DB8 << 96) + (at << 64))) for at in spread],
        "interfaces": [f"veth{at}" for at in spread],
        "units": [f"unit{number}.service"],  # that does not run: its set is asked all the same
    }
    return "allow = { " + ", ".join(f"{key} = {members}" for key, members in listed.items()).replace("'", '"') + " }\n"


def _blocks() -> str:
    """Write the exceptions of the first block, and all the others."""
    others = (
        f'[[block]]\nname = "block{number}"\nports = [{_CLOSED + 2 * number}]\n{_allow(number)}'
        for number in range(1, _BLOCKS)
    )
    return _allow(0) + "".join(others)


def _table(listed: tuple[str, ...], more: str) -> Table:
    """Build the table of a block with these ports, and with this text after it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "nftguard.toml"
        path.write_text(f'[[block]]\nname = "mail"\nports = [{", ".join(listed)}]\n{more}', encoding="ascii")
        return policy.build(config.load(path), host=Host())


def _load(namespace: Namespace, table: Table) -> None:
    namespace.run("nft", "-f", "-", text=nftscript.script(Plan(tuple(create(table)))))


def _packets(namespaces: dict[str, Namespace], tables: dict[str, Table]) -> dict[str, list[float]]:
    """Time packets to ports that nothing names."""
    timers: dict[str, Timer] = {}
    for name, namespace in namespaces.items():
        namespace.add_sink()
        if name:
            _load(namespace, tables[name])
        with namespace.entered():
            timers[name] = Sender([20002 + 1000 * (at % 16) for at in range(_BATCH)], ACK).timed
    return in_turns("exceptions", timers, ROUNDS)


def _drops(namespaces: dict[str, Namespace], tables: dict[str, Table]) -> dict[str, list[float]]:
    """Time packets that are dropped, and are no attempts, so that none is logged."""
    timers: dict[str, Timer] = {}
    for name, namespace in namespaces.items():
        namespace.add_sink()
        _load(namespace, tables[name])
        with namespace.entered():
            timers[name] = _refused(Sender([_CLOSED], ACK))
    return in_turns("exceptions", timers, ROUNDS)


def _refused(sender: Sender) -> Timer:
    def timed() -> float:
        begun = time.perf_counter_ns()
        sent = [sender.send() for _ in range(_BATCH)]
        took = time.perf_counter_ns() - begun
        if max(sent) > 0:
            raise RuntimeError("a packet to a blocked port was sent")
        return took / _BATCH

    return timed


def _passes(namespaces: dict[str, Namespace], tables: dict[str, Table]) -> dict[str, list[float]]:
    """Time `reconcile` in this process, as `apply` does."""
    found: dict[str, list[float]] = {}
    for name, namespace in namespaces.items():
        progress(f"exceptions: passes over {name}")
        with namespace.entered():
            kernel = Nftables()
        table = tables[name]
        steps = dict(zip(_STEPS, (table, table, table, _one_more(table)), strict=True))
        for _ in range(_PASSES):
            namespace.run("nft", "flush", "ruleset")
            for what, desired in steps.items():
                begun = time.perf_counter_ns()
                reconcile(kernel, desired)
                found.setdefault(f"{what}, {name}", []).append((time.perf_counter_ns() - begun) / 1e6)
        kernel.close()
    return found


def _one_more(table: Table) -> Table:
    made = table.sets["mail.users"]
    assert isinstance(made, Set)
    return replace(table, sets={**table.sets, made.name: replace(made, elements=made.elements | {"4999"})})
