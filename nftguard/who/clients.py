"""Which of a program's clients explains its attempts: how sure that is, and on what it rests. Pure.

A client whose request makes the program connect has sent it data a moment before, and often waits on that connection
from then on. Whoever is connected does the same by chance; how often is learnt from looks at other times. Each attempt
multiplies the odds by how much better the client explains it than chance does.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nftguard.who.odds import ABSENT, BINS, EDGES, LATER, WAITED, Seen, bin_of, score, shares

if TYPE_CHECKING:
    from collections.abc import Mapping

LIKELY, VERY_LIKELY = 0.8, 0.95
"""The confidence from which on a client is named, and from which on that is all but certain."""
MOST_CLIENTS = 256
"""Clients of one program that are remembered; whoever has not been heard for longest is forgotten first."""
MOST_ATTEMPTS = 32
"""About so many attempts count: the older ones less and less."""
APART = 0.1
"""Seconds after an attempt in which the program's clients are not as at other times."""

_WAIT = (0.25, 0.6)  # seconds from the attempt to the look that tells who waits since
_OPEN = 16  # moments that may be without such a look

_HALF_LIFE = 300.0  # seconds in which evidence loses half of its weight
_BURST = 0.05  # seconds after an attempt in which another one is part of it
_INDEPENDENT = 0.15  # seconds between attempts; what is closer is of one burst, and counts for less
_UNSETTLED = 0.5  # the weight of an attempt as long as nobody knows who waits since
_NOBODY = 0.8  # the chance, before any attempt, that none of the clients is behind them
_KEPT = 600.0  # looks at other times; beyond that, old ones count for less and less
_SHOWN = 5  # clients in a ranking


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is known of who is behind a program's attempts."""

    client: str  # the likeliest one's address
    confidence: float  # 0 to 1
    ranked: tuple[tuple[str, float], ...]  # the likeliest few with their confidence, the likeliest first
    attempts: int  # on how many this rests
    basis: str  # what speaks for it, in words

    @property
    def word(self) -> str:
        """How sure it is, in words."""
        return "very likely" if self.confidence >= VERY_LIKELY else "likely" if self.clear else "not clear"

    @property
    def clear(self) -> bool:
        """Whether the client may be named."""
        return self.confidence >= LIKELY


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the connections of a program's clients."""

    at: float  # seconds on the monotonic clock
    heard: Mapping[str, tuple[float, ...]]  # by a client's address, when data last came on each of its connections


@dataclass(slots=True)
class _Moment:
    """An attempt, or a moment like any other, and what each client was at."""

    at: float
    until: float  # when the last attempt of a burst was made
    spoke: dict[str, int]  # bin, or LATER; absent are those who are missing
    weight: float = 1.0


@dataclass(slots=True)
class _Client:
    heard: float = 0.0  # when it was last heard
    # At other times: how often it had spoken in each bin, and then had not waited, or had.
    spoke: list[float] = field(default_factory=lambda: [0.0] * BINS)
    waits: list[float] = field(default_factory=lambda: [0.0, 0.0])
    # At attempts: their weight and number.
    seen: dict[Seen, tuple[float, float]] = field(default_factory=dict)


