"""What is known of names: when each is asked for, and what is held."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.resolver import entries
from nftguard.resolver.book import Book, Limits, Question, Reply
from nftguard.resolver.entries import MAX_ADDRESSES, Entry

NAME, A, B, C = "smtp.relay.example", "198.51.100.7", "198.51.100.8", "2001:db8::7"
V4, V6 = Question(NAME, 4), Question(NAME, 6)
SILENT = Reply(error="no server answers")


class Told:
    """A book of one name, with a clock moved by hand."""

    def __init__(self, entry: Entry = Entry()) -> None:  # noqa: B008 - it is frozen
        self.now = 1000.0
        self.book = Book(Limits())
        self.book.want({NAME: entry}, self.now)

    def after(self, seconds: float, v4: Reply | None = None, v6: Reply | None = None) -> None:
        """Let time pass, and answer what is due; what is not answered here is passed over."""
        self.now += seconds
        for question in self.book.take(self.now):
            self.book.learn(
                question,
                (v4 if question == V4 else v6) or Reply(ttl=3600, none="it has no address"),
                self.now,
                self.now,
            )

    @property
    def addresses(self) -> set[str]:
        return set(self.book.entries()[NAME].addresses)

    @property
    def error(self) -> str:
        return self.book.entries()[NAME].error


def found(*addresses: str, ttl: float = 60) -> Reply:
    return Reply(frozenset(addresses), ttl)


@pytest.mark.parametrize(("ttl", "wait"), [(0, 30), (29, 30), (60, 60), (3600, 3600), (1e9, 3600)])
def test_a_name_is_asked_for_again_when_its_time_to_live_is_over_within_bounds(ttl: float, wait: float) -> None:
    told = Told()
    told.after(0, found(A, ttl=ttl), found(C, ttl=1e9))
    assert told.book.wait(told.now) == wait
    assert told.book.take(told.now + wait - 1) == []
    assert V4 in told.book.take(told.now + wait)


def test_a_question_that_is_under_way_is_not_asked_twice() -> None:
    told = Told()
    assert set(told.book.take(told.now)) == {V4, V6}
    assert told.book.take(told.now + 1e6) == []


def test_after_failures_it_is_asked_ever_more_rarely_and_what_was_found_is_held_without_end() -> None:
    told = Told()
    told.after(0, found(A), found(C))
    waits = []
    for _ in range(9):
        told.after(told.book.wait(told.now), SILENT, SILENT)
        waits.append(told.book.wait(told.now))
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    told.after(30 * 86400, SILENT, SILENT)
    assert told.addresses == {A, C}
    assert told.error == "no server answers"
    assert told.book.entries()[NAME].at == 1000.0


def test_the_first_failure_of_what_has_an_answer_is_not_told() -> None:
    told = Told()
    told.after(0, found(A), found(C))
    told.after(60, SILENT, SILENT)
    assert told.error == ""
    told.after(5, SILENT, SILENT)
    assert told.error == "no server answers"


def test_an_address_that_is_lacking_is_held_for_five_minutes_of_answers() -> None:
    told = Told()
    told.after(0, found(A))
    told.after(60, found(B))
    assert told.addresses == {A, B}
    told.after(60, found(A, B))
    assert told.addresses == {A, B}
    told.after(60, found(B, ttl=3600))
    assert told.book.wait(told.now) == 300, "asked for then, whatever the time to live"
    told.after(299, found(B))
    assert told.addresses == {A, B}
    told.after(1, found(B))
    assert told.addresses == {B}
    assert told.error == ""


def test_failures_do_not_count_as_answers_that_lack_an_address() -> None:
    told = Told()
    none = Reply(ttl=30, none="it has no address")
    told.after(0, found(A), none)
    told.after(60, Reply(ttl=60, none="there is no such name"), none)
    assert told.error == "there is no such name"
    assert told.book.entries()[NAME].at == 1000, "when it was last confirmed"
    for _ in range(100):
        told.after(300, SILENT)
    assert told.addresses == {A}
    told.after(300, Reply(ttl=60, none="there is no such name"))
    assert told.addresses == set()
    assert told.error == "there is no such name"


def test_one_family_that_fails_leaves_the_other_alone() -> None:
    told = Told()
    told.after(0, found(A), found(C))
    for _ in range(20):
        told.after(300, found(B), SILENT)
    assert told.addresses == {B, C}
    assert told.error == "IPv6: no server answers"


def test_what_was_known_before_is_held_like_an_answer() -> None:
    told = Told(Entry((A, C), at=-5000.0))
    assert told.book.entries()[NAME] == Entry((A, C), at=-5000.0)
    told.after(0, SILENT, Reply(ttl=30, none="it has no address"))
    told.after(400, SILENT, Reply(ttl=30, none="it has no address"))
    assert told.addresses == {A}
    told.book.want({NAME: Entry((B,), at=1.0)}, told.now)
    assert told.addresses == {A}, "of a name that is known it is of no interest"


def test_a_name_that_is_not_wanted_any_more_is_forgotten_also_while_it_is_asked_for() -> None:
    told = Told()
    told.book.take(told.now)
    told.book.want({}, told.now)
    told.book.learn(V4, found(A), told.now, told.now)
    assert told.book.entries() == {}


def test_another_network_has_all_asked_anew_but_not_all_the_time() -> None:
    told = Told()
    told.after(0, found(A, ttl=3600), found(C, ttl=3600))
    told.now += 100
    told.book.hurry(told.now)
    assert told.book.wait(told.now) == 0
    told.after(0, found(A, ttl=3600), found(C, ttl=3600))
    for _ in range(32):  # a storm
        told.now += 0.125
        told.book.hurry(told.now)
    assert told.book.wait(told.now) == 1
    told.after(1, found(A, ttl=3600), found(C, ttl=3600))
    assert told.book.wait(told.now) == 3600


def test_what_was_asked_before_the_network_changed_is_asked_again() -> None:
    told = Told()
    told.book.take(told.now)
    told.book.hurry(told.now + 1)
    told.book.learn(V4, SILENT, told.now, told.now + 2)
    assert told.book.wait(told.now + 2) == 0


def test_where_there_are_too_many_addresses_those_confirmed_last_are_used() -> None:
    told = Told()
    many = [f"198.51.100.{number}" for number in range(1, 61)]
    told.after(0, found(*many))
    told.after(60, found(*(f"203.0.113.{number}" for number in range(1, 61))))
    assert len(told.addresses) == MAX_ADDRESSES
    assert sum(one.startswith("203.") for one in told.addresses) == 60
    assert "of a family are used" in told.error


@pytest.mark.parametrize(
    "name", ["a", "smtp.relay.example", "xn--bcher-kva.example", "_dmarc.A-1.example", "1.a", "a" * 63]
)
def test_a_host_name_is_one(name: str) -> None:
    assert entries.valid(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "a.", ".a", "a..b", "-a", "a-.b", "a b", "a\n", "bücher.example", "192.0.2.1", "1", "a.1", "*.a",
     "a" * 64, "a\\046b", "a/b", '"', ".".join(["a" * 63] * 4)],
)  # fmt: skip
def test_what_is_no_host_name_is_not_taken_for_one(name: str) -> None:
    assert not entries.valid(name)


def test_a_file_is_read_as_it_was_written() -> None:
    known = {NAME: Entry((A, C), at=-1.5, ttl=60.0, error="no server answers"), "b.example": Entry()}
    assert entries.decode(entries.encode(known).encode()) == known


def test_the_largest_file_that_is_written_can_be_read() -> None:
    addresses = [f"198.51.100.{number + 100}" for number in range(MAX_ADDRESSES)]
    addresses += [f"2001:db8:ffff:ffff:ffff:ffff:ffff:{number + 0x1000:x}" for number in range(MAX_ADDRESSES)]
    entry = Entry(tuple(sorted(addresses)), at=1e9 / 3, ttl=3600.0, error="x" * 120)
    names = {f"{number:03}a.{'.'.join(['a' * 61] * 4)}": entry for number in range(entries.MAX_NAMES)}
    written = entries.encode(names).encode()
    assert entries.decode(written) == names
    assert len(written) * 3 < entries.MAX_FILE * 2


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([A, C, "::", NAME]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([NAME, "addresses", "at", "ttl", "error", "-"]), inner, max_size=4)
    ),
    max_leaves=12,
)
_ENTRY = st.fixed_dictionaries({"addresses": _JSON, "at": _JSON, "ttl": _JSON, "error": _JSON})


@given(st.one_of(_JSON, st.dictionaries(st.sampled_from([NAME, "a"]), _ENTRY)))
def test_whatever_a_file_holds_it_is_an_entry_or_a_reason(document: object) -> None:
    try:
        kept = entries.decode(json.dumps(document).encode())
    except ValueError:
        return
    assert entries.decode(entries.encode(kept).encode()) == kept


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_they_are_refused_with_a_reason(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert entries.decode(data) == {}
