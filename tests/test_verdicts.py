"""What the configuration says, what the kernel does and what `explain` tells are the same, for random policies.

Each packet is judged three times: by a plain reading of the configuration, by the kernel, through which it is really
sent, and by the walk through the table that the kernel lists.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections import Counter
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from nftguard import policy
from nftguard.allow import Allowance
from nftguard.config import Block, Config
from nftguard.host import Host
from nftguard.model import Hook, Protocol
from nftguard.network import Network
from nftguard.packet import Packet
from nftguard.plan import diff
from nftguard.trace import walk
from tests.crossroads import FAR, INSIDE, LINKS, OUTSIDE, Crossroads, Sender, address, sender
from tests.groups import group

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKETS = 10_000
EVERY_RUN = (1, 2, 3, 12, 16, 18)
LONG = sorted({*range(1, 21)} - {*EVERY_RUN})
HOOKS = (Hook.OUTPUT, Hook.FORWARD, Hook.INPUT)
PORTS = [25, 110, 465, 587, 993, 1000, 1050, "100-200", "900-1023", "460-470", "@mail"]
SENT_TO = (24, 25, 26, 110, 150, 200, 201, 465, 470, 587, 900, 993, 1000, 1050)
USERS = {"postfix": 104, "sasha": 1000}
GROUPS = {"mail": 8, "sasha": 1000}
LISTED_USERS = ["postfix", "sasha", "104", "33", "not-yet"]
LISTED_GROUPS = ["mail", "sasha", "65534", "not-yet"]
UNITS = ["a.service", "b.service", "below.service", "not-yet.service"]
PLACES = [
    *("10.0.3.2", "10.0.3.4/31", "10.0.1.0/24", "10.0.4.0/30", "198.51.100.0/24", "10.0.2.3", "10.0.0.0/8"),
    *("fd00:3::2", "fd00:3::4/127", "fd00:1::/64", "fd00:4::/126", "2001:db8::/32", "fd00:2::3"),
    *("@local", "relay.example", "not-yet.example"),
]
INTERFACES = ["wg*", "wg1", "eth0", "docker0", "e*", "absent0"]
_network, _address = cache(ipaddress.ip_network), cache(ipaddress.ip_address)  # they take most of the time
SENDING = ("users", "groups", "units")


@pytest.fixture(scope="module")
def units(_kernel_there: None) -> Iterator[dict[str, Path]]:
    with group() as base:
        folders = {name: base / name for name in ("a.service", "b.service", "b.service/below.service", "c.service")}
        for folder in folders.values():
            folder.mkdir()
        yield folders


@pytest.fixture(scope="module")
def senders(units: dict[str, Path]) -> list[Sender]:
    accounts = [(0, 0), (104, 8), (104, 65534), (1000, 1000), (33, 33), (105, 8)]
    made = [sender(*account, units["c.service"].parents[1]) for account in accounts]
    return made + [sender(*accounts[at % 6], folder) for at, folder in enumerate([*units.values()] * 2)]


@pytest.fixture(scope="module")
def road(senders: list[Sender]) -> Iterator[Crossroads]:
    with contextlib.ExitStack() as stack:
        road = Crossroads(stack, senders)
        ways = [packet(hook, version, link) for hook in HOOKS for version in (4, 6) for link in LINKS]
        road.warm({number: (one, senders[0]) for number, one in enumerate((one for way in ways for one in way), 1)})
        yield road


def packet(hook: Hook, version: int, link: str) -> list[Packet]:
    """Every way through a hook, by the interface that it comes in by, or goes out by on output."""
    here, there = address(link, version, 1), [address(link, version, host) for host in FAR]
    if hook is Hook.OUTPUT:
        return [Packet(hook, Protocol.UDP, to, 9, here, uid=0, outbound=link) for to in there]
    if hook is Hook.INPUT:
        return [Packet(hook, Protocol.UDP, here, 9, origin, inbound=link) for origin in there]
    beyond = OUTSIDE if link in INSIDE else INSIDE
    return [
        Packet(hook, Protocol.UDP, address(out, version, FAR[0]), 9, there[0], inbound=link, outbound=out)
        for out in beyond
    ]


def some(chance: Random, listed: list[Any], likely: float, most: int = 3) -> list[Any]:
    return chance.sample(listed, chance.randint(1, min(most, len(listed)))) if chance.random() < likely else []


def random_config(chance: Random) -> Config:
    blocks = []
    for number in range(chance.randint(3, 6)):
        protocols = some(chance, ["tcp", "udp"], 1, 2)
        hooks = some(chance, ["output", "forward", "input"], 1)
        listed = {
            "to": some(chance, PLACES, 0.4),
            "from": some(chance, PLACES, 0.2),
            "interfaces": some(chance, INTERFACES, 0.3, 2),
        }
        if "output" in hooks:
            listed |= {
                "users": some(chance, LISTED_USERS, 0.6),
                "groups": some(chance, LISTED_GROUPS, 0.4, 2),
                "units": some(chance, UNITS, 0.5, 2),
            }
        blocks.append(
            {
                "name": f"b{number}",
                "ports": some(chance, PORTS, 1, 6),
                "except_ports": some(chance, [110, 150, 465, "190-199"], 0.4, 2),
                "protocols": protocols,
                "hooks": hooks,
                "action": chance.choice(["drop", "reject"]),
                "connections": chance.choice(["all", "new"]) if "udp" not in protocols else "all",
                "allow": listed,
            }
        )
    made = Config.model_validate({"block": blocks, "log": {"target": chance.choice(["journal", "kernel", "none"])}})
    return made.model_copy(update={"block": tuple(block for block in made.block if block.resolved())})


def random_host(chance: Random, units: dict[str, Path]) -> Host:
    running = [folder for folder in units.values() if folder.name in UNITS]
    known = {folder.name: {str(folder.stat().st_ino): nft_path(folder)} for folder in running}
    local = some(chance, ["10.0.1.0/24", "10.0.3.0/24", "fd00:1::/64", "fd00:4::/64", "127.0.0.0/8"], 0.8)
    network = Network(
        uplinks=frozenset(some(chance, [*LINKS], 0.8, 2)),
        inner=frozenset(some(chance, [*LINKS], 0.8)),
        local=frozenset(local),
    )
    names = {"relay.example": frozenset(some(chance, ["10.0.3.3", "10.0.4.5", "fd00:3::3", "fd00:1::5"], 1))}
    return Host(network, USERS, GROUPS, known, names)


def nft_path(folder: Path) -> str:
    return str(folder.relative_to("/sys/fs/cgroup"))  # nft 1.0.6 knows no other root


def random_allowances(chance: Random) -> tuple[Allowance, ...]:
    values = {
        "users": LISTED_USERS,
        "groups": LISTED_GROUPS,
        "units": UNITS,
        "ports": [""],
        "to4": ["10.0.3.2", "10.0.4.0/30"],
        "to6": ["fd00:3::/64"],
        "from4": ["10.0.1.0/24"],
        "from6": ["fd00:1::2"],
    }
    found = []
    for _ in range(chance.choice([0, 8, 16])):
        hook = chance.choices(HOOKS, (3, 2, 1))[0]
        kind = chance.choice([kind for kind in values if hook is Hook.OUTPUT or kind not in SENDING])
        protocol = chance.choice([Protocol.TCP, Protocol.UDP])
        found.append(Allowance(hook, protocol, chance.choice(SENT_TO), kind, chance.choice(values[kind]), 3600))
    return tuple(found)


def random_packet(chance: Random, senders: list[Sender]) -> tuple[Packet, Sender | None]:
    hook, version = chance.choices(HOOKS, (3, 2, 1))[0], chance.choice((4, 6))
    inbound = outbound = chance.choice([*LINKS])
    port, far = chance.choice(SENT_TO), chance.choice(FAR)
    protocol = chance.choice([Protocol.TCP, Protocol.UDP])
    opens = protocol is Protocol.TCP and chance.random() < 0.6
    nowhere = f"198.51.100.{far}" if version == 4 else f"2001:db8::{far}"
    if hook is Hook.OUTPUT:
        to, here = address(outbound, version, far), address(outbound, version, 1)
        if chance.random() < 0.1:
            return Packet(hook, Protocol.TCP, to, port, here, False, False, outbound=outbound), None
        one = chance.choice(senders)
        who = one.uid, one.gid, one.groups
        return Packet(hook, protocol, to, port, chance.choice([here, nowhere]), opens, True, *who, None, outbound), one
    source = chance.choice([address(inbound, version, chance.choice(FAR)), nowhere])
    if hook is Hook.INPUT:
        return Packet(hook, protocol, address(inbound, version, 1), port, source, opens, inbound=inbound), None
    outbound = chance.choice(OUTSIDE if inbound in INSIDE else INSIDE)
    to = address(outbound, version, far)
    return Packet(hook, protocol, to, port, source, opens, inbound=inbound, outbound=outbound), None


class Reading:
    """The configuration as an administrator reads it."""

    def __init__(self, config: Config, host: Host, allowances: tuple[Allowance, ...]) -> None:
        self.config, self.host, self.allowances = config, host, allowances
        self.ports = {
            block.name: {
                port
                for entry in block.ports
                for ports in entry
                for port in range(ports.first, ports.last + 1)
                if not any(hole.first <= port <= hole.last for entry in block.except_ports for hole in entry)
            }
            for block in config.block
        }

    def stops(self, one: Packet) -> tuple[str, set[str]]:
        """Name the block that stops it, the first of them; and what alone has kept a block from it."""
        naming = [
            block
            for block in self.config.block
            if one.hook in block.hooks and one.protocol in block.protocols and one.port in self.ports[block.name]
        ]
        made = [(block.name, self.why(block, one)) for block in naming]
        stopped = next((name for name, why in made if not why), "")
        if stopped and (why := {self.allowed(allowance, one) for allowance in self.allowances} - {""}):
            return "", why if len(why) == 1 else set()
        return stopped, {one for _, why in made if len(why) == 1 for one in why}

    def allowed(self, allowance: Allowance, one: Packet) -> str:
        if (allowance.hook, allowance.protocol, allowance.port) != (one.hook, one.protocol, one.port):
            return ""
        kind, value = allowance.kind.rstrip("46"), allowance.value
        if kind in SENDING and is_left(one):
            return "allowance, closed"
        return "allowance" if kind == "ports" or self.listed(kind, value, one) else ""

    def why(self, block: Block, one: Packet) -> set[str]:
        lists = {
            **{kind: getattr(block.allow, kind) for kind in (*SENDING, "to", "interfaces")},
            "from": block.allow.from_,
        }
        found = {
            next((sign for sign in ("@local", "example", "*") if sign in word), kind)
            for kind, words in lists.items()
            for word in words
            if self.listed(kind, word, one)
        }
        network = self.host.network
        if block.connections == "new" and not one.opens:
            found.add("established")
        if one.hook is Hook.FORWARD and one.inbound in network.uplinks and one.outbound in network.inner:
            found.add("to the inside")
        if is_left(one) and any(lists[kind] for kind in SENDING):
            found.add("closed")
        return found

    def listed(self, kind: str, word: str, one: Packet) -> bool:
        match kind:
            case "users" | "groups":
                number, known = (one.uid, USERS) if kind == "users" else (one.gid, GROUPS)
                return one.owned and number is not None and word in {str(number), *names_of(known, number)}
            case "units":
                return any(str(number) in self.host.units.get(word, {}) for number in one.groups or ())
            case "interfaces":
                name = str(one.inbound if one.hook is Hook.INPUT else one.outbound)
                return name.startswith(word[:-1]) if word.endswith("*") else name == word
        places = (
            self.host.network.local
            if word == "@local"
            else self.host.names.get(word, () if "example" in word else {word})
        )
        it = _address(one.destination if kind == "to" else str(one.source))
        return any(it in _network(place) for place in places)


def is_left(one: Packet) -> bool:
    """Whether it is what a socket had left to send when it was closed, as far as the kernel can tell."""
    return one.hook is Hook.OUTPUT and not one.owned and one.protocol is Protocol.TCP and not one.opens


def names_of(known: dict[str, int], number: int) -> set[str]:
    return {name for name, at in known.items() if at == number}


def arrange(
    seed: int, units: dict[str, Path], senders: list[Sender]
) -> tuple[Config, Host, tuple[Allowance, ...], dict[int, tuple[Packet, Sender | None]]]:
    """Make up a policy, and packets by their numbers."""
    chance = Random(seed)  # noqa: S311 - it is to be the same every time
    made = random_config(chance), random_host(chance, units), random_allowances(chance)
    return *made, {number: random_packet(chance, senders) for number in range(1, PACKETS + 1)}


def test_the_policies_of_every_run_use_every_exception(units: dict[str, Path], senders: list[Sender]) -> None:
    """Else the tests below would prove nothing of it."""
    used: Counter[str] = Counter()
    stopped: Counter[Hook] = Counter()
    for seed in EVERY_RUN:
        config, host, allowances, packets = arrange(seed, units, senders)
        reading = Reading(config, host, allowances)
        for one, _ in packets.values():
            block, why = reading.stops(one)
            stopped.update([one.hook] if block else [])
            used.update([] if block else why)
    signs = {"to", "@local", "example", "from", "interfaces", "*"}
    others = {"established", "closed", "to the inside", "allowance", "allowance, closed"}
    assert {*used} == {*SENDING} | signs | others
    assert min(used.values()) > 30
    assert min(stopped[hook] for hook in HOOKS) > 1000


@pytest.mark.parametrize("seed", [*EVERY_RUN, *(pytest.param(seed, marks=pytest.mark.long) for seed in LONG)])
def test_configuration_kernel_and_explanation_agree(
    road: Crossroads, units: dict[str, Path], senders: list[Sender], seed: int
) -> None:
    config, host, allowances, packets = arrange(seed, units, senders)
    reading = Reading(config, host, allowances)
    expected = {number: reading.stops(one) for number, (one, _) in packets.items()}
    wanted = {number for number, (stopped, _) in expected.items() if not stopped}
    with road.guarded.entered():
        road.kernel.apply(diff(road.kernel.snapshot(), policy.build(config, road.kernel.features, host, allowances)))
    table = road.kernel.snapshot()
    assert table
    before = {name: counter.packets for name, counter in table.counters.items()}

    traces = {number: walk(table, one) for number, (one, _) in packets.items()}
    for number, (one, _) in packets.items():
        told = traces[number].steps[-1].block if traces[number].passes is False else ""
        assert (traces[number].passes, told) == (not expected[number][0], expected[number][0]), (one, traces[number])

    arrived = road.send(packets, wanted)
    assert {number: packets[number] for number in arrived ^ wanted} == {}, "the kernel does otherwise"

    live = road.kernel.snapshot()
    assert live
    gained = {name: it.packets - before[name] for name, it in live.counters.items() if it.packets > before[name]}
    assert gained == Counter(trace.steps[-1].counter for trace in traces.values() if trace.passes is False)
