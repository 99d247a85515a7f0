"""The smallest change from the live table to the desired one, as plain data. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from nftguard.model import ORPHAN, OWNED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nftguard.model import Base, Chain, Counter, DynamicSet, Map, Rule, Table, Verdict
    from nftguard.ports import Ports

Kind = Literal["chain", "map", "set", "counter"]


@dataclass(frozen=True, slots=True)
class AddTable:
    """Create the table; refused where it exists."""

    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Adopt:
    """Become the owner of a table that lost its own."""


@dataclass(frozen=True, slots=True)
class DeleteTable:
    """Delete the table with all it holds; refused where there is none."""


@dataclass(frozen=True, slots=True)
class Add:
    """Declare an object: a chain without its rules, a map without its elements. A base chain's policy is set."""

    thing: Chain | Map | DynamicSet | Counter


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an object; refused while a rule or an element refers to it."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Flush:
    """Empty a chain of its rules, or a map of its elements."""

    kind: Literal["chain", "map"]
    name: str


@dataclass(frozen=True, slots=True)
class AddRule:
    """Append a rule to a chain."""

    chain: str
    rule: Rule


@dataclass(frozen=True, slots=True)
class AddElements:
    """Add elements to a map."""

    name: str
    elements: Mapping[Ports, Verdict | str]


@dataclass(frozen=True, slots=True)
class DeleteElements:
    """Delete elements of a map by their keys."""

    name: str
    keys: tuple[Ports, ...]


Step = AddTable | Adopt | DeleteTable | Add | Delete | Flush | AddRule | AddElements | DeleteElements


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one transaction, and what was found that they mend, in words. Empty when nothing differs."""

    steps: tuple[Step, ...] = ()
    found: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.steps)


def diff(live: Table | None, desired: Table) -> Plan:
    """Plan the smallest change. What stays as it is is not touched and keeps its counter values."""
    if live is None:
        return rebuild(live, desired)
    found = tuple(_differences(live, desired))
    if not found:
        return Plan()
    if _unfit(live, desired):
        return rebuild(live, desired)
    return Plan(tuple(_update(live, desired)), found)


def rebuild(live: Table | None, desired: Table) -> Plan:
    """Plan to make the whole table anew in one transaction, carrying the counters' values over."""
    if live is None:
        return Plan(tuple(create(desired)), ("the table is missing",))
    kept = {name: live.counters.get(name, counter) for name, counter in desired.counters.items()}
    steps = (DeleteTable(), *create(replace(desired, counters=kept)))
    return Plan(steps, tuple(_differences(live, desired)))


def remove() -> Plan:
    """Plan to lift the block."""
    return Plan((DeleteTable(),), ())


def create(desired: Table) -> Iterator[Step]:
    """Build the table from nothing.

    Chains stand before maps: nft 1.0.6 sends an interval map's elements with the map's declaration, and the kernel
    refuses a verdict whose chain does not exist yet. Rules come last, since they name maps and sets.
    """
    yield AddTable(desired.flags)
    for things in (desired.chains, desired.counters, desired.sets, desired.maps):
        yield from (Add(thing) for thing in things.values())
    yield from (AddElements(made.name, made.elements) for made in desired.maps.values() if made.elements)
    yield from (AddRule(chain.name, rule) for chain in desired.chains.values() for rule in chain.rules)


def _differences(live: Table, desired: Table) -> Iterator[str]:
    if live.flags != desired.flags:
        if live.flags - OWNED or not desired.flags:
            yield f"the table has the flags {', '.join(sorted(live.flags)) or 'none'}"
            return  # what a table with other flags holds was not read
        yield "the table has no owner"
    yield from (f"{name} does not belong here" for name in sorted(live.foreign))
    kinds = (("chain", live.chains, desired.chains), ("map", live.maps, desired.maps), ("set", live.sets, desired.sets))
    for kind, have, want in kinds:
        yield from (f"{kind} {name} is missing" for name in want if name not in have)
        yield from (f"{kind} {name} does not belong here" for name in have if name not in want)
    for name in (name for name in desired.chains if name in live.chains):
        yield from _chain_differences(live.chains[name], desired.chains[name])
    for name in (name for name in desired.maps if name in live.maps):
        yield from _map_differences(live.maps[name], desired.maps[name])
    yield from (
        f"set {name} is declared differently"
        for name, want in desired.sets.items()
        if name in live.sets and live.sets[name] != want
    )
    yield from (f"counter {name} is missing" for name in desired.counters if name not in live.counters)
    yield from (f"counter {name} does not belong here" for name in live.counters if name not in desired.counters)


