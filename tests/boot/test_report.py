"""watch and report on a real journal, with records as the daemon writes them, and with forged ones."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from nftguard.events import EVENTS
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    import subprocess

    from tests.boot.machine import Machine

pytestmark = pytest.mark.once("debian13")

ALICE = 1000
AS_ALICE = ("setpriv", f"--reuid={ALICE}", f"--regid={ALICE}")
# Sends what stands in a file of JSON lines to journald, and waits until it is taken.
WRITER = """
import json, socket, struct
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect("/run/systemd/journal/socket")
for line in open("/run/records.json"):
    data = b""
    for name, value in json.loads(line).items():
        value = value.encode()
        data += name.encode() + b"\\n" + struct.pack("<Q", len(value)) + value + b"\\n"
    sock.send(data)
"""
# In the place of the daemon, as its user and in its unit.
UNIT = """
[Unit]
Wants=
[Service]
Type=oneshot
ExecStart=
ExecStart=/usr/bin/python3 /usr/local/lib/writer.py
"""
# A user's own manager, without the PAM module that would make him a session.
MANAGER = """
[Service]
PAMName=
Environment=XDG_RUNTIME_DIR=/run/user/1000
"""
# Sends a record while journald stands still, and is gone before it goes on: by then its process id belongs to
# a process in the unit's control group.
REUSER = """
import os, signal, subprocess, sys, time
os.makedirs("/run/proc", exist_ok=True)
subprocess.run(["mount", "-t", "proc", "proc", "/run/proc"], check=True)  # /proc/sys is read-only here
group = "/sys/fs/cgroup/system.slice/nftguard.service"
os.makedirs(group, exist_ok=True)
journald = int(subprocess.check_output(["systemctl", "show", "-P", "MainPID", "systemd-journald"]))
os.kill(journald, signal.SIGSTOP)
try:
    with subprocess.Popen(sys.argv[1:]) as forger: pass
    for _ in range(100):
        with open("/run/proc/sys/kernel/ns_last_pid", "w") as file: file.write(str(forger.pid - 1))
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
        if child == forger.pid: break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    else: sys.exit("the process id could not be used again")
    with open(group + "/cgroup.procs", "w") as file: file.write(str(child))
finally:
    os.kill(journald, signal.SIGCONT)
