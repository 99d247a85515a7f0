"""Rules of ufw to a Ruleset: /etc/ufw/user.rules, and what `ufw status` and `ufw show added` print."""

from __future__ import annotations

import ipaddress
import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from nftguard.migrate import iptables, words
from nftguard.migrate.rules import HOOKS, Finding, Rule, Ruleset
from nftguard.model import Hook, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

_TARGETS = {"allow": "ACCEPT", "deny": "DROP", "reject": "REJECT"}
_HOOKS = {"in": Hook.INPUT, "out": Hook.OUTPUT, "fwd": Hook.FORWARD}
_COLUMNS = re.compile(
    r"(?:\[\s*\d+\]\s*)?(?P<to>\S.*?)\s+(?P<action>ALLOW|DENY|REJECT|LIMIT)(?: (?P<way>IN|OUT|FWD))?\s+(?P<from>\S.*?)"
    r"(?:\s+# (?P<comment>.*))?"
)
_ASIDE = re.compile(r"\s\((?:[^()]|\([^()]*\))*\)")  # (v6), (out), (log), the name of an application
_MAX_LINE = 1000  # characters; the pattern above tries each run of spaces in turn
_DEFAULTS = re.compile(
    r"Default: (deny|reject|allow) \(incoming\), (deny|reject|allow) \(outgoing\)(?:, (\w+) \(routed\))?"
)
_TITLES = re.compile(
    r"(Status|Logging|New profiles): |To\s+Action\s+From$|--\s+------\s+----$|Added user rules|\(None\)"
)
_PORTS = re.compile(r"\d+(:\d+)?(,\d+(:\d+)?)*")  # an IPv6 address has two colons
_TUPLE = re.compile(
    r"### tuple ### (route:)?(deny|reject)(?:_log(?:-all)?)? (\w+) ([\d:,]+|any) (\S+) ([\d:,]+|any) (\S+) "
    r"((?:in|out)[\w!.@:+-]*)"
)
_BY_ITSELF = "ufw by itself lets pass what goes over lo, and what belongs to a connection that is open"


def recognised(lines: Sequence[str]) -> bool:
    """Whether these are rules of ufw, in any of the three forms."""
    if any(line.startswith(":OUTPUT ") for line in lines):
        return False  # what iptables-save prints where ufw runs, with the chains that lead to ufw's own
    marks = ("### tuple ###", ":ufw-user-", ":ufw6-user-", "Status: ", "ufw ", "Added user rules")
    return any(line.startswith(marks) for line in lines)


def read(lines: Sequence[str]) -> Ruleset:
    """Read the lines of a file; what ufw does not write is among the findings."""
    if any(line.startswith("*filter") for line in lines):
        found = iptables.read(lines)
        found.kind = "ufw's user.rules"
        found.entry = {hook: f"ufw-user-{hook}" for hook in HOOKS}
        for name in found.entry.values():  # those of user6.rules have chains of their own
            found.chains.setdefault(name, []).extend(found.chains.pop(name.replace("ufw", "ufw6", 1), []))
        found.undo = [command for line in lines if (command := _of_tuple(line))]
        found.notes.append("Its default policies are in /etc/default/ufw, and were not looked at.")
    else:
        found = _listed(lines)
        found.undo = [command for line in lines if (command := _deleting(line.strip()))]
        if any(_COLUMNS.fullmatch(line.strip()) for line in lines if len(line) <= _MAX_LINE):
            found.undo += ["ufw status numbered", "ufw delete NUMBER  # for each that denies, the last one first"]
    found.notes.append(f"{_BY_ITSELF}; so do these blocks.")
    for hook in HOOKS:
        link = {Hook.INPUT: ("-i", "lo"), Hook.OUTPUT: ("-o", "lo"), Hook.FORWARD: ()}[hook]
        before = [words.rule(0, _BY_ITSELF, (*link, "-j", "ACCEPT"))] if link else []
        opened = words.rule(0, _BY_ITSELF, ("--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"))
        chain = found.chains.setdefault(found.entry[hook], [])
        chain[:0] = [*before, opened]
    return found


def _listed(lines: Sequence[str]) -> Ruleset:
    found = Ruleset("the output of ufw")
    for number, whole in enumerate(lines, 1):
        line = whole.strip()
        if not line or _TITLES.match(line):
            continue
        try:
            if defaults := _DEFAULTS.match(line):
                for hook, verdict in zip((Hook.INPUT, Hook.OUTPUT, Hook.FORWARD), defaults.groups(), strict=True):
                    if verdict in _TARGETS:
                        found.policy[hook, ""] = Rule(number, line, _TARGETS[verdict])
                continue
            hook, rule = _command(number, line) if line.startswith("ufw ") else _columns(number, line)
            found.chains.setdefault(found.entry[hook], []).append(rule)
        except ValueError as error:
            found.findings.add(Finding(number, line, f"not translated: {error}"))
    return found


