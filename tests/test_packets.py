"""Real packets over IPv4 and IPv6 between namespaces: what is blocked arrives nowhere, what is not passes."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nftguard.model import Hook, Protocol
from nftguard.wire.nflog import Attempt, Reader
from tests.conftest import ORIGIN
from tests.hosts import FAMILIES, Hosts, address, arrivals, arrived_ports, attempt, listening, syn

if TYPE_CHECKING:
    from collections.abc import Iterator

NEIGHBOURS = (24, 26, 80, 8080)


@FAMILIES
def test_each_of_the_eleven_ports_is_blocked_and_its_neighbours_are_not(hosts: Hosts, family: int) -> None:
    hosts.guard(f'[[block]]\nname = "mail"\nports = {list(ORIGIN)}')
    target = address(family, 2)
    with listening(hosts.outer, family, ORIGIN + NEIGHBOURS), arrivals(hosts.outer, family) as sock:
        assert {port: attempt(hosts.guarded, family, target, port) for port in ORIGIN} == dict.fromkeys(
            ORIGIN, errno.ETIMEDOUT
        )
        assert {port: attempt(hosts.guarded, family, target, port) for port in NEIGHBOURS} == dict.fromkeys(
            NEIGHBOURS, 0
        )
        assert arrived_ports(sock, family) & set(ORIGIN + NEIGHBOURS) == set(NEIGHBOURS)
    assert all(hosts.packets()[f"mail.output.tcp.{port}"] for port in ORIGIN)


@FAMILIES
def test_without_the_guard_they_connect(hosts: Hosts, family: int) -> None:
    """Else the tests above would prove nothing."""
    with listening(hosts.outer, family, ORIGIN):
        assert {attempt(hosts.guarded, family, address(family, 2), port) for port in ORIGIN} == {0}


def test_a_counter_counts_exactly_the_packets_sent(hosts: Hosts) -> None:
    hosts.guard('[[block]]\nname = "mail"\nports = [25, "1000-2000", 465]')
    for port, count in ((25, 7), (465, 1), (1000, 3), (2000, 4), (2001, 5)):
        syn(hosts.guarded, "10.0.2.2", port, count)
    assert hosts.packets() == {"mail.output.tcp.25": 7, "mail.output.tcp.465": 1, "mail.output.tcp.1000-2000": 7}


@FAMILIES
def test_forwarded_packets_are_blocked(hosts: Hosts, family: int) -> None:
    hosts.guard('[[block]]\nname = "mail"\nports = [25]\nhooks = ["forward"]')
    target = address(family, 2)
    with listening(hosts.outer, family, (25, 26)):
        assert attempt(hosts.inner, family, target, 25) == errno.ETIMEDOUT
        assert attempt(hosts.inner, family, target, 26) == 0
        assert attempt(hosts.guarded, family, target, 25) == 0, "what the host itself sends is another hook's matter"
    assert hosts.packets()["mail.forward.tcp.25"] >= 1


@FAMILIES
def test_incoming_packets_are_blocked(hosts: Hosts, family: int) -> None:
    hosts.guard('[[block]]\nname = "mail"\nports = [25]\nhooks = ["input"]')
    with listening(hosts.guarded, family, (25, 26)):
        assert attempt(hosts.outer, family, address(family, 2, 1), 25) == errno.ETIMEDOUT
        assert attempt(hosts.outer, family, address(family, 2, 1), 26) == 0
    assert hosts.packets()["mail.input.tcp.25"] >= 1


@FAMILIES
@pytest.mark.parametrize("hook", ["output", "forward", "input"])
def test_a_rejected_client_fails_at_once(hosts: Hosts, family: int, hook: str) -> None:
    hosts.guard(f'[[block]]\nname = "mail"\nports = [25]\nhooks = ["{hook}"]\naction = "reject"')
    where = {"output": hosts.guarded, "forward": hosts.inner, "input": hosts.outer}[hook]
    target = address(family, 2, 1 if hook == "input" else 2)
    begun = time.monotonic()
    assert attempt(where, family, target, 25, patience=3) == errno.ECONNREFUSED
    assert time.monotonic() - begun < 1


@FAMILIES
def test_a_rejected_datagram_is_answered(hosts: Hosts, family: int) -> None:
    hosts.guard('[[block]]\nname = "dns"\nports = [53]\nprotocols = ["udp"]\naction = "reject"\nhooks = ["forward"]')
    with hosts.inner.entered(), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((address(family, 2), 53))
        sock.send(b"x")
        try:
            sock.recv(1)
        except OSError as error:
            answer = error.errno
    # ICMP "administratively prohibited" reaches an IPv4 socket as EHOSTUNREACH and an IPv6 one as EACCES.
    assert answer == {socket.AF_INET: errno.EHOSTUNREACH, socket.AF_INET6: errno.EACCES}[socket.AddressFamily(family)]


def test_only_the_protocols_named_are_blocked(hosts: Hosts) -> None:
    hosts.guard('[[block]]\nname = "dns"\nports = [53]\nprotocols = ["udp", "sctp"]')
    with hosts.outer.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("10.0.2.2", 53))
        receiver.settimeout(0.2)
        with (
            hosts.guarded.entered(),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            contextlib.suppress(PermissionError),  # a local drop of a datagram is told to its sender
        ):
            sender.sendto(b"x", ("10.0.2.2", 53))
        with pytest.raises(TimeoutError):
            receiver.recv(10)
    with listening(hosts.outer, socket.AF_INET, (53,)):
        assert attempt(hosts.guarded, socket.AF_INET, "10.0.2.2", 53) == 0
    with (
        hosts.guarded.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP) as raw,
        contextlib.suppress(PermissionError),
    ):
        # source port, destination port, verification tag, checksum; chunk INIT, flags, length (RFC 9260)
        raw.sendto(struct.pack("!HHIIBBH", 5000, 53, 0, 0, 1, 0, 20) + bytes(16), ("10.0.2.2", 0))
    assert {name: count for name, count in hosts.packets().items() if count} == {
        "dns.output.udp.53": 1,
        "dns.output.sctp.53": 1,
    }


@FAMILIES
@pytest.mark.parametrize("connections", ["all", "new"])
def test_established_connections_go_on_where_only_new_ones_are_blocked(
    hosts: Hosts, family: int, connections: str
) -> None:
    with listening(hosts.outer, family, (25,)) as listeners, hosts.guarded.entered():
        with socket.create_connection((address(family, 2), 25), timeout=3) as client:
            server, _ = listeners[25].accept()
            with server:
                server.settimeout(0.5)
                hosts.guard(f'[[block]]\nname = "mail"\nports = [25]\nconnections = "{connections}"')
                client.send(b"x")
                if connections == "new":
                    assert server.recv(1) == b"x"
                else:
                    with pytest.raises(TimeoutError):
                        server.recv(1)
        assert attempt(hosts.guarded, family, address(family, 2), 25) == errno.ETIMEDOUT
    assert hosts.packets()["mail.output.tcp.25"] >= 1


def test_a_packet_passes_only_if_every_block_lets_it(hosts: Hosts) -> None:
    """The first block lets what is not new through; the second, a wide range, does not."""
    hosts.guard(
        '[[block]]\nname = "a"\nports = [25]\nconnections = "new"\n[[block]]\nname = "b"\nports = ["20-100"]\n'
        '[[block]]\nname = "c"\nports = ["90-200"]\nconnections = "new"\n'
    )
    ack = 0x10
    for port, flags in ((25, 2), (25, ack), (30, ack), (95, ack), (95, 2), (150, ack), (150, 2)):
        syn(hosts.guarded, "10.0.2.2", port, 1, flags)
    assert hosts.packets() == {
        "a.output.tcp.25": 1,
        "b.output.tcp.20-100": 4,
        "c.output.tcp.90-200": 1,
    }


def drain(reader: Reader, wanted: int, patience: float = 2.0) -> list[Attempt]:
    """Read until `wanted` attempts came, and a little longer for those that should not come."""
    found: list[Attempt] = []
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found += reader.read()
        if len(found) >= wanted:
            end = min(end, time.monotonic() + 0.2)
        time.sleep(0.01)
    return found


@pytest.fixture
def reader(hosts: Hosts) -> Iterator[Reader]:
    with hosts.guarded.entered():
        reader = Reader(25)
    yield reader
    reader.close()


@FAMILIES
def test_an_attempt_is_logged_with_who_and_where(hosts: Hosts, reader: Reader, family: int) -> None:
    hosts.guard('[[block]]\nname = "mail"\nports = [25]')
    code = (
        "import socket,sys,os; os.setgid(4321); os.setuid(1234); s=socket.socket(int(sys.argv[1])); s.settimeout(.1)\n"
    )
    code += "s.bind(('', 41000)); s.connect((sys.argv[2], 25))"
    hosts.guarded.run("/usr/bin/python3", "-c", code, str(int(family)), address(family, 2), check=False)
    here, there = address(family, 2, 1), address(family, 2)
    (found,) = drain(reader, 1)
    # `outbound` is the name here of a number there: the reader is asked from outside of the namespace
    plain = replace(found, sequence=0, outbound="", size=0, ttl=0)
    assert plain == Attempt("mail", Hook.OUTPUT, Protocol.TCP, here, 41000, there, 25, 1234, 4321)
    assert found.sequence
    assert found.size >= 40


def test_a_forwarded_attempt_has_no_user(hosts: Hosts, reader: Reader) -> None:
    hosts.guard('[[block]]\nname = "guests"\nports = [25]\nhooks = ["forward"]')
    attempt(hosts.inner, socket.AF_INET, "10.0.2.2", 25)
    (found,) = drain(reader, 1)
    assert (found.block, found.hook, found.source, found.uid) == ("guests", Hook.FORWARD, "10.0.1.2", None)


def test_only_initial_syns_are_logged_and_every_packet_is_counted(hosts: Hosts, reader: Reader) -> None:
    """Otherwise a server's replies to a client that happens to use source port 25 would read as attempts."""
    hosts.guard('[[block]]\nname = "mail"\nports = [25]')
    for flags in (0x10, 0x12, 0x18, 0x04, 0x11, 0x00, 0x03):  # ACK, SYN+ACK, PSH+ACK, RST, FIN+ACK, none, SYN+FIN
        syn(hosts.guarded, "10.0.2.2", 25, 1, flags)
    syn(hosts.guarded, "10.0.2.2", 25, 1, 0xC2)  # SYN with ECN set-up (RFC 3168)
    assert len(drain(reader, 1)) == 1
    assert hosts.packets()["mail.output.tcp.25"] == 8


