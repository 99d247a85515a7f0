"""The words of one iptables rule to a Rule, as iptables(8) and iptables-extensions(8) define them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nftguard import services, values
from nftguard.migrate.rules import EVERY_PORT, EVERY_PROTOCOL, PASSING_BY, Fact, Family, Kind, Rule
from nftguard.model import Protocol
from nftguard.ports import Ports, merge, without

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# What iptables takes for one and the same option.
_SAME = {
    **dict.fromkeys(("-p", "--proto"), "--protocol"),
    **dict.fromkeys(("-s", "--src"), "--source"),
    **dict.fromkeys(("-d", "--dst"), "--destination"),
    **dict.fromkeys(("-i",), "--in-interface"),
    **dict.fromkeys(("-o",), "--out-interface"),
    **dict.fromkeys(("-j",), "--jump"),
    **dict.fromkeys(("-g",), "--goto"),
    **dict.fromkeys(("-m",), "--match"),
    **dict.fromkeys(("-c",), "--set-counters"),
    **dict.fromkeys(("--destination-port", "--dports", "--destination-ports"), "--dport"),
    **dict.fromkeys(("--source-port", "--sports", "--source-ports"), "--sport"),
    **dict.fromkeys(("--state",), "--ctstate"),
}
_MATCHES = {"tcp", "udp", "sctp", "dccp", "multiport", "comment", "conntrack", "state", "owner", "iprange"}
_NUMBERS = {str(protocol.number): protocol for protocol in Protocol}
_WITH_OPTIONS = PASSING_BY - {""}
_ONCE = {"--protocol", "--source", "--destination", "--in-interface", "--out-interface", "--jump"}
_ATTACHED = re.compile(r"(-[psdiojgm])([^-].*)", re.DOTALL)
_STATES = frozenset({"NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"})


@dataclass(slots=True)
class _Draft:
    protocols: frozenset[Protocol] = EVERY_PROTOCOL
    portless: Literal["all", "some", "none"] = "all"
    ports: tuple[Ports, ...] = EVERY_PORT
    facts: list[Fact] = field(default_factory=list)
    target: str = ""
    goto: bool = False
    comment: str = ""
    prefix: str = ""


def rule(line: int, text: str, words: Sequence[str], family: Family = "") -> Rule:
    """Read the words of a rule, without the `-A CHAIN` before them.

    What nftguard has no word for becomes a fact of the kind OTHER. Raises ValueError where a value is missing or wrong.
    """
    draft, rest, once = _Draft(), list(words), set[str]()
    while rest:
        negated = rest[0] == "!"
        if negated:
            rest.pop(0)
        if not rest:
            raise ValueError("it ends in '!'")
        word = rest.pop(0)
        attached = _ATTACHED.fullmatch(word)  # "-ptcp"
        option, equals, value = (attached[1], "=", attached[2]) if attached else word.partition("=")
        if equals:
            rest.insert(0, value)
        if not option.startswith("-"):
            raise ValueError(f"{word!r} is no option")
        if rest and rest[0] == "!" and not negated and not option.startswith(("-j", "-m")):
            negated = True  # "-d ! 192.0.2.1", as it was written once
            rest.pop(0)
        option = _SAME.get(option, option)
        single = "--jump" if option == "--goto" else option
        if option in {"-A", "-I", "-D", "-R", "--append", "--insert"} or (single in _ONCE and single in once):
            raise ValueError(f"more than one rule, or {option} twice")  # iptables takes neither
        once.add(single)
        _option(draft, option, negated, rest)
    if not draft.ports:
        raise ValueError("its ports exclude each other")
    if draft.ports == (Ports(0, 0),):
        raise ValueError("port 0 is no port that nftguard could block")
    return Rule(
        line, text, draft.target, draft.protocols, draft.portless, draft.ports, tuple(dict.fromkeys(draft.facts)),
        draft.goto, draft.comment, draft.prefix, family,
    )  # fmt: skip


def _option(draft: _Draft, option: str, negated: bool, rest: list[str]) -> None:
    def value() -> str:
        if not rest:
            raise ValueError(f"{option} has no value")
        return rest.pop(0)

    match option:
        case "--protocol":
            _protocol(draft, value().lower(), negated)
        case "--source" | "--destination" | "--src-range" | "--dst-range":
            kind = Kind.FROM if "--s" in option else Kind.TO
            _addresses(draft, kind, value(), negated, spanned=option.endswith("-range"))
        case "--in-interface" | "--out-interface":
            _interface(draft, Kind.IN if option == "--in-interface" else Kind.OUT, value(), negated)
        case "--dport":
            found = ports(value())
            draft.ports = _common(draft.ports, without(EVERY_PORT[0], merge(found)) if negated else found)
        case "--sport":
            draft.facts.append(Fact(Kind.OTHER, (f"the port it is sent from ({value()})",), negated))
        case "--ports" | "--port":
            draft.facts.append(Fact(Kind.OTHER, (f"a port at either end ({value()})",), negated))
        case "--syn":
            draft.facts.append(Fact(Kind.OPENED, negated=not negated))
        case "--tcp-flags":
            mask, flags = ({*value().upper().split(",")} for _ in range(2))
            if mask == {"FIN", "SYN", "RST", "ACK"} and flags == {"SYN"}:
                draft.facts.append(Fact(Kind.OPENED, negated=not negated))
            else:
                draft.facts.append(Fact(Kind.OTHER, ("TCP flags",), negated))
        case "--ctstate":
            _state(draft, value(), negated)
        case "--uid-owner" | "--gid-owner":
            _owner(draft, Kind.USER if option == "--uid-owner" else Kind.GROUP, value(), negated)
        case "--jump" | "--goto":
            draft.target, draft.goto = value(), option == "--goto"
        case "--match":
            if (name := value()) not in _MATCHES:
                draft.facts.append(Fact(Kind.OTHER, (f"the match {name!r}",)))
                _skip(rest, known=False)
        case "--set-counters":
            value(), value()
        case "--comment":
            draft.comment = value()
        case "--log-prefix":
            draft.prefix = value()
        case "--reject-with":
            value()
        case _ if draft.target in _WITH_OPTIONS:
            _skip(rest)
        case _:
            draft.facts.append(Fact(Kind.OTHER, (f"the option {option}",), negated))
            _skip(rest)


def _skip(rest: list[str], known: bool = True) -> None:
    """Leave out the values of an option; of a match that is not known, its options too."""
    while rest and (not rest[0].startswith("-") and rest[0] != "!"):
        rest.pop(0)
    while not known and rest and rest[0].removeprefix("!").startswith("--"):
        if _SAME.get(rest[0], rest[0]) in {"--jump", "--goto", "--match", "--protocol", "--dport", "--comment"}:
            return
        rest.pop(0)
        _skip(rest)


def _protocol(draft: _Draft, name: str, negated: bool) -> None:
    name = _NUMBERS.get(name, name)
    if name in {"all", "0"}:
        found, portless = EVERY_PROTOCOL, "all"
    elif name in EVERY_PROTOCOL:
        found, portless = frozenset({Protocol(name)}), "none"
    else:
        found, portless = frozenset[Protocol](), "some"
    if negated:
        found = EVERY_PROTOCOL - found
        portless = {"all": "none", "none": "all", "some": "some"}[portless]
    draft.protocols, draft.portless = found, portless  # type: ignore[assignment]  # one of the three words


def _addresses(draft: _Draft, kind: Kind, text: str, negated: bool, spanned: bool) -> None:
    found: list[str] = []
    for word in text.split(","):
        try:
            if spanned:
                first, _, last = word.partition("-")
                pair = ipaddress.ip_address(first), ipaddress.ip_address(last or first)
                found += [values.place(str(network)) for network in ipaddress.summarize_address_range(*pair)]
            else:
                found.append(_place(word))
        except (ValueError, TypeError):
            draft.facts.append(Fact(Kind.OTHER, (f"the address {word}",), negated))
            return
    if "" not in found:
        draft.facts.append(Fact(kind, tuple(found), negated))
    elif negated:
        draft.facts.append(Fact(Kind.OTHER, ("no address at all",)))


def _place(word: str) -> str:
    """Read an address, a network or a host's name; empty where it is everybody."""
    address, _, mask = word.partition("/")
    if "." in mask or ":" in mask:
        bits = ipaddress.ip_address(mask)
        length = int(bits).bit_count()
        if int(bits) != (1 << bits.max_prefixlen) - (1 << (bits.max_prefixlen - length)):
            raise ValueError(word)  # a mask with holes
        word = f"{address}/{length}"
    try:
        network = ipaddress.ip_network(word, strict=False)
    except ValueError:
        return values.place(word)
    return values.place(str(network)) if network.prefixlen else ""


