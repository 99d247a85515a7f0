"""What verbs do by themselves: tell what a change would cut off, and put it in force where no daemon runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nftguard import footing, lastgood, logins, state, status
from nftguard.desired import look, wanted
from nftguard.errors import ConfigError, NftguardError
from nftguard.kernel import Nftables
from nftguard.reconcile import reconcile
from nftguard.wire import sockdiag

if TYPE_CHECKING:
    from pathlib import Path

    from nftguard.model import Table


def losses(table: Table, kernel: Nftables) -> tuple[str, ...]:
    """Name what the table would cut off of whoever asks. Raises KernelError, NotPermittedError.

    Where the kernel does not list sockets, as without its module inet_diag, the session is guarded all the same.
    """
    try:
        listening = sockdiag.listening()
    except OSError:
        listening = set()
    return footing.losses(kernel.snapshot(), table, logins.sessions(), listening)


def guard(path: Path, kernel: Nftables) -> None:
    """Refuse a configuration that would cut off whoever asks.

    Not one that is refused anyhow: whoever is to put it in force tells why. Raises FootingError, KernelError,
    NotPermittedError.
    """
    features = kernel.features  # first of all, since without privilege nothing else is of interest
    try:
        table = wanted(path).table(features)
    except ConfigError:
        return
    if found := losses(table, kernel):
        raise FootingError(found)


def apply(path: Path) -> tuple[str, tuple[str, ...]]:
    """Put the configuration in force once; give what was done, and what is to be told besides.

    Raises ConfigError, KernelError, NotPermittedError, and BusyError where another nftguard is at it.
    """
    with state.lock():
        kept = lastgood.load()
        good, kernel = lastgood.read(path, kept.counters if kept else {}), Nftables()
        found = look(good.config)
        problems = found.problems
        desired = good.table(kernel.features, found.host, found.allowances)
        outcome = reconcile(kernel, desired)
        if outcome.live:
            good = replace(good, counters=outcome.live.counters)
        try:
            lastgood.save(good, kernel.features, found.host)
        except OSError as error:
            problems += (f"not kept for the next start: {error.strerror}: {error.filename}",)
    return f"{status.summary(desired)} ({status.told_changes(len(outcome.plan))})", problems


class FootingError(NftguardError):
    """A change would cut off whoever makes it."""

    def __init__(self, found: tuple[str, ...]) -> None:
        lines = "\n".join(f"  - {loss}" for loss in found)
        super().__init__(
            f"not applied, because of what it would cut off:\n{lines}\n"
            "`nftguard apply --force` does it all the same; `nftguard try` does it for a minute, and asks.\n"
            "A restart or a reboot would do it, too: edit the file"
        )
