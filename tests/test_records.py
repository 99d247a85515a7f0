"""What a record is read as, whatever stands in it, and what a time is read as. The journal itself: tests/boot."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from nftguard import cli_records
from nftguard.attempts.records import Record
from nftguard.cli import cli
from nftguard.cli_records import FORMS, moment

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("EVENT", "PORT", "CLIENT_CONFIDENCE", "UNIT", "CMDLINE", "FIRST", "WHATEVER")


def record(**fields: Any) -> Record:
    return Record(1_790_000_000.5, {"MESSAGE": b"blocked", **{f"NFTGUARD_{name}": fields[name] for name in fields}})


@given(st.dictionaries(st.sampled_from(NAMES), st.binary() | st.text() | st.lists(st.binary()) | st.none()))
def test_whatever_stands_in_a_field_it_is_text_that_prints_and_a_number(fields: dict[str, Any]) -> None:
    found = record(**fields)
    for name in NAMES:
        assert found.text(name).isprintable()
        assert isinstance(found.number(name), int)
        assert found.fraction(name) >= 0
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert isinstance(document.get("port", 0), int | str)
    assert found.message == "blocked"


@pytest.mark.parametrize("value", ["", "x", "1_0", " 1", "\uff11", "1.5", "0x10", "9" * 5000, "nan", "inf", "-"])
def test_what_is_no_number_is_0(value: str) -> None:
    assert record(PORT=value.encode()).number("PORT") == 0


def test_numbers_are_numbers_and_names_that_look_like_numbers_are_not() -> None:
    found = record(PORT=b"25", UNIT=b"25", PROGRAM=b"1e3", CLIENT_CONFIDENCE=b"0.93", FIRST=b"1790000000000000")
    assert record(PORT=b"6000-6063").document()["port"] == "6000-6063"
    assert found.document() == {
        "at": 1_790_000_000.5,
        "message": "blocked",
        "client_confidence": 0.93,
        "first": 1_790_000_000.0,
        "port": 25,
        "program": "1e3",
        "unit": "25",
    }


def test_a_message_cannot_move_the_cursor_or_begin_a_line() -> None:
    assert Record(0, {"MESSAGE": "a\x1b[2Jb\nc\u202ed\xff".encode() + b"\xff"}).message == "a?[2Jb?c?dÿ\ufffd"


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/St_Johns"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def systemds(text: str, zone: str) -> float:
    """Read a time as journalctl does."""
    done = subprocess.run(
        ["systemd-analyze", "timestamp", "--", text],
        env=os.environ | {"TZ": zone},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"UNIX seconds: @([0-9.]+)", done.stdout)
    assert found, done.stdout
    return float(found[1])


@pytest.mark.parametrize(
    "text",
    [
        *("2026-11-24", "2026-11-24 10:00", "2026-11-24 10:00:30", "2026-07-24 10:00", "2026-11-24 10:00 UTC"),
        *("2026-11-24 10:00:30 UTC", "today", "yesterday", "10:00", "9:05:07", "@1790000000", "@1790000000.25"),
    ],
)
def test_a_moment_is_the_same_as_for_journalctl(text: str, zone: str) -> None:
    assert moment(text, time.time()) == systemds(text, zone)


@pytest.mark.parametrize(
    "text",
    [
        *("now", "-2h", "-2h 30min", "-2h30m", "1 hour ago", "2 hours ago", "90s ago", "1.5h ago", "-1d", "3 days ago"),
        *("1 week ago", "1 month ago", "-2M", "1y ago", "-1w 2 days 3 hr 4 minutes 5 sec"),
    ],
)
def test_a_span_before_now_is_the_same_as_for_journalctl(text: str) -> None:
    assert moment(text, time.time()) == pytest.approx(systemds(text, "UTC"), abs=30)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2026-11-24T10:00:00Z", "2026-11-24 10:00 UTC"),
        ("2026-11-24T11:00+01:00", "2026-11-24 10:00 UTC"),
        ("  2026-11-24 10:00 UTC ", "2026-11-24 10:00 UTC"),
    ],
)
def test_iso_8601_is_taken_too(text: str, same: str, zone: str) -> None:
    assert zone
    assert moment(text, 0) == moment(same, 0)


def test_every_form_in_the_message_is_taken() -> None:
    for text in re.findall(r'"([^"]+)"', FORMS):
        moment(text, time.time())


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "-", "ago", "-2", "2 ago", "-2 fortnights", "25:00", "10", "2026-13-01", "@", "@x", "-1h x"),
        *("@999999999999", "2026-11-24 10:00 CET", "1 hour ago ago", "\uff19:00", "-999999999y"),
    ],
)
def test_what_is_no_time_is_one_error_that_names_the_forms(text: str) -> None:
    done = CliRunner().invoke(cli, ["report", f"--since={text}"])
    assert done.exit_code == 2
    assert "is not a time; these are: " in done.output
    assert done.output.count("Error") == 1


def test_a_report_cannot_end_before_it_begins() -> None:
    done = CliRunner().invoke(cli, ["report", "--since=now", "--until=yesterday"])
    assert done.exit_code == 2
    assert "it ends before it begins" in done.output


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_is_shown_on_a_terminal_alone(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty() if terminal else os.pipe()
    monkeypatch.setattr(cli_records, "_PATIENCE", 0.0)
    found = (Record(float(number), {}) for number in range(5000))
    with os.fdopen(slave, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        assert len(list(cli_records.progress(found, 0.0, 5000.0))) == 5000
    os.set_blocking(master, False)
    told = b""
    with contextlib.suppress(OSError):  # the end of what was written
        while data := os.read(master, 65536):
            told += data
    os.close(master)
    assert (b"reading the journal" in told) is terminal
    assert (b"99%" in told) is terminal


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError, OverflowError):
        moment(text, 1_790_000_000.0)
