"""The service on Debian's own kernels: what only a machine of its own can show."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.vm.machine import VirtualMachine

NOBODY = 65534
UNIT_DROP_IN = "/run/systemd/system/nftguard.service.d/test.conf"
CONFIG_DROP_IN = "/etc/nftguard.d/test.toml"
RSYSLOG = Path(__file__).parents[2] / "conf/rsyslog-nftguard.conf"
WAIT = 60.0
# Connects to port 25, and says what came of it: nothing, where packets are dropped.
CONNECT = """
import socket, sys
try: socket.create_connection((sys.argv[1], 25), 0.5).close(); print("connected")
except OSError as error: print(type(error).__name__)
"""
FLUSH = 'import nftables, time; nftables.Nftables().cmd("flush ruleset"); time.sleep(1)'
_numbers = itertools.count(10)


def table(machine: VirtualMachine) -> str:
    return machine.run(["nft", "list", "table", "inet", "nftguard"], check=False).stdout


def status(machine: VirtualMachine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.run(["nftguard", "status", "--json"], check=False).stdout)
    return found


def shown(machine: VirtualMachine, unit: str, name: str) -> str:
    return machine.run(["systemctl", "show", "-P", name, unit]).stdout.strip()


def records(machine: VirtualMachine, event: str) -> list[dict[str, Any]]:
    return machine.journal("--boot", "--unit=nftguard", f"NFTGUARD_EVENT={event}")


def attempt(machine: VirtualMachine) -> str:
    """Attempt a connection as nobody, and give where it went: each time elsewhere, as repeats are not logged."""
    target = f"192.0.2.{next(_numbers)}"
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    assert machine.run([*user, "python3", "-c", CONNECT, target]).stdout == "TimeoutError\n"
    return target


def configure(machine: VirtualMachine, text: str) -> None:
    machine.write_file(CONFIG_DROP_IN, text)
    machine.run(["systemctl", "reload", "nftguard"])


def reconfigure_unit(machine: VirtualMachine, text: str) -> None:
    machine.write_file(UNIT_DROP_IN, text)
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "restart", "nftguard"])


@pytest.fixture
def guarded(machine: VirtualMachine) -> Iterator[VirtualMachine]:
    """The machine with the service enabled and started, in its default configuration, before and after."""
    machine.run(["systemctl", "enable", "--now", "nftguard"])
    yield machine
    leftovers = machine.run(["rm", "--verbose", "--force", CONFIG_DROP_IN, UNIT_DROP_IN]).stdout
    if UNIT_DROP_IN in leftovers:
        machine.run(["systemctl", "daemon-reload"])
        machine.run(["systemctl", "restart", "nftguard"])
    elif leftovers:
        machine.run(["systemctl", "reload", "nftguard"])


def test_the_kernel_and_nft_are_the_releases_own(machine: VirtualMachine) -> None:
    kernel = machine.run(["uname", "-r"]).stdout
    assert kernel.startswith({"bookworm": "6.1.", "trixie": "6.12."}[machine.suite.name])
    assert "cloud-amd64" in kernel
    assert f"v{machine.suite.nft} " in machine.run(["nft", "--version"]).stdout
    assert machine.state == "running", machine.run(["systemctl", "--failed", "--no-pager"]).stdout


def test_attempts_are_records_that_name_the_user(guarded: VirtualMachine) -> None:
    target = attempt(guarded)
    (record,) = wait_until(
        lambda: [found for found in records(guarded, "blocked") if found["NFTGUARD_DESTINATION"] == target],
        "the record of the attempt",
        timeout=WAIT,
    )
    assert record["NFTGUARD_UID"] == str(NOBODY)
    assert record["NFTGUARD_PORT"] == "25"


def test_attempts_are_in_the_kernels_log_where_they_are_wanted_there(guarded: VirtualMachine) -> None:
    configure(guarded, '[log]\ntarget = "kernel"\n')
    target = attempt(guarded)
    lines = [str(found["MESSAGE"]) for found in guarded.journal("--dmesg")]
    (line,) = [line for line in lines if f" DST={target} " in line]
    assert line.startswith("NFTGUARD output tcp/25: ")
    assert f" UID={NOBODY} " in f"{line} "
    assert not [found for found in records(guarded, "blocked") if found["NFTGUARD_DESTINATION"] == target]


def test_rsyslog_sends_the_kernels_lines_to_a_file_of_their_own(guarded: VirtualMachine) -> None:
    """As the rules that nftguard replaces had it; the file is the one that is shipped."""
    guarded.write_file("/etc/rsyslog.d/20-nftguard.conf", RSYSLOG.read_text(encoding="utf-8"))
    guarded.run(["systemctl", "restart", "rsyslog"])
    configure(guarded, '[log]\ntarget = "kernel"\n')
    target = attempt(guarded)
    show = ["cat", "/var/log/nftguard.log"]
    lines = wait_until(
        lambda: [line for line in guarded.run(show, check=False).stdout.splitlines() if f" DST={target} " in line],
        "the line in the file",
        timeout=WAIT,
    )
    assert "NFTGUARD output tcp/25: " in lines[0]
    assert f" DST={target} " not in guarded.run(["cat", "/var/log/syslog", "/var/log/kern.log"], check=False).stdout


def test_the_unit_of_an_attempt_is_known_on_this_kernel(guarded: VirtualMachine) -> None:
    target = f"192.0.2.{next(_numbers)}"
    code = f"import socket; s = socket.socket(); s.settimeout(0.2); s.connect_ex(('{target}', 25))"
    guarded.run(["systemd-run", "--quiet", "--wait", "--unit=sender", "/usr/bin/python3", "-c", code])
    (record,) = wait_until(
        lambda: [found for found in records(guarded, "blocked") if found["NFTGUARD_DESTINATION"] == target],
        "the record of the attempt",
        timeout=WAIT,
    )
    assert (record["NFTGUARD_UNIT"], record["NFTGUARD_KNOWN_BY"]) == ("sender.service", "kernel")


def test_the_table_is_owned_where_the_kernel_can(guarded: VirtualMachine) -> None:
    """Then a flush does not reach it. Debian 13 can, Debian 12 cannot."""
    owned = guarded.suite.name == "trixie"
    assert status(guarded)["daemon"]["owner"] is owned
    assert ("flags owner,persist" in table(guarded)) is owned
    if owned:
        repairs = status(guarded)["daemon"]["repairs"]
        guarded.run(["nft", "flush", "ruleset"])
        assert "dport" in table(guarded)
        assert status(guarded)["daemon"]["repairs"] == repairs


def test_a_flush_is_repaired_and_the_record_names_the_culprits_unit(guarded: VirtualMachine) -> None:
    if status(guarded)["daemon"]["owner"]:
        configure(guarded, '[service]\nownership = "off"\n')
    guarded.run(["systemd-run", "--quiet", "--wait", "--unit=culprit", "python3", "-c", FLUSH])
    record = wait_until(lambda: records(guarded, "repaired"), "the record of the repair", timeout=WAIT)[-1]
    assert record["NFTGUARD_FOUND"] == "the table is missing"
    assert record["NFTGUARD_COMMAND"] == "python3"
    assert record["NFTGUARD_UNIT"] == "culprit.service"
    assert "dport" in table(guarded)


def test_five_reloads_fit_into_64_megabytes(guarded: VirtualMachine, figure: Callable[[str, object], None]) -> None:
    reconfigure_unit(guarded, "[Service]\nMemoryMax=64M\nMemorySwapMax=0\n")
    pid = shown(guarded, "nftguard", "MainPID")
    for _ in range(5):
        guarded.run(["systemctl", "reload", "nftguard"])
    assert shown(guarded, "nftguard", "MainPID") == pid
    folder = "/sys/fs/cgroup/system.slice/nftguard.service"
    found = guarded.run(["cat", f"{folder}/memory.events"]).stdout
    events = dict(line.split() for line in found.splitlines())
    assert (events["oom"], events["oom_kill"]) == ("0", "0"), found
    anonymous = guarded.run(["grep", "^Rss", f"/proc/{pid}/status"]).stdout.split()
    figure("memory.peak, MiB", int(guarded.run(["cat", f"{folder}/memory.peak"]).stdout) >> 20)
    figure("memory of the daemon", " ".join(anonymous))


def test_the_rules_outlive_an_oom_kill(guarded: VirtualMachine) -> None:
    before = int(shown(guarded, "nftguard", "NRestarts"))
    guarded.run(["systemctl", "set-property", "--runtime", "nftguard", "MemoryMax=8M", "MemorySwapMax=0"])
    try:
        wait_until(lambda: int(shown(guarded, "nftguard", "NRestarts")) > before, "a restart by systemd", timeout=WAIT)
        assert "dport" in table(guarded)
        attempt(guarded)
        assert [
            found
            for found in guarded.journal("--boot", "_PID=1", "UNIT=nftguard.service")
            if "result 'oom-kill'" in str(found["MESSAGE"])
        ]
        if guarded.suite.name == "trixie":  # where the table is owned, by a socket that systemd keeps
            guarded.run(["nft", "flush", "ruleset"])
            assert "dport" in table(guarded)
    finally:
        guarded.run(["systemctl", "set-property", "--runtime", "nftguard", "MemoryMax=", "MemorySwapMax="])
    wait_until(lambda: status(guarded)["daemon"] is not None, "a new daemon", timeout=WAIT)
    assert status(guarded)["state"] == "protected"


def test_the_exposure_is_low(guarded: VirtualMachine, figure: Callable[[str, object], None]) -> None:
    text = guarded.run(["systemd-analyze", "security", "--no-pager", "nftguard.service"]).stdout
    words = text.splitlines()[-1].split(": ")[1].split()
    figure("systemd-analyze security nftguard", " ".join(words[:2]))
    assert float(words[0]) < 2, text


@pytest.mark.parametrize("hard", [False, True], ids=["in order", "hard"])
def test_after_a_reboot_the_rules_are_there_before_the_network(
    guarded: VirtualMachine, hard: bool, figure: Callable[[str, object], None]
) -> None:
    guarded.run(["sync"])  # else a power cut might come before the enabling
    guarded.reboot(hard=hard)
    assert shown(guarded, "nftguard-boot", "Result") == "success"
    began, live, network = (
        int(shown(guarded, unit, f"{name}TimestampMonotonic"))
        for unit, name in (
            ("nftguard-boot", "InactiveExit"),
            ("nftguard-boot", "ActiveEnter"),
            ("network-pre.target", "ActiveEnter"),
        )
    )
    figure(f"boot unit after a reboot ({'hard' if hard else 'in order'}), ms", (live - began) // 1000)
    assert 0 < live <= network
    wait_until(lambda: status(guarded)["daemon"] is not None, "the daemon", timeout=WAIT)
    assert status(guarded)["state"] == "protected"
    assert guarded.run(["systemctl", "is-active", "nftguard"]).stdout == "active\n"
    attempt(guarded)
