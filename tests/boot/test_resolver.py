"""The resolver as systemd runs it: started by what is wanted, without any privilege, heard by the daemon's user."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nftguard.resolver.entries import Entry, encode
from tests.boot.units import check_unprivileged, shown
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from tests.boot.machine import Machine

pytestmark = pytest.mark.once("debian12")

_NAMES, _ANSWERS = "/run/nftguard/names", "/run/nftguard-resolver/answers.json"
_RELAY = "smtp.relay.example"
_ZONE = json.dumps({_RELAY: {"A": ["198.51.100.7"], "AAAA": ["2001:db8::7"]}})


@pytest.fixture
def resolving(machine: Machine) -> Machine:
    """A machine with a name server at the peer, on which names are waited for, and no daemon that would name others."""
    server = machine.start_peer([sys.executable, "-m", "tests.nameserver", _ZONE, "192.0.2.1", "2001:db8::1"])
    assert server.stdout
    assert server.stdout.readline() == "serving\n"
    machine.run(["rm", "--force", "/etc/resolv.conf"])  # a link, on some
    machine.write_file("/etc/resolv.conf", "nameserver 2001:db8::1\nnameserver 192.0.2.1\n")
    machine.run(["systemctl", "start", "nftguard-resolver.path"])
    return machine


def want(machine: Machine, *names: str) -> None:
    machine.write_file(f"{_NAMES}.part", encode(dict.fromkeys(names, Entry())))
    machine.run(["mv", f"{_NAMES}.part", _NAMES])


def answers(machine: Machine) -> dict[str, Any]:
    """What the daemon's user can read."""
    text = machine.run(["setpriv", "--reuid=nftguard", "--clear-groups", "cat", _ANSWERS], check=False).stdout
    return dict(json.loads(text or "{}"))


def wait_for(machine: Machine, state: str) -> None:
    wait_until(lambda: shown(machine, "nftguard-resolver.service", "ActiveState") == state, state, pause=0.1)


def test_it_runs_while_names_are_wanted_and_without_any_privilege(resolving: Machine) -> None:
    assert shown(resolving, "nftguard-resolver.service", "ActiveState") == "inactive"
    want(resolving, _RELAY, "localhost", "missing.example")
    wait_until(lambda: len(answers(resolving)) == 3, "the answers", pause=0.1)
    found = answers(resolving)
    assert set(found[_RELAY]["addresses"]) == {"198.51.100.7", "2001:db8::7"}
    assert set(found["localhost"]["addresses"]) == {"127.0.0.1", "::1"}
    assert found["missing.example"]["error"] == "there is no such name"

    check_unprivileged(resolving, "nftguard-resolver.service")

    resolving.run(["rm", _NAMES])
    wait_for(resolving, "inactive")
    assert answers(resolving) == {}
    want(resolving, "localhost")
    wait_until(lambda: "localhost" in answers(resolving), "the next process", pause=0.1)
    assert resolving.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout == ""


def test_it_is_started_again_when_it_dies(resolving: Machine) -> None:
    want(resolving, "localhost")
    wait_until(lambda: answers(resolving), "the answers", pause=0.1)
    resolving.run(["systemctl", "kill", "--signal=KILL", "nftguard-resolver.service"])
    wait_until(lambda: not answers(resolving), "the end of it", pause=0.1)
    wait_until(lambda: answers(resolving), "the next process", timeout=30, pause=0.2)
    assert shown(resolving, "nftguard-resolver.path", "ActiveState") == "active"
