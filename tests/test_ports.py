"""Ports as people write them, and as stretches."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard import services
from nftguard.ports import WIDE, Ports, merge, resolve, without

if TYPE_CHECKING:
    from collections.abc import Iterable


def one(port: int) -> Ports:
    return Ports(port, port)


def spread(stretches: Iterable[Ports]) -> list[int]:
    return [port for ports in stretches for port in range(ports.first, ports.last + 1)]


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        (25, [one(25)]),
        ("25", [one(25)]),
        (65535, [one(65535)]),
        ("6000-6063", [Ports(6000, 6063)]),
        (" 6000 - 6063 ", [Ports(6000, 6063)]),
        ("7-7", [one(7)]),
        ("telnet", [one(23)]),
        ("smtp", [one(25)]),
        ("@mail", [one(port) for port in (25, 109, 110, 143, 465, 587, 993, 995)]),
    ],
)
def test_an_entry_is_read(text: object, ports: list[Ports]) -> None:
    assert list(services.parse(text)) == ports


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (0, "port 0 is out of range; ports are 1 to 65535"),
        (-1, "out of range"),
        (65536, "out of range"),
        ("9" * 5000, "out of range"),
        ("30-20", "range 30-20 runs backwards; write 20-30"),
        ("0-20", "out of range"),
        ("1-99999", "out of range"),
        ("telnt", "no service 'telnt' in /etc/services (did you mean telnet?); write the number"),
        ("", "no service ''"),
        ("smtp\u017f", "no service"),
        ("a\0b", "no service"),
        ("25, 26", "no service"),
        ("@mial", "no preset @mial (did you mean @mail?); there is @mail"),
        (True, "write a port number"),
        (2.5, "write a port number"),
        ([25], "write a port number"),
    ],
)
def test_nonsense_is_refused_with_the_way_out(text: object, says: str) -> None:
    with pytest.raises(ValueError, match=r"port|service|preset|range") as caught:
        services.parse(text)
    assert says in str(caught.value)


def test_without_etc_services_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minimal Debian 12 has none."""
    monkeypatch.setattr(services, "SERVICES", Path("/nonexistent"))
    with pytest.raises(ValueError, match="package netbase"):
        services.parse("no-such-service")


_RANGES = st.tuples(st.integers(1, 400), st.integers(0, 150)).map(lambda pair: Ports(pair[0], pair[0] + pair[1]))


@given(wanted=st.lists(_RANGES, max_size=8), unwanted=st.lists(_RANGES, max_size=4))
def test_resolving_keeps_exactly_what_is_wanted(wanted: list[Ports], unwanted: list[Ports]) -> None:
    found = resolve(wanted, unwanted)
    assert sorted(spread(found)) == sorted(set(spread(wanted)) - set(spread(unwanted))), "each port once"
    assert all(ports.size == 1 or ports.size >= WIDE for ports in found), "narrow ranges port by port"
    assert list(found) == sorted(found)


@given(st.lists(_RANGES, max_size=8), st.booleans())
def test_merging_joins_what_overlaps_and_what_touches_where_it_is_asked_to(
    stretches: list[Ports], touching: bool
) -> None:
    merged = merge(stretches, touching=touching)
    assert all(left.last + touching < right.first for left, right in itertools.pairwise(merged))
    assert set(spread(merged)) == set(spread(stretches))


def test_ranges_that_touch_stay_two_unless_they_are_to_be_joined() -> None:
    assert merge([one(26), one(25)]) == [one(25), one(26)]
    assert merge([one(26), one(25)], touching=True) == [Ports(25, 26)]


@given(_RANGES, st.lists(_RANGES, max_size=8))
def test_what_is_left_of_a_range_is_what_no_hole_has(ports: Ports, holes: list[Ports]) -> None:
    rest = without(ports, merge(holes))
    assert spread(rest) == sorted(set(spread([ports])) - set(spread(holes)))
    assert all(left.last + 1 < right.first for left, right in itertools.pairwise(rest)), "as few as can be"


def test_thousands_of_exceptions_are_no_work() -> None:
    """65,535 ports without every second one; where this is quadratic it takes an hour."""
    found = resolve([Ports(1, 65535)], [one(port) for port in range(2, 65535, 2)])
    assert len(found) == 32768


def test_a_single_port_inside_the_blocks_own_wide_range_belongs_to_it() -> None:
    assert resolve([one(100), Ports(1, 200)], []) == (Ports(1, 200),)


def test_a_hole_in_a_wide_range_leaves_narrow_rests_port_by_port() -> None:
    assert resolve([Ports(1, 100)], [one(3)]) == (one(1), one(2), Ports(4, 100))
