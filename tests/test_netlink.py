"""The codec, and the events of a real kernel."""

from __future__ import annotations

import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard import hostinfo
from nftguard.wire import netlink
from nftguard.wire.watch import NetworkWatch, RulesetWatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.netns import Namespace


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=30)), max_size=5))
def test_what_is_packed_is_unpacked(attributes: list[tuple[int, bytes]]) -> None:
    body = b"".join(netlink.attribute(kind, value) for kind, value in attributes)
    (found,) = netlink.messages(netlink.message(7, body))
    assert found == netlink.Message(7, body)
    assert list(netlink.attributes(found.body)) == attributes


@given(st.binary(max_size=100))
def test_any_bytes_are_walked_to_an_end(data: bytes) -> None:
    assert len(list(netlink.messages(data))) <= len(data) // 16
    assert len(list(netlink.attributes(data))) <= len(data) // 4


@pytest.fixture
def ruleset(netns: Namespace) -> Iterator[RulesetWatch]:
    with netns.entered():
        watch = RulesetWatch()
    yield watch
    watch.socket.close()


@pytest.fixture
def network(netns: Namespace) -> Iterator[NetworkWatch]:
    with netns.entered():
        watch = NetworkWatch()
    yield watch
    watch.socket.close()


def test_a_change_of_our_table_names_who_made_it(netns: Namespace, ruleset: RulesetWatch) -> None:
    before = time.monotonic()
    with netns.entered():
        nft = subprocess.Popen(["nft", "add", "table", "inet", "nftguard"])
    assert nft.wait(10) == 0
    (change,) = ruleset.read()
    assert (change.pid, change.command) == (nft.pid, "nft")
    assert before < change.at < time.monotonic()


@pytest.mark.parametrize(
    "script",
    [
        "add table ip nftguard",
        "add table inet nftguard2",
        "add table inet other\nadd chain inet other nftguard\nadd rule inet other nftguard drop",
        "add table inet other\nadd set inet other nftguard { type mark; }",
    ],
)
def test_changes_elsewhere_are_not_ours(netns: Namespace, ruleset: RulesetWatch, script: str) -> None:
    netns.nft(script)
    netns.nft("flush ruleset")
    assert ruleset.read() == []


@pytest.mark.parametrize(
    "script",
    [
        "add chain inet nftguard c",
        "add rule inet nftguard d drop",
        "add set inet nftguard s { type mark; }",
        "add element inet nftguard m { 25 : drop }",
        "add counter inet nftguard c",
        "add table inet nftguard { flags dormant; }",
        "flush chain inet nftguard d",
        "flush ruleset",
    ],
)
def test_every_kind_of_change_of_our_table_is_seen(netns: Namespace, ruleset: RulesetWatch, script: str) -> None:
    netns.nft(
        "add table inet nftguard\nadd chain inet nftguard d\nadd rule inet nftguard d drop\n"
        "add map inet nftguard m { type inet_service : verdict; }"
    )
    assert len(ruleset.read()) == 1, "one transaction, one change"
    netns.nft(script)
    assert len(ruleset.read()) == 1


def test_lost_events_are_a_change_by_nobody_known(netns: Namespace) -> None:
    with netns.entered():
        watch = RulesetWatch()
        watch.socket.setsockopt(1, 33, 4096)  # SO_RCVBUFFORCE
    netns.nft("add table inet other\nadd chain inet other c")
    for _ in range(3):
        netns.nft("".join(f"add rule inet other c tcp dport {port} drop\n" for port in range(1, 500)))
    found = watch.read()
    watch.socket.close()
    assert [(change.pid, change.command) for change in found] == [(0, "")]


@pytest.mark.parametrize(
    ("command", "matters"),
    [
        ("link set d0 up", True),
        ("address add 10.7.0.1/24 dev d0", True),
        ("route add default via 10.6.0.2", True),
        ("route add 0.0.0.0/1 via 10.6.0.2", True),
        ("-6 route add 8000::/1 via fd06::2", True),
        ("-6 route add 2000::/3 via fd06::2", True),
        ("route add 64.0.0.0/2 via 10.6.0.2", True),
        ("route replace blackhole default metric 7", True),
        ("route delete default", True),
        ("link set d0 master br0", True),
        ("link set d0 name d9", True),
        ("nexthop add id 2 dev e0", True),
        ("nexthop delete id 1", True),
        ("route add 10.8.0.0/16 via 10.6.0.2", False),
        ("route add 10.0.0.0/8 via 10.6.0.2", False),
        ("-6 route add fc00::/7 via fd06::2", False),
        ("-6 route add fd08::/64 via fd06::2", False),
    ],
)
def test_links_addresses_and_default_routes_matter(
    netns: Namespace, network: NetworkWatch, command: str, matters: bool
) -> None:
    for setup in (
        "link add d0 type veth peer name d1", "link add e0 type veth peer name e1", "link set e1 up",
        "address add 10.6.0.1/24 dev e0", "address add fd06::1/64 dev e0 nodad", "link set e0 up",
        "link add br0 type bridge", "route add default via 10.6.0.2 metric 7", "nexthop add id 1 dev e0",
    ):  # fmt: skip
        netns.run("ip", *setup.split())
    time.sleep(0.1)
    while network.read():
        time.sleep(0.05)
    netns.run("ip", *command.split())
    assert network.read() is matters


def test_a_storm_of_routes_is_read_in_batches_and_matters_not(netns: Namespace, network: NetworkWatch) -> None:
    netns.run("ip", "route", "add", "10.6.0.0/24", "dev", "lo")
    while network.read():
        pass
    batch = "".join(f"route add 10.{i >> 8}.{i & 255}.0/24 dev lo\n" for i in range(30 << 8, 31 << 8))
    netns.run("ip", "-batch", "-", input=batch)
    assert network.read() is False


def test_the_unit_of_a_process_is_found_in_both_kinds_of_cgroup_tree(tmp_path: Path) -> None:
    for pid, cgroup, unit in (
        (1, "0::/system.slice/docker.service\n", "docker.service"),
        (2, "9:pids:/x\n1:name=systemd:/user.slice/user-0.slice/session-3.scope\n0::/\n", "session-3.scope"),
        (3, "0::/user.slice/user-1.slice/user@1.service/app.slice/a.service/sub\n", "user@1.service"),
        (4, "0::/\n", ""),
        (5, "nonsense", ""),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / f"{pid}/comm").write_text("nft\n")
        (tmp_path / f"{pid}/cgroup").write_text(cgroup)
        assert hostinfo.unit_of(pid, "nft", tmp_path) == unit
    assert hostinfo.unit_of(1, "bash", tmp_path) == "", "the id was taken by another process"
    assert hostinfo.unit_of(99, "nft", tmp_path) == ""


def test_a_refusal_with_a_number_beyond_all_errors_is_an_error_all_the_same() -> None:
    """Found by mutated answers: strerror(3) has no room for it."""
    with pytest.raises(OSError, match="Unknown error"):
        netlink.raise_for_error(netlink.Message(netlink.NLMSG_ERROR, struct.pack("=i", -(1 << 31))))
