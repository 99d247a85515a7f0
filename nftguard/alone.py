"""What verbs do by themselves: look a configuration up on this host, and put it in force where no daemon runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nftguard import allowances, config, footing, lastgood, logins, policy, state, status, surroundings
from nftguard.errors import ConfigError, NftguardError
from nftguard.kernel import Nftables
from nftguard.network import Network
from nftguard.reconcile import reconcile
from nftguard.wire import sockdiag

if TYPE_CHECKING:
    from pathlib import Path

    from nftguard.model import Features, Table


@dataclass(frozen=True, slots=True)
class Wanted:
    """The table that a configuration asks for on this host, and which of its names stand for nothing here."""

    table: Table
    problems: tuple[str, ...]


def wanted(path: Path, features: Features) -> Wanted:
    """Build the table of the configuration as its files are now. Raises ConfigError."""
    found = config.load(path)
    allowed = allowances.current()
    host, problems = surroundings.once(found, allowed)
    return Wanted(policy.build(found, features, host, allowed), problems)


def losses(path: Path, kernel: Nftables) -> tuple[str, ...]:
    """Name what the configuration would cut off of whoever asks. Raises KernelError, NotPermittedError.

    Nothing where the configuration is refused: that is told elsewhere.
    """
    try:
        table = wanted(path, kernel.features).table
        listening = sockdiag.listening()
    except (ConfigError, OSError):
        return ()
    return footing.losses(kernel.snapshot(), table, logins.sessions(), listening)


def apply(path: Path) -> tuple[str, tuple[str, ...]]:
    """Put the configuration in force once; give what was done, and what is to be told besides.

    Raises ConfigError, KernelError, NotPermittedError, and BusyError where another nftguard is at it.
    """
    with state.lock():
        kept = lastgood.load()
        good, kernel = lastgood.read(path, kept.counters if kept else {}), Nftables()
        allowed = allowances.current()
        host, problems = surroundings.once(good.config, allowed)
        desired = good.table(kernel.features, host, allowed)
        outcome = reconcile(kernel, desired)
        if outcome.live:
            good = replace(good, counters=outcome.live.counters)
        try:
            lastgood.save(good, kernel.features, replace(host, network=Network()))
        except OSError as error:
            problems += (f"not kept for the next start: {error.strerror}: {error.filename}",)
    return f"{status.summary(desired)} ({status.told_changes(len(outcome.plan))})", problems


class FootingError(NftguardError):
    """A change would cut off whoever makes it."""

    def __init__(self, found: tuple[str, ...]) -> None:
        lines = "\n".join(f"  - {loss}" for loss in found)
        super().__init__(
            f"not applied, because of what it would cut off:\n{lines}\n"
            "`nftguard apply --force` does it all the same; `nftguard try` does it for a minute, and asks"
        )
