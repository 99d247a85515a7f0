"""How things are put into words wherever they stand: how many, where to, when. Pure."""

from __future__ import annotations

import time

_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


def many(count: int, what: str) -> str:
    """Say how many: `1 attempt`, `2,000 attempts`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def endpoint(address: str, port: int | str) -> str:
    """Write an address and a port: `203.0.113.7:25`, `[2001:db8::25]:25`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def local_time(moment: float) -> str:
    """Write a moment, in seconds since the epoch, as date and time here: `2026-11-24 10:00:00`."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def lasting(seconds: float) -> str:
    """Say how long, the smaller units left out: `45 s`, `29 min`, `2 h`, `7 d`; never more than it is."""
    for unit, size in _UNITS:
        if seconds >= 2 * size or seconds == size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"
