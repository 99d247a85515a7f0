"""What is known of each name, when to ask again, and what is still held although it was not confirmed. Pure.

One rule for what an answer changes: an address that is in it is in force at once; one that is not, or is no more since
the name is gone, stays until answers have lacked it for five minutes. Programs go on with what they looked up a while
ago, and names in rotation give each asker others. A question without an answer changes nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nftguard.resolver.entries import MAX_ADDRESSES, Entry

if TYPE_CHECKING:
    from collections.abc import Mapping

FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class Limits:
    """Times, in seconds."""

    least: float = 30.0  # from an answer to the next question, whatever its time to live
    most: float = 3600.0
    grace: float = 300.0  # that an address stays which answers lack
    retry_first: float = 5.0  # after a question without an answer; doubling
    retry_most: float = 300.0
    hurry_every: float = 5.0  # from one time that all is asked anew to the next


class Question(NamedTuple):
    """The addresses of one family, 4 or 6, of a name."""

    name: str
    family: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question. `error` alone: nothing, so that nothing is learned."""

    addresses: frozenset[str] = frozenset()
    ttl: float = 0.0
    error: str = ""
    none: str = ""  # why there are no addresses, when that is the answer


@dataclass(slots=True)
class _Line:
    due: float
    addresses: dict[str, float | None] = field(default_factory=dict)  # to when it was first lacking
    at: float | None = None
    ttl: float = 0.0
    error: str = ""
    none: str = ""
    failures: int = 0
    asked: bool = False


class Book:
    """Every name that is wanted. `now` is seconds on a clock that also runs while the host sleeps."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lines: dict[Question, _Line] = {}
        self._hurried = float("-inf")

    def want(self, names: Mapping[str, Entry], now: float) -> None:
        """Take what is wanted from now on; of a new name, what it is known to have had is held like an answer."""
        wanted = {Question(name, family): entry for name, entry in names.items() for family in FAMILIES}
        self._lines = {question: line for question, line in self._lines.items() if question in wanted}
        for question, entry in wanted.items():
            if question not in self._lines:
                known = [one for one in entry.addresses if ipaddress.ip_address(one).version == question.family]
                self._lines[question] = _Line(now, dict.fromkeys(known), entry.at if known else None)

    def hurry(self, now: float) -> None:
        """Ask all anew, since the network is another; soon, if that was done a moment ago."""
        if self._hurried > now:  # planned already
            return
        self._hurried = max(now, self._hurried + self._limits.hurry_every)
        for line in self._lines.values():
            line.due = min(line.due, self._hurried)
            line.failures = min(line.failures, 2)

    def take(self, now: float) -> list[Question]:
        """Give the questions that are due; each is then to be followed by `learn`."""
        due = [question for question, line in self._lines.items() if not line.asked and line.due <= now]
        for question in due:
            self._lines[question].asked = True
        return due

    def wait(self, now: float) -> float:
        """Give the seconds until the next question is due."""
        return max(0.0, min((line.due for line in self._lines.values() if not line.asked), default=now + 60.0) - now)

    def learn(self, question: Question, reply: Reply, began: float, now: float) -> None:
        """Take in what came of a question that was asked at `began`."""
        line = self._lines.get(question)
        if line is None:  # not wanted any more
            return
        line.asked, line.error = False, reply.error
        limits = self._limits
        if reply.error:
            line.due = now + min(limits.retry_first * 2.0 ** min(line.failures, 16), limits.retry_most)
            line.failures += 1
        else:
            line.failures, line.none = 0, reply.none
            line.addresses = self._merged(line.addresses, reply.addresses, now)
            if reply.addresses or not line.addresses:
                line.at = now
            line.ttl = min(max(reply.ttl, limits.least), limits.most)
            lacking = [since for since in line.addresses.values() if since is not None]
            line.due = min([now + line.ttl, *(since + limits.grace for since in lacking)])
        if began < self._hurried:
            line.due = min(line.due, max(now, self._hurried))

    def _merged(self, old: Mapping[str, float | None], new: frozenset[str], now: float) -> dict[str, float | None]:
        lacking = {one: now if since is None else since for one, since in old.items() if one not in new}
        held = {one: since for one, since in lacking.items() if now - since < self._limits.grace}
        # Those that were confirmed last come first: where there are too many, the others are left out.
        latest = sorted(held.items(), key=lambda item: item[1], reverse=True)
        return dict([*((one, None) for one in sorted(new)), *latest][:MAX_ADDRESSES])

    def entries(self) -> dict[str, Entry]:
        """Give what is known of every name of which something is."""
        found: dict[str, list[tuple[int, _Line]]] = {}
        for question, line in self._lines.items():
            if line.at is not None or line.error:
                found.setdefault(question.name, []).append((question.family, line))
        return {name: _entry(lines) for name, lines in found.items()}


def _entry(lines: list[tuple[int, _Line]]) -> Entry:
    addresses = sorted(address for _, line in lines for address in line.addresses)
    # A first failure of what has an answer is tried again before anybody is told.
    errors = {family: line.error for family, line in lines if line.error and (line.failures > 1 or not line.addresses)}
    if len(errors) == len(FAMILIES) and len(set(errors.values())) == 1:
        error = next(iter(errors.values()))
    else:
        error = ", ".join(f"IPv{family}: {error}" for family, error in errors.items())
    current = any(since is None for _, line in lines for since in line.addresses.values())
    if not error and not current:
        error = next((line.none for _, line in lines if line.none), "")
    if not error and any(len(line.addresses) == MAX_ADDRESSES for _, line in lines):
        error = f"of its addresses {MAX_ADDRESSES} of a family are used, and no more"
    return Entry(
        addresses=tuple(addresses),
        at=min((line.at for _, line in lines if line.at is not None), default=None),
        ttl=max(line.ttl for _, line in lines),
        error=error,
    )
