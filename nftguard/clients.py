"""Which of a program's clients explains its attempts: how sure that is, and on what it rests.

A client whose request makes the program connect has sent it data a moment before, and often waits on that connection
from then on. Whoever is connected does the same by chance; how often is learnt from looks at other times. Each attempt
multiplies the odds by how much better the client explains it than chance does.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_CLIENTS = 256
"""Clients of one program that are remembered; whoever has not been heard for longest is forgotten first."""
MOST_ATTEMPTS = 32
"""Attempts that are remembered; the oldest is forgotten first."""
APART = 0.1
"""Seconds after an attempt in which the program's clients are not as at other times."""

_EDGES = (5, 10, 30, 100, 500)  # milliseconds before the attempt: the last bin has no end
_BINS = len(_EDGES) + 1
_LATER, _ABSENT = -1, -2  # data that came since hides what came before; not connected
_WAITED = 3  # bins after which a connection may have waited: up to 100 ms
_WAIT = (0.25, 0.6)  # seconds from the attempt to the look that tells who waits since

_HALF_LIFE = 300.0  # seconds in which evidence loses half of its weight
_BURST = 0.05  # seconds after an attempt in which another one is part of it
_INDEPENDENT = 0.15  # seconds between attempts; what is closer is of one burst, and counts for less
_UNSETTLED = 0.5  # the weight of an attempt as long as nobody knows who waits since
_NOBODY = 0.8  # the odds, before any attempt, that none of the clients is behind them
_STRAY = 0.1  # of the attempts of a client's, so many may be of somebody else
_RARE = 0.05  # whatever is seen less often at other times is taken to be as frequent as this: few looks tell no better
_ENOUGH = 12.0  # who explains attempts e^12 times better than chance cannot be told from another who does, too
_KEPT = 600.0  # looks at other times; beyond that, old ones count for less and less
_POOL = 200.0  # looks for which the other clients' habits count in place of a client's own
_SHOWN = 5  # clients in a ranking


@dataclass(frozen=True, slots=True)
class _Way:
    """How a client may be behind attempts: when it spoke, in the bins' order, and whether it waits from then on."""

    share: float  # before any attempt
    spoke: tuple[float, ...]
    waits: float | None


# At once or after a look-up of a name, on a connection that waits for the answer; or on one that has more to carry:
# rarer, and a coincidence looks the same.
_WAYS = (
    _Way(0.4, (0.65, 0.18, 0.08, 0.04, 0.03, 0.02), 0.9),
    _Way(0.4, (0.12, 0.13, 0.30, 0.35, 0.06, 0.04), 0.9),
    _Way(0.2, (0.65, 0.18, 0.08, 0.04, 0.03, 0.02), None),
)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is known of who is behind a program's attempts."""

    client: str
    """The address of the likeliest client."""
    confidence: float
    """0 to 1."""
    ranked: tuple[tuple[str, float], ...]
    """The likeliest few with their confidence, the likeliest first."""
    attempts: int
    """On how many attempts this rests."""
    basis: str
    """What speaks for it, in words."""

    @property
    def word(self) -> str:
        """How sure it is, in words."""
        return "very likely" if self.confidence >= 0.95 else "likely" if self.confidence >= 0.8 else "not clear"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the connections of a program's clients."""

    at: float
    """Seconds on the monotonic clock."""
    heard: Mapping[str, tuple[float, ...]]
    """When data last came on each of a client's connections: by its address, seconds on the same clock."""


@dataclass(slots=True)
class _Moment:
    """An attempt, or a moment like any other, and what each client was at."""

    at: float
    until: float  # when the last attempt of a burst was made
    spoke: dict[str, int]  # bin, or _LATER; absent are those who are missing
    weight: float = 1.0
    waits: dict[str, bool] | None = None  # known a while later


@dataclass(slots=True)
class _Habits:
    """What a client is at when there is no attempt."""

    heard: float = 0.0  # when it was last heard
    spoke: list[float] = field(default_factory=lambda: [0.0] * _BINS)
    absent: float = 0.0
    waits: list[float] = field(default_factory=lambda: [0.0, 0.0])  # no, yes


