"""Who is behind a program's attempts: simulated worlds, with seeds, in which the truth is known."""

from __future__ import annotations

import bisect
import functools
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.who.clients import MOST_ATTEMPTS, MOST_CLIENTS, Clients, Look, Suspicion

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 100
ATTEMPTS = 7
GUILTY = "203.0.113.1"


class World:
    """Clients that send data as it happens, on as many connections as they like, and one program that serves them."""

    def __init__(self, seed: int, jiffy: float = 0.004) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a simulation
        self.jiffy = jiffy
        self.connections: dict[str, list[list[float]]] = {}
        self.clients = Clients(jiffy * 1000)
        self.now = 0.0
        self.begun = False  # looks begin with the first attempt
        self.wrong = 0
        """How often somebody else was named as likely."""

    def busy(self, client: str, rate: float, connections: int = 1, begin: float = -1.0, end: float = 25.0) -> None:
        """Have a client send data `rate` times a second, by chance, on each of its connections."""
        for _ in range(connections):
            times = [begin + self.random.random()]
            while times[-1] < end:
                times.append(times[-1] + self.random.expovariate(rate))
            self.connections.setdefault(client, []).append(times)

    def sends(self, client: str, at: float, alone: bool) -> None:
        """Have a client send data at that moment: on a connection of its own, or on its first."""
        if alone:
            self.connections.setdefault(client, []).append([at])
        else:
            bisect.insort(self.connections[client][0], at)

    def look(self, at: float) -> Look:
        heard = {}
        for client, connections in self.connections.items():
            last = [times[bisect.bisect_right(times, at) - 1] for times in connections if times[0] <= at]
            # The kernel tells whole jiffies.
            if last:
                heard[client] = tuple(at - (at // self.jiffy - time // self.jiffy) * self.jiffy for time in last)
        return Look(at, heard)

    def passes(self, seconds: float) -> None:
        """Let time pass, with ten looks a second that are not just after an attempt."""
        until = self.now + seconds
        self.now += 0.06
        while self.now < until and self.begun:
            self.clients.looked(self.look(self.now))
            self.now += 0.1
        self.now = until

    def attempt(
        self, *by: str, alone: bool = False, delay: Callable[[], float] = lambda: 0.0005, late: float = 0.008
    ) -> Suspicion:
        """Have clients make the program connect, `delay` seconds after they ask for it; give what is known then."""
        self.passes(self.random.uniform(0.5, 1.5))
        for client in by:
            self.sends(client, self.now, alone)
        self.now += delay()
        at = self.now
        self.now += self.random.uniform(0.001, late)
        self.clients.attempted(at, self.look(self.now))
        self.begun = True
        found = self.clients.suspicion(self.now)
        assert found
        if found.client not in by and found.confidence >= 0.8:
            self.wrong += 1
        return found


def addresses(count: int) -> list[str]:
    return [f"203.0.113.{number + 1}" for number in range(count)]


def crowd(seed: int, count: int = 50, **options: float) -> World:
    """Clients that are each busy twenty times a second."""
    world = World(seed, **options)
    for client in addresses(count):
        world.busy(client, 20)
    return world


def named(found: Suspicion, client: str = GUILTY) -> bool:
    return found.client == client and found.confidence >= 0.8


@pytest.mark.parametrize("jiffy", [0.001, 0.004, 0.01])
def test_one_of_fifty_busy_clients_is_named_after_seven_attempts(jiffy: float) -> None:
    right = wrong = 0
    for seed in range(RUNS):
        world = crowd(seed, jiffy=jiffy)
        for _ in range(ATTEMPTS):
            found = world.attempt(GUILTY, alone=True)
        right += named(found)
        wrong += world.wrong
    assert (right >= 0.95 * RUNS, wrong) == (True, 0), f"{right} of {RUNS}"


@pytest.mark.parametrize(("jiffy", "enough"), [(0.001, 10), (0.004, 12), (0.01, 20)])
def test_he_comes_first_even_where_his_request_is_one_of_many_on_one_connection(jiffy: float, enough: int) -> None:
    """Then only the time tells him from the others: the coarser the kernel's clock, the longer until that is sure."""
    first = right = wrong = 0
    for seed in range(RUNS):
        world = crowd(seed, jiffy=jiffy)
        for number in range(enough):
            found = world.attempt(GUILTY)
            first += number + 1 == ATTEMPTS and found.client == GUILTY
        right += named(found)
        wrong += world.wrong
    assert (first >= 0.95 * RUNS, right >= 0.95 * RUNS, wrong) == (True, True, 0), f"{first}, {right} of {RUNS}"


def test_a_name_that_the_program_looks_up_first_does_not_hide_who_asked() -> None:
    right = wrong = 0
    for seed in range(RUNS):
        world = crowd(seed)
        for _ in range(ATTEMPTS):
            found = world.attempt(GUILTY, alone=True, delay=functools.partial(world.random.uniform, 0.005, 0.08))
        right += named(found)
        wrong += world.wrong
    assert (right >= 0.95 * RUNS, wrong) == (True, 0), f"{right} of {RUNS}"


def test_a_look_up_of_names_on_a_busy_connection_hardly_ever_leads_to_a_wrong_name() -> None:
    """Nothing tells this client from the others: it has always just spoken, and so have they."""
    wrong = 0
    for seed in range(RUNS):
        world = crowd(seed)
        for _ in range(ATTEMPTS):
            world.attempt(GUILTY, delay=functools.partial(world.random.uniform, 0.005, 0.08))
        wrong += world.wrong > 0
    assert wrong <= 0.01 * RUNS


def test_two_who_always_act_together_are_not_told_apart() -> None:
    for seed in range(RUNS):
        world = crowd(seed)
        both = addresses(2)
        for _ in range(2 * ATTEMPTS):
            found = world.attempt(*both, alone=True)
            assert found.word == "not clear"
        assert {client for client, _ in found.ranked[:2]} == set(both)
        assert all(0.4 < confidence < 0.6 for _, confidence in found.ranked[:2])


def test_two_whose_data_is_the_same_are_not_told_apart_either() -> None:
    for seed in range(RUNS // 2):
        world = crowd(seed, 20)
        both = addresses(2)
        world.connections[both[1]] = world.connections[both[0]] = [world.connections[both[0]][0]]
        for _ in range(2 * ATTEMPTS):
            found = world.attempt(*both)
            assert found.confidence <= 0.51


def test_a_program_that_tries_by_itself_is_hardly_ever_anybodys_doing() -> None:
    wrong = 0
    for seed in range(RUNS):
        world = crowd(seed)
        for _ in range(2 * ATTEMPTS):
            world.attempt()
        wrong += world.wrong > 0
    assert wrong <= 0.01 * RUNS


def test_nobody_is_named_for_having_come_late() -> None:
    for seed in range(RUNS):
        world = crowd(seed, 20)
        for _ in range(ATTEMPTS // 2):
            world.attempt()
        world.busy("198.51.100.1", 20, begin=world.now)
        for _ in range(ATTEMPTS):
            assert not named(world.attempt(), "198.51.100.1")


def test_a_guilty_client_that_comes_after_the_first_attempt_is_named() -> None:
    right = wrong = 0
    for seed in range(RUNS):
        world = crowd(seed)
        world.attempt()
        world.passes(5)
        world.busy("198.51.100.1", 20, begin=world.now)
        for _ in range(ATTEMPTS):
            found = world.attempt("198.51.100.1", alone=True)
        right += named(found, "198.51.100.1")
        wrong += world.wrong
    assert (right >= 0.95 * RUNS, wrong) == (True, 0), f"{right} of {RUNS}"


def test_many_connections_behind_one_address_are_one_client() -> None:
    right = wrong = 0
    for seed in range(RUNS // 2):
        world = crowd(seed, 20)
        world.busy("198.51.100.1", 2, connections=40)
        for _ in range(ATTEMPTS):
            found = world.attempt(GUILTY, alone=True)
        right += named(found)
        wrong += world.wrong
    assert (right >= 0.95 * RUNS // 2, wrong) == (True, 0), f"{right} of {RUNS // 2}"


def test_who_sends_all_the_time_is_not_suspected_for_it() -> None:
    right = wrong = 0
    for seed in range(RUNS // 4):
        world = crowd(seed, 10)
        world.busy("198.51.100.1", 400)
        for _ in range(ATTEMPTS):
            found = world.attempt(GUILTY, alone=True)
        right += named(found)
        wrong += world.wrong
    assert (right >= 0.95 * RUNS // 4, wrong) == (True, 0), f"{right} of {RUNS // 4}"


def test_few_and_quiet_clients_are_not_named_by_one_coincidence() -> None:
    wrong = 0
    for seed in range(RUNS):
        world = World(seed)
        for client in addresses(30):
            world.busy(client, 0.5)
        world.attempt()
        world.passes(10)
        for _ in range(5):
            world.attempt()
        wrong += world.wrong
    assert wrong <= 5 * RUNS * 0.01, f"{wrong} of {5 * RUNS}"


def test_two_who_take_turns_are_both_seen_and_neither_is_very_likely() -> None:
    for seed in range(RUNS // 4):
        world = crowd(seed, 20)
        both = addresses(2)
        for at in range(12):
            found = world.attempt(both[at % 2], alone=True)
        assert found.client in both or found.confidence < 0.8


def test_one_attempt_is_not_enough() -> None:
    for seed in range(RUNS):
        assert crowd(seed).attempt(GUILTY, alone=True).word == "not clear"


def test_a_burst_counts_little_more_than_one_attempt() -> None:
    world = crowd(3)
    world.attempt(GUILTY)
    for _ in range(20):
        world.now += 0.001
        world.clients.attempted(world.now, world.look(world.now + 0.001))
    found = world.clients.suspicion(world.now)
    assert found
    assert found.word == "not clear"


def test_who_speaks_before_the_second_attempt_of_a_burst_is_as_suspect_as_who_spoke_before_the_first() -> None:
    world = crowd(4, 20)
    first, second = addresses(2)
    for _ in range(ATTEMPTS):
        world.attempt(first, alone=True)
        at = world.now + 0.015
        world.sends(second, at - 0.0005, alone=True)
        world.clients.also_attempted(at)
        world.clients.also_attempted(at + 1)  # which is of no burst
    world.passes(0.4)
    found = world.clients.suspicion(world.now)
    assert found
    assert {client for client, _ in found.ranked[:2]} == {first, second}
    assert found.word == "not clear"


def test_evidence_fades() -> None:
    world = crowd(1)
    for _ in range(ATTEMPTS):
        world.attempt(GUILTY, alone=True)
    confidences = [
        found.confidence for hours in range(4) if (found := world.clients.suspicion(world.now + 3600 * hours))
    ]
    assert confidences[0] > 0.95
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[-1] < 0.1


def test_the_basis_is_told_in_words() -> None:
    world = crowd(5)
    for _ in range(ATTEMPTS):
        found = world.attempt(GUILTY, alone=True)
    words, _, rest = found.basis.partition(" at other times ")
    assert words == "sent data within 5 ms before 7 of 7 attempts,"
    share, _, rest = rest.partition("% of the time; then waited on that connection after ")
    assert 5 <= int(share) <= 45
    assert rest == "6"
    assert (found.attempts, found.word) == (7, "very likely")


def test_without_clients_or_attempts_nothing_is_known() -> None:
    clients = Clients(4)
    assert clients.suspicion(1) is None
    clients.looked(Look(1, {GUILTY: (0.5,)}))
    assert clients.suspicion(1) is None
    clients = Clients(4)
    clients.attempted(1, Look(1, {}))
    assert clients.suspicion(1) is None


def test_memory_is_bounded_and_who_spoke_last_stays() -> None:
    clients = Clients(4)
    for number in range(2000):
        at = number * 0.2
        heard = {f"2001:db8::{number + other:x}": (at - other / 1000,) for other in range(500)}
        clients.attempted(at, Look(at, heard))
        clients.looked(Look(at + 0.1, heard))
        found = clients.suspicion(at)
        assert found
        assert found.attempts < 2 * MOST_ATTEMPTS
        assert len(clients._clients) <= MOST_CLIENTS
        assert f"2001:db8::{number:x}" in clients._clients
        if number == 60:
            break


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.floats(-1e9, 1e9),
            st.floats(-1e9, 1e9),
            st.dictionaries(st.sampled_from("abc"), st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=3).map(tuple)),
        ),
        max_size=40,
    )
)
def test_confidences_are_shares_whatever_is_seen(
    steps: list[tuple[bool, float, float, dict[str, tuple[float, ...]]]],
) -> None:
    clients = Clients(4)
    for attempted, at, now, heard in steps:
        if attempted:
            clients.attempted(at, Look(now, heard))
        else:
            clients.looked(Look(now, heard))
        found = clients.suspicion(now)
        if found:
            assert 0 <= sum(confidence for _, confidence in found.ranked) <= 1.000001
            assert found.ranked[0] == (found.client, found.confidence)
