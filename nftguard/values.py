"""The values of a configuration that are more than a word: each is read, or refused with the way out. Pure."""

from __future__ import annotations

import ipaddress
import re
import string
from difflib import get_close_matches

LOCAL = "@local"
"""The networks that this host is on, among addresses."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_RATE = re.compile(r"([1-9]\d{0,5})\s*/\s*(second|minute|hour|day)\s+per\s+flow")
_DURATION = re.compile(r"([1-9][0-9]{0,5})\s*(s|sec|m|min|h|hour|d|day)?")
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}
_PREFIX_FIELDS = ("block", "hook", "protocol", "port")
# nft expands $names inside a quoted prefix, knows no escape for a quote, and the log wants one line.
_PREFIX_REFUSED = re.compile(r'[^\x20-\x7e]|["\\$]')
_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")  # useradd(8), and the dots that many allow
_MOST_ID = (1 << 32) - 2  # the last one means "no change" to chown(2)
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]{1,246}")  # systemd.unit(5)
_UNIT_TYPES = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")  # which have control groups
_MOST_INTERFACE = 15  # characters; IFNAMSIZ is 16 with its zero
_INTERFACE = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.@-]+\*?")  # dev_valid_name, net/core/dev.c: also no '/' and no ':'
_MAPPED = ipaddress.IPv6Network("::ffff:0.0.0.0/96")  # RFC 4291, 2.5.5.2
_HOST = re.compile(
    r"(?=.{1,253}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)


def toml(value: object) -> str:
    """Write a value as it may have stood in the file, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits; a table nested too deeply
        text = "a value beyond all measure"
    return text if len(text) <= 60 else f"{text[:57]}..."


def text(value: object) -> str:
    """Read a string. Raises ValueError, as every function here does: pydantic turns no other into a message of ours."""
    if not isinstance(value, str):
        raise ValueError(f"is a string in quotes, not {toml(value)}")
    return value


def listed(value: object) -> object:
    """Read a list, of whatever it is."""
    if not isinstance(value, list):
        raise ValueError(f"is a list, as in [{toml(value)}]")
    return value


def name(value: object) -> str:
    """Read the name of a block: it stands in the names of the table's objects."""
    if not _NAME.fullmatch(text(value)):
        raise ValueError(
            f"{value!r} cannot be a name; use up to 32 letters, digits, '-' and '_', beginning with a letter"
        )
    if value == "bridge":
        raise ValueError("'bridge' cannot be the name of a block: what belongs to bridges is called so; take another")
    return str(value)


def duration(value: object, most: int = 86400) -> int:
    """Read a time as seconds, from 1 to `most`: `30s`, `5min`, `1h`; without a unit it is in seconds.

    `most` is whole hours, or from a day on whole days.
    """
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = int(found[1]) * _SECONDS[found[2] or "s"] if found else 0
    if not 1 <= seconds <= most:
        longest = f"{most // 86400}d" if most >= 86400 else f"{most // 3600}h"
        raise ValueError(f"{toml(value)} is not a time between '1s' and '{longest}', like '30s', '5min' or '1h'")
    return seconds


def rate(value: object) -> tuple[int, str]:
    """Read a rate: how many, and in what unit of time."""
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"{toml(value)} is not a rate like '1/minute per flow' (per second, minute, hour or day)")
    return int(found[1]), found[2]


def prefix(value: object) -> str:
    """Read the template of a log line's beginning."""
    template = text(value)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write a brace as {{{{ or }}}}") from None
    for _, field, spec, conversion in parts:
        if field is not None and (field not in _PREFIX_FIELDS or spec or conversion):
            known = ", ".join(f"{{{one}}}" for one in _PREFIX_FIELDS)
            raise ValueError(f"no field {{{field}{'…' * bool(spec or conversion)}}}; there are {known}, as they are")
    if found := _PREFIX_REFUSED.search(template):
        raise ValueError(f"nft cannot take {found[0]!r} in a log prefix; use printable ASCII without quotes, \\ and $")
    return template


