"""A unit that may send where all else is blocked: through restarts of it and of the daemon, and nobody in its name."""

from __future__ import annotations

import json
import math
import sys
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.boot.machine import Machine
from tests.boot.test_service import events, status
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.boot.image import Image

# Of the long ones, one takes minutes.
pytestmark = pytest.mark.timeout(900)

CONFIG = """
[[block]]
name = "mail"
ports = [25]
allow = { units = ["right.service", "right@1.service", "closing.service", "missing.service"] }
"""
RESTARTS = 100
WITHIN = 1.0  # seconds from a process's first attempt to what arrives; it is some milliseconds
STARTED = 5.0  # seconds from a table that the boot script makes, without any unit, to a daemon that has looked
# The source ports by which the peer tells senders apart: two units that may, and one that may not; a control group that
# another unit made and called like the unit, a user's own unit of that name, and an instance beside the one that may.
RIGHT, INSTANCE, WRONG, NESTED, USERS, OTHER = range(40001, 40007)
NEVER = WRONG, NESTED, USERS, OTHER

# sender.pl SOURCE PAUSE: a bare SYN to port 25 at the peer every PAUSE seconds, over IPv4 and IPv6 in turn, and now and
# then one to port 26, which is open, before all others too. The sequence number is the process. A packet that a rule
# drops is refused to its sender: ready, for systemd, is who got one through over both. In perl, which sends a
# millisecond or two after its exec; python takes fifteen, in which a slow daemon would hide.
SENDER = "/usr/local/lib/sender.pl"
_SENDER = """
use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6);
socket(my $four, AF_INET, SOCK_RAW, 6) or die;
socket(my $six, AF_INET6, SOCK_RAW, 6) or die;
my @ways = ([$four, pack_sockaddr_in(0, inet_aton("192.0.2.1"))],
            [$six, pack_sockaddr_in6(0, inet_pton(AF_INET6, "2001:db8::1"))]);
my ($open, $closed) = map { pack("nnNNCCnnn", $ARGV[0], $_, $$, 0, 80, 2, 8192, 0, 0) } 26, 25;
my %passed;
for (my $round = 0; ; $round++) {
    for (0, 1) {
        my ($socket, $peer) = @{$ways[$_]};
        send($socket, $open, 0, $peer) if $round % 16 == 0;
        $passed{$_} = 1 if defined send($socket, $closed, 0, $peer);
    }
    if (%passed == 2 && $ENV{NOTIFY_SOCKET}) {
        socket(my $systemd, AF_UNIX, SOCK_DGRAM, 0) or die;
        send($systemd, "READY=1", 0, pack_sockaddr_un(delete $ENV{NOTIFY_SOCKET})) or die;
    }
    select(undef, undef, undef, $ARGV[1]);
}
"""
PERL = f"/usr/bin/perl {SENDER}"
OFTEN, SELDOM = 0.0001, 0.001
# Makes a control group that is called like the unit below the one that is given, moves there, and sends.
LIAR = "/usr/local/lib/liar.sh"
_LIAR = f"""
folder="/sys/fs/cgroup$1/right.service"
mkdir -p "$folder" && echo $$ >"$folder/cgroup.procs" && exec {PERL} "$2" {SELDOM}
"""
# Fills what a connection's buffers hold, tells how much that was, and ends.
CLOSER = "/usr/local/lib/closer.py"
_CLOSER = """
import select, socket, sys
for host in ("192.0.2.1", "2001:db8::1"):
    sock = socket.create_connection((host, 25), timeout=30)
    sock.setblocking(False)
    sent = 0
    while select.select([], [sock], [], 0.3)[1]: sent += sock.send(bytes(65536))
    print(sent, file=open("/run/sent", "a"))
"""
# Reads nothing until told to, and then everything; says how much that was.
_READER = """
import socket, sys
server = socket.create_server(("", 25), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
links = [server.accept()[0] for _ in range(2)]
sys.stdin.readline()
for link in links:
    link.settimeout(20)
    read = 0
    while data := link.recv(1 << 20): read += len(data)
    print(read, flush=True)
"""

# Notes what arrives from the senders until SIGTERM, with the kernel's time; answers with a JSON list of
# [source, IP version, process, {port: [count, first, last, longest silence]}].
_RECEIVER = """
import json, select, signal, socket, struct, time
runs, end, now = {}, [], 0.0
signal.signal(signal.SIGTERM, lambda *_: end.append(time.time()))
socks = {4: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6), 6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 6)}
for sock in socks.values():
    sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)
    sock.setsockopt(socket.SOL_SOCKET, 35, 1)
    sock.setblocking(False)
print("ready", flush=True)
while True:
    ready = select.select(socks.values(), [], [], 0.05)[0]
    for version, sock in socks.items():
        for _ in range(1000 if sock in ready else 0):
            try: data, control, _, _ = sock.recvmsg(256, 64)
            except BlockingIOError: break
            source, port, process = struct.unpack_from("!HHI", data, (data[0] & 15) * 4 if version == 4 else 0)
            if not 40001 <= source <= 40006: continue
            seconds, nanoseconds = struct.unpack("=qq", control[0][2])
            now = seconds + nanoseconds / 1e9
            seen = runs.setdefault((source, version, process), {}).setdefault(port, [0, now, now, 0.0])
            seen[:] = seen[0] + 1, seen[1], now, max(seen[3], now - seen[2])
    if end and (now > end[0] or not ready): break  # all that had arrived by then
print(json.dumps([[*key, ports] for key, ports in runs.items()]), flush=True)
"""


