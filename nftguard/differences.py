"""What sets the live table apart from the desired one, in words, and whether it can be mended in place. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from nftguard.model import ORPHAN, OWNED, Set

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nftguard.model import Base, Chain, DynamicSet, Map, Table
    from nftguard.ports import Ports

_T = TypeVar("_T")

_SLACK = 5  # seconds between two ends that count as one


def found(live: Table, desired: Table) -> Iterator[str]:
    """Name every difference."""
    if live.flags != desired.flags:
        if live.flags - OWNED or not desired.flags:
            yield f"the table has the flags {', '.join(sorted(live.flags)) or 'none'}"
            return  # what a table with other flags holds was not read
        yield "the table has no owner"
    yield from (f"the table of the family {of} is missing" for of in sorted(desired.families - live.families))
    yield from (f"the table of the family {of} does not belong here" for of in sorted(live.families - desired.families))
    yield from (f"{name} does not belong here" for name in sorted(live.foreign))
    kinds = (("chain", live.chains, desired.chains), ("map", live.maps, desired.maps), ("set", live.sets, desired.sets))
    for kind, have, want in kinds:
        yield from (f"{kind} {name} is missing" for name in want if name not in have)
        yield from (f"{kind} {name} does not belong here" for name in have if name not in want)
    for name in (name for name in desired.chains if name in live.chains):
        yield from _chain_differences(live.chains[name], desired.chains[name])
    for name in (name for name in desired.maps if name in live.maps):
        yield from _map_differences(live.maps[name], desired.maps[name])
    for name in (name for name in desired.sets if name in live.sets):
        yield from _set_differences(live.sets[name], desired.sets[name])
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
    going, coming, moved = apart(live.elements, desired.elements)
    yield from (f"map {live.name} lacks port {ports}" for ports in coming)
    yield from (f"map {live.name} has port {ports} besides" for ports in going)
    yield from (f"map {live.name} leads port {ports} elsewhere" for ports in moved)


def apart(have: Mapping[Ports, _T], want: Mapping[Ports, _T]) -> tuple[list[Ports], list[Ports], list[Ports]]:
    """List, sorted, the ports that only the one has, that only the other has, and that both have, to other ends."""
    # Of dicts made of dicts, and sets of those, Python takes the hashes over; code of ours would work out each anew,
    # which at 10,000 ports is ten times as long.
    have, want = dict(have), dict(want)
    going, coming = set(have) - set(want), set(want) - set(have)
    for ports in going:
        del have[ports]
    for ports in coming:
        del want[ports]
    moved = [] if have == want else [ports for ports, end in want.items() if have[ports] != end]
    return sorted(going), sorted(coming), sorted(moved)


def _set_differences(live: DynamicSet | Set, desired: DynamicSet | Set) -> Iterator[str]:
    if _declared(live) != _declared(desired):
        yield f"set {live.name} is declared differently"
    elif isinstance(live, Set) and isinstance(desired, Set):
        yield from (f"set {live.name} lacks {member}" for member in sorted(desired.elements - live.elements))
        yield from (f"set {live.name} has {member} besides" for member in sorted(live.elements - desired.elements))
        if ends_otherwise(live, desired):
            yield f"set {live.name} has elements that end at another time"


def _declared(found: DynamicSet | Set) -> DynamicSet | Set:
    return replace(found, elements=frozenset()) if isinstance(found, Set) else found


def unfit(live: Table, desired: Table) -> bool:
    """Tell whether something differs that no change in place can mend (or that nobody should have touched)."""
    return bool(
        (live.flags != desired.flags and not adoptable(live, desired))
        or live.families != desired.families
        or live.foreign
        or any(
            name in live.sets and _declared(live.sets[name]) != _declared(want) for name, want in desired.sets.items()
        )
        or any(name in live.maps and _unfit_map(live.maps[name], want) for name, want in desired.maps.items())
        or any(
            name in live.chains and (live.chains[name].base is None) != (want.base is None)
            for name, want in desired.chains.items()
        )
    )


def adoptable(live: Table, desired: Table) -> bool:
    """Tell whether the live table only lacks the owner that it had."""
    return (live.flags, desired.flags) == (ORPHAN, OWNED)


def _unfit_map(live: Map, desired: Map) -> bool:
    return (live.value, live.interval, live.foreign) != (desired.value, desired.interval, desired.foreign)


def ends_otherwise(have: Set, want: Set) -> bool:
    """Tell whether an element that is there would end at another time than it should."""
    return any(abs(have.left[member] - left) > _SLACK for member, left in want.left.items() if member in have.left)


def aged(expected: Table, live: Table | None) -> Table:
    """Take what was expected as it may be by now: what ends by itself, control groups too, may have ended."""
    sets = dict(expected.sets)
    for name, made in expected.sets.items():
        have = live.sets.get(name) if live else None
        if isinstance(made, Set) and (made.timed or made.groups) and isinstance(have, Set):
            sets[name] = replace(made, elements=have.elements & made.elements, left={})
    return replace(expected, sets=sets)
