"""The daemon's last word as another process finds it: what it says, or why that does not count. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Problem(StrEnum):
    """Why the last word does not count."""

    MISSING = "missing"
    """There is no file: the daemon does not run, or never did."""
    UNREADABLE = "unreadable"
    """It cannot be read, or is not what this version writes."""
    VERSION = "version"
    """Another version of nftguard wrote it: one of the two services was not restarted since the upgrade."""
    STALE = "stale"
    """It is too old: the daemon hangs, or died without a successor."""


@dataclass(frozen=True, slots=True)
class Word:
    """What was found: a document that counts, or a problem; `at` is when it was written, 0 where nobody knows."""

    document: dict[str, Any] = field(default_factory=dict)
    problem: Problem | None = None
    at: float = 0.0
