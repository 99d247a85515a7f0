"""The configuration as a table: golden examples, and what must hold for every configuration.

`NFTGUARD_GOLDEN=write make test` writes the examples anew; read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from nftguard import config, policy
from nftguard.model import Hook, Map, Protocol, Vmap
from nftguard.nftscript import script
from nftguard.packet import Packet
from nftguard.plan import diff
from nftguard.ports import Ports
from nftguard.trace import walk
from tests.examples import configs, table_of

if TYPE_CHECKING:
    from nftguard.config import Config

GOLDEN = sorted(path.parent for path in Path(__file__).parent.glob("golden/*/nftguard.toml"))


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_the_script_is_the_golden_one(folder: Path) -> None:
    found = script(diff(None, policy.build(config.load(folder / "nftguard.toml"))))
    expected = folder / "expected.nft"
    if os.environ.get("NFTGUARD_GOLDEN") == "write":
        expected.write_text(found)
    assert found == expected.read_text()


def test_there_are_golden_examples() -> None:
    assert len(GOLDEN) >= 5


@settings(max_examples=150, deadline=None)
@given(configs())
def test_a_packet_is_judged_as_the_configuration_says(found: Config) -> None:
    """Against a second, plainer reading: a packet passes only if every block that names its port lets it."""
    table = policy.build(found)
    edges = {1, 25, 99, 100, 101, 465, 65535}
    listed = {block.name: block.resolved() for block in found.block}
    for resolved in listed.values():
        edges |= {port for ports in resolved for port in (ports.first, ports.last, ports.last + 1)}
    for hook in Hook:
        for protocol in Protocol:
            for port in sorted(edges & set(range(1, 65536)))[:60]:
                for opens in (True, False):
                    stopping = [
                        block.name
                        for block in found.block
                        if hook in block.hooks
                        and protocol in block.protocols
                        and any(ports.first <= port <= ports.last for ports in listed[block.name])
                        and (opens or block.connections == "all")
                    ]
                    trace = walk(table, Packet(hook, protocol, "192.0.2.1", port, opens=opens))
                    assert trace.passes is not bool(stopping)
                    counted = [step.counter for step in trace.steps if step.counter]
                    assert [name.split(".")[0] for name in counted] == stopping[:1], "counted once, by who stops it"


def test_one_look_up_a_hook_whatever_the_number_of_ports_and_blocks() -> None:
    blocks = [f'[[block]]\nname = "b{n}"\nports = {[*range(1000 + 40 * n, 1060 + 40 * n)]}\n' for n in range(30)]
    table = table_of("".join(blocks))
    assert table.chains["output"].rules == ((Vmap(Protocol.TCP, "output.tcp"),),)
    assert len(table.maps["output.tcp"].elements) == 40 * 29 + 60


def test_a_counter_is_found_by_port() -> None:
    table = table_of('[[block]]\nname = "a"\nports = [25, "1000-2000"]')
    found = [policy.counter_of(table, "a", Hook.OUTPUT, Protocol.TCP, port) for port in (25, 1500, 26)]
    assert found == ["a.output.tcp.25", "a.output.tcp.1000-2000", ""]
    assert policy.counter_of(table, "b", Hook.OUTPUT, Protocol.TCP, 25) == ""


@pytest.mark.parametrize("name", ["mine", "a.b.c.d", "a.output.tcp.x", "a.output.tcp", "a.output.tcp.25.x"])
def test_a_foreign_counter_name_is_not_taken_apart(name: str) -> None:
    assert policy.counter_key(name) is None


def test_a_counter_name_is_taken_apart() -> None:
    assert policy.counter_key("m-1.forward.udp.1000-2000") == ("m-1", Hook.FORWARD, Protocol.UDP, Ports(1000, 2000))


def test_maps_hold_what_they_are_declared_for() -> None:
    table = table_of('[[block]]\nname = "a"\nports = [25, "1000-2000"]')
    for found in table.maps.values():
        assert isinstance(found, Map)
        assert all((ports.size > 1) is found.interval for ports in found.elements)
