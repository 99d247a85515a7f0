"""Memory: MiB of the running daemon, once it is at rest and at its highest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from bench.figure import Figure, Goal, progress
from bench.guard import Guard, ports
from bench.namespace import Namespace

_AGAINST = "bare python"
_GOAL = Goal(45, "value")


def measure() -> list[Figure]:
    """Measure MiB of the daemon at 11, 1,000 and 10,000 ports, after it built the table and looked at it again.

    The baseline is an interpreter that imports nothing of ours.
    """
    bare = _bare()
    figures: list[Figure] = []
    for count in (11, 1000, 10000):
        progress(f"memory: {count:,} ports")
        with Namespace() as namespace, Guard(namespace, ports(count)) as guard, guard.daemon() as daemon:
            found = _memory(daemon.pid)
        goal = _GOAL if count == 11 else None
        figures += [
            Figure(f"resident, {count:,} ports", found["VmRSS"], "MiB", _AGAINST, bare["VmRSS"], 1, goal),
            Figure(f"PSS, {count:,} ports", found["Pss"], "MiB", _AGAINST, bare["Pss"], 1),
            Figure(f"peak resident, {count:,} ports", found["VmHWM"], "MiB", _AGAINST, bare["VmHWM"], 1),
        ]
    return figures


def _bare() -> dict[str, float]:
    waits = (sys.executable, "-c", "print(flush=True); input()")
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        found = _memory(process.pid)
        process.communicate(b"\n")
    return found


def resident(pid: int) -> float:
    """Give the resident memory of a process in MiB."""
    return _memory(pid)["VmRSS"]


def _memory(pid: int) -> dict[str, float]:
    """Read VmRSS and VmHWM of proc(5)'s status, and Pss of smaps_rollup, in MiB."""
    text = "".join(Path(f"/proc/{pid}/{name}").read_text(encoding="ascii") for name in ("status", "smaps_rollup"))
    return {name: int(kib) / 1024 for name, kib in re.findall(r"^(VmRSS|VmHWM|Pss):\s+(\d+) kB$", text, re.MULTILINE)}
