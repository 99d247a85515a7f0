"""The netlink codec: messages and attributes, for the few families that nftguard speaks.

Formats: linux/include/uapi/linux/netlink.h and nfnetlink.h. Lengths come from outside and are checked: what does not
add up ends the walk.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
_NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
NFNL_SUBSYS_NFTABLES, NFNL_SUBSYS_ULOG = 10, 4
NFPROTO_INET, NFPROTO_BRIDGE = 1, 7
NFGENMSG = 4  # bytes: family, version, resource id; the attributes follow
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_RCVBUFFORCE = 33  # beyond net.core.rmem_max, with CAP_NET_ADMIN

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER


class Message(NamedTuple):
    """One message: its type, and what follows its header."""

    kind: int
    body: bytes


def open_socket(family: int, receive_buffer: int, *groups: int) -> socket.socket:
    """Open a non-blocking socket that hears the multicast groups; `receive_buffer` in bytes. Raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, family)
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError:
        sock.close()
        raise
    return sock


def messages(data: bytes, refused: int = 0) -> Iterator[Message]:
    """Walk over the messages of one datagram. Raises InterruptedError at one that has a `refused` flag."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        if flags & refused:
            raise InterruptedError(errno.EINTR, "what was asked for changed meanwhile")
        yield Message(kind, data[at + _HEADER.size : at + length])
        at += length + 3 & ~3


def attributes(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """Walk over type and value of the attributes from the offset `at` on."""
    end, header, unpack = len(data), _ATTRIBUTE.size, _ATTRIBUTE.unpack_from
    while at + header <= end:
        length, kind = unpack(data, at)
        if length < header or at + length > end:
            return
        yield kind & _TYPE_MASK, data[at + header : at + length]
        at += length + 3 & ~3


def message(kind: int, body: bytes, flags: int = NLM_F_REQUEST | NLM_F_ACK) -> bytes:
    """Build a message."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Build an attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _refusal(code: int) -> OSError:
    """Give the error for a code, which the kernel gives negated; strerror(3) takes no number beyond a C int."""
    number = min(-code, 0x7FFFFFFF)
    return OSError(number, os.strerror(number))


def raise_for_error(found: Message) -> bool:
    """Tell whether the message is an acknowledgement. Raises OSError with the kernel's code when it is a refusal."""
    if found.kind != NLMSG_ERROR or len(found.body) < 4:
        return False
    (code,) = struct.unpack_from("=i", found.body)
    if code:
        raise _refusal(code)
    return True


def ask(
    sock: socket.socket, kind: int, body: bytes, *, dump: bool = False, most: int = 1 << 20, whole: bool = False
) -> Iterator[Message]:
    """Ask, and give the answer: one message, or all those of a dump, at most so many.

    The kernel answers within the calls to send() and recv(), so that a socket that does not block will do. Raises
    OSError with the kernel's code for a refusal, also for one that ends a dump. With `whole`, a dump that the kernel
    marks as torn by a change (NLM_F_DUMP_INTR) ends in InterruptedError, and the socket has to be closed.
    """
    refused = _NLM_F_DUMP_INTR if whole else 0
    sock.send(message(kind, body, NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)))
    told = 0
    while told < most:
        for found in messages(sock.recv(1 << 16), refused):
            if found.kind == NLMSG_DONE:
                code = struct.unpack_from("=i", found.body)[0] if len(found.body) >= 4 else 0
                if code < 0:
                    raise _refusal(code)
                return
            raise_for_error(found)
            yield found
            told += 1
        if not dump:
            return


def receive(sock: socket.socket, most: int) -> tuple[list[bytes], bool]:
    """Read up to `most` datagrams that wait; the second value is True when the kernel says that some were lost.

    Raises OSError when the socket is of no more use.
    """
    found: list[bytes] = []
    for _ in range(most):
        try:
            found.append(sock.recv(1 << 16))
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return found, True
            raise
    return found, False