class Clients:
    """The clients of one program. `jiffy`, in milliseconds, is by how much the kernel's times may be off."""

    def __init__(self, jiffy: float) -> None:
        self._jiffy = jiffy
        self._habits: dict[str, _Habits] = {}
        self._pool = _Habits()
        self._attempts: deque[_Moment] = deque(maxlen=MOST_ATTEMPTS)
        self._others: deque[_Moment] = deque(maxlen=16)
        self._late = 0.0  # seconds from the last attempt to the look at it

    def attempted(self, at: float, look: Look) -> None:
        """Take in an attempt that was made at `at`, by the look that came right after."""
        self._meet(look)
        gap = at - self._attempts[-1].at if self._attempts else _INDEPENDENT
        weight = min(1.0, max(0.0, gap) / _INDEPENDENT)
        self._late = max(0.0, look.at - at)
        self._attempts.append(_Moment(at, at, _spoke(look, at, self._jiffy), weight))

    def also_attempted(self, at: float) -> None:
        """Take in an attempt that came so soon after another that there was no look of its own."""
        if self._attempts and self._attempts[-1].until < at <= self._attempts[-1].at + _BURST:
            self._attempts[-1].until = at

    def looked(self, look: Look) -> None:
        """Take in a look at another time."""
        self._meet(look)
        # As if there had been an attempt, seen as late as the last real one.
        at = look.at - self._late
        if any(0 <= at - attempt.at < APART for attempt in self._attempts):
            return
        moment = _Moment(at, at, _spoke(look, at, self._jiffy))
        self._others.append(moment)
        for client, habits in self._habits.items():
            found = moment.spoke.get(client, _ABSENT)
            for learner in (habits, self._pool):
                if found == _ABSENT:
                    learner.absent += 1
                elif found != _LATER:
                    learner.spoke[found] += 1
            _fade(habits, _KEPT)
        _fade(self._pool, _KEPT * max(1, len(self._habits)))

    def suspicion(self, now: float) -> Suspicion | None:
        """Say who is behind the attempts; None when nobody is connected, or no attempt was seen."""
        if not self._habits or not self._attempts:
            return None
        weights = [
            attempt.weight
            * (_UNSETTLED if attempt.waits is None else 1.0)
            * 0.5 ** (max(0.0, now - attempt.at) / _HALF_LIFE)
            for attempt in self._attempts
        ]
        scores = {client: self._score(client, weights) for client in self._habits}
        highest = max(0.0, *scores.values())
        share = (1 - _NOBODY) / len(scores)
        odds = {client: share * math.exp(score - highest) for client, score in scores.items()}
        whole = _NOBODY * math.exp(-highest) + sum(odds.values())
        ranked = sorted(((client, part / whole) for client, part in odds.items()), key=lambda pair: (-pair[1], pair[0]))
        client, confidence = ranked[0]
        return Suspicion(client, confidence, tuple(ranked[:_SHOWN]), len(self._attempts), self._basis(client))

    def _meet(self, look: Look) -> None:
        """Get to know new clients, forget old ones, and see who has waited since earlier moments."""
        for client, times in look.heard.items():
            self._habits.setdefault(client, _Habits()).heard = max(times)
        if len(self._habits) > MOST_CLIENTS:
            for client in sorted(self._habits, key=lambda name: self._habits[name].heard)[:-MOST_CLIENTS]:
                del self._habits[client]
        for moments in (self._attempts, self._others):
            for moment in moments:
                if moment.waits is None and _WAIT[0] <= look.at - moment.at <= _WAIT[1]:
                    moment.waits = {client: self._settle(moment, look, client) for client in moment.spoke}
                    if moments is self._others:
                        self._learn(moment)

    def _settle(self, moment: _Moment, look: Look, client: str) -> bool:
        """Tell whether a connection of the client's brought data shortly before the moment, and none since.

        In a burst it may have been any of its attempts, so that he may have spoken only after the look at the first.
        """
        ages = [(moment.until - time) * 1000 for time in look.heard.get(client, ())]
        reach = _EDGES[_WAITED] + (moment.until - moment.at) * 1000
        waiting = [age for age in ages if -self._jiffy <= age <= reach]
        if waiting and moment.until > moment.at:
            found = moment.spoke[client]
            moment.spoke[client] = min(_bin(min(waiting)), found if found != _LATER else _BINS)
        return bool(waiting)

    def _learn(self, moment: _Moment) -> None:
        for client, waited in (moment.waits or {}).items():
            if moment.spoke[client] <= _WAITED:
                self._pool.waits[waited] += 1
                if client in self._habits:
                    self._habits[client].waits[waited] += 1

    def _score(self, client: str, weights: list[float]) -> float:
        """Give the logarithm of how much better than chance the client explains the attempts."""
        habits, pool = self._habits[client], self._pool
        spoke = _shares(
            [*habits.spoke, habits.absent], _shares([*pool.spoke, pool.absent], [1 / (_BINS + 1)] * (_BINS + 1))
        )
        waits = _shares(habits.waits, _shares(pool.waits, [0.9, 0.1]))
        known: dict[tuple[int, bool | None], list[float]] = {}
        totals = [0.0] * len(_WAYS)
        for attempt, weight in zip(self._attempts, weights, strict=True):
            found = attempt.spoke.get(client, _ABSENT)
            waited = attempt.waits.get(client) if attempt.waits else None
            if (found, waited) not in known:
                known[found, waited] = [_gain(way, found, waited, spoke, waits) for way in _WAYS]
            for at, gain in enumerate(known[found, waited]):
                totals[at] += weight * gain
        highest = max(totals)
        shares = (way.share * math.exp(total - highest) for way, total in zip(_WAYS, totals, strict=True))
        return min(_ENOUGH, highest + math.log(sum(shares)))

    def _basis(self, client: str) -> str:
        habits = self._habits[client]
        bins = [attempt.spoke.get(client, _ABSENT) for attempt in self._attempts]
        count = len(bins)
        within = next((at for at in range(_WAITED) if sum(0 <= b <= at for b in bins) >= 0.7 * count), _WAITED)
        hits = sum(0 <= b <= within for b in bins)
        text = f"sent data within {_EDGES[within]} ms before {hits} of {count} attempts"
        if looks := sum(habits.spoke) + habits.absent:
            text += f", at other times {sum(habits.spoke[: within + 1]) / looks:.0%} of the time"
        waited = sum(bool(attempt.waits and attempt.waits.get(client)) for attempt in self._attempts)
        return text + (f"; then waited on that connection after {waited}" if waited else "")