def _deleting(line: str) -> str:
    """Give the command that deletes what a line of `ufw show added` denies."""
    told = re.fullmatch(r"(ufw|ufw route) ((?:deny|reject) .*?)(?: comment '.*)?", line)
    try:
        return f"{told[1]} delete {shlex.join(shlex.split(told[2]))}" if told else ""
    except ValueError:  # it is among the findings
        return ""


def _of_tuple(line: str) -> str:
    """Give the command that deletes what a comment of user.rules describes, in ufw's words for all of its parts."""
    told = _TUPLE.match(line)
    if not told:
        return ""
    routed, verb, protocol, port, to, sport, source, way = told.groups()
    sides = [word for word in way.split("!") if word]
    parts = ["ufw", *(["route"] if routed else []), "delete", verb]
    for side in sides if not routed or "_" in way else ():
        where, _, link = side.partition("_")
        parts += [where, "on", link] if link else [where]
    parts += [] if protocol == "any" else ["proto", protocol]
    for word, address, its in (("from", source, sport), ("to", to, port)):
        parts += [word, "any" if address in {"0.0.0.0/0", "::/0"} else address]
        parts += [] if its == "any" else ["port", its]
    return shlex.join(parts)


def _columns(number: int, line: str) -> tuple[Hook, Rule]:
    """Read a line of `ufw status`: `198.51.100.7 25/tcp   DENY OUT   Anywhere on eth0`."""
    found = _COLUMNS.fullmatch(line) if len(line) <= _MAX_LINE else None
    if not found or found["action"] == "LIMIT":
        raise ValueError("it limits how often, and blocks nothing for good" if found else "this is no line of ufw's")
    hook = _HOOKS[(found["way"] or "IN").lower()]
    options: list[str] = []
    for side in ("to", "from"):
        text, _, link = _ASIDE.sub("", found[side]).partition(" on ")
        if link:
            # ufw shows the interface of a route rule at its own end, and that of others at the opposite one.
            out = side == "to" if hook is Hook.FORWARD else side == "from"
            options += ["-o" if out else "-i", link.strip()]
        for word in text.split():
            words_of = _word(side, word)
            options += words_of[2:] if "-p" in options and "-p" in words_of else words_of
    rule = _rule(number, line, [*options, "-j", _TARGETS[found["action"].lower()]], found["comment"] or "")
    # What is for both families has a line for each; that of IPv6 is marked, where no address tells.
    six = "(v6)" in line or any(":" in value for fact in rule.facts for value in fact.values)
    return hook, replace(rule, family="6" if six else "4")


def _word(side: str, word: str) -> list[str]:
    plain, protocol = found.groups() if (found := re.fullmatch(r"(.+)/([a-z]\w*)", word)) else (word, "")
    options = ["-p", protocol] if protocol else []
    if _PORTS.fullmatch(plain):
        return [*options, "--dport" if side == "to" else "--sport", plain]
    if plain == "Anywhere":
        return options
    try:
        ipaddress.ip_network(plain, strict=False)
    except ValueError:
        raise ValueError(f"{word!r} is the name of an application; write its ports") from None
    return [*options, "-d" if side == "to" else "-s", plain]


def _command(number: int, line: str) -> tuple[Hook, Rule]:
    """Read a line of `ufw show added`: `ufw deny out to 198.51.100.7 port 25 proto tcp`."""
    rest = shlex.split(line)[1:]
    hook, target, side, comment = Hook.INPUT, "", "to", ""
    options: list[str] = []
    way = "in"
    while rest:
        match rest.pop(0), rest[:1]:
            case "route", _:
                hook = Hook.FORWARD
            case ("allow" | "deny" | "reject") as verb, _:
                target = _TARGETS[verb]
            case ("in" | "out") as way, _:
                hook = hook if hook is Hook.FORWARD else _HOOKS[way]
            case "on", [link]:
                options += ["-i" if way == "in" else "-o", link]
                del rest[:1]
            case (("log" | "log-all"), _):
                pass
            case ("to" | "from") as side, [address]:
                options += [] if address == "any" else ["-d" if side == "to" else "-s", address]
                del rest[:1]
            case "port", [ports]:
                options += ["--dport" if side == "to" else "--sport", ports]
                del rest[:1]
            case "proto", [protocol]:
                options += ["-p", protocol]
                del rest[:1]
            case "comment", [comment]:
                del rest[:1]
            case word, _ if _PORTS.fullmatch(word.partition("/")[0]):
                options += _word("to", word)
            case word, _:
                raise ValueError(f"{word!r} has no counterpart")
    if not target:
        raise ValueError("this is no rule of ufw's")
    return hook, _rule(number, line, [*options, "-j", target], comment)


def _rule(number: int, line: str, options: Sequence[str], comment: str) -> Rule:
    rule = replace(words.rule(number, line, options), comment=comment)
    if "--dport" in options and "-p" not in options:
        return replace(rule, protocols=frozenset({Protocol.TCP, Protocol.UDP}), portless="none")
    return rule
