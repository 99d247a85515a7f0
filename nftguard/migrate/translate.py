"""Rules tried in order to blocks that add up: the same packets stopped, as far as nftguard has words for it.

For each port, the packets that one DROP stops are those that match it and none of the ACCEPTs before it. So a packet
passes that DROP if it lacks one of the facts that the DROP asks for, or has every fact of one of those ACCEPTs. Written
as "A or B" and again "A or C", each such sentence is a block with its `allow`; a packet passes where all of them are
true, as nftguard's blocks add up. A sentence can only be written where each of its facts is one that `allow` knows.

What cannot be written is found, and named. An ACCEPT is then left out, so that more is blocked than before; a DROP is
left out, so that less is. A DROP of all that no rule before it lets pass is left out for the sake of such an ACCEPT,
too: all that the ACCEPT lets pass would be cut off. Where the rules of IPv4 and IPv6 differ, each family's are
followed, and what one of them stops is blocked for both.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from nftguard.errors import NftguardError
from nftguard.migrate.families import Sentence, joined
from nftguard.migrate.notes import Notes, no_exception, only
from nftguard.migrate.rules import EVERY_PORT, HOOKS, Fact, Family, Finding, Kind, Rule, Ruleset, passes_by
from nftguard.model import Hook, Protocol
from nftguard.ports import Ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    """What came out."""

    parts: list[Part] = field(default_factory=list)
    findings: set[Finding] = field(default_factory=set)
    notes: Notes = field(default_factory=Notes)
    seen: set[Rule] = field(default_factory=set)
    steps: int = 0

    def step(self, count: int = 1) -> None:
        """Count the work. Raises NftguardError when it is too much."""
        self.steps += count
        if self.steps > MAX_STEPS:
            raise NftguardError("these rules are too many, or too intertwined, to translate; split the file")


def translate(rules: Ruleset) -> Translation:
    """Translate what a file blocks on every hook. Raises NftguardError when that would take minutes."""
    found, families = Translation(), rules.families()
    for hook in HOOKS:
        for protocol in (*Protocol, None):
            walks = [_Walk(rules, found, hook, protocol, family) for family in families]
            for ports, *each in zip(walks[0].atoms, *(walk.outcome() for walk in walks), strict=True):
                sentences = joined(each[0], each[1], found.notes) if len(each) == 2 else each[0]
                if protocol:
                    found.parts += [Part(hook, protocol, ports, facts, rule) for facts, rule in sentences]
    for name in rules.chains.keys() - rules.declared:
        for rule in rules.chains[name]:
            if rule not in found.seen and rule.target in {"DROP", "REJECT"}:
                found.notes.find(rule, f"not translated, so not blocked: nothing in this file jumps to {name}")
    found.findings = rules.findings | found.notes.findings()
    return found


def _wide(rule: Rule) -> bool:
    """Whether a rule names no ports, or only those that it is not about."""
    return sum(ports.size for ports in rule.ports) > 32768


class _Walk:
    """The way of packets of one protocol and family on one hook; None stands for protocols without ports, like ICMP."""

    def __init__(
        self, rules: Ruleset, found: Translation, hook: Hook, protocol: Protocol | None, family: Family
    ) -> None:
        self.rules, self.found, self.hook, self.protocol, self.family = rules, found, hook, protocol, family
        self.base = rules.entry[hook]
        self.policy = rules.policy.get((hook, family)) or rules.policy.get((hook, "")) or Rule(0, "", "ACCEPT")
        self.notes = Notes()
        self.lost: frozenset[Rule] = frozenset()
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
            if self.family and rule.family not in {"", self.family}:
                continue
            at = {
                index
                for ports in (rule.ports if self.protocol else EVERY_PORT)
                for index in range(bisect_left(starts, ports.first), bisect_left(starts, ports.last + 1))
            }
            self.found.step(len(at))
            for index in at:
                found[index].append(rule)
        return found

    def outcome(self) -> list[list[tuple[Sentence, Rule]]]:
        """Give what blocks the packets to each of the atoms."""
        found = [self._atom(index) for index in range(len(self.atoms))]
        if lost := self.notes.lost:  # go again without the rules that cannot be kept: others may block in their place
            self.notes, self.lost = Notes(lost=lost), frozenset(rule for rule, _ in lost)
            found = [self._atom(index) for index in range(len(self.atoms))]
        self.found.notes.add(self.notes)
        return found

    def _atom(self, index: int) -> list[tuple[Sentence, Rule]]:
        """Follow a packet to these ports, which no rule tells apart, through the rules."""
        self.excused, self.sentences = [], []
        if not self._chain(self.base, index, frozenset(), (), 0):
            self._decide(self.policy, frozenset(), (), wide=True)
        return self.sentences

    def _chain(
        self,
        name: str,
        index: int,
        guard: Conjunction,
        returned: tuple[tuple[Rule, Conjunction], ...],
        depth: int,
        wide: bool = True,
    ) -> bool:
        """Follow a chain that packets with the facts of `guard` reach; tell whether every one's fate is decided.

        `returned` are those that went back from it, or from a chain that jumped to it. It is reached `wide` where no
        jump names ports.
        """
        for rule in self.chains[name][index] if name in self.chains else ():
            self.found.step()
            facts = self._facts(rule)
            match rule.target:
                case "ACCEPT" | "DROP" | "REJECT":
                    if self._decide(rule, guard | facts, returned, wide and _wide(rule)):
                        return True
                case "RETURN" if name == self.base:
                    verdict = replace(rule, target=self.policy.target)
                    self.notes.used.add(rule)
                    if self._decide(verdict, guard | facts, returned, _wide(rule)):
                        return True
                case "RETURN":
                    if not facts:
                        return False
                    returned = (*returned, (rule, facts))
                case target if target in self.rules.chains:
                    if depth == _MAX_DEPTH:
                        self.notes.find(rule, "not followed: chains jump to each other too deeply")
                    elif self._chain(target, index, guard | facts, returned, depth + 1, wide and _wide(rule)):
                        return True
                    if rule.goto and not facts:
                        return False
                    if rule.goto:
                        returned = (*returned, (rule, facts))
                case target if not passes_by(target):
                    self.notes.find(rule, f"not translated: what {target} does is not in this file, or no blocking")
        return False

    def _facts(self, rule: Rule) -> Conjunction:
        if self.protocol is None and rule.portless == "some":
            return frozenset((*rule.facts, Fact(Kind.OTHER, ("a protocol without ports",))))
        return frozenset(rule.facts)

    def _decide(self, rule: Rule, facts: Conjunction, returned: Sequence[tuple[Rule, Conjunction]], wide: bool) -> bool:
        """Take in a verdict; tell whether it decides the fate of every packet."""
        if rule.target == "ACCEPT":
            for _, back in returned:  # those that went back do not get here
                only = next(iter(back)) if len(back) == 1 else Fact(Kind.OTHER, ("several facts at once",))
                facts |= {~only}
            self.excused.append((rule, facts))
            return not facts
        if self.protocol is None and rule.protocols and rule not in self.found.notes.used:
            pass  # named already, or of no effect
        elif self.protocol is None:
            self.notes.find(rule, "partly translated: protocols without ports, like ICMP and GRE, are not blocked")
        else:
            self._block(rule, facts, [*self.excused, *returned], wide)
        return not facts and not returned

    def _writable(self, fact: Fact) -> bool:
        if fact.kind is Kind.OPENED and self.protocol is Protocol.UDP:
            return False
        return not fact.negated and fact.kind in _WRITABLE[self.hook]

    def _block(self, rule: Rule, facts: Conjunction, excused: list[tuple[Rule, Conjunction]], wide: bool) -> None:
        if wide and rule in self.lost:
            return
        if both := [fact for fact in facts if ~fact in facts]:
            if any(fact.kind not in {Kind.OPENED, Kind.OTHER} for fact in both):
                return  # no packet is both
            self.notes.find(rule, "not translated, so not blocked: it is about packets of no connection that is known")
            return
        if unknown := [fact for fact in facts if not self._writable(~fact)]:
            self.notes.find(rule, f"not translated, so not blocked: {only(min(unknown, key=str), self.hook)}")
            return
        found: set[Sentence] = {frozenset(~fact for fact in facts)}
        # The short ones first: "A", and then "not A and B", is "A or B", which can be written.
        for excuse, true in sorted(excused, key=lambda pair: len(pair[1])):
            self.found.step(len(found))
            replies = wide and self.protocol is Protocol.UDP and _OPENED in true  # could not be told from it
            extended = None if replies else self._excused(found, excuse, true, wide)
            if extended is None:
                self.notes.lose(rule, self.hook, self.protocol, excuse)
            else:
                found = extended
        if wide and rule in {lost for lost, _ in self.notes.lost}:
            return
        for sentence in found:
            self._say(sentence, rule)

    def _excused(self, found: set[Sentence], rule: Rule, true: Conjunction, wide: bool) -> set[Sentence] | None:
        """Give the sentences with "or all of this is true" added to each.

        Where that cannot be written, it is named and left out, or None if the DROP is `wide`: that is lost then.
        """
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
                    self.notes.find(
                        rule, "translated more widely: every connection that is open already goes on, not only what "
                        f"is {left[0]}"
                    )  # fmt: skip
                    extended.add(sentence | {_OPENED})
                elif wide:
                    return None
                else:
                    why = no_exception(left[0], self.hook)
                    self.notes.find(rule, f"not translated, so {{protocols}} blocked for it too: {why}", self.protocol)
                    extended.add(sentence)
            else:
                self.notes.used.add(rule)
                extended |= {sentence | {fact} for fact in added}
        extended = {one for one in extended if not any(other < one for other in extended)}
        if len(extended) > _MAX_SENTENCES:
            if wide:
                return None
            self.notes.find(rule, "not translated, so blocked for it too: it would take too many blocks")
            return found
        return extended

    def _say(self, sentence: Sentence, rule: Rule) -> None:
        if any(other <= sentence for other, _ in self.sentences):
            return
        self.sentences = [(other, its) for other, its in self.sentences if not sentence < other]
        self.sentences.append((sentence, rule))
        self.notes.used.add(rule)
