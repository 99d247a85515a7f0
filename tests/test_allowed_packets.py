"""What is allowed for a while, in the kernel: whom it lets through, with real packets over IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from nftguard import policy
from nftguard.host import Host
from nftguard.model import Set
from nftguard.reconcile import reconcile
from tests.examples import config_of
from tests.groups import joining
from tests.world import HOST, MAIL, MALLORY, POSTFIX, asked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nftguard.allowed.grant import Grant
    from nftguard.kernel import Nftables
    from tests.netns import Namespace


FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])


def let(kernel: Nftables, *given: Grant, host: Host = HOST, seconds: int = 300) -> None:
    """Apply the blocks with these allowances."""
    found = tuple(one for grant in given for one in grant.allowances(seconds))
    reconcile(kernel, policy.build(config_of(MAIL), kernel.features, host, found))


@contextlib.contextmanager
def listening(netns: Namespace, family: int, *ports: int) -> Iterator[dict[int, socket.socket]]:
    with netns.entered(), contextlib.ExitStack() as stack:
        found = {}
        for port in ports:
            found[port] = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            found[port].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            found[port].bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
            found[port].listen()
            found[port].settimeout(10)
        yield found


@contextlib.contextmanager
def socket_of(netns: Namespace, family: int, uid: int, gid: int = 0) -> Iterator[socket.socket]:
    """A socket that belongs to a user."""
    with netns.entered():
        os.setegid(gid)
        os.seteuid(uid)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        finally:
            os.seteuid(0)
            os.setegid(0)
    with sock:
        yield sock


def passes(netns: Namespace, family: int, port: int, uid: int = 0, gid: int = 0) -> bool:
    with socket_of(netns, family, uid, gid) as sock:
        sock.settimeout(0.1)
        try:
            sock.connect(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
        except TimeoutError:
            return False
        return True


def sending(target: str) -> list[str]:
    """A command that connects to port 587, or fails."""
    code = "import socket, sys; socket.create_connection((sys.argv[1], 587), .1)"
    return ["/usr/bin/python3", "-ISc", code, target]


@FAMILIES
def test_whom_it_names_passes_at_that_port_and_nobody_else(netns: Namespace, kernel: Nftables, family: int) -> None:
    with listening(netns, family, 25, 587):
        let(kernel)
        assert not passes(netns, family, 587, POSTFIX)
        let(kernel, asked())
        assert passes(netns, family, 587, POSTFIX), "though two blocks name the port"
        assert not passes(netns, family, 25, POSTFIX)
        assert not passes(netns, family, 587, MALLORY)
        let(kernel, asked(user=None, group="mail"))
        assert passes(netns, family, 587, MALLORY, 8)
        assert not passes(netns, family, 587, POSTFIX), "taken back"
        let(kernel, asked(user=None, anyone=True, ports="25"))
        assert passes(netns, family, 25, MALLORY)
        assert not passes(netns, family, 587, MALLORY)


@FAMILIES
@pytest.mark.parametrize("end", ["to", "from"])
def test_where_it_goes_or_comes_from_may_be_named(netns: Namespace, kernel: Nftables, family: int, end: str) -> None:
    here = {socket.AF_INET: "127.0.0.0/8", socket.AF_INET6: "::1"}[socket.AddressFamily(family)]
    other = {socket.AF_INET: "::/1", socket.AF_INET6: "192.0.2.0/24"}[socket.AddressFamily(family)]
    with listening(netns, family, 25, 587):
        let(kernel, asked(user=None, **{end: other}))
        assert not passes(netns, family, 587)
        let(kernel, asked(user=None, **{end: here}))
        assert passes(netns, family, 587)
        assert not passes(netns, family, 25)


@FAMILIES
def test_a_unit_may_be_named(netns: Namespace, kernel: Nftables, base: Path, family: int) -> None:
    where = {str(base.stat().st_ino): str(base.relative_to("/sys/fs/cgroup"))}
    sender = sending("::1" if family == socket.AF_INET6 else "127.0.0.1")
    grant = asked(user=None, unit="mta.service")
    with listening(netns, family, 587):
        let(kernel, grant)
        assert netns.run(*joining(base, *sender), check=False).returncode == 1, "the unit is not there"
        let(kernel, grant, host=Host(units={"mta.service": where}))
        assert netns.run(*joining(base, *sender), check=False).returncode == 0
        assert netns.run(*sender, check=False).returncode == 1, "another unit"


@FAMILIES
def test_the_kernel_ends_it_though_nobody_is_left_who_would(netns: Namespace, kernel: Nftables, family: int) -> None:
    """And one that was given again meanwhile goes on."""
    with listening(netns, family, 25, 587):
        let(kernel, asked(ports="25 587"), seconds=1)
        assert passes(netns, family, 25, POSTFIX)
        short = asked(ports="25").allowances(1)
        long = asked(ports="587").allowances(300)
        reconcile(kernel, policy.build(config_of(MAIL), kernel.features, HOST, (*short, *long)))
        kernel.close()
        end = time.monotonic() + 10
        while passes(netns, family, 25, POSTFIX):
            assert time.monotonic() < end
        assert passes(netns, family, 587, POSTFIX)


def test_time_that_passes_is_no_difference_and_more_time_is_one(kernel: Nftables) -> None:
    let(kernel, asked(), seconds=300)
    for seconds, changed in ((297, False), (1800, True), (60, True)):
        desired = policy.build(config_of(MAIL), kernel.features, HOST, tuple(asked().allowances(seconds)))
        assert bool(reconcile(kernel, desired).plan) is changed
        live = kernel.snapshot()
        assert live
        found = live.sets["allowed.output.users"]
        assert isinstance(found, Set)
        assert abs(found.left[f"tcp . 587 . {POSTFIX}"] - seconds) <= 5
    let(kernel)
    live = kernel.snapshot()
    assert live
    assert not [name for name in (*live.chains, *live.sets) if name.startswith("allowed")]


@FAMILIES
def test_what_an_allowed_user_sent_before_closing_arrives_whole(
    netns: Namespace, kernel: Nftables, family: int
) -> None:
    """A socket that is closed with data left to send has no owner any more."""
    with listening(netns, family, 587) as listeners, socket_of(netns, family, POSTFIX) as sock:
        let(kernel, asked())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.connect(listeners[587].getsockname()[:2])
        server, _ = listeners[587].accept()
        with server:
            sock.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += sock.send(bytes(65536))
            sock.close()
            server.settimeout(3)
            received = 0
            while data := server.recv(65536):
                received += len(data)
    assert received == sent > 100_000
