"""The way of one packet through the table, as the kernel takes it: which blocks are asked, and what decides. Pure.

The semantics are those of nft(8), VERDICT STATEMENT: a `return`, and the end of a chain, lead back behind the `jump`;
a chain that was left by `goto` is not come back to; `accept` ends the hook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nftguard.model import (
    BRIDGE,
    FAMILY,
    Chain,
    Count,
    Foreign,
    HasUser,
    Hook,
    Initial,
    Key,
    Log,
    Match,
    Protocol,
    Reject,
    Rule,
    Set,
    Table,
    Underway,
    Update,
    Verdict,
    Vmap,
    family,
)
from nftguard.nftscript import rule_text
from nftguard.packet import Packet, fits, has_user

_Outcome = Literal["accept", "drop", "return"]
_NOT_OURS = "a rule that nftguard did not write"


@dataclass(frozen=True, slots=True)
class Hit:
    """A look-up in the set `name` that found the packet, or would if what is not known of it were so."""

    keys: tuple[Key, ...]
    name: str
    elements: tuple[str, ...]
    """The one that fits, or those that may; of what has nothing in common with the packet none."""
    known: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """What one block, or a base chain, decides, and by which rule."""

    block: str
    """Empty where it is no block that decides."""
    chain: str
    rule: Rule
    """Empty where the chain ends without a decision."""
    hits: tuple[Hit, ...] = ()
    counter: str = ""
    """What counted the packet; empty where nothing did."""

    @property
    def text(self) -> str:
        """Give the rule as nft writes it."""
        return rule_text(self.rule)


@dataclass(frozen=True, slots=True)
class Trace:
    """The answer."""

    passes: bool | None
    """None: it cannot be said, and `reason` tells why."""
    steps: tuple[Step, ...] = ()
    """Every block that was asked, in the order of asking; the last one has stopped the packet where it is stopped."""
    unless: tuple[Step, ...] = ()
    """Exceptions of the block that stops it, which would let it pass if what is not known of the packet were so."""
    reason: str = ""
    """What decides, where it is no step."""


class _UnsureError(Exception):
    """The walk met something whose effect is not known."""


def walk(table: Table, packet: Packet) -> Trace:
    """Follow the packet through a table, desired or live; what is not known of it fits no exception."""
    if "dormant" in table.flags:
        return Trace(passes=True, reason="the table is dormant: the kernel asks none of its rules")
    if not table.chains and table.flags:
        return Trace(None, reason=f"this nft cannot list a table with the flags {', '.join(sorted(table.flags))}")
    return _Walk(table, packet).whole()


class _Walk:
    def __init__(self, table: Table, packet: Packet) -> None:
        self.table = table
        self.packet = packet
        self.block = ""  # the one that is asked
        self.counter = ""
        self.steps: list[Step] = []
        self.unless: list[Step] = []

    def whole(self) -> Trace:
        """Ask every base chain that the kernel would, in its order."""
        try:
            for chain in self._bases():
                outcome = self._chain(chain)
                if outcome == "return" and chain.base and chain.base.policy == "drop":
                    self._decide(chain, ())
                    outcome = "drop"
                if outcome == "drop":
                    unless = [step for step in self.unless if step.block == self.steps[-1].block]
                    # A unit is looked for at every level, by rules that nft lists alike.
                    return Trace(False, tuple(self.steps), tuple(dict.fromkeys(unless)))
        except _UnsureError as error:
            return Trace(None, tuple(self.steps), reason=str(error))
        return Trace(True, tuple(self.steps))

    def _bases(self) -> list[Chain]:
        found = []
        of, place = (BRIDGE, "forward") if self.packet.hook is Hook.BRIDGE else (FAMILY, str(self.packet.hook))
        for chain in self.table.chains.values():
            if not chain.base or family(chain.name) != of:
                continue
            if chain.base.type != "filter" or chain.base.hook not in {*Hook}:
                raise _UnsureError(f"chain {chain.name} at the hook {chain.base.hook}: nftguard did not make it")
            if chain.base.hook == place:
                found.append((chain.base.priority, chain))
        return [chain for _, chain in sorted(found, key=lambda one: one[0])]

    def _chain(self, chain: Chain) -> _Outcome:
        asked = _block(chain.name, self.packet)
        if not asked:
            return self._rules(chain)
        self.block = asked
        outcome = self._rules(chain)
        self.block = self.counter = ""
        return outcome

    def _rules(self, chain: Chain) -> _Outcome:
        for rule in chain.rules:
            if outcome := self._rule(chain, rule):
                return outcome
        if _block(chain.name.removesuffix(".blocked"), self.packet):
            self._decide(chain, ())
        return "return"

    def _rule(self, chain: Chain, rule: Rule) -> _Outcome | None:
        """Give how the rule ends the chain; None: the next one is tried."""
        hits: list[Hit] = []
        for statement in rule:
            match statement:
                case Match():
                    if not (hit := self._look_up(statement)):
                        return None
                    hits.append(hit)
                case Initial(protocol, is_not):
                    if protocol is not self.packet.protocol or self.packet.opens is is_not:
                        return None
                case HasUser():
                    if not has_user(self.packet):
                        return None
                case Underway():
                    if self.packet.protocol is not Protocol.TCP or self.packet.opens:
                        return None
                case Count(protocol, name):
                    if not isinstance(counter := self._element(protocol, name), str):
                        return None
                    self.counter = counter
                case Update():
                    # Whether it matches depends on what came before; of ours it leads to the log, or away from it.
                    if self._branches(chain, rule):
                        raise _UnsureError(f"chain {chain.name}: a limit decides, in {_NOT_OURS}")
                    return None
                case Log():
                    pass
                case Vmap(protocol, name):
                    if not isinstance(verdict := self._element(protocol, name), Verdict):
                        return None
                    return self._go(chain, rule, verdict, hits)
                case Verdict():
                    return self._go(chain, rule, statement, hits)
                case Reject():
                    return self._go(chain, rule, Verdict("drop"), hits)
                case Foreign(text):
                    raise _UnsureError(f"chain {chain.name}: {_NOT_OURS}: {text}")
        return None

    def _branches(self, chain: Chain, rule: Rule) -> bool:
        """Whether what follows in the rule could decide about the packet."""
        then = rule[-1]
        if not isinstance(then, Verdict) or then.kind == "return":
            return isinstance(then, Reject) or bool(_block(chain.name, self.packet))
        if not then.target:
            return True
        return self._chain(self.table.chains[then.target]) != "return"

    def _go(self, chain: Chain, rule: Rule, verdict: Verdict, hits: list[Hit]) -> _Outcome | None:
        exception = bool(_block(chain.name, self.packet)) and verdict.kind == "return"
        if not all(hit.known for hit in hits):
            if not exception and verdict.kind != "accept":
                raise _UnsureError(f"chain {chain.name}: what is not known of the packet decides, in {_NOT_OURS}")
            self.unless.append(Step(self.block, chain.name, rule, tuple(hits)))
            return None
        match verdict.kind:
            case "jump":
                outcome = self._chain(self.table.chains[verdict.target])
                return outcome if outcome != "return" else None
            case "goto":
                return self._chain(self.table.chains[verdict.target])
            case "accept" | "drop":
                self._decide(chain, rule, hits)
                return verdict.kind
            case "return":
                if exception:
                    self._decide(chain, rule, hits)
                return "return"

    def _decide(self, chain: Chain, rule: Rule, hits: list[Hit] | None = None) -> None:
        self.steps.append(Step(self.block, chain.name, rule, tuple(hits or ()), self.counter))

    def _element(self, protocol: Protocol, name: str) -> Verdict | str | None:
        """Look the destination port up in a map."""
        found = self.table.maps[name]
        if protocol is not self.packet.protocol:
            return None
        if found.foreign:
            raise _UnsureError(f"map {name}: nftguard did not write it so: {found.foreign}")
        port = self.packet.port
        return next((goal for span, goal in found.elements.items() if span.first <= port <= span.last), None)

    def _look_up(self, match: Match) -> Hit | None:
        """Look the packet up in a set of exceptions; None: it is not in it."""
        found = self.table.sets.get(match.name)  # a map is looked up so as well
        if not isinstance(found, Set) or found.foreign:
            raise _UnsureError(f"set {match.name}: nftguard did not write it so")
        possible = []
        for element in sorted(found.elements):
            parts = element.split(" . ")
            if len(parts) != len(match.keys):
                raise _UnsureError(f"set {match.name}: nftguard did not write the element {element}")
            try:
                found_so = [
                    fits(self.packet, key, part, match.level) for key, part in zip(match.keys, parts, strict=True)
                ]
            except ValueError:
                raise _UnsureError(f"set {match.name}: nftguard did not write the element {element}") from None
            if all(found_so):
                return Hit(match.keys, match.name, (element,))
            if False not in found_so:
                possible.append(element)
        return Hit(match.keys, match.name, tuple(possible), known=False) if possible else None


def _block(name: str, packet: Packet) -> str:
    """Give the block that a chain is the way into; empty where it is another kind of chain."""
    block, _, rest = name.partition(".")
    return block if rest == f"{packet.hook}.{packet.protocol}" else ""
