"""What is imported stops the packets that the old rules stopped: the same ones are sent through both."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nftguard.host import Host
from nftguard.kernel import Nftables
from nftguard.migrate import blocks, iptables
from nftguard.migrate.translate import translate
from nftguard.policy import build
from nftguard.reconcile import reconcile
from tests.examples import config_of
from tests.netns import Namespace, connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nftguard.migrate.rules import Finding

ORIGIN = Path(__file__).parent / "migrate/iptables.banmailports.rules"
_libc = ctypes.CDLL(None, use_errno=True)
SYN, ACK, SYN_ACK, RST = 0x02, 0x10, 0x12, 0x04
UDP = -1
_PROTOCOLS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP, 253)  # the last one is for experiments, RFC 3692
_SOURCE = 40000
_SAMPLE = (20, 25, 26, 31, 465, 6050)
_RCVBUFFORCE = 33  # asm-generic/socket.h
_EMPTY = "*filter\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"


class Host2:
    """A host with two ways out, `wan` to 10.0.2.2 and `wg1` to 10.0.3.2."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.near, self.far = Namespace(), Namespace()
        stack.callback(self.near.close)
        stack.callback(self.far.close)
        connect(self.near, self.far, "wan", 2)
        connect(self.near, self.far, "wg1", 3)
        with self.near.entered():
            self.kernel = Nftables()
            stack.callback(self.kernel.close)
            self.raw = {
                (protocol, user): stack.enter_context(_owned(user, protocol))
                for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
                for user in (0, 1000, 1001)
            }

        with self.far.entered():
            self.outbox = [stack.enter_context(_raw(protocol)) for protocol in _PROTOCOLS]

    def reached(self) -> set[tuple[int, str, int]]:
        """Send packets from the far end by both ways, and say which arrived: what was sent last has passed no other."""
        found = set()
        with contextlib.ExitStack() as stack:
            with self.near.entered():
                inbox = [stack.enter_context(_raw(protocol)) for protocol in _PROTOCOLS]
            stack.enter_context(_one_processor())
            for target in ("10.0.2.1", "10.0.3.1"):
                for port in _SAMPLE:
                    for kind in (SYN, ACK, UDP):
                        self.outbox[kind == UDP].sendto(_packet(kind, port), (target, 0))
                self.outbox[2].sendto(b"last", (target, 0))
            inbox[2].settimeout(10)
            for _ in range(2):
                inbox[2].recv(64)
            for sock in inbox[:2]:
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        found.add(_read(sock.recv(2048)))
        return {(kind, target, port) for kind, target, source, port in found if source == _SOURCE}

    def guard(self, text: str) -> None:
        with self.near.entered():
            reconcile(self.kernel, build(config_of(text), host=Host()))

    def restore(self, rules: str, program: str = "iptables-legacy-restore") -> None:
        self.near.run(program, input=rules)

    def lift(self) -> None:
        if self.kernel.snapshot():
            self.near.nft("delete table inet nftguard")
        self.restore(_EMPTY)

    def passes(self, kind: int, target: str, port: int, user: int = 0) -> bool:
        """Send one packet; a raw socket is told of a drop on output."""
        try:
            protocol = socket.IPPROTO_UDP if kind == UDP else socket.IPPROTO_TCP
            self.raw[protocol, user].sendto(_packet(kind, port), (target, 0))
        except PermissionError:
            return False
        return True


