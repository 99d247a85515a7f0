"""The daemon's last word, read by a process that is no part of it and does not trust that it is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nftguard import __version__, folder
from nftguard.metrics.word import Problem, Word

if TYPE_CHECKING:
    from pathlib import Path

_MOST = 64 << 20  # bytes; 65,535 ports take 10 MB


def read(path: Path, now: float) -> Word:
    """Read the daemon's status.json; `now` is in seconds since the epoch, as all its times are."""
    try:
        data = folder.read(path, _MOST)
        if data is None:
            return Word(problem=Problem.MISSING)
        document = json.loads(data)
        if document["version"] != __version__:
            return Word(problem=Problem.VERSION)
        at, stale = float(document["at"]), not now <= float(document["stale_after"])
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return Word(problem=Problem.UNREADABLE)
    return Word(problem=Problem.STALE, at=at) if stale else Word(document, at=at)
