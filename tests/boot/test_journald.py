"""journald stopped, restarted, stalled, limiting or full: nothing waits for it, and no loss is unsaid."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from nftguard.journal import QUEUE
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    import subprocess

    from tests.boot.machine import Machine

pytestmark = [pytest.mark.timeout(300), pytest.mark.once("debian13")]

_CONFIG = '[[block]]\nname = "mail"\nports = [25, {more}]\n'
_SENDER = "/usr/local/lib/sender.py"
# sender.py COUNT PAUSE: attempts of thirty users in turn, each to an address of its own. It ends early when its input
# does; it says how many it made. A closed socket repeats nothing: each attempt is one packet.
_SENDER_CODE = """
import os, select, socket, sys
made = 0
while made < int(sys.argv[1]) and not select.select([0], [], [], float(sys.argv[2]))[0]:
    os.seteuid(20000 + made % 30)
    sock = socket.socket()
    os.seteuid(0)
    sock.setblocking(False)
    sock.connect_ex((f"198.18.{made >> 8 & 255}.{made & 255}", 25))
    sock.close()
    made += 1
print(made)
"""
_LISTENER = """
import socket
with socket.create_server(("192.0.2.1", 25)) as server:
    print("listening", flush=True)
    while True: server.accept()
"""
_CONNECT = """
import socket
try: socket.create_connection(("192.0.2.1", 25), 0.3)
except TimeoutError: pass
else: raise SystemExit("it was let through")
"""
# Fills a journal, with what does not compress.
_FILLER = """
import base64, os, socket
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect("/run/systemd/journal/socket")
for size, count in ((15000, 1000), (1000, 500), (100, 2000)):
    for _ in range(count): sock.send(b"MESSAGE=" + base64.b64encode(os.urandom(size)) + b"\\n")
"""
_SOCKETS = ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket")


@dataclass(frozen=True)
class Told:
    """What stands in the journal, and what the daemon and `report` say is not there."""

    blocked: int
    attempts: int
    recorded: int
    packets: int
    attempts_lost: int
    dropped: int
    missing: int
    events: Counter[str]

    @property
    def unrecorded(self) -> int:
        """How many attempts are in summaries alone, because the daemon limits records."""
        return self.attempts - self.recorded


class Scene:
    """A guarded machine, something wrong with journald, and attempts."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.write_file(_SENDER, _SENDER_CODE)
        machine.write_file("/etc/nftguard.toml", _CONFIG.format(more=26))
        # A loop that waits for journald would be killed soon.
        self.drop_in("nftguard", "[Service]\nWatchdogSec=8s\n")
        machine.run(["systemctl", "enable", "--now", "nftguard"])
        self._listener = machine.start_peer([sys.executable, "-c", _LISTENER])
        assert self._listener.stdout
        assert self._listener.stdout.readline() == "listening\n"
        self.pid = self.main_pid()
        self._more = 26
        self.repairs = self.probes = self.forgotten = 0

    def drop_in(self, unit: str, text: str) -> None:
        self.machine.write_file(f"/etc/systemd/system/{unit}.service.d/journald.conf", text)
        self.machine.run(["systemctl", "daemon-reload"])

    def main_pid(self) -> str:
        return self.machine.run(["systemctl", "show", "-P", "MainPID", "nftguard"]).stdout.strip()

    def start(self, count: int, pause: float) -> subprocess.Popen[str]:
        return self.machine.popen(["python3", "-S", "-E", _SENDER, str(count), str(pause)])

    def send(self, count: int, pause: float = 0.01) -> int:
        return made_by(self.start(count, pause), stop=False)

    def works(self) -> None:
        """See that nothing waits: packets are dropped, the table is repaired or renewed, and status answers."""
        machine = self.machine
        self.dropped()
        if machine.suite.name == "bookworm":
            before = self.counted()
            machine.run(["nft", "flush", "ruleset"])
            wait_until(lambda: "dport" in self.table(), "the repair", timeout=5)
            self.forgotten += before - self.counted()  # the counter goes on from where the daemon last saw it
            self.repairs += 1
        self._more += 1
        machine.write_file("/etc/nftguard.toml", _CONFIG.format(more=self._more))
        machine.run(["systemctl", "reload", "nftguard"])
        assert f"{self._more}" in self.table()
        self.dropped()
        assert self.status()["state"] == "protected"
        assert machine.run(["nftguard", "status"]).returncode == 0
        assert self.main_pid() == self.pid

    def dropped(self) -> None:
        before = self.counted()
        self.machine.run(["python3", "-c", _CONNECT])
        assert self.counted() > before
        self.probes += 1

    def table(self) -> str:
        return self.machine.run(["nft", "list", "table", "inet", "nftguard"], check=False).stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.machine.run(["nftguard", "status", "--json"]).stdout)
        return found

    def counted(self) -> int:
        [packets] = [row["packets"] for row in self.status()["ports"] if row["port"] == 25]
        return int(packets)

    def seen(self, made: int) -> None:
        """Wait until the daemon has taken in so many attempts."""

        def look() -> bool:
            daemon = self.status()["daemon"]
            return int(daemon["attempts"]) + int(daemon["attempts_lost"]) >= made + self.probes

        wait_until(look, f"{made} attempts to be seen", timeout=30, pause=0.2)

    def end(self) -> tuple[int, Told]:
        """Stop the service, which sums everything up; give what the kernel had counted, and what is told."""
        assert self.main_pid() == self.pid, "the watchdog did not bite"
        assert self.machine.run(["systemctl", "show", "-P", "NRestarts", "nftguard"]).stdout == "0\n"
        counted = self.counted()
        self.machine.run(["systemctl", "stop", "nftguard"])
        return counted + self.forgotten, self.told()

    def told(self) -> Told:
        # A process that is gone before journald reads it cannot be looked up: the reload's own words are not ours.
        records = self.machine.journal("_SYSTEMD_UNIT=nftguard.service", f"_PID={self.pid}")
        events = Counter(str(record.get("NFTGUARD_EVENT")) for record in records)

        def total(event: str, name: str) -> int:
            return sum(int(record[f"NFTGUARD_{name}"]) for record in records if record.get("NFTGUARD_EVENT") == event)

        report = json.loads(self.machine.run(["nftguard", "report", "--json", "--since", "1 hour ago"]).stdout)
        assert report["attempts_lost"] == total("attempts_lost", "LOST")
        assert report["records_dropped"] == total("records_dropped", "DROPPED")
        numbers = [int(record["NFTGUARD_RECORD"]) for record in records if "NFTGUARD_RECORD" in record]
        assert len(set(numbers)) == len(numbers), "none twice"
        absent = max(numbers) - len(numbers)  # they begin with 1
        assert report["records_dropped"] + report["records_missing"] == absent
        return Told(
            events["blocked"],
            total("blocked_summary", "ATTEMPTS"),
            total("blocked_summary", "RECORDED"),
            total("blocked_summary", "PACKETS"),
            report["attempts_lost"],
            report["records_dropped"],
            report["records_missing"],
            events,
        )


