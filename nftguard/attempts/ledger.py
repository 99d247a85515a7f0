"""Blocked attempts, folded: a record for each, a summary for each culprit, and sums that equal the counters. Pure.

All times are a `Moment`: windows are measured on the monotonic clock, and told on the wall's.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from nftguard.bucket import Buckets
from nftguard.model import Hook

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nftguard.model import Counter as NamedCounter
    from nftguard.who.culprit import Culprit
    from nftguard.wire.nflog import Attempt

WINDOW = 150.0
"""Seconds after its last packet for which a flow is the same attempt: TCP's last repeat comes after 130 s (tcp(7))."""
LONGEST = 600.0
"""Seconds after which what does not end is summed up all the same."""
FLOWS = 16384
"""Flows that are remembered; of more, the one that is quiet for longest is forgotten."""
ACCOUNTS, CROWD = 1024, 128
"""Culprits, each with a counter, that are remembered at one time: in all, and of one user or interface.

More of a user's are summed up as that user's, and more in all without a name."""

_LATER = 0.2  # seconds until the next summaries, where there were too many at once
_AMONG = 3  # culprits that a summary without one names


class Moment(NamedTuple):
    """One moment on both clocks, in seconds."""

    monotonic: float
    wall: float


class Client(NamedTuple):
    """The client of a program that its attempts are likely to be for, and how sure that is, from 0 to 1."""

    address: str = ""
    confidence: float = 0.0


NOBODY = Client()


class Opened(NamedTuple):
    """The account that a flow goes to, and whether it is to have a record of its own."""

    account: int
    record: bool


class Total(NamedTuple):
    """What a counter counts."""

    packets: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Account:
    """What was seen of one culprit at one counter since its last summary."""

    number: int  # none has the same, of one process
    counter: str
    culprit: Culprit | None
    first: Moment
    last: Moment
    attempts: int = 0
    recorded: int = 0
    packets: int = 0
    bytes: int = 0
    client: Client = NOBODY
    destination: str | None = None
    """Where all of its attempts went; empty where they went to several."""

    def end(self) -> float:
        """Give when it is to be summed up, on the monotonic clock."""
        return min(self.last.monotonic + WINDOW, self.first.monotonic + LONGEST)


@dataclass(frozen=True, slots=True)
class Summary:
    """What is told of an account, or, without a culprit, of packets that were counted and not seen one by one.

    `first` and `last` are seconds since the epoch; `among` are culprits seen at the same time.
    """

    counter: str
    culprit: Culprit | None
    packets: int
    bytes: int
    attempts: int
    recorded: int
    first: float
    last: float
    account: int = 0  # 0: of no account
    client: Client = NOBODY  # the last one that was clear
    destination: str = ""
    among: tuple[str, ...] = ()


