"""Packets of blocked attempts: made up byte by byte, and hostile ones."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.errors import UnavailableError
from nftguard.model import Hook, Protocol
from nftguard.wire.nflog import Attempt, Reader, decode

if TYPE_CHECKING:
    from tests.netns import Namespace

HEADER, PAYLOAD, PREFIX, UID, SEQ, GID = 1, 9, 10, 11, 12, 14
OUTPUT = struct.pack("!HBB", 0x0800, 3, 0)
PORTS = struct.pack("!HHI", 40000, 25, 7)


def ipv4(protocol: int = 6, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    return (
        struct.pack("!BBHHHBBH4s4s", 0x40 | words, 0, 40, 0, 0, 64, protocol, 0, b"\x0a\0\0\1", b"\x0a\0\0\2") + options
    )


def ipv6(next_header: int, *extensions: bytes) -> bytes:
    source, destination = (socket.inet_pton(socket.AF_INET6, f"fd00::{host}") for host in (1, 2))
    return struct.pack("!IHBB16s16s", 6 << 28, 40, next_header, 64, source, destination) + b"".join(extensions)


def message(packet: bytes, **more: bytes) -> dict[int, bytes]:
    found = {HEADER: OUTPUT, PAYLOAD: packet, PREFIX: b"mail\0"}
    return found | {
        {"uid": UID, "gid": GID, "header": HEADER, "prefix": PREFIX}[name]: value for name, value in more.items()
    }


def test_an_ipv4_packet_is_decoded() -> None:
    found = decode(message(ipv4() + PORTS, uid=struct.pack("!I", 1000), gid=struct.pack("!I", 100)))
    assert found == Attempt(
        "mail", Hook.OUTPUT, Protocol.TCP, "10.0.0.1", 40000, "10.0.0.2", 25, 1000, 100, 7, 40, ttl=64
    )


def test_options_are_skipped() -> None:
    found = decode(message(ipv4(17, bytes(12)) + PORTS))
    assert found
    assert (found.protocol, found.port, found.uid) == (Protocol.UDP, 25, None)


@pytest.mark.parametrize(
    "packet",
    [
        ipv6(6),
        ipv6(0, bytes([6, 0]) + bytes(6)),
        ipv6(0, bytes([43, 0]) + bytes(6), bytes([60, 1]) + bytes(14), bytes([6, 0]) + bytes(6)),
        ipv6(44, bytes([6, 0]) + bytes(6)),
        ipv6(51, bytes([6, 4]) + bytes(22)),
    ],
    ids=["plain", "hop-by-hop", "three in a row", "fragment", "authentication"],
)
def test_an_ipv6_packet_is_decoded_past_its_extension_headers(packet: bytes) -> None:
    found = decode(message(packet + PORTS))
    assert found == Attempt(
        "mail", Hook.OUTPUT, Protocol.TCP, "fd00::1", 40000, "fd00::2", 25, None, None, 7, 80, ttl=64
    )


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_hook_is_told_by_its_number(number: int) -> None:
    found = decode(message(ipv4() + PORTS, header=struct.pack("!HBB", 0x0800, number, 0)))
    assert found
    assert found.hook == {1: "input", 2: "forward", 3: "output"}[number]


@pytest.mark.parametrize(
    "found",
    [
        {},
        message(b""),
        message(ipv4()),
        message(ipv4() + PORTS[:3]),
        message(ipv4(1) + PORTS),
        message(b"\x45"),
        message(b"\x50" + bytes(60)),
        message(ipv6(0)),
        message(ipv6(0, bytes([0, 0]) + bytes(6))),
        message(ipv6(0, bytes([6, 255]))),
        message(ipv4() + PORTS, header=b"\0"),
        message(ipv4() + PORTS, header=bytes([8, 0, 9, 0])),
        message(ipv4() + PORTS, uid=b"\0"),
        message(ipv4() + PORTS, prefix=b"\xff\xfe"),
    ],
)
def test_what_is_no_packet_of_ours_is_none(found: dict[int, bytes]) -> None:
    assert decode(found) is None


@given(st.binary(max_size=200), st.binary(max_size=4), st.binary(max_size=10))
def test_any_bytes_are_an_attempt_or_none(packet: bytes, header: bytes, prefix: bytes) -> None:
    for payload in (packet, ipv4()[:20] + packet, ipv6(0) + packet):
        found = decode({HEADER: header, PAYLOAD: payload, PREFIX: prefix}) or decode(message(payload))
        assert found is None or 0 <= found.port <= 65535


def test_a_group_has_one_reader(netns: Namespace) -> None:
    with netns.entered():
        first = Reader(7)
        with pytest.raises(UnavailableError, match="NFLOG group 7: another program reads it"):
            Reader(7)
        other = Reader(8)
        first.close()
        again = Reader(7)
    for reader in (other, again):
        reader.close()


def test_gaps_in_the_sequence_are_counted_as_lost(netns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from nftguard.wire import netlink

    with netns.entered():
        reader = Reader(7)
    try:
        numbers = [5, 6, 9, 10, 0xFFFFFFFF, 0, 1]
        datagrams = []
        for number in numbers:
            attributes = message(ipv4() + PORTS) | {SEQ: struct.pack("!I", number)}
            body = bytes(4) + b"".join(netlink.attribute(kind, value) for kind, value in attributes.items())
            datagrams.append(netlink.message(4 << 8, body))
        monkeypatch.setattr(netlink, "receive", lambda _socket, _most: (datagrams, True))
        assert len(reader.read()) == len(numbers)
        assert reader.take_lost() == 2 + (0xFFFFFFFF - 11)
        assert reader.take_lost() == 0
    finally:
        reader.close()


def test_a_reader_without_privilege_says_so(netns: Namespace) -> None:
    import sys

    code = "import os; from nftguard.wire.nflog import Reader; os.setuid(65534); Reader(7)"
    done = netns.run(sys.executable, "-c", code, check=False)
    assert "UnavailableError: blocked attempts cannot be read from NFLOG group 7" in done.stderr
