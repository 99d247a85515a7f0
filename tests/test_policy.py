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
from nftguard.model import Chain, Count, Hook, Map, Match, Protocol, Table, Verdict, Vmap
from nftguard.nftscript import script
from nftguard.plan import diff
from nftguard.ports import Ports
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


def judge(table: Table, hook: Hook, protocol: Protocol, port: int, *, opens: bool) -> tuple[bool, list[str]]:
    """Walk a packet through the table as the kernel does: whether it passes, and the counters that counted it."""
    counted: list[str] = []

    def find(name: str) -> Verdict | str | None:
        found = table.maps[name]
        return next((goal for span, goal in found.elements.items() if span.first <= port <= span.last), None)

    def walk(chain: Chain) -> str:
        for rule in chain.rules:
            for statement in rule:
                match statement:
                    case Vmap(of, name):
                        verdict = find(name) if of is protocol else None
                        if not isinstance(verdict, Verdict):
                            break
                        assert verdict.kind == "goto"
                        return walk(table.chains[verdict.target])
                    case Count(_, name):
                        counter = find(name)
                        if not isinstance(counter, str):
                            break
                        counted.append(counter)
                    case Verdict("jump", target):
                        if walk(table.chains[target]) == "drop":
                            return "drop"
                    case Verdict("goto", target):
                        return walk(table.chains[target])
                    case Verdict("return"):
                        return "return"
                    case Verdict("drop"):
                        return "drop"
                    case Match():  # none of these packets is an exception
                        break
                    case _ if type(statement).__name__ == "Initial":
                        if opens is statement.is_not:  # type: ignore[union-attr]
                            break
                    case _ if type(statement).__name__ == "Reject":
                        return "drop"
        return "end"

    base = table.chains.get(policy.base_chain(hook))
    return (base is None or walk(base) != "drop"), counted


@settings(max_examples=150, deadline=None)
@given(configs())
def test_a_packet_is_judged_as_the_configuration_says(found: Config) -> None:
    """Against a second, plainer reading: a packet passes only if every block that names its port lets it."""
    table = policy.build(found)
    edges = {1, 25, 99, 100, 101, 465, 65535}
    for block in found.block:
        edges |= {port for ports in block.resolved() for port in (ports.first, ports.last, ports.last + 1)}
    for hook in Hook:
        for protocol in Protocol:
            for port in sorted(edges & set(range(1, 65536)))[:60]:
                for opens in (True, False):
                    stopping = [
                        block.name
                        for block in found.block
                        if hook in block.hooks
                        and protocol in block.protocols
                        and any(ports.first <= port <= ports.last for ports in block.resolved())
                        and (opens or block.connections == "all")
                    ]
                    passes, counted = judge(table, hook, protocol, port, opens=opens)
                    assert passes is not bool(stopping)
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
        assert all((len(ports) > 1) is found.interval for ports in found.elements)
