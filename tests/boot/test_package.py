"""The package on a real machine, from `apt install` to `apt purge`, and `make install` where no package fits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from builder import deb, wheels
from tests.boot import installed
from tests.boot.machine import Machine
from tests.boot.suites import BOOKWORM
from tests.boot.test_service import status, table
from tests.boot.test_traffic import never_pausing
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from tests.boot.image import Image

CONFIG = "/etc/nftguard.toml"
# Every file but those of the kernel and of the session, with what it is; of the configuration also what is in it.
_FILES = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp \) -prune \
    -o -printf '%y %m %U:%G %p %l\n'
find /run /tmp -name '*nftguard*'
find /etc -type f -exec sha256sum {} +
"""
# What apt, dpkg, systemd and the account tools write for themselves; of accounts, `getent` says what is left.
_NOISE = (
    *("/var/lib/dpkg/", "/var/lib/apt/", "/var/cache/", "/var/log/", "/var/backups/", "/var/lib/systemd/", "/root/"),
    *("/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-"),
    *("/etc/.pwd.lock", "/etc/ld.so.cache", "/systemd-private-"),
    "d 755 0:0 /usr/local/",  # `make uninstall` leaves empty folders
)
_STATE = {
    "users": "getent passwd; getent group",
    "unit files": "systemctl list-unit-files --no-legend --no-pager",
    "units": "systemctl list-units --all --plain --no-legend --no-pager 'nftguard*'",
    "rules": "nft list ruleset",
    "catalog": "journalctl --list-catalog | grep -i nftguard",
    "packages": "dpkg-query -W",
}


def seen(machine: Machine) -> dict[str, set[str]]:
    """Everything there is, by kind."""
    found = {kind: machine.run(["sh", "-c", f"{command} || true"]).stdout for kind, command in _STATE.items()}
    found["files"] = machine.run(["sh", "-c", _FILES], timeout=60).stdout
    return {
        kind: {line for line in text.splitlines() if not any(noise in line for noise in _NOISE)}
        for kind, text in found.items()
    }


def apt(machine: Machine, *arguments: str) -> str:
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", *arguments]
    return machine.run(command, timeout=120).stdout


def newer(machine: Machine, suffix: str) -> str:
    """Make the package of a next version, and say where it is."""
    script = r"""
    rm -rf /root/new && dpkg-deb --raw-extract /root/nftguard.deb /root/new && cd /root/new
    sed -i "s/^Version: .*/&$1/" DEBIAN/control
    package=$(dirname "$(find . -path '*/nftguard/__init__.py')")
    sed -i "s/^__version__ = .*/__version__ = 'newer$1'/" "$package/__init__.py"
    dpkg-deb -Znone --build . "/root/nftguard$1.deb"
    """
    machine.run(["sh", "-ec", script, "sh", suffix], timeout=60)
    return f"/root/nftguard{suffix}.deb"


def active(machine: Machine, unit: str = "nftguard") -> str:
    return machine.run(["systemctl", "is-active", unit], check=False).stdout.strip()


def attempt(machine: Machine, address: str) -> None:
    machine.run(["timeout", "0.5", "bash", "-c", f"</dev/tcp/{address}/25"], check=False)


def sender_gets_through(machine: Machine) -> bool:
    with never_pausing(machine) as arrivals:
        pass
    return arrivals.leaked > 0


def check_nothing_runs(machine: Machine) -> None:
    for unit in ("nftguard", "nftguard-boot", "nftguard-metrics", "nftguard-alert.path", "nftguard-resolver.path"):
        assert active(machine, unit) == "inactive", unit
    listed = machine.run(["systemctl", "list-unit-files", "--state=enabled", "--no-legend", "nftguard*"], check=False)
    assert listed.stdout == ""
    assert machine.run(["nft", "list", "ruleset"]).stdout == ""


def check_nothing_else_is_there(machine: Machine, before: dict[str, set[str]]) -> None:
    """All is as it was, once what came along is gone, too."""
    if others := {line.split()[0] for line in seen(machine)["packages"] - before["packages"]}:
        apt(machine, "purge", *sorted(others))
    after = seen(machine)
    for kind, lines in before.items():
        assert after[kind] ^ lines == set(), kind


