"""What a translation lacks, gathered over protocols and families, and what was left alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nftguard.migrate.rules import Fact, Finding, Kind, Rule, Ruleset, passes_by
from nftguard.model import Hook, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nftguard.migrate.translate import Translation

_OPENED = Fact(Kind.OPENED)


@dataclass(slots=True)
class Notes:
    """What one walk, or all of them, had to say. The `why` of `told` has {protocols} in it where those are named."""

    told: dict[tuple[Rule, str], set[Protocol]] = field(default_factory=dict)
    lost: dict[tuple[Rule, Hook], dict[Protocol | None, set[Rule]]] = field(default_factory=dict)
    """The rules that block whatever no rule before lets pass, with those of the latter that cannot be translated."""
    used: set[Rule] = field(default_factory=set)

    def find(self, rule: Rule, why: str, protocol: Protocol | None = None) -> None:
        """Note what a rule's translation lacks; what the other firewall does by itself is in no line of the file."""
        if rule.line:
            self.told.setdefault((rule, why), set()).update({protocol} if protocol else ())

    def lose(self, rule: Rule, hook: Hook, protocol: Protocol | None, before: Rule) -> None:
        """Note that a rule is not translated for the sake of one before it."""
        self.lost.setdefault((rule, hook), {}).setdefault(protocol, set()).add(before)

    def add(self, other: Notes) -> None:
        """Take in the notes of a walk."""
        for told, protocols in other.told.items():
            self.told.setdefault(told, set()).update(protocols)
        for key, lost in other.lost.items():
            for protocol, rules in lost.items():
                self.lost.setdefault(key, {}).setdefault(protocol, set()).update(rules)
        self.used |= other.used

    def findings(self) -> set[Finding]:
        """Put all of it into words, once for all the protocols that it is about."""
        return {
            Finding(rule.line, rule.text, why.replace("{protocols}", _are(protocols) if protocols else ""))
            for (rule, why), protocols in self.told.items()
        } | {
            Finding(rule.line, rule.text, _not_blocked(hook, lost, rule))
            for (rule, hook), lost in self.lost.items()
            if rule.line
        }


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])}{' and ' * (len(words) > 1)}{words[-1]}"


def _are(protocols: set[Protocol]) -> str:
    named = [str(protocol) for protocol in Protocol if protocol in protocols]
    return f"{_and(named)} {'is' if len(named) == 1 else 'are'}"


def _not_blocked(hook: Hook, lost: dict[Protocol | None, set[Rule]], rule: Rule) -> str:
    of = "" if lost.keys() >= rule.protocols else f" for {_and([str(one) for one in Protocol if one in lost])}"
    before: set[Rule] = set().union(*lost.values())
    lines = [str(line) for line in sorted({one.line for one in before if one.line})]
    if not lines or (lost.keys() == {Protocol.UDP} and all(_OPENED in one.facts for one in before)):
        return (
            f"not translated{of} on {hook}, so not blocked: replies to what was asked could not be told from it; "
            "name the ports to block"
        )
    return (
        f"not translated{of}, so not blocked: what line{'s' * (len(lines) > 1)} {_and(lines)} "
        f"let{'s' * (len(lines) == 1)} pass cannot be said here; name the ports to block, "
        f'as in ports = ["@mail"], hooks = ["{hook}"]'
    )


def only(fact: Fact, hook: Hook) -> str:
    """Say why a DROP of this alone has no counterpart."""
    if fact.kind is Kind.IN and hook is Hook.FORWARD:
        return f'what is {fact} cannot be told apart; a block with hooks = ["forward"] stops all guests and clients'
    if fact.kind is Kind.OPENED and fact.negated:
        return "a udp datagram opens nothing; drop the state to block each"
    return f"nftguard blocks a port for all but those it allows, not only what is {fact}"


def no_exception(fact: Fact, hook: Hook) -> str:
    """Say why an ACCEPT of this has no counterpart."""
    if fact.kind is Kind.OPENED and not fact.negated:
        return "a udp datagram opens nothing, so replies are not told apart"
    return f"on {hook} there is no exception for what is {fact}"


def told_left(rules: Ruleset, found: Translation) -> dict[str, int]:
    """Count the rules that nothing came of and nothing was missed by, by kind."""
    told = {(finding.line, finding.text) for finding in found.findings}
    left = rules.left.copy()
    every: Iterable[Rule] = [rule for chain in rules.chains.values() for rule in chain]
    for rule in every:
        if rule in found.notes.used or (rule.line, rule.text) in told or not rule.line:
            continue
        if rule not in found.seen:
            left["in chains that nothing jumps to"] += 1
        elif passes_by(rule.target):
            left[f"that {'log' if 'LOG' in rule.target.upper() else 'only count or mark'}"] += 1
        elif rule.target == "ACCEPT":
            left["that let pass what nothing blocks"] += 1
        elif rule.target in {"DROP", "REJECT"}:
            left["that repeat others, or that no packet reaches"] += 1
        elif rule.target not in rules.chains or not rules.chains[rule.target]:
            left["that return, or jump to an empty chain"] += 1
    return dict(left)
