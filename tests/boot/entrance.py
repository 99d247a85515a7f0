"""The way into a running machine, and to the other end of its link: what to put before a command."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWPID = 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)
_ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    *("HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER="),
)
_JOIN = ("sh", "-c", 'echo 0 >"$0"/cgroup.procs && exec "$@"')


class Entrance:
    """One machine's ways in. It is found by its supervisor's process id and by the name of its control group."""

    def __init__(self, supervisor: int, name: str) -> None:
        self._supervisor = supervisor
        # Through the supervisor's own view: this system may have the cgroup2 tree elsewhere, or nowhere.
        self._cgroup = Path(f"/proc/{supervisor}/root/sys/fs/cgroup/{name}")

    def init(self, boot: int) -> int | None:
        """Give the process id, as seen from here, of the machine's PID 1; None before systemd answers."""
        payload = self._cgroup / f"boot-{boot}/payload"
        for listed in (payload / "init.scope/cgroup.procs", payload / "cgroup.procs"):
            try:
                for pid in listed.read_text().split():
                    inner = _status(int(pid), "NSpid").split()[-1]
                    if inner == "1" and Path(f"/proc/{pid}/root/run/systemd/private").exists():
                        return int(pid)
            except OSError:  # not there yet, or gone just now
                continue
        return None

    @contextlib.contextmanager
    def inside(self, boot: int, init: int) -> Iterator[list[str]]:
        """Give what to put before a command that is started meanwhile. It is inside once `arrived` says so.

        It runs as the machine's root would: with the machine's namespaces, control group and capabilities, no more. It
        is a child of this process like any other, to be signalled and waited for; until it has been, no reboot is done.
        (nsenter's own fork for the process namespace would stop itself when systemd-shutdown stops the command, and
        then keep the machine from rebooting for 90 s.)
        """
        cgroup = self._cgroup / f"boot-{boot}/payload/tests"
        cgroup.mkdir(exist_ok=True)
        bounding = int(_status(init, "CapBnd"), 16)
        capabilities = ["-all", *(f"+cap_{number}" for number in range(64) if bounding >> number & 1)]
        with _children_in(Path(f"/proc/{init}/ns/pid")):
            yield [
                *(*_JOIN, str(cgroup)),
                *("nsenter", "--target", str(init), "--mount", "--uts", "--ipc", "--net", "--cgroup", "--"),
                *("setpriv", "--bounding-set", ",".join(capabilities), "--"),
                *("env", "--ignore-environment", *_ENVIRONMENT),
            ]

    def peer(self) -> list[str]:
        """Run at the other end of the link, with this system's files; see `arrived`, here too."""
        cgroup = self._cgroup / "peer"
        enter = ["nsenter", "--target", str(self._supervisor), "--net", "--"]
        return [*_JOIN, str(cgroup), *enter, "env", f"NFTGUARD_BOOT_PEER={self._cgroup.name}"]


def arrived(pid: int, prefix: list[str]) -> bool:
    """Whether a process is past what was put before its command (or past everything)."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ended = _status(pid, "State").startswith("Z")
    except OSError:
        return True
    return ended or (argv != [b""] and prefix[-1].encode() not in argv)  # empty in the midst of an exec


@contextlib.contextmanager
def _children_in(namespace: Path) -> Iterator[None]:
    """Have what this thread starts meanwhile belong to a process namespace. Raises OSError."""
    _set_children_in(namespace)
    try:
        yield
    finally:
        _set_children_in(Path("/proc/self/ns/pid"))


def _set_children_in(namespace: Path) -> None:
    with namespace.open("rb") as stream:
        if _libc.setns(stream.fileno(), _CLONE_NEWPID):
            code = ctypes.get_errno()
            raise OSError(code, f"setns: {os.strerror(code)}", str(namespace))


def _status(pid: int, key: str) -> str:
    """Read a field of /proc/PID/status. Raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.strip()
    raise ProcessLookupError(f"process {pid} has no {key}")
