"""What the table should be: a Config to the desired Table, and the name of every object in it. Pure.

For a block `mail` on output with tcp, and a block `more` that names port 25 too:

    chain output                    the hook: one look-up in map output.tcp, whatever the number of ports and blocks
    map output.tcp                  port 110 -> goto mail.output.tcp; port 25 -> goto output.tcp.<the two blocks>
    chain mail.output.tcp           the block: exceptions return; attempts go to the log, the port's counter counts,
                                    then drop. Where senders are excepted the rest is in mail.output.tcp.blocked
    map mail.output.tcp             port 25 -> counter mail.output.tcp.25
    chain mail.output.tcp.attempt   the log, limited by the sets `users` and `total.output`; the kernel log by `flows4`
    chain cgroups                   notes the control group of an attempt that is logged, in the set `attempts`
    chain output.tcp.<hash>         both blocks in turn: a packet passes only if every block lets it

Wide ranges have maps of their own, `*.ranges`, asked only after the plain ones.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from hashlib import blake2s
from typing import TYPE_CHECKING, Literal

from nftguard import allow
from nftguard.host import Host
from nftguard.model import (
    BRIDGE,
    FAMILY,
    PLAIN,
    Action,
    Base,
    Chain,
    Count,
    Counter,
    DynamicSet,
    Hook,
    Initial,
    Key,
    Limit,
    Log,
    Map,
    Protocol,
    Reject,
    Rule,
    Set,
    Statement,
    Table,
    Update,
    Verdict,
    Vmap,
)
from nftguard.ports import Ports, owners

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nftguard.allow import Allowance
    from nftguard.config import Block, Config
    from nftguard.model import Features

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}

# Dynamic sets. Their sizes also bound what a flood can cost us: libnftables reads a table with every element of its
# sets, 2 µs each (nft 1.0.6).
FLOWS = {Key.FLOW4: "flows4", Key.FLOW6: "flows6"}
FLOWS_SIZE = 16384
"""Flows of each family whose kernel log is limited at one time; when they are full, new ones are dropped unlogged."""

ATTEMPTS = "attempts"
"""The set in which the kernel notes the control group of each attempt that it hands to the daemon."""
_ATTEMPTS = DynamicSet(ATTEMPTS, Key.ATTEMPT, size=8192, timeout=2)
CGROUPS = "cgroups"
_LEVELS = range(12, -1, -1)  # deepest first; Kubernetes in a container with systemd inside is some nine deep

# How many attempts the daemon is handed at most. Each user, or each source of what is not this host's own, has a limit
# of its own, so that one who floods does not hide another; in all they are what a quarter of a core can follow.
_EACH = Limit(500, "second", burst=1000, over=True)
_TOTAL = Limit(2000, "second", burst=2000, over=True)
_SOURCES = {Key.SOURCE4: "sources4", Key.SOURCE6: "sources6"}

RANGES = ".ranges"


def build(
    config: Config, features: Features = PLAIN, host: Host | None = None, allowances: tuple[Allowance, ...] = ()
) -> Table:
    """Build the table that the configuration asks for, with what this kernel can do and what names stand for here."""
    table = _frame(config, features, frozenset((given.hook, given.kind) for given in allowances))
    declared = {name: made for name, made in table.sets.items() if isinstance(made, Set)}
    return replace(table, sets={**table.sets, **allow.fill(declared, config, host or Host(), allowances)})


# Every pass, and every save, asks for the same one: at 10,000 ports it takes longer to build than to compare.
@lru_cache(maxsize=2)
def _frame(config: Config, features: Features, given: frozenset[tuple[Hook, str]]) -> Table:
    """Build all but the members of sets; `given` are the kinds of allowances that are in force at each hook."""
    flags = features.flags if config.service.ownership == "auto" else frozenset()
    table = _Builder(config, features.cgroups, given)
    for hook in Hook:
        table.hook(hook)
    families = frozenset({FAMILY, BRIDGE} if base_chain(Hook.BRIDGE) in table.chains else {FAMILY})
    return Table(table.chains, table.maps, table.sets, table.counters, flags, families)


def base_chain(hook: Hook) -> str:
    """Name the chain that the kernel calls; `bridge` alone is a word of nft's."""
    return f"{BRIDGE}.forward" if hook is Hook.BRIDGE else hook


def counter_name(block: str, hook: str, protocol: str, ports: Ports | str | int) -> str:
    """Name a counter. Names of blocks hold no dot, so that `counter_key` can take it apart again."""
    return f"{block}.{hook}.{protocol}.{ports}"


