"""`nftguard explain`, as an administrator types it, against the rules that a kernel has."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nftguard.allow import Allowance
from nftguard.errors import UnavailableError
from nftguard.host import Host
from nftguard.model import Hook, Protocol
from nftguard.network import Network
from nftguard.plan import diff
from nftguard.policy import build
from nftguard.wire.route import toward
from tests.examples import config_of
from tests.groups import joining
from tests.netns import Namespace, connect

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from nftguard.kernel import Nftables

TEXT = """
[[block]]
name = "mail"
ports = [25, 587]
hooks = ["output", "forward"]
allow = { users = ["www-data", "4242"], units = ["relay.slice"], to = ["10.0.1.8/30"], interfaces = ["wg*"] }
[[block]]
name = "low"
ports = ["20-100"]
action = "reject"
allow = { users = ["www-data"] }
"""


@pytest.fixture
def far() -> Iterator[Namespace]:
    far = Namespace()
    yield far
    far.close()


@pytest.fixture
def guarded(netns: Namespace, kernel: Nftables, far: Namespace) -> Namespace:
    """A namespace with rules, and with eth0 to the world."""
    connect(netns, far, "eth0", 1)
    netns.run("ip", "route", "add", "default", "via", "10.0.1.2")
    netns.run("ip", "-6", "route", "add", "default", "via", "fd00:1::2")
    fill(kernel)
    return netns


def fill(kernel: Nftables, allowances: tuple[Allowance, ...] = (), **names: Any) -> None:
    host = Host(Network(frozenset({"eth0"}), frozenset({"docker0"})), users={"www-data": 33}, **names)
    kernel.apply(diff(kernel.snapshot(), build(config_of(TEXT), kernel.features, host, allowances)))


def explain(where: Namespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return where.run(sys.executable, "-m", "nftguard", "explain", *arguments, check=False)


def document(where: Namespace, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(explain(where, *arguments, "--json").stdout)
    return found


def test_a_blocked_packet_is_told_with_what_would_let_it_pass(guarded: Namespace) -> None:
    done = explain(guarded, "tcp", "203.0.113.7:587")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "blocked: tcp 203.0.113.7:587 would be dropped by block mail",
        "  block mail stops it: drop",
        "    in chain mail.output.tcp.blocked; counter mail.output.tcp.587, 0 packets so far",
        "  block mail would let it pass if it were",
        "    sent by user 33 (www-data) or 4242, in set mail.users",
        "note: it goes out by eth0, as the routes are now",
        "note: it comes from 10.0.1.1",
        "rules of other programs are not looked at",
    ]


def test_what_each_block_says_is_told_in_turn(guarded: Namespace) -> None:
    done = explain(guarded, "tcp", "[2001:db8::1]:25", "--user", "www-data")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:5] == [
        "passes: tcp [2001:db8::1]:25 from user www-data: 2 blocks name the port, and each makes an exception",
        "  block mail lets it pass: meta skuid @mail.users return",
        "    in chain mail.output.tcp; sent by user 33 (www-data), in set mail.users",
        "  block low lets it pass: meta skuid @low.users return",
        "    in chain low.output.tcp; sent by user 33 (www-data), in set low.users",
    ]
    done = explain(guarded, "tcp", "10.0.1.9:25", "--user", "4242")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:5] == [
        "blocked: tcp 10.0.1.9:25 from user 4242 would be rejected by block low",
        "  block mail lets it pass: ip daddr @mail.to4 return",
        "    in chain mail.output.tcp; going to 10.0.1.8/30, in set mail.to4",
        "  block low stops it: reject with tcp reset",
        "    in chain low.output.tcp.blocked; counter low.output.tcp.20-100, 0 packets so far",
    ]


def test_a_port_that_no_block_names_passes(guarded: Namespace) -> None:
    done = explain(guarded, "udp", "203.0.113.7:587", "--user", "0")
    assert done.returncode == 0
    assert done.stdout.startswith("passes: udp 203.0.113.7:587 from user root: no block names udp port 587 on output\n")


def test_an_ipv4_address_in_ipv6_is_judged_as_it_is_sent(guarded: Namespace) -> None:
    assert document(guarded, "tcp", "[::ffff:10.0.1.9]:587")["packet"]["destination"] == "10.0.1.9"


def test_forwarded_packets_are_judged_by_both_interfaces(guarded: Namespace) -> None:
    done = explain(guarded, "tcp", "203.0.113.7:25", "--in", "docker0", "--iface", "eth0")
    assert (done.returncode, done.stdout.split(" would")[0]) == (1, "blocked: tcp 203.0.113.7:25 on forward")
    assert explain(guarded, "tcp", "172.17.0.2:25", "--in", "eth0", "--iface", "docker0").returncode == 0
    found = document(guarded, "tcp", "172.17.0.2:25", "--in", "eth0")
    assert found["verdict"] == "blocked"
    assert ["uplinks", "inner"] in [[one["set"] for one in step["exceptions"]] for step in found["unless"]]


def test_an_allowance_is_told_with_the_time_that_it_has_left(guarded: Namespace, kernel: Nftables) -> None:
    fill(kernel, (Allowance(Hook.OUTPUT, Protocol.TCP, 587, "users", "4243", 3600),))
    done = explain(guarded, "tcp", "203.0.113.7:587", "--user", "4243")
    assert done.returncode == 0
    assert "sent by user 4243, in set allowed.output.users, for another 59 min" in done.stdout


def test_a_unit_is_found_by_its_control_group(guarded: Namespace, kernel: Nftables, base: Path) -> None:
    """The fixture's group is a slice below the root, as systemd makes them."""
    path, number = str(base.relative_to("/sys/fs/cgroup")), str(base.stat().st_ino)
    fill(kernel, units={"relay.slice": {number: path}})
    found = document(guarded, "tcp", "203.0.113.7:587", "--unit", base.name)
    assert (found["verdict"], found["packet"]["cgroups"]) == ("passes", [int(number)])
    assert found["asked"][0]["exceptions"] == [
        {"set": "mail.units", "elements": [number], "names": [f"/{base.name}"]}
    ]  # fmt: skip
    found = document(guarded, "tcp", "203.0.113.7:587", "--unit", "not-there.service")
    assert (found["verdict"], found["packet"]["cgroups"]) == ("blocked", [])
    assert "not-there.service runs nothing now, so that no exception holds for it" in found["notes"]
    done = guarded.run(*joining(base, "nft", "list", "set", "inet", "nftguard", "mail.units"))
    assert base.name in done.stdout, "the kernel knows it by the same name"


