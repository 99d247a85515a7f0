"""What is to be allowed for a while, as it is asked for: `nftguard allow 587 --user postfix --for 30m`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from nftguard import services, values
from nftguard.allow import Allowance
from nftguard.allowed import words
from nftguard.model import Hook, Protocol
from nftguard.names import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nftguard.config import Config
    from nftguard.host import Host

MOST_PORTS = 64
"""Ports that one grant opens at most: more than that is a slip of the hand, or belongs into the configuration."""
MOST_SECONDS = 7 * 86400


class Who(StrEnum):
    """Whom a grant lets through: senders of this host, one end of the way, or anyone at all."""

    USER = "user"
    GROUP = "group"
    UNIT = "unit"
    TO = "to"
    FROM = "from"
    ANYONE = "anyone"


_SENDERS = (Who.USER, Who.GROUP, Who.UNIT)
_READ = {
    Who.USER: values.account,
    Who.GROUP: values.account,
    Who.UNIT: values.unit,
    Who.TO: values.place,
    Who.FROM: values.place,
}
_KINDS = {Who.USER: "users", Who.GROUP: "groups", Who.UNIT: "units", Who.ANYONE: "ports"}
"""What `allow` calls them; the ends of the way have a kind for each family."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What was asked for, checked. `ports` are sorted, each once; `by` is who gave it, fit to be shown."""

    hook: Hook
    protocol: Protocol
    ports: tuple[int, ...]
    who: Who
    value: str  # empty for anyone
    seconds: int
    persist: bool = False  # beyond a reboot
    by: str = ""

    def __str__(self) -> str:
        """Say what is let through: `tcp/587 on output for user postfix`."""
        return words.what(self.protocol, words.spans(self.ports), self.hook, self.who, self.value)

    def allowances(self, left: int) -> Iterator[Allowance]:
        """Give what the policy is told, for so many seconds more."""
        for kind in self._kinds():
            for port in self.ports:
                yield Allowance(self.hook, self.protocol, port, kind, self.value, left)

    def _kinds(self) -> list[str]:
        if self.who in _KINDS:
            return [_KINDS[self.who]]
        if self.value == values.LOCAL or values.is_host(self.value):
            return [f"{self.who}4", f"{self.who}6"]
        return [f"{self.who}{6 if ':' in self.value else 4}"]

    def arguments(self) -> dict[str, str | int | bool]:
        """Write it as a request for it does: `read` gives the same grant again."""
        return {
            "ports": " ".join(map(str, self.ports)),
            "hook": self.hook.value,
            "protocol": self.protocol.value,
            self.who.value: self.value or True,
            "seconds": self.seconds,
            "persist": self.persist,
        }

    def record(self) -> dict[str, str | int | bool]:
        """Give the fields of its records in the journal."""
        return {
            "allowance": str(self),
            "hook": self.hook.value,
            "protocol": self.protocol.value,
            "ports": words.spans(self.ports),
            "who": f"{self.who} {self.value}".rstrip(),
            "given_by": self.by,
            "seconds": self.seconds,
            "persist": self.persist,
        }


@dataclass(frozen=True, slots=True)
class Selection:
    """What `deny` takes back: all grants that fit; None fits all."""

    ports: frozenset[int] | None
    who: tuple[Who, str] | None
    hook: Hook | None
    protocol: Protocol | None

    def __str__(self) -> str:
        """Say what is looked for, as `deny` was told."""
        ports = words.spans(self.ports) if self.ports is not None else "any port"
        parts = [f"{self.protocol}/{ports}" if self.protocol else ports]
        parts += [f"on {self.hook}"] if self.hook else []
        return " ".join([*parts, words.whom(*self.who)] if self.who else parts)

    def taken(self, grant: Grant) -> tuple[int, ...]:
        """Give the ports of the grant that it takes back."""
        fits = (
            self.hook in {None, grant.hook}
            and self.protocol in {None, grant.protocol}
            and self.who in {None, (grant.who, grant.value)}
        )
        return tuple(port for port in grant.ports if self.ports is None or port in self.ports) if fits else ()