class Clients:
    """The clients of one program. `jiffy`, in milliseconds, is by how much the kernel's times may be off."""

    def __init__(self, jiffy: float) -> None:
        self._jiffy = jiffy
        self._clients: dict[str, _Client] = {}
        self._pool = _Client()  # what all are at
        self._attempts: deque[_Moment] = deque()  # of which is not known yet who waits since
        self._others: deque[_Moment] = deque(maxlen=_OPEN)
        self._last = _Moment(-math.inf, -math.inf, {})  # attempt
        self._whole = (0.0, 0.0)  # weight and number of all other attempts
        self._faded_at = -math.inf
        self._late = 0.0  # seconds from the last attempt to the look at it

    def attempted(self, at: float, look: Look) -> None:
        """Take in an attempt that was made at `at`, by the look that came right after."""
        self._meet(look)
        weight = min(1.0, max(0.0, at - self._last.at) / _INDEPENDENT)
        self._late = max(0.0, look.at - at)
        self._last = _Moment(at, at, _spoke(look, at, self._jiffy), weight)
        self._attempts.append(self._last)
        if len(self._attempts) > _OPEN:
            self._count(self._attempts.popleft(), {})

    def also_attempted(self, at: float) -> None:
        """Take in an attempt that came so soon after another that there was no look of its own."""
        if self._last.until < at <= self._last.at + _BURST:
            self._last.until = at

    def looked(self, look: Look) -> None:
        """Take in a look at another time."""
        self._meet(look)
        # As if there had been an attempt, seen as late as the last real one.
        at = look.at - self._late
        if at - self._last.at < APART:
            return
        moment = _Moment(at, at, _spoke(look, at, self._jiffy))
        self._others.append(moment)
        for name, client in self._clients.items():
            found = moment.spoke.get(name, ABSENT)
            if found != LATER:
                client.spoke[found] += 1
                self._pool.spoke[found] += 1
            _halve(client, _KEPT)
        _halve(self._pool, _KEPT * len(self._clients))

    def suspicion(self, now: float) -> Suspicion | None:
        """Say who is behind the attempts; None when nobody is connected, or no attempt was seen."""
        number = self._whole[1] + len(self._attempts)
        if not self._clients or not number:
            return None
        share = (1 - _NOBODY) / len(self._clients)
        odds = {name: share * math.exp(score) for name, score in self._scores(now).items()}
        whole = _NOBODY + sum(odds.values())
        ranked = sorted(((name, part / whole) for name, part in odds.items()), key=lambda pair: (-pair[1], pair[0]))
        name, confidence = ranked[0]
        return Suspicion(name, confidence, tuple(ranked[:_SHOWN]), round(number), self._basis(name, number))

    def _meet(self, look: Look) -> None:
        """Get to know new clients, forget old ones, and see who has waited since earlier moments."""
        for name, times in look.heard.items():
            self._clients.setdefault(name, _Client()).heard = max(times)
        if len(self._clients) > MOST_CLIENTS:
            latest = sorted(self._clients.items(), key=lambda pair: pair[1].heard)
            self._clients = dict(latest[-MOST_CLIENTS:])
        for moments, take_in in ((self._attempts, self._count), (self._others, self._learn)):
            while moments and look.at - moments[0].at >= _WAIT[0]:
                moment = moments.popleft()
                in_time = look.at - moment.at <= _WAIT[1]
                take_in(moment, {name: self._waits(moment, look, name) for name in moment.spoke} if in_time else {})

    def _waits(self, moment: _Moment, look: Look, name: str) -> bool:
        """Tell whether a connection of the client's brought data shortly before the moment, and none since.

        In a burst it may have been any of its attempts, so that he may have spoken only after the look at the first.
        """
        ages = [(moment.until - time) * 1000 for time in look.heard.get(name, ())]
        reach = EDGES[WAITED] + (moment.until - moment.at) * 1000
        waiting = [age for age in ages if -self._jiffy <= age <= reach]
        if waiting and moment.until > moment.at:
            found = moment.spoke[name]
            moment.spoke[name] = min(bin_of(min(waiting)), found if found != LATER else BINS)
        return bool(waiting)

    def _learn(self, moment: _Moment, waits: dict[str, bool]) -> None:
        for name in waits.keys() & self._clients.keys():
            if moment.spoke[name] <= WAITED:
                self._clients[name].waits[waits[name]] += 1
                self._pool.waits[waits[name]] += 1

    def _count(self, attempt: _Moment, waits: dict[str, bool]) -> None:
        """Add an attempt to what counts, and let the older ones fade."""
        weight = attempt.weight * (1.0 if waits else _UNSETTLED)
        kept = _faded(attempt.at - self._faded_at) * min(1.0, MOST_ATTEMPTS / (self._whole[1] + 1))
        self._faded_at = max(self._faded_at, attempt.at)
        self._whole = (kept * self._whole[0] + weight, kept * self._whole[1] + 1)
        for name, client in self._clients.items():
            client.seen = {key: (kept * old, kept * number) for key, (old, number) in client.seen.items()}
            if name in attempt.spoke:
                key = attempt.spoke[name], waits.get(name)
                old, number = client.seen.get(key, (0.0, 0.0))
                client.seen[key] = (old + weight, number + 1)

    def _scores(self, now: float) -> dict[str, float]:
        """Give, for each client, the logarithm of how much better than chance it explains the attempts."""
        kept = _faded(now - self._faded_at)
        fresh = [(found.spoke, found.weight * _UNSETTLED * _faded(now - found.at)) for found in self._attempts]
        all_spoke, all_waits = shares(self._pool.spoke, [1 / BINS] * BINS), shares(self._pool.waits, [0.9, 0.1])
        scores = {}
        for name, client in self._clients.items():
            weights: dict[Seen, float] = {key: kept * weight for key, (weight, _) in client.seen.items()}
            weights[ABSENT, None] = max(0.0, kept * self._whole[0] - sum(weights.values()))
            for spoke, weight in fresh:
                key = spoke.get(name, ABSENT), None
                weights[key] = weights.get(key, 0.0) + weight
            scores[name] = score(weights, shares(client.spoke, all_spoke), shares(client.waits, all_waits))
        return scores

    def _basis(self, name: str, number: float) -> str:
        client = self._clients[name]
        fresh = [((attempt.spoke.get(name, ABSENT), None), (0.0, 1.0)) for attempt in self._attempts]
        seen = [(found, waited, times) for (found, waited), (_, times) in (*client.seen.items(), *fresh)]
        hits = [sum(times for found, _, times in seen if 0 <= found <= at) for at in range(WAITED + 1)]
        within = next((at for at in range(WAITED) if hits[at] >= 0.7 * number), WAITED)
        text = f"sent data within {EDGES[within]} ms before {hits[within]:.0f} of {number:.0f} attempts"
        if looks := sum(client.spoke):
            text += f", at other times {sum(client.spoke[: within + 1]) / looks:.0%} of the time"
        waited = round(sum(times for _, waits, times in seen if waits))
        return text + (f"; then waited on that connection after {waited}" if waited else "")


def _faded(seconds: float) -> float:
    return float(0.5 ** (max(0.0, seconds) / _HALF_LIFE))


def _spoke(look: Look, at: float, jiffy: float) -> dict[str, int]:
    """Tell for each client in which bin it last sent data before `at`."""
    found = {}
    for client, times in look.heard.items():
        ages = [(at - time) * 1000 for time in times]
        before = [age for age in ages if age >= -jiffy]
        found[client] = bin_of(min(before)) if before else LATER
    return found


def _halve(client: _Client, most: float) -> None:
    """Let old looks count for less where there are enough."""
    if sum(client.spoke) > most:
        client.spoke = [count / 2 for count in client.spoke]
        client.waits = [count / 2 for count in client.waits]
