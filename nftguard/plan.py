"""The smallest change from the live table to the desired one, as plain data. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from nftguard import differences
from nftguard.model import FAMILY, Set

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nftguard.model import Chain, Counter, DynamicSet, Map, Rule, Table, Verdict
    from nftguard.ports import Ports

Kind = Literal["chain", "map", "set", "counter"]


@dataclass(frozen=True, slots=True)
class AddTable:
    """Create a table; refused where it exists."""

    flags: frozenset[str] = frozenset()
    family: str = FAMILY


@dataclass(frozen=True, slots=True)
class Adopt:
    """Become the owner of a table that lost its own."""

    family: str = FAMILY


@dataclass(frozen=True, slots=True)
class DeleteTable:
    """Delete a table with all it holds; refused where there is none."""

    family: str = FAMILY


@dataclass(frozen=True, slots=True)
class Add:
    """Declare an object: a chain without its rules, a map without its elements. A base chain's policy is set."""

    thing: Chain | Map | DynamicSet | Set | Counter


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an object; refused while a rule or an element refers to it."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Flush:
    """Empty a chain of its rules, or a map or set of its elements."""

    kind: Literal["chain", "map", "set"]
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
class AddMembers:
    """Add elements to a set: as they are listed, and how each is written."""

    name: str
    members: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DeleteElements:
    """Delete elements of a map or a set by their keys."""

    name: str
    keys: tuple[Ports, ...] | tuple[str, ...]


Step = AddTable | Adopt | DeleteTable | Add | Delete | Flush | AddRule | AddElements | AddMembers | DeleteElements


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one transaction, and what was found that they mend, in words. Empty when nothing differs."""

    steps: tuple[Step, ...] = ()
    found: tuple[str, ...] = ()
    late: tuple[Flush | AddMembers | DeleteElements, ...] = ()
    """What comes in a transaction of its own: control groups. nft wants their paths, and one of them may have ended by
    now, which must not keep the rest from being applied."""

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.steps or self.late)

    def __len__(self) -> int:
        """Count the changes."""
        return len(self.steps) + len(self.late)


def diff(live: Table | None, desired: Table) -> Plan:
    """Plan the smallest change. What stays as it is is not touched and keeps its counter values."""
    if live is None:
        return rebuild(live, desired)
    found = tuple(differences.found(live, desired))
    if not found:
        return Plan()
    if differences.unfit(live, desired):
        return rebuild(live, desired)
    return Plan(tuple(_update(live, desired)), found, tuple(_late(live, desired)))


def rebuild(live: Table | None, desired: Table) -> Plan:
    """Plan to make everything anew in one transaction, carrying the counters' values over."""
    late = tuple(_late(None, desired))
    if live is None:
        return Plan(tuple(create(desired)), ("the table is missing",), late)
    kept = {name: live.counters.get(name, counter) for name, counter in desired.counters.items()}
    steps = (*remove(live).steps, *create(replace(desired, counters=kept)))
    return Plan(steps, tuple(differences.found(live, desired)), late)


def remove(live: Table) -> Plan:
    """Plan to lift the block."""
    return Plan(tuple(DeleteTable(of) for of in sorted(live.families)))


def create(desired: Table) -> Iterator[Step]:
    """Build everything from nothing, but for control groups.

    Chains stand before maps: nft 1.0.6 sends an interval map's elements with the map's declaration, and the kernel
    refuses a verdict whose chain does not exist yet. Rules come last, since they name maps and sets.
    """
    yield from (AddTable(desired.flags, of) for of in sorted(desired.families, reverse=True))
    for things in (desired.chains, desired.counters, desired.sets, desired.maps):
        yield from (Add(thing) for thing in things.values())
    for made in desired.sets.values():
        yield from _members(None, made)
    yield from (AddElements(made.name, made.elements) for made in desired.maps.values() if made.elements)
    yield from (AddRule(chain.name, rule) for chain in desired.chains.values() for rule in chain.rules)


def _update(live: Table, desired: Table) -> Iterator[Step]:
    """Order: what is added is declared, what changes is emptied, then filled, and what goes is deleted last."""
    if differences.adoptable(live, desired):
        yield from (Adopt(of) for of in sorted(desired.families, reverse=True))
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
    for name, wanted in desired.sets.items():
        yield from _members(live.sets.get(name), wanted)
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
    going, coming, moved = differences.apart(have, want.elements)
    if going or moved:
        yield DeleteElements(want.name, tuple(going + moved))
    if coming or moved:
        yield AddElements(want.name, {ports: want.elements[ports] for ports in coming + moved})


def _members(have: DynamicSet | Set | None, want: DynamicSet | Set) -> Iterator[Step]:
    if isinstance(want, Set) and not want.groups:
        yield from _refill(have if isinstance(have, Set) else Set(want.name, want.types), want)


def _late(live: Table | None, desired: Table) -> Iterator[Flush | AddMembers | DeleteElements]:
    for name, want in desired.sets.items():
        if isinstance(want, Set) and want.groups:
            have = live.sets.get(name) if live else None
            yield from _refill(have if isinstance(have, Set) else Set(name, want.types), want)


def _refill(have: Set, want: Set) -> Iterator[Flush | AddMembers | DeleteElements]:
    going, coming = have.elements - want.elements, want.elements - have.elements
    anew = going and (want.interval or want.timed or want.groups)
    if anew or (coming and have.elements and "ifname" in want.types) or differences.ends_otherwise(have, want):
        # nft 1.0.6 takes no part of an interval out that it listed merged, no control group without its path, and no
        # name of an interface besides one with a wildcard ("interval overlaps with an existing one"); an element that
        # has just ended is not there to be deleted.
        yield Flush("set", want.name)
        coming = want.elements
    elif going:
        yield DeleteElements(want.name, tuple(sorted(going)))
    if coming:
        yield AddMembers(want.name, {member: want.written.get(member, member) for member in sorted(coming)})
