"""The elements of a set as nf_tables gives them, in binary, to the text in which nft lists them. Pure.

libnftables 1.0.6 lists one set at a time, 0.2 ms each whatever is in it, and twice where its JSON may end the process.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from nftguard import addresses
from nftguard.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nftguard.model import Set

END, CATCHALL = 1, 2  # linux/include/uapi/linux/netfilter/nf_tables.h, enum nft_set_elem_flags
_PROTOCOLS = {protocol.number: protocol.value for protocol in Protocol}
_SIZES = {
    "uid": 4,
    "gid": 4,
    "cgroupsv2": 8,
    "ipv4_addr": 4,
    "ipv6_addr": 16,
    "ifname": 16,
    "inet_proto": 1,
    "inet_service": 2,
}


class Element(NamedTuple):
    """One element; in a set of intervals one end of them, or both where a key has several parts."""

    key: bytes
    last: bytes = b""
    """The upper end of an interval, of keys with several parts."""
    flags: int = 0
    left: int = 0
    """Milliseconds after which it ends; 0 where it does not."""
    more: bool = False
    """Whether it has what we give none: a comment, a counter, a time without end."""


def fill(made: Set, found: Iterable[Element]) -> Set:
    """Give the set, as it is declared, its elements; with what we would never write it is marked as foreign."""
    elements: dict[str, int] = {}
    if not made.types or not set(made.types) <= _SIZES.keys():
        return replace(made, foreign=made.foreign or f"type {' . '.join(made.types)}")
    odd = False
    for text, left, more in _spans(made, found):
        elements[text] = left // 1000
        odd |= more
    foreign = made.foreign or ("elements with more than a key" if odd else "")
    return replace(made, elements=frozenset(elements), foreign=foreign, left=elements if made.timed else {})


def _spans(made: Set, found: Iterable[Element]) -> Iterator[tuple[str, int, bool]]:
    if len(made.types) > 1 or not made.interval:
        for element in found:
            odd = element.more or element.flags != 0
            yield _parts(made.types, element.key, element.last or element.key), element.left, odd
        return
    (kind,) = made.types
    size = _SIZES[kind]
    # An interval goes to the next end, which is the first value beyond it, or to the next begin; the last one may go to
    # the end of all values. Ends come before begins of the same value.
    ends = sorted(found, key=lambda element: (element.key, not element.flags & END))
    begun: Element | None = None
    for element in [*ends, Element(bytes(size), flags=END, more=False)]:
        value = int.from_bytes(element.key)
        if begun:
            first = int.from_bytes(begun.key)
            yield _span(kind, first, (value or 1 << 8 * size) - 1), begun.left, begun.more
        begun = None if element.flags & END else element
        if element.flags & ~END or len(element.key) != size:
            yield "something", 0, True
            begun = None


def _parts(types: tuple[str, ...], first: bytes, last: bytes) -> str:
    """Write a key of several parts, each padded to four bytes."""
    written: list[str] = []
    at = 0
    for kind in types:
        size = _SIZES[kind]
        begin, end = first[at : at + size], last[at : at + size]
        if kind in {"uid", "gid", "cgroupsv2"}:
            written.append(str(int.from_bytes(begin, sys.byteorder)))
        else:
            written.append(_span(kind, int.from_bytes(begin), int.from_bytes(end)))
        at += size + 3 & ~3
    return " . ".join(written)


def _span(kind: str, first: int, last: int) -> str:
    """Write a value, or an interval of them, as nft does; what runs backwards is like nothing that is wanted."""
    if last < first:
        return "nothing"
    match kind:
        case "ipv4_addr" | "ipv6_addr":
            return addresses.span(first, last, 4 if kind == "ipv4_addr" else 6)
        case "ifname":
            return _interface(first.to_bytes(16), last.to_bytes(16))
        case "inet_proto" if first == last:
            return _PROTOCOLS.get(first, str(first))
    return str(first) if first == last else f"{first}-{last}"


def _interface(first: bytes, last: bytes) -> str:
    """Write a name, or what begins with one: that goes from zeros behind it to the highest bytes behind it."""
    name = first.rstrip(b"\0")
    stem = last.rstrip(b"\xff")
    text = name.decode(errors="backslashreplace")
    if first == last:
        return text
    return f"{text}*" if name == stem else f"{text}-{stem.decode(errors='backslashreplace')}"