def counter_key(name: str) -> tuple[str, Hook, Protocol, Ports] | None:
    """Take a counter's name apart into block, hook, protocol and ports; None if it is not one of ours."""
    try:
        block, hook, protocol, ports = name.split(".")
        return block, Hook(hook), Protocol(protocol), Ports.read(ports)
    except ValueError:
        return None


class _Builder:
    def __init__(self, config: Config, cgroups: bool, given: frozenset[tuple[Hook, str]]) -> None:
        self.config = config
        self.cgroups = cgroups
        self.given = given
        self.chains: dict[str, Chain] = {}
        self.maps: dict[str, Map] = {}
        self.sets: dict[str, DynamicSet | Set] = {}
        self.counters: dict[str, Counter] = {}

    def hook(self, hook: Hook) -> None:
        lookups: list[Rule] = []
        kinds = [kind for at, kind in self.given if at is hook and (self.cgroups or kind != "units")]
        if kinds and any(hook in block.hooks for block in self.config.block):
            self._chain(Chain(allow.chain(hook), self._declare(*allow.given(hook, kinds))))
        for protocol in Protocol:
            blocks = [block for block in self.config.block if hook in block.hooks and protocol in block.protocols]
            if not blocks:
                continue
            name = f"{hook}.{protocol}"
            listed = {block.name: block.resolved() for block in blocks}
            for block in blocks:
                self._block(block, hook, protocol, listed[block.name])
            verdicts = {ports: self._route(name, names) for ports, names in owners(listed).items()}
            lookups += [(Vmap(protocol, found),) for found in self._map(name, "verdict", verdicts)]
        if lookups:
            place = "forward" if hook is Hook.BRIDGE else hook
            self._chain(Chain(base_chain(hook), tuple(lookups), Base(place)))

    def _declare(self, sets: list[Set], rules: list[Rule]) -> tuple[Rule, ...]:
        self.sets |= {made.name: made for made in sets}
        return tuple(rules)

    def _block(self, block: Block, hook: Hook, protocol: Protocol, listed: tuple[Ports, ...]) -> None:
        name = f"{block.name}.{hook}.{protocol}"
        counters = {ports: counter_name(block.name, hook, protocol, ports) for ports in listed}
        self.counters |= {counter: Counter(counter) for counter in counters.values()}
        rules: list[Rule] = []
        if allow.chain(hook) in self.chains:
            rules.append((Verdict("jump", allow.chain(hook)),))
        if block.connections == "new":
            rules.append((Initial(protocol, is_not=True), Verdict("return")))
        exceptions = allow.rules(block, hook, protocol, self.cgroups, f"{name}.blocked")
        rules += self._declare(allow.sets(block, hook, self.cgroups), exceptions)
        if exceptions and exceptions[-1] == (Verdict("goto", f"{name}.blocked"),):
            self._chain(Chain(name, tuple(rules)))
            name, rules = f"{name}.blocked", []
        if self.config.log.target != "none":
            # A udp datagram opens nothing: each is an attempt, and the limit per flow folds them.
            initial = () if protocol is Protocol.UDP else (Initial(protocol),)
            rules.append((*initial, Verdict("jump", self._attempt(block, hook, protocol, listed))))
        # A packet whose port is not in the counter map leaves that rule, not the chain: the count is apart from the
        # verdict so that a counter gone missing never opens the port.
        rules += [
            (Count(protocol, found),) for found in self._map(f"{block.name}.{hook}.{protocol}", "counter", counters)
        ]
        if block.action is Action.REJECT:
            rules.append((Reject("tcp reset" if protocol is Protocol.TCP else "icmpx admin-prohibited"),))
        rules.append((Verdict("drop"),))
        self._chain(Chain(name, tuple(rules)))

    def _attempt(self, block: Block, hook: Hook, protocol: Protocol, listed: tuple[Ports, ...]) -> str:
        """Build the chain that logs. The limits are in rules of their own: they must never limit the drop."""
        name = f"{block.name}.{hook}.{protocol}"
        if self.config.log.target == "journal":
            rules = self._handed_over(block, hook)
        else:
            rules = self._written(block, hook, protocol, listed)
        return self._chain(Chain(f"{name}.attempt", tuple(rules)))

    def _handed_over(self, block: Block, hook: Hook) -> list[Rule]:
        """Hand attempts to the daemon; all that it tells besides the block's name is in the packet itself."""
        each = {Key.USER: "users"} if hook is Hook.OUTPUT else _SOURCES
        beside = f"{BRIDGE}." if hook is Hook.BRIDGE else ""  # sets are of one table
        limits = {key: (f"{beside}{name}", 1024, _EACH) for key, name in each.items()}
        limits[Key.ETHERNET if beside else Key.FAMILY] = (f"total.{hook}", 2, _TOTAL)
        rules: list[Rule] = []
        for key, (name, size, limit) in limits.items():
            self.sets[name] = DynamicSet(name, key, size, timeout=60)
            rules.append((Update(key, name, limit), Verdict("return")))
        if hook is Hook.OUTPUT and self.cgroups:
            self.sets[ATTEMPTS] = _ATTEMPTS
            noted: list[Rule] = [(Update(Key.ATTEMPT, ATTEMPTS, level=n), Verdict("return")) for n in _LEVELS]
            rules.append((Verdict("jump", self._chain(Chain(CGROUPS, tuple(noted)))),))
        return [*rules, (Log(block.name, self.config.log.group),)]

    def _written(self, block: Block, hook: Hook, protocol: Protocol, listed: tuple[Ports, ...]) -> list[Rule]:
        """Write attempts to the kernel log, each flow's at the rate that the configuration says."""
        log, name = self.config.log, f"{block.name}.{hook}.{protocol}"
        prefixes = {
            ports: log.prefix.format(block=block.name, hook=hook, protocol=protocol, port=ports) for ports in listed
        }
        if len(set(prefixes.values())) == 1:
            then: Statement = Log(prefixes[listed[0]], None)
        else:
            then = Verdict("goto", self._prefixes(name, protocol, prefixes))
        rules: list[Rule] = []
        for key, one in FLOWS.items():
            flows = f"{BRIDGE}.{one}" if hook is Hook.BRIDGE else one
            self.sets[flows] = DynamicSet(flows, key, FLOWS_SIZE, SECONDS[log.rate.unit])
            rules.append((Update(key, flows, Limit(log.rate.count, log.rate.unit)), then))
        return rules

    def _prefixes(self, name: str, protocol: Protocol, prefixes: Mapping[Ports, str]) -> str:
        """Build a chain a port for a kernel log prefix that names the port."""
        goto = {
            ports: Verdict("goto", self._chain(Chain(f"{name}.log.{ports}", ((Log(prefix, None),),))))
            for ports, prefix in prefixes.items()
        }
        rules: list[Rule] = [(Vmap(protocol, found),) for found in self._map(f"{name}.log", "verdict", goto)]
        return self._chain(Chain(f"{name}.log", tuple(rules)))

    def _route(self, name: str, owners: tuple[str, ...]) -> Verdict:
        """Lead to the one block, or to a chain that asks several in turn.

        In turn with `jump`, so that what one block lets through is still judged by the next.
        """
        if len(owners) == 1:
            return Verdict("goto", f"{owners[0]}.{name}")
        chain = f"{name}.{blake2s(' '.join(owners).encode(), digest_size=6).hexdigest()}"
        jumps: list[Rule] = [(Verdict("jump", f"{owner}.{name}"),) for owner in owners]
        return Verdict("goto", self._chain(Chain(chain, tuple(jumps))))

    def _map(
        self, name: str, value: Literal["verdict", "counter"], elements: Mapping[Ports, Verdict] | Mapping[Ports, str]
    ) -> list[str]:
        """Split into a plain and an interval map, as far as each is needed; return their names in that order."""
        plain = {ports: goal for ports, goal in elements.items() if ports.size == 1}
        ranges = {ports: goal for ports, goal in elements.items() if ports.size > 1}
        if plain:
            self.maps[name] = Map(name, value, plain)
        if ranges:
            self.maps[name + RANGES] = Map(name + RANGES, value, ranges, interval=True)
        return [found for found, part in ((name, plain), (name + RANGES, ranges)) if part]

    def _chain(self, chain: Chain) -> str:
        self.chains[chain.name] = chain
        return chain.name


def counter_of(table: Table, block: str, hook: Hook, protocol: Protocol, port: int) -> str:
    """Name the counter that counts the port for the block; empty where none does."""
    name = f"{block}.{hook}.{protocol}"
    plain, ranges = table.maps.get(name), table.maps.get(name + RANGES)
    found = plain.elements.get(Ports(port, port)) if plain else None
    if found is None and ranges:
        found = next((goal for span, goal in ranges.elements.items() if span.first <= port <= span.last), None)
    return found if isinstance(found, str) else ""


def blocked(table: Table) -> Iterable[tuple[str, Hook, Protocol, Ports, Counter]]:
    """List what a table counts, in the order in which people read it: by block, hook, protocol and port."""
    found = [(*key, counter) for name, counter in table.counters.items() if (key := counter_key(name))]
    return sorted(found, key=lambda row: (row[0], list(Hook).index(row[1]), list(Protocol).index(row[2]), row[3]))
