"""The one path that every wake-up takes: look, compare, change at most once, tell. It holds the policy in force."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from nftguard import differences, lastgood, notify, status
from nftguard.allowances import Allowances
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
from nftguard.trial import Trial, clock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nftguard.kernel import Kernel
    from nftguard.lastgood import LastGood
    from nftguard.model import Counter
    from nftguard.wire.watch import Change

_CHANGES = 100  # kept to find who changed the ruleset; a storm must not fill the memory


class Keeper:
    """Keeps one policy in force: that of the configuration, or the last good one while that is refused.

    For a while it may be one on trial: `begin`, and then `confirm` or `end`.
    """

    def __init__(self, path: Path, kernel: Kernel, surroundings: Surroundings | None = None) -> None:
        self._path = path
        self._kernel = kernel
        self._surroundings = surroundings or Surroundings()
        self._changes: list[Change] = []
        self.pace = Pace(time.monotonic, Config().service.resync)
        self.bulletin = Bulletin()
        self.book = Allowances(self.bulletin.complain)
        """What is allowed for a while."""
        self.good = lastgood.load()
        """The policy in force, or to be in force again; at first the one that an earlier process left."""
        self.trial: Trial | None = None
        self.bulletin.counters = dict(self.good.counters) if self.good else {}

    @property
    def policy(self) -> LastGood | None:
        """The policy in force: that on trial, or the last good one."""
        return self.trial.policy if self.trial else self.good

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
                if self.trial:
                    self.end(str(error))
        if start or announced:
            notify.ready(self.bulletin.sentence())
        self._tell()
        return problem

    def _tell(self) -> None:
        self.bulletin.warn(self._surroundings.problems(self.policy.config) if self.policy else ())
        self.bulletin.tell()

    def _renew(self, causes: frozenset[Cause]) -> None:
        """Put the configuration in force as its files are now. That is a decision, and ends a trial."""
        if Cause.START in causes and self.good and lastgood.in_doubt(self._path, self.good):
            raise NftguardError(lastgood.not_confirmed(self._path))
        good = lastgood.read(self._path, {})
        outcome = self._reconcile(good, lambda: None)
        ended, self.good, self.trial = self.trial, good, None
        self.bulletin.renewed()
        self._save()
        if ended:
            self._ended("the configuration was applied", told_changes(len(outcome.plan)))
        self._applied(outcome, causes)

    def _hold(self, causes: frozenset[Cause], changes: list[Change], working: Callable[[], None]) -> None:
        """Keep in force what is."""
        assert self.policy  # noqa: S101 - there is one from the start on
        before, expected = self.bulletin.counters, self.bulletin.desired
        outcome = self._reconcile(self.policy, working)
        if self.bulletin.counters != before:
            self._save()
        if causes & {Cause.START, Cause.RESUME}:
            self._applied(outcome, causes)
        elif outcome.plan and not diff(outcome.live, differences.aged(expected, outcome.live)):
            # Nobody touched it: what names stand for is another by now. An allowance was told when it was given,
            # taken back or found to have ended.
            if causes != {Cause.ALLOWANCE}:
                self.bulletin.followed(outcome, _told(causes))
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
        allowed = self.book.current()
        host = self._surroundings.host(good.config, allowed)
        desired = replace(good, counters=self._totals()).table(self._kernel.features, host, allowed)
        self.bulletin.allowed = self.book.listing()
        outcome = reconcile(self._kernel, desired, working)
        self.bulletin.passed(outcome, desired)
        if self.trial:
            self.bulletin.standing = self.trial.standing
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

    # On trial

    def begin(self, policy: LastGood, word: str, seconds: int) -> Outcome:
        """Put a policy in force for so many seconds, which `due` of the trial ends; `end` puts the good one back.

        Raises KernelError, and OSError where what undoes it could not be kept; the good one is in force then.
        """
        assert self.good  # noqa: S101 - there is one from the start on
        self._keep()
        if policy.files and policy.mark != self.good.mark:
            lastgood.doubt(policy.files)
        before = dict(self.bulletin.counters)
        notify.reloading("putting a configuration on trial")
        self._surroundings.stale()
        try:
            outcome = self._reconcile(policy, lambda: None)
        except NftguardError:
            self._back()
            raise
        live = outcome.live.counters if outcome.live else {}
        counters = {name: live.get(name, counter) for name, counter in before.items()}
        self.trial = Trial(policy, word, time.monotonic() + seconds, clock(seconds), counters, self.bulletin.refused)
        self.bulletin.refused, self.bulletin.standing = (), self.trial.standing
        notify.ready(self.bulletin.sentence())
        log().info(
            "trial_begun",
            until=self.trial.until,
            summary=status.summary(self.bulletin.desired),
            changes=told_changes(len(outcome.plan)),
        )
        self._tell()
        return outcome

    def confirm(self) -> None:
        """Make the policy on trial the last good one. Raises OSError where it could not be kept; it is in force."""
        assert self.trial  # noqa: S101 - who calls has looked
        self.good, self.trial = self.trial.policy, None
        self.bulletin.renewed()
        self._ended("confirmed", told_changes(0))
        self._tell()
        self._keep()

    def end(self, why: str) -> None:
        """Put the last good policy back in force. What fails is tried again, as after any failed pass."""
        assert self.trial  # noqa: S101 - who calls has looked
        assert self.good  # noqa: S101 - there is one from the start on
        ended, self.trial = self.trial, None
        self.bulletin.counters = {**ended.counters, **self.bulletin.counters}
        doubt = lastgood.in_doubt(self._path, self.good)
        self.bulletin.refused = (
            (lastgood.not_confirmed(self._path),) if doubt else self.bulletin.refused or ended.refused
        )
        notify.reloading("ending a trial")
        self._ended(why, self._back())
        self._tell()

    def _back(self) -> str:
        """Put the good policy back in force, as far as the kernel lets; say how much was changed."""
        assert self.good  # noqa: S101 - there is one from the start on
        self._surroundings.stale()
        try:
            changes = told_changes(len(self._reconcile(self.good, lambda: None).plan))
        except NftguardError as error:
            self._failed(error)
            changes = "not done yet"
        notify.ready(self.bulletin.sentence())
        return changes

    def _ended(self, why: str, changes: str) -> None:
        log().warning("trial_ended", why=why, summary=status.summary(self.bulletin.desired), changes=changes)

    def lift(self, cause: str) -> None:
        """Take the rules away; their counters' totals are kept. Raises KernelError."""
        live = self._kernel.snapshot()
        if live is not None:
            self.bulletin.count(live)
            self._save()
            self._kernel.apply(remove(live))
            log().warning("removed", cause=cause)
        self.bulletin.standing = Standing(State.UNPROTECTED, (f"lifted by {cause}",))

    def _totals(self) -> dict[str, Counter]:
        """Give the counters as they were last seen, also of what a trial has put aside."""
        return {**(self.trial.counters if self.trial else {}), **self.bulletin.counters}

    def _save(self) -> None:
        try:
            self._keep()
        except OSError as error:
            self.bulletin.complain(lastgood.path(), error)

    def _keep(self) -> None:
        """Write the last good policy, which one on trial is not. Raises OSError."""
        if self.good:
            # Of what is looked up, only what is sure to hold at the next boot: users and groups.
            host = replace(self._surroundings.host(self.good.config), network=Network())
            lastgood.save(replace(self.good, counters=self._totals()), self._kernel.features, host)


def _ours(change: Change) -> bool:
    """Whether it is a transaction of this process: those are among what was read, and are not at fault.

    In a container the process id is another than the kernel's, so that there the command's name has to do.
    """
    return change.pid == os.getpid() or change.command == "nftguard"


def _told(causes: frozenset[Cause]) -> str:
    return ", ".join(cause for cause in Cause if cause in causes)
