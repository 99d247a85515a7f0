"""Rules tried in order to blocks that add up: the same packets stopped, as far as nftguard has words for it. Pure.

For each port, the packets that one DROP stops are those that match it and none of the ACCEPTs before it. So a packet
passes that DROP if it lacks one of the facts that the DROP asks for, or has every fact of one of those ACCEPTs. Written
as "A or B" and again "A or C", each such sentence is a block with its `allow`; a packet passes where all of them are
true, as nftguard's blocks add up. A sentence can only be written where each of its facts is one that `allow` knows.

What cannot be written is found, and named. An ACCEPT is then left out, so that more is blocked than before; a DROP is
left out, so that less is.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from nftguard.errors import NftguardError
from nftguard.migrate.rules import EVERY_PORT, HOOKS, PASSING_BY, Fact, Finding, Kind, Rule, Ruleset
from nftguard.model import Hook, Protocol
from nftguard.ports import Ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_STEPS = 5_000_000
"""Rules looked at, over all ports: some ten seconds. Chains that jump to each other can ask for any number."""
_MAX_DEPTH = 16
_MAX_SENTENCES = 32

_WRITABLE = {
    Hook.OUTPUT: {Kind.TO, Kind.FROM, Kind.OUT, Kind.USER, Kind.GROUP, Kind.OPENED},
    Hook.FORWARD: {Kind.TO, Kind.FROM, Kind.OUT, Kind.OPENED},
    Hook.INPUT: {Kind.TO, Kind.FROM, Kind.IN, Kind.OPENED},
}
_OPENED = Fact(Kind.OPENED)
Conjunction = frozenset[Fact]  # all of them are true
Sentence = frozenset[Fact]  # one of them is true


@dataclass(frozen=True, slots=True)
class Part:
    """One sentence: where these ports are blocked except for what one of the facts is true of."""

    hook: Hook
    protocol: Protocol
    ports: Ports
    facts: Sentence
    rule: Rule  # the DROP or REJECT


@dataclass(slots=True)
class Translation:
    """What came out; `used` are the rules that it stems from."""

    parts: list[Part] = field(default_factory=list)
    findings: set[Finding] = field(default_factory=set)
    used: set[Rule] = field(default_factory=set)
    seen: set[Rule] = field(default_factory=set)
    steps: int = 0

    def find(self, rule: Rule, why: str) -> None:
        """Note what a rule's translation lacks; what the other firewall does by itself is in no line of the file."""
        if rule.line:
            self.findings.add(Finding(rule.line, rule.text, why))

    def step(self, count: int = 1) -> None:
        """Count the work. Raises NftguardError when it is too much."""
        self.steps += count
        if self.steps > MAX_STEPS:
            raise NftguardError("these rules are too many, or too intertwined, to translate; split the file")


def translate(rules: Ruleset) -> Translation:
    """Translate what a file blocks on every hook. Raises NftguardError when that would take minutes."""
    found = Translation(findings=set(rules.findings))
    for hook in HOOKS:
        for protocol in (*Protocol, None):
            walk = _Walk(rules, found, hook, protocol)
            for index, ports in enumerate(walk.atoms):
                walk.atom(index, ports)
    return found


