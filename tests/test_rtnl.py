"""Links, addresses and default routes of a real kernel, and answers that no kernel gives."""

from __future__ import annotations

import errno
import os
import random
import struct
import time
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.errors import UnavailableError
from nftguard.network import Link, Network
from nftguard.wire import netlink, rtnl
from tests.fuzz import mutate
from tests.netns import Namespace
from tests.test_network import ports, sides


def ip(namespace: Namespace, *commands: str) -> None:
    for command in commands:
        namespace.run("ip", *command.split())


def look(namespace: Namespace) -> Network:
    with namespace.entered():
        return rtnl.look()


def uplinks(namespace: Namespace) -> set[str]:
    return set(look(namespace).uplinks)


@pytest.fixture
def host(netns: Namespace) -> Namespace:
    """Two cables, each with a network in both families, and no default route."""
    for number, name in enumerate(("eth0", "eth1")):
        ip(
            netns,
            f"link add {name} type veth peer name {name}-far",
            f"address add 10.6.{number}.1/24 dev {name}",
            f"address add fd06:{number}::1/64 dev {name} nodad",
            f"link set {name} up",
        )
    return netns


@pytest.fixture
def up(host: Namespace) -> Namespace:
    """The same, with their far ends up: the cables are plugged in."""
    ip(host, "link set eth0-far up", "link set eth1-far up")
    return host


def test_a_new_namespace_has_the_loopback_alone(netns: Namespace) -> None:
    assert look(netns) == Network(local=frozenset({"127.0.0.0/8", "::1/128"}))


def test_a_docker_host_is_seen_as_it_is(up: Namespace) -> None:
    ip(
        up,
        "link add docker0 type bridge",
        "address add 172.17.0.1/16 dev docker0",
        "link set docker0 up",
        "link add veth1 type veth peer name inside",
        "link set veth1 up master docker0",
        "tuntap add vnet0 mode tap",
        "link set vnet0 master docker0",
        "route add default via 10.6.0.2",
        "-6 route add default via fd06::2 dev eth0",
    )
    found = look(up)
    assert found.uplinks == {"eth0"}
    assert found.inner == {"docker0", "eth1", "eth0-far", "eth1-far"}
    assert ports(found) == (set(), {"veth1", "vnet0"})
    assert found.local == {
        "127.0.0.0/8", "::1/128", "fe80::/64", "10.6.0.0/24", "10.6.1.0/24", "172.17.0.0/16", "fd06::/64",
        "fd06:1::/64",
    }  # fmt: skip


def test_links_come_with_kind_master_and_what_they_sit_on(netns: Namespace) -> None:
    other = Namespace()
    ip(
        netns,
        "link add v0 type veth peer name v1",
        "link add br0 type bridge",
        "link set v1 master br0 up",
        "link add mac0 link v0 type macvlan",
        "tuntap add tun0 mode tun",
        f"link add out0 type veth peer name in0 netns {other.path}",
    )
    with netns.entered(), netlink.open_socket(netlink.NETLINK_ROUTE, 1 << 20) as sock:
        found = {link.name: link for link in rtnl.links(sock)}
    other.close()
    index = {name: link.index for name, link in found.items()}
    assert found == {
        "lo": Link(1, "lo", "", 0, up=True),
        "v0": Link(index["v0"], "v0", "veth", 0, up=False, lower=index["v1"]),
        "v1": Link(index["v1"], "v1", "veth", index["br0"], up=True, lower=index["v0"]),
        "br0": Link(index["br0"], "br0", "bridge", 0, up=False),
        "mac0": Link(index["mac0"], "mac0", "macvlan", 0, up=False, lower=index["v0"]),
        "tun0": Link(index["tun0"], "tun0", "tun", 0, up=False),
        "out0": Link(index["out0"], "out0", "veth", 0, up=False),  # its peer's index is of another namespace
    }


