"""To be told of a new culprit: the path unit, the service that it starts, and the administrator's own program."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from tests.boot.machine import Machine

pytestmark = pytest.mark.once("debian12")

_ALERT = "/etc/nftguard.d/alert"
_TOLD = "/var/lib/nftguard-alert/told"
_CONNECT = """
import socket, sys
sock = socket.socket()
sock.setblocking(False)
sock.connect_ex((sys.argv[1], 25))
"""


@pytest.fixture
def watched(machine: Machine) -> Machine:
    """A machine on which the service runs and new culprits are watched for, with no program to tell yet."""
    machine.run(["systemctl", "enable", "--now", "nftguard", "nftguard-alert.path"])
    return machine


@pytest.fixture
def telling(watched: Machine) -> Machine:
    """The same, with a program that appends what it gets to a file."""
    watched.write_file(_ALERT, '#!/bin/sh\nexec cat >>"$STATE_DIRECTORY/told"\n', 0o755)
    drop_in = "/etc/systemd/system/nftguard-alert.service.d/test.conf"
    watched.write_file(drop_in, "[Service]\nStateDirectory=nftguard-alert\n")
    watched.run(["systemctl", "daemon-reload"])
    return watched


def attempt(machine: Machine, unit: str, host: str) -> None:
    """Make an attempt in a unit, and wait until it is recorded."""
    before = len(records(machine, "blocked"))
    run = ["systemd-run", "--quiet", "--wait", "--collect", f"--unit={unit}"]
    machine.run([*run, "python3", "-c", _CONNECT, host])
    wait_until(lambda: len(records(machine, "blocked")) > before, f"the record of {unit}", pause=0.1)


def records(machine: Machine, event: str) -> list[dict[str, Any]]:
    return machine.journal("_SYSTEMD_UNIT=nftguard.service", f"NFTGUARD_EVENT={event}")


def told(machine: Machine) -> list[list[dict[str, Any]]]:
    """The culprits of each call."""
    text = machine.run(["cat", _TOLD], check=False).stdout
    return [json.loads(line)["culprits"] for line in text.splitlines()]


def quiet(machine: Machine) -> None:
    """See that nothing is under way, and nothing has failed."""
    idle = ["systemctl", "show", "-P", "ActiveState", "nftguard-alert.service"]
    wait_until(lambda: machine.run(idle).stdout == "inactive\n", "the alert's end")
    assert machine.run(["systemctl", "show", "-P", "ActiveState", "nftguard-alert.path"]).stdout == "active\n"
    assert machine.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout == ""


def calls(machine: Machine) -> int:
    """How often the service was started."""
    message = "MESSAGE_ID=39f53479d3a045ac8e11786248231fbf"  # SD_MESSAGE_UNIT_STARTED
    return len(machine.journal(message, "UNIT=nftguard-alert.service"))


@pytest.mark.long
def test_a_new_culprit_is_told_once_with_the_fields_of_his_attempt(telling: Machine) -> None:
    """Who is new within the minute is told later: two are told together, and not forgotten over a restart."""
    attempt(telling, "first", "198.51.100.1")
    wait_until(lambda: told(telling), "the alert")
    [[culprit]] = told(telling)
    expected = {
        "unit": "first.service",
        "uid": 0,
        "hook": "output",
        "protocol": "tcp",
        "destination": "198.51.100.1",
        "port": 25,
        "known_by": "kernel",
    }
    assert {name: culprit[name] for name in expected} == expected
    before = telling.run(["stat", "-c", "%i %y", "/run/nftguard/alert.json"]).stdout

    attempt(telling, "first", "198.51.100.2")
    attempt(telling, "second", "198.51.100.3")
    attempt(telling, "third", "198.51.100.3")
    assert [record["NFTGUARD_UNIT"] for record in records(telling, "culprit")] == [
        f"{name}.service" for name in ("first", "second", "third")
    ]
    assert telling.run(["stat", "-c", "%i %y", "/run/nftguard/alert.json"]).stdout == before, "within the minute"

    wait_until(lambda: len(told(telling)) > 1, "the minute to end", timeout=90, pause=0.5)
    assert [found["unit"] for found in told(telling)[1]] == ["second.service", "third.service"]
    quiet(telling)
    assert len(told(telling)) == calls(telling) == 2


def test_a_restart_tells_nobody_twice_and_forgets_nobody_who_is_to_be_told(telling: Machine) -> None:
    attempt(telling, "first", "198.51.100.1")
    wait_until(lambda: told(telling), "the alert")
    attempt(telling, "second", "198.51.100.2")
    assert len(told(telling)) == 1, "the second is told at the end of the minute"
    quiet(telling)
    telling.run(["systemctl", "restart", "nftguard"])
    attempt(telling, "first", "198.51.100.1")
    attempt(telling, "second", "198.51.100.2")
    wait_until(lambda: len(told(telling)) > 1, "the second")
    quiet(telling)
    telling.run(["systemctl", "restart", "nftguard"])
    for name in ("first", "second"):
        attempt(telling, name, "198.51.100.3")
    quiet(telling)
    assert [[found["unit"] for found in call] for call in told(telling)] == [["first.service"], ["second.service"]]


def test_a_stop_and_a_start_of_the_service_tell_nothing(telling: Machine) -> None:
    """With its folder in /run goes the file; a new file after that is told as ever."""
    attempt(telling, "first", "198.51.100.1")
    wait_until(lambda: told(telling), "the alert")
    quiet(telling)
    telling.run(["systemctl", "stop", "nftguard"])
    quiet(telling)
    telling.run(["systemctl", "start", "nftguard"])
    attempt(telling, "second", "198.51.100.2")
    wait_until(lambda: len(told(telling)) > 1, "the second alert")
    quiet(telling)
    assert [[found["unit"] for found in call] for call in told(telling)] == [["first.service"], ["second.service"]]


def test_without_a_program_to_tell_nothing_fails(watched: Machine) -> None:
    attempt(watched, "first", "198.51.100.1")
    wait_until(lambda: watched.run(["ls", "/run/nftguard"]).stdout.count("alert.json"), "the alert's file")
    quiet(watched)
    watched.run(["systemctl", "stop", "nftguard"])
    quiet(watched)
    assert watched.run(["systemctl", "show", "-P", "ConditionResult", "nftguard-alert.service"]).stdout == "no\n"
