from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.model import Hook, Protocol
from nftguard.who import guests
from nftguard.who.cgroups import Tree
from nftguard.who.guests import Guests
from nftguard.wire.nflog import Attempt
from tests.groups import joining
from tests.netns import Namespace, connect

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

ID, OTHER = "0123456789ab" + "cdef" * 13, "ba9876543210" + "cdef" * 13
POD = "2f1c8e4a-9b7d-4c3e-8a6f-5d4c3b2a1908"


@pytest.fixture
def tree(base: Path) -> Iterator[Tree]:
    tree = Tree(base)
    yield tree
    tree.close()


@pytest.fixture
def inside(base: Path) -> Iterator[Callable[[str, Namespace], subprocess.Popen[str]]]:
    """Starts a process in a control group below the base and in a namespace."""
    started: list[subprocess.Popen[str]] = []

    def begin(path: str, netns: Namespace) -> subprocess.Popen[str]:
        (base / path).mkdir(parents=True, exist_ok=True)
        started.append(netns.popen(*joining(base / path, "sh", "-c", "echo; read x"), stdin=-1, stdout=-1))
        assert started[-1].stdout
        started[-1].stdout.readline()  # it is there
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def web(netns: Namespace) -> Iterator[Namespace]:
    """A guest's namespace, with the address 10.0.7.2 and fd00:7::2, joined to `netns`."""
    far = Namespace()
    connect(netns, far, "veth7", 7)
    yield far
    far.close()


def test_a_container_is_known_by_its_addresses(
    netns: Namespace, web: Namespace, tree: Tree, inside: Callable[..., object], clock: list[float]
) -> None:
    inside(f"system.slice/docker-{ID}.scope", web)
    with netns.entered():
        found = Guests(tree, lambda: clock[0])
        tree.read()
        assert found.guest("veth7", "10.0.7.2") == found.guest("veth7", "fd00:7::2") == "docker:0123456789ab"
        assert found.guest("veth7", "10.0.7.3") == ""
        assert found.guest("veth7", "127.0.0.1") == ""
        attempt = Attempt("x", Hook.FORWARD, Protocol.TCP, "10.0.7.2", 4000, "192.0.2.1", 25, inbound="veth7")
        culprit = found.culprit(attempt)
    assert (culprit.container, culprit.known_by) == ("docker:0123456789ab", "address")
    assert (culprit.source, culprit.interface, culprit.unit) == ("10.0.7.2", "veth7", "")


def test_a_system_container_is_known_by_a_process_further_down(
    netns: Namespace, web: Namespace, tree: Tree, inside: Callable[..., object]
) -> None:
    inside("lxc.payload.web/init.scope", web)
    tree.read()
    with netns.entered():
        assert Guests(tree).guest("veth7", "10.0.7.2") == "lxc:web"


def test_a_process_in_a_namespace_of_its_own_is_no_container_by_that(
    netns: Namespace, web: Namespace, tree: Tree, inside: Callable[..., object]
) -> None:
    inside(f"user.slice/user-1000.slice/user@1000.service/docker-{ID}.scope", web)
    tree.read()
    with netns.entered():
        assert Guests(tree).guest("veth7", "10.0.7.2") == ""


def test_a_container_on_the_hosts_own_network_is_not_taken_for_a_guest(
    netns: Namespace, web: Namespace, tree: Tree, inside: Callable[..., object]
) -> None:
    inside("lxc.payload.host", netns)
    tree.read()
    with netns.entered():
        assert Guests(tree).guest("veth7", "10.0.7.1") == ""
    assert web


def test_of_two_with_the_same_address_neither_is_named(
    netns: Namespace, web: Namespace, tree: Tree, inside: Callable[..., object], clock: list[float]
) -> None:
    inside("lxc.payload.web", web)
    tree.read()
    with netns.entered():
        found = Guests(tree, lambda: clock[0])
        assert found.guest("veth7", "10.0.7.2") == "lxc:web"
        other = Namespace()
        other.run("ip", "address", "add", "10.0.7.2/32", "dev", "lo")
        inside("lxc.payload.other", other)
        tree.read()
        clock[0] += 2
        assert found.guest("veth7", "10.0.7.2") == ""
        assert found.guest("veth7", "fd00:7::2") == "lxc:web"
    other.close()


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("docker/{ID}", "docker/{OTHER}"), ""),
        (("kubepods/pod{POD}/{ID}", "kubepods/pod{POD}/{OTHER}"), f"kubernetes:{POD}"),
        (("kubepods/pod{POD}/{ID}", "docker/{OTHER}"), ""),
    ],
)
def test_containers_that_share_a_network_are_named_only_as_a_pod(
    netns: Namespace,
    web: Namespace,
    tree: Tree,
    inside: Callable[..., object],
    paths: tuple[str, ...],
    expected: str,
) -> None:
    for path in paths:
        inside(path.format(ID=ID, OTHER=OTHER, POD=POD), web)
    tree.read()
    with netns.entered():
        assert Guests(tree).guest("veth7", "10.0.7.2") == expected


def test_an_address_that_has_gone_to_another_container_is_never_the_former_ones(
    netns: Namespace, web: Namespace, tree: Tree, inside: Callable[..., subprocess.Popen[str]], clock: list[float]
) -> None:
    first = inside("lxc.payload.first", web)
    tree.read()
    with netns.entered():
        found = Guests(tree, lambda: clock[0])
        assert found.guest("veth7", "10.0.7.2") == "lxc:first"
        first.kill()
        first.wait()
        inside("lxc.payload.second", web)
        assert found.guest("veth7", "10.0.7.2") == "", "at once: not known"
        clock[0] += 2
        assert found.guest("veth7", "10.0.7.2") == "lxc:second"
        web.run("ip", "address", "del", "10.0.7.2/24", "dev", "veth7-far")
        assert found.guest("veth7", "10.0.7.2") == ""


def test_without_control_groups_no_container_is_known(netns: Namespace) -> None:
    with netns.entered():
        assert Guests(None).guest("lo", "10.0.7.2") == ""


def test_no_privilege_is_needed(web: Namespace, base: Path, inside: Callable[..., object], netns: Namespace) -> None:
    inside("lxc.payload.web", web)
    code = (
        "import sys, pathlib; from nftguard.who.cgroups import Tree; from nftguard.who.guests import Guests;"
        "print(Guests(Tree(pathlib.Path(sys.argv[1]))).guest('veth7', '10.0.7.2'))"
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    done = netns.run(*command, sys.executable, "-c", code, str(base))
    assert (done.stdout, done.stderr) == ("lxc:web\n", "")


def test_the_lists_of_the_kernel_are_read() -> None:
    trie = b"""Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.7.0/24 2 0 2
        |-- 10.0.7.0
           /24 link UNICAST
        |-- 10.0.7.2
           /32 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
        |-- 10.0.7.255
           /32 link BROADCAST
        |-- 999.0.0.1
           /32 host LOCAL
"""
    six = b"fd000007000000000000000000000002 02 40 00 80 eth0\n00000000000000000000000000000001 01 80 10 80 lo\nx\n"
    assert guests.parse(trie, six) == {"10.0.7.2", "fd00:7::2"}


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_no_list_makes_it_fail(trie: bytes, six: bytes) -> None:
    guests.parse(trie, six)
