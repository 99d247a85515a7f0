"""What is known of host names, in the one form of every file about them; each is read as if an enemy wrote it. Pure.

`/run/nftguard/names` says what is wanted and what was good last, `/run/nftguard-resolver/answers.json` what was found,
and `/var/lib/nftguard/names.json` what a restart begins with: {"NAME": {"addresses": […], "at": S, "ttl": S,
"error": "…"}}.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from nftguard.names import clean, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_NAMES = 256
"""Names that are looked up, in all."""
MAX_ADDRESSES = 64
"""Addresses that are used of one name and family."""
MAX_FILE = 2 << 20
"""Bytes of a file; the largest that is written takes half of it."""

_MAX_ERROR = 120
# RFC 1123, 2.1, and the underscores that people use all the same; a last label of digits alone is no host's.
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?!(?:.*\.)?[0-9]+\Z)(?:{_LABEL}\.)*{_LABEL}")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one name."""

    addresses: tuple[str, ...] = ()  # as ipaddress writes them, sorted
    at: float | None = None  # when they were last confirmed, in seconds; by which clock, the file's description says
    ttl: float = 0.0  # seconds from then until they are asked for again
    error: str = ""  # why the last question had no answer; empty when it had one


def valid(name: str) -> bool:
    """Whether it can be a host's full name: letters, digits, `-`, `_` and dots; other scripts in their `xn--` form."""
    return len(name) <= 253 and _NAME.fullmatch(name) is not None


def usable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether there can be a host of that address: no group, no placeholder, nothing that needs an interface named."""
    if address.is_unspecified or address.is_multicast:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not (address.is_reserved or address.packed[0] == 0)  # 240.0.0.0/4 with the broadcast, and 0.0.0.0/8
    return not address.is_link_local and address.ipv4_mapped is None and address.scope_id is None


def encode(entries: Mapping[str, Entry]) -> str:
    """Write a file's content."""
    return json.dumps({name: asdict(entry) for name, entry in entries.items()}) + "\n"


def decode(data: bytes) -> dict[str, Entry]:
    """Read a file's content, all of it or nothing. Raises ValueError with the reason."""
    if len(data) > MAX_FILE:
        raise ValueError(f"is larger than {MAX_FILE >> 20} MiB")
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError:
        raise ValueError("is not JSON") from None
    if not isinstance(document, dict) or len(document) > MAX_NAMES:
        raise ValueError(f"is not an object with at most {MAX_NAMES} names")
    return {_name(name): _entry(name, fields) for name, fields in document.items()}


def _name(name: str) -> str:
    if not valid(name):
        raise ValueError(f"{shown(name[:80])} is no host name")
    return name


def _entry(name: str, fields: object) -> Entry:
    match fields:
        case {"addresses": list(addresses), "at": at, "ttl": ttl, "error": str(error), **more} if not more:
            pass
        case _:
            raise ValueError(f"{name}: is no entry")
    if len(addresses) > 2 * MAX_ADDRESSES:
        raise ValueError(f"{name}: has more than {2 * MAX_ADDRESSES} addresses")
    return Entry(
        addresses=tuple(sorted({_address(name, address) for address in addresses})),
        at=None if at is None else _seconds(name, at),
        ttl=_seconds(name, ttl),
        error=clean(error, _MAX_ERROR),
    )


def _address(name: str, text: object) -> str:
    if not isinstance(text, str):  # ipaddress takes numbers for addresses, too
        raise ValueError(f"{name}: an address is no string")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{name}: {shown(text[:80])} is no address") from None
    if not usable(address):
        raise ValueError(f"{name}: {address} is no host's address")
    return str(address)


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: a time is no number")
    return float(value)
