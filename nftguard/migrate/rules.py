"""What was read of another firewall, as values: rules tried in order, the first that decides wins. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from nftguard.model import Hook, Protocol
from nftguard.names import clean
from nftguard.ports import Ports

EVERY_PORT = (Ports(0, 65535),)
"""The ports of a rule that names none."""

EVERY_PROTOCOL = frozenset(Protocol)

HOOKS = (Hook.OUTPUT, Hook.FORWARD, Hook.INPUT)
"""Where other firewalls block, too."""

PASSING_BY = {
    *("", "LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "MARK", "CONNMARK", "SECMARK", "CONNSECMARK", "SET", "TCPMSS"),
    *("TOS", "DSCP", "CLASSIFY", "CT", "NOTRACK", "CHECKSUM", "HL", "TTL", "LED", "RATEEST", "TEE", "ECN"),
}
"""Targets after which the next rule is tried (iptables-extensions(8))."""

Family = Literal["", "4", "6"]
"""Which packets a rule is about: those of IPv4, or of IPv6, or both."""


class Kind(StrEnum):
    """What a rule asks of a packet, besides its protocol and its destination port."""

    TO = "to"
    FROM = "from"
    OUT = "out"  # the interface that it leaves by
    IN = "in"
    USER = "users"
    GROUP = "groups"
    OPENED = "opened"  # it belongs to a connection that is open already
    OTHER = "other"  # what nftguard has no word for; the value says what


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a rule asks of a packet: that it is one of the values or, `negated`, none of them."""

    kind: Kind
    values: tuple[str, ...] = ()
    negated: bool = False

    def __invert__(self) -> Fact:
        """Give the opposite."""
        return Fact(self.kind, self.values, not self.negated)

    def __str__(self) -> str:
        """Put it into words that end "what is ..."."""
        values = ", ".join(self.values)
        if self.kind is Kind.OPENED:
            return "not yet opened" if self.negated else "open already"
        words = {
            Kind.TO: f"to {values}",
            Kind.FROM: f"from {values}",
            Kind.OUT: f"leaving by {values}",
            Kind.IN: f"entering by {values}",
            Kind.USER: f"of user {values}",
            Kind.GROUP: f"of group {values}",
            Kind.OTHER: f"told by {values}",
        }
        return f"{'not ' * self.negated}{words[self.kind]}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. It matches a packet of its protocols to one of its ports of which every fact is true."""

    line: int  # in the file, from 1; 0 for what the other firewall does by itself
    text: str
    target: str  # ACCEPT, DROP, REJECT, RETURN, one of PASSING_BY, or a chain
    protocols: frozenset[Protocol] = EVERY_PROTOCOL
    portless: Literal["all", "some", "none"] = "all"  # which of the protocols without ports it matches, like ICMP
    ports: tuple[Ports, ...] = EVERY_PORT
    facts: tuple[Fact, ...] = ()
    goto: bool = False  # what its chain does not decide goes on after the jump before it
    comment: str = ""
    prefix: str = ""  # of a LOG
    family: Family = ""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something that was not translated, or not exactly: `why` says what that means."""

    line: int
    text: str
    why: str

    def __str__(self) -> str:
        """Give it as an administrator reads it, in two lines."""
        return f"line {self.line}: {clean(self.text, 300)}\n    {clean(self.why, 600)}"


@dataclass(slots=True)
class Ruleset:
    """A whole file."""

    kind: str  # what it was recognised as, "iptables rules"
    chains: dict[str, list[Rule]] = field(default_factory=dict)
    entry: dict[Hook, str] = field(default_factory=lambda: {hook: hook.name for hook in HOOKS})
    policy: dict[tuple[Hook, Family], Rule] = field(default_factory=dict)
    """What becomes of a packet that no rule decides; it passes where there is none."""
    declared: set[str] = field(default_factory=set)
    """The chains that the file makes; the jumps to others may be elsewhere."""
    findings: set[Finding] = field(default_factory=set)
    left: Counter[str] = field(default_factory=Counter)
    """How many rules have nothing to do with blocking, by kind."""
    notes: list[str] = field(default_factory=list)
    undo: list[str] = field(default_factory=list)
    """The commands that take back what it blocks, where the other firewall has its own; NAME stands for a policy's."""

    def families(self) -> tuple[Family, ...]:
        """Give the families that differ in their rules; one alone where the rules are all of it, or of none."""
        rules = [rule for chain in self.chains.values() for rule in chain if rule.line]
        said = {rule.family for rule in (*rules, *(rule for rule in self.policy.values() if rule.target != "ACCEPT"))}
        if not said - {""}:
            return ("",)
        return ("4", "6") if "" in said or len(said) == 2 else tuple(said)


def passes_by(target: str) -> bool:
    """Whether the next rule is tried after this target; ufw's own chains for logging are in files of their own."""
    return target in PASSING_BY or (target.startswith(("ufw-", "ufw6-")) and "logging" in target)
