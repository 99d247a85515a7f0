"""Records to a report: pure, so that every case is a list of records."""

from __future__ import annotations

import json
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.attempts.records import Record
from nftguard.attempts.report import TOP, Report
from nftguard.look import Look, columns

NOW = 1_790_000_000.0
SINCE = NOW - 86400
WAYS = ("program", "user", "unit", "destination", "port", "client")


def record(event: str, at: float = NOW - 3600, process: str = "1", **fields: object) -> Record:
    values = {"NFTGUARD_EVENT": event} | {f"NFTGUARD_{name}": str(value) for name, value in fields.items()}
    values |= {"_BOOT_ID": "boot", "_SYSTEMD_INVOCATION_ID": "start", "_PID": process}
    return Record(at, {name: value.encode() for name, value in values.items()})


def told(at: float, fields: dict[str, Any]) -> dict[str, Any]:
    return {"FIRST": int(at * 1e6), "LAST": int(at * 1e6), "PORT": 25, "PROTOCOL": "tcp"} | fields


def account(fields: dict[str, object]) -> int:
    """Number the account of a culprit, as the daemon does in its own way."""
    names = ("UNIT", "USER_UNIT", "UID", "CONTAINER", "SESSION", "PROGRAM", *["SOURCE"] * (fields["HOOK"] != "output"))
    return zlib.crc32(repr([fields.get(name) for name in names]).encode())


def blocked(at: float = NOW - 3600, **fields: object) -> Record:
    default = {"BLOCK": "mail", "HOOK": "output", "DESTINATION": "203.0.113.7", "SOURCE": "192.0.2.2"}
    found = default | fields
    return record("blocked", at, **told(at, {"ACCOUNT": account(found)} | found))


def summary(at: float = NOW - 3000, **fields: object) -> Record:
    found = {"BLOCK": "mail", "HOOK": "output"} | fields
    number = {"ACCOUNT": account(found)} if found.get("ATTEMPTS") else {}
    return record("blocked_summary", at, **told(at, number | found))


def report(*records: Record, by: str = "unit") -> Report:
    found = Report(by, SINCE, NOW)
    for one in records:
        found.add(one)
    return found


def drawn(found: Report, top: int | None = TOP) -> str:
    """The report as a pipe gets it."""
    return "\n".join(found.lines(top))


def rows(found: Report) -> dict[str, tuple[int, int]]:
    return {name: (row.attempts, row.packets) for name, row in found.ranked()}


def test_attempts_are_those_with_a_record_and_those_folded_into_a_summary() -> None:
    found = report(
        *(blocked(UNIT="a.service") for _ in range(3)),
        summary(UNIT="a.service", PACKETS=70, ATTEMPTS=10, RECORDED=3),
    )
    assert rows(found) == {"a.service": (10, 70)}
    assert (found.attempts, found.packets, found.open) == (10, 70, 0)


def test_what_is_not_summed_up_yet_is_open() -> None:
    found = report(
        blocked(NOW - 400, UNIT="a.service"),
        summary(NOW - 200, UNIT="a.service", PACKETS=7, ATTEMPTS=1, RECORDED=1),
        blocked(NOW - 100, UNIT="a.service"),
        blocked(NOW - 100, UNIT="b.service"),
    )
    assert found.open == 2
    assert "2 attempts not over for 150 s yet" in drawn(found)


def test_a_summary_closes_the_attempts_of_its_account_alone() -> None:
    found = report(
        *(blocked(NOW - 400, ACCOUNT=7, PORT=port) for port in (6000, 6063)),
        blocked(NOW - 400, ACCOUNT=8, PORT=6064),
        summary(NOW - 200, ACCOUNT=7, PORT="6000-6063", PACKETS=7, ATTEMPTS=2, RECORDED=2),
    )
    assert found.open == 1


def test_who_is_not_likely_is_not_accused() -> None:
    likely = [blocked(CLIENT="198.51.100.9", CLIENT_CONFIDENCE=sure) for sure in ("0.79", "0.80", "0.93")]
    assert rows(report(*likely, by="client")) == {"198.51.100.9": (2, 0), "": (1, 0)}
    assert "suspected" not in drawn(report(likely[0]))
    assert "suspected client 198.51.100.9 (likely, for 2 of 3 attempts)" in drawn(report(*likely))


