"""A trial on a real machine: neither systemd's restart of the service nor a reboot takes what nobody has confirmed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.boot.test_boot import CONFIG, code, messages, shape
from tests.boot.test_service import events, status, table
from tests.boot.units import shown
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    import subprocess

    from tests.boot.machine import Machine

pytestmark = pytest.mark.once("debian13")

_NEW = '[[block]]\nname = "mail"\nports = [25, 26]\n'
_FILE = "/root/new.toml"
_DOUBT = f"{CONFIG} was tried and not confirmed"


@pytest.fixture
def guarded(machine: Machine) -> Machine:
    machine.run(["systemctl", "enable", "--now", "nftguard"])
    return machine


def begin(machine: Machine, *arguments: str) -> subprocess.Popen[str]:
    """Put the new configuration on trial, and leave the question open."""
    machine.write_file(arguments[0] if arguments else CONFIG, _NEW)
    asker = machine.popen(["nftguard", "try", "--timeout", "600", *arguments])
    assert asker.stdout
    assert asker.stdout.readline().startswith("on trial until ")
    assert "counter mail.output.tcp.26" in table(machine)
    return asker


def rules(machine: Machine) -> list[str]:
    """Give the lines of the table: what was made anew is listed last."""
    return sorted(shape(machine).splitlines())


def in_doubt(machine: Machine) -> None:
    """Check that the service runs, and says why it does not run what the file says."""
    assert shown(machine, "nftguard", "ActiveState") == "active"
    assert _DOUBT in shown(machine, "nftguard", "StatusText")
    assert code(machine) == 1
    assert _DOUBT in " ".join(status(machine)["reasons"])


def test_the_service_that_systemd_starts_anew_has_the_rules_before_the_trial(guarded: Machine) -> None:
    """Killed by surprise; and again, with a restart, where nothing is on trial any more."""
    before = rules(guarded)
    begin(guarded)
    guarded.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "nftguard"])
    wait_until(lambda: rules(guarded) == before, "the rules before the trial")
    wait_until(lambda: _DOUBT in shown(guarded, "nftguard", "StatusText"), "the reason in the status")
    assert shown(guarded, "nftguard", "NRestarts") == "1"
    in_doubt(guarded)
    guarded.run(["systemctl", "restart", "nftguard"])
    assert rules(guarded) == before
    in_doubt(guarded)
    asker = begin(guarded)
    guarded.run(["systemctl", "restart", "nftguard"])
    assert rules(guarded) == before
    assert asker.communicate("y\n", timeout=20)
    assert asker.returncode == 1
    assert rules(guarded) == before
    guarded.run(["systemctl", "reload", "nftguard"])
    assert code(guarded) == 0
    assert "counter mail.output.tcp.26" in table(guarded)
    assert events(guarded) == [
        *("applied", "trial_begun"),
        *("renewal_refused", "applied"),  # killed
        *("kept", "renewal_refused", "applied"),  # restarted
        *("trial_begun", "trial_ended", "kept", "renewal_refused", "applied"),
        "applied",  # reloaded
    ]


@pytest.mark.parametrize("hard", [True, False], ids=["power cut", "reboot"])
def test_a_reboot_in_the_middle_brings_the_rules_before_the_trial(guarded: Machine, hard: bool) -> None:
    before = rules(guarded)
    begin(guarded)
    guarded.reboot(hard=hard, network=False)
    assert rules(guarded) == before
    in_doubt(guarded)
    # The boot unit left it at that, and so did not bring the system down to "degraded".
    assert shown(guarded, "nftguard-boot", "ActiveState") == "active"
    told = messages(guarded, "--boot", "--unit=nftguard-boot")
    assert [line for line in told if _DOUBT in line or "blocked on" in line] == [
        f"{_DOUBT}: the last good rules stay; `nftguard apply` takes it, or edit it"
    ]
    assert guarded.state == "running"
    if hard:  # and with nobody but the boot unit: between it and the service there is nothing else
        guarded.run(["systemctl", "stop", "nftguard", "nftguard-boot"])
        assert table(guarded) == ""
        guarded.run(["systemctl", "start", "nftguard-boot"])
        assert "counter mail.output.tcp.995" in table(guarded)
        assert "counter mail.output.tcp.26" not in table(guarded)
    else:
        guarded.write_file(CONFIG, _NEW.replace("26", "27"))
        guarded.reboot(network=False)
        assert "counter mail.output.tcp.27" in table(guarded), "it was edited: another configuration"
        assert code(guarded) == 0


def test_another_file_is_gone_with_the_power_and_stays_once_confirmed(guarded: Machine) -> None:
    before = rules(guarded)
    begin(guarded, _FILE)
    guarded.reboot(hard=True, network=False)
    assert rules(guarded) == before
    assert code(guarded) == 0
    asker = begin(guarded, _FILE)
    said, _ = asker.communicate("y\n", timeout=20)
    assert asker.returncode == 0, said
    guarded.reboot(hard=True, network=False)
    assert "counter mail.output.tcp.26" in table(guarded)
    assert code(guarded) == 0
    assert not [line for line in messages(guarded, "--boot", "--unit=nftguard-boot") if "blocked on" in line], "no need"
    assert "Traceback" not in "\n".join(messages(guarded))