def read(arguments: Mapping[str, object], by: str = "") -> Grant:
    """Read what `allow` is asked for, whoever asks: every value is checked.

    Raises ValueError, with what is wrong and the way out.
    """
    _known(arguments, {"ports", "hook", "protocol", "seconds", "persist", *Who})
    hook, protocol = Hook(_word(arguments, "hook")), Protocol(_word(arguments, "protocol"))
    ports = _ports(_word(arguments, "ports"))
    if len(ports) > MOST_PORTS:
        raise ValueError(
            f"that is {len(ports):,} ports, and {MOST_PORTS} are allowed at once; let more through in the configuration"
        )
    who = _who(arguments)
    if who is None:
        raise ValueError(f"say for whom, with {_options()}, or --anyone for whoever sends")
    if who[0] in _SENDERS and hook is not Hook.OUTPUT:
        raise ValueError(f"--{who[0]} needs the hook output: only what this host itself sends has a sender")
    seconds = arguments.get("seconds")
    if type(seconds) is not int or not 1 <= seconds <= MOST_SECONDS:
        raise ValueError("an allowance is for 1s to 7d; what is to last longer belongs into `allow` of the block")
    persist = arguments.get("persist", False)
    if not isinstance(persist, bool):
        raise ValueError(f"persist is true or false, not {values.toml(persist)}")
    return Grant(hook, protocol, ports, *who, seconds, persist, clean(by))


def select(arguments: Mapping[str, object]) -> Selection:
    """Read what `deny` is asked for. Raises ValueError, with what is wrong and the way out."""
    _known(arguments, {"ports", "hook", "protocol", "all", *Who})
    every, named = arguments.get("all", False), _word(arguments, "ports")
    who = _who(arguments)
    if named.split() and every is True:
        raise ValueError("either ports or --all, not both")
    if not named.split() and every is not True and who is None:
        raise ValueError(f"name the ports to take back, or for whom, with {_options()} or --anyone, or --all")
    hook, protocol = _word(arguments, "hook"), _word(arguments, "protocol")
    return Selection(
        frozenset(_ports(named)) if named.split() else None,
        who,
        Hook(hook) if hook else None,
        Protocol(protocol) if protocol else None,
    )


def barred(config: Config, hook: Hook, protocol: Protocol, ports: Iterable[int]) -> tuple[int, ...]:
    """Give those of the ports that a block names there: to allow others would be of no effect."""
    spans = [
        span
        for block in config.block
        if hook in block.hooks and protocol in block.protocols
        for span in block.resolved()
    ]
    return tuple(port for port in ports if any(span.first <= port <= span.last for span in spans))


def missing(grant: Grant, host: Host, *, cgroups: bool = True) -> str:
    """Say why the grant can never hold on this host; empty when it can. `cgroups`: the kernel can tell units."""
    known = {Who.USER: host.users, Who.GROUP: host.groups}.get(grant.who)
    if known is not None and not grant.value.isdigit() and grant.value not in known:
        return f"this host has no {grant.who} {grant.value}; see /etc/{'passwd' if grant.who is Who.USER else 'group'}"
    if grant.who is Who.UNIT and not cgroups:
        return "this kernel cannot tell units (Linux 5.13 with its module nft_socket can); name the unit's --user"
    return ""


def waiting(grant: Grant, host: Host) -> str:
    """Say what the grant still waits for on this host; empty when it holds at once."""
    if grant.who is Who.UNIT and not host.units.get(grant.value):
        return f"{grant.value} is not running; it holds once that is started"
    if grant.who in {Who.TO, Who.FROM} and values.is_host(grant.value) and not host.names.get(grant.value):
        return f"{grant.value} has no address yet; it holds once that is found"
    return ""


def _known(arguments: Mapping[str, object], known: set[str]) -> None:
    if odd := next((name for name in arguments if name not in known), None):
        raise ValueError(f"{values.toml(odd)} is not known here; is the daemon of another version? restart it")


def _word(arguments: Mapping[str, object], name: str) -> str:
    return values.text(arguments.get(name, ""))


def _ports(text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for word in text.split():
        if "," in word:
            raise ValueError(f"no service {word!r}; separate ports with spaces")
        for ports in services.parse(word):
            found |= set(range(ports.first, ports.last + 1))
    if not found:
        raise ValueError("name a port: a number, a range like 6000-6063, a service or a preset like @mail")
    return tuple(sorted(found))


def _who(arguments: Mapping[str, object]) -> tuple[Who, str] | None:
    named = [(who, arguments[who]) for who in Who if arguments.get(who)]
    if len(named) > 1:
        raise ValueError(f"--{named[0][0]} and --{named[1][0]} at once; give each an allowance of its own")
    for who, value in named:
        if who is not Who.ANYONE:
            return who, _READ[who](value)
        if value is True:
            return who, ""
        raise ValueError(f"anyone is true or false, not {values.toml(value)}")
    return None


def _options() -> str:
    return ", ".join(f"--{who}" for who in Who if who is not Who.ANYONE)