class _Walk:
    """The way of packets of one protocol on one hook; the protocol None stands for those without ports, like ICMP."""

    def __init__(self, rules: Ruleset, found: Translation, hook: Hook, protocol: Protocol | None) -> None:
        self.rules, self.found, self.hook, self.protocol = rules, found, hook, protocol
        self.base = rules.entry[hook]
        self.policy = rules.policy.get(hook, Rule(0, "", "ACCEPT"))
        reached = {name: list(filter(self._concerned, rules.chains[name])) for name in self._reached()}
        if protocol is None:
            self.atoms = [Ports(0, 65535)]
        else:
            spans = {ports for chain in reached.values() for rule in chain for ports in rule.ports}
            cuts = sorted({1, 65536, *(cut for span in spans for cut in (span.first, span.last + 1) if cut)})
            self.atoms = [Ports(first, after - 1) for first, after in pairwise(cuts)]
        self.chains = {name: self._by_atom(chain) for name, chain in reached.items()}
        self.excused: list[tuple[Rule, Conjunction]] = []
        self.sentences: list[tuple[Sentence, Rule]] = []

    def _reached(self) -> Iterator[str]:
        waiting, reached = [self.base], set()
        while waiting:
            name = waiting.pop()
            if name in self.rules.chains and name not in reached:
                reached.add(name)
                yield name
                waiting += [rule.target for rule in self.rules.chains[name]]

    def _concerned(self, rule: Rule) -> bool:
        self.found.seen.add(rule)
        return rule.portless != "none" if self.protocol is None else self.protocol in rule.protocols

    def _by_atom(self, chain: list[Rule]) -> list[list[Rule]]:
        starts = [ports.first for ports in self.atoms]
        found: list[list[Rule]] = [[] for _ in starts]
        for rule in chain:
            at = {
                index
                for ports in (rule.ports if self.protocol else EVERY_PORT)
                for index in range(bisect_left(starts, ports.first), bisect_left(starts, ports.last + 1))
            }
            self.found.step(len(at))
            for index in at:
                found[index].append(rule)
        return found

    def atom(self, index: int, ports: Ports) -> None:
        """Follow a packet to these ports, which no rule tells apart, through the rules."""
        self.excused, self.sentences = [], []
        if not self._chain(self.base, index, frozenset(), (), 0):
            self._decide(self.policy, frozenset(), ())
        if self.protocol:
            self.found.parts += [Part(self.hook, self.protocol, ports, facts, rule) for facts, rule in self.sentences]

    def _chain(
        self, name: str, index: int, guard: Conjunction, returned: tuple[tuple[Rule, Conjunction], ...], depth: int
    ) -> bool:
        """Follow a chain that packets with the facts of `guard` reach; tell whether every one's fate is decided.

        `returned` are those that went back from it, or from a chain that jumped to it.
        """
        for rule in self.chains[name][index] if name in self.chains else ():
            self.found.step()
            facts = self._facts(rule)
            match rule.target:
                case "ACCEPT" | "DROP" | "REJECT":
                    if self._decide(rule, guard | facts, returned):
                        return True
                case "RETURN" if name == self.base:
                    verdict = replace(rule, target=self.policy.target)
                    self.found.used.add(rule)
                    if self._decide(verdict, guard | facts, returned):
                        return True
                case "RETURN":
                    if not facts:
                        return False
                    returned = (*returned, (rule, facts))
                case target if target in self.rules.chains:
                    if depth == _MAX_DEPTH:
                        self.found.find(rule, "not followed: chains jump to each other too deeply")
                    elif self._chain(target, index, guard | facts, returned, depth + 1):
                        return True
                    if rule.goto and not facts:
                        return False
                    if rule.goto:
                        returned = (*returned, (rule, facts))
                case target if target not in PASSING_BY and "logging" not in target:
                    self.found.find(rule, f"not translated: what {target} does is not in this file, or no blocking")
        return False

    def _facts(self, rule: Rule) -> Conjunction:
        if self.protocol is None and rule.portless == "some":
            return frozenset((*rule.facts, Fact(Kind.OTHER, ("a protocol without ports",))))
        return frozenset(rule.facts)

    def _decide(self, rule: Rule, facts: Conjunction, returned: Sequence[tuple[Rule, Conjunction]]) -> bool:
        """Take in a verdict; tell whether it decides the fate of every packet."""
        if rule.target == "ACCEPT":
            for _, back in returned:  # those that went back do not get here
                only = next(iter(back)) if len(back) == 1 else Fact(Kind.OTHER, ("several facts at once",))
                facts |= {~only}
            self.excused.append((rule, facts))
            return not facts
        if self.protocol is None and rule.protocols and rule not in self.found.used:
            pass  # named already, or of no effect
        elif self.protocol is None:
            self.found.find(rule, "partly translated: protocols without ports, like ICMP and GRE, are not blocked")
        else:
            self._block(rule, facts, [*self.excused, *returned])
        return not facts and not returned

    def _writable(self, fact: Fact) -> bool:
        if fact.kind is Kind.OPENED and self.protocol is Protocol.UDP:
            return False
        return not fact.negated and fact.kind in _WRITABLE[self.hook]

    def _block(self, rule: Rule, facts: Conjunction, excused: list[tuple[Rule, Conjunction]]) -> None:
        if any(~fact in facts for fact in facts):
            self.found.find(rule, "not translated, so not blocked: it is about packets of no connection that is known")
            return
        if unknown := [fact for fact in facts if not self._writable(~fact)]:
            self.found.find(rule, f"not translated, so not blocked: {self._only(min(unknown, key=str))}")
            return
        found: set[Sentence] = {frozenset(~fact for fact in facts)}
        # The short ones first: "A", and then "not A and B", is "A or B", which can be written.
        for excuse, true in sorted(excused, key=lambda pair: len(pair[1])):
            self.found.step(len(found))
            if self.protocol is Protocol.UDP and rule.ports == EVERY_PORT and _OPENED in true:
                self.found.find(
                    rule, f"not translated for udp on {self.hook}, so not blocked: replies to what was asked could not "
                    "be told from it; name the ports to block"
                )  # fmt: skip
                return
            found = self._excused(found, excuse, true)
        for sentence in found:
            self._say(sentence, rule)

    def _excused(self, found: set[Sentence], rule: Rule, true: Conjunction) -> set[Sentence]:
        """Give the sentences with "or all of this is true" added to each."""
        unknown = {fact for fact in true if not self._writable(fact)}
        extended: set[Sentence] = set()
        for sentence in found:
            if true & sentence:  # "A or (A and B)" is "A"
                extended.add(sentence)
                continue
            added = [fact for fact in true if ~fact not in sentence]  # "A or not A" is always true
            if left := sorted(unknown.intersection(added), key=str):
                # Packets of a connection matter only if it could be opened, and that is judged without them.
                if _OPENED in added and _OPENED not in unknown:
                    self.found.find(
                        rule, "translated more widely: every connection that is open already goes on, not only what "
                        f"is {left[0]}"
                    )  # fmt: skip
                    extended.add(sentence | {_OPENED})
                else:
                    self.found.find(rule, f"not translated, so {self.protocol} is blocked for it too: "
                                    + self._no_exception(left[0]))  # fmt: skip
                    extended.add(sentence)
            else:
                self.found.used.add(rule)
                extended |= {sentence | {fact} for fact in added}
        extended = {one for one in extended if not any(other < one for other in extended)}
        if len(extended) > _MAX_SENTENCES:
            self.found.find(rule, "not translated, so blocked for it too: it would take too many blocks")
            return found
        return extended

    def _say(self, sentence: Sentence, rule: Rule) -> None:
        if any(other <= sentence for other, _ in self.sentences):
            return
        self.sentences = [(other, its) for other, its in self.sentences if not sentence < other]
        self.sentences.append((sentence, rule))
        self.found.used.add(rule)

    def _only(self, fact: Fact) -> str:
        """Say why a DROP of this alone has no counterpart."""
        if fact.kind is Kind.IN and self.hook is Hook.FORWARD:
            return f'what is {fact} cannot be told apart; a block with hooks = ["forward"] stops all guests and clients'
        if fact.kind is Kind.OPENED and fact.negated:
            return "a udp datagram opens nothing; drop the state to block each"
        return f"nftguard blocks a port for all but those it allows, not only what is {fact}"

    def _no_exception(self, fact: Fact) -> str:
        if fact.kind is Kind.OPENED and not fact.negated:
            return "a udp datagram opens nothing, so replies are not told apart"
        return f"on {self.hook} there is no exception for what is {fact}"


def told_left(rules: Ruleset, found: Translation) -> dict[str, int]:
    """Count the rules that nothing came of and nothing was missed by, by kind."""
    told = {(finding.line, finding.text) for finding in found.findings}
    left = rules.left.copy()
    every: Iterable[Rule] = [rule for chain in rules.chains.values() for rule in chain]
    for rule in every:
        if rule in found.used or (rule.line, rule.text) in told or not rule.line:
            continue
        if rule not in found.seen:
            left["in chains that nothing jumps to"] += 1
        elif rule.target in PASSING_BY or "logging" in rule.target:
            left[f"that {'log' if 'LOG' in rule.target.upper() else 'only count or mark'}"] += 1
        elif rule.target == "ACCEPT":
            left["that let pass what nothing blocks"] += 1
        elif rule.target in {"DROP", "REJECT"}:
            left["that repeat others, or that no packet reaches"] += 1
        elif rule.target not in rules.chains or not rules.chains[rule.target]:
            left["that return, or jump to an empty chain"] += 1
    return dict(left)
