"""The book of what is allowed for a while, and its file."""

from __future__ import annotations

import json
import math
import os
import tempfile
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftguard import allow
from nftguard.allowed import book as books
from nftguard.allowed.book import KEEP_EVERY, Allowances, Clocks
from nftguard.allowed.grant import MOST_SECONDS
from nftguard.errors import NftguardError
from nftguard.model import Hook, Protocol
from tests.world import USER, World, asked, left, selected

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(folders: Path) -> World:
    assert folders
    return World()


def test_what_is_allowed_ends_after_its_time_and_is_told_once(world: World) -> None:
    book = world.book()
    assert (book.current(), book.due(), book.ended()) == ((), None, [])
    assert book.grant(asked(seconds=60)) == world.wall + 60
    assert book.current() == (allow.Allowance(Hook.OUTPUT, Protocol.TCP, 587, "users", "postfix", 60),)
    world.wait(59.5)
    assert left(book) == {587: 1}
    assert book.ended() == []
    due = book.due()
    assert due is not None
    world.wait(due - (world.elapsed + 7))
    assert book.current() == ()
    assert book.listing() == []
    assert book.ended() == [asked(seconds=60)]
    assert (book.ended(), book.due()) == ([], None)


def test_what_ended_is_told_though_something_was_granted_meanwhile(world: World) -> None:
    book = world.book()
    book.grant(asked(seconds=5))
    world.wait(6)
    book.grant(asked(seconds=5, ports="25"))
    assert book.due() == world.elapsed + 7
    assert book.ended() == [asked(seconds=5)]


def test_given_again_the_last_word_counts(world: World) -> None:
    book = world.book()
    book.grant(asked(ports="25 587", seconds=60))
    world.wait(30)
    book.grant(asked(seconds=600))
    assert left(book) == {25: 30, 587: 600}
    book.grant(asked(ports="587", seconds=10))
    assert left(book) == {25: 30, 587: 10}
    book.grant(asked(user="root", seconds=40))
    assert sorted(one.left for one in book.current() if one.port == 587) == [10, 40]


def test_what_fits_is_taken_back_and_the_rest_stays(world: World) -> None:
    book = world.book()
    for grant in (asked(ports="25 587"), asked(user="root"), asked(user=None, anyone=True, hook="forward")):
        book.grant(grant)
    assert book.revoke(selected(ports="26")) == []
    assert book.revoke(selected(ports="587", user="postfix")) == [asked(ports="587")]
    assert book.revoke(selected(ports="587", hook="output")) == [asked(user="root")]
    assert book.revoke(selected(ports="587", protocol="udp")) == []
    assert book.revoke(selected(all=True, anyone=True)) == [asked(user=None, anyone=True, hook="forward")]
    assert left(book) == {25: 1800}
    assert book.revoke(selected(all=True)) == [asked(ports="25")]
    assert (book.current(), book.ended()) == ((), []), "what is taken back does not end by itself as well"
    assert world.book().current() == ()


def test_there_are_only_so_many(world: World) -> None:
    book = world.book()
    with mock.patch("nftguard.state.write"):
        for number in range(books.MOST):
            book.grant(asked(user=str(number)))
        with pytest.raises(NftguardError, match=r"256 allowances are in force.*nftguard deny"):
            book.grant(asked(user="256"))
        book.grant(asked(user="255", seconds=5))
        world.wait(6)
        book.grant(asked(user="256"))
    assert len(book.current()) == books.MOST


def test_another_process_goes_on_with_it(world: World) -> None:
    world.book().grant(asked())
    mode = books.path().stat().st_mode & 0o777
    world.wait(100)
    world.wall -= 1e6
    book = world.book()
    assert left(book) == {587: 1700}
    assert book.listing() == [
        {
            "hook": "output",
            "protocol": "tcp",
            "ports": "587",
            "who": "user",
            "value": "postfix",
            "until": world.wall + 1700,
            "persist": False,
            "given_by": "root",
        }
    ]
    assert (mode, book.ignored, world.complaints) == (0o600, "", [])
    world.wait(1700)
    assert world.book().ended() == [asked()]


