"""Packets out of a namespace as fast as one CPU makes them, and a tap that sees which of them got through."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from bench.namespace import ADDRESS, DEVICE, PEER

if TYPE_CHECKING:
    from collections.abc import Sequence

SYN, ACK = 0x02, 0x10
BLOCKED, BEAT = 25, 8080

_SO_TIMESTAMPNS = 35  # linux/include/uapi/asm-generic/socket.h
_ETH_P_ALL = 0x0003  # also hears what goes out; a single protocol's number hears only what comes in
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # linux/include/uapi/linux/if_packet.h
_SO_RCVBUFFORCE = 33
_TIME, _PORT = struct.Struct("=qq"), struct.Struct("!H")
_TAP_BUFFER = 64 << 20  # bytes; 80,000 packets, some 80 ms at full speed


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))  # struct iovec


class _Header(ctypes.Structure):
    _fields_ = (  # struct msghdr
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vectors_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))  # struct mmsghdr


_sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg


class Sender:
    """Sends prebuilt TCP segments again and again; made inside a namespace with a sink, it stays there.

    Raw IPv4 packets take the way of every other local packet through the output hook, without the cost and the state of
    a TCP connection.
    """

    def __init__(self, ports: Sequence[int], flags: int) -> None:
        """Prepare a segment with these TCP flags to each of the ports: one batch."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._socket.connect((PEER, 0))
        segments = [segment(port, flags) for port in ports]
        self._vectors = [_Vector(segment, len(segment)) for segment in segments]  # kept: the messages hold addresses
        self._messages = (_Message * len(segments))()
        for message, vector in zip(self._messages, self._vectors, strict=True):
            message.header.vectors, message.header.vectors_length = ctypes.pointer(vector), 1

    def send(self) -> int:
        """Send one batch in one system call; give how many packets the kernel took. A drop by a rule ends the call."""
        sent = int(_sendmmsg(self._socket.fileno(), self._messages, len(self._messages), 0))
        if sent < 0 and ctypes.get_errno() != errno.EPERM:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return sent

    def timed(self) -> float:
        """Send one batch of packets that no rule drops; give nanoseconds a packet."""
        begun = time.perf_counter_ns()
        sent = self.send()
        took = time.perf_counter_ns() - begun
        if sent != len(self._messages):
            raise RuntimeError(f"{sent} of {len(self._messages)} packets were sent")
        return took / sent


def flood() -> None:
    """Send SYNs to BLOCKED without a pause on the last CPU, and now and then a packet that passes: the beat.

    The beats show, while nothing else gets out, that it is for the rules and not because the sender did not run.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    attempts, beat = Sender([BLOCKED] * 16, SYN), Sender([BEAT], ACK)
    while True:
        for _ in range(8):
            attempts.send()
        beat.send()


def segment(port: int, flags: int) -> bytes:
    """Build an IPv4 packet with an empty TCP segment. The kernel fills in the IP checksum; nobody reads TCP's."""
    source, destination = IPv4Address(ADDRESS).packed, IPv4Address(PEER).packed
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0, source, destination)
    return ip + struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, flags, 65535, 0, 0)


class Tap:
    """Sees every packet that reaches the sink, with the kernel's time; made inside a namespace, it stays there."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _TAP_BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.bind((DEVICE, _ETH_P_ALL))

    def read(self) -> list[tuple[int, int]]:
        """Read what waits: time in nanoseconds and port of each packet. Raises BufferError when some were not kept."""
        packets: list[tuple[int, int]] = []
        try:
            while True:
                frame, control, _, _ = self._socket.recvmsg(64, 64)
                seconds, nanoseconds = _TIME.unpack(control[0][2])
                packets.append((seconds * 10**9 + nanoseconds, *_PORT.unpack_from(frame, 14 + 20 + 2)))
        except BlockingIOError:
            pass
        seen, dropped = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        if dropped:
            raise BufferError(f"the tap lost {dropped} of {seen} packets: the rules stayed away for long")
        return packets

    def clear(self) -> None:
        """Forget what waits, also that some was lost."""
        with contextlib.suppress(BufferError):
            self.read()
