"""Allowances as they are asked for: what is refused, the daemon's part, its socket and the verbs."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from nftguard import cli_allow, control, values
from nftguard.allowed import desk, words
from nftguard.allowed.grant import MOST_SECONDS, Grant, Who, barred, read, select
from nftguard.cli import cli
from nftguard.control import Answer, Request
from nftguard.events import EVENTS
from nftguard.model import Hook, Protocol
from nftguard.wording import lasting, local_time
from tests.examples import config_of
from tests.world import HOST, MAIL, USER, World, asked, left, selected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nftguard.allowed.book import Allowances


@pytest.fixture
def world(folders: Path) -> World:
    assert folders
    return World()


# What is asked for

WHO = st.sampled_from(
    [
        *((Who.USER, "postfix"), (Who.USER, "0"), (Who.GROUP, "mail"), (Who.UNIT, "postfix.service"), (Who.ANYONE, "")),
        *((Who.TO, "198.51.100.7"), (Who.TO, "2001:db8::/32"), (Who.FROM, "@local"), (Who.TO, "smtp.example.org")),
    ]
)
GRANTS = st.builds(
    lambda protocol, ports, who, seconds, persist: Grant(
        Hook.OUTPUT, protocol, tuple(sorted(ports)), who[0], who[1], seconds, persist, "root"
    ),
    st.sampled_from(Protocol),
    st.sets(st.integers(1, 65535), min_size=1, max_size=64),
    WHO,
    st.integers(1, MOST_SECONDS),
    st.booleans(),
)


@given(GRANTS)
def test_a_grant_is_the_same_after_it_was_written_as_a_request(grant: Grant) -> None:
    assert read(grant.arguments(), grant.by) == grant


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user": None}, "say for whom, with --user, .* or --anyone"),
        ({"group": "mail"}, "--user and --group at once"),
        ({"hook": "forward"}, "--user needs the hook output"),
        ({"ports": ""}, "name a port"),
        ({"ports": "1-65"}, "65 ports, and 64 are allowed"),
        ({"ports": "6000-6063 22"}, "65 ports"),
        ({"ports": "@nonsense"}, "no preset @nonsense"),
        ({"ports": "70000"}, "out of range"),
        ({"ports": 25}, "string"),
        ({"user": "a b"}, "no name of a user"),
        ({"user": ["x"]}, "a name in quotes, or a whole number"),
        ({"ports": "587,25"}, "no service '587,25'; separate ports with spaces"),
        ({"user": None, "to": "0.0.0.0/0"}, "is everybody"),
        ({"user": None, "unit": "postfix"}, "did you mean"),
        ({"user": None, "anyone": "yes"}, "true or false"),
        ({"seconds": 0}, "1s to 7d"),
        ({"seconds": 604801}, "1s to 7d"),
        ({"seconds": True}, "1s to 7d"),
        ({"seconds": None}, "1s to 7d"),
        ({"persist": "no"}, "true or false"),
        ({"hook": "prerouting"}, "not a valid"),
        ({"protocol": "icmp"}, "not a valid"),
        ({"sudo": "x"}, "another version"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_way_out(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        asked(**changes)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "--all"),
        ({"ports": "25", "all": True}, "either ports or --all, not both"),
        ({"protocol": "udp"}, "--all"),
        ({"ports": "", "all": 1}, "--all"),
        ({"ports": "25", "seconds": 5}, "another version"),
        ({"ports": "25", "user": "a", "to": "::1"}, "at once"),
    ],
)
def test_what_is_to_be_taken_back_is_named(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        select(arguments)


def test_whom_it_concerns_is_enough_to_take_back_every_port() -> None:
    found = selected(user="root")
    assert found == selected(all=True, user="root")
    assert found.taken(asked(user="root", ports="25 587")) == (25, 587)
    assert found.taken(asked()) == ()


def test_times_are_written_as_in_the_configuration() -> None:
    texts = ("1s", "90 s", "45", "30m", "30min", "2h", "1hour", "7d", "10080m", "604800")
    assert [values.duration(text, MOST_SECONDS) for text in texts] == [
        *(1, 90, 45, 1800, 1800, 7200, 3600, 604800, 604800, 604800)
    ]
    for text in ("", "0s", "-5m", "8d", "604801", "1.5h", "5m\n", "٣m", "9" * 5000 + "s"):
        with pytest.raises(ValueError, match="not a time between '1s' and '7d', like"):
            values.duration(text, MOST_SECONDS)
    assert values.duration("24h") == 86400
    with pytest.raises(ValueError, match="not a time between '1s' and '1d', like"):
        values.duration("25h")
    with pytest.raises(ValueError, match="not a time between '1s' and '1h', like"):
        values.duration("61m", 3600)


def test_only_ports_that_a_block_names_there_are_worth_allowing() -> None:
    config = config_of(MAIL + 'hooks = ["forward"]')
    assert barred(config, Hook.OUTPUT, Protocol.TCP, (24, 25, 550, 587)) == (25, 587)
    assert barred(config, Hook.FORWARD, Protocol.TCP, (25, 499, 500, 600, 601)) == (500, 600)
    assert barred(config, Hook.OUTPUT, Protocol.UDP, (25,)) == ()


def test_a_name_and_a_set_of_networks_stand_for_both_families() -> None:
    kinds = {
        value: [one.kind for one in asked(user=None, to=value).allowances(5)]
        for value in ("192.0.2.1", "2001:db8::1", "@local", "smtp.example.org")
    }
    assert kinds == {
        "192.0.2.1": ["to4"],
        "2001:db8::1": ["to6"],
        "@local": ["to4", "to6"],
        "smtp.example.org": ["to4", "to6"],
    }


def test_it_is_told_in_words() -> None:
    assert str(asked()) == "tcp/587 on output for user postfix"
    assert str(asked(ports="587 25 6000-6003", user=None, anyone=True)) == "tcp/25,587,6000-6003 on output for anyone"
    assert str(asked(user=None, to="10.0.0.0/8")) == "tcp/587 on output to 10.0.0.0/8"
    assert str(selected(ports="", all=True)) == "any port"
    assert str(selected(ports="25", protocol="tcp", hook="input", user="a")) == "tcp/25 on input for user a"
    assert [lasting(s) for s in (-1, 0, 59, 60, 119, 120, 3600, 5400, 7200, 86400, 604800)] == [
        *("0 s", "0 s", "59 s", "1 min", "119 s", "2 min", "1 h", "90 min", "2 h", "1 d", "7 d")
    ]


# The daemon's part


def names(uid: int) -> str:
    return {0: "root", 1000: "alice"}.get(uid, "")


def ask(book: Allowances, cgroups: bool = True, by: int = 1000, **changes: Any) -> Answer:
    arguments: dict[str, Any] = {name: value for name, value in (USER | changes).items() if value is not None}
    request = Request("allow", "/etc/nftguard.toml", 1, arguments, by)
    return desk.allow(book, request, config_of(MAIL), lambda _: HOST, names, cgroups=cgroups)


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is logged: the events, and the sentences that people read."""
    found: list[tuple[str, str]] = []

    class Log:
        def __getattr__(self, _level: str) -> Callable[..., None]:
            return lambda event, **fields: found.append((event, EVENTS[event].tell(fields)))

    monkeypatch.setattr(desk, "log", Log)
    return found


