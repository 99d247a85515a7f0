"""What is counted for those who watch from outside."""

from __future__ import annotations

import json

import pytest

from nftguard.model import Hook
from nftguard.tally import CROWD, GAPS, PLACES, Tally, place
from nftguard.who.culprit import Culprit

_SESSION = "/user.slice/user-1000.slice/session-3.scope"


def attempts(tally: Tally) -> dict[tuple[str, str], int]:
    return {(row["hook"], row["unit"]): row["attempts"] for row in tally.document()["attempts"]}


@pytest.mark.parametrize(
    ("culprit", "name"),
    [
        (Culprit(unit="shadowsocks.service", program="ss-server"), "shadowsocks.service"),
        (Culprit(unit="docker-0123.scope", container="docker:0123456789ab"), "docker:0123456789ab"),
        (Culprit(unit="user@1000.service", user_unit="ssh.service"), "user@1000.service"),
        (Culprit(unit="session-3.scope", session="3", cgroup=_SESSION), "user-1000.slice"),
        (Culprit(source="10.0.0.7", interface="docker0"), "unknown"),
        (Culprit(), "unknown"),
    ],
)
def test_a_place_has_a_name_that_the_administrator_or_systemd_gave(culprit: Culprit, name: str) -> None:
    assert place(culprit) == name


def test_attempts_are_told_apart_by_hook_and_unit() -> None:
    tally = Tally()
    for hook, unit in ((Hook.OUTPUT, "a.service"), (Hook.OUTPUT, "a.service"), (Hook.FORWARD, "a.service")):
        tally.attempted(hook, Culprit(uid=1, unit=unit))
    assert attempts(tally) == {("output", "a.service"): 2, ("forward", "a.service"): 1}


def test_who_makes_up_names_fills_no_more_than_his_share() -> None:
    tally = Tally()
    for number in range(1000):
        tally.attempted(Hook.OUTPUT, Culprit(uid=1000, unit=f"run-{number}.scope"))
    tally.attempted(Hook.OUTPUT, Culprit(uid=0, unit="ssh.service"))
    found = attempts(tally)
    assert len(found) == CROWD + 2
    assert found["output", "other"] == 1000 - CROWD
    assert found["output", "ssh.service"] == 1


def test_there_is_an_end_of_places_and_no_count_ever_falls() -> None:
    tally = Tally()
    before: dict[tuple[str, str], int] = {}
    for number in range(5 * PLACES):
        tally.attempted(Hook.OUTPUT, Culprit(uid=number, unit=f"{number % (2 * PLACES)}.service"))
        now = attempts(tally)
        assert all(now[key] >= count for key, count in before.items())
        before = now
    assert len(before) <= PLACES + len(Hook)
    assert sum(before.values()) == 5 * PLACES


def test_gaps_fall_into_buckets_that_hold_the_ones_before() -> None:
    tally = Tally()
    for gap in (0.001, 0.005, 0.02, 0.3, 100.0):
        tally.mended("ruleset", gap)
    tally.mended("timer", None)
    found = tally.document()
    assert found["repairs"] == {"ruleset": 5, "timer": 1}
    assert found["gaps"]["buckets"] == [*zip(GAPS, (2, 3, 3, 3, 4, 4, 4, 4), strict=True), (None, 5)]
    assert found["gaps"]["sum"] == pytest.approx(100.326)


def test_it_is_all_there_from_the_beginning_and_fit_for_json() -> None:
    found = json.loads(json.dumps(Tally().document()))
    assert found["reloads"] == {"done": 0, "refused": 0}
    assert found["reconciles"] == {"done": 0, "failed": 0}
    assert found["last_reconcile"] is None
    assert found["gaps"]["buckets"][-1] == [None, 0]
