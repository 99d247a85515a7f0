"""How things stand, as `status` asks: the kernel, or without privilege the daemon's last word."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nftguard import bootscript, bulletin, control, policy, state, status, surroundings
from nftguard.allowances import Allowances
from nftguard.config import load
from nftguard.errors import ConfigError, UnavailableError
from nftguard.kernel import Nftables
from nftguard.model import Table
from nftguard.status import STALE, State


def from_kernel(config: Path) -> tuple[dict[str, Any], int]:
    """Give the document and the exit code, from the kernel's state. Raises NotPermittedError, KernelError."""
    kernel = Nftables()
    live = kernel.snapshot()
    desired: Table | None = None
    reasons: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    book = Allowances(lambda *_: None)
    try:
        wanted = load(config)
        allowed = book.current()
        host, problems = surroundings.once(wanted, allowed)
        desired = policy.build(wanted, kernel.features, host, allowed)
    except ConfigError as error:
        reasons = tuple(map(str, error.problems))
    word = state.read_status() if control.listening(Path(bootscript.run_dir()) / "control") else None
    if word and word["daemon"]["namespace"] != state.namespace():
        reasons += ("a daemon runs, but it guards another network namespace",)
        word = None
    if word and word["state"] == State.DEGRADED:  # what only the daemon met, as a file that it may not read
        reasons += tuple(reason for reason in word["reasons"] if reason not in reasons)
    judged = status.judge(live, desired, reasons)
    found = status.document(
        judged,
        live,
        seen={
            policy.counter_name(row["block"], row["hook"], row["protocol"], row["port"]): row["last_seen"]
            for row in (word or {}).get("ports", [])
            if row["last_seen"]
        },
        warnings=bulletin.warnings(live or Table()) + problems,
        allowed=book.listing(),
        daemon=(word or {}).get("daemon"),
        at=time.time(),
    )
    return found, judged.state.exit_code


def last_word() -> tuple[dict[str, Any], int]:
    """Give the daemon's last word, its age among the warnings, and the exit code. Raises UnavailableError."""
    word = state.read_status()
    if word is None:
        raise UnavailableError("no word from a daemon, and the kernel tells only root; run as root")
    stale = time.time() > word["stale_after"]
    age = f"{round(time.time() - word['at'])} s ago{', too old to count' if stale else ''}"
    word["warnings"] += [f"this is the daemon's word of {age}; only root may ask the kernel"]
    return word, STALE if stale else State(word["state"]).exit_code
