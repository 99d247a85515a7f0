"""Records, as journald's native protocol takes them, and a journald that takes none."""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard import journal
from nftguard.events import EVENTS
from nftguard.journal import QUEUE, JournalSink, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(journal.__file__).parent


def decode(record: bytes) -> dict[str, str]:
    """Read the native protocol, as journald does."""
    fields = {}
    while record:
        line, _, record = record.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", record)
            value, record = record[8 : 8 + length], record[9 + length :]
        fields[name.decode()] = value.decode()
    return fields


@given(
    st.dictionaries(
        st.sampled_from(["MESSAGE", "A", "B_C"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
    )
)
def test_any_text_survives_the_native_protocol(fields: dict[str, str]) -> None:
    assert decode(encode(fields)) == fields


def test_a_long_value_is_cut_so_that_the_record_fits_a_datagram() -> None:
    assert len(encode({"MESSAGE": "x" * 1_000_000})) < 10_000


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(1)
        yield sock


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[JournalSink]:
    sink = JournalSink(str(tmp_path / "journal"))
    yield sink
    sink.close()


def run_with_journal(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code whose stderr is said to be journald's, as systemd says it."""
    setup = f"from nftguard import journal; journal.configure(path={str(tmp_path / 'journal')!r})"
    log = tmp_path / "stderr"
    with log.open("w") as stream:
        status = os.fstat(stream.fileno())
        return subprocess.run(
            [sys.executable, "-c", f"{setup}; {code}"],
            env=os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
            stderr=stream,
            check=True,
            timeout=30,
            text=True,
        )


def test_a_record_has_its_fields(tmp_path: Path, journald: socket.socket) -> None:
    run_with_journal(
        tmp_path,
        "journal.log().warning('repaired', found='x', how='changed by nft', pid=5, unit='', command=None)",
    )
    assert decode(journald.recv(65536)) == {
        "MESSAGE": "rules repaired: x; changed by nft",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "nftguard",
        "MESSAGE_ID": EVENTS["repaired"].message_id,
        "NFTGUARD_EVENT": "repaired",
        "NFTGUARD_RECORD": "1",
        "NFTGUARD_FOUND": "x",
        "NFTGUARD_HOW": "changed by nft",
        "NFTGUARD_PID": "5",
    }
    assert (tmp_path / "stderr").read_text() == "", "not twice"


def test_without_journald_lines_go_to_the_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    stream = io.StringIO()
    assert journal.configure(stream) is None
    journal.log().warning("removed", cause="test")
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning rules lifted \(test\): nothing is blocked\n", stream.getvalue())


def test_a_stalled_journald_stalls_nobody_and_what_is_given_up_is_told(
    sink: JournalSink, journald: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    console = io.StringIO()
    journal.configure(console)
    begun = time.monotonic()
    for number in range(QUEUE + 1000):
        sink.put({"MESSAGE": str(number)})
    assert time.monotonic() - begun < 5, "it never waits"
    assert sink.waiting
    assert sink.dropped > 0
    dropped, received = sink.dropped, []
    while sink.waiting:
        received.append(decode(journald.recv(65536))["MESSAGE"])
        sink.flush()
    journald.settimeout(0)
    with suppress(BlockingIOError):
        while True:
            received.append(decode(journald.recv(65536))["MESSAGE"])
    assert len(received) == QUEUE + 1000 - dropped
    assert received[-1] == str(QUEUE + 999), "the newest are kept"
    assert received == sorted(received, key=int)
    assert f"{dropped} records were dropped while journald took none" in console.getvalue()


def test_an_absent_journald_stalls_nobody_and_gets_the_records_when_it_comes(sink: JournalSink, tmp_path: Path) -> None:
    sink.put({"MESSAGE": "early"})
    assert sink.waiting
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(tmp_path / "journal"))
            sink.flush()
            sink.put({"MESSAGE": "late"})
            assert [decode(sock.recv(65536))["MESSAGE"] for _ in range(2)] == ["early", "late"]
        (tmp_path / "journal").unlink()
        sink.put({"MESSAGE": "early"})  # to a journald that just went away


def used_events() -> set[tuple[str, str]]:
    pattern = re.compile(r'log\(\)\.(\w+)\(\s*"(\w+)"')
    return {found for path in SOURCES.rglob("*.py") for found in pattern.findall(path.read_text())} | {
        ("warning", "records_dropped")
    }


def test_every_event_has_a_message_id_and_every_message_id_an_event() -> None:
    assert {name for _, name in used_events()} == set(EVENTS)
    ids = [event.message_id for event in EVENTS.values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", message_id) for message_id in ids)


def test_no_text_is_formatted_into_an_event() -> None:
    calls = re.compile(r'log\(\)\.\w+\(\s*f"')
    assert not [path.name for path in SOURCES.rglob("*.py") if calls.search(path.read_text())]
