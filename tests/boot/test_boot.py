"""From power-on to the network: the rules are there first, whatever the last session left behind."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.boot.test_service import events, status, table
from tests.boot.units import shown
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from tests.boot.machine import Machine

CONFIG = "/etc/nftguard.toml"
_CUTS = 3
_BUDGET = 50_000  # µs

# What there is at the moment before network-pre.target is reached.
_PROBE = """\
[Unit]
DefaultDependencies=no
Wants=network-pre.target
After=nftguard-boot.service
Before=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'nft list table inet nftguard; ip -oneline address show scope global'
StandardOutput=truncate:/run/probe

[Install]
WantedBy=sysinit.target
"""
# When the kernel made host0's first address, in µs of CLOCK_MONOTONIC. It keeps hundredths of seconds of its own count
# (IFA_CACHEINFO's cstamp): an address that is made now shows what those are on the clock.
_FIRST_ADDRESS = """
import socket, struct, subprocess, time
def stamps():
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.send(struct.pack("=IHHIIBxxxI", 24, 22, 0x301, 1, 0, 0, 0))  # RTM_GETADDR, a dump
    found, done = {}, False
    while not done:
        data = sock.recv(65536)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            message, data = data[16:length], data[(length + 3) & ~3:]
            if kind == 3:
                done = True
                break
            index, rest = struct.unpack_from("=I", message, 4)[0], message[8:]
            while len(rest) >= 4:
                size, name = struct.unpack_from("=HH", rest)
                if name == 6:
                    found.setdefault(socket.if_indextoname(index), []).append(struct.unpack_from("=I", rest, 12)[0])
                rest = rest[(size + 3) & ~3:]
    return found
now = time.monotonic()
subprocess.run(["ip", "address", "add", "127.0.0.9/32", "dev", "lo"], check=True)
found = stamps()
print(int((min(found["host0"]) / 100 + now - max(found["lo"]) / 100) * 1e6))
"""
# As cloud-init's are on Debian, where they order the network before sysinit.target.
_CLOUD_INIT = {
    "cloud-init-local": """\
[Unit]
DefaultDependencies=no
Wants=network-pre.target
After=systemd-remount-fs.service
Before=network-pre.target sysinit.target shutdown.target
Conflicts=shutdown.target
""",
    "cloud-init": """\
[Unit]
DefaultDependencies=no
Wants=cloud-init-local.service systemd-networkd-wait-online.service
After=cloud-init-local.service systemd-networkd-wait-online.service networking.service
Before=network-online.target sysinit.target shutdown.target
Conflicts=shutdown.target
""",
}
_STUB = """
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true

[Install]
WantedBy=multi-user.target
"""
_RELOADS = """
while true; do
    i=$((i + 1))
    printf '[[block]]\\nname = "mail"\\nports = [25, %d]\\n' $((2000 + i)) >/etc/nftguard.toml
    systemctl reload nftguard
    echo "$i"
done
"""


def shape(machine: Machine) -> str:
    """Give the table as it stands, but for what counters count."""
    return re.sub(r"packets \d+ bytes \d+", "", table(machine))


def moment(machine: Machine, unit: str, name: str) -> int:
    """Give one of a unit's timestamps, in µs; 0 for never."""
    return int(shown(machine, unit, f"{name}TimestampMonotonic"))


def code(machine: Machine) -> int:
    return machine.run(["nftguard", "status"], check=False).returncode


def messages(machine: Machine, *options: str) -> list[str]:
    return [str(record["MESSAGE"]) for record in machine.journal(*options)]


@pytest.fixture
def guarded(machine: Machine) -> Machine:
    machine.run(["systemctl", "enable", "--now", "nftguard"])
    return machine


def test_the_rules_are_live_before_the_network_and_before_the_first_address(guarded: Machine) -> None:
    guarded.write_file("/etc/systemd/system/probe.service", _PROBE)
    guarded.run(["systemctl", "enable", "probe"])
    guarded.reboot()
    loaded = moment(guarded, "nftguard-boot.service", "ExecMainExit")
    told = moment(guarded, "nftguard-boot.service", "ActiveEnter")
    network = moment(guarded, "network-pre.target", "ActiveEnter")
    assert 0 < loaded <= told <= network < moment(guarded, "systemd-networkd.service", "ExecMainStart")
    assert shown(guarded, "nftguard-boot.service", "ExecMainStatus") == "0"

    probed = guarded.run(["cat", "/run/probe"]).stdout
    assert "dport" in probed
    assert "host0" not in probed, "an address"

    finished = [
        int(record["__MONOTONIC_TIMESTAMP"])
        for record in guarded.journal("--boot", "UNIT=nftguard-boot.service", "_PID=1")
        if record.get("JOB_RESULT") == "done"
    ]
    assert len(finished) == 1
    address = int(guarded.run(["python3", "-c", _FIRST_ADDRESS]).stdout)
    assert max(network, finished[0]) < address, "the kernel's own record of the first address"
    assert address < moment(guarded, "multi-user.target", "ActiveEnter") + 10_000_000, "a record of this boot"


def test_the_boot_unit_takes_50_ms_where_the_saved_rules_fit(
    guarded: Machine,
    record_property: pytest.RecordProperty,  # type: ignore[name-defined]
) -> None:
    before = shape(guarded)
    guarded.run(["systemctl", "stop", "nftguard"])
    took = []
    for _ in range(6):
        guarded.run(["systemctl", "stop", "nftguard-boot"])
        guarded.run(["nft", "delete", "table", "inet", "nftguard"], check=False)
        guarded.run(["systemctl", "reset-failed", "nftguard-boot"])
        guarded.run(["systemctl", "start", "nftguard-boot"])
        begin, end = (moment(guarded, "nftguard-boot", name) for name in ("ExecMainStart", "ExecMainExit"))
        took.append(end - begin)
        assert "dport" in table(guarded)
    record_property("usec", min(took))
    assert min(took) <= _BUDGET, took
    assert [line for line in messages(guarded, "--unit=nftguard-boot") if "blocked on" in line][1:] == [], "one-shot"
    guarded.run(["systemctl", "start", "nftguard"])
    assert shape(guarded) == before