def _interface(draft: _Draft, kind: Kind, name: str, negated: bool) -> None:
    if name == "+" and not negated:
        return
    try:
        known = values.interface(re.sub(r"\+$", "*", name)) if "*" not in name else ""
    except ValueError:
        known = ""
    draft.facts.append(
        Fact(kind, (known,), negated) if known else Fact(Kind.OTHER, (f"the interface {name}",), negated)
    )


def _owner(draft: _Draft, kind: Kind, name: str, negated: bool) -> None:
    try:
        draft.facts.append(Fact(kind, (values.account(name),), negated))
    except ValueError:
        draft.facts.append(Fact(Kind.OTHER, (f"the owners {name}",), negated))


def _state(draft: _Draft, text: str, negated: bool) -> None:
    states = frozenset(text.upper().split(","))
    if not states <= _STATES:
        draft.facts.append(Fact(Kind.OTHER, (f"the connection state {text}",), negated))
        return
    states = _STATES - states if negated else states
    if {"NEW", "ESTABLISHED"} <= states:
        return  # every packet, but what connection tracking cannot make sense of
    if "ESTABLISHED" in states or "NEW" in states:
        draft.facts.append(Fact(Kind.OPENED, negated="NEW" in states))
    else:
        draft.facts.append(Fact(Kind.OTHER, (f"the connection state {text}",), negated))


def ports(text: str) -> tuple[Ports, ...]:
    """Read ports as iptables takes them: `25`, `smtp`, `6000:6063`, `:1023`, joined by commas. Raises ValueError."""
    found = []
    for word in text.split(","):
        first, colon, last = word.partition(":")
        low = _port(first) if first or not colon else 0
        high = (_port(last) if last else 65535) if colon else low
        if low > high:
            raise ValueError(f"the ports {word} run backwards")
        found.append(Ports(low, high))
    return tuple(found)


def _port(word: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", word) and int(word) <= 65535:
        return int(word)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", word):
        raise ValueError(f"{word!r} is not a port")
    return services.parse(word)[0].first


def _common(one: Iterable[Ports], other: Sequence[Ports]) -> tuple[Ports, ...]:
    pairs = ((max(a.first, b.first), min(a.last, b.last)) for a in one for b in other)
    return tuple(Ports(first, last) for first, last in pairs if first <= last)
