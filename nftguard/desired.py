"""What a configuration asks for on this host, looked up once, for a verb that ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nftguard import config, policy, surroundings
from nftguard.allowed import book

if TYPE_CHECKING:
    from pathlib import Path

    from nftguard.allow import Allowance
    from nftguard.config import Config
    from nftguard.host import Host
    from nftguard.model import Features, Table


@dataclass(frozen=True, slots=True)
class Wanted:
    """A configuration, and all that its table depends on besides what the kernel can do."""

    config: Config
    host: Host
    """What its names stand for."""
    allowances: tuple[Allowance, ...]
    """What is allowed for a while."""
    listing: list[dict[str, Any]]
    """The same, as `Allowances.listing` gives it."""
    problems: tuple[str, ...]
    """Which of its names stand for nothing here, in words."""

    def table(self, features: Features) -> Table:
        """Build the table."""
        return policy.build(self.config, features, self.host, self.allowances)


def wanted(path: Path) -> Wanted:
    """Look up what the configuration asks for, as its files are now. Raises ConfigError."""
    return look(config.load(path))


def look(found: Config) -> Wanted:
    """Look up what a configuration that was read asks for."""
    given = book.read()
    allowed = given.current()
    host, problems = surroundings.once(found, allowed)
    return Wanted(found, host, allowed, given.listing(), problems)
