"""The page that is served, or written to a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import Collector

from nftguard.metrics import reading, series

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from prometheus_client.core import Metric

_LASTS = 1.0  # seconds: whoever asks more often costs no more
_OPEN = "application/openmetrics-text"


class _Guard(Collector):
    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterable[Metric]:
        return series.families(reading.read(self._path, time.time()))


def registry(path: Path) -> CollectorRegistry:
    """Give a registry that reads the daemon's status.json each time that it is asked, and holds nothing else."""
    found = CollectorRegistry(auto_describe=False)
    found.register(_Guard(path))
    return found


def text(path: Path) -> str:
    """Give the page as it is now, in Prometheus's text format."""
    return generate_latest(registry(path)).decode()


class Page:
    """The page in whichever format is asked for, made anew once a second at most."""

    def __init__(self, path: Path) -> None:
        self._registry = registry(path)
        self._made: dict[str, tuple[float, bytes]] = {}

    def get(self, accept: str) -> tuple[str, bytes]:
        """Give content type and content for what a client accepts, as its header says."""
        # Only these two: prometheus_client repeats a version that the client made up, or raises on it.
        encode, kind = choose_encoder(f"{_OPEN}; version=1.0.0" if _OPEN in accept else "")
        made_at, content = self._made.get(kind, (float("-inf"), b""))
        if time.monotonic() - made_at >= _LASTS:
            content = encode(self._registry)
            self._made[kind] = time.monotonic(), content
        return kind, content