@contextlib.contextmanager
def _one_processor() -> Iterator[None]:
    """Stay on one processor, on which a veth pair keeps the order of packets."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


@contextlib.contextmanager
def _owned(user: int, protocol: int) -> Iterator[socket.socket]:
    """Give a raw socket whose owner is `user`: setfsuid(2) keeps the privilege to make one."""
    _libc.setfsuid(user)
    try:
        sock = _raw(protocol)
    finally:
        _libc.setfsuid(0)
    with sock:
        yield sock


def _raw(protocol: int) -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)


def _read(data: bytes) -> tuple[int, str, int, int]:
    """Take a packet apart: its kind, its target, the port that it is from and the one that it is to."""
    start = (data[0] & 15) * 4
    source, port = struct.unpack_from("!HH", data, start)
    kind = UDP if data[9] == socket.IPPROTO_UDP else data[start + 13]
    return kind, socket.inet_ntoa(data[16:20]), source, port


def _packet(kind: int, port: int) -> bytes:
    if kind == UDP:
        return struct.pack("!HHHH", _SOURCE, port, 8, 0)
    return struct.pack("!HHIIBBHHH", _SOURCE, port, 1, 0, 5 << 4, kind, 8192, 0, 0)


def imported(text: str) -> tuple[str, set[Finding]]:
    """Translate; give the configuration, empty where nothing is blocked, and what was not translated."""
    found = translate(iptables.read(text.splitlines()))
    written = blocks.gather(found.parts)
    toml = blocks.toml(written, [], found, lambda _, value: value) if written else ""
    return toml, found.findings


@pytest.fixture(scope="module")
def host(_kernel_there: None) -> Iterator[Host2]:
    with contextlib.ExitStack() as stack:
        yield Host2(stack)


def arrived(host: Host2, packets: Sequence[tuple[int, str, int]]) -> set[tuple[int, str, int]]:
    """Send the packets, and say which reached the far end, or the host itself over loopback."""
    found: set[tuple[int, str, int]] = set()
    with contextlib.ExitStack() as stack:
        listening = []
        for where in (host.near, host.far):
            for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                with where.entered():
                    sock = stack.enter_context(_raw(protocol))
                sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 64 << 20)
                sock.settimeout(10)
                listening.append((sock, protocol, "127.0.0.1" if where is host.near else "10.0.2.2"))
        stack.enter_context(_one_processor())
        for kind, target, port in packets:
            host.passes(kind, target, port)
        for sock, protocol, target in listening:
            last = UDP if protocol == socket.IPPROTO_UDP else SYN
            host.passes(last, target, 65000)
            while True:
                kind, at, source, port = _read(sock.recv(2048))
                if (at, source) != (target, _SOURCE):
                    continue  # an answer, or another way's
                if port == 65000:
                    break
                found.add((kind, at, port))
    return found


@pytest.mark.parametrize("program", ["iptables-legacy-restore", "iptables-restore"])
def test_the_origins_rules_and_their_import_stop_exactly_the_same_packets(host: Host2, program: str) -> None:
    text = ORIGIN.read_text()
    toml, findings = imported(text)
    assert not findings
    ports = [*range(1, 1101), 1433, 2525, 3306, 4465, 5432, 8025, 8080, 9930, 9950, 25025, 58700, 65535]
    packets = [
        (kind, target, port)
        for port in ports
        for kind in (SYN, ACK, SYN_ACK, RST, UDP)
        for target in ("10.0.2.2", "127.0.0.1")
    ]
    try:
        assert arrived(host, packets) == {*packets}, "without rules everything arrives"
        host.restore(text, program)
        before = arrived(host, packets)
        host.near.run(program, input=_EMPTY)
        host.guard(toml)
        after = arrived(host, packets)
    finally:
        host.lift()
    assert before == after
    assert len(packets) - len(after) == 11 * 4 * 2, "eleven ports, tcp of every kind, both ways"


@pytest.mark.parametrize("save", ["iptables-legacy-save", "iptables-save", "iptables -S", "iptables-legacy -S"])
def test_what_iptables_prints_of_its_rules_is_imported_the_same(host: Host2, save: str) -> None:
    text = ORIGIN.read_text() + "*nat\n-A POSTROUTING -o wan -j MASQUERADE\nCOMMIT\n"
    host.restore(text, "iptables-legacy-restore" if "legacy" in save else "iptables-restore")
    try:
        printed = host.near.run(*save.split()).stdout
    finally:
        host.near.run("iptables-restore", input=_EMPTY)
        host.lift()
    (block,), (expected,) = (config_of(imported(one)[0]).block for one in (printed, text))
    assert block == expected
    assert not imported(printed)[1]


def test_the_import_stops_the_same_ports_over_ipv6(host: Host2) -> None:
    host.guard(imported(ORIGIN.read_text())[0])
    try:
        with host.near.entered(), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
            stopped = set()
            for port in range(1, 1101):
                try:
                    sock.sendto(_packet(SYN, port), ("fd00:2::2", 0))
                except PermissionError:
                    stopped.add(port)
    finally:
        host.lift()
    assert stopped == {21, 22, 23, 25, 109, 110, 143, 465, 587, 993, 995}


_PORTS = st.sampled_from(
    ["--dport 25", "--dport 26", "--dport 20:30", "-m multiport --dports 25,465,6000:6100", "! --dport 25"]
)
_FACTS = (
    ["-d 10.0.2.0/24", "-d 10.0.3.2", "-o wan", "-o wg+", "-o lo", "-m owner --uid-owner 1000", "-s 127.0.0.0/8"],
    ["! -d 10.0.2.0/24", "! -d 10.0.3.2", "! -o lo", "! -o wg+", "-m owner ! --uid-owner 1001"],
)


_INCOMING = (
    ["-s 10.0.2.0/24", "-s 10.0.3.2", "-i wan", "-i wg+", "-i lo", "-d 10.0.2.1"],
    ["! -s 10.0.2.0/24", "! -s 10.0.3.2", "! -i wan", "! -i wg+", "! -d 10.0.3.1"],
)


@st.composite
def _rules(
    draw: st.DrawFn,
    chain: str,
    targets: tuple[str, ...],
    known: tuple[list[str], list[str]] = _FACTS,
    protocols: tuple[str, ...] = ("tcp", "tcp", "udp", ""),
) -> str:
    target = draw(st.sampled_from(targets))
    protocol = draw(st.sampled_from(protocols))
    words = [f"-A {chain}", *([f"-p {protocol}"] if protocol else [])]
    if protocol and draw(st.integers(0, 4)):
        words.append(draw(_PORTS))
    # Mostly what can be written: exceptions for what is listed, blocks for all but what is.
    likely = known[1] if target in {"DROP", "REJECT"} else known[0]
    pool = likely if draw(st.integers(0, 3)) else [*known[0], *known[1]]
    facts = draw(st.lists(st.sampled_from(pool), max_size=2, unique_by=lambda fact: fact.replace("! ", "").split()[-2]))
    words += facts
    if protocol == "tcp" and not draw(st.integers(0, 5)):
        words.append("--syn" if target in {"DROP", "REJECT"} else "! --syn")
    return " ".join([*words, f"-j {target}"])


_FILES = st.builds(
    lambda policy, first, inner: "\n".join(
        ["*filter", f":OUTPUT {policy} [0:0]", ":inner - [0:0]", *first, *inner, "COMMIT", ""]
    ),
    st.sampled_from(["ACCEPT", "ACCEPT", "ACCEPT", "DROP"]),
    st.lists(
        _rules("OUTPUT", ("ACCEPT", "ACCEPT", "DROP", "DROP", "REJECT", "inner", "RETURN")), min_size=2, max_size=6
    ),
    st.lists(_rules("inner", ("ACCEPT", "DROP", "DROP", "REJECT", "RETURN")), max_size=4),
)
_PROBES = [
    (kind, target, port, user)
    for kind in (SYN, ACK, UDP)
    for target in ("10.0.2.2", "10.0.3.2", "127.0.0.1")
    for port in _SAMPLE
    for user in (0, 1000, 1001)
]
_seen = {"whole": 0, "plain": 0, "more": 0, "less": 0}


_MORE = """*filter
-A OUTPUT ! -o lo -p tcp --dport 25 -m owner --uid-owner 1000 -j ACCEPT
-A OUTPUT -p tcp --dport 25 -j DROP
COMMIT
"""
_LESS = """*filter
-A OUTPUT -d 10.0.2.2 -p tcp --dport 25 -j DROP
-A OUTPUT -p tcp --dport 26 -j DROP
COMMIT
"""
_WHOLE = """*filter
:inner - [0:0]
-A OUTPUT -p tcp --dport 20:30 ! -o lo -j inner
-A inner -d 10.0.3.0/24 -m owner --uid-owner 1000 -j ACCEPT
-A inner -d 10.0.2.0/24 -p tcp --dport 26 -j RETURN
-A inner -p tcp --dport 25:26 -j REJECT --reject-with tcp-reset
COMMIT
"""


_RETURNED = """*filter
:inner - [0:0]
-A OUTPUT -p tcp -j inner
-A OUTPUT -p tcp --dport 25 -j DROP
-A inner -o lo -j RETURN
-A inner -d 127.0.0.1 -j ACCEPT
-A inner -p tcp --dport 20:30 -j DROP
COMMIT
"""
_WENT = """*filter
:inner - [0:0]
-A OUTPUT -o wan -g inner
-A OUTPUT -p tcp --dport 20:26 -j DROP
-A inner -p tcp --dport 25:31 ! -d 10.0.2.2 -j DROP
COMMIT
"""


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(text=_FILES)
@example(text=_MORE)
@example(text=_LESS)
@example(text=_WHOLE)
@example(text=_RETURNED)
@example(text=_RETURNED.replace("-A inner -d 127.0.0.1 -j ACCEPT\n", ""))
@example(text=_WENT)
def test_what_is_translated_whole_stops_the_same_packets_and_else_the_findings_say_which_way_it_differs(
    host: Host2, text: str
) -> None:
    toml, findings = imported(text)
    fewer = ("so not blocked", "more widely")
    less = any(words in finding.why for finding in findings for words in fewer)
    more = any("blocked for it too" in finding.why for finding in findings)
    known = (*fewer, "blocked for it too", "ICMP and GRE")
    assert all(any(words in finding.why for words in known) for finding in findings), findings
    try:
        host.restore(text)
        before = {probe for probe in _PROBES if host.passes(*probe)}
        host.restore(_EMPTY)
        if toml:
            host.guard(toml)
        after = {probe for probe in _PROBES if host.passes(*probe)}
    finally:
        host.lift()
    shown = f"{text}\n{toml}\n{findings}"
    assert less or after <= before, shown
    assert more or before <= after, shown
    told = (
        "less" if less else "more" if more else "whole" if "allow" in toml and len(before) < len(_PROBES) else "plain"
    )
    _seen[told] += 1


_ARRIVING = st.builds(
    lambda first, inner: "\n".join(["*filter", ":inner - [0:0]", *first, *inner, "COMMIT", ""]),
    st.lists(
        _rules("INPUT", ("ACCEPT", "ACCEPT", "DROP", "DROP", "inner"), _INCOMING, ("tcp", "udp")),
        min_size=2,
        max_size=6,
    ),
    st.lists(_rules("inner", ("ACCEPT", "DROP", "REJECT", "RETURN"), _INCOMING, ("tcp", "udp")), max_size=3),
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(text=_ARRIVING)
def test_what_comes_in_is_stopped_the_same(host: Host2, text: str) -> None:
    toml, findings = imported(text)
    try:
        host.restore(text)
        before = host.reached()
        host.restore(_EMPTY)
        if toml:
            host.guard(toml)
        after = host.reached()
    finally:
        host.lift()
    shown = f"{text}\n{toml}\n{findings}"
    assert after <= before or any("so not blocked" in finding.why for finding in findings), shown
    assert before <= after or any("blocked for it too" in finding.why for finding in findings), shown


def test_that_was_no_empty_promise() -> None:
    """Enough of those files could be translated, and enough could not."""
    if sum(_seen.values()) >= 100:  # that test was asked for, too
        assert _seen["whole"] >= 10, _seen
        assert min(_seen.values()) >= 1, _seen


def test_open_connections_go_on_where_the_old_rules_asked_connection_tracking(host: Host2) -> None:
    text = """*filter
