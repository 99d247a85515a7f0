"""The verbs that read records back: watch and report."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from nftguard import complete, screen
from nftguard.look import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nftguard.attempts.records import Record
    from nftguard.look import Look

_WATCHED = (
    *("blocked", "blocked_summary", "culprit", "repaired", "fought"),
    *("attempts_lost", "attempts_unread", "records_dropped", "units_unknown"),
    *("allowed", "denied", "allowance_ended"),
    *("applied", "removed"),  # whether anything is blocked at all
)
_ROLES = {
    **dict.fromkeys(("fought", "removed"), Role.BAD),
    **dict.fromkeys(("culprit", "repaired", "attempts_lost", "attempts_unread", "records_dropped"), Role.DOUBT),
    "applied": Role.GOOD,
}
"""What stands out among attempts."""
_PATIENCE = screen.PATIENCE
_STEPS = 1000
_END = 253402300800.0  # the year 10000
# As in systemd.time(7): a month is 30.44 days, a year 365.25.
_UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
    **dict.fromkeys(("w", "week", "weeks"), 604800),
    **dict.fromkeys(("M", "month", "months"), 2629800),
    **dict.fromkeys(("y", "year", "years"), 31557600),
}
_PART = r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-zA-Z]+)"
_SPAN = re.compile(rf"(?:{_PART})+", re.ASCII)
FORMS = '"2026-11-24 10:00", "10:00", "2026-11-24T10:00:00Z", "yesterday", "1 hour ago", "-2h 30min", "@1790000000"'


def _moment(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """Read a time; the verb ends with exit code 2 where it is none."""
    if value is None:
        return None
    try:
        found = moment(value, time.time())
    except (ValueError, OverflowError):
        found = -1.0
    if not 0 <= found < _END:
        raise click.BadParameter(f"{value!r} is not a time; these are: {FORMS}")
    return found


def moment(text: str, now: float) -> float:
    """Give the seconds since the epoch that a text means, in local time unless it says otherwise. Raises ValueError.

    Taken are a date, a time of day or both, with or without seconds, also as of ISO 8601 (a T between, Z or +01:00
    behind) or with UTC behind; now, today, yesterday; a span of time with "ago" behind or "-" before; @ and seconds.
    """
    text = text.strip()
    today = datetime.fromtimestamp(now).replace(hour=0, minute=0, second=0, microsecond=0)  # noqa: DTZ006, RUF100
    match text:
        case "now":
            return now
        case "today":
            return today.timestamp()
        case "yesterday":
            return (today - timedelta(days=1)).timestamp()
    if found := re.fullmatch(r"@([0-9]{1,12}(?:\.[0-9]{1,9})?)", text, re.ASCII):
        return float(found[1])
    if found := re.fullmatch(r"-(.+)|(.+?)\s*ago", text):
        return now - _span(found[1] or found[2])
    if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?", text, re.ASCII):
        return datetime.fromisoformat(f"{today:%Y-%m-%d} {text:0>{5 if text.count(':') == 1 else 8}}").timestamp()
    return datetime.fromisoformat(re.sub(r"\s+UTC$", "+00:00", text)).timestamp()


def _span(text: str) -> float:
    if not _SPAN.fullmatch(text):
        raise ValueError(text)
    return sum(float(number) * _unit(unit) for number, unit in re.findall(_PART, text))


def _unit(name: str) -> int:
    if name not in _UNITS:
        raise ValueError(name)
    return _UNITS[name]


@click.command(short_help="Who tries, as it happens?")
@click.option("-n", "--lines", type=click.IntRange(0, 10000), default=10, show_default=True, help="Last ones at first.")
@screen.json_option("Print one JSON object per line, for machines.")
def watch(lines: int, as_json: bool) -> None:
    """Show who tries, as it happens: a line for each attempt, and for what befalls the rules.

    Reads the journal, for which root or the group systemd-journal is needed. Ctrl-C ends it.
    """
    from nftguard.attempts.records import Records

    records = Records(_WATCHED)
    fit = screen.look(sys.stdout)
    try:
        for found in (records.last(lines), records.follow(sys.stdout.fileno())):
            for record in found:
                if as_json:
                    screen.document(record.document())
                elif not _known(record):
                    screen.show(_lines(record, fit))
    except KeyboardInterrupt:
        pass
    finally:
        records.close()


def _known(record: Record) -> bool:
    """Whether it sums up nothing but attempts that had lines of their own."""
    folded = record.number("ATTEMPTS") - record.number("RECORDED")
    return record.event == "blocked_summary" and not folded and bool(record.number("ACCOUNT"))


def _lines(record: Record, look: Look) -> list[str]:
    """Draw a record; where it takes several lines, only the first begins with a time."""
    at = time.localtime(record.at)
    today = at[:3] == time.localtime()[:3]
    when = time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", at)
    lines = look.fold(f"{when} {record.message}", len(when) + 1)
    role = _ROLES.get(record.event)
    return [look.paint(line, role) for line in lines] if role else lines


@click.command(short_help="Who tried, to whom, how often?")
@click.option(
    "--since",
    metavar="TIME",
    callback=_moment,
    default="24 hours ago",
    show_default=True,
    shell_complete=complete.moments,
    help="From then on.",
)
@click.option(
    "--until",
    metavar="TIME",
    callback=_moment,
    shell_complete=complete.moments,
    help="Up to then.  [default: now]",
)
@click.option(
    "--by",
    type=click.Choice(("program", "user", "unit", "destination", "port", "client")),
    default="unit",
    show_default=True,
    help="What a row of the report is.",
)
@click.option("--block", metavar="NAME", default="", shell_complete=complete.blocks, help="Of this block alone.")
@click.option("--all", "every", is_flag=True, help="Show every row, not the first 20 alone.")
@screen.json_option("Print one JSON document with every row, for machines.")
def report(since: float, until: float | None, by: str, block: str, every: bool, as_json: bool) -> None:
    """Show who tried, to whom, how often, since when, and which client is suspected behind a proxy.

    Reads the journal, for which root or the group systemd-journal is needed. A time is given as "2026-11-24 10:00",
    "10:00", "2026-11-24T10:00:00Z", "now", "today", "yesterday", "1 hour ago", "-2h 30min" or "@1790000000" (seconds
    since the epoch).
    """
    from nftguard.attempts.records import Records
    from nftguard.attempts.report import TOP, Report

    end = time.time() if until is None else until
    if since >= end:
        raise click.BadParameter("it ends before it begins", param_hint="--until" if until else "--since")
    records = Records()
    try:
        found = Report(by, since, end, block)
        for record in progress(records.between(since, end), since, end):
            found.add(record)
    finally:
        records.close()
    if as_json:
        screen.document(found.document())
    else:
        screen.show(found.lines(None if every else TOP, screen.look(sys.stdout)))


def progress(records: Iterable[Record], since: float, until: float) -> Iterator[Record]:
    """Show how far the reading has come, by the records' time, once it takes long and somebody looks."""
    begun = time.monotonic()
    bar = None
    try:
        for number, record in enumerate(records):
            if number % 1000 == 999 and sys.stderr.isatty() and time.monotonic() - begun > _PATIENCE:
                if bar is None:
                    bar = click.progressbar(length=_STEPS, label="reading the journal", file=sys.stderr)
                bar.update(int((record.at - since) / (until - since) * _STEPS) - bar.pos)
            yield record
    finally:
        if bar is not None:
            bar.render_finish()
