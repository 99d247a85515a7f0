"""Attempts: what a blocked packet costs, how soon it is a record, and what a flood of them does to the daemon."""

from __future__ import annotations

import ctypes
import itertools
import json
import multiprocessing
import os
import random
import select
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import nftables

from bench import traffic
from bench.figure import Figure, Goal, progress
from bench.guard import Guard
from bench.memory import resident
from bench.namespace import Namespace
from bench.traffic import BLOCKED, SYN, Sender
from nftguard import journal
from nftguard.attempts.recorder import Recorder
from nftguard.bulletin import Bulletin
from nftguard.kernel import Nftables
from nftguard.reconcile import reconcile
from nftguard.who.cgroups import mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nftguard.who.attribution import Attribution, Finding
    from nftguard.wire.nflog import Attempt, Reader

PACKETS, LATENCIES, BATCH = 2000, 200, 900
FLOOD = 10.0  # seconds
REPAIRS = 10
_USERS = range(2001, 2009)  # each with its own limit, so that the limit of all is what holds
_BARE = (
    "add table inet bare\nadd chain inet bare output { type filter hook output priority filter; }\n"
    f"add rule inet bare output tcp dport {BLOCKED} drop\n"
)
_libc = ctypes.CDLL(None)
_fork = multiprocessing.get_context("fork")


def measure() -> list[Figure]:
    """Measure a blocked SYN against a single drop rule, an attempt in the daemon against reading it, and a flood."""
    return [*_packet(), *_pipeline(), *_flood()]


def _packet() -> Iterator[Figure]:
    """Compare nanoseconds of a SYN that is blocked, the log being at its limit, in turns."""
    progress("attempts: blocked packets")
    senders: dict[str, Sender] = {}
    with Namespace() as bare, Namespace() as guarded, Guard(guarded) as guard:
        for namespace in (bare, guarded):
            namespace.add_sink()
        bare.run("nft", "-f", "-", text=_BARE)
        guarded.run("nft", "-f", "-", text=guard.script())
        for name, namespace in (("bare", bare), ("nftguard", guarded)):
            with namespace.entered():
                senders[name] = Sender([BLOCKED], SYN)
        for _ in range(5000):
            senders["nftguard"].send()  # until its limit is reached
        times: dict[str, list[float]] = {name: [] for name in senders}
        for _, (name, sender) in itertools.product(range(PACKETS), senders.items()):
            begun = time.perf_counter_ns()
            for _ in range(16):
                sender.send()
            times[name].append((time.perf_counter_ns() - begun) / 16)
    value, baseline = median(times["nftguard"]), median(times["bare"])
    yield Figure("a blocked SYN, 11 ports", value, "ns", "one drop rule", baseline, PACKETS, Goal(1.6))


class _Line(NamedTuple):
    """A recorder in a namespace, and a socket in the place of journald's."""

    recorder: Recorder
    journald: socket.socket


@contextmanager
def _grouped() -> Iterator[None]:
    """Be alone in a control group, as a service is."""
    root = mounted()
    path = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()[-1].removeprefix("0::")
    group = root / f"nftguard-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text("0")
        yield
    finally:
        (root / path.lstrip("/") / "cgroup.procs").write_text("0")
        group.rmdir()


@contextmanager
def _line() -> Iterator[_Line]:
    with (
        Namespace() as namespace,
        Guard(namespace) as guard,
        tempfile.TemporaryDirectory() as folder,
        _grouped(),
    ):
        os.environ |= dict.fromkeys(("STATE_DIRECTORY", "RUNTIME_DIRECTORY"), folder)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald, namespace.entered():
            journald.bind(f"{folder}/journal")
            status = os.fstat(2)
            os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
            journal.configure(sys.stderr, f"{folder}/journal")
            kernel, bulletin = Nftables(), Bulletin()
            bulletin.passed(reconcile(kernel, guard.table()), guard.table())
            recorder = Recorder(kernel.nfnl, bulletin)
            recorder.attribution.exact = False  # as without the drop-in that allows it
            recorder.follow(25)
            yield _Line(recorder, journald)
            recorder.close()
            kernel.close()


def _pipeline() -> Iterator[Figure]:
    progress("attempts: from the drop to the record")
    with _line() as (recorder, journald):
        assert recorder.reader
        explained = _timed(recorder.attribution)
        latencies = [_latency(recorder.read, recorder.reader, journald) for _ in range(LATENCIES)]
        alone = median(explained)
        each = median(_cost(recorder.read) for _ in range(5))
    with _line() as (recorder, journald):
        reader = recorder.reader
        assert reader
        floor = [_latency(lambda: _bare(reader, journald), reader, journald) for _ in range(LATENCIES)]
        least = median(_cost(lambda: len(reader.read())) for _ in range(5))
    yield Figure(
        "drop to record, median", median(latencies), "ms", "bare loop", median(floor), LATENCIES, Goal(20, "value")
    )
    yield Figure("of that, attribution", alone, "ms", "decoded only", least / 1e6, LATENCIES, Goal(1, "value"))
    # 20,000 a second
    yield Figure("an attempt of many, attributed", each, "ns", "decoded only", least, 5 * BATCH, Goal(50_000, "value"))


