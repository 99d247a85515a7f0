"""Blocked attempts on their way from the kernel to the journal: read, folded, attributed, recorded."""

from __future__ import annotations

import json
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import bootscript, policy, state
from nftguard.attempts import alert, telling
from nftguard.attempts.alert import Alert
from nftguard.attempts.ledger import NOBODY, Client, Ledger, Moment, Total
from nftguard.canary import is_canary
from nftguard.errors import UnavailableError
from nftguard.journal import log
from nftguard.model import Counter
from nftguard.who.attribution import Attribution, Finding
from nftguard.wire.nflog import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nftguard.attempts.ledger import Summary
    from nftguard.bulletin import Bulletin
    from nftguard.journal import JournalSink
    from nftguard.wire.nflog import Attempt
    from nftguard.wire.nfnl import Nfnl

_DRAIN = 16  # batches of packets that are read before sums are drawn: what was counted by then is to be seen by then
_PATIENCE = 1.0  # seconds for the last sums
_ASKED = 1000  # counters asked for at a time, some 10 µs each
_MANY = 64  # attempts that were read at once
_CHECK_EVERY = 60.0  # seconds between two looks at what was counted and not seen
_REFRESH_EVERY = 0.5  # seconds
_NAME = "ledger.json"


class Recorder:
    """Reads one NFLOG group, and tells of its attempts; what the kernel counted besides is summed up."""

    def __init__(self, nfnl: Nfnl, bulletin: Bulletin, sink: JournalSink | None = None) -> None:
        """Record to the journal; `sink`, where there is one, says how much of it there is room for."""
        self._sink = sink
        self._nfnl = nfnl
        self._bulletin = bulletin
        self.reader: Reader | None = None
        self._unread: int | None = None  # the NFLOG group that could not be read
        self.attribution = Attribution(nfnl)
        self._told_problem = ""
        self._check_at = self._refresh_at = 0.0
        self._absorbed = False  # whether something was that is still to be saved
        # The one in /run is there after a crash even where the disk is full; the other after a reboot.
        self._paths = [Path(folder) / _NAME for folder in (bootscript.run_dir(), bootscript.state_dir())]
        told, culprits, self._begun = _load(self._paths)
        self._ledger = Ledger(told)
        self._alert = Alert(culprits)

    def follow(self, group: int | None) -> None:
        """Read this NFLOG group from now on, or none."""
        if (self.reader.group if self.reader else None) == group:
            return
        if self.reader:
            self.end()
            self.reader.close()
            self.reader = None
        if group is not None:
            self.attribution.begin()
            try:
                self.reader, self._unread = Reader(group), None
            except UnavailableError as error:  # tried again at every pass, told once
                if group != self._unread:
                    self._unread = group
                    log().warning("attempts_unread", reason=error)

    def read(self) -> int:
        """Read the attempts that wait, up to a bound, and tell of each; give how many there were."""
        if not self.reader:
            return 0
        found, now = self.reader.read(), Moment(time.monotonic(), time.time())
        attempts = self._absorb(found)
        first: dict[tuple[object, ...], tuple[Attempt, str]] = {}
        repeats: list[Attempt] = []
        for attempt in attempts:
            if (flow := attempt.flow) in first:
                repeats.append(attempt)
            elif not self._ledger.repeat(attempt, now) and (counter := self._counter(attempt)):
                first[flow] = attempt, counter
        # Where many wait, the first of them are not of this moment.
        findings = self.attribution.explain([attempt for attempt, _ in first.values()], fresh=len(found) < _MANY)
        for (attempt, counter), finding in zip(first.values(), findings, strict=True):
            self._open(attempt, counter, finding, now)
        for attempt in repeats:
            self._ledger.repeat(attempt, now)
        if lost := self.reader.take_lost():
            self._bulletin.lost(lost)
        if attempts and now.monotonic >= self._refresh_at:
            self._refresh_at = now.monotonic + _REFRESH_EVERY
            self._refresh({self._counter(attempt) for attempt in attempts} - {""})
        return len(found)

    def _absorb(self, attempts: list[Attempt]) -> list[Attempt]:
        """Let canaries pass in silence, as if they had been told; give the others."""
        others: list[Attempt] = []
        counters: set[str] = set()
        for attempt in attempts:
            if not is_canary(attempt):
                others.append(attempt)
            elif counter := self._counter(attempt):
                self._ledger.absorb(attempt, counter)
                counters.add(counter)
        if counters:
            self._absorbed = True
            self._refresh(counters)  # else the next pass finds that they rose, and takes it for an attempt just now
        return others

    def _refresh(self, names: Iterable[str]) -> dict[str, Total]:
        """Ask for these counters as they are now, also for those who look at status without being root."""
        totals = {name: Total(*found) for name in names if (found := self._nfnl.counter(name))}
        self._bulletin.counters |= {name: Counter(name, *total) for name, total in totals.items()}
        return totals

    def _counter(self, attempt: Attempt) -> str:
        """Name the counter that counted it; empty where another program logs to our group, or the block is gone."""
        where = (attempt.block, attempt.hook, attempt.protocol, attempt.port)
        return policy.counter_of(self._bulletin.desired, *where)

    def _open(self, attempt: Attempt, counter: str, finding: Finding, now: Moment) -> None:
        suspicion = finding.suspicion
        client = Client(suspicion.client, suspicion.confidence) if suspicion and suspicion.clear else NOBODY
        account, record = self._ledger.open(attempt, counter, finding.culprit, now, client)
        new = self._alert.meets(finding.culprit, now)
        what, by = telling.what(attempt), telling.by(finding)
        self._bulletin.attempted(counter, what, by)
        self._bulletin.tally.attempted(attempt.hook, finding.culprit)
        if not record and not new:
            return  # the most of a flood
        fields = telling.attempt_fields(attempt, finding, account, now)
        if record:
            log().info("blocked", **fields, what=what, by=by)
        if new:
            self._alert.add(finding.culprit, fields, now)
            log().warning("culprit", **fields, what=what, by=by)

    def due(self) -> float | None:
        """Give when, on the monotonic clock, `tick` is to be called; None for not at all."""
        return min(
            (at for at in (self._ledger.due(), self.attribution.due(), self._alert.due()) if at is not None),
            default=None,
        )

    def tick(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if (at := self.attribution.due()) is not None and at <= now:
            self.attribution.tick()
        if (at := self._ledger.due()) is not None and at <= now:
            self.settle()
        if (at := self._alert.due()) is not None and at <= now:
            try:
                self._alert.tell(now)
                self._save()
            except OSError as error:
                self._bulletin.complain(Path(bootscript.run_dir()) / alert.NAME, error)

    def settle(self, *, every: bool = False) -> bool:
        """Sum up what has ended, or all there is; also what the counters have counted and nobody saw.

        Tell whether that was all. What the journal has no room for stays, and is told the next time.
        """
        if not self.reader:
            return True
        names = self._ledger.behind(self._bulletin.counters)
        asked = names if every else islice(names, _ASKED)
        totals = self._refresh(asked)
        if not self._begun:
            self._begun = True
            self._ledger.begin(totals)
        if all(self.read() for _ in range(_DRAIN)):
            totals = {}  # what still waits was counted, and will be seen: it must not be told twice
        room = self._sink.room if self._sink else 1 << 30
        now = Moment(time.monotonic(), time.time())
        summaries = self._ledger.settle(totals, now, every=every, most=room)
        self._tell(summaries)
        if self._absorbed and not summaries:
            self._save()
        self._absorbed = False
        return len(summaries) < room

    def _tell(self, summaries: list[Summary]) -> None:
        for summary in summaries:
            log().info("blocked_summary", **telling.summary_fields(summary))
        if summaries:
            self._save()

    def _save(self) -> None:
        there = self._bulletin.counters
        told = {name: list(total) for name, total in self._ledger.told.items() if name in there}
        text = json.dumps({"told": told, "culprits": self._alert.known()})
        for path in self._paths:
            try:
                state.write(path, text, 0o600)
            except OSError as error:
                self._bulletin.complain(path, error)

    def check(self) -> None:
        """After a pass: tell what keeps units from being told, once, and sum up what the counters show besides."""
        if (problem := self.attribution.problem) != self._told_problem:
            self._told_problem = problem
            if problem:
                log().warning("units_unknown", reason=problem)
        gone, anew = (
            {name: Total(at.packets, at.bytes) for name, at in found.items()} for found in self._bulletin.news()
        )
        if gone:
            self._tell(self._ledger.finish(gone, Moment(time.monotonic(), time.time())))
        if self._ledger.rebase(anew):
            self._save()
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + _CHECK_EVERY
            self.settle()

    def end(self) -> None:
        """Sum everything up while the counters are there, as far as the journal takes it in a little time."""
        end = time.monotonic() + _PATIENCE
        while not self.settle(every=True) and time.monotonic() < end:
            time.sleep(0.02)
            if self._sink:
                self._sink.flush()

    def close(self) -> None:
        """Let go."""
        if self.reader:
            self.reader.close()
        self.attribution.close()


def _load(paths: list[Path]) -> tuple[dict[str, Total], dict[str, float], bool]:
    """Read what was told by an earlier process: nothing where the files are missing or malformed."""
    told: dict[str, Total] = {}
    culprits: dict[str, float] = {}
    begun = False
    for path in paths:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            read = {str(name): Total(int(packets), int(size)) for name, (packets, size) in found["told"].items()}
            culprits |= {str(key): float(at) for key, at in found["culprits"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        told |= {name: max(total, told.get(name, total)) for name, total in read.items()}
        begun = True
    return told, culprits, begun