def made_by(sender: subprocess.Popen[str], *, stop: bool = True) -> int:
    """Let the sender come to its end, or end it now; give how many attempts it made."""
    assert sender.stdin
    assert sender.stdout
    if stop:
        sender.stdin.close()
    return int(sender.stdout.read())


@pytest.fixture
def scene(machine: Machine) -> Scene:
    return Scene(machine)


def nothing_is_lost(scene: Scene, made: int) -> None:
    """See that every attempt is recorded or, because the daemon limits records, summed up."""
    counted, told = scene.end()
    made += scene.probes
    assert told.packets == counted
    assert told.attempts == made
    assert told.blocked == told.recorded
    assert (told.attempts_lost, told.dropped, told.missing) == (0, 0, 0)
    assert told.events["repaired"] == scene.repairs


def test_while_journald_is_not_there_records_wait_for_it(scene: Scene) -> None:
    scene.machine.run(["systemctl", "stop", *_SOCKETS, "systemd-journald"])
    made = scene.send(600)
    scene.seen(made)
    scene.works()
    gone = scene.machine.run(["systemctl", "is-active", "systemd-journald"], check=False)
    assert gone.stdout == "inactive\n"
    scene.machine.run(["systemctl", "start", *_SOCKETS, "systemd-journald"])
    nothing_is_lost(scene, made)


@pytest.mark.long
def test_a_restart_of_journald_loses_nothing(scene: Scene) -> None:
    """Nor does its death."""
    made = 0
    for command in ("restart", "kill --signal=KILL", "restart"):
        sender = scene.start(10000, 0.01)
        scene.machine.run(["systemctl", *command.split(), "systemd-journald"])
        time.sleep(1)
        made += made_by(sender)
        scene.seen(made)
        scene.works()
    nothing_is_lost(scene, made)