def test_an_attempt_that_a_killed_daemon_never_summed_up_is_not_open_for_ever() -> None:
    found = report(blocked(NOW - 3600, UNIT="a.service"))
    assert (found.attempts, found.open) == (1, 0)


def test_packets_that_nobody_saw_one_by_one_are_their_own_line_and_the_sum_is_the_kernels() -> None:
    found = report(
        blocked(UNIT="a.service"),
        summary(UNIT="a.service", PACKETS=7, ATTEMPTS=1, RECORDED=1),
        summary(PACKETS=5120, BYTES=307200, ATTEMPTS=0, RECORDED=0),
        summary(PORT=587, UNIT="b.service", PACKETS=3, ATTEMPTS=1, RECORDED=0),
    )
    assert found.unseen == 5120
    assert found.packets + found.unseen == 7 + 5120 + 3
    assert "5,120 more packets counted, not seen one by one" in drawn(found)


@pytest.mark.parametrize(
    ("by", "name"),
    [
        ("program", "ss-server"),
        ("user", "proxy"),
        ("unit", "shadowsocks.service"),
        ("destination", "203.0.113.7"),
        ("port", "tcp/25 on output"),
        ("client", "198.51.100.9"),
    ],
)
def test_a_report_is_by_what_was_asked_for(by: str, name: str) -> None:
    one = blocked(
        PROGRAM="ss-server",
        USER="proxy",
        UID=998,
        UNIT="shadowsocks.service",
        CLIENT="198.51.100.9",
        CLIENT_CONFIDENCE="0.93",
    )
    found = report(one, by=by)
    assert rows(found) == {name: (1, 0)}
    text = drawn(found)
    assert name in text
    for other, about in (("unit", "by shadowsocks.service"), ("destination", "to 203.0.113.7:25")):
        assert (about in text) is (by != other)
    assert ("suspected client 198.51.100.9 (likely, for 1 of 1 attempt)" in text) is (by != "client")
    assert f"at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(one.at))}\n" in text, "once, where first is last"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"UNIT": "docker-0123.scope", "CONTAINER": "docker 0123"}, '"docker 0123"'),
        ({"UNIT": "session-3.scope", "SESSION": "3", "USER": "alice"}, "session 3 (alice)"),
        ({"UNIT": "user@1000.service", "USER_UNIT": "nginx.service", "USER": "alice"}, "nginx.service of alice"),
        ({"UNIT": "user@1000.service", "USER_UNIT": "nginx.service", "UID": 1000}, "nginx.service of uid 1000"),
        ({"HOOK": "forward", "SOURCE": "10.0.0.5"}, "10.0.0.5"),
        ({"HOOK": "output", "SOURCE": "192.0.2.2"}, ""),
    ],
)
def test_a_place_is_a_container_a_session_a_unit_or_an_address_elsewhere(fields: dict[str, Any], place: str) -> None:
    assert list(rows(report(blocked(**fields)))) == [place]


def test_what_is_not_known_is_the_last_line_however_often_it_came() -> None:
    found = report(blocked(), blocked(), blocked(UNIT="a.service"))
    assert list(rows(found)) == ["a.service", ""]
    assert "not known" in drawn(found)
    assert found.document()["rows"][1]["name"] is None  # type: ignore[index]


def test_only_twenty_rows_are_shown_unless_all_are_asked_for() -> None:
    found = report(*(blocked(UNIT=f"unit{number}.service") for number in range(33)))
    assert drawn(found).count(".service") == 20
    assert "and 13 more (--all)" in drawn(found)
    assert drawn(found, None).count(".service") == 33
    assert len(found.document()["rows"]) == 33  # type: ignore[arg-type]


def test_rows_come_by_their_attempts_and_name_the_most_frequent_destination() -> None:
    found = report(
        blocked(UNIT="a.service"),
        *(blocked(UNIT="b.service", DESTINATION=address) for address in ("2001:db8::7", "2001:db8::7", "203.0.113.1")),
    )
    assert list(rows(found)) == ["b.service", "a.service"]
    assert "to [2001:db8::7]:25 and 1 more" in drawn(found)


def test_gaps_in_the_numbers_are_missing_records() -> None:
    found = report(*(blocked(RECORD=number) for number in (5, 6, 9, 10)))
    assert found.missing == 2, "and not the first four: they are from before"
    assert "2 records missing from the journal" in drawn(found)