@pytest.mark.parametrize(
    "route",
    [
        "default via 10.6.0.2",
        "default dev eth0 scope link",
        "default via 10.6.0.2 table 51820",
        "0.0.0.0/1 via 10.6.0.2",
        "128.0.0.0/1 via 10.6.0.2",
        "-6 default via fd06::2 dev eth0",
        "-6 default from fd06::/64 via fd06::2 dev eth0",
        "-6 default via fd06::2 dev eth0 table 200",
        "-6 ::/1 via fd06::2 dev eth0",
        "-6 8000::/1 via fd06::2 dev eth0",
        "-6 2000::/3 via fd06::2 dev eth0",
        "-6 3000::/4 via fd06::2 dev eth0",
    ],
)
def test_a_route_to_the_world_makes_an_uplink_until_it_goes(host: Namespace, route: str) -> None:
    family, what = ("-6", route[3:]) if route.startswith("-6") else ("-4", route)
    ip(host, f"{family} route add {what}")
    found = look(host)
    assert found.uplinks == {"eth0"}
    assert found.inner == {"eth1"}
    ip(host, f"{family} route delete {what}")
    found = look(host)
    assert sides(found) == (set(), {"eth0", "eth1"})


@pytest.mark.parametrize("route", ["-4 route add 64.0.0.0/2", "-4 route add 8.0.0.0/7", "-6 route add 2400::/6"])
def test_an_interface_to_a_large_part_of_the_world_is_not_inner(host: Namespace, route: str) -> None:
    ip(host, f"{route} dev eth0")
    found = look(host)
    assert sides(found) == (set(), {"eth1"})


@pytest.mark.parametrize(
    "route",
    [
        "-4 route add 10.0.0.0/8 dev eth0",
        "-4 route add 224.0.0.0/4 dev eth0",
        "-4 route add 240.0.0.0/4 dev eth0",
        "-6 route add fc00::/7 dev eth0",
        "-4 route add blackhole default",
        "-4 route add unreachable default",
        "-4 route add prohibit 0.0.0.0/1",
        "-4 route add throw default table 7",
        "-4 route add local default dev lo table 100",
        "-4 route add local default dev eth0 table 100",
        "-6 route add blackhole default",
        "-6 route add unreachable 2000::/3",
        "-6 route add local default dev lo table 100",
    ],
)
def test_other_routes_make_none(host: Namespace, route: str) -> None:
    ip(host, route)
    found = look(host)
    assert sides(found) == (set(), {"eth0", "eth1"})


def test_a_vpn_client_has_two_uplinks(host: Namespace) -> None:
    ip(
        host,
        "route add default via 10.6.0.2",
        "tuntap add tun0 mode tun",
        "address add 10.9.0.5 peer 10.9.0.1/32 dev tun0",
        "link set tun0 up",
        "route add 0.0.0.0/1 via 10.9.0.1",
        "route add 128.0.0.0/1 via 10.9.0.1",
    )
    found = look(host)
    assert sides(found) == ({"eth0", "tun0"}, {"eth1"})
    ip(host, "link delete tun0")
    assert uplinks(host) == {"eth0"}


def test_a_default_route_is_followed_as_it_moves(host: Namespace) -> None:
    ip(host, "route add default via 10.6.0.2")
    assert uplinks(host) == {"eth0"}
    ip(host, "route replace default via 10.6.1.2")
    found = look(host)
    assert sides(found) == ({"eth1"}, {"eth0"})
    ip(host, "link set eth1 down")
    found = look(host)
    assert sides(found) == (set(), {"eth0"})


@pytest.mark.parametrize("version", ["4", "6"])
def test_every_path_of_a_multipath_route_counts(host: Namespace, version: str) -> None:
    a, b = {"4": ("10.6.0.2", "10.6.1.2"), "6": ("fd06::2", "fd06:1::2")}[version]
    ip(host, f"-{version} route add default nexthop via {a} dev eth0 nexthop via {b} dev eth1 weight 9")
    assert uplinks(host) == {"eth0", "eth1"}


@pytest.mark.parametrize("compatible", ["0", "1"], ids=["by id alone", "with the interface"])
@pytest.mark.parametrize("version", ["4", "6"])
def test_a_nexthop_object_or_a_group_of_them_is_looked_up(up: Namespace, version: str, compatible: str) -> None:
    up.run("sysctl", "-q", "-w", f"net.ipv4.nexthop_compat_mode={compatible}")
    a, b = {"4": ("10.6.0.2", "10.6.1.2"), "6": ("fd06::2", "fd06:1::2")}[version]
    ip(
        up,
        f"nexthop add id 1 via {a} dev eth0",
        f"nexthop add id 2 via {b} dev eth1",
        "nexthop add id 3 group 1/2,5",
        f"-{version} nexthop add id 4 blackhole",
        f"-{version} route add default nhid 4",
    )
    assert uplinks(up) == set()
    ip(up, f"-{version} route replace default nhid 2")
    assert uplinks(up) == {"eth1"}
    ip(up, f"-{version} route replace default nhid 3")
    assert uplinks(up) == {"eth0", "eth1"}
    ip(up, "nexthop delete id 2")
    assert uplinks(up) == {"eth0"}


