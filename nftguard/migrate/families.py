"""What blocks packets of IPv4, and what those of IPv6, to what blocks both. Pure."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from nftguard.migrate.rules import Fact, Family, Kind, Rule

if TYPE_CHECKING:
    from nftguard.migrate.notes import Notes

Sentence = frozenset[Fact]
"""A packet passes if one of them is true."""
Sentences = list[tuple[Sentence, Rule]]
"""Each with the rule that it stems from; a packet passes if it passes all."""


def joined(four: Sentences, six: Sentences, notes: Notes) -> Sentences:
    """Give sentences that stop, of each family, at least what its own stop; note where they stop more.

    Sentences that differ in nothing but addresses become one: an address of the one family is of no packet of the
    other.
    """
    found: Sentences = []
    ways: tuple[tuple[Sentences, Sentences, Family, Family], ...] = ((four, six, "4", "6"), (six, four, "6", "4"))
    for mine, others, own, other in ways:
        for sentence, rule in mine:
            both = _of(_of(sentence, own), other)
            same = [its for its, _ in others if _of(_of(its, own), other) == both]
            found += [(_of(sentence, own) | _of(its, other), rule) for its in same] or [(sentence, rule)]
            if not same and not any(_of(its, other) <= _of(sentence, other) for its, _ in others):
                notes.find(rule, f"blocked over IPv{other} too, where the rules let more pass: a block holds for both")
    fewest: Sentences = []
    for sentence, rule in sorted(found, key=lambda pair: len(pair[0])):
        if not any(one <= sentence for one, _ in fewest):
            fewest.append((sentence, rule))
    return fewest


def _of(sentence: Sentence, family: Family) -> Sentence:
    """Leave out the addresses that no packet of this family has."""
    return frozenset(fact for fact in sentence if _family(fact) in {"", family})


def _family(fact: Fact) -> Family:
    if fact.kind not in {Kind.TO, Kind.FROM}:
        return ""
    try:
        versions = {ipaddress.ip_network(value).version for value in fact.values}
    except ValueError:  # a host's name, or @local
        return ""
    return "" if len(versions) > 1 else "4" if versions == {4} else "6"