def test_each_process_numbers_its_records_anew() -> None:
    first = [record("blocked", process="1", RECORD=number) for number in (1, 2, 4)]
    second = [record("blocked", process="2", RECORD=number) for number in (1, 2)]
    assert report(*first, *second).missing == 1


def test_what_the_daemon_says_it_dropped_is_not_missing_besides() -> None:
    found = report(blocked(RECORD=1), record("records_dropped", DROPPED=5), blocked(RECORD=9))
    assert (found.dropped, found.missing) == (5, 2)


def test_losses_are_summed_up() -> None:
    found = report(
        record("attempts_lost", LOST=3), record("attempts_lost", LOST=4), record("records_dropped", DROPPED=5)
    )
    assert (found.lost, found.dropped) == (7, 5)
    assert drawn(found).splitlines()[0].endswith(": none")
    assert "7 attempts not told" in drawn(found)
    assert "5 records dropped" in drawn(found)


def test_a_hostile_name_can_neither_end_its_line_nor_pass_for_another() -> None:
    text = drawn(report(blocked(UNIT="a\n\x1b[31m (b.service)"), by="unit"))
    assert "\x1b" not in text
    assert '"a??[31m (b.service)"' in text


def test_memory_does_not_grow_with_the_records() -> None:
    def fill(found: Report, count: int) -> None:
        for number in range(count):
            found.add(
                blocked(
                    UNIT="a.service",
                    DESTINATION=f"2001:db8::{number:x}",
                    CLIENT=f"c{number}",
                    CLIENT_CONFIDENCE="0.9",
                    RECORD=number,
                )
            )

    found = report()
    fill(found, 2000)
    tracemalloc.start()
    try:
        fill(found, 20000)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
    assert found.attempts == 22000


def test_addresses_without_end_share_a_row_in_the_end() -> None:
    found = report(*(blocked(HOOK="input", SOURCE=f"2001:db8::{number:x}") for number in range(20100)))
    assert found.attempts == 20100
    assert rows(found)["others, too many to tell apart"] == (100, 0)


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda text: text.encode(errors="replace")),
    st.integers(-(10**30), 10**30).map(lambda number: str(number).encode()),
    st.sampled_from([b"25", b"0-65535", b"9-1", b"-", b"5-"]),
    st.just([b"1", b"2"]),
    st.just([]),
)
NAMES = st.sampled_from(
    (
        *("EVENT", "BLOCK", "HOOK", "PROTOCOL", "SOURCE", "DESTINATION", "PORT", "UID", "USER", "UNIT", "CONTAINER"),
        *("SESSION", "USER_UNIT", "PROGRAM", "CLIENT", "CLIENT_CONFIDENCE", "PACKETS", "ATTEMPTS", "RECORDED"),
        *("FIRST", "LAST", "RECORD", "LOST", "DROPPED"),
    )
)
EVENTS_SEEN = st.sampled_from([b"blocked", b"blocked_summary", b"attempts_lost", b"records_dropped"])


@given(
    st.lists(st.tuples(EVENTS_SEEN, st.dictionaries(NAMES.map("NFTGUARD_".__add__), VALUES)), max_size=8),
    st.sampled_from(WAYS),
)
def test_whatever_stands_in_the_fields_there_is_a_report_of_80_columns(
    found: list[tuple[bytes, dict[str, Any]]], by: str
) -> None:
    reports = report(*(Record(NOW - 60, {"NFTGUARD_EVENT": event, **raw}) for event, raw in found), by=by)
    lines = reports.lines(look=Look(80))
    assert all(line.isprintable() and columns(line) <= 80 for line in lines)
    pieces, whole = ("".join("".join(found).split()) for found in (lines, reports.lines()))
    assert pieces == whole, "nothing is lost on a terminal"
    json.dumps(reports.document(), allow_nan=False)


def test_a_report_of_one_block_counts_its_records_alone_and_all_that_was_lost() -> None:
    found = Report("unit", 0, NOW, "web")
    for one in (blocked(BLOCK="web"), blocked(BLOCK="mail"), record("attempts_lost", LOST=3)):
        found.add(one)
    assert (found.attempts, found.lost, found.document()["block"]) == (1, 3, "web")
    assert drawn(found).startswith("Blocked attempts of block web, ")
    assert report(blocked(BLOCK="mail")).document()["block"] is None