@pytest.mark.long
def test_what_a_stalled_journald_does_not_take_is_kept_and_beyond_that_counted(scene: Scene) -> None:
    machine = scene.machine
    machine.run(["systemctl", "kill", "--signal=STOP", "systemd-journald"])
    scene.works()
    sender = scene.start(1_000_000, 0.004)
    wait_until(
        lambda: scene.status()["daemon"]["records_dropped"] > 0,
        f"more than {QUEUE} records",
        timeout=150,
        pause=0.5,
    )
    made = made_by(sender)
    scene.seen(made)
    scene.works()
    dropped = scene.status()["daemon"]["records_dropped"]
    assert f"{dropped:,} record" in machine.run(["nftguard", "status"]).stdout
    machine.run(["systemctl", "kill", "--signal=CONT", "systemd-journald"])
    wait_until(lambda: machine.journal("NFTGUARD_EVENT=records_dropped"), "the word of it", timeout=30, pause=0.5)
    counted, told = scene.end()
    made += scene.probes
    assert told.packets == counted
    assert told.attempts + told.attempts_lost == made
    assert told.dropped >= dropped > 0
    assert told.missing == 0, "what was sent was kept"
    # What was given up is the oldest: attempts and new culprits, and early words of what `works` made the daemon do.
    others = told.dropped - (told.recorded - told.blocked)
    assert 0 <= others <= scene.repairs + 30 + 4
    assert told.blocked + told.unrecorded + told.attempts_lost + told.dropped - others == made


@pytest.mark.long
def test_a_stop_while_journald_is_stalled_says_what_it_gives_up(scene: Scene) -> None:
    machine = scene.machine
    machine.run(["systemctl", "kill", "--signal=STOP", "systemd-journald"])
    made = scene.send(900)
    scene.seen(made)
    machine.run(["systemctl", "stop", "nftguard"], timeout=60)
    machine.run(["systemctl", "kill", "--signal=CONT", "systemd-journald"])
    records = machine.journal("_SYSTEMD_UNIT=nftguard.service", f"_PID={scene.pid}")
    blocked = [record for record in records if record.get("NFTGUARD_EVENT") == "blocked"]
    [text] = [str(record["MESSAGE"]) for record in records if "were not recorded" in str(record["MESSAGE"])]
    given_up = int(re.findall("[0-9]+", text)[0])
    numbered = sum("NFTGUARD_RECORD" in record for record in records)
    assert len(blocked) + given_up > made > len(blocked), (len(blocked), text)
    # applied, one for each attempt, 30 culprits, 30 summaries at most, removed
    assert made + 2 <= numbered + given_up <= made + 62


def test_what_journald_drops_because_of_its_limit_is_missing_in_the_report(scene: Scene) -> None:
    machine = scene.machine
    # journald multiplies the burst by up to six, with the room on the disk.
    scene.drop_in("nftguard", "[Service]\nWatchdogSec=8s\nLogRateLimitIntervalSec=10s\nLogRateLimitBurst=40\n")
    machine.run(["systemctl", "restart", "nftguard"])
    scene.pid = scene.main_pid()
    made = scene.send(600)
    scene.seen(made)
    scene.works()
    limited = machine.journal("_SYSTEMD_UNIT=nftguard.service", f"_PID={scene.pid}", "NFTGUARD_EVENT=blocked")
    assert 0 < len(limited) < made
    suppressed = "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e"  # SD_MESSAGE_JOURNAL_DROPPED

    def over() -> bool:
        scene.dropped()
        return bool(machine.journal(suppressed))

    wait_until(over, "the limit's end", timeout=60, pause=1)
    counted, told = scene.end()
    made += scene.probes
    assert told.packets == counted
    assert told.attempts == made
    assert (told.attempts_lost, told.dropped) == (0, 0)
    assert told.missing > 0
    others = told.missing - (told.recorded - told.blocked)
    assert 0 <= others <= 2, "words of what `works` made the daemon do"
    assert told.blocked + told.unrecorded + told.missing - others == made


@pytest.mark.long
def test_what_a_full_journal_cannot_hold_is_missing_in_the_report(scene: Scene) -> None:
    machine = scene.machine
    machine.run(["mkdir", "-p", "/run/log/journal"])
    machine.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", "/run/log/journal"])
    limits = "RuntimeMaxUse=1G\nRuntimeKeepFree=1\nRateLimitIntervalSec=0\n"
    machine.write_file("/etc/systemd/journald.conf.d/test.conf", f"[Journal]\nStorage=volatile\n{limits}")
    machine.run(["systemctl", "restart", "systemd-journald"])
    machine.run(["systemctl", "restart", "nftguard"])
    scene.pid = scene.main_pid()
    early = scene.send(30)
    scene.seen(early)
    machine.run(["sh", "-c", "dd if=/dev/zero of=/run/log/journal/filler bs=64k 2>/dev/null || true"])
    machine.run(["python3", "-c", _FILLER], timeout=60)
    made = scene.send(600)
    scene.seen(early + made)
    scene.works()
    machine.run(["rm", "/run/log/journal/filler"])
    late = scene.send(30)
    counted, told = scene.end()
    made += early + late + scene.probes
    assert told.packets == counted
    assert told.attempts == made
    assert (told.attempts_lost, told.dropped) == (0, 0)
    assert told.missing > 0
    others = told.missing - (told.recorded - told.blocked)
    assert others >= 0
    assert told.blocked + told.unrecorded + told.missing - others == made