def test_there_is_no_ordering_cycle_with_units_like_cloud_inits(guarded: Machine) -> None:
    """Early messages of PID 1 are lost in a container, which has no /dev/kmsg: so systemd-analyze is asked as well."""
    for name, unit in _CLOUD_INIT.items():
        guarded.write_file(f"/etc/systemd/system/{name}.service", unit + _STUB)
    guarded.run(["systemctl", "enable", *_CLOUD_INIT])
    started = [*_CLOUD_INIT, "nftguard-boot", "nftguard", "systemd-networkd", "systemd-networkd-wait-online"]

    def cycles() -> str:
        verified = guarded.run(["systemd-analyze", "verify", "default.target"], check=False)
        found = [*messages(guarded, "--boot"), *(verified.stdout + verified.stderr).splitlines()]
        return "\n".join(line for line in found if "ordering cycle" in line)

    guarded.reboot()
    assert cycles() == ""
    assert guarded.run(["systemctl", "is-active", *started]).stdout.split() == ["active"] * len(started)
    assert guarded.state == "running"
    network = moment(guarded, "network-pre.target", "ActiveEnter")
    assert moment(guarded, "nftguard-boot", "ActiveEnter") <= network < moment(guarded, "sysinit.target", "ActiveEnter")

    # With default dependencies there would be one: the test could not miss it.
    guarded.write_file("/etc/systemd/system/nftguard-boot.service.d/test.conf", "[Unit]\nDefaultDependencies=yes\n")
    guarded.reboot()
    assert "ordering cycle" in cycles()


def test_disabled_neither_unit_runs_after_a_reboot(guarded: Machine) -> None:
    guarded.run(["systemctl", "disable", "nftguard"])
    guarded.reboot()
    for unit in ("nftguard", "nftguard-boot"):
        assert shown(guarded, unit, "ActiveState") == "inactive"
        assert moment(guarded, unit, "InactiveExit") == 0
        assert guarded.journal("--boot", f"--unit={unit}") == []
    assert guarded.run(["nft", "list", "ruleset"]).stdout == ""


def test_a_power_cut_in_the_midst_of_saves_leaves_the_next_boot_protected(guarded: Machine) -> None:
    for number in range(_CUTS):
        loop = guarded.popen(["sh", "-c", _RELOADS])
        assert loop.stdout
        assert loop.stdout.readline().strip().endswith("1")
        time.sleep(0.05 + 0.13 * number)  # at another point of a save each time
        guarded.reboot(hard=True)
        assert "dport" in table(guarded)
        assert code(guarded) in {0, 1}
        assert guarded.run(["systemctl", "is-active", "nftguard"]).stdout == "active\n"
        assert {25, 2000} & {row["port"] // 1000 * 1000 or row["port"] for row in status(guarded)["ports"]}
        assert "Traceback" not in "\n".join(messages(guarded, "--boot"))


@pytest.mark.parametrize("boots", [3, pytest.param(8, marks=pytest.mark.long)])
def test_every_boot_beside_nftables_service_is_protected(guarded: Machine, boots: int) -> None:
    guarded.run(["systemctl", "enable", "nftables"])
    before, protected = shape(guarded), 0
    for _ in range(boots):
        guarded.reboot(network=False)
        found = status(guarded)
        protected += found["state"] == "protected" and shape(guarded) == before
        assert found["daemon"]["repairs"] == 0
        flushed = moment(guarded, "nftables.service", "ExecMainExit")
        assert 0 < flushed <= moment(guarded, "nftguard-boot.service", "ExecMainStart")
        assert moment(guarded, "nftguard-boot", "ActiveEnter") <= moment(guarded, "network-pre.target", "ActiveEnter")
        assert "table inet filter" in guarded.run(["nft", "list", "tables"]).stdout
    assert protected == boots


def test_a_broken_file_at_boot_leaves_the_last_good_rules_and_says_so(guarded: Machine) -> None:
    before = shape(guarded)
    guarded.write_file(CONFIG, "[[block]\n")
    guarded.reboot()
    assert shape(guarded) == before != ""
    assert guarded.state == "degraded"
    assert code(guarded) == 1
    assert shown(guarded, "nftguard", "ActiveState") == "active"
    assert "DEGRADED" in shown(guarded, "nftguard", "StatusText")
    assert shown(guarded, "nftguard-boot", "ActiveState") == "failed"
    assert shown(guarded, "nftguard-boot", "ExecMainStatus") == "78"
    told = messages(guarded, "--boot", "--unit=nftguard-boot")
    assert len([line for line in told if line.startswith(f"{CONFIG}: is not valid TOML")]) == 1
    assert moment(guarded, "nftguard-boot", "ExecMainExit") <= moment(guarded, "network-pre.target", "ActiveEnter")
    assert "Traceback" not in "\n".join(messages(guarded, "--boot"))
    guarded.write_file(CONFIG, '[[block]]\nname = "x"\nports = [25]\n')
    guarded.run(["systemctl", "reload", "nftguard"])
    wait_until(lambda: status(guarded)["state"] == "protected", "protection by the mended file")
    assert events(guarded, "--boot")[-1] == "applied"
