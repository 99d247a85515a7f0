"""Real proxies with fifty busy clients, one of whom asks for port 25: he is named, and nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.boot.crowd import PROXIES, Crowd

if TYPE_CHECKING:
    from tests.boot.image import Image
    from tests.boot.machine import Machine

pytestmark = pytest.mark.once("debian12")


@pytest.mark.parametrize("runs", [3, pytest.param(10, marks=pytest.mark.long)])
@pytest.mark.parametrize("proxy", [PROXIES[0], *(pytest.param(name, marks=pytest.mark.long) for name in PROXIES[1:])])
def test_the_client_behind_a_proxys_attempts_is_named_after_seven(
    shared_machine: Machine, image: Image, proxy: str, runs: int
) -> None:
    crowd = Crowd(shared_machine, image, proxy)
    outcomes = [crowd.run(seed) for seed in range(runs)]
    assert min(outcome.rate for outcome in outcomes) > 10, "else the clients were not busy"
    assert [outcome for outcome in outcomes if outcome.wrong] == []
    assert sum(outcome.right for outcome in outcomes) >= runs - 1, outcomes


def test_two_clients_who_always_act_together_are_not_told_apart(shared_machine: Machine, image: Image) -> None:
    crowd = Crowd(shared_machine, image, "microsocks")
    outcomes = [crowd.run(seed, together=2) for seed in range(2)]
    assert [outcome for outcome in outcomes if outcome.right or outcome.wrong] == []
