"""How things are put into words wherever they stand: how many, where to, when. Pure."""

from __future__ import annotations

import time


def many(count: int, what: str) -> str:
    """Say how many: `1 attempt`, `2,000 attempts`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def endpoint(address: str, port: int | str) -> str:
    """Write an address and a port: `203.0.113.7:25`, `[2001:db8::25]:25`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def local_time(moment: float) -> str:
    """Write a moment, in seconds since the epoch, as date and time here: `2026-11-24 10:00:00`."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