:OUTPUT DROP [0:0]
-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -p tcp -m conntrack --ctstate NEW -m tcp --dport 80 -j ACCEPT
COMMIT
"""
    toml, findings = imported(text)
    assert {finding.why.split()[0] for finding in findings} == {"not", "partly"}, "udp and icmp"

    def reached() -> list[bool]:
        """Whether a far host gets answers from port 8080 here, and this one from its ports 80 and 25."""
        found = []
        for client, server, address, port in (
            (host.far, host.near, "10.0.2.1", 8080),
            (host.near, host.far, "10.0.2.2", 80),
            (host.near, host.far, "10.0.2.2", 25),
        ):
            with contextlib.ExitStack() as stack:
                with server.entered():
                    listener = stack.enter_context(socket.create_server((address, port)))
                with client.entered():
                    sock = stack.enter_context(socket.socket())
                sock.settimeout(0.5 if port == 25 else 5)
                try:
                    sock.connect((address, port))
                    stack.enter_context(listener.accept()[0]).sendall(b"x")
                    found.append(sock.recv(1) == b"x")
                except OSError:
                    found.append(False)
        return found

    try:
        host.restore(text)
        assert reached() == [True, True, False]
        host.restore(_EMPTY)
        host.guard(toml)
        assert reached() == [True, True, False]
    finally:
        host.restore(_EMPTY)
        host.lift()
