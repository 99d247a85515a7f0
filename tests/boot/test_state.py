"""Broken files: the configuration and the state directory. Never less protection than before, and it is told."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from tests.boot.machine import Machine
from tests.boot.test_boot import CONFIG, code, messages, shape
from tests.boot.test_service import drop_in, events, status, table
from tests.boot.units import shown
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.boot.image import Image

pytestmark = pytest.mark.once("debian13")

_STATE = "/var/lib/nftguard"
_LAST = f"{_STATE}/last.nft"
_SPARE = "/root/last.nft"
_OWNER = r"\tflags .*\n\n?| # progname \S+"
_GOOD = '[[block]]\nname = "mail"\nports = ["@mail"]\n'

_BROKEN = {  # to what breaks the file, and what is said about it
    "a syntax error": ("printf '[[block]\\n' >$F", "is not valid TOML"),
    "an unknown key": ("printf '[[blok]]\\n' >$F", "unknown key; did you mean 'block'?"),
    "a file for root alone": ("chmod 600 $F && chown root:root $F", "cannot be read: Permission denied"),
    "an empty file": (": >$F", "nothing is blocked"),
    "no file": ("rm $F", "cannot be read: No such file or directory"),
    "a folder": ("rm $F && mkdir $F", "cannot be read: Is a directory"),
    "bytes that are no text": ("printf '\\377\\000\\200\\001' >$F", "is not UTF-8 text"),
    "10 MB": ("head -c 10000000 /dev/zero | tr '\\0' '#' >$F", "is larger than 1 MiB"),
}
_DAMAGED = {  # to what damages the state, and why it cannot be written then
    "full": (
        f"mount -t tmpfs -o size=16k tmpfs {_STATE}; cat /dev/zero >{_STATE}/fill || :",
        "No space left on device",
    ),
    "read-only": (
        f"mount --bind {_STATE} {_STATE} && mount -o remount,ro,bind {_STATE}",
        "Read-only file system",
    ),
    "random bytes": (f"head -c 3000 /dev/urandom >{_LAST}", ""),
    "cut in a line": (f"truncate -s 1000 {_LAST}", ""),
    "cut after a line": (f"sed -i '/^add rule/,$d; /^create rule/,$d' {_LAST}", ""),
    "missing": (f"rm -r {_STATE}", ""),
    "root's": (f"chown -R root:root {_STATE} && chmod 700 {_STATE} && chmod 600 {_LAST}", ""),
}


@pytest.fixture(scope="module")
def running(image: Image) -> Iterator[Machine]:
    """One machine with the service enabled, for the whole module: each test mends what it broke."""
    with Machine(image) as machine:
        machine.write_file(CONFIG, _GOOD)
        machine.run(["systemctl", "enable", "--now", "nftguard"])
        machine.run(["cp", "--preserve", _LAST, _SPARE])
        yield machine


@pytest.fixture
def guarded(running: Machine) -> Iterator[Machine]:
    """Give the machine with everything in order, and mend its configuration afterwards."""
    yield running
    running.run(["rm", "-rf", CONFIG])
    running.write_file(CONFIG, _GOOD)
    running.run(["systemctl", "reload", "nftguard"])


def now(machine: Machine) -> str:
    """Give the option for what the journal has from here on."""
    machine.run(["journalctl", "--sync"])
    last = machine.run(["journalctl", "--lines=0", "--show-cursor"]).stdout
    return f"--after-cursor={last.rpartition('-- cursor: ')[2].strip()}"


@pytest.mark.parametrize("broken", _BROKEN)
def test_a_broken_configuration_changes_no_rule_and_is_told_once(guarded: Machine, broken: str) -> None:
    """On a reload, and at the boot that follows."""
    script, said = _BROKEN[broken]
    before = shape(guarded)
    assert "counter mail.output.tcp.25" in before
    guarded.run(["sh", "-ec", script.replace("$F", CONFIG)])
    since = now(guarded)
    assert guarded.run(["systemctl", "reload", "nftguard"], check=False).returncode != 0
    assert shape(guarded) == before, "on reload"
    on_reload = told(guarded, since)

    guarded.reboot(network=False)
    assert shape(guarded) == before, "at boot"
    assert shown(guarded, "nftguard", "ActiveState") == "active"
    assert shown(guarded, "nftguard-boot", "ActiveState") == "failed"
    assert "DEGRADED" in shown(guarded, "nftguard", "StatusText")
    at_boot = told(guarded, "--boot")
    assert "Traceback" not in "\n".join(messages(guarded))
    assert [said in line for line in at_boot] == [True], at_boot
    assert [said in line for line in on_reload] == [True], on_reload


def told(machine: Machine, since: str) -> list[str]:
    """Give the lines that name the configuration, as `journalctl -u nftguard` has them."""
    return [line for line in messages(machine, since, "--unit=nftguard") if CONFIG in line]


def test_status_is_degraded_where_only_the_service_cannot_read_the_file(guarded: Machine) -> None:
    """Root, who asks, can read it: then the service's own word must count."""
    guarded.run(["sh", "-ec", _BROKEN["a file for root alone"][0].replace("$F", CONFIG)])
    guarded.run(["systemctl", "reload", "nftguard"], check=False)
    assert "DEGRADED" in shown(guarded, "nftguard", "StatusText")
    found = status(guarded)
    assert (found["state"], code(guarded)) == ("degraded", 1)
    assert "Permission denied" in " ".join(found["reasons"])


