"""What the names in a configuration stand for on this host, at this moment. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nftguard.network import Network

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Host:
    """What exceptions are resolved by. What is missing in it lets nothing through."""

    network: Network = field(default_factory=Network)
    users: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    units: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """For each unit the ids of its control groups, and their paths as nft wants them."""
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """For each host name its addresses."""
