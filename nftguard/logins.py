"""Who is logged in by SSH and asks: found among the processes that led to this one, as sudo(8) clears environments."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from nftguard.footing import Session
from nftguard.wire import sockdiag

_MOST = 64  # processes above this one
_SSH = 22


def sessions(proc: Path = Path("/proc")) -> list[Session]:
    """Give the session that this process runs in; or, where systemd started it, all of those to the port of SSH.

    `systemctl reload` is carried out by systemd, which does not say for whom.
    """
    pid = os.getpid()
    for _ in range(_MOST):
        if found := _session(proc / str(pid) / "environ"):
            return [found]
        pid = _parent(proc / str(pid) / "stat")
        if pid <= 1:
            break
    if "INVOCATION_ID" not in os.environ:  # systemd.exec(5)
        return []
    try:
        return [Session(client, port, server, _SSH) for client, port, server in sockdiag.established(_SSH)]
    except OSError:
        return []


def _session(environ: Path) -> Session | None:
    try:
        variables = environ.read_bytes().split(b"\0")
        value = next(one for one in variables if one.startswith(b"SSH_CONNECTION=")).decode("ascii")
        client, client_port, server, server_port = value.partition("=")[2].split()
        ends = [str(ipaddress.ip_address(end.partition("%")[0])) for end in (client, server)]  # or "UNKNOWN"
        return Session(ends[0], int(client_port), ends[1], int(server_port))
    except (OSError, StopIteration, ValueError):
        return None


def _parent(stat: Path) -> int:
    try:
        # proc_pid_stat(5): the command in parentheses may hold any byte, so count from its last one.
        return int(stat.read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
