"""Networks as the elements of an interval set: joined where they overlap or meet, in the form that nft lists. Pure."""

from __future__ import annotations

import ipaddress
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def elements(places: Iterable[str], version: Literal[4, 6]) -> frozenset[str]:
    """Give those of the addresses and prefixes that are of this IP version, as elements.

    The kernel refuses elements of an interval set that overlap, and nft lists what meets as one in some versions.
    """
    networks = [network for place in places if (network := ipaddress.ip_network(place)).version == version]
    spans: list[tuple[int, int]] = []
    for first, last in sorted((int(network[0]), int(network[-1])) for network in networks):
        if spans and first <= spans[-1][1] + 1:
            spans[-1] = spans[-1][0], max(spans[-1][1], last)
        else:
            spans.append((first, last))
    return frozenset(span(first, last, version) for first, last in spans)


def lasting(places: Iterable[tuple[str, int]], version: Literal[4, 6]) -> dict[str, int]:
    """Give elements of this IP version that do not overlap, each with the most seconds of all that cover it.

    Cut at every border and never joined again: two times may differ by a second of rounding, and the elements must be
    the same all the same.
    """
    networks = [
        (network, left) for place, left in places if (network := ipaddress.ip_network(place)).version == version
    ]
    spans = sorted((int(network[0]), int(network[-1]) + 1, left) for network, left in networks)
    cuts = sorted({cut for first, after, _ in spans for cut in (first, after)})
    found: dict[str, int] = {}
    here: list[tuple[int, int]] = []  # a heap of those that have begun: the longest first, with its end
    at = 0
    for first, after in pairwise(cuts):
        while at < len(spans) and spans[at][0] <= first:
            heappush(here, (-spans[at][2], spans[at][1]))
            at += 1
        while here and here[0][1] <= first:
            heappop(here)
        if here:
            found[span(first, after - 1, version)] = -here[0][0]
    return found


def span(first: int, last: int, version: Literal[4, 6]) -> str:
    """Write a span as nft does: an address, a prefix where it is one, else a range."""
    make = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    count = last - first + 1
    if count == 1:
        return _address(make(first))
    if count & count - 1 == 0 and first % count == 0:
        return f"{_address(make(first))}/{(32 if version == 4 else 128) - count.bit_length() + 1}"
    return f"{_address(make(first))}-{_address(make(last))}"


def _address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    # inet_ntop(3), which nft lists with, writes these as ::ffff:192.0.2.1; python does from 3.13 on.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return f"::ffff:{mapped}" if mapped else str(address)
