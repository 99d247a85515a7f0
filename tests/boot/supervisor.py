"""The process that a machine lives in: `supervisor.py NAME BASE ARCHIVE`, run with mounts and a network of its own.

It lays the disk (the base below, memory on top), then turns the machine on whenever it reads `on`, and again when the
machine reboots. It tells `on N` as boot number N begins, and `off CODE` when the machine has stopped. It ends when it
reads `end`, or when its standard input closes, which is what happens when the tests die; with it go all processes,
mounts, interfaces and control groups. It needs no systemd or D-Bus on the host, and no version of cgroups in use there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
LINK = "ve-machine"
"""The peer's end of the link; the machine's is called host0."""

_REBOOT = 133  # what systemd-nspawn exits with when the machine asks for a reboot
_DISK = Path("/run/disk")
_LINK_UP = f"""\
link set {LINK} up
address replace 192.0.2.1/24 dev {LINK}
address replace 2001:db8::1/64 dev {LINK} nodad
"""
_NSPAWN = (
    *("systemd-nspawn", "--quiet", "--boot", f"--directory={_DISK}/root", "--machine=machine", "--settings=no"),
    *("--register=no", "--keep-unit", "--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
    "--network-veth",
    # Without these IPAddressDeny=, DeviceAllow=, ProtectKernelLogs= and the like silently do nothing inside.
    *("--system-call-filter=bpf", "--capability=CAP_BPF,CAP_PERFMON,CAP_SYSLOG"),
)
_PATIENCE = 10.0


class Supervisor:
    """One machine's, from its first boot to its end."""

    def __init__(self, name: str) -> None:
        self._cgroup = CGROUPS / name
        self._boot = 0
        self._nspawn: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Serve until told to end."""
        (self._cgroup / "peer").mkdir(parents=True)
        try:
            while self._serve():
                pass
        finally:
            self._end()

    def _serve(self) -> bool:
        """Wait for a command or for the machine to stop; False when this is the end."""
        poll = select.poll()
        poll.register(sys.stdin, select.POLLIN)
        ended = os.pidfd_open(self._nspawn.pid) if self._nspawn else None
        try:
            if ended is not None:
                poll.register(ended, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll()}
        finally:
            if ended is not None:
                os.close(ended)
        if ended in ready:
            self._stopped()
        if sys.stdin.fileno() in ready:
            match os.read(sys.stdin.fileno(), 100):
                case b"on\n":
                    self._start()
                case _:
                    return False
        return True

    def _start(self) -> None:
        self._boot += 1
        # A control group of its own: once systemd has handed out controllers below the last one, none may enter that.
        cgroup = self._cgroup / f"boot-{self._boot}"
        cgroup.mkdir()
        enter = 'echo 0 >"$0"/cgroup.procs && exec setpriv --pdeathsig KILL -- "$@"'
        self._nspawn = subprocess.Popen(
            ["sh", "-c", enter, str(cgroup), *_NSPAWN], stdin=subprocess.DEVNULL, stdout=sys.stderr
        )
        tell(f"on {self._boot}")
        end = time.monotonic() + _PATIENCE
        while self._nspawn.poll() is None and not link_up():
            if time.monotonic() > end:
                raise TimeoutError(f"systemd-nspawn made no {LINK}")
            time.sleep(0.005)

    def _stopped(self) -> None:
        assert self._nspawn
        code = self._nspawn.wait()
        self._nspawn = None
        remove_cgroup(self._cgroup / f"boot-{self._boot}")
        if code == _REBOOT:
            self._start()
        else:
            tell(f"off {code}")

    def _end(self) -> None:
        """End the machine's PID 1, with which all in it ends; then what is left.

        In this order every process is waited for by its parent, and none left to the host's init, which may be slow.
        """
        payload = self._cgroup / f"boot-{self._boot}/payload"
        found = False
        for listed in (payload / "init.scope/cgroup.procs", payload / "cgroup.procs"):
            with contextlib.suppress(OSError):
                for pid in listed.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                    found = True
        if self._nspawn:
            if not found:  # it has yet to begin
                self._nspawn.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._nspawn.wait(_PATIENCE)
        remove_cgroup(self._cgroup)


def tell(word: str) -> None:
    """Tell the tests."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def link_up() -> bool:
    """Bring up the peer's end of the link; False if it is not there yet."""
    batch = ["ip", "-batch", "-"]
    return not subprocess.run(
        batch, input=_LINK_UP.encode(), stderr=subprocess.DEVNULL, timeout=5, check=False
    ).returncode


def remove_cgroup(path: Path) -> None:
    """End every process in a control group and below, and remove it. Raises TimeoutError."""
    end = time.monotonic() + _PATIENCE
    while path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} has processes that do not end")
        try:
            (path / "cgroup.kill").write_text("1")
            for folder, _, _ in os.walk(path, topdown=False):
                Path(folder).rmdir()
        except OSError:  # not empty yet, or emptied by the process that we end
            time.sleep(0.005)


def mount(kind: str, place: Path, *options: str) -> None:
    """Mount a file system without a device."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, *options, kind, str(place)], check=True, timeout=30)


def overlay(lower: str, name: str, place: Path) -> None:
    """Mount a folder with memory on top: what is written there stays in /run/disk/NAME-upper."""
    upper, work = _DISK / f"{name}-upper", _DISK / f"{name}-work"
    for folder in (upper, work):
        folder.mkdir(exist_ok=True)
    mount("overlay", place, "-o", f"lowerdir={lower},upperdir={upper},workdir={work}")


def lay_disk(base: str, archive: str) -> None:
    """Mount what a machine needs. All of it is this process's own, and goes with it."""
    mount("tmpfs", Path("/run"))
    _DISK.mkdir()
    # systemd-nspawn derives the link's addresses from the host's machine id, which a host may lack.
    (_DISK / "etc-upper").mkdir()
    (_DISK / "etc-upper/machine-id").write_text("6e667467756172640000000000000000\n")
    overlay("/etc", "etc", Path("/etc"))
    (_DISK / "root-upper").mkdir()
    subprocess.run(["tar", "-xpf", archive, "-C", str(_DISK / "root-upper")], check=True, timeout=60)
    overlay(base, "root", _DISK / "root")
    mount("tmpfs", Path("/tmp"))  # noqa: S108 - where systemd-nspawn may leave a folder
    subprocess.run(["umount", "-R", str(CGROUPS)], stderr=subprocess.DEVNULL, timeout=30, check=False)
    mount("cgroup2", CGROUPS)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=5)


def main() -> None:
    """Be the supervisor; with only a NAME, remove what a killed one left."""
    match sys.argv[1:]:
        case [name]:
            mount("cgroup2", CGROUPS)
            remove_cgroup(CGROUPS / name)
        case [name, base, archive]:
            # Held, so that nobody discards the base; inherited by none.
            fcntl.flock(os.open(base, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH | fcntl.LOCK_NB)
            lay_disk(base, archive)
            Supervisor(name).run()


if __name__ == "__main__":
    main()
