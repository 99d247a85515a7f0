"""Our records, read back from the system's journal: only those that journald itself marks as ours.

Anybody may send journald a record with our MESSAGE_ID and our fields. What he cannot choose are the fields that start
with an underscore (systemd.journal-fields(7)). Two of them are asked for:

- `_SYSTEMD_UNIT`: a user's own nftguard.service has that of his service manager, user@1000.service, and every container
  that of its scope, since journald takes the first unit on the path of the control group.
- `_UID`: journald looks the unit up by the process id when it gets to the record, which under load is later. Whoever is
  gone by then, and whose id a process of ours has taken, has our unit; but never our user, whom the kernel sends along.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nftguard.errors import EX_NOPERM, NftguardError, UnavailableError
from nftguard.events import EVENTS
from nftguard.names import clean

try:
    from systemd import journal  # type: ignore[attr-defined]  # mypy takes our folder systemd/ for it
except ImportError:
    raise UnavailableError("python's systemd module is missing; install the package python3-systemd") from None

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

UNITS = ("nftguard.service", "nftguard-boot.service")
USER = "nftguard"
_PREFIX = "NFTGUARD_"
_LONGEST = 8192  # characters of a value; the daemon writes none that is longer
_NUMBER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_FRACTION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_TIMES = {"FIRST", "LAST"}  # microseconds since the epoch
_FRACTIONS = {"CLIENT_CONFIDENCE", "INTERVAL"}
_NUMBERS = {
    *("SOURCE_PORT", "PORT", "UID", "GID", "PID", "PACKETS", "BYTES", "ATTEMPTS", "RECORDED", "ACCOUNT"),
    *("RECORD", "LOST", "DROPPED", "REPAIRS", "DIFFERENCES", "GAP_USEC", "RETRY"),
}


class UnreadableError(NftguardError):
    """The journal is there, and not for this user."""

    exit_code = EX_NOPERM


@dataclass(frozen=True, slots=True)
class Record:
    """One record. `raw` is what the journal holds of it: field to value, or values where there are several.

    Fields are asked for without the NFTGUARD_ in front. What is missing is empty or 0, and so is what makes no sense.
    """

    at: float
    """When journald got it, in seconds since the epoch."""
    raw: Mapping[str, Any]

    @property
    def event(self) -> str:
        """What happened: a key of EVENTS."""
        return self.text("EVENT")

    @property
    def message(self) -> str:
        """The sentence that people read, without what does not print."""
        return _text(self.raw.get("MESSAGE"))

    @property
    def process(self) -> tuple[str, ...]:
        """What tells its process from all others: boot, start of the unit, process id."""
        return tuple(_text(self.raw.get(name)) for name in ("_BOOT_ID", "_SYSTEMD_INVOCATION_ID", "_PID"))

    def text(self, name: str) -> str:
        """Give a field as text that prints, at most 8192 characters."""
        return _text(self.raw.get(_PREFIX + name))

    def number(self, name: str) -> int:
        """Give a field as a whole number."""
        text = self.text(name)
        return int(text) if _NUMBER.fullmatch(text) else 0

    def fraction(self, name: str) -> float:
        """Give a field as a number that is not negative."""
        text = self.text(name)
        return float(text) if _FRACTION.fullmatch(text) else 0.0

    def document(self) -> dict[str, object]:
        """Give all of it for a machine: our fields in lower case, numbers as numbers, times in seconds."""
        found: dict[str, object] = {"at": self.at, "message": self.message}
        for field in sorted(self.raw):
            if field.startswith(_PREFIX):
                name = field.removeprefix(_PREFIX)
                text = self.text(name)
                if name in _TIMES and _NUMBER.fullmatch(text):
                    found[name.lower()] = int(text) / 1e6
                elif name in _NUMBERS and _NUMBER.fullmatch(text):  # PORT may be a range
                    found[name.lower()] = int(text)
                elif name in _FRACTIONS and _FRACTION.fullmatch(text):
                    found[name.lower()] = float(text)
                else:
                    found[name.lower()] = text
        return found


def _text(value: Any) -> str:
    if isinstance(value, list):  # a field may come several times in a record, though not in one of the daemon's
        value = value[0] if value else b""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        return ""
    return value if value.isprintable() and len(value) <= _LONGEST else clean(value, _LONGEST)


class _Reader(journal.Reader):  # type: ignore[misc]
    """Leaves values as they are: converting every field of every record takes three times as long as reading it."""

    def _convert_entry(self, entry: dict[str, Any]) -> dict[str, Any]:
        return entry


class Records:
    """Our records in the journal, of the events asked for.

    Raises UnreadableError and UnavailableError.
    """

    def __init__(self, events: Iterable[str] = EVENTS) -> None:
        self._reader = _Reader(journal.LOCAL_ONLY | journal.SYSTEM_ONLY)
        if not (self._reader.has_persistent_files() or self._reader.has_runtime_files()):
            self._reader.close()
            if os.geteuid():
                raise UnreadableError("the journal cannot be read: be root, or a member of the group systemd-journal")
            raise UnavailableError("there is no journal on this host: is systemd-journald running, with Storage= on?")
        # Values of one field are alternatives; different fields must all fit (sd_journal_add_match(3)).
        for unit in UNITS:
            self._reader.add_match(_SYSTEMD_UNIT=unit)
        for uid in _uids():
            self._reader.add_match(_UID=uid)
        for event in events:
            self._reader.add_match(MESSAGE_ID=EVENTS[event].message_id)

    def close(self) -> None:
        """Close the journal."""
        self._reader.close()

    def between(self, since: float, until: float) -> Iterator[Record]:
        """Read the records of that time, in seconds since the epoch, oldest first."""
        self._reader.seek_realtime(since)
        for record in self._forward():
            if record.at > until:
                return
            if record.at >= since:
                yield record

    def last(self, count: int) -> Iterator[Record]:
        """Read the last ones, oldest first; `follow` goes on after them."""
        now = time.time()
        self._reader.seek_tail()
        oldest: dict[str, Any] = {}
        for _ in range(count):
            if not (found := self._reader.get_previous()):
                break
            oldest = found
        if oldest:
            yield _record(oldest)
            yield from self._forward()
        else:
            self._reader.seek_realtime(now)  # from the very end libsystemd would not go on

    def follow(self, output: int) -> Iterator[Record]:
        """Read on for ever, each record when it comes. Raises BrokenPipeError when nobody reads `output` any more."""
        poll = select.poll()
        poll.register(self._reader.fileno(), self._reader.get_events())  # before reading on, lest one is missed
        poll.register(output, 0)  # asks for errors alone
        while True:
            yield from self._forward()
            # Not wait(): a Ctrl-C would have to wait for a record.
            timeout = self._reader.get_timeout_ms()
            if output in (found for found, _ in poll.poll(timeout if timeout >= 0 else None)):
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            self._reader.process()

    def _forward(self) -> Iterator[Record]:
        while True:
            try:
                found = self._reader.get_next()
            except OSError:  # this one is damaged: libsystemd is past it; its number is missing, and told as such
                continue
            if not found:
                return
            yield _record(found)


def _record(found: dict[str, Any]) -> Record:
    return Record(found["__REALTIME_TIMESTAMP"] / 1e6, found)


def _uids() -> list[int]:
    """Give the users that the daemon runs as: its own, and root where the unit was changed to that."""
    try:
        return [0, pwd.getpwnam(USER).pw_uid]
    except KeyError:
        return [0]
