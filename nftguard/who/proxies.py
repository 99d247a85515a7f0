"""Looks at the clients of the programs that made attempts, often enough to tell who is behind them, at a bounded cost.

TCP clients only: a UDP socket does not tell when whose data came.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from nftguard.who.clients import APART, Clients, Look, Suspicion
from nftguard.wire import sockdiag

MOST_PROGRAMS = 32
"""Programs that are remembered; the one whose last attempt is the oldest is forgotten first."""

_EVERY = 0.1  # seconds between looks at other times
_LONG = 60.0  # seconds after a program's last attempt in which there are such looks
_STALE = 0.2  # seconds after an attempt from when on a look tells nothing of it
# Seconds between looks at attempts: of one program, and of all.
_BETWEEN_OWN, _BETWEEN_ALL = 0.05, 0.02
# A look at a hundred connections takes half a millisecond, at thousands it takes ten and more. After each comes a pause
# that is so many times longer.
_REST = 10
# The kernel's times are in jiffies, which its coarse clock shows: CLOCK_MONOTONIC_COARSE, clock_getres(2).
_JIFFY = time.clock_getres(6) * 1000  # milliseconds


@dataclass(slots=True)
class _Program:
    clients: Clients = field(default_factory=lambda: Clients(_JIFFY))
    known: Suspicion | None = None
    next_look: float = 0.0  # at an attempt
    next_tick: float = 0.0
    last_tick: float = 0.0  # no more after that


class Proxies:
    """Programs that made attempts, by the id of their control group, and what is known of their clients.

    It sees the network namespace of the thread that calls.
    """

    def __init__(self) -> None:
        self._programs: OrderedDict[int, _Program] = OrderedDict()
        self._next_look = 0.0

    def attempted(self, cgroup: int, packet_at: float) -> Suspicion | None:
        """Look at the clients of a program that has just made an attempt, and say who is behind its attempts.

        `packet_at` is when, in seconds on the monotonic clock: the less time has passed, the more is to be seen. None
        for a program that serves nobody. Where there are too many attempts to look at each, the last answer is given.
        """
        program = self._programs.setdefault(cgroup, _Program())
        self._programs.move_to_end(cgroup)
        if len(self._programs) > MOST_PROGRAMS:
            self._programs.popitem(last=False)
        program.next_tick = max(program.next_tick, packet_at + APART)
        begun = time.monotonic()
        if begun < max(self._next_look, program.next_look) or begun > packet_at + _STALE:
            program.clients.also_attempted(packet_at)
            return program.known
        look = _look(cgroup)
        if look and (look.heard or program.known):
            program.clients.attempted(packet_at, look)
            program.known = program.clients.suspicion(look.at)
            program.last_tick = packet_at + _LONG
        ended = time.monotonic()
        pause = _REST * (ended - begun)
        self._next_look = ended + max(_BETWEEN_ALL, pause)
        program.next_look = ended + max(_BETWEEN_OWN, pause)
        return program.known

    def due(self) -> float | None:
        """Tell when, on the monotonic clock, the next `tick` is due; None while there is nothing to look at."""
        return min((program.next_tick for program in self._watched().values()), default=None)

    def tick(self) -> None:
        """Look at the clients of every program for which it is time."""
        watched = self._watched()
        for cgroup, program in watched.items():
            begun = time.monotonic()
            if begun < program.next_tick:
                continue
            look = _look(cgroup)
            if look:
                program.clients.looked(look)
            ended = time.monotonic()
            program.next_tick = ended + max(_EVERY, _REST * (ended - begun) * len(watched))

    def _watched(self) -> dict[int, _Program]:
        return {cgroup: found for cgroup, found in self._programs.items() if found.next_tick < found.last_tick}


def _look(cgroup: int) -> Look | None:
    """Look at all connections that a program has accepted; None where the kernel tells nothing."""
    begun = time.monotonic()
    try:
        connections = sockdiag.connections(cgroup)
    except OSError:
        return None
    at = (begun + time.monotonic()) / 2
    heard: dict[str, list[float]] = {}
    for connection in connections:
        heard.setdefault(connection.remote, []).append(at - connection.quiet / 1000)
    return Look(at, {client: tuple(times) for client, times in heard.items()})
