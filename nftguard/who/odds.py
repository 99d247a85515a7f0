"""How much better than chance a client explains attempts, by when it spoke and whether it waited since. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EDGES = (5, 10, 30, 100, 500)
"""Bins of when a client last spoke, in milliseconds before a moment; one more has no end, and the last is ABSENT."""
ABSENT = len(EDGES) + 1
"""The bin of a client that is not connected."""
BINS = ABSENT + 1
LATER = -1
"""In no bin: data that came since hides what came before."""
WAITED = 3
"""The last bin after which a connection may have waited: up to 100 ms."""

Seen = tuple[int, bool | None]
"""What was seen of a client at an attempt: its bin, or LATER, and whether it waited since, once that is known."""

_STRAY = 0.1  # of the attempts of a client's, so many may be of somebody else
_RARE = 0.05  # whatever is seen less often at other times is taken to be as frequent as this: few looks tell no better
_ENOUGH = 12.0  # who explains attempts e^12 times better than chance cannot be told from another who does, too
_POOL = 200.0  # looks for which the other clients' habits count in place of a client's own


@dataclass(frozen=True, slots=True)
class _Way:
    """How a client may be behind attempts: when it spoke, in the bins' order, and whether it waits from then on."""

    share: float  # before any attempt
    spoke: tuple[float, ...]
    waits: float | None


# At once or after a look-up of a name, on a connection that waits for the answer; or on one that has more to carry:
# rarer, and a coincidence looks the same.
_WAYS = (
    _Way(0.4, (0.65, 0.18, 0.08, 0.04, 0.03, 0.02, 0.0), 0.9),
    _Way(0.4, (0.12, 0.13, 0.30, 0.35, 0.06, 0.04, 0.0), 0.9),
    _Way(0.2, (0.65, 0.18, 0.08, 0.04, 0.03, 0.02, 0.0), None),
)


def bin_of(age: float) -> int:
    """Give the bin of a client that spoke so many milliseconds before."""
    return sum(age > edge for edge in EDGES)


def score(weights: Mapping[Seen, float], spoke: Sequence[float], waits: Sequence[float]) -> float:
    """Give the logarithm of how much better than chance a client explains attempts.

    `weights` says how much what was seen of it at attempts counts. `spoke` and `waits` are the shares of its bins, and
    of not waiting and waiting, at other times.
    """
    totals = [0.0] * len(_WAYS)
    for (found, waited), weight in weights.items():
        for at, way in enumerate(_WAYS):
            ratio = 1.0 if found == LATER else way.spoke[found] / max(_RARE, spoke[found])
            if way.waits is not None and waited is not None and found <= WAITED:
                ratio *= (way.waits if waited else 1 - way.waits) / max(_RARE, waits[waited])
            totals[at] += weight * math.log(_STRAY + (1 - _STRAY) * ratio)
    highest = max(totals)
    parts = (way.share * math.exp(total - highest) for way, total in zip(_WAYS, totals, strict=True))
    return min(_ENOUGH, highest + math.log(sum(parts)))


def shares(counts: Sequence[float], prior: Sequence[float]) -> list[float]:
    """Give the shares, as if there had been `_POOL` more looks that shared out like the prior."""
    whole = sum(counts) + _POOL
    return [(count + _POOL * part) / whole for count, part in zip(counts, prior, strict=True)]