def test_a_reboot_ends_it_unless_it_was_to_persist(world: World) -> None:
    book = world.book()
    book.grant(asked(ports="25"))
    book.grant(asked(persist=True))
    world.wait(600)
    book = world.reboot(off=300)
    assert left(book) == {587: 900}, "the time that it was off counts too"
    assert book.ended() == [asked(ports="25")]
    assert left(world.book()) == {587: 900}
    assert left(world.reboot(off=900)) == {}


def test_where_the_clock_went_back_across_a_reboot_it_ends(world: World) -> None:
    world.book().grant(asked(persist=True))
    assert left(world.reboot(off=-1)) == {}


def test_a_clock_that_went_ahead_before_lengthens_nothing_after_a_reboot(world: World) -> None:
    world.wall += 1e7
    book = world.book()
    book.grant(asked(persist=True))
    world.wait(600)
    world.wall -= 1e7
    assert book.due() is not None
    assert book.ended() == []  # saves, since that is due
    assert left(world.reboot()) == {587: 1200}


def test_where_the_boot_is_not_known_nothing_outlives_the_process(world: World) -> None:
    world.boots = 0
    with mock.patch.object(world, "boots", ""):
        clock = Clocks("", lambda: world.elapsed, lambda: world.wall)
        Allowances(lambda *_: None, clock).grant(asked())
        assert Allowances(lambda *_: None, clock).current() == ()


def test_this_boot_has_a_name_and_a_clock() -> None:
    assert books.boot() == books.boot() != ""
    assert len(books.boot().split()) == 2
    before = books.clocks().elapsed()
    assert 0 < before <= books.clocks().elapsed()


STEPS = st.one_of(
    st.tuples(st.just("grant"), st.tuples(st.sampled_from([25, 587]), st.integers(1, 400), st.booleans())),
    st.tuples(st.just("deny"), st.sampled_from([25, 587])),
    st.tuples(st.just("wait"), st.floats(0, 200)),
    st.tuples(st.just("clock"), st.floats(-1000, 1000)),
    st.tuples(st.just("restart"), st.booleans()),
    st.tuples(st.just("reboot"), st.tuples(st.booleans(), st.floats(-500, 500))),
)


@given(st.lists(STEPS, max_size=25))
@settings(max_examples=150, deadline=None)
def test_nothing_lives_longer_than_it_was_asked_for(steps: list[tuple[str, Any]]) -> None:
    """Whatever is granted, denied, restarted, rebooted, and however the clock is set.

    Each crash with a clock set back may give as much again as passed since the last saving.
    """
    world, lived, most = World(), {25: 0.0, 587: 0.0}, {25: 0.0, 587: 0.0}

    def pass_by(book: Allowances, seconds: float) -> None:
        while seconds > 0:
            part = min(seconds, 1.0)
            for port in left(book):
                lived[port] += part
            world.wait(part)
            seconds -= part
            due = book.due()
            if due is not None and due <= world.elapsed + 7:
                book.ended()

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, STATE_DIRECTORY=folder),
        mock.patch("os.fsync"),
    ):
        book = world.book()
        for what, value in steps:
            match what:
                case "grant":
                    port, seconds, persist = value
                    book.grant(asked(ports=str(port), seconds=seconds, persist=persist))
                    lived[port], most[port] = 0.0, seconds
                case "deny":
                    book.revoke(selected(ports=str(value)))
                    most[value] = lived[value]
                case "wait":
                    pass_by(book, value)
                case "clock":
                    world.wall += value
                case "restart":
                    if value:
                        book.keep()
                    book = world.book()
                case "reboot":
                    orderly, off = value
                    if orderly:
                        book.keep()
                    else:
                        most = {port: limit + KEEP_EVERY + 1 for port, limit in most.items()}
                    book = world.reboot(off)
            for port, rest in left(book).items():
                assert lived[port] + rest <= math.ceil(most[port]) + 1.0
                assert lived[port] < most[port] + 1.0
    assert not book.ignored