class Ledger:
    """Folds packets to flows, and flows to accounts."""

    def __init__(self, told: Mapping[str, Total]) -> None:
        """Go on from `told`: how much of each counter was summed up before, by an earlier process as well."""
        self.told = dict(told)
        self._flows: OrderedDict[tuple[object, ...], tuple[float, str, Culprit | None]] = OrderedDict()
        self._accounts: dict[tuple[str, object], Account] = {}
        self._absorbed: dict[str, Total] = {}
        # journald writes some 10,000 records a second, and keeps what it has room for.
        self._records = {own: Buckets(total=(100, 1000), each=(10, 100)) for own in (True, False)}
        self._crowds: Counter[tuple[object, ...]] = Counter()
        self._check_at: float | None = None
        self._since: dict[str, float] = {}  # counter to when all of it had been told
        self._numbers = count(1)

    def repeat(self, attempt: Attempt, now: Moment) -> bool:
        """Take in the packet when it is one more of a known flow."""
        key = attempt.flow
        known = self._flows.get(key)
        if known is None or now.monotonic - known[0] > WINDOW:
            return False
        _, counter, culprit = known
        self._flow(key, counter, culprit, attempt, now)
        return True

    def open(
        self, attempt: Attempt, counter: str, culprit: Culprit | None, now: Moment, client: Client = NOBODY
    ) -> Opened:
        """Take in the first packet of a flow."""
        account = self._flow(attempt.flow, counter, culprit, attempt, now)
        account.attempts += 1
        account.client = client if client.address else account.client
        same = account.destination in {None, attempt.destination}
        account.destination = attempt.destination if same else ""
        own = attempt.hook is Hook.OUTPUT  # others, whose sources can be made up, do not use up its share
        record = self._records[own].take(culprit and culprit.key, now.monotonic)
        account.recorded += record
        return Opened(account.number, record)

    def absorb(self, attempt: Attempt, counter: str) -> None:
        """Take in a packet that is never told, though it was counted: it is told as soon as the next sums are drawn."""
        packets, size = self._absorbed.get(counter, Total())
        self._absorbed[counter] = Total(packets + 1, size + attempt.size)

    def _flow(
        self, key: tuple[object, ...], counter: str, culprit: Culprit | None, attempt: Attempt, now: Moment
    ) -> Account:
        self._flows[key] = (now.monotonic, counter, culprit)
        self._flows.move_to_end(key)
        if len(self._flows) > FLOWS:
            self._flows.popitem(last=False)
        account = self._account(counter, culprit, now)
        account.last = now
        account.packets += 1
        account.bytes += attempt.size
        return account

    def _account(self, counter: str, culprit: Culprit | None, now: Moment) -> Account:
        key = (counter, culprit and culprit.key)
        if key not in self._accounts and culprit and self._crowds[culprit.crowd] >= CROWD:
            culprit = culprit.of_the_crowd()
            key = (counter, culprit.key)
        if key not in self._accounts and len(self._accounts) >= ACCOUNTS:
            key, culprit = (counter, None), None
        if key not in self._accounts:
            self._crowds[culprit.crowd if culprit else ()] += 1
            self._accounts[key] = Account(next(self._numbers), counter, culprit, now, now)
            end = now.monotonic + WINDOW
            self._check_at = min(self._check_at or end, end)
        return self._accounts[key]

    def due(self) -> float | None:
        """Give when, on the monotonic clock, `settle` may have something to tell; None while nothing is open."""
        return self._check_at

    def behind(self, counters: Mapping[str, NamedCounter]) -> set[str]:
        """Name those of the counters that need a look: of which something is open, or not everything was told."""
        open_ = {account.counter for account in self._accounts.values()}
        nothing = Total()
        return open_ | {name for name, at in counters.items() if at.packets != self.told.get(name, nothing).packets}

    def begin(self, totals: Mapping[str, Total]) -> None:
        """Take what was counted before anybody kept sums for told."""
        self.told |= {name: total for name, total in totals.items() if name not in self.told}

    def finish(self, totals: Mapping[str, Total], now: Moment) -> list[Summary]:
        """Sum up counters that there are no more; `totals` are what they had counted in the end."""
        summaries = [self._close(key) for key in list(self._accounts) if key[0] in totals]
        self._forget_absorbed(totals)
        for counter, total in totals.items():
            summaries += self._rest(counter, total, None, (), now)
            self.told.pop(counter, None)
            self._since.pop(counter, None)
        return summaries

    def rebase(self, totals: Mapping[str, Total]) -> bool:
        """Take in that counters were made anew, and begin with these totals; tell whether more was told of one."""
        seen, less = self._seen(), False
        for counter, total in totals.items():
            told, open_ = self.told.get(counter, Total()), seen.get(counter, Total())
            if told.packets + open_.packets > total.packets:
                self.told[counter] = Total(total.packets - open_.packets, total.bytes - open_.bytes)
                less = True
        return less

    def settle(
        self, totals: Mapping[str, Total], now: Moment, *, every: bool = False, most: int = 1 << 30
    ) -> list[Summary]:
        """Sum up what has ended, or with `every` all there is; at most so many, and the others the next time.

        `totals` are the counters as they were before the last packets were read, so that nothing that was counted by
        then is still to be seen. Of each counter the sum of all summaries is what it counts, once nothing is open.
        """
        while self._flows and next(iter(self._flows.values()))[0] < now.monotonic - WINDOW:
            self._flows.popitem(last=False)
        ended = [key for key, account in self._accounts.items() if every or account.end() <= now.monotonic]
        among: dict[str, list[str]] = {}
        for account in self._accounts.values():
            if account.culprit:
                among.setdefault(account.counter, []).append(str(account.culprit))
        summaries = [self._close(key) for key in ended[:most]]
        seen = self._seen()
        touched = {counter for counter, _ in ended[:most]} | (totals.keys() - seen.keys())
        for counter in sorted(touched & totals.keys()):
            if len(summaries) >= most:
                break
            names = tuple(among.get(counter, ())[:_AMONG])
            summaries += self._rest(counter, totals[counter], seen.get(counter), names, now)
        # Only now: the totals are older than what was absorbed last, and would seem set back.
        self._forget_absorbed(list(self._absorbed))
        self._check_at = min((account.end() for account in self._accounts.values()), default=None)
        if len(summaries) >= most:
            self._check_at = now.monotonic + _LATER
        return summaries

    def _seen(self) -> dict[str, Total]:
        """Add up what was seen and is still to be told, for each counter."""
        seen = dict(self._absorbed)
        for account in self._accounts.values():
            packets, size = seen.get(account.counter, Total())
            seen[account.counter] = Total(packets + account.packets, size + account.bytes)
        return seen

    def _forget_absorbed(self, counters: Iterable[str]) -> None:
        for counter in counters:
            if absorbed := self._absorbed.pop(counter, None):
                told = self.told.get(counter, Total())
                self.told[counter] = Total(told.packets + absorbed.packets, told.bytes + absorbed.bytes)

    def _close(self, key: tuple[str, object]) -> Summary:
        account = self._accounts.pop(key)
        self._crowds -= Counter([account.culprit.crowd if account.culprit else ()])
        told = self.told.get(account.counter, Total())
        self.told[account.counter] = Total(told.packets + account.packets, told.bytes + account.bytes)
        return Summary(
            account.counter,
            account.culprit,
            account.packets,
            account.bytes,
            account.attempts,
            account.recorded,
            account.first.wall,
            account.last.wall,
            account.number,
            account.client,
            account.destination or "",
        )

    def _rest(
        self, counter: str, total: Total, seen: Total | None, among: tuple[str, ...], now: Moment
    ) -> Iterable[Summary]:
        """Sum up what a counter has counted and nobody saw: what the kernel did not log, and what opens nothing.

        `seen` is what was seen and is still to be told.
        """
        told = self.told.get(counter, Total())
        packets = total.packets - told.packets - (seen.packets if seen else 0)
        size = total.bytes - told.bytes - (seen.bytes if seen else 0)
        first = self._since.get(counter, now.wall)
        self._since[counter] = now.wall
        if packets > 0:
            self.told[counter] = Total(told.packets + packets, told.bytes + max(0, size))
            yield Summary(counter, None, packets, max(0, size), 0, 0, first, now.wall, among=among)
        elif seen is None and packets < 0:
            self.told[counter] = total  # it was set back