subprocess.run(["journalctl", "--sync"], check=True)
os.kill(child, signal.SIGKILL)
"""


def fields(event: str, message: str, **ours: object) -> dict[str, str]:
    """A record as the daemon writes it."""
    named = {f"NFTGUARD_{name}": str(value) for name, value in ours.items()}
    head = {"MESSAGE": message, "MESSAGE_ID": EVENTS[event].message_id, "NFTGUARD_EVENT": event}
    return {**head, "PRIORITY": "6", "SYSLOG_IDENTIFIER": "nftguard", **named}


def blocked(who: str = "shadowsocks.service", **ours: object) -> dict[str, str]:
    now = int(time.time() * 1e6)
    default: dict[str, object] = {"BLOCK": "mail", "HOOK": "output", "PROTOCOL": "tcp", "SOURCE": "192.0.2.2"}
    default |= {"DESTINATION": "203.0.113.7", "PORT": 25, "UNIT": who, "UID": 998, "FIRST": now, "LAST": now}
    default["ACCOUNT"] = 1 if who == "shadowsocks.service" else 2
    return fields("blocked", f"blocked tcp 203.0.113.7:25 from {who}", **default | ours)


def prepare(machine: Machine, *records: dict[str, str]) -> None:
    machine.write_file("/run/records.json", "".join(json.dumps(record) + "\n" for record in records))


def write(machine: Machine, *records: dict[str, str]) -> None:
    prepare(machine, *records)
    machine.run(["systemctl", "start", "nftguard"])
    machine.run(["journalctl", "--sync"])


def report(machine: Machine, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.run(["nftguard", "report", "--json", *options]).stdout)
    return found


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().rstrip("\n")


@pytest.fixture
def writing(machine: Machine) -> Machine:
    """A machine on which the unit writes what `write` is given."""
    machine.write_file("/usr/local/lib/writer.py", WRITER)
    machine.write_file("/run/systemd/system/nftguard.service.d/test.conf", UNIT)
    machine.run(["systemctl", "daemon-reload"])
    return machine


@pytest.fixture
def alice(writing: Machine) -> Machine:
    """Such a machine, and a user on it."""
    for file, text in (("passwd", f"alice:x:{ALICE}:{ALICE}::/:/bin/sh"), ("group", f"alice:x:{ALICE}:")):
        writing.run(["sh", "-c", f"echo {text} >>/etc/{file}"])
    return writing


def test_watch_shows_the_last_ones_and_then_each_as_it_comes(writing: Machine) -> None:
    """Whatever happens to the journal meanwhile."""
    write(writing, *(blocked(f"unit{number}.service") for number in range(5)))
    process = writing.popen(["sh", "-c", "echo $$; exec nftguard watch -n 2"])
    pid = line(process)
    assert [line(process)[9:] for _ in range(2)] == [
        f"blocked tcp 203.0.113.7:25 from unit{number}.service" for number in (3, 4)
    ]
    meanwhile = (
        ["true"],
        ["systemctl", "restart", "systemd-journald"],
        ["journalctl", "--rotate"],
        ["journalctl", "--rotate", "--vacuum-files=1"],
    )
    for number, command in enumerate(meanwhile):
        writing.run(command)
        write(writing, blocked(f"new{number}.service"), fields("repaired", f"rules repaired: {number}"))
        assert line(process).endswith(f" blocked tcp 203.0.113.7:25 from new{number}.service")
        assert line(process).endswith(f" rules repaired: {number}")
    writing.run(["kill", "-INT", pid])
    assert process.stdout
    assert process.stdout.read() == "", "it ends quietly"
    process.wait(10)


def test_watch_begins_before_the_first_record(writing: Machine) -> None:
    process = writing.popen(["sh", "-c", "echo $$; exec nftguard watch --json"])
    files = f"/proc/{line(process)}/fd"
    # ls fails over a descriptor that is closed while it lists.
    wait_until(lambda: "inotify" in writing.run(["ls", "-l", files], check=False).stdout, "the watch to begin")
    write(writing, blocked(CLIENT="198.51.100.9", CLIENT_CONFIDENCE="0.93"))
    found = json.loads(line(process))
    assert (found["event"], found["port"], found["client_confidence"]) == ("blocked", 25, 0.93)
    assert abs(found["at"] - time.time()) < 60
    assert found["message"] == "blocked tcp 203.0.113.7:25 from shadowsocks.service"


def test_watch_ends_when_nobody_reads_it(writing: Machine) -> None:
    """At once, and not at the next record, which may never come."""
    write(writing, blocked())
    done = writing.run(["sh", "-c", "nftguard watch | head -n 1"], timeout=30)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_a_line_fits_the_terminal_and_cannot_command_it(writing: Machine) -> None:
    write(writing, blocked("\x1b[2J\x07evil\n12:00:00 blocked nothing, all is well " + "x" * 200))
    command = "stty cols 60; exec nftguard watch"
    process = writing.popen(["script", "--quiet", "--flush", "--command", command, "/dev/null"])
    first, *others = (line(process).rstrip("\r") for _ in range(6))
    assert first.endswith(" blocked tcp 203.0.113.7:25 from ?[2J?evil?12:00:00")
    assert others[0].strip() == "blocked nothing, all is well"
    assert all(len(part) <= 60 and part.startswith(" " * 9) for part in others), "only a record begins with a time"


def test_a_report_sums_up_who_tried(writing: Machine) -> None:
    now = int(time.time() * 1e6)
    totals = {"BLOCK": "mail", "HOOK": "output", "PROTOCOL": "tcp", "PORT": 25, "FIRST": now, "LAST": now}
    write(
        writing,
        *(blocked(RECORD=number, CLIENT="198.51.100.9", CLIENT_CONFIDENCE="0.93") for number in (1, 2, 3)),
        blocked("cron.service", RECORD=6),
        fields(
            "blocked_summary",
            "summed up",
            **totals
            | {"UNIT": "shadowsocks.service", "UID": 998, "PACKETS": 70, "ATTEMPTS": 10, "RECORDED": 3, "ACCOUNT": 1},
            RECORD=7,
        ),
        fields("blocked_summary", "unseen", **totals | {"PACKETS": 500, "ATTEMPTS": 0, "RECORDED": 0}, RECORD=8),
        fields("attempts_lost", "lost", LOST=4),
    )
    found = report(writing, "--since", "1 hour ago")
    counts = {row["name"]: (row["attempts"], row["packets"]) for row in found["rows"]}
    assert counts == {"shadowsocks.service": (10, 70), "cron.service": (1, 0)}
    assert found["rows"][0]["clients"] == [{"client": "198.51.100.9", "attempts": 3, "confidence": 0.93}]
    names = ("attempts", "packets", "open", "unseen_packets", "attempts_lost", "records_missing")
    assert [found[name] for name in names] == [11, 70, 1, 500, 4, 2]
    text = writing.run(["nftguard", "report", "--by", "program"]).stdout
    assert "11 attempts, 70 packets\n1 attempt not over for 150 s yet" in text
    assert report(writing, "--until", "1 hour ago")["rows"] == []
    assert "none" in writing.run(["nftguard", "report", "--until", "1 hour ago"]).stdout


def test_a_record_that_journald_does_not_mark_as_ours_does_not_count(alice: Machine) -> None:
    """Whatever it says: from a shell, another unit, a user's own nftguard.service, a process id used again."""
    forged = blocked("forged.service", _SYSTEMD_UNIT="nftguard.service") | {"_SYSTEMD_UNIT": "nftguard.service"}
    prepare(alice, forged)
    writer = ["/usr/bin/python3", "/usr/local/lib/writer.py"]
    alice.run(writer)
    alice.run(["systemd-run", "--quiet", "--wait", "--unit=other", *writer])

    alice.write_file("/run/systemd/system/user@1000.service.d/test.conf", MANAGER)
    alice.write_file(
        "/etc/systemd/user/nftguard.service",
        f"[Service]\nType=oneshot\nExecStart={' '.join(writer)}\nExecStart=/bin/sleep 1\n",
    )
    alice.run(["systemctl", "daemon-reload"])
    alice.run(["systemctl", "start", "user@1000"])
    user = [*AS_ALICE, "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/user/1000"]
    alice.run([*user, "systemctl", "--user", "start", "nftguard"])

    # A system's user: his records are in the system's journal, as those of everybody are where none is kept on disk.
    alice.run(["python3", "-c", REUSER, "setpriv", "--reuid=1", "--regid=1", "--clear-groups", *writer])

    marks = {
        (str(record.get("_SYSTEMD_UNIT")), str(record.get("_SYSTEMD_USER_UNIT")), str(record["_UID"]))
        for record in alice.journal(f"MESSAGE_ID={EVENTS['blocked'].message_id}")
    }
    assert marks == {
        ("None", "None", "0"),
        ("other.service", "None", "0"),
        ("user@1000.service", "nftguard.service", "1000"),
        ("nftguard.service", "None", "1"),
    }, "each was told to journald, the last one with our unit"
    assert report(alice)["rows"] == []
    write(alice, blocked())
    assert [row["name"] for row in report(alice)["rows"]] == ["shadowsocks.service"]
    process = alice.popen(["nftguard", "watch"])
    assert line(process).endswith("from shadowsocks.service"), "the only one of the last ten"


def test_who_may_not_read_the_journal_is_told_so(alice: Machine) -> None:
    write(alice, blocked())
    for verb in ("report", "watch"):
        done = alice.run([*AS_ALICE, "--clear-groups", "nftguard", verb], check=False)
        assert (done.returncode, done.stdout) == (77, "")
        assert done.stderr.count("\n") == 1
        assert "systemd-journal" in done.stderr
    done = alice.run([*AS_ALICE, "--groups=systemd-journal", "nftguard", "report"])
    assert "shadowsocks.service" in done.stdout


def test_the_catalog_explains_a_record(writing: Machine) -> None:
    writing.run(["journalctl", "--update-catalog"])
    write(writing, blocked())
    told = writing.run(["journalctl", "--no-pager", "-x", f"MESSAGE_ID={EVENTS['blocked'].message_id}"]).stdout
    assert "Subject: An attempt to connect was blocked" in told
    assert "Something tried port 25 of 203.0.113.7 and was blocked." in told
    assert "@" not in told