def test_an_allowance_is_given_listed_recorded_and_taken_back(world: World, records: list[tuple[str, str]]) -> None:
    book, until = world.book(), local_time(world.wall + 1800)
    told = "tcp/587 on output for user postfix"
    assert ask(book) == Answer(0, f"allowed until {until}: {told}")
    world.wait(61)
    assert words.lines(book.listing(), world.wall) == [f"allowed: {told}, 28 min left (given by alice)"]
    request = Request("deny", "", 1, arguments={"ports": "587", "hook": "", "protocol": ""}, by=77)
    assert desk.deny(book, request, names) == Answer(0, f"taken back: {told}")
    assert desk.deny(book, request, names) == Answer(1, "nothing is allowed of 587; `nftguard status` lists what is")
    every = replace(request, arguments={"all": True})
    assert desk.deny(book, every, names).text.startswith("nothing is allowed for a while; ")
    assert desk.deny(book, replace(request, arguments={}), names).exit == 1
    ask(book, seconds=5, user=None, anyone=True, persist=True, by=0)
    assert "left, reboots included (given by root)" in words.lines(book.listing(), world.wall)[0]
    assert words.lines(book.listing(), world.wall + 10) == []
    assert not desk.tell(book)
    world.wait(5)
    assert desk.tell(book)
    assert [event for event, _ in records] == ["allowed", "denied", "allowed", "allowance_ended"]
    assert records[0][1] == f"allowed until {until}: {told} (given by alice)"
    assert records[1][1] == f"no longer allowed: {told} (taken back by user 77)"
    assert records[3][1] == "no longer allowed: tcp/587 on output for anyone (its time is over; given by root)"


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ports": "26"}, "nothing blocks tcp/26 on output"),
        ({"protocol": "udp"}, "nothing blocks udp/587 on output"),
        ({"user": "postfx"}, "no user postfx; see /etc/passwd"),
        ({"user": None, "group": "mial"}, "no group mial; see /etc/group"),
        ({"user": None, "unit": "postfix.service", "cgroups": False}, "cannot tell units"),
        ({"user": None}, "say for whom"),
    ],
)
def test_what_would_be_of_no_effect_is_refused(world: World, changes: dict[str, Any], reason: str) -> None:
    book = world.book()
    answer = ask(book, **changes)
    assert answer.exit == 1
    assert reason in answer.text
    assert book.current() == ()


