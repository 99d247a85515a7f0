"""One row of a report, in bounded memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

_TOLD_APART = 256  # names in one tally: whoever tries a million addresses shall not fill our memory
_LISTED = 10  # names of a tally in the JSON document


@dataclass(slots=True)
class Tally:
    """How often each name came, for the first 256 names; later ones are counted together."""

    counts: dict[str, int] = field(default_factory=dict)
    rest: int = 0

    def add(self, name: str, count: int = 1) -> None:
        """Count a name, unless it is empty."""
        if not name:
            return
        if name in self.counts or len(self.counts) < _TOLD_APART:
            self.counts[name] = self.counts.get(name, 0) + count
        else:
            self.rest += count

    def ranked(self) -> list[tuple[str, int]]:
        """Give the names and how often each came, the most frequent first."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))

    def __str__(self) -> str:
        """Name the most frequent, and say how many more there are."""
        names = self.ranked()
        if not names:
            return ""
        more = f"{len(names) - 1:,}{' or more' if self.rest else ''}"
        return names[0][0] + (f" and {more} more" if len(names) > 1 else "")


@dataclass(slots=True)
class Row:
    """One row: `first` and `last` are seconds since the epoch."""

    attempts: int = 0
    packets: int = 0
    first: float = float("inf")
    last: float = 0.0
    places: Tally = field(default_factory=Tally)
    destinations: Tally = field(default_factory=Tally)
    clients: Tally = field(default_factory=Tally)
    confidence: dict[str, float] = field(default_factory=dict)
    """Of each client as of its last record: it grows with the attempts that it explains."""

    def span(self, first: float, last: float) -> None:
        """Widen the time that the row is about."""
        self.first, self.last = min(self.first, first), max(self.last, last)

    def document(self, name: str) -> dict[str, object]:
        """Give it for a machine; an empty name is null."""
        return {
            "name": name or None,
            "attempts": self.attempts,
            "packets": self.packets,
            "first": self.first,
            "last": self.last,
            "units": dict(self.places.ranked()[:_LISTED]),
            "destinations": dict(self.destinations.ranked()[:_LISTED]),
            "clients": [
                {"client": client, "attempts": count, "confidence": self.confidence[client]}
                for client, count in self.clients.ranked()[:_LISTED]
            ],
        }
