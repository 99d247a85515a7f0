"""When the next reconcile runs, with a clock that the test moves."""

from __future__ import annotations

import pytest

from nftguard.pace import (
    CALM,
    FIGHT_AFTER,
    FIGHT_MOST,
    HOST_BURST,
    HOST_EVERY,
    NETWORK_EVERY,
    RETRY_MOST,
    SETTLE,
    Cause,
    Pace,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(clock, 300)


def test_it_runs_on_its_timer_when_nothing_happens(pace: Pace, clock: Clock) -> None:
    assert pace.wait() == 300
    clock.now += 300
    assert pace.wait() == 0
    assert pace.take() == {Cause.TIMER}
    assert pace.wait() == 300


@pytest.mark.parametrize("cause", [Cause.START, Cause.RELOAD, Cause.RULESET])
def test_what_is_urgent_runs_at_once(pace: Pace, cause: Cause) -> None:
    pace.wake(cause)
    assert pace.wait() == 0
    assert pace.take() == {cause}


def test_wake_ups_are_coalesced(pace: Pace) -> None:
    for _ in range(100_000):
        pace.wake(Cause.NETWORK)
    pace.wake(Cause.RULESET)
    assert pace.take() == {Cause.NETWORK, Cause.RULESET}
    assert pace.wait() == 300


def test_a_network_change_waits_for_those_that_come_with_it(pace: Pace, clock: Clock) -> None:
    pace.wake(Cause.NETWORK)
    assert pace.wait() == pytest.approx(SETTLE)
    clock.now += SETTLE
    pace.wake(Cause.NETWORK)
    assert pace.wait() == 0, "later ones do not put it off"
    pace.take()
    pace.wake(Cause.NETWORK)
    assert pace.wait() == pytest.approx(NETWORK_EVERY)


def test_a_storm_of_network_changes_never_delays_a_repair(pace: Pace) -> None:
    pace.wake(Cause.NETWORK)
    pace.take()
    pace.wake(Cause.NETWORK)
    pace.wake(Cause.RULESET)
    assert pace.wait() == 0


def test_a_failed_run_is_tried_again_and_again_but_slower(pace: Pace, clock: Clock) -> None:
    waits = []
    for _ in range(10):
        pace.take()
        pace.ended(ok=False)
        waits.append(pace.wait())
        clock.now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, *[RETRY_MOST] * 4]
    assert pace.take() == {Cause.RETRY}
    pace.ended(ok=True)
    assert pace.wait() == 300


def fight(pace: Pace, clock: Clock, repairs: int) -> list[float]:
    waits = []
    for _ in range(repairs):
        pace.wake(Cause.RULESET)
        waits.append(pace.wait())
        clock.now += waits[-1]
        pace.take()
        pace.repaired()
        pace.ended(ok=True)
    return waits


def test_a_fight_is_slowed_down_to_a_bound_and_never_given_up(pace: Pace, clock: Clock) -> None:
    waits = fight(pace, clock, FIGHT_AFTER + 30)
    assert waits[: FIGHT_AFTER + 1] == [0] * (FIGHT_AFTER + 1)
    assert waits[FIGHT_AFTER + 1] > 0
    assert [round(wait, 6) for wait in waits] == sorted(round(wait, 6) for wait in waits)
    assert waits[-1] == pytest.approx(FIGHT_MOST)
    assert pace.fighting


def test_when_it_was_calm_repairs_are_at_once_again(pace: Pace, clock: Clock) -> None:
    fight(pace, clock, FIGHT_AFTER + 5)
    clock.now += CALM + 1
    assert fight(pace, clock, 2) == [0, 0]
    assert not pace.fighting


def test_a_few_repairs_are_no_fight(pace: Pace, clock: Clock) -> None:
    assert fight(pace, clock, FIGHT_AFTER) == [0] * FIGHT_AFTER
    assert not pace.fighting


def test_a_unit_that_restarts_without_end_asks_for_so_many_runs_and_no_more(pace: Pace, clock: Clock) -> None:
    runs = 0
    for _ in range(10_000):  # ten seconds of them
        clock.now += 0.001
        pace.wake(Cause.HOST)
        if pace.wait() == 0:
            pace.take()
            runs += 1
    assert runs <= HOST_BURST + 10 / HOST_EVERY + 1
    clock.now += 10
    pace.wake(Cause.HOST)
    assert pace.wait() == 0, "when it was calm it is at once again"


def test_units_never_delay_a_repair(pace: Pace) -> None:
    for _ in range(2 * HOST_BURST):
        pace.wake(Cause.HOST)
        pace.take()
    pace.wake(Cause.HOST)
    assert pace.wait() == pytest.approx(HOST_EVERY)
    pace.wake(Cause.RULESET)
    assert pace.wait() == 0
