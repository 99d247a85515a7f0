"""Names in exceptions on a booted system: a user who is made later, a host whose address moves, with real packets."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.boot.test_service import events, status, table
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from tests.boot.machine import Machine

pytestmark = pytest.mark.once("debian12")

CONFIG = """
[[block]]
name = "mail"
ports = [25]
allow = { users = ["latecomer"], to = ["relay.example"] }
"""
# Takes connections to port 25 on both ends of the peer, and says so.
_SERVER = """
import socket
server = socket.create_server(("", 25), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True: server.accept()[0].close()
"""
FOUR, SIX = "192.0.2.1", "2001:db8::1"


def connects(machine: Machine, host: str, *before: str) -> bool:
    done = machine.run([*before, "timeout", "0.3", "bash", "-c", f"</dev/tcp/{host}/25"], check=False)
    return done.returncode == 0


def test_a_user_who_is_made_later_and_a_host_that_moves(machine: Machine) -> None:
    server = machine.start_peer([sys.executable, "-c", _SERVER])
    assert server.stdout
    assert server.stdout.readline() == "ready\n"
    machine.write_file("/etc/nftguard.toml", CONFIG)
    checked = machine.run(["nftguard", "check"])
    assert "allows the user latecomer, which is not in /etc/passwd" in checked.stderr
    machine.run(["systemctl", "enable", "--now", "nftguard"])
    assert not any(connects(machine, host) for host in (FOUR, SIX))
    assert "not_allowed" in events(machine)
    warnings = "\n".join(status(machine)["warnings"])
    assert "user latecomer" in warnings
    assert "relay.example" in warnings

    # As useradd(8) does it, which not every base system has.
    line = "latecomer:x:4242:4242::/:/bin/sh"
    machine.run(
        ["sh", "-ec", f"cp -p /etc/passwd /etc/passwd+; echo {line} >>/etc/passwd+; mv /etc/passwd+ /etc/passwd"]
    )
    wait_until(lambda: connects(machine, FOUR, "setpriv", "--reuid=latecomer", "--clear-groups"), "the user", pause=0.1)
    assert connects(machine, SIX, "setpriv", "--reuid=latecomer", "--clear-groups")
    assert not connects(machine, FOUR), "root is somebody else"

    hosts = machine.run(["cat", "/etc/hosts"]).stdout
    machine.write_file("/etc/hosts", f"{hosts}\n{FOUR} relay.example\n")
    wait_until(lambda: connects(machine, FOUR), "the host's address", timeout=30, pause=0.2)
    assert not connects(machine, SIX)
    machine.write_file("/etc/hosts", f"{hosts}\n{FOUR} relay.example\n{SIX} relay.example\n")
    wait_until(lambda: connects(machine, SIX), "its other address", timeout=30, pause=0.2)

    # For a while, too: the daemon of systemd 252 does not know a container's boot by the name that everybody else does.
    machine.run(["nftguard", "allow", "25", "--user", "nobody", "--for", "2m"])
    assert (status(machine)["state"], len(status(machine)["allowed"])) == ("protected", 1)
    machine.run(["nftguard", "status"])
    machine.run(["nftguard", "deny", "25"])
    assert status(machine)["allowed"] == []

    # What is known holds over a restart, a resolver that is dead, and a reboot.
    machine.run(["systemctl", "stop", "nftguard-resolver.path", "nftguard-resolver.service"])
    machine.run(["systemctl", "restart", "nftguard"])
    wait_until(lambda: connects(machine, FOUR) and connects(machine, SIX), "the last good answer", pause=0.1)
    assert {"repaired", "fought"}.isdisjoint(events(machine))
    assert json.loads(machine.run(["nftguard", "verify", "--json"], check=False).stdout)["checks"]

    machine.write_file("/etc/nftguard.toml", '[[block]]\nname = "mail"\nports = [25]\n')
    machine.run(["systemctl", "reload", "nftguard"])
    assert not connects(machine, FOUR)
    assert "relay" not in table(machine)
    state = ["systemctl", "is-active", "nftguard-resolver.service"]
    wait_until(lambda: machine.run(state, check=False).stdout == "inactive\n", "the end of the resolver", pause=0.2)