class Seen(NamedTuple):
    """What arrived at a port over one IP version; seconds."""

    packets: int
    first: float
    last: float
    silence: float


class Run(NamedTuple):
    """One process of a sender's, over one IP version."""

    source: int
    version: int
    process: int
    ports: dict[int, Seen]

    @property
    def gap(self) -> float:
        """From the first attempt to the first that arrives; endless where none did."""
        return self.ports[25].first - self.ports[26].first if 25 in self.ports else math.inf


class Arrivals:
    """What reached the peer; known when the watch is over."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def of(self, source: int) -> list[Run]:
        return [run for run in self.runs if run.source == source]

    def passed(self, source: int) -> int:
        return sum(run.ports[25].packets for run in self.of(source) if 25 in run.ports)

    def check_that_nothing_passed(self, *sources: int) -> None:
        for source in sources:
            assert self.passed(source) == 0, (source, self.of(source))
            # Without what it sent to the open port this would prove nothing.
            for version in (4, 6):
                sent = sum(run.ports[26].packets for run in self.of(source) if run.version == version)
                assert sent > 2, (source, version)


@contextmanager
def watched(machine: Machine) -> Iterator[Arrivals]:
    """Watch what arrives."""
    arrivals = Arrivals()
    receiver = machine.start_peer([sys.executable, "-c", _RECEIVER])
    assert receiver.stdout
    assert receiver.stdout.readline() == "ready\n"
    try:
        yield arrivals
    finally:
        receiver.terminate()
        output, _ = receiver.communicate(timeout=30)
    for source, version, process, ports in json.loads(output):
        arrivals.runs.append(Run(source, version, process, {int(port): Seen(*seen) for port, seen in ports.items()}))


@pytest.fixture(scope="module")
def place(image: Image) -> Iterator[Machine]:
    """A machine with the configuration, those who never get through at work, and the service not started."""
    with Machine(image) as machine:
        machine.write_file("/etc/nftguard.toml", CONFIG)
        for path, text in ((SENDER, _SENDER), (LIAR, _LIAR), (CLOSER, _CLOSER)):
            machine.write_file(path, text)
        units = {
            "right": f"Type=notify\nExecStart={PERL} {RIGHT} {OFTEN}",
            "right@": f"Type=notify\nExecStart={PERL} {INSTANCE} {OFTEN}",
            "closing": f"Type=oneshot\nExecStart=/usr/bin/python3 {CLOSER}",
            "wrong": f"ExecStart={PERL} {WRONG} {OFTEN}",
            "other@": f"ExecStart={PERL} {OTHER} {SELDOM}",
            "nesting": f"Delegate=yes\nExecStart=/bin/sh {LIAR} /system.slice/nesting.service {NESTED}",
        }
        for name, text in units.items():
            text = f"[Unit]\nStartLimitIntervalSec=0\n[Service]\nTimeoutStartSec=30\n{text}\n"
            machine.write_file(f"/etc/systemd/system/{name}.service", text)
        machine.run(["sh", "-ec", "useradd --create-home alice; loginctl enable-linger alice; systemctl daemon-reload"])
        machine.run(["systemctl", "start", "wrong", "nesting", "other@1"])
        uid = machine.run(["id", "-u", "alice"]).stdout.strip()
        manager = f"user@{uid}.service"
        wait_until(lambda: machine.run(["systemctl", "is-active", manager], check=False).stdout == "active\n", manager)
        machine.popen(["sh", LIAR, f"/user.slice/user-{uid}.slice/{manager}/app.slice", f"{USERS}"])
        yield machine


@pytest.fixture
def guarded(place: Machine) -> Iterator[Machine]:
    """The machine with the service started, and no unit that may send."""
    place.run(["systemctl", "start", "nftguard"])
    yield place
    place.run(["systemctl", "stop", "right", "right@1"])
    assert status(place)["state"] == "protected"
    # That units come and go is nobody's fault, and that they are looked at after the first pass is no trouble.
    assert {"repaired", "fought"}.isdisjoint(events(place, "--priority=warning"))
    records = place.journal("--unit=nftguard")
    told = {str(record["MESSAGE"]) for record in records if record.get("NFTGUARD_EVENT") == "not_allowed"}
    assert all(text.startswith("block mail allows the unit missing.service") for text in told)
    assert told


def members(machine: Machine) -> bool:
    """Whether any control group is in the set of the units that may send."""
    return "elements" in machine.run(["nft", "list", "set", "inet", "nftguard", "mail.units"]).stdout


def start(machine: Machine, *units: str) -> None:
    """Start units that may send; done when each of them got something through, over IPv4 and IPv6."""
    machine.run(["systemctl", "restart", *units], timeout=60)


def test_a_unit_gets_through_after_each_of_its_restarts_and_no_other_ever(
    guarded: Machine,
    record_property: pytest.RecordProperty,  # type: ignore[name-defined]
) -> None:
    with watched(guarded) as arrivals:
        guarded.run(["sh", "-ec", f"for i in $(seq {RESTARTS}); do systemctl restart right; done"], timeout=120)
    arrivals.check_that_nothing_passed(*NEVER)
    for version in (4, 6):
        gaps = sorted(run.gap for run in arrivals.of(RIGHT) if run.version == version)
        assert len(gaps) == RESTARTS
        figures = {"median": median(gaps), "p99": gaps[RESTARTS * 99 // 100 - 1], "most": gaps[-1]}
        record_property(f"gap over IPv{version}", ", ".join(f"{name} {gap:.4f} s" for name, gap in figures.items()))
        assert gaps[-1] < WITHIN, figures


def test_an_instance_of_a_template_in_a_slice_of_its_own(guarded: Machine) -> None:
    with watched(guarded) as arrivals:
        start(guarded, "right@1")
        wait_for_senders(guarded)
    assert arrivals.passed(INSTANCE)
    arrivals.check_that_nothing_passed(*NEVER)


def test_a_unit_that_moves_to_another_slice(guarded: Machine) -> None:
    start(guarded, "right")
    folder = "/run/systemd/system/right.service.d"
    guarded.write_file(f"{folder}/test.conf", "[Service]\nSlice=deep-er.slice\n")
    guarded.run(["systemctl", "daemon-reload"])
    with watched(guarded) as arrivals:
        start(guarded, "right")
        wait_for_senders(guarded)
        shown = guarded.run(["systemctl", "show", "-P", "ControlGroup", "right"]).stdout
    assert shown == "/deep.slice/deep-er.slice/right.service\n"
    assert arrivals.passed(RIGHT)
    arrivals.check_that_nothing_passed(*NEVER)
    guarded.run(["rm", "-r", folder])
    guarded.run(["systemctl", "daemon-reload"])
    start(guarded, "right")


def test_nothing_passes_for_a_unit_that_is_stopped(guarded: Machine) -> None:
    start(guarded, "right")
    assert members(guarded)
    guarded.run(["systemctl", "stop", "right"])
    wait_until(lambda: not members(guarded), "an empty set")
    with watched(guarded) as arrivals:
        wait_for_senders(guarded)
    assert arrivals.of(RIGHT) == []
    arrivals.check_that_nothing_passed(*NEVER)


def test_what_a_unit_left_to_be_sent_arrives_after_its_end(guarded: Machine) -> None:
    reader = guarded.start_peer([sys.executable, "-c", _READER])
    assert reader.stdout
    assert reader.stdout.readline() == "ready\n"
    guarded.run(["systemctl", "start", "closing"], timeout=60)
    wait_until(lambda: not members(guarded), "the end of the unit's control group")
    output, _ = reader.communicate("read\n", timeout=60)
    assert output.split() == guarded.run(["cat", "/run/sent"]).stdout.split()
    assert all(int(sent) > 100_000 for sent in output.split())


def test_a_daemon_that_starts_finds_the_unit_at_work(place: Machine) -> None:
    place.run(["systemctl", "stop", "nftguard"])
    start(place, "right")
    with watched(place) as arrivals:
        place.run(["systemctl", "start", "nftguard"])
        wait_until(lambda: members(place), "the unit's control group in the set")
        wait_for_senders(place)
    check_one_process(arrivals, STARTED)
    with watched(place) as arrivals:
        wait_for_senders(place)
    arrivals.check_that_nothing_passed(*NEVER)
    place.run(["systemctl", "stop", "right"])


def test_the_daemons_own_restarts(guarded: Machine) -> None:
    start(guarded, "right")
    with watched(guarded) as arrivals:
        for command in (["restart", "nftguard"], ["kill", "--signal=KILL", "nftguard"]):
            before = status(guarded)["daemon"]["pid"]
            guarded.run(["systemctl", *command])
            wait_until(partial(another_daemon, guarded, before), "a new daemon")
            wait_until(lambda: members(guarded), "the unit's control group in the set")
        wait_for_senders(guarded)
    check_one_process(arrivals)
    arrivals.check_that_nothing_passed(*NEVER)
    start(guarded, "right")


def another_daemon(machine: Machine, before: int) -> bool:
    daemon = status(machine)["daemon"]
    return daemon is not None and daemon["pid"] != before


def check_one_process(arrivals: Arrivals, within: float = WITHIN) -> None:
    """One process sent all the while, and what arrives of it never stayed away for longer than that."""
    found = arrivals.of(RIGHT)
    assert [run.version for run in sorted(found)] == [4, 6]
    assert all(run.ports[25].silence < within for run in found)
    # nor in the end
    assert all(run.ports[26].last - run.ports[25].last < 0.1 for run in found)


def wait_for_senders(machine: Machine) -> None:
    """Wait until all who never pause must have sent a good deal: each tenth of a second they send a hundred times."""
    machine.run(["sleep", "0.4"])
