"""Port numbers as stretches: single ones and ranges, joined, cut and split, and who names them. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

K = TypeVar("K")

WIDE = 64
"""From this many ports on, a range stays one element of an interval map, with one counter.

Interval look-ups cost more than plain ones and grow, so a narrower range is listed port by port."""


class Ports(NamedTuple):
    """The ports `first` to `last`, both included; a single one when they are equal.

    A tuple, since Python hashes and compares those without code of ours: a pass over 10,000 ports does little else.
    """

    first: int
    last: int

    def __str__(self) -> str:
        """Give the form that nft, the configuration and reports share: `25` or `6000-6063`."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @classmethod
    def read(cls, text: str) -> Ports:
        """Read the form that `str` gives. Raises ValueError."""
        first, _, last = text.partition("-")
        return cls(int(first), int(last or first))

    @property
    def size(self) -> int:
        """How many ports."""
        return self.last - self.first + 1

    @property
    def wide(self) -> bool:
        """Whether it is kept in an interval map."""
        return self.size >= WIDE


def totals(listed: Iterable[tuple[K, Ports]]) -> dict[K, int]:
    """Count the ports of each place, whatever is listed there twice once."""
    stretches: dict[K, list[Ports]] = {}
    for place, ports in listed:
        stretches.setdefault(place, []).append(ports)
    return {place: sum(ports.size for ports in merge(found)) for place, found in stretches.items()}


def resolve(wanted: Sequence[Ports], unwanted: Sequence[Ports]) -> tuple[Ports, ...]:
    """Fold what is listed twice, take out what is excepted, and list narrow ranges port by port.

    What remains is sorted and does not overlap. A port inside one of the block's own wide ranges belongs to it.
    """
    holes = merge(unwanted)
    stretches = [rest for ports in merge(ports for ports in wanted if ports.wide) for rest in without(ports, holes)]
    wide = [rest for rest in stretches if rest.wide]
    narrow = [ports for ports in wanted if not ports.wide] + [rest for rest in stretches if not rest.wide]
    single = {port for ports in narrow for port in range(ports.first, ports.last + 1)}
    single -= {port for ports in [*holes, *wide] for port in range(ports.first, ports.last + 1)}
    return tuple(sorted([*(Ports(port, port) for port in single), *wide]))


def merge(ranges: Iterable[Ports], *, touching: bool = False) -> list[Ports]:
    """Join ranges that overlap and, if `touching`, those where the next begins right behind; give them sorted."""
    merged: list[Ports] = []
    for ports in sorted(ranges):
        if merged and ports.first <= merged[-1].last + touching:
            merged[-1] = Ports(merged[-1].first, max(merged[-1].last, ports.last))
        else:
            merged.append(ports)
    return merged


def without(ports: Ports, holes: Iterable[Ports]) -> list[Ports]:
    """Give what is left of a range; the holes are sorted, as `merge` gives them."""
    rest, first = [], ports.first
    for hole in holes:
        if hole.last < first or hole.first > ports.last:
            continue
        if hole.first > first:
            rest.append(Ports(first, hole.first - 1))
        first = hole.last + 1
    if first <= ports.last:
        rest.append(Ports(first, ports.last))
    return rest


def owners(listed: Mapping[str, tuple[Ports, ...]]) -> dict[Ports, tuple[str, ...]]:
    """Find every block that names a port: for each single port, and for each stretch of the wide ranges.

    Single ports are looked up first, so each also names the blocks whose wide range holds it, and the stretches are
    cut only where a wide range begins or ends.
    """
    wide = [(ports, name) for name, atoms in listed.items() for ports in atoms if ports.size > 1]
    single: dict[Ports, set[str]] = {}
    for name, atoms in listed.items():
        for ports in atoms:
            if ports.size == 1:
                single.setdefault(ports, set()).add(name)

    def of(port: int, names: Iterable[str] = ()) -> tuple[str, ...]:
        found = {*names, *(name for span, name in wide if span.first <= port <= span.last)}
        return tuple(name for name in listed if name in found) if len(found) > 1 else tuple(found)

    cuts = sorted({cut for ports, _ in wide for cut in (ports.first, ports.last + 1)})
    stretches = {Ports(first, after - 1): of(first) for first, after in pairwise(cuts)}
    # A stretch may be a single port, and that port listed too: then the listing knows all of its blocks.
    return {ports: names for ports, names in stretches.items() if names} | {
        ports: of(ports.first, names) for ports, names in single.items()
    }
