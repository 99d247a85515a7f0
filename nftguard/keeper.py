"""The one path that every wake-up takes: look, compare, change at most once, tell. It holds the policy in force."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from nftguard import differences, lastgood, notify, status
from nftguard.allowed.book import Allowances
from nftguard.bulletin import Bulletin
from nftguard.config import Config
from nftguard.errors import KernelError, NftguardError
from nftguard.journal import log
from nftguard.pace import Cause, Pace
from nftguard.plan import diff, remove
from nftguard.reconcile import reconcile
from nftguard.status import Standing, State, told_changes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nftguard.kernel import Kernel
    from nftguard.lastgood import LastGood
    from nftguard.model import Counter
    from nftguard.reconcile import Outcome
    from nftguard.surroundings import Surroundings
    from nftguard.wire.watch import Change

_CHANGES = 100  # kept to find who changed the ruleset; a storm must not fill the memory


class Keeper:
    """Keeps one policy in force: that of the configuration, or the last good one while that is refused.

    For a while another may be in force instead: `put`, and then `accept` or `back`. `listen` reads for `changed`.
    """

    def __init__(
        self, path: Path, kernel: Kernel, surroundings: Surroundings, listen: Callable[[], object] = lambda: None
    ) -> None:
        self._path = path
        self._kernel = kernel
        self._surroundings = surroundings
        self._listen = listen
        self._changes: list[Change] = []
        self.pace = Pace(time.monotonic, Config().service.resync)
        self.bulletin = Bulletin()
        self.book = Allowances(self.bulletin.complain)
        """What is allowed for a while."""
        self.good = lastgood.load()
        """The policy in force, or to be in force again; at first the one that an earlier process left."""
        self.last: Outcome | NftguardError | None = None
        """What came last of making the rules what they should be."""
        self._instead: tuple[LastGood, Standing] | None = None
        self._aside: dict[str, Counter] = {}  # those of the good policy, of which the one in force may lack some
        self.bulletin.counters = dict(self.good.counters) if self.good else {}
        self._saved = self._totals()

    @property
    def policy(self) -> LastGood:
        """The policy in force; there is one from the first pass on. Raises NftguardError before."""
        if self._instead:
            return self._instead[0]
        if not self.good:
            raise NftguardError("nothing is in force yet")
        return self.good

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
            if Cause.RELOAD in causes:
                self.bulletin.tally.reloads["refused" if problem else "done"] += 1
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
        self.tell()
        return problem

    def tell(self) -> None:
        """Tell how things stand, and what of the policy in force stands for nothing on this host."""
        self.bulletin.warn(self._surroundings.problems(self.policy.config))
        self.bulletin.tell()

    def freshen(self) -> None:
        """Look at what was counted since the last pass, also of what is not logged, and tell when that is due."""
        counted: dict[str, Counter] = {}
        with suppress(KernelError):  # a table that is away is the next pass's business
            counted = self._kernel.counters(self.bulletin.desired.families)
        self.bulletin.freshen(counted)

    def _renew(self, causes: frozenset[Cause]) -> None:
        """Put the configuration in force as its files are now: the good policy from now on, whatever was instead."""
        if Cause.START in causes and self.good and lastgood.in_doubt(self._path, self.good):
            raise NftguardError(lastgood.not_confirmed(self._path))
        good = lastgood.read(self._path, {})
        outcome = self._reconcile(good, lambda: None)
        self.good, self._instead, self._aside = good, None, {}
        self.bulletin.renewed()
        self._save()
        self._applied(outcome, causes)

    def _hold(self, causes: frozenset[Cause], changes: list[Change], working: Callable[[], None]) -> None:
        """Keep in force what is."""
        expected = self.bulletin.desired
        outcome = self._reconcile(self.policy, working)
        if self._totals() != self._saved:
            self._save()
        if causes & {Cause.START, Cause.RESUME}:
            self._applied(outcome, causes)
        elif outcome.plan and not diff(outcome.live, differences.aged(expected, outcome.live)):
            # Nobody touched it: what names stand for is another by now. An allowance was told when it was given,
            # taken back or found to have ended.
            if causes != {Cause.ALLOWANCE}:
                self.bulletin.followed(outcome, _told(causes))
        elif outcome.plan:
            change = _foreign(changes) or self._late()
            self.pace.repaired()
            self.bulletin.mended(causes, change)
            if self.pace.fighting:
                self.bulletin.fought(self.pace.repairs, change)
            else:
                self.bulletin.repaired(outcome, _told(causes), change)

    def _late(self) -> Change | None:
        """Find a change that came after this pass had its events, and before it read the table."""
        if self.pace.fighting:
            return None  # who it is has been told
        self._listen()
        # What follows our repair is for the next pass.
        end = max((at for at, change in enumerate(self._changes, 1) if _ours(change)), default=0)
        before, self._changes = self._changes[:end], self._changes[end:]
        return _foreign(before)

    def _applied(self, outcome: Outcome, causes: frozenset[Cause]) -> None:
        summary = status.summary(self.bulletin.desired)
        log().info("applied", summary=summary, cause=_told(causes), changes=told_changes(len(outcome.plan)))

    def _reconcile(self, good: LastGood, working: Callable[[], None]) -> Outcome:
        began = time.monotonic()
        policy = replace(good, counters=self._totals())
        self.bulletin.allowed = self.book.listing()
        allowed = self.book.current()
        left_out = ""
        self._surroundings.want(good.config, allowed)
        try:
            host = self._surroundings.host(good.config, allowed)
            desired = policy.table(self._kernel.features, host, allowed)
            outcome = reconcile(self._kernel, desired, working)
        except (KernelError, ValueError) as error:
            # Whatever is wrong with what names stand for here must not cost the block: then nobody is let through.
            desired = policy.table(self._kernel.features)
            outcome = reconcile(self._kernel, desired, working)
            left_out = f"nothing is let through by name, nor for a while: {error}"
        self.bulletin.passed(outcome, desired, left_out)
        if self._instead:
            self.bulletin.standing = self._instead[1]
        else:
            self._aside = {}  # they are in the table again
        self.pace.resync = self.bulletin.resync = good.config.service.resync
        self.bulletin.log_target = good.config.log.target
        self.pace.ended(ok=not left_out)
        self.last = outcome
        self.bulletin.nft = self._kernel.version
        self.bulletin.tally.reconciled(time.time(), time.monotonic() - began)
        return outcome

    def _failed(self, error: NftguardError) -> None:
        self.pace.ended(ok=False)
        self.last = error
        self.bulletin.tally.reconciles["failed"] += 1
        try:
            live = self._kernel.snapshot()
        except NftguardError:
            live = None  # who cannot look must not claim to be protected
        self.bulletin.failed(error, live, self.pace.wait())

    # Another policy instead of the good one

    def put(self, policy: LastGood, meanwhile: Standing) -> Outcome:
        """Put a policy in force instead of the good one, which is kept, and say meanwhile that things stand so.

        Raises KernelError; the good one is in force then, as far as the kernel lets.
        """
        before = self.bulletin.counters
        self._surroundings.stale()
        try:
            outcome = self._reconcile(policy, lambda: None)
        except NftguardError:
            self.back()
            raise
        live = outcome.live.counters if outcome.live else {}
        self._aside = {name: live.get(name, counter) for name, counter in before.items()}
        self._instead, self.bulletin.standing = (policy, meanwhile), meanwhile
        return outcome

    def accept(self) -> None:
        """Make the policy that is in force the good one, which `keep` then keeps."""
        self.good, self._instead, self._aside = self.policy, None, {}
        self.bulletin.renewed()

    def back(self) -> Outcome | None:
        """Put the good policy back in force; None where that failed: it is tried again, as after any failed pass."""
        self._instead = None
        self._surroundings.stale()
        try:
            return self._reconcile(self.policy, lambda: None)
        except NftguardError as error:
            self._failed(error)
            return None

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
        """Give the counters as they were last seen, also of what is put aside."""
        return {**self._aside, **self.bulletin.counters}

    def _save(self) -> None:
        try:
            self.keep()
        except OSError as error:
            self.bulletin.complain(lastgood.path(), error)

    def keep(self) -> None:
        """Write the last good policy, which one instead of it is not. Raises OSError."""
        if self.good:
            host, totals = self._surroundings.host(self.good.config), self._totals()
            lastgood.save(replace(self.good, counters=totals), self._kernel.features, host)
            self._saved = totals


def _foreign(changes: list[Change]) -> Change | None:
    return next((change for change in changes if change.pid and not _ours(change)), None)


def _ours(change: Change) -> bool:
    """Whether it is a transaction of this process: those are among what was read, and are not at fault.

    In a container the process id is another than the kernel's, so that there the command's name has to do.
    """
    return change.pid == os.getpid() or change.command == "nftguard"


def _told(causes: frozenset[Cause]) -> str:
    return ", ".join(cause for cause in Cause if cause in causes)
