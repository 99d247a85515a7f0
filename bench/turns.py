"""Layouts of rules that are timed in turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from bench.figure import progress

if TYPE_CHECKING:
    from collections.abc import Mapping

Timer = Callable[[], float]
"""Times one batch of packets; gives nanoseconds for each of them."""


def in_turns(family: str, timers: Mapping[str, Timer], rounds: int) -> dict[str, list[float]]:
    """Call each timer once a round, in random order, on one CPU; give what each gave, round by round."""
    found: dict[str, list[float]] = {name: [] for name in timers}
    order = list(timers)
    shuffle = random.Random(1).shuffle  # noqa: S311 - so that no layout always follows the same other
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    try:
        for done in range(rounds):
            if done % 500 == 0:
                progress(f"{family}: {done} of {rounds}")
            shuffle(order)
            for name in order:
                found[name].append(timers[name]())
    finally:
        os.sched_setaffinity(0, cpus)
    return found
