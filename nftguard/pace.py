"""When the next reconcile runs: wake-ups are coalesced, failures retried, and a fight slowed down. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from nftguard.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable


class Cause(StrEnum):
    """Why a reconcile runs."""

    START = "start"
    RELOAD = "reload"
    RULESET = "ruleset change"
    NETWORK = "network change"
    HOST = "change of who may"
    ALLOWANCE = "allowance"
    TIMER = "timer"
    RETRY = "retry"
    RESUME = "end of the pause"


SETTLE = 0.2  # seconds that a network change waits for those that come with it
NETWORK_EVERY = 2.0  # seconds between two runs that network changes ask for
HOST_EVERY, HOST_BURST = 0.05, 20  # seconds between runs that units, accounts and names ask for, beyond so many
RETRY_FIRST, RETRY_MOST = 1.0, 60.0  # seconds after a failed run, doubling
FIGHT_AFTER = 20  # repairs at once; from then on another program is fighting us
FIGHT_FIRST, FIGHT_MOST = 0.1, 1.0  # seconds between repairs in a fight, doubling
CALM = 10.0  # seconds without a repair that end a fight


class Pace:
    """Collects wake-ups and says when to run; `clock` gives seconds and never runs backwards."""

    def __init__(self, clock: Callable[[], float], resync: float) -> None:
        self._clock = clock
        self.resync = resync
        self._causes: set[Cause] = set()
        self._due = clock() + resync
        self._last_network = float("-inf")
        self._host = Bucket(rate=1 / HOST_EVERY, burst=HOST_BURST)
        self._last_repair = float("-inf")
        self._failures = 0
        self.repairs = 0
        """Repairs since it was last calm."""

    def wake(self, cause: Cause) -> None:
        """Ask for a run."""
        now = self._clock()
        self._causes.add(cause)
        if cause is Cause.NETWORK:
            at = max(now + SETTLE, self._last_network + NETWORK_EVERY)
        elif cause is Cause.HOST and self._host.left(now) < 1:
            at = now + HOST_EVERY
        elif cause is Cause.RULESET:
            at = max(now, self._last_repair + self._fight_interval())
        else:
            at = now
        self._due = min(self._due, at)

    def wait(self) -> float:
        """Give the seconds until the next run; 0 when it is due."""
        return max(0.0, self._due - self._clock())

    def take(self) -> frozenset[Cause]:
        """Begin a run: give its causes, and plan the next one."""
        now = self._clock()
        causes = frozenset(self._causes) or frozenset({Cause.TIMER})
        self._causes.clear()
        if Cause.NETWORK in causes:
            self._last_network = now
        if Cause.HOST in causes and self._host.left(now) > 0:
            self._host.spend(1)
        if now - self._last_repair > CALM:
            self.repairs = 0
        self._due = now + self.resync
        return causes

    def repaired(self) -> None:
        """Note that the run mended what somebody else had changed."""
        self.repairs += 1
        self._last_repair = self._clock()

    def ended(self, *, ok: bool) -> None:
        """Note how the run ended; a failed one is tried again."""
        self._failures = 0 if ok else self._failures + 1
        if not ok:
            self._causes.add(Cause.RETRY)
            self._due = min(self._due, self._clock() + min(RETRY_FIRST * 2 ** (self._failures - 1), RETRY_MOST))

    @property
    def fighting(self) -> bool:
        """Whether another program changes our table again and again."""
        return self.repairs > FIGHT_AFTER

    def _fight_interval(self) -> float:
        beyond = min(self.repairs - FIGHT_AFTER, 16)
        return min(FIGHT_FIRST * 2 ** (beyond - 1), FIGHT_MOST) if beyond > 0 else 0.0
