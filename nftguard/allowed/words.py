"""What is allowed for a while, put into words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nftguard.ports import Ports, merge
from nftguard.wording import lasting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def lines(listing: Iterable[Mapping[str, Any]], now: float) -> list[str]:
    """Draw what is listed (`Allowances.listing`) for people; `now` is in seconds since the epoch."""
    return [
        f"allowed: {what(one['protocol'], one['ports'], one['hook'], one['who'], one['value'])}, "
        f"{lasting(one['until'] - now)} left{', reboots included' if one['persist'] else ''} "
        f"(given by {one['given_by']})"
        for one in listing
        if one["until"] > now
    ]


def what(protocol: str, ports: str, hook: str, who: str, value: str) -> str:
    """Say what is let through: `tcp/587 on output for user postfix`."""
    return f"{protocol}/{ports} on {hook} {whom(who, value)}"


def whom(who: str, value: str) -> str:
    """Say for whom, or whereto: `for user postfix`, `to 198.51.100.7`, `for anyone`."""
    return f"{who} {value}" if who in {"to", "from"} else f"for {who} {value}".rstrip()


def spans(ports: Iterable[int]) -> str:
    """Write ports shortly: `25,465,6000-6063`."""
    return ",".join(map(str, merge((Ports(port, port) for port in ports), touching=True)))
