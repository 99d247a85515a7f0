"""The one structlog configuration: journald when systemd runs us, readable lines otherwise.

Records reach journald through a non-blocking socket of our own, in its native protocol (systemd's
docs/JOURNAL_NATIVE_PROTOCOL.md), from a bounded queue. `systemd.journal.send` blocks on a journald that takes nothing
while it holds the interpreter's lock, so that every thread stops (seen on systemd 252 and 257).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from nftguard import hostinfo
from nftguard.events import EVENTS

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

    from nftguard.errors import ConfigError

SOCKET = "/run/systemd/journal/socket"
QUEUE = 4096  # records kept while journald takes none
PATIENCE = 3.0  # seconds that the end waits for a journald that takes nothing
_MAX_VALUE = 8192  # bytes of one field, so that a record always fits a datagram
_TEXT = {"what", "by", "text"}  # parts of the sentence that are no fields
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


class JournalSink:
    """Sends records to journald without ever waiting for it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._queue: deque[bytes] = deque()
        self.dropped = 0
        """Records that were given up, because journald took none for too long."""
        self._told = 0

    @property
    def waiting(self) -> bool:
        """Whether records wait for journald."""
        return bool(self._queue)

    @property
    def room(self) -> int:
        """How many records may be put at once, so that others still find room."""
        return max(0, QUEUE // 4 - len(self._queue))

    def put(self, fields: dict[str, str]) -> None:
        """Send a record, or queue it; the oldest is given up when the queue is full."""
        if len(self._queue) >= QUEUE:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(encode(fields))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as journald takes it."""
        while self._queue:
            try:
                self._connected().send(self._queue[0])
            except BlockingIOError:
                return
            except OSError:  # journald is not there, or was restarted: a new connection next time
                self._disconnect()
                return
            self._queue.popleft()
        if self.dropped > self._told:
            dropped, self._told = self.dropped - self._told, self.dropped
            log().warning("records_dropped", dropped=dropped)

    def close(self) -> None:
        """Send what waits, for which journald has a little time; say on stderr how much is given up."""
        end = time.monotonic() + PATIENCE
        self.flush()
        while self._queue and time.monotonic() < end:
            time.sleep(0.05)
            self.flush()
        if self._queue:
            with contextlib.suppress(OSError):  # stderr is a stream to journald, with room for a line; or broken
                sys.stderr.write(f"{len(self._queue)} records were not recorded: journald took none at the end\n")
                sys.stderr.flush()
            self._queue.clear()
        self._disconnect()

    def _disconnect(self) -> None:
        """Close the connection; the next record opens one anew."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                sock.connect(self._path)
            except OSError:
                sock.close()
                raise
            self._socket = sock
        return self._socket


def encode(fields: dict[str, str]) -> bytes:
    """Encode a record: `NAME=value` lines, and the length in front of a value that has lines of its own."""
    record = bytearray()
    for name, value in fields.items():
        data = value.encode(errors="replace")[:_MAX_VALUE]
        if b"\n" in data:
            record += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            record += name.encode() + b"=" + data + b"\n"
    return bytes(record)


class _Journal:
    """The last stage of structlog's chain."""

    def __init__(self, sink: JournalSink) -> None:
        self._sink = sink
        self._count = 1

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> str:
        name = str(event.pop("event"))
        kind = EVENTS[name]
        fields = {
            "MESSAGE": kind.tell(event),
            "PRIORITY": str(_PRIORITY[method]),
            "SYSLOG_IDENTIFIER": "nftguard",
            "MESSAGE_ID": kind.message_id,
            "NFTGUARD_EVENT": name,
            "NFTGUARD_RECORD": str(self._count),  # so that a reader sees what journald did not keep
        }
        self._count += 1
        for key, value in event.items():
            if value is not None and value != "" and key not in _TEXT:
                fields[f"NFTGUARD_{key.upper()}"] = str(value)
        self._sink.put(fields)
        raise structlog.DropEvent


def _console(_logger: WrappedLogger, method: str, event: EventDict) -> str:
    name = str(event.pop("event"))
    return f"{time.strftime('%H:%M:%S')} {method:7} {EVENTS[name].tell(event)}"


def configure(stream: TextIO | None = None, path: str = SOCKET) -> JournalSink | None:
    """Set up logging; return the sink, to be flushed now and then, when it is journald that reads."""
    stream = stream or sys.stderr
    sink = JournalSink(path) if hostinfo.to_journald(stream) else None
    structlog.configure(
        processors=[_Journal(sink) if sink else _console],
        wrapper_class=structlog.make_filtering_bound_logger("INFO"),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    return sink


def log_problems(error: ConfigError) -> None:
    """Record every problem of a refused configuration, each on its own."""
    for problem in error.problems:
        log().error("config_refused", problem=problem, file=problem.file, key=problem.key)


def log() -> Any:
    """Give the logger: `log().info("applied", cause=…)`, with the fields that the event's sentence names."""
    return structlog.get_logger()