def test_the_log_limit_never_limits_the_drop(hosts: Hosts, reader: Reader) -> None:
    """A user is told 1,000 times at once; then others still are."""
    hosts.guard('[[block]]\nname = "mail"\nports = [25]')
    with arrivals(hosts.outer, socket.AF_INET) as sock:
        syn(hosts.guarded, "10.0.2.2", 25, 3000)
        assert 25 not in arrived_ports(sock, socket.AF_INET)
    assert 1000 <= len(drain(reader, 3000, patience=0.5)) < 3000
    assert hosts.packets()["mail.output.tcp.25"] == 3000


def test_attempts_are_dropped_and_told_all_the_same_when_the_users_are_full(hosts: Hosts, reader: Reader) -> None:
    hosts.guard('[[block]]\nname = "mail"\nports = [25]')
    users = [f"{uid} limit rate over 500/second burst 1000 packets" for uid in range(1, 1025)]
    hosts.guarded.nft(f"add element inet nftguard users {{ {', '.join(users)} }}")
    syn(hosts.guarded, "10.0.2.2", 25, 3)
    assert len(drain(reader, 3)) == 3
    assert hosts.packets()["mail.output.tcp.25"] == 3


def test_a_port_is_dropped_even_when_its_counter_is_gone(hosts: Hosts) -> None:
    hosts.guard('[[block]]\nname = "mail"\nports = [25]')
    hosts.guarded.nft("delete element inet nftguard mail.output.tcp { 25 }")
    with listening(hosts.outer, socket.AF_INET, (25,)):
        assert attempt(hosts.guarded, socket.AF_INET, "10.0.2.2", 25) == errno.ETIMEDOUT


def test_the_kernel_log_takes_the_rules_of_its_target(hosts: Hosts) -> None:
    """What it says cannot be seen from a namespace (nf_log_all_netns); that it still drops and counts can."""
    hosts.guard('[[block]]\nname = "mail"\nports = [25, 465]\n[log]\ntarget = "kernel"')
    syn(hosts.guarded, "10.0.2.2", 465, 2)
    assert hosts.packets() == {"mail.output.tcp.25": 0, "mail.output.tcp.465": 2}
