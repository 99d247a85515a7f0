"""The RPM package's files and scripts on a real machine. That is a Debian, so RPM itself is played by the test."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from tests.boot.suites import TRIXIE
from tests.boot.test_service import drop_in, status, table
from tests.test_rpm import archive, build, scripts

if TYPE_CHECKING:
    from tests.boot.machine import Machine

SITE = "/usr/lib/python3/dist-packages"
UNITS = ("nftguard", "nftguard-boot")


def one_line(machine: Machine, *argv: str) -> str:
    return machine.run(argv, check=False).stdout.strip()


@pytest.mark.parametrize("image", [TRIXIE], indirect=True, ids=str)
def test_it_is_installed_disabled_upgraded_without_a_gap_and_erased_with_its_rules(
    machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    package = build(tmp_path_factory.mktemp("rpm"), SITE)
    payload = base64.b64encode(archive(package).read_bytes()).decode()
    script = dict(scripts(package))

    def unpack() -> None:
        machine.run(["sh", "-ec", "base64 -d | tar -xz -C /"], stdin=payload)

    def run(name: str, left: int) -> None:
        """Run a script as RPM does: with how many packages of that name will be left."""
        machine.run(["sh", "-ec", script[name], "sh", str(left)])

    machine.run(["rm", "-r", f"{SITE}/structlog"])  # Fedora has none
    unpack()
    run("POSTIN", 1)
    assert one_line(machine, "systemctl", "is-enabled", *UNITS) == "disabled\ndisabled"
    assert table(machine) == ""

    machine.run(["systemctl", "enable", "--now", "nftguard"])
    assert status(machine)["state"] == "protected"
    assert one_line(machine, "systemctl", "is-active", "nftguard-boot") == "active"
    machine.reboot()
    assert status(machine)["state"] == "protected"

    handle = one_line(machine, "sh", "-c", "nft --handle list tables inet | grep 'inet nftguard'")
    pid = one_line(machine, "systemctl", "show", "-P", "MainPID", "nftguard")
    unpack()
    run("POSTIN", 2)
    run("PREUN", 1)
    run("POSTUN", 1)
    assert status(machine)["state"] == "protected"
    assert one_line(machine, "systemctl", "show", "-P", "MainPID", "nftguard") != pid
    assert one_line(machine, "sh", "-c", "nft --handle list tables inet | grep 'inet nftguard'") == handle
    assert one_line(machine, "systemctl", "is-enabled", *UNITS) == "enabled\nenabled"

    drop_in(machine, "[service]\non_stop = 'keep'")
    machine.run(["systemctl", "reload", "nftguard"])
    run("PREUN", 0)
    assert one_line(machine, "systemctl", "is-enabled", *UNITS) == "disabled\ndisabled"
    assert one_line(machine, "systemctl", "is-active", *UNITS) == "inactive\ninactive"
    assert table(machine) == ""
