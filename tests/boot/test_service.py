"""The service on a real machine, run by systemd: what it promises from boot to shutdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from tests.boot.machine import Machine


def table(machine: Machine) -> str:
    return machine.run(["nft", "list", "table", "inet", "nftguard"], check=False).stdout


def status(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.run(["nftguard", "status", "--json"], check=False).stdout)
    return found


def events(machine: Machine, *options: str) -> list[str]:
    records = machine.journal("--unit=nftguard", *options)
    return [str(record["NFTGUARD_EVENT"]) for record in records if "NFTGUARD_EVENT" in record]


def drop_in(machine: Machine, text: str) -> None:
    machine.run(["mkdir", "-p", "/etc/nftguard.d"])
    machine.write_file("/etc/nftguard.d/test.toml", text)


@pytest.fixture
def guarded(machine: Machine) -> Machine:
    """A machine with the service enabled and started."""
    machine.run(["systemctl", "enable", "--now", "nftguard"])
    return machine


def test_a_started_service_blocks_and_says_so(guarded: Machine) -> None:
    assert guarded.run(["systemctl", "is-active", "nftguard", "nftguard-boot"]).stdout == "active\nactive\n"
    assert "dport" in table(guarded)
    (record,) = [found for found in guarded.journal("--unit=nftguard") if found.get("NFTGUARD_EVENT") == "applied"]
    assert str(record["MESSAGE"]).startswith("11 tcp ports blocked on output")
    assert record["PRIORITY"] == "6"
    shown = guarded.run(["systemctl", "show", "-P", "StatusText", "nftguard"]).stdout
    assert shown == "11 tcp ports blocked on output\n"


def test_the_kernel_is_asked_what_it_would_take_also_while_the_daemon_owns_the_table(guarded: Machine) -> None:
    assert guarded.run(["nftguard", "check"]).stdout.startswith("valid, and the kernel would take it: 11 tcp ports")


def test_it_runs_without_privilege_but_one(guarded: Machine) -> None:
    pid = guarded.run(["systemctl", "show", "-P", "MainPID", "nftguard"]).stdout.strip()
    found = guarded.run(
        ["sh", "-c", f"grep -E '^(Uid|CapEff|CapBnd)' /proc/{pid}/status; id -u nftguard"]
    ).stdout.split()
    assert found[1] == found[-1] != "0"
    cap_net_admin = f"{1 << 12:016x}"
    assert found.count(cap_net_admin) == 2


def test_disable_leaves_neither_unit(guarded: Machine) -> None:
    guarded.run(["systemctl", "disable", "nftguard"])
    done = guarded.run(["systemctl", "is-enabled", "nftguard", "nftguard-boot"], check=False)
    assert done.stdout == "disabled\ndisabled\n"


def test_the_exposure_is_low_and_the_units_are_well_formed(guarded: Machine) -> None:
    units = ["/usr/lib/systemd/system/nftguard.service", "/usr/lib/systemd/system/nftguard-boot.service"]
    done = guarded.run(["systemd-analyze", "verify", "--man=no", *units], check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    text = guarded.run(["systemd-analyze", "security", "--no-pager", "nftguard.service"]).stdout
    exposure = float(text.splitlines()[-1].split(": ")[1].split()[0])
    assert exposure <= (1.4 if guarded.suite.name == "trixie" else 1.5), text


def test_the_owner_of_the_table_is_told(guarded: Machine) -> None:
    """Debian 13 can, Debian 12 cannot."""
    owned = guarded.suite.name == "trixie"
    assert ("flags owner,persist" in table(guarded)) is owned
    assert status(guarded)["daemon"]["owner"] is owned
    done = guarded.run(["nft", "delete", "table", "inet", "nftguard"], check=False)
    assert (done.returncode != 0 and "not permitted" in done.stderr) is owned
    wait_until(lambda: status(guarded)["state"] == "protected", "protection again")


def test_a_repair_names_the_program_that_made_it_necessary(guarded: Machine) -> None:
    """Its unit, too, on a host of its own; here the kernel's process ids are not the container's."""
    drop_in(guarded, "[service]\nownership = 'off'")
    guarded.run(["systemctl", "reload", "nftguard"])
    guarded.run(["nft", "flush", "ruleset"])
    wait_until(lambda: "repaired" in events(guarded), "the record of the repair")
    (record,) = [found for found in guarded.journal("--unit=nftguard") if found.get("NFTGUARD_EVENT") == "repaired"]
    assert record["NFTGUARD_COMMAND"] == "nft"
    assert record["NFTGUARD_FOUND"] == "the table is missing"
    assert int(str(record["NFTGUARD_GAP_USEC"])) > 0
    assert "dport" in table(guarded)


@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_a_broken_file_is_refused_and_nothing_changes(guarded: Machine, verb: str) -> None:
    before = table(guarded)
    guarded.write_file("/etc/nftguard.toml", "[[blok]]\n")
    done = guarded.run(["systemctl", verb, "nftguard"], check=False)
    assert (done.returncode != 0) is (verb == "reload")
    assert table(guarded) == before
    found = guarded.run(["nftguard", "status", "--json"], check=False)
    assert found.returncode == 1
    assert json.loads(found.stdout)["state"] == "degraded"
    assert "DEGRADED" in guarded.run(["systemctl", "show", "-P", "StatusText", "nftguard"]).stdout
    lines = [str(record["MESSAGE"]) for record in guarded.journal("--unit=nftguard", "--priority=err")]
    assert [line for line in lines if line.startswith("/etc/nftguard.toml: blok: unknown key; did you mean 'block'?")]
    guarded.write_file("/etc/nftguard.toml", '[[block]]\nname = "x"\nports = [25]\n')
    guarded.run(["systemctl", "reload", "nftguard"])
    assert status(guarded)["state"] == "protected"
    assert [row["port"] for row in status(guarded)["ports"]] == [25]


def test_a_first_start_with_a_broken_file_fails_with_the_reason(machine: Machine) -> None:
    machine.write_file("/etc/nftguard.toml", "[[blok]]\n")
    done = machine.run(["systemctl", "start", "nftguard"], check=False)
    assert done.returncode != 0
    assert machine.run(["systemctl", "show", "-P", "ExecMainStatus", "nftguard"]).stdout == "78\n"
    assert "config_refused" in events(machine)


def test_stop_lifts_the_rules_and_keep_does_not(guarded: Machine) -> None:
    guarded.run(["systemctl", "stop", "nftguard"])
    assert table(guarded) == ""
    assert events(guarded)[-1] == "removed"
    drop_in(guarded, "[service]\non_stop = 'keep'")
    guarded.run(["systemctl", "start", "nftguard"])
    guarded.run(["systemctl", "stop", "nftguard"])
    assert "dport" in table(guarded)
    guarded.run(["nftguard", "remove"])
    assert table(guarded) == ""


def test_pause_and_remove_always_work(guarded: Machine) -> None:
    assert "nothing is blocked until" in guarded.run(["nftguard", "pause", "--for", "2s"]).stdout
    assert table(guarded) == ""
    assert guarded.run(["nftguard", "status"], check=False).returncode == 2
    wait_until(lambda: "dport" in table(guarded), "the end of the pause")
    guarded.run(["nftguard", "remove"])
    assert table(guarded) == ""
    guarded.run(["nftguard", "apply"])
    assert status(guarded)["state"] == "protected"
