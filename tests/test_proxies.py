"""Programs with clients, for real: who is behind their attempts, and what the looks may cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from nftguard.who import proxies as proxies_module
from nftguard.who.proxies import MOST_PROGRAMS, Proxies
from nftguard.wire import sockdiag
from tests.test_sockdiag import DROP, Program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns import Namespace

CLIENTS = [f"127.0.1.{number + 1}" for number in range(10)]


@pytest.fixture
def served(netns: Namespace) -> Iterator[tuple[Program, Program]]:
    """A program, and another that is connected to it from ten addresses."""
    netns.nft(DROP)
    program, other = Program(netns), Program(netns)
    port = program.do("listen('127.0.0.1')")
    for client in CLIENTS:
        other.do(f"start({client!r}, '127.0.0.1', port={port})")
        program.do("accept()")
    yield program, other
    program.close()
    other.close()


def wait_and_tick(proxies: Proxies, seconds: float) -> int:
    """Do what the daemon's loop does; give the number of ticks."""
    end = time.monotonic() + seconds
    ticks = 0
    while (due := proxies.due()) is not None and due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        proxies.tick()
        ticks += 1
    time.sleep(max(0.0, end - time.monotonic()))
    return ticks


def test_the_client_that_speaks_before_each_attempt_is_named(netns: Namespace, served: tuple[Program, Program]) -> None:
    program, other = served
    proxies = Proxies()
    with netns.entered():
        time.sleep(0.15)  # so that nobody has just connected
        for _ in range(8):
            other.do("kept[3].send(b'x')")
            program.do("read(4)")  # behind its listening socket
            found = proxies.attempted(program.cgroup, time.monotonic())
            wait_and_tick(proxies, 0.7)
        other.do("kept[3].send(b'x')")
        program.do("read(4)")
        later = proxies.attempted(program.cgroup, time.monotonic())
    assert found
    assert later
    assert (found.client, found.attempts) == (CLIENTS[3], 8)
    assert later.word != "not clear", later
    assert later.confidence >= found.confidence


def test_a_program_that_serves_nobody_has_no_suspect_and_is_not_looked_at_again(
    netns: Namespace, served: tuple[Program, Program]
) -> None:
    _, other = served
    proxies = Proxies()
    with netns.entered():
        assert proxies.attempted(other.cgroup, time.monotonic()) is None
    assert proxies.due() is None


def test_looks_at_other_times_come_after_an_attempt_and_end(
    netns: Namespace, served: tuple[Program, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _ = served
    monkeypatch.setattr(proxies_module, "_LONG", 0.6)
    proxies = Proxies()
    assert proxies.due() is None
    with netns.entered():
        at = time.monotonic()
        proxies.attempted(program.cgroup, at)
        due = proxies.due()
        assert due is not None
        assert 0.06 <= due - at <= 0.3
        assert 1 <= wait_and_tick(proxies, 1) <= 7
    assert proxies.due() is None


def test_a_flood_of_attempts_is_looked_at_only_so_often(
    netns: Namespace, served: tuple[Program, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _ = served
    looks = 0
    ask = sockdiag.connections

    def counted(cgroup: int) -> list[sockdiag.Connection]:
        nonlocal looks
        looks += 1
        return ask(cgroup)

    monkeypatch.setattr(sockdiag, "connections", counted)
    proxies = Proxies()
    with netns.entered():
        begun = time.monotonic()
        answers = [proxies.attempted(program.cgroup, time.monotonic()) for _ in range(10_000)]
        passed = time.monotonic() - begun
        assert looks <= 20 * passed + 1
        assert None not in answers
        looks, begun = 0, time.monotonic()
        for number in range(10_000):
            proxies.attempted(number, time.monotonic())
        assert looks <= 50 * (time.monotonic() - begun) + 1
    assert len(proxies._programs) == MOST_PROGRAMS


def test_an_attempt_of_long_ago_is_not_looked_at(netns: Namespace, served: tuple[Program, Program]) -> None:
    program, _ = served
    proxies = Proxies()
    with netns.entered():
        assert proxies.attempted(program.cgroup, time.monotonic() - 1) is None


def test_a_kernel_that_tells_nothing_leaves_the_last_answer(
    netns: Namespace, served: tuple[Program, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _ = served
    proxies = Proxies()
    with netns.entered():
        known = proxies.attempted(program.cgroup, time.monotonic())
        assert known
        wait_and_tick(proxies, 0.2)

        def refused(_cgroup: int) -> list[sockdiag.Connection]:
            raise OSError(105, "No buffer space available")

        monkeypatch.setattr(sockdiag, "connections", refused)
        wait_and_tick(proxies, 0.2)
        assert proxies.attempted(program.cgroup, time.monotonic()) == known