def test_what_is_known_is_told_to_machines(guarded: Namespace) -> None:
    found = document(guarded, "tcp", "203.0.113.7:587", "--user", "www-data", "--from", "198.51.100.1:1234")
    assert found["packet"] == {
        "hook": "output",
        "protocol": "tcp",
        "destination": "203.0.113.7",
        "port": 587,
        "source": "198.51.100.1",
        "opens": True,
        "uid": 33,
        "gid": 33,
        "cgroups": None,
        "in": None,
        "out": None,
    }
    assert found["notes"][-1].startswith("the kernel knows no way to 203.0.113.7 from 198.51.100.1: ")


def test_rules_of_another_program_in_the_table_make_it_unknown(guarded: Namespace) -> None:
    guarded.nft("insert rule inet nftguard mail.output.tcp ip ttl 1 accept")
    done = explain(guarded, "tcp", "203.0.113.7:587")
    assert done.returncode == 3
    assert "cannot be said: chain mail.output.tcp: a rule that nftguard did not write" in done.stdout
    assert explain(guarded, "tcp", "203.0.113.7:80").returncode == 1


def test_without_a_table_everything_passes(netns: Namespace) -> None:
    done = explain(netns, "tcp", "203.0.113.7:25")
    assert done.returncode == 0
    assert "nothing is blocked" in done.stdout
    assert "note: the kernel knows no way to 203.0.113.7: Network is unreachable" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("tcp", "203.0.113.7"), "not an address and a port"),
        (("tcp", "203.0.113.7:0"), "not an address and a port"),
        (("tcp", "203.0.113.7:65536"), "not an address and a port"),
        (("tcp", "300.0.113.7:25"), "not an address and a port"),
        (("tcp", "relay.example:25"), "not an address and a port"),
        (("tcp", "[fe80::1%eth0]:25"), "not an address and a port"),
        (("tcp", "203.0.113.7:25", "--user", "no-such-user"), "no user of this host"),
        (("tcp", "203.0.113.7:25", "--group", "no-such-group"), "no group of this host"),
        (("tcp", "203.0.113.7:25", "--user", "a b"), "no name of a user"),
        (("tcp", "203.0.113.7:25", "--unit", "ssh"), "did you mean 'ssh.service'?"),
        (("tcp", "203.0.113.7:25", "--from", "2001:db8::1"), "not of one IP version"),
        (("tcp", "203.0.113.7:25", "--from", "nowhere"), "not an address"),
        (("tcp", "203.0.113.7:25", "--in", "eth0", "--user", "root"), "only what this host sends"),
        (("tcp", "203.0.113.7:25", "--hook", "input", "--iface", "eth0"), "no --iface"),
        (("udp", "203.0.113.7:25", "--established"), "udp has no connections"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_way_out(arguments: tuple[str, ...], word: str) -> None:
    from click.testing import CliRunner

    from nftguard.cli_explain import explain

    done = CliRunner().invoke(explain, arguments)
    assert done.exit_code == 2
    assert word in done.output


def test_the_way_is_the_one_that_the_kernel_takes(guarded: Namespace) -> None:
    with guarded.entered():
        assert toward("203.0.113.7") == ("eth0", "10.0.1.1")
        assert toward("2001:db8::1") == ("eth0", "fd00:1::1")
        assert toward("127.0.0.1") == ("lo", "127.0.0.1")
        assert toward("::1", uid=33) == ("lo", "::1")
        guarded.run("ip", "rule", "add", "uidrange", "33-33", "prohibit")
        assert toward("203.0.113.7", uid=34) == ("eth0", "10.0.1.1")
        with pytest.raises(UnavailableError, match="Permission denied"):
            toward("203.0.113.7", uid=33)
        with pytest.raises(UnavailableError, match="out by absent0"):
            toward("203.0.113.7", outbound="absent0")
        guarded.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
        assert toward("203.0.113.7", "10.0.1.9", inbound="eth0").interface == "eth0"
