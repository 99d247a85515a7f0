"""The one path that every wake-up takes: look, compare, change at most once, tell. It holds the policy in force."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from nftguard import lastgood, notify, status
from nftguard.bulletin import Bulletin
from nftguard.config import Config
from nftguard.errors import NftguardError
from nftguard.journal import log
from nftguard.network import Network
from nftguard.pace import Cause, Pace
from nftguard.plan import diff, remove
from nftguard.reconcile import Outcome, reconcile
from nftguard.status import Standing, State, told_changes
from nftguard.surroundings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nftguard.kernel import Kernel
    from nftguard.lastgood import LastGood
    from nftguard.wire.watch import Change

_CHANGES = 100  # kept to find who changed the ruleset; a storm must not fill the memory


class Keeper:
    """Keeps one policy in force: that of the configuration, or the last good one while that is refused."""

    def __init__(self, path: Path, kernel: Kernel, surroundings: Surroundings | None = None) -> None:
        self._path = path
        self._kernel = kernel
        self._surroundings = surroundings or Surroundings()
        self._changes: list[Change] = []
        self.pace = Pace(time.monotonic, Config().service.resync)
        self.bulletin = Bulletin()
        self.good = lastgood.load()
        """The policy in force; at first the one that an earlier process left."""
        self.bulletin.counters = dict(self.good.counters) if self.good else {}

    def changed(self, changes: list[Change]) -> None:
        """Note transactions that named our table."""
        self._changes = (self._changes + changes)[:_CHANGES]
        if changes:
            self.pace.wake(Cause.RULESET)
            if self.pace.wait() > 0 and not self.bulletin.suspended:
                self.bulletin.unsure(changes[-1])  # a fight: until the repair is due, nobody knows what is in force

    def run(self) -> NftguardError | None:
        """Reconcile once, and tell; give the error that kept what was asked for from being done.

        Raises it at the start, when there is no last good policy to put in force instead.
        """
        causes = self.pace.take()
        if causes & {Cause.START, Cause.RELOAD, Cause.NETWORK, Cause.TIMER}:
            self._surroundings.stale()
        changes, self._changes = self._changes, []
        start, fresh = Cause.START in causes, bool(causes & {Cause.START, Cause.RELOAD})
        if self.bulletin.suspended and not fresh:
            self.bulletin.tell()
            return None
        self.bulletin.passes += 1
        announced = False
        problem: NftguardError | None = None

        def announce() -> None:
            nonlocal announced
            if not start and not announced:
                notify.reloading(f"reapplying after a {_told(causes)}")
                announced = True

        if fresh:
            announce()
            try:
                self._renew(causes)
            except NftguardError as error:
                if not self.good:
                    raise
                self.bulletin.refuse(error)
                problem = error
        if (problem or not fresh) and not self.bulletin.suspended:
            try:
                self._hold(causes, changes, announce if Cause.NETWORK in causes else lambda: None)
            except NftguardError as error:
                if start:
                    raise
                self._failed(error)
                problem = problem or error
        if start or announced:
            notify.ready(self.bulletin.sentence())
        self.bulletin.warn(self._surroundings.problems(self.good.config) if self.good else ())
        self.bulletin.tell()
        return problem

    def _renew(self, causes: frozenset[Cause]) -> None:
        """Put the configuration in force as its files are now."""
        good = lastgood.read(self._path, {})
        outcome = self._reconcile(good, lambda: None)
        self.good = good
        self.bulletin.renewed()
        self._save()
        self._applied(outcome, causes)

    def _hold(self, causes: frozenset[Cause], changes: list[Change], working: Callable[[], None]) -> None:
        """Keep in force what is."""
        assert self.good  # noqa: S101 - there is one from the start on
        before, expected = self.bulletin.counters, self.bulletin.desired
        outcome = self._reconcile(self.good, working)
        if self.bulletin.counters != before:
            self._save()
        if causes & {Cause.START, Cause.RESUME}:
            self._applied(outcome, causes)
        elif outcome.plan and not diff(outcome.live, expected):
            self.bulletin.followed(outcome, _told(causes))  # nobody touched it: what names stand for is another by now
        elif outcome.plan:
            change = next((change for change in changes if change.pid and not _ours(change)), None)
            self.pace.repaired()
            if self.pace.fighting:
                self.bulletin.fought(self.pace.repairs, change)
            else:
                self.bulletin.repaired(outcome, _told(causes), change)

    def _applied(self, outcome: Outcome, causes: frozenset[Cause]) -> None:
        summary = status.summary(self.bulletin.desired)
        log().info("applied", summary=summary, cause=_told(causes), changes=told_changes(len(outcome.plan)))

    def _reconcile(self, good: LastGood, working: Callable[[], None]) -> Outcome:
        host = self._surroundings.host(good.config)
        desired = replace(good, counters=self.bulletin.counters).table(self._kernel.features, host)
        outcome = reconcile(self._kernel, desired, working)
        self.bulletin.passed(outcome, desired)
        self.pace.resync = self.bulletin.resync = good.config.service.resync
        self.bulletin.log_target = good.config.log.target
        self.pace.ended(ok=True)
        return outcome

    def _failed(self, error: NftguardError) -> None:
        self.pace.ended(ok=False)
        try:
            live = self._kernel.snapshot()
        except NftguardError:
            live = None  # who cannot look must not claim to be protected
        self.bulletin.failed(error, live, self.pace.wait())

    def lift(self, cause: str) -> None:
        """Take the rules away; their counters' totals are kept. Raises KernelError."""
        live = self._kernel.snapshot()
        if live is not None:
            self.bulletin.count(live)
            self._save()
            self._kernel.apply(remove(live))
            log().warning("removed", cause=cause)
        self.bulletin.standing = Standing(State.UNPROTECTED, (f"lifted by {cause}",))

    def _save(self) -> None:
        if self.good:
            try:
                # Of what is looked up, only what is sure to hold at the next boot: users and groups.
                host = replace(self._surroundings.host(self.good.config), network=Network())
                lastgood.save(replace(self.good, counters=self.bulletin.counters), self._kernel.features, host)
            except OSError as error:
                self.bulletin.complain(lastgood.path(), error)


def _ours(change: Change) -> bool:
    """Whether it is a transaction of this process: those are among what was read, and are not at fault.

    In a container the process id is another than the kernel's, so that there the command's name has to do.
    """
    return change.pid == os.getpid() or change.command == "nftguard"


def _told(causes: frozenset[Cause]) -> str:
    return ", ".join(cause for cause in Cause if cause in causes)
