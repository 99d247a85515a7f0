"""Token buckets: how much may be done in a time, with a burst; times are seconds on any one clock. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class Bucket:
    """`rate` tokens a second, at most `burst` kept; full at first. A token may be a second of time that is used."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens = burst
        self._at = 0.0

    def left(self, now: float) -> float:
        """Give how many tokens there are."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        return self._tokens

    def spend(self, tokens: float) -> None:
        """Take what was used; it may be more than there was."""
        self._tokens -= tokens

    def take(self, now: float) -> bool:
        """Take a token, if there is a whole one."""
        if self.left(now) < 1:
            return False
        self.spend(1)
        return True


class Buckets:
    """A bucket in all, and one of its own for each key, so that one who takes many leaves some for the others."""

    def __init__(self, total: tuple[float, float], each: tuple[float, float], most: int = 1024) -> None:
        """Give rate and burst of either; `most` keys are remembered, those used last."""
        self._total = Bucket(*total)
        self._each_rate, self._most = each, most
        self._each: OrderedDict[Hashable, Bucket] = OrderedDict()

    def take(self, key: Hashable, now: float) -> bool:
        """Take a token of the key's and one of the total, if there are both."""
        own = self._each.pop(key, None) or Bucket(*self._each_rate)
        self._each[key] = own
        if len(self._each) > self._most:
            self._each.popitem(last=False)
        return own.take(now) and self._total.take(now)