# Its file

GOOD: dict[str, Any] = {
    "boot": "boot 1",
    "saved": 1.8e9,
    "grants": [USER | {"persist": True, "by": "root", "end": 100.0, "left": 50.0, "until": 1.8e9 + 50}],
}


def with_(key: str, value: object) -> str:
    return json.dumps(GOOD | {"grants": [GOOD["grants"][0] | {key: value}]})


def test_the_file_is_read_as_it_is_written(world: World) -> None:
    """Else the tests of files that are refused would prove nothing."""
    books.path().write_text(json.dumps(GOOD))
    assert left(world.book()) == {587: 50}


@pytest.mark.parametrize(("boots", "rest"), [(1, 1800), (2, 0)])
def test_a_file_that_says_more_gives_no_more(world: World, boots: int, rest: int) -> None:
    world.boots = boots
    far = {"end": 1e11, "left": 1e11, "until": 1e11, "persist": boots == 1}
    books.path().write_text(json.dumps(GOOD | {"grants": [GOOD["grants"][0] | far]}))
    assert sum(left(world.book()).values()) == rest
    far["persist"] = True
    books.path().write_text(json.dumps(GOOD | {"grants": [GOOD["grants"][0] | far]}))
    assert left(world.book()) == {587: 1800}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "7", '"x"', "{}", "[" * 100_000, "9" * 5000, "\0", "ÿ"),
        *(json.dumps(GOOD | {key: value}) for key in ("saved", "grants") for value in (None, True, {"a": 1}, "x", -1)),
        json.dumps(GOOD | {"grants": GOOD["grants"] * 257}),
        *(with_(key, value) for key in ("end", "left", "until") for value in (None, "5", True, -1, math.nan, math.inf)),
        *(with_(key, 10**400) for key in ("end", "seconds", "ports")),
        *(with_("ports", value) for value in ("", "1-1000", "0", [587], None)),
        *(with_("user", value) for value in ('x" } ; flush ruleset', "", None, ["a"])),
        *(with_("seconds", value) for value in (0, 1e9, "9", 10**9)),
        with_("to", "::1"),
        with_("hook", "input"),
        with_("x", 1),
        '{"x": "' + "y" * (1 << 20) + '"}',
    ],
    ids=lambda text: text[:20],
)
def test_a_file_of_no_use_is_ignored_and_says_why(world: World, text: str) -> None:
    books.path().write_bytes(text.encode("latin-1"))
    book = world.book()
    assert (book.current(), book.ended()) == ((), [])
    assert book.ignored
    assert len(book.ignored) < 300
    book.grant(asked())
    assert left(world.book()) == {587: 1800}


def test_what_is_no_file_is_not_waited_for(world: World) -> None:
    os.mkfifo(books.path())
    assert "not a regular file" in world.book().ignored
    books.path().unlink()
    books.path().mkdir()
    assert world.book().ignored


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_file_opens_more_than_could_be_asked_for(data: st.DataObject) -> None:
    simple = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))
    odd = st.recursive(simple, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
    document = GOOD | {"grants": [dict(GOOD["grants"][0]) for _ in range(2)]}
    where = data.draw(st.sampled_from([document, *document["grants"]]))
    where[data.draw(st.sampled_from([*where, "x"]))] = data.draw(odd)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, STATE_DIRECTORY=folder):
        books.path().write_text(json.dumps(document))
        book = World().book()
    for one in book.current():
        assert 1 <= one.left <= MOST_SECONDS
        assert one.kind in allow.KINDS
        assert (one.kind == "ports") == (one.value == "")


def test_where_it_cannot_be_written_that_is_told_and_what_was_taken_back_stays_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = world.book()
    book.grant(asked())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nftguard.state.write", full)
    book.grant(asked(ports="25"))
    assert left(book) == {587: 1800, 25: 1800}, "for as long as the process lives"
    book.revoke(selected(ports="587"))
    assert world.complaints == [books.path()] * 2
    assert world.book().current() == ()
