"""The way into a running machine, and to the other end of its link: what to put before a command."""

from __future__ import annotations

from pathlib import Path

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

    def inside(self, boot: int, init: int, *, on_exit: str) -> list[str]:
        """Run in the machine as its root would: with its namespaces, control group and capabilities, and no more.

        A signal to the process that this starts does not reach the command; the end of that process does, as the
        signal `on_exit`.
        """
        cgroup = self._cgroup / f"boot-{boot}/payload/tests"
        cgroup.mkdir(exist_ok=True)
        bounding = int(_status(init, "CapBnd"), 16)
        capabilities = ["-all", *(f"+cap_{number}" for number in range(64) if bounding >> number & 1)]
        return [
            *(*_JOIN, str(cgroup)),
            *("nsenter", "--target", str(init), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"),
            *("setpriv", "--pdeathsig", on_exit, "--bounding-set", ",".join(capabilities), "--"),
            *("env", "--ignore-environment", *_ENVIRONMENT),
        ]

    def peer(self) -> list[str]:
        """Run at the other end of the link, with this system's files. A signal reaches the command."""
        cgroup = self._cgroup / "peer"
        return [*_JOIN, str(cgroup), "nsenter", "--target", str(self._supervisor), "--net", "--"]


def _status(pid: int, key: str) -> str:
    """Read a field of /proc/PID/status. Raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.strip()
    raise ProcessLookupError(f"process {pid} has no {key}")
