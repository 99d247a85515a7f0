"""Sockets of this host, asked of the kernel: the one that made an attempt, and those of a program's clients.

Formats: linux/include/uapi/linux/sock_diag.h, inet_diag.h and tcp.h; behaviour: linux/net/ipv4/inet_diag.c and
udp_diag.c. CAP_NET_ADMIN is enough. The kernel answers a dump within send() and recv(), so nothing here waits.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nftguard.model import Hook, Protocol
from nftguard.wire import netlink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nftguard.wire.nflog import Attempt

MOST = 4096
"""Sockets of one program that are looked at, the listening ones first; the rest is left out."""

_BUFFER = 1 << 18
_NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
# TCP sockets of both families at once, while a request by family must walk the same hash table once for each. It is the
# older interface, which the kernel keeps (inet_diag_rcv_msg_compat).
_TCP_GETSOCK = 18  # TCPDIAG_GETSOCK

_REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2 to the socket's id: family, protocol, extensions, states
_OLD_REQUEST = struct.Struct("=BBBB")  # inet_diag_req to the socket's id, with the states behind it
_ID = struct.Struct("!HH16s16s")  # ports and addresses, local first; then, in the host's order:
_ID_REST = struct.Struct("=III")  # interface, cookie
_MESSAGE = struct.Struct("=BBBB")  # inet_diag_msg to the socket's id: family, state, timer, retransmissions
_MESSAGE_REST = struct.Struct("=IIIII")  # expires, rqueue, wqueue, uid, inode
_ID_AT, _REST_AT = _MESSAGE.size, _MESSAGE.size + _ID.size + _ID_REST.size
_ATTRIBUTES_AT = _REST_AT + _MESSAGE_REST.size
_NO_COOKIE = _ANY_STATE = 0xFFFFFFFF

_REQ_BYTECODE, _INFO, _CGROUP_ID = 1, 2, 21
_WANT_INFO = 1 << (_INFO - 1)
_BC_S_EQ, _BC_CGROUP_COND = 11, 13
_INFO_LAST_DATA_RECV = 52  # offset in struct tcp_info

_ESTABLISHED, _SYN_SENT, _LISTEN = 1, 2, 10
# Those in which a client's connection still is, or just was: ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK,
# CLOSING.
_CONNECTED = {_ESTABLISHED, 4, 5, 8, 9, 11}
_KNOWN = {Protocol.TCP, Protocol.UDP}
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:a.b.c.d


@dataclass(frozen=True, slots=True)
class Socket:
    """A local socket that made an attempt."""

    inode: int
    uid: int
    cgroup: int
    """The id of its control group (v2), which is that of the process that opened it; 0 where the kernel gives none."""
    state: int
    """TCP_SYN_SENT for TCP, TCP_CLOSE or TCP_ESTABLISHED for UDP: linux/include/net/tcp_states.h."""
    cookie: int
    """What the kernel gives to no other socket until it restarts."""
    repeats: int
    """How often its SYN has been sent again."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection that a program has accepted."""

    remote: str
    remote_port: int
    port: int
    quiet: int
    """Milliseconds, of a jiffy's precision, since data last came, or since it was accepted."""


class Entry(NamedTuple):
    """One socket as the kernel tells it."""

    state: int
    repeats: int
    port: int
    remote_port: int
    local: bytes  # 4 bytes, also of a v4-mapped address, or 16
    remote: bytes
    cookie: int
    uid: int
    inode: int
    cgroup: int
    info: bytes


def find(attempt: Attempt) -> Socket | None:
    """Find the socket that made an attempt on output, over TCP or UDP; None where there is none, or not only one.

    Of TCP it must have these very addresses and ports and still be in SYN_SENT. Of UDP it must be the only one on that
    port that could have sent the packet, since an unconnected one is bound to its own port alone. In both cases it must
    belong to the user that the packet came with.
    """
    if attempt.hook is not Hook.OUTPUT or attempt.protocol not in _KNOWN:
        return None
    try:
        source, destination = (ipaddress.ip_address(text).packed for text in (attempt.source, attempt.destination))
        if attempt.protocol is Protocol.TCP:
            found = _find_tcp(attempt, source, destination)
        else:
            found = _find_udp(attempt, source, destination)
    except (OSError, ValueError):  # ENOENT: no such socket
        return None
    if found is None or (attempt.uid is not None and attempt.uid != found.uid):
        return None
    return Socket(found.inode, found.uid, found.cgroup, found.state, found.cookie, found.repeats)


def _find_tcp(attempt: Attempt, source: bytes, destination: bytes) -> Entry | None:
    """Look one socket up; an IPv4 look-up finds v4-mapped IPv6 sockets, too."""
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
    try:  # a socket that is bound to an interface is found only by it
        interface = socket.if_nametoindex(attempt.outbound) if attempt.outbound else 0
    except OSError:
        interface = 0
    request = (
        _REQUEST.pack(family, attempt.protocol.number, 0, _states(_SYN_SENT))
        + _ID.pack(attempt.source_port, attempt.port, source.ljust(16, b"\0"), destination.ljust(16, b"\0"))
        + _ID_REST.pack(interface, _NO_COOKIE, _NO_COOKIE)
    )
    wanted = (_SYN_SENT, attempt.source_port, attempt.port, source, destination)
    for found in _ask(_BY_FAMILY, request):
        # Where there is none, the kernel gives a listening socket on that port.
        if (found.state, found.port, found.remote_port, found.local, found.remote) == wanted:
            return found
    return None