def damage_the_state(machine: Machine, damage: str) -> str:
    """Lift the rules, and damage what was saved; give the table as it was."""
    before = shape(machine)
    assert "counter mail.output.tcp.25" in before
    machine.run(["systemctl", "stop", "nftguard", "nftguard-boot"])
    assert table(machine) == ""
    machine.run(["cmp", _LAST, _SPARE])
    machine.run(["sh", "-ec", _DAMAGED[damage][0]])
    return before


@pytest.fixture
def mended(running: Machine) -> Iterator[Machine]:
    """Give the machine with everything in order, and mend the state directory afterwards."""
    yield running
    running.run(["umount", _STATE], check=False)
    running.run(["sh", "-ec", f"mkdir -p {_STATE}; cp --preserve {_SPARE} {_LAST}; chown nftguard: {_STATE}"])
    running.run(["systemctl", "restart", "nftguard"])


@pytest.mark.parametrize("damage", _DAMAGED)
def test_a_damaged_state_directory_takes_no_protection_away(mended: Machine, damage: str) -> None:
    since = now(mended)
    before = damage_the_state(mended, damage)
    for verb in ("start", "restart", "reload"):
        mended.run(["systemctl", verb, "nftguard"])
        assert shape(mended) == before, verb
    assert code(mended) == 0
    lost = _DAMAGED[damage][1]
    found = [record for record in mended.journal(since) if record.get("NFTGUARD_EVENT") == "state_unwritable"]
    # Once by each of the two processes.
    assert [(record["NFTGUARD_PATH"], record["NFTGUARD_REASON"]) for record in found] == [(_LAST, lost)] * 2 * bool(
        lost
    )
    assert len({record["_PID"] for record in found}) == len(found)
    assert "Traceback" not in "\n".join(messages(mended, since))


@pytest.mark.parametrize("damage", _DAMAGED)
def test_the_boot_unit_protects_by_itself_whatever_the_state_is(mended: Machine, damage: str) -> None:
    """Between network-pre.target and the service there is nothing but what this unit did."""
    since = now(mended)
    before = damage_the_state(mended, damage)
    mended.run(["systemctl", "reset-failed", "nftguard-boot"])  # the tests may start it more often than systemd lets
    mended.run(["systemctl", "start", "nftguard-boot"])
    # Who owns the table is the service's business.
    assert re.sub(_OWNER, "", shape(mended)) == re.sub(_OWNER, "", before)
    assert "Traceback" not in "\n".join(messages(mended, since))


def test_a_typical_life_reads_well_in_the_journal(machine: Machine) -> None:
    machine.run(["systemctl", "enable", "--now", "nftguard"])
    machine.write_file(CONFIG, _GOOD)
    machine.run(["systemctl", "reload", "nftguard"])
    machine.write_file(CONFIG, "[[blok]]\n")
    assert machine.run(["systemctl", "reload", "nftguard"], check=False).returncode != 0
    machine.write_file(CONFIG, _GOOD)
    drop_in(machine, "[service]\nownership = 'off'")
    machine.run(["systemctl", "reload", "nftguard"])
    machine.run(["nft", "flush", "ruleset"])
    wait_until(lambda: "repaired" in events(machine), "the repair")
    assert status(machine)["state"] == "protected"
    machine.run(["systemctl", "restart", "nftguard"])
    machine.run(["systemctl", "stop", "nftguard"])
    wait_until(lambda: "removed" in events(machine), "the last word")

    assert events(machine) == [
        "applied",  # started
        "applied",  # reloaded
        *("config_refused", "renewal_refused"),
        "applied",  # reloaded, ownership off
        "repaired",
        *("kept", "applied"),  # restarted
        "removed",
    ]
    records = machine.journal("--unit=nftguard")
    ours = [(record["MESSAGE"], record["_PID"]) for record in records if "NFTGUARD_EVENT" in record]
    assert len(set(ours)) == len(ours), "none twice"
    assert "Traceback" not in "\n".join(messages(machine))

    errors = [record for record in records if int(record["PRIORITY"]) <= 3]
    with contextlib.suppress(IndexError):  # systemd's own, of the refused reload
        if str(errors[-1]["MESSAGE"]).startswith("Reload failed for"):
            errors.pop()
    assert [record.get("NFTGUARD_EVENT") for record in errors] == ["config_refused", "renewal_refused"]
    systemds = [str(record["MESSAGE"]) for record in records if record["_PID"] == "1" and int(record["PRIORITY"]) <= 4]
    assert [line for line in systemds if "Reload failed" not in line and "Control process exited" not in line] == []


def test_no_sentence_of_a_typical_life_stands_in_the_journal_twice(guarded: Machine) -> None:
    """The daemon records what a reload did; `nftguard apply`, which is the reload, need not repeat it there."""
    since = now(guarded)
    guarded.run(["systemctl", "reload", "nftguard"])
    ours = [record for record in guarded.journal(since, "--unit=nftguard") if record["_PID"] != "1"]
    assert [record.get("NFTGUARD_EVENT") for record in ours] == ["applied"], [record["MESSAGE"] for record in ours]
