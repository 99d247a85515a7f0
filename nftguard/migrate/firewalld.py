"""Rules of firewalld to a Ruleset: direct rules, listed or as XML, and policies for what goes out."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from nftguard.errors import NftguardError
from nftguard.migrate import iptables, words
from nftguard.migrate.rules import Family, Finding, Rule, Ruleset
from nftguard.model import Hook

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from xml.etree.ElementTree import Element

_DIRECT = re.compile(r"(ipv4|ipv6|eb) +(\S+) +(\S+) +(-?\d+) +(.*)")
_FAMILIES: dict[str, Family] = {"ipv4": "4", "ipv6": "6"}
_BLOCKING = re.compile(r"-j ?(DROP|REJECT)\b|--jump[ =](DROP|REJECT)\b")
_TARGETS = {"accept": "ACCEPT", "drop": "DROP", "reject": "REJECT"}
# Those that spam and worms use: firewalld's names are not those of /etc/services.
_SERVICES = {
    "ftp": 21,
    "ssh": 22,
    "telnet": 23,
    "smtp": 25,
    "pop3": 110,
    "imap": 143,
    "smtps": 465,
    "smtp-submission": 587,
    "imaps": 993,
    "pop3s": 995,
}
_BY_ITSELF = "firewalld by itself lets pass what goes over lo, and what belongs to a connection that is open"


def recognised(lines: Sequence[str]) -> bool:
    """Whether these are direct rules, or XML of firewalld's."""
    return any(line.lstrip().startswith("<") for line in lines[:1]) or any(map(_DIRECT.match, lines))


def read(lines: Sequence[str]) -> Ruleset:
    """Read the lines of a file. Raises NftguardError for XML that cannot be read, or is not for what goes out."""
    if not lines[0].lstrip().startswith("<"):
        found = Ruleset("firewalld's direct rules")
        _direct(found, ((number, *_listed(line)) for number, line in enumerate(lines, 1) if line.strip()))
        return found
    at, root = _elements(lines)
    if root.tag == "direct":
        found = Ruleset("firewalld's direct.xml")
        _direct(found, ((at[element], *_attributes(element)) for element in root))
        return found
    if root.tag == "policy":
        return _policy(root, at, lines)
    raise NftguardError(f"a firewalld file <{root.tag}> blocks nothing that goes out; name direct.xml or a policy")


def _elements(lines: Sequence[str]) -> tuple[dict[Element, int], Element]:
    """Parse line by line, so that each element's line is known."""
    parser: ElementTree.XMLPullParser[Element] = ElementTree.XMLPullParser(["start"])
    at: dict[Element, int] = {}
    try:
        for number, line in enumerate(lines, 1):
            if "<!DOCTYPE" in line or "<!ENTITY" in line:
                raise NftguardError(f"line {number}: a document type; firewalld writes none")
            parser.feed(line + "\n")
            at |= {event[1]: number for event in parser.read_events()}  # type: ignore[misc]  # of "start": an element
        parser.close()
    except ElementTree.ParseError as error:
        raise NftguardError(f"the XML cannot be read: {error}") from None
    return at, next(iter(at))


_Direct = tuple[str, str, str, int, str]  # family, table, chain, priority, arguments


def _listed(line: str) -> _Direct:
    found = _DIRECT.fullmatch(line.strip())
    return (found[1], found[2], found[3], int(found[4]), found[5]) if found else ("", "", "", 0, line.strip())


def _attributes(element: Element) -> _Direct:
    text = (element.text or "").strip()
    if element.tag == "chain":
        return "chain", "", "", 0, text
    if element.tag == "passthrough":
        return element.get("ipv", ""), "", "", 0, text
    priority = element.get("priority", "0")
    order = int(priority) if re.fullmatch(r"-?[0-9]{1,6}", priority) else 0
    return element.get("ipv", ""), element.get("table", ""), element.get("chain", ""), order, text


def _direct(found: Ruleset, rules: Iterable[tuple[int, str, str, str, int, str]]) -> None:
    for number, family, table, chain, order, text in sorted(rules, key=lambda rule: rule[4]):
        if family in {"ipv4", "ipv6"}:
            iptables.add(found, number, f"-A {chain} {text}" if chain else text, table or "filter", _FAMILIES[family])
            if _BLOCKING.search(text):
                what = f"rule {family} {table} {chain} {order}" if chain else f"passthrough {family}"
                found.undo.append(f"firewall-cmd --permanent --direct --remove-{what} {_quoted(text)}")
        elif family != "chain":
            found.findings.add(Finding(number, text, "not translated: this is no direct rule for IPv4 or IPv6"))
    found.undo += ["firewall-cmd --reload"] * bool(found.undo)
    found.notes.append("Direct rules hold for IPv4 or IPv6, as each says; these blocks hold for both.")


def _quoted(text: str) -> str:
    try:
        return shlex.join(shlex.split(text))
    except ValueError:
        return shlex.quote(text)