def _spoke(look: Look, at: float, jiffy: float) -> dict[str, int]:
    """Tell for each client in which bin it last sent data before `at`."""
    found = {}
    for client, times in look.heard.items():
        ages = [(at - time) * 1000 for time in times]
        before = [age for age in ages if age >= -jiffy]
        found[client] = _bin(min(before)) if before else _LATER
    return found


def _bin(age: float) -> int:
    return sum(age > edge for edge in _EDGES)


def _gain(way: _Way, found: int, waited: bool | None, spoke: list[float], waits: list[float]) -> float:
    """Give the logarithm of how much better this way explains one attempt than chance does."""
    ratio = 0.0
    if found != _ABSENT:
        ratio = 1.0 if found == _LATER else way.spoke[found] / max(_RARE, spoke[found])
        if way.waits is not None and waited is not None and found <= _WAITED:
            ratio *= (way.waits if waited else 1 - way.waits) / max(_RARE, waits[waited])
    return math.log(_STRAY + (1 - _STRAY) * ratio)


def _shares(counts: list[float], prior: list[float]) -> list[float]:
    """Give the shares, as if there had been `_POOL` more looks that shared out like the prior."""
    whole = sum(counts) + _POOL
    return [(count + _POOL * part) / whole for count, part in zip(counts, prior, strict=True)]


def _fade(habits: _Habits, most: float) -> None:
    if sum(habits.spoke) + habits.absent > most:
        habits.spoke = [count / 2 for count in habits.spoke]
        habits.absent /= 2
        habits.waits = [count / 2 for count in habits.waits]
