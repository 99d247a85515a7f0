"""How things stand, as `status` asks: the kernel, or without privilege the daemon's last word."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nftguard import control, policy, reach, state, status
from nftguard.allowed import book
from nftguard.desired import wanted
from nftguard.errors import ConfigError, UnavailableError
from nftguard.model import Table
from nftguard.status import STALE, State

if TYPE_CHECKING:
    from pathlib import Path

    from nftguard.kernel import Nftables


@dataclass(frozen=True, slots=True)
class Seen:
    """How things stand by the kernel's state, and the tables that were compared."""

    document: dict[str, Any]
    exit_code: int
    live: Table | None
    desired: Table | None
    """None where the configuration is refused."""


def from_kernel(config: Path, kernel: Nftables) -> Seen:
    """Look at the kernel's state. Raises NotPermittedError, KernelError."""
    live = kernel.snapshot()
    desired: Table | None = None
    reasons: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    try:
        found = wanted(config)
        desired, problems, listing = found.table(kernel.features), found.problems, found.listing
    except ConfigError as error:
        reasons, listing = tuple(map(str, error.problems)), book.read().listing()
    word = state.read_status() if control.listening() else None
    if word and word["daemon"]["namespace"] != state.namespace():
        reasons += ("a daemon runs, but it guards another network namespace",)
        word = None
    if word and word["state"] == State.DEGRADED:  # what only the daemon met, as a file that it may not read
        reasons += tuple(reason for reason in word["reasons"] if reason not in reasons)
    if word and (end := word["daemon"]["suspended"]):
        reasons = (f"the rules were lifted, {end}", *reasons)
    judged = status.judge(live, desired, reasons)
    document = status.document(
        judged,
        live,
        seen={
            policy.counter_name(row["block"], row["hook"], row["protocol"], row["port"]): row["last_seen"]
            for row in (word or {}).get("ports", [])
            if row["last_seen"]
        },
        # The daemon knows more: why a name is not looked up, say.
        warnings=tuple(word["warnings"]) if word else (*reach.open_ways(live or Table()), *problems),
        allowed=listing,
        daemon=(word or {}).get("daemon"),
        at=time.time(),
    )
    return Seen(document, judged.state.exit_code, live, desired)


def last_word() -> tuple[dict[str, Any], int]:
    """Give the daemon's last word, its age among the warnings, and the exit code. Raises UnavailableError."""
    word = state.read_status()
    if word is None:
        raise UnavailableError("no word from a daemon, and the kernel tells only root; run as root")
    stale = time.time() > word["stale_after"]
    age = f"{round(time.time() - word['at'])} s ago{', too old to count' if stale else ''}"
    word["warnings"] += [f"this is the daemon's word of {age}; only root may ask the kernel"]
    return word, STALE if stale else State(word["state"]).exit_code