@pytest.mark.usefixtures("records")
def test_what_is_not_there_yet_is_said(world: World) -> None:
    book = world.book()
    assert ask(book, ports="587 80", user="4000").text.endswith("; 80 is not blocked")
    assert left(book) == {587: 1800}
    assert "is not running" in ask(book, user=None, unit="postfix.service").text
    assert "has no address yet" in ask(book, user=None, to="smtp.example.org").text


# The socket and the verbs


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"\xff",
        b'{"verb": 1, "config": "", "namespace": 1}',
        b'{"verb": "pause", "config": "", "namespace": 1, "seconds": 9}',
        b'{"verb": "pause", "config": "", "namespace": true}',
        b'{"verb": "pause", "config": "", "namespace": 1, "other": 1}',
        b'{"verb": "allow", "config": "", "namespace": 1, "arguments": []}',
        b'{"verb": "allow", "config": "", "namespace": 1, "arguments": {"user": ["a"]}}',
        b'{"verb": "allow", "config": "", "namespace": 1, "arguments": {"seconds": 1.5}}',
        b'{"verb": "pause", "config": "", "namespace": 1' + b"0" * 6000 + b"}",
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - also json's own
        Request.read(data, 0)


@pytest.mark.parametrize("found", [{}, *({"seconds": value} for value in (0, -1, 61, True, "9"))], ids=str)
def test_how_long_is_said_and_not_too_long(found: dict[str, str | int | bool]) -> None:
    assert Request("try", "", 1, {"seconds": 60}).seconds(60) == 60
    with pytest.raises(ValueError, match=r"^try takes 1 to 60 s$"):
        Request("try", "", 1, found).seconds(60)


def test_a_deep_request_is_refused() -> None:
    with pytest.raises(RecursionError):
        Request.read(b"[" * 65536, 0)


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[list[Request]]:
    """A daemon that gives the same answer to one client."""
    found: list[Request] = []

    def handle(request: Request) -> Answer:
        found.append(request)
        return answer

    server = control.Server(control.path(), handle)
    server.socket.setblocking(True)
    server.socket.settimeout(10)

    def serve() -> None:
        client = server.accept()
        assert client
        client.setblocking(True)
        server.answer(client)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield found
    finally:
        thread.join(10)
        server.close()


def verb(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["--config", "/etc/nftguard.toml", *words])
    return done.exit_code, done.output


@pytest.mark.usefixtures("folders")
def test_the_verb_asks_the_daemon_which_sees_who_asks() -> None:
    with answering(Answer(0, "done")) as found:
        assert verb("allow", "587", "@mail-submission", "--user", "postfix", "--for", "30m") == (0, "done\n")
    (request,) = found
    assert (request.verb, request.config) == ("allow", "/etc/nftguard.toml")
    assert read(request.arguments) == replace(asked(ports="465 587"), by="")
    login = Path("/proc/self/loginuid")  # where the kernel has audit; -1 where nobody logged in
    known = login.exists() and int(login.read_text()) != 2**32 - 1
    assert request.by == (int(login.read_text()) if known else os.getuid())


@pytest.mark.usefixtures("folders")
def test_a_verb_that_is_refused_exits_with_the_reason() -> None:
    with answering(Answer(1, "nothing is allowed of it")) as found:
        assert verb("deny", "--all", "--from", "10.0.0.0/8") == (1, "nothing is allowed of it\n")
    assert select(found[0].arguments) == selected(all=True, **{"from": "10.0.0.0/8"})


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("allow 587 --user postfix --for 30m", 69, "no daemon is running that could allow"),
        ("deny --all", 69, "no daemon is running that could take it back; start it (systemctl start nftguard). Until"),
        ("deny --user root", 69, "itself: see `nftguard status`"),
        ("deny --all 587", 2, "either ports or --all, not both"),
        ("allow 587,25 --anyone --for 30m", 2, "no service '587,25'; separate ports with spaces"),
        ("allow --help", 0, "[OPTIONS] PORTS..."),
        ("deny --help", 0, "[OPTIONS] [PORTS...]"),
        ("allow 587 --user postfix", 2, "--for"),
        ("allow 587 --user postfix --for 30x", 2, "not a time between '1s' and '7d'"),
        ("allow 25 --for 30m", 2, "--anyone"),
        ("allow 25 --anyone --to ::1 --for 30m", 2, "at once"),
        ("allow --anyone --for 30m", 2, "PORTS"),
        ("deny", 2, "--all"),
        ("deny 25 --user", 2, "--user"),
    ],
)
def test_a_verb_that_is_used_wrongly_says_how_it_is_used(words: str, code: int, said: str) -> None:
    found, text = verb(*words.split())
    assert found == code
    assert said in text


def test_the_verbs_offer_every_hook_and_protocol() -> None:
    for command in (cli_allow.allow, cli_allow.deny):
        choices = {one.name: list(one.type.choices) for one in command.params if hasattr(one.type, "choices")}
        assert choices == {"hook": list(Hook), "protocol": list(Protocol)}
