"""What records say together: who tried, to whom, how often; rows and sums are kept, never the records. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nftguard.attempts.row import Row
from nftguard.look import PIPE, Look, Role
from nftguard.names import shown
from nftguard.who.clients import LIKELY, VERY_LIKELY
from nftguard.wording import endpoint, local_time, many

if TYPE_CHECKING:
    from nftguard.attempts.records import Record

TOP = 20
"""Rows that are shown unless all are asked for."""
_SETTLED = 660.0  # seconds after which an attempt is no longer open: the daemon sums up after 600 at the latest
_ACCOUNTS = 4096  # more than the daemon has open
_NAME_AT = 23  # columns before a row's name
_UNKNOWN = "not known"
_OTHERS = "others, too many to tell apart"
_TOLD_APART = 20000  # rows: addresses can be forged, a million of them an hour


@dataclass(slots=True)
class _Process:
    """The records of one process that were numbered: from which number to which, and how many."""

    lowest: int
    highest: int
    count: int = 0
    dropped: int = 0


class Report:
    """Takes record after record; `by` is program, user, unit, destination, port or client; `block` the only one meant.

    What was lost or dropped counts for any block.
    """

    def __init__(self, by: str, since: float, until: float, block: str = "") -> None:
        self.by = by
        self.block = block
        self.since = since
        self.until = until
        self.rows: dict[str, Row] = {}  # the empty name: not known
        self.unseen = 0
        """Packets that the kernel counted and nobody saw one by one."""
        self.lost = 0
        self._open: dict[tuple[object, ...], tuple[int, float]] = {}
        self._most_open = _ACCOUNTS
        self._processes: dict[tuple[str, ...], _Process] = {}

    def add(self, record: Record) -> None:
        """Take in a record of any kind, in the order of the journal."""
        event = record.event
        if number := record.number("RECORD"):
            self._number(self._process(record, number), number)
        if self.block and event in {"blocked", "blocked_summary"} and record.text("BLOCK") != self.block:
            return
        if event == "blocked":
            self._blocked(record)
        elif event == "blocked_summary":
            self._summary(record)
        elif event == "attempts_lost":
            self.lost += record.number("LOST")
        elif event == "records_dropped":
            self._process(record, number).dropped += record.number("DROPPED")

    def _blocked(self, record: Record) -> None:
        row = self._row(record)
        row.attempts += 1
        at = _time(record, "FIRST")
        row.span(at, at)
        row.destinations.add(endpoint(record.text("DESTINATION"), record.text("PORT")))
        row.places.add(_place(record))
        if client := _client(record):
            row.clients.add(client)
            if client in row.clients.counts:
                row.confidence[client] = min(1.0, record.fraction("CLIENT_CONFIDENCE"))
        account = _account(record)
        self._open[account] = (self._open.get(account, (0, 0.0))[0] + 1, record.at)
        # Some are never summed up by themselves: the daemon ended, or was flooded.
        if len(self._open) > self._most_open:
            self._open = {key: value for key, value in self._open.items() if value[1] > record.at - _SETTLED}
            self._most_open = max(_ACCOUNTS, 2 * len(self._open))

    def _summary(self, record: Record) -> None:
        self._open.pop(_account(record), None)
        packets, folded = record.number("PACKETS"), record.number("ATTEMPTS") - record.number("RECORDED")
        if not record.number("ACCOUNT"):
            self.unseen += packets
            return
        row = self._row(record)
        row.packets += packets
        row.attempts += max(0, folded)
        row.places.add(_place(record), max(0, folded))
        row.span(*(max(self.since, _time(record, name)) for name in ("FIRST", "LAST")))

    def _row(self, record: Record) -> Row:
        name = self._name(record)
        if name and name not in self.rows and len(self.rows) >= _TOLD_APART:
            name = _OTHERS
        return self.rows.setdefault(name, Row())

    def _name(self, record: Record) -> str:
        match self.by:
            case "program":
                return shown(record.text("PROGRAM")) if record.text("PROGRAM") else ""
            case "user":
                return _user(record)
            case "unit":
                return _place(record)
            case "port":
                return f"{record.text('PROTOCOL')}/{record.text('PORT')} on {record.text('HOOK')}"
            case "client":
                return _client(record)
            case _:
                return record.text("DESTINATION")  # a summary of several has none

    def _process(self, record: Record, number: int) -> _Process:
        return self._processes.setdefault(record.process, _Process(number, number))

    @staticmethod
    def _number(process: _Process, number: int) -> None:
        process.lowest = min(process.lowest or number, number)
        process.highest = max(process.highest, number)
        process.count += 1

    @property
    def attempts(self) -> int:
        """How many attempts there were."""
        return sum(row.attempts for row in self.rows.values())

    @property
    def packets(self) -> int:
        """How many packets they had, as far as they are summed up."""
        return sum(row.packets for row in self.rows.values())

    @property
    def open(self) -> int:
        """How many attempts are not summed up yet. Those of a daemon that was killed never are, and not counted."""
        return sum(count for count, at in self._open.values() if at > self.until - _SETTLED)

    @property
    def dropped(self) -> int:
        """How many records the daemon gave up while journald took none."""
        return sum(process.dropped for process in self._processes.values())

    @property
    def missing(self) -> int:
        """How many more records are missing in the journal."""
        gaps = (
            process.highest - process.lowest + 1 - process.count - process.dropped
            for process in self._processes.values()
            if process.count
        )
        return sum(max(0, gap) for gap in gaps)

    def ranked(self) -> list[tuple[str, Row]]:
        """Give the rows, most attempts first; what is not known is the last one."""
        return sorted(self.rows.items(), key=lambda item: (not item[0], -item[1].attempts, -item[1].packets, item[0]))

    def document(self) -> dict[str, object]:
        """Give all of it for a machine. Times are seconds since the epoch; a name is null where it is not known."""
        return {
            "since": self.since,
            "until": self.until,
            "by": self.by,
            "block": self.block or None,
            "attempts": self.attempts,
            "packets": self.packets,
            "open": self.open,
            "unseen_packets": self.unseen,
            "attempts_lost": self.lost,
            "records_dropped": self.dropped,
            "records_missing": self.missing,
            "rows": [row.document(name) for name, row in self.ranked()],
        }

    def lines(self, top: int | None = TOP, look: Look = PIPE) -> list[str]:
        """Give all of it for people; None as `top` shows every row."""
        rows = self.ranked()
        named, unknown = [row for row in rows if row[0]], [row for row in rows if not row[0]]
        head = f"Blocked attempts{f' of block {self.block}' if self.block else ''}, {local_time(self.since)} to "
        head += f"{local_time(self.until)}{f', by {self.by}' if rows else ': none'}"
        lines = look.fold(head)
        if rows:
            lines += ["", look.paint(f" ATTEMPTS     PACKETS  {self.by.upper()}", Role.HEAD)]
        for name, row in [*named[:top], *unknown]:
            packets = f"{row.packets:,}" if row.packets else "-"
            line = f"{row.attempts:>9,} {packets:>11}  {name or _UNKNOWN}"
            lines += look.fold(line, _NAME_AT - line.index(line.lstrip()))
            lines += [part for about in self._about(row) for part in look.fold(f"{'':12}{about}")]
        if left := named[top:] if top is not None else []:
            lines.append(f"{sum(row.attempts for _, row in left):>9,} {'':11}  and {len(left):,} more (--all)")
        if rows:
            packets = f", {many(self.packets, 'packet')}" if self.packets or not self.open else ""
            lines += ["", f"{many(self.attempts, 'attempt')}{packets}"]
        return [*lines, *(part for note in self._notes() for part in look.fold(note))]

    def _about(self, row: Row) -> list[str]:
        client = str(row.clients)
        if client:
            name = row.clients.ranked()[0][0]
            sure = "very likely" if row.confidence[name] >= VERY_LIKELY else "likely"
            of = f"{row.clients.counts[name]} of {many(row.attempts, 'attempt')}"
            client = f"{name} ({sure}, for {of}){client.removeprefix(name)}"
        about = [("unit", "by", str(row.places)), ("destination", "to", str(row.destinations))]
        about.append(("client", "suspected client", client))
        lines = [f"{what} {value}" for by, what, value in about if value and by != self.by]
        first, last = local_time(row.first), local_time(row.last)
        return [f"at {first}" if first == last else f"first {first}, last {last}", *lines]

    def _notes(self) -> list[str]:
        notes = [
            (self.open, "attempt", "not over for 150 s yet: not all of their packets are summed up"),
            (self.unseen, "more packet", "counted, not seen one by one: a flood, or replies (see nftguard(8))"),
            (self.lost, "attempt", "not told: too many at once, or malformed"),
            (self.dropped, "record", "dropped while journald took none"),
            (self.missing, "record", "missing from the journal: its rate limit or storage, journald.conf(5)"),
        ]
        return [f"{many(count, what)} {about}" for count, what, about in notes if count]


def _place(record: Record) -> str:
    """Name where an attempt came from: a container, a session, a unit, or an address that is not this host's."""
    if container := record.text("CONTAINER"):
        return shown(container)
    if session := record.text("SESSION"):
        # The numbers begin anew with each boot.
        return f"session {shown(session)} ({_user(record) or 'user not known'})"
    if unit := record.text("USER_UNIT"):  # by that user's own word: never to be taken for the system's unit
        return f"{shown(unit)} of {_user(record) or 'a user'}"
    if unit := record.text("UNIT"):
        return shown(unit)
    return "" if record.text("HOOK") == "output" else record.text("SOURCE")


def _user(record: Record) -> str:
    if user := record.text("USER"):
        return shown(user)
    return f"uid {uid}" if (uid := record.text("UID")) else ""


def _client(record: Record) -> str:
    """Name the client that is suspected, where that is likely: whom a record calls "not clear" is not accused here."""
    return record.text("CLIENT") if record.fraction("CLIENT_CONFIDENCE") >= LIKELY else ""


def _account(record: Record) -> tuple[object, ...]:
    """Tell what the daemon sums up together: by its number for the account, of that process."""
    return (*record.process, record.number("ACCOUNT"))


def _time(record: Record, name: str) -> float:
    """Give a time in a record, in seconds since the epoch; when journald got it where there is none, or nonsense."""
    found = record.number(name) / 1e6
    return found if 0 < found <= record.at else record.at
