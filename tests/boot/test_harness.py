"""The harness itself: what a test of the service may rely on."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from builder.system import private
from tests.boot.base import CHECKOUT
from tests.boot.machine import CommandError, Machine
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from tests.boot.image import Image

ADDRESSES = ("192.0.2.2", "2001:db8::2")
_LISTEN = """
import socket, sys
with socket.create_server(("::", 7777), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    while True:
        connection, _ = server.accept()
        connection.sendall(sys.argv[1].encode())
        connection.close()
"""
_CONNECT = """
import socket, sys
with socket.create_connection((sys.argv[1], 7777), timeout=5) as connection:
    sys.stdout.write(connection.recv(100).decode())
"""
_BOOT_AND_WAIT = """
import sys, time
from tests.boot import image
from tests.boot.machine import Machine
from tests.boot.suites import SUITES
[suite] = [suite for suite in SUITES if suite.name == sys.argv[1]]
machine = Machine(image.prepare(suite))
machine.boot()
print(machine.name, flush=True)
time.sleep(60)
"""


def test_the_release_boots_with_its_own_systemd_and_nft(shared_machine: Machine) -> None:
    failed = shared_machine.run(["systemctl", "--failed", "--no-legend", "--plain"]).stdout
    assert (shared_machine.state, failed) == ("running", "")
    systemd = shared_machine.run(["systemctl", "--version"]).stdout
    assert systemd.startswith(f"systemd {shared_machine.suite.systemd} ")
    nft = shared_machine.run(["nft", "--version"]).stdout
    assert nft.startswith(f"nftables v{shared_machine.suite.nft} ")
    assert shared_machine.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"


def test_a_boot_is_no_first_boot_after_an_upgrade(shared_machine: Machine) -> None:
    units = shared_machine.run(["systemctl", "list-units", "--plain", "--no-legend", "--type=service"]).stdout
    assert "ldconfig" not in units
    assert "firstboot" not in units


def test_run_passes_input_output_and_exit_code(shared_machine: Machine) -> None:
    done = shared_machine.run(["sh", "-c", "cat; echo oops >&2; exit 3"], stdin="grüße\n", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "grüße\n", "oops\n")
    with pytest.raises(CommandError, match=r"(?s)exit status 3.*oops"):
        shared_machine.run(["sh", "-c", "echo oops >&2; exit 3"])


def test_a_command_that_takes_too_long_ends_inside_too(shared_machine: Machine) -> None:
    with pytest.raises(subprocess.TimeoutExpired, match="4711"):
        shared_machine.run(["sleep", "4711"], timeout=0.3)
    wait_until(lambda: shared_machine.run(["pgrep", "-f", "sleep 4711"], check=False).returncode == 1, "its end")


def test_a_command_may_do_what_pid_1_may_and_no_more(shared_machine: Machine) -> None:
    bounds = shared_machine.run(["grep", "-h", "CapBnd", "/proc/1/status", "/proc/self/status"]).stdout.splitlines()
    assert len(set(bounds)) == 1
    effective = shared_machine.run(["grep", "CapEff", "/proc/self/status"]).stdout
    assert effective.split()[1] == bounds[0].split()[1]
    assert "0::/tests\n" in shared_machine.run(["cat", "/proc/self/cgroup"]).stdout


def test_a_written_file_has_its_text_and_mode(shared_machine: Machine) -> None:
    shared_machine.write_file("/run/some where/file", "one\ntwo", 0o640)
    assert shared_machine.run(["stat", "-c", "%a %s", "/run/some where/file"]).stdout == "640 7\n"
    assert shared_machine.run(["cat", "/run/some where/file"]).stdout == "one\ntwo"


def test_the_journal_has_what_was_just_logged(shared_machine: Machine) -> None:
    shared_machine.run(["logger", "--tag=harness", "a word"])
    [record] = shared_machine.journal("--identifier=harness", "--boot")
    assert record["MESSAGE"] == "a word"
    assert shared_machine.journal("--identifier=nobody") == []


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_peer_reaches_the_machine(shared_machine: Machine, address: str) -> None:
    listener = shared_machine.popen(["python3", "-c", _LISTEN, "from the machine"])
    _wait_for_listener(shared_machine)
    answer = shared_machine.peer([sys.executable, "-c", _CONNECT, address]).stdout
    listener.terminate()
    assert answer == "from the machine"
    wait_until(lambda: not shared_machine.run(["ss", "-Htln", "sport = :7777"]).stdout, "the listener's end")


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_the_machine_reaches_the_peer(shared_machine: Machine, address: str) -> None:
    listener = shared_machine.start_peer([sys.executable, "-c", _LISTEN, "from the peer"])
    wait_until(lambda: shared_machine.peer(["ss", "-Htln", "sport = :7777"]).stdout, "the listener")
    answer = shared_machine.run(["python3", "-c", _CONNECT, address]).stdout
    listener.terminate()
    assert answer == "from the peer"
    assert listener.wait(5) == -signal.SIGTERM


def test_nftguard_is_installed_and_not_enabled(shared_machine: Machine) -> None:
    assert "Block TCP ports" in shared_machine.run(["nftguard", "--help"]).stdout
    shared_machine.run(["nftguard", "check"])
    assert shared_machine.run(["systemctl", "is-enabled", "nftguard"], check=False).stdout == "disabled\n"
    assert shared_machine.run(["nft", "list", "ruleset"]).stdout == ""


def test_nftguard_is_byte_compiled(shared_machine: Machine) -> None:
    script = "import nftguard.__main__ as main, os; print(main.__spec__.cached, os.path.exists(main.__spec__.cached))"
    python = shared_machine.run(["head", "-n1", "/usr/bin/nftguard"]).stdout.removeprefix("#!").split()
    cached, there = shared_machine.run([*python, "-c", script]).stdout.split()
    assert there == "True", cached


@pytest.mark.parametrize("hard", [False, True], ids=["in order", "hard"])
def test_a_reboot_keeps_the_disk_and_nothing_else(machine: Machine, hard: bool) -> None:
    machine.write_file("/var/lib/kept", "kept")
    machine.write_file("/run/lost", "lost")
    machine.run(["nft", "add", "table", "inet", "lost"])
    inside, outside = machine.popen(["sleep", "60"]), machine.start_peer(["sleep", "60"])
    before, begin = machine.boot_id(), time.monotonic()
    machine.reboot(hard=hard)
    assert time.monotonic() - begin < 8, "a reboot waits for none of the test's own processes"
    assert inside.poll() == (-signal.SIGKILL if hard else -signal.SIGTERM)
    assert outside.poll() is None
    assert machine.boot_id() != before
    assert machine.run(["cat", "/var/lib/kept"]).stdout == "kept"
    assert machine.run(["test", "-e", "/run/lost"], check=False).returncode == 1
    assert machine.run(["nft", "list", "ruleset"]).stdout == ""
    assert machine.journal("--boot=-1", "_PID=1")
    assert machine.state == "running"


def test_a_machine_that_reboots_itself_is_waited_for(machine: Machine) -> None:
    before = machine.boot_id()
    machine.run(["systemctl", "reboot"], check=False)
    machine.wait_for_boot()
    assert machine.boot_id() != before


def test_a_machine_is_turned_off_and_on_again(machine: Machine) -> None:
    machine.write_file("/var/lib/kept", "kept")
    machine.shutdown()
    machine.boot()
    assert machine.run(["cat", "/var/lib/kept"]).stdout == "kept"


def test_a_closed_machine_leaves_nothing(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mounts = Path("/proc/self/mounts").read_text()
    interfaces = _interfaces()
    machine = Machine(image)
    machine.boot()
    started = [machine.popen(["sleep", "60"]), machine.start_peer(["sleep", "60"])]
    machine.run(["systemd-run", "--quiet", "sleep", "60"])
    assert _left(machine.name)
    machine.close()
    assert _left(machine.name) == []
    assert all(process.returncode for process in started)
    assert Path("/proc/self/mounts").read_text() == mounts
    assert _interfaces() == interfaces
    assert list(tmp_path.iterdir()) == []
    machine.close()  # a second time changes nothing


def test_tests_that_die_leave_nothing(image: Image) -> None:
    command = [sys.executable, "-c", _BOOT_AND_WAIT, image.suite.name]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout
        name = tests.stdout.readline().strip()
        try:
            assert name
            assert _left(name)
        finally:
            tests.kill()
    wait_until(lambda: not _left(name), "the machine to go with the tests")


def _wait_for_listener(machine: Machine) -> None:
    wait_until(lambda: machine.run(["ss", "-Htln", "sport = :7777"]).stdout, "the listener")


def _interfaces() -> list[str]:
    lines = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(line.split()[0] for line in lines)


def _left(name: str) -> list[str]:
    """List what there is of a machine: its processes, by control group or command line, and control groups."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"/{name}" in (process / "cgroup").read_text() or name in (process / "cmdline").read_text().split("\0"):
                left.append(str(process))
        except OSError:  # ended just now
            continue
    look = 'umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec find /sys/fs/cgroup -path "*/$0*"'
    found = subprocess.run([*private(), "sh", "-c", look, name], capture_output=True, text=True, check=True)
    return left + found.stdout.splitlines()
