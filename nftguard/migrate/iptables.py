"""Rules of iptables to a Ruleset: what iptables-save and `iptables -S` print, and the commands themselves."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from nftguard.migrate import words
from nftguard.migrate.rules import HOOKS, Finding, Rule, Ruleset

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMAND = re.compile(r"(?:sudo\s+)?(?:\S*/)?(ip6?tables)(?:-(?:legacy|nft))?\s+(?=-)")
_COUNTERS = re.compile(r"\[\d+:\d+\]\s*")
_LINE = re.compile(r"\*[a-z]+$|:\S+ \S+|-[APNI] |COMMIT$")
_POLICY = {"DROP", "ACCEPT"}


def recognised(lines: Sequence[str]) -> bool:
    """Whether these are rules of iptables."""
    return any(_LINE.match(line) or _COMMAND.match(line) for line in map(_bare, lines))


def _bare(line: str) -> str:
    return _COUNTERS.sub("", line.strip(), count=1) if line.lstrip().startswith("[") else line.strip()


def read(lines: Sequence[str]) -> Ruleset:
    """Read the lines of a file; what no line of iptables can be is among the findings."""
    found, table = Ruleset("iptables rules"), "filter"
    for number, whole in enumerate(lines, 1):
        line = _bare(whole)
        if line.startswith("*"):
            table = line[1:].strip()
        elif line and not line.startswith("#") and line != "COMMIT":
            add(found, number, line, table)
    return found


def add(found: Ruleset, number: int, line: str, table: str) -> None:
    """Add what one line says: a rule, a chain, or a policy."""
    try:
        parts = shlex.split(_COMMAND.sub("", line))
    except ValueError as error:
        found.findings.add(Finding(number, line, f"it cannot be read: {error}".lower()))
        return
    for option in ("-t", "--table"):
        if option in parts[:-1]:
            at = parts.index(option)
            table = parts[at + 1]
            del parts[at : at + 2]
    parts = [part for part in parts if part not in {"-w", "--wait", "-4", "-6"}]
    try:
        _add(found, number, line, parts, table)
    except ValueError as error:
        found.findings.add(Finding(number, line, f"not translated: {error}"))


def _add(found: Ruleset, number: int, line: str, parts: list[str], table: str) -> None:
    match parts:
        case [chain, policy, *_] if chain.startswith(":"):
            _chain(found, number, line, table, chain[1:], policy)
        case ["-P" | "--policy", chain, policy]:
            _chain(found, number, line, table, chain, policy)
        case ["-N" | "--new-chain", chain]:
            _chain(found, number, line, table, chain, "-")
        case ["-A" | "--append", chain, *rest]:
            _rule(found, table, chain, None, words.rule(number, line, rest))
        case ["-I" | "--insert", chain, *rest]:
            at = int(rest.pop(0)) - 1 if rest and rest[0].isdecimal() and len(rest[0]) < 6 else 0
            _rule(found, table, chain, max(at, 0), words.rule(number, line, rest))
        case _:
            raise ValueError("this is no rule, chain or policy")


def _chain(found: Ruleset, number: int, line: str, table: str, chain: str, policy: str) -> None:
    if table != "filter":
        if policy == "DROP":
            raise ValueError(f"a policy in the table {table}; nftguard blocks as the table filter does")
        return
    found.chains.setdefault(chain, [])
    for hook in HOOKS:
        if chain == hook.name and policy in _POLICY:
            found.policy[hook] = Rule(number, line, policy)


def _rule(found: Ruleset, table: str, chain: str, at: int | None, rule: Rule) -> None:
    if table != "filter":
        if rule.target in {"DROP", "REJECT"}:
            raise ValueError(f"it blocks in the table {table}; nftguard blocks as the table filter does")
        found.left[f"of the table {table}"] += 1
        return
    rules = found.chains.setdefault(chain, [])
    rules.insert(len(rules) if at is None else at, rule)