def test_from_install_to_purge_it_does_what_it_should_and_leaves_nothing(bare: Image) -> None:
    with Machine(bare) as machine:
        before = seen(machine)
        told = apt(machine, "install", "/root/nftguard.deb")
        assert "systemctl enable --now nftguard" in told
        assert "SSH" in told
        check_nothing_runs(machine)
        assert "nftguard" in machine.run(["journalctl", "--list-catalog"]).stdout
        apt(machine, "install", newer(machine, "+1"))
        check_nothing_runs(machine)

        machine.run(["sed", "-i", 's/^ports = .*/ports = ["@mail", 4444]/', CONFIG])
        # What root has installed for himself does not get in its way.
        for version in ("3.11", "3.13"):
            machine.write_file(f"/root/.local/lib/python{version}/site-packages/nftables.py", "raise SystemExit(9)")
        machine.run(["env", "HOME=/root", "nftguard", "check"])
        machine.run(["systemctl", "enable", "--now", "nftguard"])
        for address in ("192.0.2.1", "2001:db8::1"):
            attempt(machine, address)
            wait_until(lambda address=address: blocked(machine, address), f"the attempt at {address} in the journal")  # type: ignore[misc]

        packets = {row["port"]: row["packets"] for row in status(machine)["ports"]}
        pid = machine.run(["systemctl", "show", "-P", "MainPID", "nftguard"]).stdout
        upgrade = newer(machine, "+2")
        with never_pausing(machine) as arrivals:
            apt(machine, "install", upgrade)
        assert arrivals.leaked == 0
        assert "newer+2" in machine.run(["nftguard", "--version"]).stdout
        assert machine.run(["systemctl", "show", "-P", "MainPID", "nftguard"]).stdout not in {"0\n", pid}
        after = status(machine)
        assert after["state"] == "protected"
        assert {row["port"] for row in after["ports"]} == packets.keys() >= {25, 4444}
        assert {row["port"]: row["packets"] for row in after["ports"]}[25] > packets[25] > 0

        machine.run(["systemctl", "stop", "nftguard"])
        apt(machine, "install", newer(machine, "+3"))
        assert active(machine) == "inactive"
        assert table(machine) == ""
        assert machine.run(["systemctl", "is-enabled", "nftguard"]).stdout == "enabled\n"
        machine.run(["systemctl", "start", "nftguard"])

        apt(machine, "remove", "nftguard")
        assert table(machine) == ""
        assert sender_gets_through(machine)
        assert "4444" in machine.run(["cat", CONFIG]).stdout
        machine.run(["mkdir", "/etc/nftguard.d"])
        machine.write_file("/etc/nftguard.d/left.toml", "")
        apt(machine, "purge", "nftguard")
        check_nothing_else_is_there(machine, before)


def blocked(machine: Machine, address: str) -> bool:
    records = machine.journal("--unit=nftguard")
    return any(record.get("NFTGUARD_DESTINATION") == address for record in records)


def test_removal_lifts_rules_that_a_stop_would_keep_and_those_that_no_daemon_keeps(bare: Image) -> None:
    with Machine(bare) as machine:
        apt(machine, "install", "/root/nftguard.deb")
        machine.run(["mkdir", "/etc/nftguard.d"])
        bridged = '[[block]]\nname = "guests"\nports = [25]\nhooks = ["bridge"]\n'
        machine.write_file("/etc/nftguard.d/keep.toml", f'{bridged}[service]\non_stop = "keep"\n')
        machine.run(["systemctl", "enable", "--now", "nftguard"])
        assert machine.run(["nft", "list", "tables"]).stdout.count(" nftguard\n") == 2
        apt(machine, "remove", "nftguard")
        assert "nftguard" not in machine.run(["nft", "list", "tables"]).stdout

        assert "systemctl start nftguard" in apt(machine, "install", "/root/nftguard.deb")
        assert machine.run(["systemctl", "is-enabled", "nftguard"]).stdout == "enabled\n"
        assert active(machine) == "inactive"
        machine.run(["nftguard", "apply"])
        # A chroot shares the kernel's rules with the host around it, and has no systemd that runs.
        script = "mount -t tmpfs tmpfs /run && sh /var/lib/dpkg/info/nftguard.prerm remove"
        machine.run(["unshare", "--mount", "sh", "-ec", script])
        assert "dport" in table(machine)
        apt(machine, "purge", "nftguard")
        assert table(machine) == ""
        assert machine.run(["ls", "/etc/nftguard.d"], check=False).returncode != 0