def _chain_differences(live: Chain, desired: Chain) -> Iterator[str]:
    if live.base != desired.base:
        yield f"chain {live.name} has {_told(live.base)} instead of {_told(desired.base)}"
    if live.rules != desired.rules:
        yield f"chain {live.name} has other rules"


def _told(base: Base | None) -> str:
    return f"{base.type} hook {base.hook} priority {base.priority} policy {base.policy}" if base else "no hook"


def _map_differences(live: Map, desired: Map) -> Iterator[str]:
    if _unfit_map(live, desired):
        yield f"map {live.name} is declared differently"
    have, want = live.elements, desired.elements
    yield from (f"map {live.name} lacks port {ports}" for ports in want if ports not in have)
    yield from (f"map {live.name} has port {ports} besides" for ports in have if ports not in want)
    yield from (
        f"map {live.name} leads port {ports} elsewhere"
        for ports in want
        if ports in have and have[ports] != want[ports]
    )


def _unfit(live: Table, desired: Table) -> bool:
    """Whether something differs that no change in place can mend (or that nobody should have touched)."""
    return bool(
        (live.flags != desired.flags and not _adoptable(live, desired))
        or live.foreign
        or any(name in live.sets and live.sets[name] != want for name, want in desired.sets.items())
        or any(name in live.maps and _unfit_map(live.maps[name], want) for name, want in desired.maps.items())
        or any(
            name in live.chains and (live.chains[name].base is None) != (want.base is None)
            for name, want in desired.chains.items()
        )
    )


def _adoptable(live: Table, desired: Table) -> bool:
    return (live.flags, desired.flags) == (ORPHAN, OWNED)


def _unfit_map(live: Map, desired: Map) -> bool:
    return (live.value, live.interval, live.foreign) != (desired.value, desired.interval, desired.foreign)


def _update(live: Table, desired: Table) -> Iterator[Step]:
    """Order: what is added is declared, what changes is emptied, then filled, and what goes is deleted last."""
    if _adoptable(live, desired):
        yield Adopt()
    changed = [
        chain
        for name, chain in desired.chains.items()
        if name not in live.chains or live.chains[name].rules != chain.rules or live.chains[name].base != chain.base
    ]
    for chain in changed:
        have = live.chains.get(chain.name)
        if have:
            yield Flush("chain", chain.name)
        if have and have.base and chain.base and replace(have.base, policy=chain.base.policy) != chain.base:
            # The kernel changes a base chain's policy in place, but neither its hook, type nor priority.
            yield Delete("chain", chain.name)
        if not have or have.base != chain.base:
            yield Add(chain)
    gone = [name for name in live.chains if name not in desired.chains]
    yield from (Flush("chain", name) for name in gone)
    for have_all, want_all in ((live.counters, desired.counters), (live.sets, desired.sets), (live.maps, desired.maps)):
        yield from (Add(thing) for name, thing in want_all.items() if name not in have_all)
    for want in desired.maps.values():
        yield from _elements(live.maps[want.name].elements if want.name in live.maps else {}, want)
    yield from (AddRule(chain.name, rule) for chain in changed for rule in chain.rules)
    yield from (Delete("map", name) for name in live.maps if name not in desired.maps)
    yield from (Delete("chain", name) for name in gone)
    yield from (Delete("set", name) for name in live.sets if name not in desired.sets)
    yield from (Delete("counter", name) for name in live.counters if name not in desired.counters)


def _elements(have: Mapping[Ports, Verdict | str], want: Map) -> Iterator[Step]:
    if have == want.elements:
        return
    if want.interval:
        # Few elements, and nft 1.0.6 merges and splits intervals as it sees fit: write them anew.
        if have:
            yield Flush("map", want.name)
        yield AddElements(want.name, want.elements)
        return
    if going := tuple(ports for ports, goal in have.items() if want.elements.get(ports) != goal):
        yield DeleteElements(want.name, going)
    if coming := {ports: goal for ports, goal in want.elements.items() if have.get(ports) != goal}:
        yield AddElements(want.name, coming)
