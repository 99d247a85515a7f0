"""The survey: which interfaces lead where, out of what the kernel says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nftguard.network import Address, Default, Link, Network, survey

LO = Link(1, "lo", "", 0, True)


def sides(found: Network) -> tuple[set[str], set[str]]:
    return set(found.uplinks), set(found.inner)


def ports(found: Network) -> tuple[set[str], set[str]]:
    return set(found.outer_ports), set(found.inner_ports)


def link(index: int, name: str, kind: str = "", master: int = 0, *, up: bool = True, lower: int = 0) -> Link:
    return Link(index, name, kind, master, up, lower)


def test_nothing_known_is_nothing_near() -> None:
    assert survey([], [], []) == Network() == Network(*[frozenset()] * 5)


def test_a_docker_host_has_one_uplink_and_the_bridge_inside() -> None:
    links = [
        LO,
        link(2, "eth0"),
        link(3, "docker0", "bridge"),
        link(4, "veth1", "veth", 3),
        link(5, "wg0", "wireguard"),
    ]
    found = survey(links, [], [Default((2,)), Default((2,))])
    assert found.uplinks == {"eth0"}
    assert found.inner == {"docker0", "wg0"}, "a bridge's port is never what the forward hook calls an interface"
    assert ports(found) == (set(), {"veth1"})


def test_every_interface_of_a_default_route_is_an_uplink() -> None:
    links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2")]
    found = survey(links, [], [Default((2, 3)), Default(())])
    assert sides(found) == ({"eth0", "eth1"}, {"eth2"})


def test_a_route_to_a_large_part_of_the_world_makes_neither() -> None:
    found = survey([link(2, "eth0"), link(3, "wg0", "wireguard")], [], [Default((2,)), Default((3,), whole=False)])
    assert sides(found) == ({"eth0"}, set())


def test_what_is_down_is_neither_uplink_nor_inner() -> None:
    links = [link(2, "eth0", up=False), link(3, "eth1", up=False)]
    found = survey(links, [Address(2, "10.0.2.0/24")], [Default((2,))])
    assert found == Network()


def test_the_loopback_is_neither_whatever_its_name() -> None:
    found = survey([link(1, "loop")], [Address(1, "127.0.0.0/8")], [Default((1,))])
    assert found == Network(local=frozenset({"127.0.0.0/8"}))


def test_an_interface_unknown_as_yet_is_in_neither() -> None:
    assert survey([LO], [Address(7, "10.0.2.0/24")], [Default((7,))]) == Network()


def test_a_vrf_and_its_ports_are_not_inner() -> None:
    links = [link(2, "eth0", "", 9), link(3, "veth1", "veth", 9), link(9, "blue", "vrf")]
    found = survey(links, [], [Default((2,)), Default((9,))])
    assert sides(found) == ({"eth0"}, set())
    assert ports(found) == (set(), set())


def test_the_ports_of_a_bridge_are_told_apart_by_what_they_stand_on() -> None:
    links = [
        link(2, "br0", "bridge"),
        link(3, "eth0", "", 2),
        link(4, "vnet0", "tun", 2),
        link(5, "veth0", "veth", 2),
        link(6, "vxlan0", "vxlan", 2),
        link(10, "eth1"),
        link(11, "eth1.3", "vlan", 2, lower=10),
        link(12, "veth0.3", "vlan", 2, lower=5),
        link(13, "far.3", "vlan", 2),
        link(20, "bond0", "bond", 2),
        link(21, "eth2", "", 20),
        link(22, "eth3.1", "vlan", 20, lower=10),
        link(23, "bond0.7", "vlan", 2, lower=20),
        link(30, "bond1", "bond", 2),
        link(31, "eth4", "", 30),
        link(32, "veth9", "veth", 30),
        link(40, "team0", "team", 2),
    ]
    found = survey(links, [], [])
    assert found.outer_ports == {"eth0", "eth1.3", "bond0", "bond0.7"}
    assert found.inner_ports == {"vnet0", "veth0", "vxlan0", "veth0.3", "far.3", "bond1", "team0"}
    assert found.inner == {"br0", "eth1"}


def test_interfaces_that_stand_on_each_other_are_looked_at_to_an_end() -> None:
    links = [link(2, "br0", "bridge"), link(3, "a", "vlan", 2, lower=4), link(4, "b", "vlan", 2, lower=3)]
    assert survey(links, [], []).inner_ports == {"a", "b"}


def test_a_name_that_a_script_would_have_to_quote_is_left_out_everywhere() -> None:
    for name in ("eth*", "a b", 'x"', "}", "é", "a\n", "", "sixteencharacter"):
        links = [link(2, name), link(3, name, "bridge"), link(4, name, "veth", 3), link(5, name, "", 3)]
        assert survey(links, [Address(2, "10.0.2.0/24")], [Default((2,))]) == Network(local=frozenset({"10.0.2.0/24"}))
    assert survey([link(2, "eth0.1:a@b-c_d")], [], [Default((2,))]).uplinks == {"eth0.1:a@b-c_d"}


LINKS = st.builds(
    Link, st.integers(1, 6), st.sampled_from(["lo", "a", "b", "c", "d", "e*", "f"]),
    st.sampled_from(["", "bridge", "veth", "vlan", "bond", "vrf", "tun"]), st.integers(0, 6), st.booleans(),
    st.integers(0, 6),
)  # fmt: skip
DEFAULTS = st.builds(Default, st.lists(st.integers(0, 6), max_size=2).map(tuple), st.booleans())


@given(st.lists(LINKS, max_size=7, unique_by=(lambda x: x.index, lambda x: x.name)), st.lists(DEFAULTS, max_size=3))
def test_no_interface_is_on_both_sides(links: list[Link], defaults: list[Default]) -> None:
    found = survey(links, [], defaults)
    assert not found.uplinks & found.inner
    assert not found.outer_ports & found.inner_ports
    assert not found.inner & (found.outer_ports | found.inner_ports)
    assert hash(found) == hash(survey(reversed(links), [], reversed(defaults)))
    assert found == survey(reversed(links), [], reversed(defaults))
    # Whatever of it is not known as yet, nothing more is let in from anywhere.
    for missing in links:
        fewer = survey([x for x in links if x is not missing], [], defaults)
        assert fewer.uplinks <= found.uplinks
        assert fewer.inner <= found.inner


def test_a_network_that_is_half_of_the_world_is_no_neighbourhood() -> None:
    """A netmask comes from a DHCP server, too."""
    links = [Link(2, "eth0", "", 0, True)]
    networks = ["128.0.0.0/1", "10.0.0.0/8", "2000::/3", "2001:db8::/32", "203.0.113.9/32"]
    found = survey(links, [Address(2, network) for network in networks], [])
    assert found.local == {"10.0.0.0/8", "2001:db8::/32", "203.0.113.9/32"}
    assert found.vast == {"128.0.0.0/1", "2000::/3"}
