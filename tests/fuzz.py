"""A fuzzer for what comes from the kernel but was made by others: packets, sockets, control groups. `make fuzz`.

Real messages are captured from this kernel, then bytes of them are changed, cut out, doubled, and put in. Whatever
comes of it: no exception, and no field that is not where it should be in those bytes, by a reading of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import struct
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from nftguard import inotify
from nftguard.kernel import Nftables
from nftguard.model import Hook, Protocol
from nftguard.reconcile import reconcile
from nftguard.wire import netlink, nflog, sockdiag, watch
from nftguard.wire.nflog import Reader
from tests.examples import table_of
from tests.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS = {6: Protocol.TCP, 17: Protocol.UDP, 33: Protocol.DCCP, 132: Protocol.SCTP}
HOOKS = {1: Hook.INPUT, 2: Hook.FORWARD, 3: Hook.OUTPUT}
BLOCK = '[[block]]\nname = "mail"\nports = [25]\nprotocols = ["tcp", "udp"]\n'


def capture() -> dict[str, list[bytes]]:
    """Take messages of each kind from the kernel, in a namespace of our own."""
    namespace = Namespace()
    found: dict[str, list[bytes]] = {}
    with namespace.entered():
        kernel, reader, ruleset = Nftables(), Reader(25), watch.RulesetWatch()
        reconcile(kernel, table_of(BLOCK))
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.setblocking(False)
            tcp.connect_ex(("::1", 25))
            udp.connect(("127.0.0.1", 25))
            with contextlib.suppress(PermissionError):  # what a drop gives to a datagram
                udp.send(b"x")
            time.sleep(0.05)
            found["nflog"] = netlink.receive(reader.socket, 16)[0]
            with netlink.open_socket(4, 1 << 18) as diag:
                for family in (socket.AF_INET, socket.AF_INET6):
                    # struct inet_diag_req_v2: every TCP socket, with its struct tcp_info
                    diag.send(netlink.message(20, struct.pack("=BBBxI48x", family, 6, 2, 0xFFFFFFFF), 0x301))
                    found["sock_diag"] = found.get("sock_diag", []) + netlink.receive(diag, 16)[0]
            found["ruleset"] = netlink.receive(ruleset.socket, 64)[0]
        kernel.close()
        reader.close()
        ruleset.socket.close()
    namespace.close()
    name = b"system.slice\0\0\0\0"
    found["inotify"] = [struct.pack("=iIII", 1, 0x40000100, 0, len(name)) + name]
    assert all(found.values()), found
    return found


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Change a message in a few places."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(6):
            case 0 | 1 if at < len(changed):
                changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 2:
                del changed[at : at + chance.randrange(1, 9)]
            case 3:
                changed[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 4:
                changed[at:at] = changed[at : at + chance.randrange(1, 65)]
            case _:
                del changed[at:]
    return bytes(changed)


def nflog_message(data: bytes) -> None:
    for _, body in netlink.messages(data):
        found = dict(netlink.attributes(body, netlink.NFGENMSG))
        attempt = nflog.decode(found)
        if attempt:
            check(attempt, found)


def check(attempt: nflog.Attempt, found: dict[int, bytes]) -> None:
    """Read the same bytes in another way."""
    packet = found[9]
    assert attempt.hook == HOOKS[found[1][2]]
    assert attempt.block == found.get(10, b"").rstrip(b"\0").decode()
    assert (attempt.uid, attempt.gid) == tuple(int.from_bytes(found[at]) if at in found else None for at in (11, 14))
    if packet[0] >> 4 == 4:
        family, ends, header, number = socket.AF_INET, (12, 16, 20), (packet[0] & 15) * 4, packet[9]
        size = int.from_bytes(packet[2:4])
    else:
        family, ends = socket.AF_INET6, (8, 24, 40)
        number, header = extensions(packet, packet[6], 40)
        size = 40 + int.from_bytes(packet[4:6])
    packed = [packet[begin:end] for begin, end in pairwise(ends)]
    assert [socket.inet_pton(family, one) for one in (attempt.source, attempt.destination)] == packed
    assert (attempt.protocol, attempt.size) == (NUMBERS[number], size)
    ports = [int.from_bytes(packet[header + at : header + at + 2]) for at in (0, 2)]
    assert [attempt.source_port, attempt.port] == ports
    assert attempt.sequence == int.from_bytes(packet[header + 4 : header + 8])


def extensions(packet: bytes, number: int, at: int) -> tuple[int, int]:
    match number:
        case 0 | 43 | 60:
            return extensions(packet, packet[at], at + 8 * (1 + packet[at + 1]))
        case 44:
            return extensions(packet, packet[at], at + 8)
        case 51:
            return extensions(packet, packet[at], at + 4 * (2 + packet[at + 1]))
    return number, at


def sock_diag_message(data: bytes) -> None:
    for message in netlink.messages(data):
        body = message.body
        found = sockdiag.decode(body)
        if found is None:
            assert len(body) < 72 or body[0] not in {socket.AF_INET, socket.AF_INET6}
            continue
        assert (found.port, found.remote_port) == struct.unpack("!HH", body[4:8])
        assert found.inode == int.from_bytes(body[68:72], sys.byteorder)
        assert found.uid == int.from_bytes(body[64:68], sys.byteorder)
        assert found.cookie == int.from_bytes(body[44:52], sys.byteorder)
        assert body[8:24].startswith(found.local) or body[8:24].endswith(found.local)
        assert found.state == body[1]
        assert not found.cgroup or found.cgroup.to_bytes(8, sys.byteorder) in body[72:]
        assert found.info in body[72:]


def ruleset_message(data: bytes) -> None:
    quiet = watch.RulesetWatch.__new__(watch.RulesetWatch)
    quiet._touched = True  # as after a message that named our table
    for change in quiet._changes(data):
        assert change.command.isprintable()
        assert not change.pid or change.pid.to_bytes(4) in data


def inotify_events(data: bytes) -> None:
    for watched, _, name in inotify.events(data):
        assert watched.to_bytes(4, sys.byteorder, signed=True) in data
        assert os.fsencode(name) in data


TARGETS: dict[str, Callable[[bytes], None]] = {
    "nflog": nflog_message,
    "sock_diag": sock_diag_message,
    "ruleset": ruleset_message,
    "inotify": inotify_events,
}


def run(count: int, seed: int) -> dict[str, int]:
    """Try `count` mutated messages in all; give how many of each kind."""
    samples = capture()
    chance = random.Random(seed)  # noqa: S311 - to be repeated
    done = dict.fromkeys(TARGETS, 0)
    kinds = ["nflog", "nflog", "sock_diag", "sock_diag", "ruleset", "inotify"]
    for _ in range(count):
        kind = chance.choice(kinds)
        data = mutate(chance.choice(samples[kind]), chance)
        try:
            TARGETS[kind](data)
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}: {error!r} on {data.hex()}") from error
        done[kind] += 1
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None)
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(1 << 32)
    began = time.monotonic()
    done = run(asked.count, seed)
    told = ", ".join(f"{number:,} {kind}" for kind, number in done.items())
    print(f"no exception, no wrong field: {told}; seed {seed}, {time.monotonic() - began:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