def _policy(root: Element, at: dict[Element, int], lines: Sequence[str]) -> Ruleset:
    found = Ruleset("a firewalld policy")
    zones = {side: [zone.get("name", "") for zone in root.findall(f"{side}-zone")] for side in ("ingress", "egress")}
    if zones["ingress"] == ["HOST"]:
        hook = Hook.OUTPUT
    elif zones["egress"] == ["HOST"]:
        hook = Hook.INPUT
    else:
        hook = Hook.FORWARD
    rules = []
    for element in root:
        text = lines[at[element] - 1].strip()
        try:
            rules += [(_priority(element), rule) for rule in _rules(element, at[element], text)]
        except ValueError as error:
            found.findings.add(Finding(at[element], text, f"not translated: {error}"))
    told = next((zone for names in zones.values() for zone in names if zone not in {"HOST", "ANY"}), "")
    if told:
        line, text = at[root], f"<policy> between {zones['ingress']} and {zones['egress']}"
        found.findings.add(Finding(line, text, "translated more widely: blocks know no zones; see interfaces of allow"))
    link = {Hook.INPUT: ("-i", "lo"), Hook.OUTPUT: ("-o", "lo")}.get(hook)
    chain = [words.rule(0, _BY_ITSELF, (*link, "-j", "ACCEPT"))] if link else []
    chain.append(words.rule(0, _BY_ITSELF, ("--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")))
    # firewalld.richlanguage(5): by priority, and at priority 0 first what denies.
    chain += [
        rule for _, rule in sorted(rules, key=lambda pair: (pair[0], pair[0] == 0 and pair[1].target == "ACCEPT"))
    ]
    if (target := root.get("target", "CONTINUE")) in _TARGETS.values():
        chain.append(Rule(at[root], f'<policy target="{target}">', target))
    found.undo = [*_undoing(root), "firewall-cmd --reload"]
    found.chains[found.entry[hook]] = chain
    found.notes.append(f"{_BY_ITSELF}; so do these blocks.")
    return found


def _undoing(policy: Element) -> Iterator[str]:
    """Give the commands that take the blocks out of a policy."""
    of = "firewall-cmd --permanent --policy=NAME"
    if policy.get("target") in {"DROP", "REJECT"}:
        yield f"{of} --set-target=CONTINUE"
    for rule in policy.findall("rule"):
        if rule.find("drop") is not None or rule.find("reject") is not None:
            words_of = (_rich(part, skip=("invert",)) for part in rule)
            yield f"{of} --remove-rich-rule={shlex.quote(' '.join([_rich(rule), *words_of]))}"


def _rich(element: Element, skip: tuple[str, ...] = ()) -> str:
    """Put an element into the words of firewalld.richlanguage(5)."""
    no = ["NOT"] if element.get("invert", "").lower() in {"true", "yes", "1"} else []
    told = [f'{key}="{value}"' for key, value in element.items() if key not in skip]
    return " ".join([element.tag, *no, *told, *(_rich(part) for part in element if part.tag == "limit")])


def _priority(element: Element) -> int:
    priority = element.get("priority", "0")
    if not re.fullmatch(r"-?[0-9]{1,6}", priority):
        raise ValueError(f"priority {priority!r} is no number")
    return int(priority)


def _rules(element: Element, line: int, text: str) -> Iterator[Rule]:
    """Read one child of a policy: a rich rule, or a port or service that it lets pass."""
    match element.tag:
        case "port" | "protocol" | "service":
            yield words.rule(line, text, [*_options(element), "-j", "ACCEPT"])
        case "rule":
            parts = [option for part in element for option in _options(part)]
            if "-j" in parts:
                yield words.rule(line, text, parts, _FAMILIES.get(element.get("family", ""), ""))
        case "ingress-zone" | "egress-zone" | "short" | "description":
            pass
        case tag:
            raise ValueError(f"<{tag}> has no counterpart")


def _options(part: Element) -> list[str]:
    no = ["!"] if part.get("invert", "").lower() in {"true", "yes", "1"} else []
    match part.tag:
        case "source" | "destination" if address := part.get("address"):
            return [*no, "-s" if part.tag == "source" else "-d", address]
        case "port":
            return ["-p", part.get("protocol", ""), "--dport", part.get("port", "").replace("-", ":")]
        case "protocol":
            return ["-p", part.get("value", "")]
        case "service":
            if (name := part.get("name", "")) not in _SERVICES:
                raise ValueError(f"the service {name!r} is not known here; write its ports")
            return ["-p", "tcp", "--dport", str(_SERVICES[name])]
        case "icmp-type" | "icmp-block":
            return ["-p", "icmp"]
        case "log" | "audit" | "nflog":
            return []
        case "accept" | "drop" | "reject":
            if part.find("limit") is not None:
                raise ValueError("it limits how often, and blocks nothing for good")
            return ["-j", _TARGETS[part.tag]]
    raise ValueError(f"<{part.tag}> has no counterpart")