@pytest.mark.parametrize(
    ("address", "networks"),
    [
        ("10.9.0.5 peer 10.9.0.1/32", {"10.9.0.5/32", "10.9.0.1/32"}),
        ("10.9.0.5 peer 10.8.7.6/16", {"10.9.0.5/32", "10.8.0.0/16"}),
        ("fd09::5 peer fd08::1/64 nodad", {"fd09::5/128", "fd08::/64"}),
        ("10.9.77.5/22", {"10.9.76.0/22"}),
        ("2001:db8:0:7::5/62", {"2001:db8:0:4::/62"}),
        ("10.9.0.5/0", set()),
    ],
)
def test_the_networks_of_an_address_are_local(host: Namespace, address: str, networks: set[str]) -> None:
    before = look(host).local
    ip(host, f"address add {address} dev eth1")
    assert look(host).local - before == networks
    ip(host, "link set eth1 down")
    assert not look(host).local & networks


def test_one_default_route_is_found_among_twenty_thousand(up: Namespace, record_property: Any) -> None:
    ip(up, "route add default via 10.6.0.2", "-6 route add default via fd06:1::2 dev eth1")
    networks = [f"20.{number >> 8}.{number & 255}.0/24" for number in range(20_000)]
    up.run("ip", "-batch", "-", input="".join(f"route add {network} dev eth1-far\n" for network in networks))
    start = time.perf_counter()
    found = look(up)
    record_property("milliseconds", round(1000 * (time.perf_counter() - start)))
    assert sides(found) == ({"eth0", "eth1"}, {"eth0-far", "eth1-far"})


def test_more_links_than_one_datagram_holds_are_all_seen(up: Namespace) -> None:
    up.run("ip", "-batch", "-", input="".join(f"link add v{n} up type veth peer name w{n}\n" for n in range(100)))
    assert look(up).inner >= {f"v{number}" for number in range(100)}


def test_no_privilege_is_needed(host: Namespace) -> None:
    ip(host, "route add default via 10.6.0.2")
    with host.entered():
        os.seteuid(65534)
        try:
            found = rtnl.look()
        finally:
            os.seteuid(0)
    assert found.uplinks == {"eth0"}


def test_a_host_without_netlink_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(netlink, "open_socket", refused)
    with pytest.raises(UnavailableError, match="Address family not supported by protocol; are netlink"):
        rtnl.look()


class Recorded:
    """A socket that gives the answers of a kernel, as a test wants them."""

    def __init__(self, answers: dict[bytes, list[bytes]]) -> None:
        self.answers = answers
        self.waiting: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.waiting.clear()

    def send(self, data: bytes) -> None:
        self.waiting += self.answers.get(data, [])

    def recv(self, _: int) -> bytes:
        if not self.waiting:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self.waiting.pop(0)


