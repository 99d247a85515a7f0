"""Beside other firewalls: neither disturbs the other, in whatever order they start."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.boot.machine import Machine
from tests.boot.test_service import events, status
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.boot.image import Image

pytestmark = pytest.mark.once("debian12")

_WITHIN = 3.0  # seconds

# Which connections to the peer get an answer (that nobody listens) within 0.3 s.
_ANSWERED = """
import json, select, socket, time
peers = (4, socket.AF_INET, "192.0.2.1"), (6, socket.AF_INET6, "2001:db8::1")
ways = {f"{ip}/{port}": (socket.socket(family), (peer, port)) for ip, family, peer in peers for port in (25, 26)}
for sock, address in ways.values():
    sock.setblocking(False)
    sock.connect_ex(address)
time.sleep(0.3)
print(json.dumps(sorted(way for way, (sock, _) in ways.items() if select.select([], [sock], [], 0)[1])))
"""

# The rules that Docker 20 to 28 makes with iptables-nft, as far as a container with one published port needs them.
_DOCKER = """\
[Unit]
After=network.target nftables.service firewalld.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec '\\
    iptables-nft -t nat -N DOCKER; \\
    iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER; \\
    iptables-nft -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER; \\
    iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE; \\
    iptables-nft -t nat -A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80; \\
    iptables-nft -P FORWARD DROP; \\
    iptables-nft -N DOCKER; \\
    iptables-nft -N DOCKER-USER; \\
    iptables-nft -A DOCKER-USER -j RETURN; \\
    iptables-nft -A FORWARD -j DOCKER-USER; \\
    iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \\
    iptables-nft -A FORWARD -o docker0 -j DOCKER; \\
    iptables-nft -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT'
ExecStop=/bin/sh -ec '\\
    iptables-nft -P FORWARD ACCEPT; iptables-nft -F; iptables-nft -X; iptables-nft -t nat -F; iptables-nft -t nat -X'

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another firewall."""

    unit: str
    package: str = ""
    setup: str = ""
    """What makes it one, after its installation."""
    signs: tuple[str, ...] = ()
    """What is to be found among all rules, nft's and iptables', while it is up."""

    def __str__(self) -> str:
        return self.unit


_NEIGHBOURS = (
    Neighbour("nftables", signs=("table inet filter", "hook forward priority filter; policy accept;")),
    Neighbour("firewalld", "firewalld", signs=("table inet firewalld", "chain filter_INPUT")),
    Neighbour(
        "ufw",
        "ufw",
        # Its user would open the very port that we block.
        setup="ufw allow out 25/tcp >/dev/null; ufw --force enable >/dev/null; systemctl stop ufw",
        signs=("chain ufw-before-output", "-A ufw-user-output -p tcp -m tcp --dport 25 -j ACCEPT", "-P INPUT DROP"),
    ),
    Neighbour(
        "docker",
        setup=f"cat >/etc/systemd/system/docker.service <<'end'\n{_DOCKER}end\nsystemctl daemon-reload",
        signs=(
            "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            "-A FORWARD -j DOCKER-USER",
            "--to-destination 172.17.0.2:80",
        ),
    ),
)


@pytest.fixture(scope="module", params=_NEIGHBOURS, ids=str)
def neighbour(request: pytest.FixtureRequest) -> Neighbour:
    """Another firewall."""
    found: Neighbour = request.param
    return found


@pytest.fixture(scope="module")
def street(neighbour: Neighbour, image: Image) -> Iterator[Machine]:
    """A machine with the neighbour installed."""
    with Machine(image) as machine:
        if neighbour.package:
            machine.run(["apt-get", "--yes", "install", neighbour.package], timeout=100)
        machine.run(["sh", "-ec", neighbour.setup or ":"])
        yield machine


def check_both(machine: Machine, neighbour: Neighbour) -> None:
    """See that both are in force, and that packets are dropped that we block, and no others."""
    wait_until(lambda: status(machine)["state"] == "protected", "protection", timeout=_WITHIN)
    assert machine.run(["systemctl", "is-active", neighbour.unit, "nftguard"]).stdout == "active\nactive\n"
    check_the_neighbour(machine, neighbour)
    assert answered(machine) == ["4/26", "6/26"]


def answered(machine: Machine) -> list[str]:
    found: list[str] = json.loads(machine.run(["python3", "-c", _ANSWERED]).stdout)
    return found


def check_the_neighbour(machine: Machine, neighbour: Neighbour) -> None:
    rules = machine.run(["sh", "-c", "nft list ruleset; iptables-nft-save 2>/dev/null; iptables-nft -S"]).stdout
    assert [sign for sign in neighbour.signs if sign not in rules] == [], rules


def test_both_are_in_force_when_the_neighbour_starts_first(street: Machine, neighbour: Neighbour) -> None:
    street.run(["systemctl", "stop", "nftguard", neighbour.unit])
    street.run(["systemctl", "start", neighbour.unit])
    street.run(["systemctl", "start", "nftguard"])
    check_both(street, neighbour)


def test_the_neighbours_rules_stay_when_ours_are_lifted(street: Machine, neighbour: Neighbour) -> None:
    street.run(["systemctl", "start", neighbour.unit, "nftguard"])
    street.run(["systemctl", "stop", "nftguard"])
    assert "table inet nftguard" not in street.run(["nft", "list", "tables"]).stdout
    check_the_neighbour(street, neighbour)
    assert answered(street) == ["4/25", "4/26", "6/25", "6/26"], "else the other tests would prove nothing"


def test_both_are_in_force_when_nftguard_starts_first_and_when_the_neighbour_is_restarted(
    street: Machine, neighbour: Neighbour
) -> None:
    street.run(["systemctl", "stop", "nftguard", neighbour.unit])
    street.run(["systemctl", "start", "nftguard"])
    street.run(["systemctl", "start", neighbour.unit])
    check_both(street, neighbour)
    street.run(["systemctl", "restart", neighbour.unit])
    check_both(street, neighbour)


def test_both_are_in_force_after_a_boot(street: Machine, neighbour: Neighbour) -> None:
    street.run(["systemctl", "enable", neighbour.unit, "nftguard"])
    street.reboot()
    assert street.state == "running"
    assert events(street, "--boot") == ["applied"]
    check_both(street, neighbour)