def _timed(attribution: Attribution) -> list[float]:
    """Have the milliseconds noted that it takes to explain attempts."""
    times: list[float] = []
    plain = attribution.explain

    def explain(attempts: list[Attempt], *, fresh: bool = True) -> list[Finding]:
        begun = time.perf_counter()
        found = plain(attempts, fresh=fresh)
        if attempts:
            times.append((time.perf_counter() - begun) * 1000)
        return found

    attribution.explain = explain  # type: ignore[method-assign]
    return times


def _bare(reader: Reader, journald: socket.socket) -> None:
    if reader.read():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"MESSAGE=blocked\n", journald.getsockname())


def _latency(read: Callable[[], object], reader: Reader, journald: socket.socket) -> float:
    """Give milliseconds from before a connect to the record of it; one culprit's tenth of a second apart."""
    time.sleep(0.1)
    with socket.socket() as sock:
        sock.setblocking(False)
        begun = time.perf_counter()
        sock.connect_ex(("127.0.0.1", BLOCKED))
        while not select.select([journald], [], [], 0)[0]:
            select.select([reader.socket], [], [], 1)
            read()
        took = (time.perf_counter() - begun) * 1000
    while select.select([journald], [], [], 0)[0]:
        journald.recv(1 << 16)
    return took


def _cost(read: Callable[[], int]) -> float:
    """Give nanoseconds for each of many attempts by processes of their own sockets, that wait to be read."""
    code = (
        "import socket\n"
        f"for _ in range({BATCH}): s = socket.socket(); s.setblocking(False); s.connect_ex(('127.0.0.1', {BLOCKED}))"
    )
    time.sleep(1)  # so that the kernel's limit lets all of them through
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
    begun, count = time.perf_counter_ns(), 0
    while found := read():
        count += found
    return (time.perf_counter_ns() - begun) / count


def _flood() -> Iterator[Figure]:
    progress(f"attempts: a flood of {FLOOD:.0f} s")
    with Namespace() as namespace, Guard(namespace) as guard:
        namespace.add_sink()
        with namespace.entered():
            kernel = Nftables()
        with guard.daemon() as daemon:
            daemon.rest()
            before = resident(daemon.pid)
            with _flooding(namespace) as sent:
                time.sleep(1)  # the bursts
                begun, used, seen = time.monotonic(), _seconds(daemon.pid), sent.value
                time.sleep(FLOOD - 2)
                took = time.monotonic() - begun
                share, rate = (_seconds(daemon.pid) - used) / took * 100, (sent.value - seen) / took
                after = resident(daemon.pid)
            counted = _packets(kernel)
        told = json.loads((guard.folder / "state/ledger.json").read_text(encoding="utf-8"))["told"]
        with guard.daemon() as daemon:
            daemon.rest()
            calm = [_repair(namespace, kernel) for _ in range(REPAIRS)]
            with _flooding(namespace):
                time.sleep(1)
                busy = [_repair(namespace, kernel) for _ in range(REPAIRS)]
        kernel.close()
    if not sent.value == counted == told["mail.output.tcp.25"][0]:
        raise RuntimeError(
            f"{sent.value:,} were sent, {counted:,} counted, {told['mail.output.tcp.25'][0]:,} summed up"
        )
    progress(f"attempts: {rate:,.0f} a second were blocked; {counted:,} in all were counted and summed up, each")
    yield Figure("CPU under the flood", share, "%", "one core", 100, 1, Goal(25, "value"))
    yield Figure("resident after the flood", after, "MiB", "before", before, 1, Goal(1.1))
    yield Figure("table back, under the flood", median(busy), "ms", "when calm", median(calm), REPAIRS)


@contextmanager
def _flooding(namespace: Namespace) -> Iterator[Any]:
    """Have a process send for FLOOD seconds; give how many packets it has sent, as they go."""
    sent = _fork.Value("L", 0)
    with namespace.entered():
        process = _fork.Process(target=_send, args=(sent,))
        process.start()
    yield sent
    process.join()


def _packets(kernel: Nftables) -> int:
    return (kernel.nfnl.counter("mail.output.tcp.25") or (0, 0))[0]


def _repair(namespace: Namespace, kernel: Nftables) -> float:
    """Delete the table as another program would, and give the milliseconds until it is back."""
    time.sleep(0.7)  # so that it is no fight
    with namespace.entered():
        its = nftables.Nftables()
    begun = time.perf_counter()
    its.cmd("delete table inet nftguard")
    while kernel.nfnl.flags() is None:
        time.sleep(0.0002)
    return (time.perf_counter() - begun) * 1000


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _send(sent: object) -> None:
    """Send SYNs of many flows and several users, without a pause."""
    chance = random.Random(1)  # noqa: S311 - any will do
    plain = traffic.segment

    def varied(port: int, flags: int) -> bytes:
        data = bytearray(plain(port, flags))
        data[20:22], data[24:28] = chance.randbytes(2), chance.randbytes(4)  # source port and sequence number
        return bytes(data)

    traffic.segment = varied
    senders = []
    for uid in _USERS:
        _libc.setfsuid(uid)  # whose a socket is, for the kernel; no capability is lost with it
        senders += [Sender([BLOCKED], SYN) for _ in range(100)]
    _libc.setfsuid(0)
    end = time.monotonic() + FLOOD
    while time.monotonic() < end:
        for sender in senders:
            sender.send()
        sent.value += len(senders)  # type: ignore[attr-defined]
