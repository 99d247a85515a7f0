"""What nftguard wants to know of processes: the unit of one, and where its own stderr goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard.names import clean
from nftguard.who.owners import owner

if TYPE_CHECKING:
    from typing import TextIO

PROC = Path("/proc")


def unit_of(pid: int, command: str, proc: Path = PROC) -> str:
    """Name the systemd unit of a process that ran as `command`, cleaned, a moment ago; empty where it cannot be told.

    The process may be gone and its id taken by another, so the command name must still fit.
    """
    try:
        if clean((proc / f"{pid}/comm").read_bytes().rstrip(b"\n")) != command:
            return ""
        lines = (proc / f"{pid}/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return _unit(lines)


def own_unit(proc: Path = PROC) -> str:
    """Name the systemd unit that this process belongs to; empty where there is none."""
    return _unit(_read(proc / "self/cgroup").splitlines())


def _unit(lines: list[str]) -> str:
    # "0::/system.slice/ssh.service" (cgroup v2), "1:name=systemd:/…" (v1, and systemd's tree on hybrid hosts)
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers in {"", "name=systemd"} and (unit := owner(path).unit):
            return unit
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def to_journald(stream: TextIO) -> bool:
    """Whether the stream goes to journald: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
