"""A sender that never pauses, and a peer that sees what arrives: nothing may, whatever happens to the service."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.boot.test_service import drop_in, status
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.boot.machine import Machine

# Sends a bare SYN to port 25 and one to port 26 at the peer, over IPv4 and IPv6 in turn, every 100 µs.
SENDER = """
import socket, struct, sys, time
def segment(family, source, target, port, zone=0):
    body = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 2, 8192, 0, 0)
    pack = socket.inet_pton
    pseudo = pack(family, source) + pack(family, target)
    pseudo += struct.pack("!BBH", 0, 6, 20) if family == socket.AF_INET else struct.pack("!II", 20, 6)
    total = sum(struct.unpack(f"!{len(pseudo + body) // 2}H", pseudo + body))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return body[:16] + struct.pack("!H", ~total & 0xffff) + body[18:]
ways = []
hosts = (socket.AF_INET, "192.0.2.2", "192.0.2.1"), (socket.AF_INET6, "2001:db8::2", "2001:db8::1")
for family, source, target in hosts:
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    ways += [(sock, segment(family, source, target, port), (target, 0)) for port in (25, 26)]
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for sock, data, target in ways:
        try: sock.sendto(data, target)
        except OSError: pass
    time.sleep(0.0001)
"""

# Counts what arrives, by IP version and port, until SIGTERM; answers with a JSON object.
RECEIVER = """
import json, select, signal, socket, struct, time
counts, times, told = {}, [], []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
families = (4, socket.AF_INET), (6, socket.AF_INET6)
socks = [(version, socket.socket(family, socket.SOCK_RAW, 6)) for version, family in families]
for _, sock in socks: sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
print("ready", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    ready = select.select([sock for _, sock in socks], [], [], 0.05)[0]
    for version, sock in socks:
        if sock not in ready: continue
        data = sock.recv(4096)
        segment = data[(data[0] & 15) * 4:] if version == 4 else data
        source, port = struct.unpack_from("!HH", segment)
        if source == 40000:
            counts[f"{version}/{port}"] = counts.get(f"{version}/{port}", 0) + 1
            if port == 25: times.append(time.monotonic())
    if told and not ready: break
print(json.dumps({"counts": counts, "span": times[-1] - times[0] if times else 0}), flush=True)
"""


class Arrivals:
    """What reached the peer: `4/25`, IP version and port, to its count; `span`: seconds from first to last leak."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.span = 0.0

    @property
    def leaked(self) -> int:
        return self.counts.get("4/25", 0) + self.counts.get("6/25", 0)

    def check_the_sender(self) -> None:
        """Without the other port's packets the test would prove nothing."""
        assert min(self.counts.get("4/26", 0), self.counts.get("6/26", 0)) > 100, self.counts


@contextmanager
def never_pausing(machine: Machine) -> Iterator[Arrivals]:
    """Send all the while; the counts are there afterwards."""
    arrivals = Arrivals()
    receiver = machine.start_peer(["python3", "-c", RECEIVER])
    assert receiver.stdout
    assert receiver.stdout.readline().strip() in ("ready", b"ready")
    sender = machine.popen(["python3", "-c", SENDER, "60"])
    time.sleep(0.2)
    try:
        yield arrivals
        time.sleep(0.2)
    finally:
        sender.kill()
        sender.wait(10)
        time.sleep(0.1)
        receiver.terminate()
        found = json.loads(receiver.stdout.read())
        receiver.wait(10)
        arrivals.counts, arrivals.span = found["counts"], found["span"]
    arrivals.check_the_sender()


@pytest.fixture
def guarded(machine: Machine) -> Machine:
    machine.run(["systemctl", "enable", "--now", "nftguard"])
    return machine


def test_without_the_service_they_arrive(machine: Machine) -> None:
    """Else the tests below would prove nothing."""
    with never_pausing(machine) as arrivals:
        time.sleep(0.3)
    assert arrivals.leaked > 100


def test_a_restart_lets_nothing_through(guarded: Machine) -> None:
    with never_pausing(guarded) as arrivals:
        for _ in range(3):
            guarded.run(["systemctl", "restart", "nftguard"])
    assert arrivals.leaked == 0


def test_a_kill_lets_nothing_through(guarded: Machine) -> None:
    with never_pausing(guarded) as arrivals:
        for _ in range(3):
            before = guarded.run(["systemctl", "show", "-P", "MainPID", "nftguard"]).stdout
            guarded.run(["systemctl", "kill", "--signal=KILL", "nftguard"])
            wait_until(
                lambda before=before: (
                    guarded.run(["systemctl", "show", "-P", "MainPID", "nftguard"]).stdout  # type: ignore[misc]
                    not in {"0\n", before}
                ),
                "a new daemon",
            )
            wait_until(lambda: status(guarded)["daemon"] is not None, "its word")
    assert arrivals.leaked == 0


def test_the_watchdogs_kill_lets_nothing_through(guarded: Machine) -> None:
    guarded.run(["mkdir", "-p", "/run/systemd/system/nftguard.service.d"])
    guarded.write_file("/run/systemd/system/nftguard.service.d/test.conf", "[Service]\nWatchdogSec=500ms\n")
    guarded.run(["systemctl", "daemon-reload"])
    guarded.run(["systemctl", "restart", "nftguard"])
    with never_pausing(guarded) as arrivals:
        guarded.run(["systemctl", "kill", "--signal=STOP", "nftguard"])
        wait_until(
            lambda: guarded.run(["systemctl", "show", "-P", "NRestarts", "nftguard"]).stdout != "0\n", "the watchdog"
        )
        wait_until(lambda: status(guarded)["daemon"] is not None, "a new daemon")
    assert arrivals.leaked == 0


@pytest.mark.parametrize("count", [12, pytest.param(50, marks=pytest.mark.long)])
def test_reloads_let_nothing_through(guarded: Machine, count: int) -> None:
    script = (
        f"for i in $(seq {count}); do printf '[[block]]\\nname = \"mail\"\\nports = [25, %d]\\n' $((2000 + i))"
        " > /etc/nftguard.toml; nftguard apply > /dev/null || exit 1; done"
    )
    with never_pausing(guarded) as arrivals:
        guarded.run(["sh", "-ec", script], timeout=60)
    assert arrivals.leaked == 0
    assert [row["port"] for row in status(guarded)["ports"]] == [25, 2000 + count]


@pytest.mark.parametrize("hard", [False, True], ids=["in order", "hard"])
def test_a_reboot_lets_nothing_through_and_keeps_the_totals(guarded: Machine, hard: bool) -> None:
    with never_pausing(guarded) as arrivals:
        time.sleep(0.2)
    before = {row["port"]: row["packets"] for row in status(guarded)["ports"]}
    assert arrivals.leaked == 0
    assert before[25] > 0
    guarded.run(["nftguard", "apply"])  # what a save interval would have kept
    guarded.reboot(hard=hard)
    assert guarded.run(["systemctl", "is-active", "nftguard"]).stdout == "active\n"
    with never_pausing(guarded) as arrivals:
        time.sleep(0.2)
    assert arrivals.leaked == 0
    after = {row["port"]: row["packets"] for row in status(guarded)["ports"]}
    assert after[25] > before[25]


def test_an_upgrade_lets_nothing_through(guarded: Machine) -> None:
    """What a package does: every file anew, then systemd and the service again."""
    script = (
        "package=$(dirname $(readlink -f /usr/lib/nftguard/boot)); cp -a $package /tmp/new; rm -r $package; "
        "sleep 0.2; mv /tmp/new $package; touch $package/*.py; systemctl daemon-reload; systemctl try-restart nftguard"
    )
    with never_pausing(guarded) as arrivals:
        guarded.run(["sh", "-ec", script])
    assert arrivals.leaked == 0
    assert status(guarded)["state"] == "protected"


def test_isolate_keeps_the_rules(guarded: Machine) -> None:
    with never_pausing(guarded) as arrivals:
        guarded.run(["systemctl", "isolate", "--no-block", "rescue.target"], check=False)
        wait_until(
            lambda: (
                guarded.run(["systemctl", "is-active", "nftguard"], check=False).stdout in {"inactive\n", "failed\n"}
            ),
            "the end of the service",
        )
    assert arrivals.leaked == 0


def test_flushes_let_through_nothing_where_the_table_is_owned_and_little_elsewhere(
    guarded: Machine,
    record_property: pytest.RecordProperty,  # type: ignore[name-defined]
) -> None:
    owned = status(guarded)["daemon"]["owner"]
    with never_pausing(guarded) as arrivals:
        for _ in range(10):
            guarded.run(["nft", "flush", "ruleset"])
            time.sleep(0.05)
        if owned:
            guarded.run(["systemctl", "kill", "--signal=KILL", "nftguard"])
            for _ in range(10):
                guarded.run(["nft", "flush", "ruleset"])
            guarded.run(["systemctl", "restart", "nftguard"])
            guarded.run(["nft", "flush", "ruleset"])
    record_property("leaked", arrivals.leaked)
    if owned:
        assert arrivals.leaked == 0
    else:
        assert arrivals.leaked < arrivals.counts["4/26"] // 4
    assert status(guarded)["state"] == "protected"


def test_an_owner_can_be_switched_off(guarded: Machine) -> None:
    drop_in(guarded, "[service]\nownership = 'off'")
    with never_pausing(guarded) as arrivals:
        guarded.run(["systemctl", "reload", "nftguard"])
    assert arrivals.leaked == 0
    assert status(guarded)["daemon"]["owner"] is False