def test_a_guard_that_may_not_be_stopped_goes_on_and_an_account_that_was_there_stays(bare: Image) -> None:
    with Machine(bare) as machine:
        machine.run(["useradd", "--create-home", "nftguard"])
        apt(machine, "install", "/root/nftguard.deb")
        machine.run(["systemctl", "enable", "--now", "nftguard"])
        machine.write_file("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
        assert "systemctl stop nftguard" in apt(machine, "remove", "nftguard")
        assert active(machine) == "active"
        assert "dport" in table(machine)
        machine.run(["ls", "/run/nftguard/status.json"])
        machine.run(["systemctl", "stop", "nftguard"])
        assert table(machine) == ""
        apt(machine, "purge", "nftguard")
        assert machine.run(["ls", "/run/nftguard"], check=False).returncode != 0
        machine.run(["getent", "passwd", "nftguard"])


@pytest.mark.parametrize("bare", [BOOKWORM], ids=str, indirect=True)
def test_make_install_and_uninstall_leave_no_more_than_they_should(bare: Image, tmp_path: Path) -> None:
    with Machine(replace(bare, installed=checkout(tmp_path))) as machine:
        apt(machine, "install", "make", "go-md2man", "python3-venv", *("python3-nftables", "python3-systemd"))
        make = ["env", "--chdir=/root/checkout", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/root/wheels", "make"]
        before = seen(machine)
        told = machine.run([*make, "install"], timeout=120).stdout
        assert "systemctl enable --now nftguard" in told
        check_nothing_runs(machine)
        machine.run(["systemctl", "enable", "--now", "nftguard"])
        attempt(machine, "192.0.2.1")
        wait_until(lambda: blocked(machine, "192.0.2.1"), "the attempt in the journal")
        machine.reboot()
        assert active(machine, "nftguard-boot") == "active"
        with never_pausing(machine) as arrivals:
            machine.run([*make, "install"], timeout=120)
        assert arrivals.leaked == 0
        assert status(machine)["state"] == "protected"

        machine.run([*make, "uninstall"])
        assert table(machine) == ""
        kept = {line.split()[3] for line in seen(machine)["files"] - before["files"] if line.startswith(("f ", "l "))}
        assert CONFIG in kept
        assert {name for name in kept if not name.startswith("/var/lib/nftguard/")} == {CONFIG}
        machine.run([*make, "uninstall", "purge=yes"])
        check_nothing_else_is_there(machine, before)


def checkout(folder: Path) -> Path:
    """Make an archive of the checkout and of what pip would fetch for it."""
    sources = deb.files()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version=3.11"]
    subprocess.run([*command, f"--dest={folder}/root/wheels", "hatchling"], check=True, timeout=100)
    carried = wheels.folder(sources[Path("debian/requirements.txt")], "3.11")
    shutil.copytree(carried, folder / "root/wheels", dirs_exist_ok=True)
    deb.write(sources, folder / "root/checkout")
    with tarfile.open(folder / "archive.tar", "w") as archive:
        archive.add(folder / "root", "root")
    return folder / "archive.tar"


def test_two_builds_have_the_same_bytes_and_lintian_is_content(
    bare: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    mask = os.umask(0o077)
    try:
        again = deb.build(bare.suite.packaged, deb.files(), tmp_path, place="/srv/some/where/else", lint=True)
    finally:
        os.umask(mask)
    first = installed.package(bare.suite)
    assert again.name == first.name
    assert again.read_bytes() == first.read_bytes()
