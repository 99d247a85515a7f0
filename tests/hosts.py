"""Three hosts in a row, and packets between them: real ones, over IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from nftguard import policy, surroundings
from nftguard.kernel import Nftables
from nftguard.reconcile import reconcile
from tests.examples import config_of
from tests.netns import Namespace, connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nftguard.host import Host

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])


class Hosts:
    """Three hosts in a row: `inner` behind `guarded`, which forwards for it, and `outer` beyond."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.inner, self.guarded, self.outer = (Namespace() for _ in range(3))
        for namespace in (self.inner, self.guarded, self.outer):
            stack.callback(namespace.close)
        connect(self.guarded, self.inner, "in", 1)
        connect(self.guarded, self.outer, "out", 2)
        self.guarded.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.guarded.run("ip", "route", "add", "default", "via", "10.0.2.2")
        self.guarded.run("ip", "-6", "route", "add", "default", "via", "fd00:2::2")
        for host, network in ((self.inner, 1), (self.outer, 2)):
            host.run("ip", "route", "add", "default", "via", f"10.0.{network}.1")
            host.run("ip", "-6", "route", "add", "default", "via", f"fd00:{network}::1")
        with self.guarded.entered():
            self.kernel = Nftables()
            stack.callback(self.kernel.close)

    def guard(self, text: str, host: Host | None = None) -> None:
        """Put a configuration in force, with what its names stand for here, or as `host` says."""
        config = config_of(text)
        with self.guarded.entered():
            found, _ = surroundings.once(config)
            reconcile(self.kernel, policy.build(config, host=host or found))

    def packets(self) -> dict[str, int]:
        table = self.kernel.snapshot()
        assert table
        return {name: counter.packets for name, counter in table.counters.items()}


def address(family: int, number: int, host: int = 2) -> str:
    return f"10.0.{number}.{host}" if family == socket.AF_INET else f"fd00:{number}::{host}"


@contextlib.contextmanager
def listening(where: Namespace, family: int, ports: tuple[int, ...]) -> Iterator[dict[int, socket.socket]]:
    with where.entered(), contextlib.ExitStack() as stack:
        sockets = {}
        for port in ports:
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))  # noqa: S104 - inside the namespace
            sock.listen()
            sockets[port] = sock
        yield sockets


@contextlib.contextmanager
def arrivals(where: Namespace, family: int) -> Iterator[socket.socket]:
    """Every TCP segment that reaches a host, seen by a raw socket at the receiving end."""
    with where.entered(), socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        sock.settimeout(0.2)
        yield sock


def arrived_ports(sock: socket.socket, family: int) -> set[int]:
    ports = set()
    with contextlib.suppress(TimeoutError):
        while data := sock.recv(4096):
            segment = data[(data[0] & 15) * 4 :] if family == socket.AF_INET else data  # IPv6: without its header
            ports.add(struct.unpack_from("!H", segment, 2)[0])
    return ports


def attempt(where: Namespace, family: int, host: str, port: int, patience: float = 0.15) -> int:
    """Try to connect; give the error number, ETIMEDOUT when nothing came back in time."""
    with where.entered(), socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(patience)
        try:
            sock.connect((host, port))
        except TimeoutError:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or 0
        return 0


def syn(where: Namespace, host: str, port: int, count: int, kind: int = 0x02, source: int = 40000) -> None:
    """Send exactly `count` TCP segments with the given flags over IPv4, past the TCP stack."""
    with where.entered(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        sock.connect((host, 0))
        pseudo = socket.inet_aton(sock.getsockname()[0]) + socket.inet_aton(host) + struct.pack("!BBH", 0, 6, 20)
        segment = struct.pack("!HHIIBBHHH", source, port, 1, 0, 5 << 4, kind, 8192, 0, 0)
        total = sum(struct.unpack("!16H", pseudo + segment))
        total = (total & 0xFFFF) + (total >> 16)
        segment = segment[:16] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + segment[18:]
        for _ in range(count):
            with contextlib.suppress(PermissionError):  # a raw socket is told of a drop on output
                sock.send(segment)


def attempt_as(
    where: Namespace,
    family: int,
    host: str,
    port: int,
    *,
    uid: int = 0,
    gid: int = 0,
    group: Path | None = None,
    source: str = "",
    kind: int = socket.SOCK_STREAM,
) -> int:
    """Try to connect, or send a datagram, as another user, group, or from a control group; give the error number."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            if group:
                (group / "cgroup.procs").write_text(str(os.getpid()))
            where.enter()
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            with socket.socket(family, kind) as sock:  # whoever opens it is its owner
                sock.settimeout(0.15)
                sock.bind((source, 0))
                sock.connect((host, port))
                code = 0
                if kind == socket.SOCK_DGRAM:
                    sock.send(b"x")
        except OSError as error:
            code = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
