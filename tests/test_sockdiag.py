"""Sockets asked of the real kernel: the one that made an attempt, and a program's clients."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.model import Hook, Protocol
from nftguard.wire import netlink, sockdiag
from nftguard.wire.nflog import Attempt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns import Namespace

DROP = """
table inet filter {
    chain output { type filter hook output priority 0; meta l4proto { tcp, udp } th dport 25 drop; }
}
"""

# Does what it is asked line by line, and keeps every socket.
PROGRAM = """
import json, os, socket, sys, time
kept = []
def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET
def listen(address, dual=False):
    kept.append(socket.create_server((address, 0), family=family(address), dualstack_ipv6=dual, backlog=512))
    return kept[-1].getsockname()[1]
def accept(at=0):
    kept.append(kept[at].accept()[0])
def read(at=-1):
    return len(kept[at].recv(65536))
def start(source, target, kind=socket.SOCK_STREAM, port=25, sport=0, device=""):
    sock = socket.socket(family(source), kind)
    kept.append(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sock.bind((source, sport))
    sock.setblocking(False)
    sock.connect_ex((target, port))
    return sock.getsockname()[1], os.fstat(sock.fileno()).st_ino
def send(source, target, sport=0):
    sock = socket.socket(family(source), socket.SOCK_DGRAM)
    kept.append(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((source, sport))
    try:
        sock.sendto(b"x", (target, 25))
    except PermissionError:  # what a drop on output comes to
        pass
    return sock.getsockname()[1], os.fstat(sock.fileno()).st_ino
def close(at=-1):
    kept.pop(at).close()
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""

_numbers = itertools.count()


def cgroup_root() -> Path:
    """Find where the version 2 tree is mounted."""
    found = re.search(r"^\S+ \S+ \S+ / (\S+) .* - cgroup2 ", Path("/proc/self/mountinfo").read_text(), re.MULTILINE)
    assert found, "these tests need the cgroup v2 tree"
    return Path(found[1])


class Program:
    """A program in a control group of its own, which does what it is told."""

    def __init__(self, netns: Namespace, *before: str) -> None:
        self.path = cgroup_root() / f"nftguard-test-{os.getpid()}-{next(_numbers)}"
        self.path.mkdir()
        self.cgroup = self.path.stat().st_ino
        enter = ("sh", "-c", f'echo $$ >"{self.path}/cgroup.procs" && exec "$@"', "sh")
        self.process = netns.popen(*enter, *before, sys.executable, "-c", PROGRAM, stdin=-1, stdout=-1)

    def do(self, call: str) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(call + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.path.rmdir()


@pytest.fixture
def program(netns: Namespace) -> Iterator[Program]:
    """A program in a namespace where nothing gets out to port 25, with addresses enough."""
    netns.nft(DROP)
    program = Program(netns)
    yield program
    program.close()


@pytest.fixture
def other(netns: Namespace) -> Iterator[Program]:
    """Another program in the same namespace."""
    program = Program(netns)
    yield program
    program.close()


def attempt(source: str, source_port: int, destination: str, **more: Any) -> Attempt:
    values: dict[str, Any] = {"hook": Hook.OUTPUT, "protocol": Protocol.TCP, "port": 25, "uid": 0, "gid": 0}
    values |= {"block": "mail", "sequence": 0, "inbound": "", "outbound": "lo"}
    return Attempt(source=source, source_port=source_port, destination=destination, **(values | more))


def find(netns: Namespace, wanted: Attempt) -> sockdiag.Socket | None:
    with netns.entered():
        return sockdiag.find(wanted)


WAYS = pytest.mark.parametrize(
    ("source", "target", "shown_source", "shown_target"),
    [
        ("127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"),
        ("::1", "::1", "::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.2", "127.0.0.1", "127.0.0.2"),
    ],
    ids=["IPv4", "IPv6", "v4-mapped"],
)


@WAYS
def test_the_tcp_socket_of_an_attempt_is_found(
    netns: Namespace, program: Program, source: str, target: str, shown_source: str, shown_target: str
) -> None:
    port, inode = program.do(f"start({source!r}, {target!r})")
    found = find(netns, attempt(shown_source, port, shown_target))
    assert found
    assert (found.inode, found.uid, found.cgroup, found.state) == (inode, 0, program.cgroup, 2)
    assert found.cookie


def test_a_syn_that_was_sent_again_is_told(netns: Namespace, program: Program) -> None:
    port, _ = program.do("start('127.0.0.1', '127.0.0.2')")
    wanted = attempt("127.0.0.1", port, "127.0.0.2")
    end = time.monotonic() + 20  # the first time it is sent again after a second
    while not (found := find(netns, wanted)) or not found.repeats:
        assert time.monotonic() < end
        time.sleep(0.05)


@WAYS
def test_the_udp_socket_of_an_attempt_is_found_connected_or_not(
    netns: Namespace, program: Program, source: str, target: str, shown_source: str, shown_target: str
) -> None:
    for call in (f"start({source!r}, {target!r}, socket.SOCK_DGRAM)", f"send({source!r}, {target!r})"):
        port, inode = program.do(call)
        found = find(netns, attempt(shown_source, port, shown_target, protocol=Protocol.UDP))
        assert found
        assert (found.inode, found.uid, found.cgroup) == (inode, 0, program.cgroup)


@pytest.mark.parametrize(
    ("wildcard", "target"),
    [("0.0.0.0", "127.0.0.2"), ("::", "::ffff:127.0.0.2"), ("::", "::1")],  # noqa: S104 - in a namespace of its own
)
def test_a_udp_socket_bound_to_no_address_is_found(
    netns: Namespace, program: Program, wildcard: str, target: str
) -> None:
    port, inode = program.do(f"send({wildcard!r}, {target!r})")
    source = "::1" if target == "::1" else "127.0.0.1"
    shown = target.removeprefix("::ffff:")
    found = find(netns, attempt(source, port, shown, protocol=Protocol.UDP))
    assert found
    assert found.inode == inode


def test_two_udp_sockets_that_share_a_port_are_not_told_apart(
    netns: Namespace, program: Program, other: Program
) -> None:
    port, _ = program.do("send('127.0.0.1', '127.0.0.2')")
    other.do(f"send('127.0.0.1', '127.0.0.2', {port})")
    assert find(netns, attempt("127.0.0.1", port, "127.0.0.2", protocol=Protocol.UDP)) is None


def test_a_socket_bound_to_an_interface_is_found(netns: Namespace, program: Program) -> None:
    port, inode = program.do("start('127.0.0.1', '127.0.0.2', device='lo')")
    found = find(netns, attempt("127.0.0.1", port, "127.0.0.2"))
    assert found
    assert found.inode == inode


def test_anothers_socket_is_never_found(netns: Namespace, program: Program) -> None:
    port, _ = program.do("start('127.0.0.1', '127.0.0.2')")
    for wrong in (
        attempt("127.0.0.1", port, "127.0.0.3"),
        attempt("127.0.0.3", port, "127.0.0.2"),
        attempt("127.0.0.1", port, "127.0.0.2", port=26),
        attempt("127.0.0.1", port % 65535 + 1, "127.0.0.2"),
        attempt("127.0.0.1", port, "127.0.0.2", uid=1000),
        attempt("127.0.0.1", port, "127.0.0.2", hook=Hook.INPUT),
        attempt("127.0.0.1", port, "127.0.0.2", hook=Hook.FORWARD),
        attempt("127.0.0.1", port, "127.0.0.2", protocol=Protocol.UDP),
        attempt("127.0.0.1", port, "127.0.0.2", protocol=Protocol.SCTP),
        attempt("127.0.0.1", port, "no address"),
    ):
        assert find(netns, wrong) is None
    program.do("close()")
    assert find(netns, attempt("127.0.0.1", port, "127.0.0.2")) is None


def test_a_listening_or_connected_socket_is_no_attempt(netns: Namespace, program: Program) -> None:
    listening = program.do("listen('127.0.0.1')")
    assert find(netns, attempt("127.0.0.1", listening, "127.0.0.2")) is None
    port, _ = program.do(f"start('127.0.0.1', '127.0.0.1', port={listening})")
    program.do("accept()")
    assert find(netns, attempt("127.0.0.1", port, "127.0.0.1", port=listening)) is None


@pytest.mark.parametrize(
    ("address", "client", "remote"),
    [("127.0.0.1", "127.0.0.9", "127.0.0.9"), ("::1", "::1", "::1"), ("::", "127.0.0.9", "127.0.0.9")],
    ids=["IPv4", "IPv6", "v4-mapped"],
)
def test_the_clients_of_a_program_are_listed(
    netns: Namespace, program: Program, other: Program, address: str, client: str, remote: str
) -> None:
    port = program.do(f"listen({address!r}, {address == '::'})")
    target = address if address != "::" else "127.0.0.1"
    remote_port, _ = other.do(f"start({client!r}, {target!r}, port={port})")
    program.do("accept()")
    with netns.entered():
        (found,) = sockdiag.connections(program.cgroup)
        assert sockdiag.connections(other.cgroup) == [], "whoever connects serves nobody"
    assert (found.remote, found.remote_port, found.port) == (remote, remote_port, port)


def test_connections_that_the_program_made_itself_are_left_out(
    netns: Namespace, program: Program, other: Program
) -> None:
    port = other.do("listen('127.0.0.1')")
    program.do("listen('127.0.0.1')")
    program.do(f"start('127.0.0.1', '127.0.0.1', port={port})")
    other.do("accept()")
    with netns.entered():
        assert sockdiag.connections(program.cgroup) == []
        assert [found.port for found in sockdiag.connections(other.cgroup)] == [port]


def test_quiet_is_the_time_since_data_came(netns: Namespace, program: Program, other: Program) -> None:
    port = program.do("listen('127.0.0.1')")
    other.do(f"start('127.0.0.9', '127.0.0.1', port={port})")
    program.do("accept()")
    time.sleep(0.3)
    with netns.entered():
        (quiet,) = (found.quiet for found in sockdiag.connections(program.cgroup))
        assert quiet >= 280
        sent = time.monotonic()
        other.do("kept[-1].send(b'x')")
        program.do("read()")
        (quiet,) = (found.quiet for found in sockdiag.connections(program.cgroup))
        assert quiet <= (time.monotonic() - sent) * 1000 + 10


def test_the_kernel_before_5_10_is_filtered_here(
    netns: Namespace, program: Program, other: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = program.do("listen('127.0.0.1')")
    other.do(f"start('127.0.0.9', '127.0.0.1', port={port})")
    program.do("accept()")
    monkeypatch.setattr(sockdiag, "_BC_CGROUP_COND", 99)  # as good as one that the kernel does not know yet
    with netns.entered():
        assert [found.remote for found in sockdiag.connections(program.cgroup)] == ["127.0.0.9"]
        assert sockdiag.connections(other.cgroup) == []


def test_all_clients_are_listed_up_to_a_bound(
    netns: Namespace, program: Program, other: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = program.do("listen('127.0.0.1')")
    for client in range(200):
        other.do(f"start('127.0.1.{client + 1}', '127.0.0.1', port={port})")
    program.do("[accept() for _ in range(200)]")
    with netns.entered():
        assert len({found.remote for found in sockdiag.connections(program.cgroup)}) == 200
        monkeypatch.setattr(sockdiag, "MOST", 50)
        assert 49 <= len(sockdiag.connections(program.cgroup)) < 200


def test_a_kernel_that_lists_nothing_is_an_os_error(netns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockdiag, "_NETLINK_SOCK_DIAG", 16)  # generic netlink, which knows no such message
    with netns.entered(), pytest.raises(OSError, match=r"."):
        sockdiag.connections(1)
    assert find(netns, attempt("127.0.0.1", 1, "127.0.0.2")) is None


# Drops every privilege but CAP_NET_ADMIN (capset(2), version 3) once its modules are loaded.
UNPRIVILEGED = """
import ctypes, os, struct, sys
from nftguard.wire import sockdiag
from nftguard.model import Hook, Protocol
from nftguard.wire.nflog import Attempt
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
os.setgroups([]); os.setgid(65534); os.setuid(65534)
one = 1 << 12
assert libc.capset(struct.pack("II", 0x20080522, 0), struct.pack("6I", one, one, 0, 0, 0, 0)) == 0
status = open("/proc/self/status").read()
assert f"CapEff:\\t{one:016x}" in status and "Uid:\\t65534" in status
port, cgroup = int(sys.argv[1]), int(sys.argv[2])
found = sockdiag.find(Attempt(block="mail", hook=Hook.OUTPUT, protocol=Protocol.TCP, source="127.0.0.1",
    source_port=port, destination="127.0.0.2", port=25, uid=0, gid=0, sequence=0, inbound="", outbound="lo"))
print(found.inode, found.uid, found.cgroup == cgroup, len(sockdiag.connections(cgroup)))
"""


def test_a_user_with_cap_net_admin_alone_is_told_the_same(netns: Namespace, program: Program, other: Program) -> None:
    listening = program.do("listen('127.0.0.1')")
    other.do(f"start('127.0.0.9', '127.0.0.1', port={listening})")
    program.do("accept()")
    port, inode = program.do("start('127.0.0.1', '127.0.0.2')")
    done = netns.run(sys.executable, "-c", UNPRIVILEGED, str(port), str(program.cgroup))
    assert done.stdout == f"{inode} 0 True 1\n"


def entry(family: int = socket.AF_INET, attributes: bytes = b"") -> bytes:
    """Build an inet_diag_msg by hand."""
    addresses = socket.inet_aton("192.0.2.1").ljust(16, b"\0") + socket.inet_aton("192.0.2.2").ljust(16, b"\0")
    sockid = struct.pack("!HH", 40000, 25) + addresses + struct.pack("=III", 0, 7, 1)
    return struct.pack("=BBBB", family, 2, 1, 0) + sockid + struct.pack("=5I", 900, 0, 0, 998, 4242) + attributes


def test_an_entry_is_decoded() -> None:
    info = netlink.attribute(2, bytes(8) + struct.pack("=I", 1_000_000) + bytes(40) + struct.pack("=I", 12))
    found = sockdiag.decode(entry(attributes=info + netlink.attribute(21, struct.pack("=Q", 1 << 40))))
    assert found
    assert (found.port, found.remote_port, found.uid, found.inode, found.cgroup) == (40000, 25, 998, 4242, 1 << 40)
    assert found.local == socket.inet_aton("192.0.2.1")
    assert found.cookie == 1 << 32 | 7


@pytest.mark.parametrize("body", [b"", entry()[:71], entry(family=1)])
def test_what_is_no_entry_is_none(body: bytes) -> None:
    assert sockdiag.decode(body) is None


@given(st.binary(max_size=400), st.integers(0, 120), st.binary(max_size=60))
def test_any_bytes_are_an_entry_or_none(raw: bytes, at: int, patch: bytes) -> None:
    whole = entry(attributes=netlink.attribute(2, bytes(280)) + netlink.attribute(21, bytes(8)))
    for body in (raw, whole[:at] + patch + whole[at + len(patch) :], whole[:at], entry(attributes=raw)):
        found = sockdiag.decode(body)
        assert found is None or (0 <= found.port <= 65535 and len(found.local) in {4, 16})