@pytest.fixture(scope="module")
def answers(_kernel_there: None) -> dict[bytes, list[bytes]]:
    """What the kernel answers to each question of a look, in a host that has some of everything."""
    found: dict[bytes, list[bytes]] = {}
    namespace = Namespace()
    namespace.run("sysctl", "-q", "-w", "net.ipv4.nexthop_compat_mode=0")
    ip(
        namespace,
        "link add br0 type bridge", "link add v0 type veth peer name v1", "link set v0 master br0 up",
        "link set v1 up", "address add 10.6.0.1/24 dev v1", "address add fd06::1/64 dev v1 nodad",
        "address add 10.9.0.5 peer 10.9.0.1/32 dev v1", "nexthop add id 1 via 10.6.0.2 dev v1",
        "nexthop add id 2 group 1", "route add default nhid 2", "route add 0.0.0.0/1 nhid 1",
        "route add 128.0.0.0/1 nexthop via 10.6.0.2 nexthop via 10.6.0.3", "-6 route add 2000::/3 via fd06::2 dev v1",
    )  # fmt: skip
    with namespace.entered(), netlink.open_socket(netlink.NETLINK_ROUTE, 1 << 20) as sock:

        class Recorder:
            def send(self, data: bytes) -> None:
                self.asked = data
                sock.send(data)

            def recv(self, size: int) -> bytes:
                found.setdefault(self.asked, []).append(sock.recv(size))
                return found[self.asked][-1]

        recorder: Any = Recorder()
        rtnl.links(recorder), rtnl.addresses(recorder), rtnl.defaults(recorder)
    namespace.close()
    return found


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Sockets that are opened one after the other; the last one is opened again and again."""
    sockets: list[Recorded] = []
    monkeypatch.setattr(netlink, "open_socket", lambda *_: sockets.pop(0) if len(sockets) > 1 else sockets[0])
    return sockets


def torn(answers: dict[bytes, list[bytes]], kind: int) -> dict[bytes, list[bytes]]:
    """Set NLM_F_DUMP_INTR on the last message, the end of the dump, of the answers to one kind of question."""

    def flagged(data: bytes) -> bytes:
        at = 0
        while (after := at + (struct.unpack_from("=I", data, at)[0] + 3 & ~3)) < len(data):
            at = after
        (flags,) = struct.unpack_from("=H", data, at + 6)
        return data[: at + 6] + struct.pack("=H", flags | 0x10) + data[at + 8 :]

    return {
        asked: [*told[:-1], flagged(told[-1])] if struct.unpack_from("=H", asked, 4) == (kind,) else told
        for asked, told in answers.items()
    }


@pytest.mark.parametrize("kind", [18, 22, 26], ids=["links", "addresses", "routes"])
def test_a_list_that_changed_while_it_was_read_is_read_again(
    answers: dict[bytes, list[bytes]], replay: list[Recorded], kind: int
) -> None:
    replay[:] = [Recorded(torn(answers, kind)), Recorded(torn(answers, kind)), Recorded(answers)]
    found = rtnl.look()
    assert (set(found.uplinks), set(found.inner_ports)) == ({"v1"}, {"v0"})
    assert len(replay) == 1
    replay[:] = [Recorded(torn(answers, kind))]
    with pytest.raises(UnavailableError, match="changed during each of 5 looks"):
        rtnl.look()


def test_a_nexthop_that_is_gone_by_now_leads_nowhere(answers: dict[bytes, list[bytes]], replay: list[Recorded]) -> None:
    def refused(code: int) -> dict[bytes, list[bytes]]:
        answer = [netlink.message(netlink.NLMSG_ERROR, struct.pack("=i", -code) + bytes(16))]
        return {asked: answer if asked[4:6] == struct.pack("=H", 106) else told for asked, told in answers.items()}

    replay[:] = [Recorded(refused(errno.ENOENT))]
    with netlink.open_socket(netlink.NETLINK_ROUTE, 0) as sock:
        assert [route.links for route in rtnl.defaults(sock)].count(()) == 2, "the two that go by nexthop objects"
    replay[:] = [Recorded(refused(errno.ENOMEM))]
    with pytest.raises(UnavailableError, match="Cannot allocate memory"):
        rtnl.look()


@given(seed=st.integers(0, 1 << 32))
def test_whatever_is_answered_there_is_a_survey_or_an_error_of_one_line(
    answers: dict[bytes, list[bytes]], seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    sock = Recorded({asked: [mutate(data, chance) for data in told] for asked, told in answers.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(netlink, "open_socket", lambda *_: sock)
        try:
            found = rtnl.look()
        except UnavailableError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert not found.uplinks & found.inner


@given(st.binary(max_size=80), st.sampled_from([16, 20, 24]))
def test_any_bytes_are_decoded_to_something(body: bytes, kind: int) -> None:
    answer = [netlink.message(kind, body), netlink.message(netlink.NLMSG_DONE, bytes(4))]

    class Same(Recorded):
        def send(self, _: bytes) -> None:
            self.waiting += answer

    sock: Any = Same({})
    for ask in (rtnl.links, rtnl.addresses, rtnl.defaults):
        assert isinstance(ask(sock), list)