def _find_udp(attempt: Attempt, source: bytes, destination: bytes) -> Entry | None:
    condition = struct.pack("=BBHBBH", _BC_S_EQ, 8, 12, 0, 0, attempt.source_port)
    could = []
    for family in (socket.AF_INET, socket.AF_INET6) if len(source) == 4 else (socket.AF_INET6,):
        request = _REQUEST.pack(family, attempt.protocol.number, 0, _ANY_STATE) + bytes(_ID.size + _ID_REST.size)
        for found in _ask(_BY_FAMILY, request + netlink.attribute(_REQ_BYTECODE, condition), dump=True):
            own = not any(found.local) or found.local == source
            to = (found.remote_port, found.remote) == (attempt.port, destination) or not found.remote_port
            if found.port == attempt.source_port and own and to:
                could.append(found)
    return could[0] if len(could) == 1 else None


def connections(cgroup: int) -> list[Connection]:
    """List the TCP connections that the sockets of a control group have accepted, at most about MOST.

    Accepted are those on a port on which the control group listens. They are one look, not one moment: the kernel does
    not stop for it, and never says that it was interrupted. Raises OSError where the kernel gives nothing or not all.
    """
    request = (
        _OLD_REQUEST.pack(0, 0, 0, _WANT_INFO)
        + bytes(_ID.size + _ID_REST.size)
        + struct.pack("=II", _states(_LISTEN, *_CONNECTED), 0)
    )
    condition = struct.pack("=BBHQ", _BC_CGROUP_COND, 12, 16, cgroup)
    try:
        sockets = list(_ask(_TCP_GETSOCK, request + netlink.attribute(_REQ_BYTECODE, condition), dump=True))
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 5.10 there was no such condition
            raise
        sockets = list(_ask(_TCP_GETSOCK, request, dump=True))
    ours = [found for found in sockets if found.cgroup == cgroup]
    ports = {found.port for found in ours if found.state == _LISTEN}
    return [
        Connection(_shown(found.remote), found.remote_port, found.port, quiet)
        for found in ours
        if found.state in _CONNECTED and found.port in ports
        for quiet in [_quiet(found)]
        if quiet is not None
    ]


def listening() -> set[tuple[Protocol, str, int]]:
    """List the addresses and ports on which this host takes connections, or datagrams of anybody.

    Raises OSError where the kernel gives none.
    """
    found = {
        (Protocol.TCP, _shown(one.local), one.port)
        for one in _ask(_TCP_GETSOCK, _every(_LISTEN), dump=True)
        if one.state == _LISTEN
    }
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, Protocol.UDP.number, 0, _ANY_STATE) + bytes(_ID.size + _ID_REST.size)
        found |= {
            (Protocol.UDP, _shown(one.local), one.port)
            for one in _ask(_BY_FAMILY, request, dump=True)
            if not one.remote_port
        }
    return found


def established(port: int) -> set[tuple[str, int, str]]:
    """List the TCP connections of a local port: the peer's address and port, and the address here. Raises OSError."""
    return {
        (_shown(one.remote), one.remote_port, _shown(one.local))
        for one in _ask(_TCP_GETSOCK, _every(_ESTABLISHED), dump=True)
        if one.state == _ESTABLISHED and one.port == port
    }


def _every(*states: int) -> bytes:
    return _OLD_REQUEST.pack(0, 0, 0, 0) + bytes(_ID.size + _ID_REST.size) + struct.pack("=II", _states(*states), 0)


def _quiet(found: Entry) -> int | None:
    if len(found.info) < _INFO_LAST_DATA_RECV + 4:
        return None
    (quiet,) = struct.unpack_from("=I", found.info, _INFO_LAST_DATA_RECV)
    return int(quiet)


def _shown(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _states(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


def _ask(kind: int, request: bytes, *, dump: bool = False) -> Iterator[Entry]:
    """Ask for one socket or a dump of them, over a netlink socket of its own, so that no answer is left over."""
    with netlink.open_socket(_NETLINK_SOCK_DIAG, _BUFFER) as sock:
        for message in netlink.ask(sock, kind, request, dump=dump, most=MOST):
            found = decode(message.body) if message.kind == kind else None
            if found:
                yield found


def decode(body: bytes) -> Entry | None:
    """Decode one inet_diag_msg with its attributes; None where it is none."""
    if len(body) < _ATTRIBUTES_AT:
        return None
    family, state, _, repeats = _MESSAGE.unpack_from(body)
    port, remote_port, local, remote = _ID.unpack_from(body, _ID_AT)
    _, low, high = _ID_REST.unpack_from(body, _ID_AT + _ID.size)
    _, _, _, uid, inode = _MESSAGE_REST.unpack_from(body, _REST_AT)
    if family == socket.AF_INET:
        local, remote = local[:4], remote[:4]
    elif family != socket.AF_INET6:
        return None
    else:
        local, remote = local.removeprefix(_MAPPED), remote.removeprefix(_MAPPED)
    found = dict(netlink.attributes(body, _ATTRIBUTES_AT))
    cgroup = found.get(_CGROUP_ID, b"")
    return Entry(
        state,
        repeats,
        port,
        remote_port,
        local,
        remote,
        high << 32 | low,
        uid,
        inode,
        struct.unpack("=Q", cgroup)[0] if len(cgroup) == 8 else 0,
        found.get(_INFO, b""),
    )
