"""Clients: share of runs with a real proxy in which not the right one of its fifty clients was named."""

from __future__ import annotations

from bench.figure import Figure, Goal, progress
from tests.boot import image
from tests.boot.crowd import CLIENTS, PROXIES, Crowd
from tests.boot.machine import Machine
from tests.boot.suites import SUITES

RUNS = 100


def measure() -> list[Figure]:
    """Boot a Debian with real proxies, and have one of fifty clients, all busy 20 times a second, ask for port 25.

    After his seventh attempt the record of it must name him as likely, and none may ever name another so. The baseline
    is a guess.
    """
    booted = image.prepare(SUITES[-1], announce=progress)
    guessed = 100 * (1 - 1 / CLIENTS)
    figures = []
    for proxy in PROXIES:
        missed = wrong = 0
        with Machine(booted) as machine:
            crowd = Crowd(machine, booted, proxy)
            for seed in range(RUNS):
                outcome = crowd.run(seed)
                missed += not outcome.right
                wrong += outcome.wrong
                if seed % 10 == 9:
                    progress(
                        f"clients: {proxy}, {seed + 1} runs, {missed} missed, {wrong} wrong, {outcome.rate} a second"
                    )
        figures += [
            Figure(f"{proxy}: not named after 7", 100 * missed / RUNS, "%", "a guess", guessed, RUNS, Goal(5, "value")),
            Figure(f"{proxy}: another named", 100 * wrong / RUNS, "%", "a guess", guessed, RUNS, Goal(0, "value")),
        ]
    return figures