def account(value: object) -> str:
    """Read a user or a group: its name, or its number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"is a name in quotes, or a whole number, not {toml(value)}")
    word = toml(value) if isinstance(value, int) else value
    if word.isascii() and word.isdigit() and len(word) <= 10 and int(word) <= _MOST_ID:
        return str(int(word))
    if not _ACCOUNT.fullmatch(word):
        raise ValueError(f"{toml(value)} is no name of a user or group; write it as in /etc/passwd, or its number")
    return word


def unit(value: object) -> str:
    """Read the name of a systemd unit that has a control group."""
    word = text(value)
    if not _UNIT.fullmatch(word):
        raise ValueError(f"{toml(value)} is no name of a systemd unit; `systemctl list-units` lists them")
    if not word.endswith(_UNIT_TYPES):
        stem, dot, suffix = word.rpartition(".")
        near = get_close_matches(f".{suffix}", _UNIT_TYPES, n=1, cutoff=0.75) if dot else [".service"]
        whole = f"did you mean '{stem if dot else word}{near[0]}'?" if near else "a timer or target, say, sends nothing"
        raise ValueError(f"{word!r} does not end with {', '.join(_UNIT_TYPES)}; {whole}")
    if word.startswith("-") or "@." in word:
        raise ValueError(f"{word!r} is a template or the root; name an instance, as in 'name@instance.service'")
    return word


def interface(value: object) -> str:
    """Read the name of an interface, or the beginning of several with a star."""
    word = text(value)
    if word == "*":
        raise ValueError("'*' is every interface; take the hook out of the block instead")
    device, colon, _ = word.partition(":")
    if colon and _INTERFACE.fullmatch(device):
        raise ValueError(
            f"{toml(word)} is a label of {device}, no interface; list {device!r}, or its address under from"
        )
    if len(word) > _MOST_INTERFACE:
        raise ValueError(f"{toml(word)} is too long for the name of an interface: at most 15 characters")
    if not _INTERFACE.fullmatch(word):
        raise ValueError(f"{toml(value)} is no name of an interface, like 'eth0', or 'wg*' for all that begin with it")
    return word


def place(value: object) -> str:
    """Read an address, a prefix, a host's name or `@local`; addresses come out in their shortest form."""
    word = text(value).strip()
    if word.startswith("@"):
        if word != LOCAL:
            raise ValueError(f"no {word!r} among addresses; there is {LOCAL!r}, the networks that this host is on")
        return word
    try:
        network = ipaddress.ip_network(word, strict=False)
    except ValueError:
        return _host(word)
    if "/" in word and str(ipaddress.ip_interface(word).ip) != str(network.network_address):
        raise ValueError(f"{word!r} is an address within {network}; write the one or the other")
    if network.prefixlen == 0 or network == _MAPPED:
        raise ValueError(f"{word!r} is everybody; take the port out of the block instead")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        written = ipaddress.IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
        raise ValueError(f"{word!r} is IPv4, which no packet carries as IPv6; write {_short(written)}")
    if "%" in word:
        raise ValueError(f"{word!r} names an interface; list that under interfaces")
    return _short(network)


def _short(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _host(word: str) -> str:
    if word.lower() == "local":
        raise ValueError(f"{word!r} is no host's name; did you mean {LOCAL!r}?")
    if word.lower() == "lo":
        raise ValueError("'lo' is an interface, list it under interfaces; its addresses are '127.0.0.0/8' and '::1'")
    if not _HOST.fullmatch(word.removesuffix(".")):
        raise ValueError(
            f"{toml(word)} is no address, prefix or host name; write them as '198.51.100.7', '10.0.0.0/8', "
            "'2001:db8::/32' or 'smtp.example.org'"
        )
    return word.removesuffix(".").lower()


def is_host(word: str) -> bool:
    """Whether a place is a host's name: only that has to be looked up."""
    return _HOST.fullmatch(word) is not None
