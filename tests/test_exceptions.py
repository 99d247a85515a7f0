"""Each exception with real packets, over IPv4 and IPv6: it lets through, and its neighbour is still stopped."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from typing import TYPE_CHECKING

import pytest

from nftguard.host import Host
from nftguard.network import Network
from tests.hosts import FAMILIES, Hosts, address, attempt, attempt_as, listening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER, OTHER = 1234, 1235
STOPPED = errno.ETIMEDOUT
SERVED = pytest.mark.usefixtures("servers")


def block(allow: str, hooks: str = '["output"]', more: str = "") -> str:
    return f'[[block]]\nname = "mail"\nports = [25, 587]\nhooks = {hooks}\nallow = {{ {allow} }}\n{more}\n'


@pytest.fixture
def servers(hosts: Hosts) -> Iterator[None]:
    """Listeners on the two ports at each end and in the middle, both families."""
    with contextlib.ExitStack() as stack:
        for where in (hosts.inner, hosts.guarded, hosts.outer):
            for family in (socket.AF_INET6, socket.AF_INET):
                stack.enter_context(listening(where, family, (25, 587)))
        yield


@pytest.fixture(scope="module", autouse=True)
def more_addresses(network: Hosts) -> None:
    """A second address at every end, for neighbours."""
    for where, link, net, host in (
        (network.outer, "out-far", 2, 3),
        (network.guarded, "out", 2, 4),
        (network.inner, "in-far", 1, 3),
    ):
        where.run("ip", "address", "add", f"10.0.{net}.{host}/24", "dev", link)
        where.run("ip", "address", "add", f"fd00:{net}::{host}/64", "dev", link, "nodad")


@FAMILIES
@SERVED
def test_a_user(hosts: Hosts, family: int) -> None:
    hosts.guard(block(f"users = [{USER}]"))
    there = address(family, 2)
    assert attempt_as(hosts.guarded, family, there, 25, uid=USER) == 0
    assert attempt_as(hosts.guarded, family, there, 587, uid=USER) == 0
    assert attempt_as(hosts.guarded, family, there, 25, uid=OTHER) == STOPPED
    assert attempt_as(hosts.guarded, family, there, 25) == STOPPED, "root is no exception by itself"


@FAMILIES
@SERVED
def test_a_user_by_name(hosts: Hosts, family: int) -> None:
    hosts.guard(block('users = ["nobody", "not-there"]'))
    assert attempt_as(hosts.guarded, family, address(family, 2), 25, uid=65534) == 0
    assert attempt_as(hosts.guarded, family, address(family, 2), 25, uid=OTHER) == STOPPED


@FAMILIES
@SERVED
def test_a_user_on_another_block_is_nobody(hosts: Hosts, family: int) -> None:
    """An exception is of its own block: the other one still stops the port that both name."""
    hosts.guard(block(f"users = [{USER}]") + '[[block]]\nname = "more"\nports = [25]\n')
    assert attempt_as(hosts.guarded, family, address(family, 2), 25, uid=USER) == STOPPED
    assert attempt_as(hosts.guarded, family, address(family, 2), 587, uid=USER) == 0


@FAMILIES
def test_a_users_datagrams(hosts: Hosts, family: int) -> None:
    hosts.guard(block(f"users = [{USER}]", more='protocols = ["udp"]'))
    sent = {
        uid: attempt_as(hosts.guarded, family, address(family, 2), 25, uid=uid, kind=socket.SOCK_DGRAM)
        for uid in (USER, OTHER)
    }
    assert sent == {USER: 0, OTHER: errno.EPERM}, "a local drop of a datagram is told to its sender"


@FAMILIES
@SERVED
def test_a_group(hosts: Hosts, family: int) -> None:
    hosts.guard(block(f"groups = [{USER}]"))
    there = address(family, 2)
    assert attempt_as(hosts.guarded, family, there, 25, uid=OTHER, gid=USER) == 0
    assert attempt_as(hosts.guarded, family, there, 25, uid=USER, gid=OTHER) == STOPPED


@FAMILIES
@SERVED
def test_a_unit(hosts: Hosts, base: Path, family: int) -> None:
    right, wrong = base / "nftguard-right.service", base / "nftguard-wrong.service"
    # What is below another unit, or in it, may be called like the right one.
    for made in (right / "below", wrong / "nftguard-right.service"):
        made.mkdir(parents=True)
    hosts.guard(block('units = ["nftguard-right.service", "nftguard-not-there.service"]'))
    there = address(family, 2)
    assert attempt_as(hosts.guarded, family, there, 25, group=right / "below") == 0
    assert attempt_as(hosts.guarded, family, there, 25, group=wrong) == STOPPED
    assert attempt_as(hosts.guarded, family, there, 25, group=wrong / "nftguard-right.service") == STOPPED
    assert attempt_as(hosts.guarded, family, there, 25) == STOPPED


@FAMILIES
@SERVED
def test_a_unit_that_was_made_anew_waits_until_it_is_looked_at(hosts: Hosts, base: Path, family: int) -> None:
    unit = base / "nftguard-right.service"
    unit.mkdir()
    hosts.guard(block('units = ["nftguard-right.service"]'))
    unit.rmdir()
    unit.mkdir()
    assert attempt_as(hosts.guarded, family, address(family, 2), 25, group=unit) == STOPPED
    hosts.guard(block('units = ["nftguard-right.service"]'))
    assert attempt_as(hosts.guarded, family, address(family, 2), 25, group=unit) == 0


@FAMILIES
@pytest.mark.parametrize("listed", ['"10.0.2.2", "fd00:2::2"', '"10.0.2.2/32", "fd00:2::2/127"'])
@SERVED
def test_where_to(hosts: Hosts, family: int, listed: str) -> None:
    hosts.guard(block(f"to = [{listed}]"))
    assert attempt(hosts.guarded, family, address(family, 2), 25) == 0
    assert attempt(hosts.guarded, family, address(family, 2, 5 if family == socket.AF_INET else 4), 25) == STOPPED
    assert attempt(hosts.guarded, family, address(family, 1), 25) == STOPPED


@FAMILIES
@SERVED
def test_the_networks_that_this_host_is_on(hosts: Hosts, family: int) -> None:
    far = "198.51.100.1" if family == socket.AF_INET else "2001:db8::1"
    hosts.outer.run("ip", "address", "replace", far, "dev", "lo")
    assert attempt(hosts.guarded, family, far, 25) == 0
    hosts.guard(block('to = ["@local"]'))
    assert attempt(hosts.guarded, family, address(family, 2), 25) == 0
    assert attempt(hosts.guarded, family, address(family, 1), 25) == 0
    assert attempt(hosts.guarded, family, "127.0.0.1" if family == socket.AF_INET else "::1", 25) == 0
    assert attempt(hosts.guarded, family, far, 25) == STOPPED


@FAMILIES
@SERVED
def test_where_from(hosts: Hosts, family: int) -> None:
    hosts.guard(block('from = ["10.0.2.4", "fd00:2::4"]'))
    there = address(family, 2)
    assert attempt_as(hosts.guarded, family, there, 25, source=address(family, 2, 4)) == 0
    assert attempt_as(hosts.guarded, family, there, 25, source=address(family, 2, 1)) == STOPPED


@FAMILIES
@pytest.mark.parametrize("name", ["in", "i*", "in*"])
@SERVED
def test_an_interface(hosts: Hosts, family: int, name: str) -> None:
    hosts.guard(block(f'interfaces = ["{name}"]'))
    assert attempt(hosts.guarded, family, address(family, 1), 25) == 0
    assert attempt(hosts.guarded, family, address(family, 2), 25) == STOPPED


@FAMILIES
@SERVED
def test_on_input(hosts: Hosts, family: int) -> None:
    """There an interface is the one that a packet comes in by."""
    here = address(family, 2, 1)
    hosts.guard(block('interfaces = ["in"], from = ["10.0.2.3", "fd00:2::3"]', '["input"]'))
    assert attempt(hosts.inner, family, address(family, 1, 1), 25) == 0
    assert attempt_as(hosts.outer, family, here, 25, source=address(family, 2, 3)) == 0
    assert attempt_as(hosts.outer, family, here, 25, source=address(family, 2, 2)) == STOPPED


@FAMILIES
@SERVED
def test_on_forward(hosts: Hosts, family: int) -> None:
    """By where it comes from, where it goes to, and the interface that it goes out by; on no other block."""
    host = Host()  # no uplink is known: none of this is by the way in
    for allow, passes, stopped in (
        ('from = ["10.0.1.3", "fd00:1::3"]', 3, 2),
        ('from = ["10.0.1.2", "fd00:1::2"]', 2, 3),
    ):
        hosts.guard(block(allow, '["forward"]'), host)
        there = address(family, 2)
        assert attempt_as(hosts.inner, family, there, 25, source=address(family, 1, passes)) == 0
        assert attempt_as(hosts.inner, family, there, 25, source=address(family, 1, stopped)) == STOPPED
    hosts.guard(block('to = ["10.0.2.3", "fd00:2::3"]', '["forward"]'), host)
    assert attempt(hosts.inner, family, address(family, 2, 3), 25) == 0
    assert attempt(hosts.inner, family, address(family, 2, 2), 25) == STOPPED
    hosts.guard(block('interfaces = ["in"]', '["forward"]'), host)
    assert attempt(hosts.outer, family, address(family, 1), 25) == 0
    assert attempt(hosts.inner, family, address(family, 2), 25) == STOPPED


@FAMILIES
@pytest.mark.parametrize("kind", ["users", "groups", "units"])
def test_what_was_queued_when_a_socket_was_closed_still_arrives(
    hosts: Hosts, base: Path, family: int, kind: str
) -> None:
    """A socket that is closed has no user any more: without care, an allowed sender gets a third of it through."""
    unit = base / "nftguard-right.service"
    unit.mkdir()
    hosts.guard(block('units = ["nftguard-right.service"]' if kind == "units" else f"{kind} = [{USER}]"))
    size = 4 << 20
    code = (
        f"import os, socket; open({str(unit / 'cgroup.procs')!r}, 'w').write('0')\n"
        f"os.setgid({USER}); os.setuid({USER})\n"
        f"s = socket.socket({int(family)}); s.setsockopt(1, 7, {2 * size}); s.connect(({address(family, 2)!r}, 25))\n"
        f"s.setblocking(False); print(s.send(bytes({size})), flush=True); s.close()\n"
    )
    with listening(hosts.outer, family, (25,)) as listeners:
        hosts.outer.run("sysctl", "-qw", "net.ipv4.tcp_rmem=4096 4096 8192")
        client = hosts.guarded.run("/usr/bin/python3", "-c", code)
        server, _ = listeners[25].accept()
        with server:
            server.settimeout(5)
            received = 0
            while data := server.recv(1 << 16):  # the client is gone by now
                received += len(data)
    assert received == int(client.stdout) > 100_000


def test_what_is_allowed_to_nobody_is_stopped_when_its_socket_is_closed(hosts: Hosts) -> None:
    """The way for packets without a user is none for those that open a connection."""
    hosts.guard(block(f"users = [{USER}]"))
    with listening(hosts.outer, socket.AF_INET, (25,)), hosts.guarded.entered():
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("10.0.2.2", 25))
        sock.close()
        time.sleep(0.05)
    assert hosts.packets()["mail.output.tcp.25"] >= 1


@SERVED
def test_every_exception_passes_by_the_counter(hosts: Hosts) -> None:
    """What is excepted is no attempt: neither counted nor logged."""
    hosts.guard(block(f"users = [{USER}]"))
    assert attempt_as(hosts.guarded, socket.AF_INET, "10.0.2.2", 25, uid=USER) == 0
    assert set(hosts.packets().values()) == {0}


class TestBridge:
    """Between two ports of a bridge, where no table but one of that family sees packets."""

    @pytest.fixture
    def bridged(self, hosts: Hosts) -> Iterator[Hosts]:
        guarded = hosts.guarded
        # Where the module br_netfilter is loaded, tables of the family inet do see them.
        guarded.run("sysctl", "-qe", "-w", *(f"net.bridge.bridge-nf-call-ip{six}tables=0" for six in ("", "6")))
        for link in ("in", "out"):
            guarded.run("ip", "address", "flush", "dev", link)
        for command in (
            "link add br0 type bridge",
            "link set br0 up",
            "link set in master br0",
            "link set out master br0",
        ):
            guarded.run("ip", *command.split())
        for where, link, host in ((hosts.inner, "in-far", 11), (hosts.outer, "out-far", 12)):
            where.run("ip", "address", "add", f"10.0.9.{host}/24", "dev", link)
            where.run("ip", "address", "add", f"fd00:9::{host}/64", "dev", link, "nodad")
        yield hosts
        guarded.run("ip", "link", "delete", "br0")
        for where, link, host in ((hosts.inner, "in-far", 11), (hosts.outer, "out-far", 12)):
            where.run("ip", "address", "delete", f"10.0.9.{host}/24", "dev", link)
            where.run("ip", "address", "delete", f"fd00:9::{host}/64", "dev", link)
        for link, net in (("in", 1), ("out", 2)):
            for host in (1, 4):
                guarded.run("ip", "address", "add", f"10.0.{net}.{host}/24", "dev", link)
                guarded.run("ip", "address", "add", f"fd00:{net}::{host}/64", "dev", link, "nodad")
        guarded.run("ip", "route", "replace", "default", "via", "10.0.2.2")
        guarded.run("ip", "-6", "route", "replace", "default", "via", "fd00:2::2")

    @FAMILIES
    def test_a_guest_is_stopped_and_still_receives(self, bridged: Hosts, family: int) -> None:
        def tries() -> dict[str, int]:
            with listening(bridged.inner, family, (25, 26)), listening(bridged.outer, family, (25, 26)):
                return {
                    "out": attempt(bridged.inner, family, address(family, 9, 12), 25),
                    "out, another port": attempt(bridged.inner, family, address(family, 9, 12), 26),
                    "in": attempt(bridged.outer, family, address(family, 9, 11), 25),
                }

        wanted = block("", '["output", "forward"]')
        bridged.guard(wanted)
        assert tries() == dict.fromkeys(("out", "out, another port", "in"), 0), "no inet table sees it"
        bridged.guard(block("", '["output", "bridge"]'))
        stopped = {"out": STOPPED, "out, another port": 0, "in": STOPPED}
        assert tries() == stopped, "which port leads outside is not known: more is blocked, not less"
        ends = Network(outer_ports=frozenset({"out"}), inner_ports=frozenset({"in"}))
        bridged.guard(block("", '["output", "bridge"]'), Host(network=ends))
        assert tries() == stopped | {"in": 0}
        assert bridged.packets()["mail.bridge.tcp.25"] >= 1
        bridged.guard(block('to = ["10.0.9.12", "fd00:9::12"]', '["bridge"]'), Host(network=ends))
        assert tries() == dict.fromkeys(stopped, 0)


def test_an_answer_that_the_kernel_gives_for_itself_lets_nobody_in(hosts: Hosts) -> None:
    """With a SYN cookie, which has no socket, a connection to port 25 would be opened from the far end.

    Whoever listens here, and has a friend there who connects from that port, could then send as nobody.
    """
    hosts.guarded.run("sysctl", "-qw", "net.ipv4.tcp_syncookies=2")  # always, as under a flood
    try:
        hosts.guard(block(f"users = [{USER}]"))
        with (
            listening(hosts.guarded, socket.AF_INET, (4444,)),
            hosts.outer.entered(),
            socket.socket() as friend,
        ):
            friend.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            friend.bind(("10.0.2.2", 25))
            friend.settimeout(0.3)
            with pytest.raises(TimeoutError):
                friend.connect(("10.0.2.1", 4444))
    finally:
        hosts.guarded.run("sysctl", "-qw", "net.ipv4.tcp_syncookies=1")
