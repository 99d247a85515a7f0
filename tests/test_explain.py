"""`nftguard explain`, as an administrator types it, against the rules that a kernel has."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest

from nftguard.allow import Allowance
from nftguard.errors import UnavailableError
from nftguard.explanation import render
from nftguard.host import Host
from nftguard.model import Hook, Protocol
from nftguard.network import Network
from nftguard.packet import Packet
from nftguard.plan import diff
from nftguard.policy import build
from nftguard.trace import walk
from nftguard.wire.route import toward
from nftguard.wording import endpoint
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
        "  it would get past block mail if it were",
        "    sent by user 33 (www-data) or 4242, in set mail.users",
        "note: it goes out by eth0, as the routes are now",
        "note: it comes from 10.0.1.1",
        "rules of other programs are not looked at",
    ]


def test_what_each_block_says_is_told_in_turn(guarded: Namespace) -> None:
    done = explain(guarded, "tcp", "[2001:db8::1]:25", "--user", "www-data")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:5] == [
        "passes: tcp [2001:db8::1]:25 from user www-data: 2 blocks name the port, and each lets it pass",
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


def test_a_port_may_have_the_name_of_a_service(guarded: Namespace) -> None:
    assert document(guarded, "tcp", "203.0.113.7:smtp")["packet"]["port"] == 25
    assert document(guarded, "tcp", "[2001:db8::1]:smtp", "--from", "[2001:db8::2]:smtp")["packet"]["port"] == 25


def test_a_packet_of_an_open_connection_is_called_so(guarded: Namespace) -> None:
    done = explain(guarded, "tcp", "203.0.113.7:25", "--user", "4242", "--established")
    assert done.stdout.startswith(
        "blocked: tcp 203.0.113.7:25 from user 4242 of an open connection would be rejected by"
    )


def test_exceptions_that_stand_for_nothing_now_are_noted(guarded: Namespace, tmp_path: Path, folders: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text(
        '[[block]]\nname = "mail"\nports = [587]\n[block.allow]\nusers = ["www-data", "postfx"]\ngroups = ["4711"]\n'
        'units = ["postfx.service"]\nto = ["smtp.example.com", "10.0.1.8"]\nfrom = ["smtp.example.com"]\n'
    )
    (folders / "state/names.json").write_text("{}")

    def notes(*arguments: str) -> list[str]:
        found = guarded.run(
            *(sys.executable, "-m", "nftguard", "--config", str(config), "explain", "tcp", "203.0.113.7:587"),
            *(*arguments, "--json"),
            check=False,
        )
        every: list[str] = json.loads(found.stdout)["notes"]
        return [note for note in every if note.startswith("block ")]

    assert [note.split(", ") for note in notes()] == [
        [
            "block mail also allows postfx.service (not running)",
            "postfx (no user in /etc/passwd)",
            "smtp.example.com (no address)",
        ]
    ]
    assert notes("--user", "1", "--unit", "x.service") == ["block mail also allows smtp.example.com (no address)"]
    assert notes("--user", "33") == [], "it passes"
    config.write_text("what")
    assert notes() == [], "what the kernel has is explained without a configuration"


def test_long_lines_are_wrapped_on_a_terminal(guarded: Namespace) -> None:
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 60))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "dumb"}
    arguments = (sys.executable, "-m", "nftguard", "explain", "tcp", "203.0.113.7:587")
    with guarded.popen(*arguments, stdout=slave, env=environment) as process:
        process.wait(30)
    os.close(slave)
    data = b""
    with contextlib.suppress(OSError):  # nobody holds the other end any more
        while part := os.read(master, 1 << 16):
            data += part
    os.close(master)
    lines = data.decode().splitlines()
    assert "  block mail stops it: drop" in lines
    at = lines.index("    in chain mail.output.tcp.blocked; counter")
    assert lines[at + 1] == "        mail.output.tcp.587, 0 packets so far"
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == " ".join(explain(guarded, "tcp", "203.0.113.7:587").stdout.split())


def test_an_ipv4_address_in_ipv6_is_judged_as_it_is_sent(guarded: Namespace) -> None:
    assert document(guarded, "tcp", "[::ffff:10.0.1.9]:587")["packet"]["destination"] == "10.0.1.9"


def test_forwarded_packets_are_judged_by_both_interfaces(guarded: Namespace) -> None:
    done = explain(guarded, "tcp", "203.0.113.7:25", "--in", "docker0", "--iface", "eth0")
    assert (done.returncode, done.stdout.split(" would")[0]) == (1, "blocked: tcp 203.0.113.7:25 on forward")
    done = explain(guarded, "tcp", "172.17.0.2:25", "--in", "eth0", "--iface", "docker0")
    assert done.returncode == 0
    inward = "it comes in by an uplink, for an inner interface"
    assert done.stdout.splitlines()[:2] == [
        f"passes: tcp 172.17.0.2:25 on forward: {inward}",
        f"  block mail lets it pass, since {inward}: iifname @uplinks oifname @inner return",
    ]
    assert "note: this host has no interface docker0" in done.stdout


@pytest.mark.parametrize(
    ("own", "guest", "foreign"),
    [("10.0.17.1", "10.0.17.2", "203.0.113.7"), ("fd00:17::1", "fd00:17::2", "2001:db8::7")],
)
def test_the_way_of_what_is_forwarded_is_looked_up_by_its_destination_alone(
    guarded: Namespace, far: Namespace, own: str, guest: str, foreign: str
) -> None:
    connect(guarded, far, "docker0", 17)
    found = document(guarded, "tcp", endpoint(guest, 25), "--in", "eth0")
    assert (found["verdict"], found["packet"]["out"], found["packet"]["source"]) == ("passes", "docker0", None)
    assert found["notes"] == ["it goes out by docker0, as the routes to that address are now"]
    found = document(guarded, "tcp", endpoint(foreign, 25), "--in", "docker0")
    assert (found["verdict"], found["packet"]["out"]) == ("blocked", "eth0")
    done = explain(guarded, "tcp", endpoint(own, 25), "--in", "eth0")
    assert done.returncode == 2
    assert f"{own} is this host's own: what comes for it is met on input" in done.stderr
    guarded.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    found = document(guarded, "tcp", endpoint(guest, 25), "--in", "eth0", "--from", foreign)
    assert (found["verdict"], found["notes"]) == ("passes", ["it goes out by docker0, as the routes are now"])


def test_without_the_way_out_it_is_not_said_that_a_forwarded_packet_is_blocked(guarded: Namespace) -> None:
    guarded.run("ip", "route", "del", "default")
    done = explain(guarded, "tcp", "172.17.0.2:25", "--in", "eth0")
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "unknown: what becomes of tcp 172.17.0.2:25 on forward cannot be said: the way out is not known without --from "
        "or --iface"
    )
    assert "    coming in by eth0, in set uplinks and going out by docker0, in set inner" in lines
    assert not any(line.startswith("  block mail") for line in lines), "it neither stops it nor lets it pass"
    assert explain(guarded, "tcp", "172.17.0.2:25", "--in", "eth0", "--iface", "eth0").returncode == 1
    assert explain(guarded, "tcp", "172.17.0.2:99", "--in", "eth0").returncode == 0, "no block there names the port"


def test_an_interface_that_is_not_there_is_noted(guarded: Namespace) -> None:
    note = "this host has no interface nosuch0"
    assert note in document(guarded, "tcp", "203.0.113.7:25", "--in", "nosuch0")["notes"]
    assert note in document(guarded, "tcp", "203.0.113.7:25", "--iface", "nosuch0")["notes"]
    assert note in document(guarded, "tcp", "203.0.113.7:25", "--iface", "nosuch0", "--from", "10.0.1.1")["notes"]


def test_an_allowance_is_told_with_the_time_that_it_has_left(guarded: Namespace, kernel: Nftables) -> None:
    fill(kernel, (Allowance(Hook.OUTPUT, Protocol.TCP, 587, "users", "4243", 3600),))
    done = explain(guarded, "tcp", "203.0.113.7:587", "--user", "4243")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    left = r"nftguard allow lets it pass, for another 59 min [0-9]{1,2} s"
    assert re.fullmatch(rf"passes: tcp 203\.0\.113\.7:587 from user 4243: {left}", lines[0])
    assert re.match(rf"  {left}: meta l4proto", lines[1])
    assert "sent by user 4243, in set allowed.output.users" in lines[2]
    assert "block" not in "".join(lines[:3]), "no block makes that exception"


@pytest.mark.parametrize(
    ("text", "known", "told"),
    [
        ('connections = "new"', {"opens": False}, "block b stops only what opens a connection"),
        ('allow = { users = ["4"] }', {"uid": 4}, "block b names the port, and makes an exception"),
        ("", {"uid": 4}, "nftguard allow lets it pass, for another 3 h"),
    ],
)
def test_what_lets_it_pass_is_told_first(text: str, known: dict[str, Any], told: str) -> None:
    given = () if text else (Allowance(Hook.OUTPUT, Protocol.TCP, 25, "users", "4", 3 * 3600 + 59),)
    table = build(config_of(f'[[block]]\nname = "b"\nports = [25]\n{text}'), allowances=given)
    packet = Packet(Hook.OUTPUT, Protocol.TCP, "203.0.113.7", 25, **known)
    first = render(walk(table, packet), packet, table, lambda _key, _part: "", [])[0]
    assert first.endswith(f": {told}")


def test_between_ports_of_a_bridge_the_way_out_has_to_be_told(netns: Namespace, kernel: Nftables) -> None:
    host = Host(Network(outer_ports=frozenset({"port0"}), inner_ports=frozenset({"tap0"})))
    wanted = build(config_of('[[block]]\nname = "b"\nports = [25]\nhooks = ["bridge"]'), kernel.features, host)
    kernel.apply(diff(kernel.snapshot(), wanted))
    asked = ("tcp", "203.0.113.7:25", "--hook", "bridge", "--in")
    done = explain(netns, *asked, "port0")
    assert (done.returncode, "not known without --iface\n" in done.stdout) == (3, True)
    assert explain(netns, *asked, "port0", "--iface", "tap0").returncode == 0
    assert explain(netns, *asked, "tap0").returncode == 1, "it came in by no port that is hardware"


def test_a_unit_is_found_by_its_control_group(guarded: Namespace, kernel: Nftables, base: Path) -> None:
    """The fixture's group is a slice below the root, as systemd makes them."""
    path, number = str(base.relative_to("/sys/fs/cgroup")), str(base.stat().st_ino)
    fill(kernel, units={"relay.slice": {number: path}})
    found = document(guarded, "tcp", "203.0.113.7:587", "--unit", base.name)
    assert (found["verdict"], found["packet"]["cgroups"]) == ("passes", [int(number)])
    assert found["asked"][0]["exceptions"] == [
        {"set": "mail.units", "elements": [number], "names": [base.name]}
    ]  # fmt: skip
    done = explain(guarded, "tcp", "203.0.113.7:587")
    assert done.stdout.count(f"    sent by {base.name}, in set mail.units\n") == 1, (
        "though it is looked for at each level"
    )
    assert number not in done.stdout
    found = document(guarded, "tcp", "203.0.113.7:587")
    assert [one["exceptions"][0]["set"] for one in found["unless"]] == ["mail.units", "mail.users"]
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
        (("tcp", "203.0.113.7:0"), "out of range"),
        (("tcp", "203.0.113.7:65536"), "out of range"),
        (("tcp", "300.0.113.7:25"), "not an address"),
        (("tcp", "2001:db8::1:25"), "not an address and a port"),
        (("tcp", "[203.0.113.7]:25"), "not an address"),
        (("tcp", "203.0.113.7:20-25"), "more than one port"),
        (("tcp", "203.0.113.7:@mail"), "more than one port"),
        (("tcp", "203.0.113.7:smpt"), "no service 'smpt'"),
        (
            ("tcp", "smtp.example.com:25"),
            "'smtp.example.com' is a name; ask for its address: getent ahosts smtp.example.com",
        ),
        (("tcp", "203.0.113.7:25", "--from", "a.example"), "ask for its address: getent ahosts a.example"),
        (("tcp", "[fe80::1%eth0]:25"), "not an address"),
        (("tcp", "203.0.113.7:25", "--user", "no-such-user"), "no user of this host"),
        (("tcp", "203.0.113.7:25", "--group", "no-such-group"), "no group of this host"),
        (("tcp", "203.0.113.7:25", "--user", "a b"), "no name of a user"),
        (("tcp", "203.0.113.7:25", "--unit", "ssh"), "did you mean 'ssh.service'?"),
        (("tcp", "203.0.113.7:25", "--from", "2001:db8::1"), "not of one IP version"),
        (("tcp", "203.0.113.7:25", "--from", "1.2.3"), "not an address"),
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
