"""Why systemd ends us: for good, or on the way to something else. Only an explicit `systemctl stop` lifts the block."""

from __future__ import annotations

import os
import subprocess

from nftguard import hostinfo

_PATIENCE = 5.0  # seconds; a system that goes down may have no bus left to answer


def going_on() -> str:
    """Say why this is no end for good: a restart, an isolate, the end of the whole system. Empty when it is one.

    What cannot be told counts as going on: rules that stay can still be lifted with `nftguard remove`. Without systemd
    it is whoever pressed Ctrl-C.

    Seen on systemd 252 and 257: a restart's job reads `restart`; a shutdown's reads `stop`, and so does an isolate's,
    but then a target's start job waits beside it.
    """
    unit = hostinfo.own_unit()
    if "INVOCATION_ID" not in os.environ or unit.endswith(".scope"):  # a shell of somebody's may have it, too
        return ""
    jobs, system = _ask("list-jobs", "--plain", "--no-legend"), _ask("is-system-running")
    if jobs is None or not system or not unit:
        return "systemd does not say why"
    if system == "stopping":
        return "the system is going down"
    rows = [line.split()[1:3] for line in jobs.splitlines()]  # "123 nftguard.service stop running"
    if targets := [name for name, kind in rows if name.endswith(".target") and kind == "start"]:
        return f"on the way to {targets[0]}"
    return "" if [unit, "stop"] in rows else "not by an explicit stop"


def _ask(*words: str) -> str | None:
    try:
        # is-system-running exits with other codes than 0 for most of its answers
        done = subprocess.run(["systemctl", *words], capture_output=True, check=False, text=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode < 0 or done.stderr.strip() else done.stdout.strip()
