"""New culprits, told once each to whoever wants to act on them: a file that systemd watches (`nftguard-alert.path`).

The daemon starts no program of the administrator's itself: it would run without a network, in the daemon's sandbox, or
the sandbox would have to be wide enough for it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import bootscript, state
from nftguard.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nftguard.attempts.ledger import Moment
    from nftguard.who.culprit import Culprit

NAME = "alert.json"
EVERY = 60.0
"""Seconds between two alerts; who is new meanwhile is told together."""

_KNOWN = 1024  # culprits remembered
_FORGET = 30 * 86400.0  # seconds after which a culprit is new again
_PENDING = 100  # told in one alert


class Alert:
    """Remembers culprits, and writes down the new ones."""

    def __init__(self, known: Mapping[str, float]) -> None:
        """Go on with the culprits that are known: their names, and when each was seen last (seconds since 1970)."""
        self._known = OrderedDict(sorted(known.items(), key=lambda item: item[1]))
        self._pending: dict[str, dict[str, object]] = {}
        self._new = Bucket(rate=1, burst=20)  # sources of forwarded packets can be made up without end
        self._next = 0.0

    def known(self) -> dict[str, float]:
        """Give the culprits that are known and were told, to be kept: who still waits is new to the next process."""
        return {key: at for key, at in self._known.items() if key not in self._pending}

    def meets(self, culprit: Culprit, now: Moment) -> bool:
        """Take in that there was an attempt of his; tell whether he is new, and then to be added."""
        key = repr(culprit.home)
        seen = self._known.get(key)
        if seen is not None and now.wall - seen < _FORGET:
            self._known[key] = now.wall
            self._known.move_to_end(key)
            return False
        return len(self._pending) < _PENDING and self._new.take(now.monotonic)

    def add(self, culprit: Culprit, fields: Mapping[str, object], now: Moment) -> None:
        """Know him from now on, and tell of him with the next alert."""
        key = repr(culprit.home)
        self._known[key] = now.wall
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        told = {name: value for name, value in fields.items() if value not in {None, ""}}
        self._pending[key] = told | {"first": now.wall, "last": now.wall}  # seconds, as everywhere but in the journal

    def due(self) -> float | None:
        """Give when, on the monotonic clock, `tell` is to be called."""
        return self._next if self._pending else None

    def tell(self, now: float) -> None:
        """Write the new culprits down. Raises OSError; they are then told with the next alert."""
        self._next = now + EVERY
        document = {"culprits": [*self._pending.values()]}
        state.write(Path(bootscript.run_dir()) / NAME, json.dumps(document) + "\n", 0o600)
        self._pending.clear()
