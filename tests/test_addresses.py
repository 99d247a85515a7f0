"""Networks as elements: against a plain reading of the addresses in them."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from nftguard import addresses

# Few bits, so that they overlap and meet.
_PLACES = st.tuples(st.integers(0, 63), st.integers(26, 32)).map(
    lambda pair: str(ipaddress.ip_network((0x0A000000 + pair[0], pair[1]), strict=False))
)


def held(element: str) -> set[str]:
    """The addresses that an element stands for."""
    first, _, last = element.partition("-")
    if last:
        ends = ipaddress.IPv4Address(first), ipaddress.IPv4Address(last)
        return {str(one) for net in ipaddress.summarize_address_range(*ends) for one in net}
    return {str(one) for one in ipaddress.ip_network(element)}


@given(st.lists(_PLACES, max_size=12))
def test_elements_hold_what_the_places_do_and_neither_overlap_nor_meet(places: list[str]) -> None:
    found = addresses.elements([*places, "2001:db8::/32"], 4)
    sets = [held(element) for element in found]
    assert set().union(*sets) == {address for place in places for address in held(place)}
    assert sum(map(len, sets)) == len(set().union(*sets))
    numbers = sorted(int(ipaddress.IPv4Address(min(one, key=ipaddress.IPv4Address))) for one in sets)
    ends = sorted(int(ipaddress.IPv4Address(max(one, key=ipaddress.IPv4Address))) for one in sets)
    assert all(after > end + 1 for after, end in zip(numbers[1:], ends, strict=False))


@given(st.lists(st.tuples(_PLACES, st.integers(1, 100)), max_size=12))
def test_each_address_lasts_as_long_as_the_longest_of_those_that_hold_it(places: list[tuple[str, int]]) -> None:
    found = addresses.lasting([*places, ("2001:db8::1", 5)], 4)
    told: dict[str, int] = {}
    for element, left in found.items():
        for address in held(element):
            assert address not in told, "the kernel refuses elements that overlap"
            told[address] = left
    everywhere = {address for place, _ in places for address in held(place)}
    assert told == {address: max(left for place, left in places if address in held(place)) for address in everywhere}
