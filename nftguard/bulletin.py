"""What the daemon knows about itself, and how it tells: systemd's STATUS, the journal and status.json."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nftguard import bootscript, hostinfo, notify, policy, reach, state, status
from nftguard.errors import ConfigError, NftguardError
from nftguard.journal import log, log_problems
from nftguard.model import Counter, Table
from nftguard.names import shown
from nftguard.pace import FIGHT_AFTER, FIGHT_MOST, Cause
from nftguard.status import Standing, State
from nftguard.tally import Tally
from nftguard.wording import many

if TYPE_CHECKING:
    from nftguard.reconcile import Outcome
    from nftguard.wire.watch import Change

TELL_EVERY = 1.0  # seconds between two words about attempts
FOLLOW_EVERY = 1.0  # seconds between two words about exceptions that follow this host
FRESH = 60.0  # seconds beyond the resync interval after which status.json no longer counts
FRESHEN, CONFIRM = 15.0, 60.0  # seconds after which it is written anew: where packets were counted, and in any case
_NAMED = 10  # differences that a record names


class Bulletin:
    """The daemon's last word, kept up to date."""

    def __init__(self) -> None:
        self.desired = Table()
        self.standing = Standing(State.UNPROTECTED)
        self.refused: tuple[str, ...] = ()
        self.suspended = ""
        """Why nothing is blocked, and until when; empty as long as something is."""
        self.resync = 0  # seconds
        self.log_target = "journal"
        self.tell_at: float | None = None
        """When, on the monotonic clock, attempts are due to be told."""
        self.freshen_at: float | None = None
        """When, on the monotonic clock, the counters are to be looked at for `freshen`."""
        self.tally = Tally()
        self.nft = ""
        """The version of nft's library."""
        self.allowed: list[dict[str, Any]] = []
        """What is allowed for a while, as `Allowances.listing` gives it."""
        self.records_dropped = 0
        """Records that journald did not take in time."""
        self.counters: dict[str, Counter] = {}
        """The counters as they were last seen."""
        self._gone: dict[str, Counter] = {}
        self._anew: dict[str, Counter] = {}
        self._seen: dict[str, float] = {}
        self._attempts = 0
        self._lost = self._lost_told = 0
        self._last = ""
        self._last_at = 0.0
        self._told = ""
        self._left_out = ""
        self._follow_at = 0.0  # seconds on the monotonic clock, before which it is not told again
        self._followed = 0
        self._tell_every = TELL_EVERY
        self._warned: tuple[str, ...] = ()
        self._written_at = 0.0  # seconds on the monotonic clock
        self.passes = 0
        """How often the one path was taken."""
        self._started = time.time()
        self._complained: set[Path] = set()

    def passed(self, outcome: Outcome, desired: Table, left_out: str = "") -> None:
        """Take over what a pass made sure of, what it had to leave out, and the counters that it saw."""
        self.desired = desired
        if left_out and left_out != self._left_out:
            log().error("left_out", reason=left_out)
        self._left_out = left_out
        self._stand()
        live = outcome.live.counters if outcome.live else {}
        self._gone |= {
            name: at for name, at in live.items() if name not in desired.counters and policy.counter_key(name)
        }
        self._anew |= {name: at for name, at in desired.counters.items() if name not in live}
        self.count(outcome.live or desired)

    def count(self, live: Table) -> None:
        """Take over the live counters: what rose was seen since the last time. What is missing keeps its total."""
        for name, counter in live.counters.items():
            if name in self.counters and counter.packets > self.counters[name].packets:
                self._seen[name] = time.time()
        self.counters = {name: live.counters.get(name, kept) for name, kept in self.desired.counters.items()}
        self._seen = {name: when for name, when in self._seen.items() if name in self.counters}

    def renewed(self) -> None:
        """Take over that a new configuration is in force."""
        self.refused, self.suspended = (), ""
        self._stand()

    def _stand(self) -> None:
        reasons = (*self.refused, self._left_out) if self._left_out else self.refused
        self.standing = Standing(State.DEGRADED if reasons else State.PROTECTED, reasons)

    def refuse(self, error: NftguardError) -> None:
        """Record that a new configuration was refused, each problem once."""
        self.refused = tuple(str(error).splitlines())
        self.standing = Standing(max(self.standing.state, State.DEGRADED, key=list(State).index), self.refused)
        if isinstance(error, ConfigError):
            log_problems(error)
        count = len(self.refused)
        reason = f"{count} problem{'s' if count > 1 else ''}" if isinstance(error, ConfigError) else str(error)
        log().error("renewal_refused", reason=reason)

    def failed(self, error: NftguardError, live: Table | None, retry: float) -> None:
        """Record that a pass failed, and what is in force all the same; `retry` is in seconds."""
        self.standing = status.judge(live, self.desired, (str(error),))
        log().error("apply_failed", reason=error, retry=round(retry))

    def mended(self, causes: frozenset[Cause], change: Change | None) -> None:
        """Count a repair, which is then recorded by `repaired` or `fought`."""
        cause = Cause.RULESET if Cause.RULESET in causes else next(cause for cause in Cause if cause in causes)
        self.tally.mended(cause.name.lower(), time.monotonic() - change.at if change else None)

    def repaired(self, outcome: Outcome, cause: str, change: Change | None) -> None:
        """Record a repair: what was found, who did it as far as known, and how long it lasted."""
        found = outcome.plan.found
        gap = time.monotonic() - change.at if change else 0.0
        how = f"changed by {blame(change)}, mended {gap * 1000:.1f} ms after it was seen"
        log().warning(
            "repaired",
            found=_named(found),
            differences=len(found),
            who=blame(change),
            pid=change.pid if change else None,
            command=change.command if change else None,
            unit=hostinfo.unit_of(change.pid, change.command) if change else None,
            cause=cause,
            how=how if change else f"on a {cause}",
            gap_usec=round(gap * 1e6) if change else None,
        )

    def followed(self, outcome: Outcome, cause: str) -> None:
        """Record that exceptions were brought up to date with this host."""
        self._followed += 1
        if (now := time.monotonic()) < self._follow_at:
            return  # a unit that restarts without end is no news each time
        times = f", {self._followed} times since this was last told" if self._followed > 1 else ""
        self._follow_at, self._followed = now + FOLLOW_EVERY, 0
        found = outcome.plan.found
        log().info("followed", found=_named(found), differences=len(found), cause=cause + times)

    def fought(self, repairs: int, change: Change | None) -> None:
        """Record that a program keeps changing the table: at first, and again after 10, 100, 1,000 more repairs."""
        if str(repairs - FIGHT_AFTER).rstrip("0") == "1":
            log().error("fought", who=blame(change), repairs=repairs, interval=FIGHT_MOST)

    def warn(self, problems: tuple[str, ...] = ()) -> None:
        """Look for what the table cannot reach on this host, and record it, with these problems, when it is news."""
        beyond = tuple(reach.open_ways(self.desired))
        for warning in (found for found in beyond if found not in self._warned):
            log().warning("forward_open", warning=warning)
        for warning in (found for found in problems if found not in self._warned):
            log().warning("not_allowed", warning=warning)
        self._warned = beyond + problems

    def unsure(self, change: Change) -> None:
        """Tell that the table was touched and is not looked at yet, because somebody does it again and again."""
        reason = f"{change.command or 'another program'} keeps changing the rules"
        if self.standing.reasons != (reason,):
            self.standing = Standing(State.UNPROTECTED, (reason,))
            self.tell()

    def attempted(self, counter: str, what: str, by: str) -> None:
        """Take in that an attempt was blocked: what it was, and by whom, in words."""
        self._attempts += 1
        self._seen[counter] = self._last_at = time.time()
        self._last = f"{what} from {by}"
        self._tell_soon()

    def lost(self, count: int) -> None:
        """Take in that attempts could not be told one by one."""
        self._lost += count
        self._tell_soon()

    def _tell_soon(self) -> None:
        if self.tell_at is None:
            self.tell_at = time.monotonic() + self._tell_every

    def news(self) -> tuple[dict[str, Counter], dict[str, Counter]]:
        """Give the counters that are gone, as they were in the end, and those made anew, with what they began with.

        Each is given once.
        """
        news = self._gone, self._anew
        self._gone, self._anew = {}, {}
        return news

    def tell_lost(self) -> None:
        """Record how many were lost since that was last told."""
        if self._lost > self._lost_told:
            log().warning("attempts_lost", lost=self._lost - self._lost_told)
            self._lost_told = self._lost

    def sentence(self) -> str:
        """Say how things are, for `systemctl status`."""
        if self.suspended:
            return f"SUSPENDED: nothing is blocked, {self.suspended}"
        if self.standing.state is State.UNPROTECTED:
            return f"UNPROTECTED: {self.standing.reasons[0]}"
        sentence = status.summary(self.desired)
        if self.refused:
            more = f" and {len(self.refused) - 1} more" if len(self.refused) > 1 else ""
            sentence += f"; DEGRADED: the new configuration is refused ({self.refused[0]}{more}), the old rules stay"
        elif self.standing.state is State.DEGRADED:
            sentence += f"; DEGRADED: {self.standing.reasons[0]}"
        if self._attempts:
            at = time.strftime("%H:%M:%S", time.localtime(self._last_at))
            sentence += f"; {many(self._attempts, 'attempt')}, the last at {at}: {self._last}"
        return sentence

    def freshen(self, live: dict[str, Counter]) -> None:
        """Take over the live counters, and tell, when that is news to those who read status.json, or it is old."""
        before = self.counters
        self.count(Table(counters=before | live))
        now = time.monotonic()
        self.freshen_at = now + max(FRESHEN, self._tell_every)
        if self.counters != before or now >= self._written_at + CONFIRM - FRESHEN / 2:
            self.tell()

    def tell(self) -> None:
        """Tell systemd, and those who may not ask the kernel."""
        began = time.monotonic()
        self.tell_at = None
        self.tell_lost()
        if (sentence := self.sentence()) != self._told:  # systemd's socket is not for chatter: a full one would block
            self._told = sentence
            notify.status(sentence)
        document = status.document(
            self.standing,
            None if self.suspended else replace(self.desired, counters=self.counters),
            seen=self._seen,
            warnings=self._warned,
            allowed=self.allowed,
            at=time.time(),
            daemon={
                "pid": os.getpid(),
                "namespace": state.namespace(),
                "since": self._started,
                "log": self.log_target,
                "passes": self.passes,
                "repairs": self.tally.repairs.total(),
                "attempts": self._attempts,
                "attempts_lost": self._lost,
                "last_attempt": {"at": self._last_at, "text": self._last} if self._last else None,
                "records_dropped": self.records_dropped,
                "suspended": self.suspended or None,
                "owner": "owner" in self.desired.flags and not self.suspended,
                "nft": self.nft,
                "python": platform.python_version(),
                "counts": self.tally.document(),
            },
        )
        try:
            state.write_status(document | {"stale_after": time.time() + self.resync + FRESH})
        except OSError as error:
            self.complain(Path(bootscript.run_dir()) / "status.json", error)
        self._written_at = time.monotonic()
        self._tell_every = max(TELL_EVERY, 20 * (self._written_at - began))  # of 10,000 ports it takes a while
        self.freshen_at = self.freshen_at or self._written_at + FRESHEN

    def complain(self, path: Path, error: OSError) -> None:
        """Record, once for each path, that it cannot be written."""
        if path not in self._complained:
            self._complained.add(path)
            log().warning("state_unwritable", path=path, reason=error.strerror)


def _named(found: tuple[str, ...]) -> str:
    return "; ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")


def blame(change: Change | None) -> str:
    """Name who changed the ruleset, as far as the kernel said."""
    if not change:
        return "nobody known"
    unit = hostinfo.unit_of(change.pid, change.command)
    return f"{shown(change.command)} (process {change.pid}{f' of {unit}' if unit else ''})"
