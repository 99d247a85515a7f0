"""Ports as people write them: numbers, ranges, names from /etc/services, presets."""

from __future__ import annotations

import re
import socket
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard.model import Protocol
from nftguard.ports import Ports
from nftguard.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Iterable

SERVICES = Path("/etc/services")
_MOST = 1 << 20  # letters of it


def parse(text: object) -> tuple[Ports, ...]:
    """Read one entry of a `ports` list.

    Raises ValueError, with what is wrong and the way out.
    """
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise ValueError("write a port number, a range like '6000-6063', a service name or a preset like '@mail'")
    word = str(text).strip()
    if re.fullmatch(r"-?\d+", word):
        port = _number(word)
        return (Ports(port, port),)
    if found := re.fullmatch(r"(\d+)\s*-\s*(\d+)", word):
        first, last = _number(found[1]), _number(found[2])
        if first > last:
            raise ValueError(f"range {word} runs backwards; write {last}-{first}")
        return (Ports(first, last),)
    if word.startswith("@"):
        if word[1:] not in PRESETS:
            raise ValueError(f"no preset {word}{_nearest(word[1:], PRESETS, '@')}; there is {_presets()}")
        return PRESETS[word[1:]].ports
    port = _service(word)
    return (Ports(port, port),)


def _number(digits: str) -> int:
    # The length first: int() of a very long run of digits raises a ValueError of its own (Python 3.11).
    if len(digits) > 9 or not 1 <= int(digits) <= 65535:
        raise ValueError(f"port {digits[:20]} is out of range; ports are 1 to 65535")
    return int(digits)


def _service(name: str) -> int:
    for protocol in Protocol:
        try:
            return socket.getservbyname(name, protocol)
        except (OSError, UnicodeError, ValueError):  # unknown here, not ASCII, a zero byte
            continue
    if "," in name:
        raise ValueError(f"no service {name!r}; each port is an entry of its own")
    if not SERVICES.exists():
        raise ValueError(f"no service {name!r}: this host has no {SERVICES} (package netbase); write the number")
    raise ValueError(f"no service {name!r} in {SERVICES}{_nearest(name, sorted(known_services()))}; write the number")


def known_services() -> dict[str, str]:
    """List the names in /etc/services, each with its port and protocol as they stand there; none without the file."""
    try:
        with SERVICES.open(encoding="utf-8", errors="replace") as stream:
            lines = stream.read(_MOST).splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines if line.strip() and not line.startswith("#"))
    return {name: "".join(rest[:1]) for name, *rest in words}


def _nearest(word: str, known: Iterable[str], mark: str = "") -> str:
    near = get_close_matches(word, list(known), n=1)
    return f" (did you mean {mark}{near[0]}?)" if near else ""


def _presets() -> str:
    return ", ".join(f"@{name}" for name in PRESETS)
