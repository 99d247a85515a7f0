"""Attempts from a real kernel to records: who made them, what is folded, and that the sums are the counters."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from nftguard.attempts import ledger
from nftguard.attempts.recorder import Recorder
from nftguard.bulletin import Bulletin
from nftguard.reconcile import reconcile
from tests.examples import table_of
from tests.groups import joining

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nftguard.kernel import Nftables
    from tests.netns import Namespace

BLOCK = '[[block]]\nname = "mail"\nports = [25, 465, "6000-7000"]\n'

# Connects to each HOST:PORT, as blocking, non-blocking or datagrams, and ends at once.
SENDER = """
import socket, sys
for target in sys.argv[2:]:
    host, port = target.rsplit(",", 1)
    kind = socket.SOCK_DGRAM if sys.argv[1] == "udp" else socket.SOCK_STREAM
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    sock.settimeout(0 if sys.argv[1] == "at once" else 0.05)
    try:
        sock.connect((host, int(port)))
        sock.send(b"x")
    except OSError:
        pass
"""
TARGETS = ("127.0.0.1,25", "::1,25", "::ffff:127.0.0.1,25")


class Witness:
    """A recorder in a namespace, and the records that it wrote."""

    def __init__(self, netns: Namespace, kernel: Nftables, records: list[dict[str, Any]]) -> None:
        self.netns, self.kernel, self.records = netns, kernel, records
        self.bulletin = Bulletin()
        self.recorder = Recorder(kernel.nfnl, self.bulletin)

    def guard(self, text: str) -> None:
        desired = table_of(text)
        counters = self.bulletin.counters
        desired = replace(desired, counters={name: counters.get(name, at) for name, at in desired.counters.items()})
        self.bulletin.passed(reconcile(self.kernel, desired), desired)
        self.recorder.follow(25)
        self.recorder.check()

    def send(self, place: Path, way: str, *targets: str) -> None:
        self.netns.run(*joining(place, sys.executable, "-S", "-c", SENDER, way, *targets))

    def events(self, name: str, count: int = 0) -> list[dict[str, Any]]:
        """Read until there are so many records of the event; give them."""
        end = time.monotonic() + 5
        while True:
            self.recorder.read()
            found = [record for record in self.records if record["event"] == name]
            if len(found) >= count or time.monotonic() > end:
                return found
            time.sleep(0.01)

    def counted(self, name: str) -> int:
        live = self.kernel.snapshot()
        assert live
        self.bulletin.count(live)
        return live.counters[name].packets


@pytest.fixture
def records() -> Iterator[list[dict[str, Any]]]:
    with structlog.testing.capture_logs() as found:
        yield found  # type: ignore[misc]  # mutable, as the records come


@pytest.fixture
def witness(
    netns: Namespace,
    kernel: Nftables,
    folders: Path,  # noqa: ARG001 - the recorder writes there
    records: list[dict[str, Any]],
) -> Iterator[Witness]:
    with netns.entered():
        witness = Witness(netns, kernel, records)
        yield witness
        witness.recorder.close()


def unit(above: Path, name: str) -> Path:
    (above / name).mkdir(parents=True, exist_ok=True)
    return above / name


@pytest.mark.parametrize("action", ["drop", "reject"])
@pytest.mark.parametrize("way", ["waiting", "at once"])
def test_whoever_sent_is_named_also_when_he_is_gone(witness: Witness, base: Path, action: str, way: str) -> None:
    """Over IPv4, IPv6 and v4-mapped; the process has ended before anybody looks."""
    witness.guard(BLOCK + f'action = "{action}"\n')
    for name in ("one.service", "two.service"):
        witness.send(unit(base, name), way, *TARGETS)
    found = witness.events("blocked", 6)
    groups = [f"/{base.name}/{name}" for name in ("one.service", "two.service") for _ in TARGETS]
    assert [(record["cgroup"], record["known_by"]) for record in found] == [(path, "kernel") for path in groups]
    assert {(record["uid"], record["user"]) for record in found} == {(0, "root")}
    assert [record["destination"] for record in found] == ["127.0.0.1", "::1", "127.0.0.1"] * 2
    assert {record["program"] for record in found} == {""}, "it has ended, and another may have been it"


def test_datagrams_are_attributed_as_well(witness: Witness, base: Path) -> None:
    witness.guard(BLOCK + 'protocols = ["udp"]\n')
    witness.send(unit(base, "one.service"), "udp", "127.0.0.1,25")
    (found,) = witness.events("blocked", 1)
    assert (found["protocol"], found["cgroup"]) == ("udp", f"/{base.name}/one.service")


@pytest.mark.parametrize("segments", [2, 8, 100])
def test_nobody_hides_behind_a_routing_header(witness: Witness, base: Path, segments: int) -> None:
    """Any user may set one, of up to 2 KiB. Where the packet goes in the end stands in it (RFC 8754)."""
    witness.guard(BLOCK)
    code = (
        "import socket, struct, sys\nn = int(sys.argv[1])\ns = socket.socket(socket.AF_INET6)\ns.setblocking(False)\n"
        "s.setsockopt(41, 57, struct.pack('BBBBBBH', 0, 2 * n, 4, n - 1, n - 1, 0, 0)"
        " + b''.join(socket.inet_pton(socket.AF_INET6, '::1') for _ in range(n)))\n"
        "print(s.connect_ex(('2001:db8::25', 25)))"
    )
    witness.netns.run("ip", "-6", "route", "add", "2001:db8::/64", "dev", "lo")
    user = ["setpriv", "--reuid=1001", "--clear-groups", sys.executable, "-S", "-c", code, str(segments)]
    witness.netns.run(*joining(unit(base, "one.service"), *user))
    (found,) = witness.events("blocked", 1)
    assert (found["uid"], found["unit"], found["port"]) == (1001, "one.service", 25)
    assert found["destination"] == "2001:db8::25"


def test_the_same_port_used_again_by_another_is_not_taken_for_the_first(witness: Witness, base: Path) -> None:
    """Same addresses, same ports, a moment later: only the sequence number tells them apart."""
    witness.guard(BLOCK + 'action = "reject"\n')
    code = (
        "import socket; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
        "s.bind(('127.0.0.1', 40404)); s.settimeout(1); s.connect_ex(('127.0.0.1', 25))"
    )
    names = [f"{number}.service" for number in range(8)]
    for name in names:
        witness.netns.run(*joining(unit(base, name), sys.executable, "-S", "-c", code))
    found = witness.events("blocked", len(names))
    assert [record["cgroup"].rsplit("/", 1)[1] for record in found] == names


def test_who_it_may_have_been_is_said_where_there_are_few(witness: Witness, base: Path) -> None:
    """A shell that started it is still there, who sent has ended: he is among the candidates, or is none of them."""
    witness.guard(BLOCK)
    place = unit(base, "one.service")
    code = "import socket; s = socket.socket(); s.setblocking(False); s.connect_ex(('127.0.0.1', 25))"
    with witness.netns.popen(*joining(place, "sh", "-c", f'{sys.executable} -S -c "{code}"; sleep 9; :')) as shell:
        (found,) = witness.events("blocked", 1)
        shell.kill()
    assert found["program"] in {"", "python"}
    if not found["program"]:
        names = {one.partition("[")[0] for one in found["candidates"].split()}
        assert names <= {'"sh', "sh", '"python', "python", "sleep", '"sleep'}
        assert "; perhaps " in found["by"]


def test_datagrams_that_cannot_be_told_apart_are_nobodys(witness: Witness, base: Path) -> None:
    """Two services, the same ports, the same bytes: what the kernel noted fits both. Better unknown than wrong."""
    witness.guard(BLOCK + 'protocols = ["udp"]\n')
    code = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 40404));"
        "s.connect(('127.0.0.1', 25)); s.settimeout(1)\n"
        "try: s.send(b'x')\nexcept PermissionError: pass"
    )
    for name in ("one.service", "two.service"):
        witness.netns.run(*joining(unit(base, name), sys.executable, "-S", "-c", code))
    found = witness.events("blocked", 1)
    assert [record["cgroup"] for record in found] in ([""], [f"/{base.name}/one.service"])


def test_a_process_that_still_waits_is_named(witness: Witness, base: Path) -> None:
    witness.guard(BLOCK)
    code = "import socket; s = socket.socket(); s.settimeout(9); s.connect_ex(('127.0.0.1', 25))"
    argv = joining(unit(base, "one.service"), sys.executable, "-S", "-c", code)
    with witness.netns.popen(*argv) as process:
        (found,) = witness.events("blocked", 1)
        process.kill()
    assert found["program"].startswith("python")
    assert found["pid"] == process.pid
    assert "s.settimeout(9)" in found["cmdline"]


def test_who_is_left_in_a_group_is_not_taken_for_who_moved_away(witness: Witness, base: Path) -> None:
    """A socket stays with the group that it was made in. With the right to look, only who holds it is named."""
    witness.guard(BLOCK)
    first, second = unit(base, "one.service"), unit(base, "two.service")
    code = (
        "import socket, sys; s = socket.socket(); open(sys.argv[1] + '/cgroup.procs', 'w').write('0');"
        "s.settimeout(9); s.connect_ex(('127.0.0.1', 25))"
    )
    with witness.netns.popen(*joining(first, "sleep", "9")) as innocent:
        with witness.netns.popen(*joining(first, sys.executable, "-S", "-c", code, str(second))) as guilty:
            (found,) = witness.events("blocked", 1)
            guilty.kill()
        innocent.kill()
    assert (found["unit"], found["program"], found["pid"]) == ("one.service", "", None)


def test_ports_that_come_and_go_are_summed_up_exactly(witness: Witness, base: Path) -> None:
    """A block is renamed, a port is taken out and put back, somebody deletes the table."""
    for text in (BLOCK, BLOCK.replace("mail", "post"), BLOCK.replace("25, ", ""), BLOCK):
        witness.guard(text)
        witness.send(unit(base, "one.service"), "at once", *["127.0.0.1,25"] * 20)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            for _ in range(5):
                with contextlib.suppress(PermissionError):
                    raw.sendto(bytes.fromhex("9c40001900000001000000005010000000000000"), ("127.0.0.1", 0))
        witness.recorder.read()
    witness.counted("mail.output.tcp.25")
    witness.netns.nft("delete table inet nftguard")
    witness.guard(BLOCK)
    witness.send(unit(base, "one.service"), "at once", *["127.0.0.1,25"] * 10)
    witness.recorder.read()
    witness.recorder.settle(every=True)
    summed = sum(one["packets"] for one in witness.records if one["event"] == "blocked_summary")
    assert summed == 3 * 25 + 10


def test_an_attempt_from_the_root_of_all_groups_has_no_unit(witness: Witness) -> None:
    witness.guard(BLOCK)
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", 25))
        (found,) = witness.events("blocked", 1)
    assert (found["unit"], found["uid"]) == ("", 0)


def test_sums_are_the_counters_whatever_was_logged(witness: Witness, base: Path, folders: Path) -> None:
    """Also for what opens no connection, what the kernel did not log, and what a flood folded."""
    witness.guard(BLOCK)
    flood = (
        "import socket\n"
        "for _ in range(3000): s = socket.socket(); s.setblocking(False); s.connect_ex(('127.0.0.1', 25))"
    )
    witness.send(unit(base, "one.service"), "at once", *["127.0.0.1,465"] * 20)
    witness.netns.run(*joining(unit(base, "two.service"), sys.executable, "-S", "-c", flood))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        for _ in range(50):
            with contextlib.suppress(PermissionError):  # what a drop gives to a raw socket
                raw.sendto(bytes.fromhex("9c40001900000001000000005010000000000000"), ("127.0.0.1", 0))
    witness.events("blocked", 100)
    counted = {name: witness.counted(f"mail.output.tcp.{name}") for name in ("25", "465", "6000-7000")}
    assert counted["25"] >= 3050
    assert counted["465"] >= 20
    witness.recorder.settle(every=True)
    summaries = [record for record in witness.records if record["event"] == "blocked_summary"]
    assert {name: sum(one["packets"] for one in summaries if one["port"] == name) for name in counted} == counted
    mine = [one for one in summaries if one.get("unit") == "two.service" and one["port"] == "25"]
    assert [one["attempts"] > one["recorded"] > 0 for one in mine] == [True], "most of a flood has no record of its own"
    told = json.loads((folders / "state/ledger.json").read_text())["told"]
    assert told["mail.output.tcp.25"][0] == counted["25"], "it is kept, so that the next process goes on from there"


def test_an_attempt_is_summed_up_once_its_window_has_ended(
    witness: Witness, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WINDOW", 0.3)
    witness.guard(BLOCK)
    witness.send(unit(base, "one.service"), "at once", "127.0.0.1,25")
    (first,) = witness.events("blocked", 1)
    assert witness.events("blocked_summary") == []
    end = time.monotonic() + 5
    while not witness.events("blocked_summary") and time.monotonic() < end:
        if (due := witness.recorder.due()) is not None and due <= time.monotonic():
            witness.recorder.tick()
        time.sleep(0.02)
    (summary,) = witness.events("blocked_summary")
    assert (summary["packets"], summary["attempts"], summary["recorded"]) == (1, 1, 1)
    assert summary["first"] == first["first"]
    assert summary["unit"] == first["unit"] == "one.service"
    assert summary["account"] == first["account"]
    assert "pid" not in summary, "that was of one attempt, and may be another's by now"


def test_a_new_culprit_is_told_once(witness: Witness, base: Path, folders: Path) -> None:
    witness.guard(BLOCK)
    for _ in range(3):
        witness.send(unit(base, "one.service"), "at once", "127.0.0.1,25")
    witness.events("blocked", 3)
    assert len(witness.events("culprit")) == 1
    witness.recorder.tick()
    (culprit,) = json.loads((folders / "run/alert.json").read_text())["culprits"]
    assert culprit["cgroup"] == f"/{base.name}/one.service"
    witness.recorder.close()
    again = Recorder(witness.kernel.nfnl, witness.bulletin)
    again.follow(25)
    witness.recorder = again
    witness.send(unit(base, "one.service"), "at once", "127.0.0.1,25")
    witness.events("blocked", 4)
    assert len(witness.events("culprit")) == 1, "it is remembered from one process to the next"


def test_a_process_cannot_forge_more_than_its_name(witness: Witness, base: Path) -> None:
    witness.guard(BLOCK)
    names = ["a\nb", "x (ssh.service)", "\x1b[31mred", '" (a, uid 0)']
    code = (
        "import sys, socket\nopen('/proc/self/comm', 'wb').write(sys.argv[1].encode())\n"
        "s = socket.socket(); s.settimeout(9); s.connect_ex(('127.0.0.1', 25))"
    )
    for number, name in enumerate(names):
        argv = joining(unit(base, f"{number}.service"), sys.executable, "-S", "-c", code, name)
        with witness.netns.popen(*argv, stderr=subprocess.DEVNULL) as process:
            found = witness.events("blocked", number + 1)[-1]
            process.kill()
        assert found["program"].isprintable()
        assert found["cmdline"].isprintable()
        assert found["by"].startswith('"'), "what is no plain name stands in quotes"
        assert found["by"].isprintable()
