"""A real Debian with systemd as PID 1, in a container on this system's kernel, with nftguard installed.

    with Machine(image.prepare(BOOKWORM)) as machine:
        machine.run(["systemctl", "enable", "--now", "nftguard"])
        machine.reboot(hard=True)
        machine.peer(["nc", "-z", "192.0.2.2", "22"])

The machine is 192.0.2.2 and 2001:db8::2. The peer, a network of its own at the other end of a link, is 192.0.2.1 and
2001:db8::1. No other network is in reach. The disk is memory on top of the image, and survives every kind of reboot
(a hard one too: unlike a power cut, it loses nothing that was written but not synced).

What a container cannot show: the kernel's log, limits of memory and tasks (no cgroup controller is handed in), resource
limits above the host's own, modules, real hardware.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any, Self

from tests.boot.entrance import Entrance, arrived
from tests.boot.power import MachineError, Power
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tests.boot.image import Image

_POWER_OFF = signal.SIGRTMIN + 4  # systemd(1): starts poweroff.target
_REBOOT = signal.SIGRTMIN + 5
_TIMEOUT = 60.0
_numbers = itertools.count(1)


class CommandError(subprocess.CalledProcessError):
    """A command failed; unlike its parent it shows what the command wrote."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout[-4000:]}{self.stderr[-4000:]}".rstrip()


class Machine:
    """One machine. Nothing of it is left after `close`, or after the death of the process that made it."""

    def __init__(self, image: Image) -> None:
        self.suite = image.suite
        self.name = f"nftguard-boot-{os.getpid()}-{next(_numbers)}"
        """Of its control group, too."""
        self.state = "off"
        """What `systemctl is-system-running` said at the end of the boot, running or degraded; or off."""
        self._power = Power(self.name, image)
        self._entrance = Entrance(self._power.pid, self.name)
        self._boot = 0
        self._pid1: int | None = None
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # On and off

    def boot(self, *, network: bool = True) -> None:
        """Turn the machine on and wait until it is up, with its addresses unless the test wants it otherwise."""
        self._power.send("on")
        self.wait_for_boot(network=network)

    def wait_for_boot(self, *, network: bool = True) -> None:
        """Wait until a boot that was asked for, by `systemctl reboot` inside for example, is done."""
        self._boot = int(self._power.hear("on", self._reap))
        try:
            answer = self.run(["systemctl", "is-system-running", "--wait"], timeout=_TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            jobs = self.run(["systemctl", "list-jobs", "--no-pager"], check=False).stdout
            raise MachineError(f"{self.name} is not up after {_TIMEOUT:g} s; it waits for\n{jobs}") from None
        self.state = answer.stdout.strip()
        if self.state not in {"running", "degraded"}:
            what = self.state or answer.stderr.strip()
            raise MachineError(f"{self.name} is {what} after its boot\n{self._power.console()}")
        if network:
            wait_until(self._has_addresses, "the machine's addresses")

    def reboot(self, *, hard: bool = False, network: bool = True) -> None:
        """Reboot in order, or cut the power and turn it on again."""
        if hard:
            self.cut()
            self.boot(network=network)
        else:
            os.kill(self._init(), _REBOOT)
            self.wait_for_boot(network=network)

    def cut(self) -> None:
        """Cut the power. The disk stays: `boot` turns the machine on again."""
        self._stop(signal.SIGKILL)

    def shutdown(self) -> None:
        """Power off in order. The disk stays here, too."""
        self._stop(_POWER_OFF)

    def close(self) -> None:
        """Cut the power and drop the disk, with everything that was started inside or at the peer."""
        started, self._started, self.state = self._started, [], "off"
        try:
            for process in started:
                process.kill()
                process.wait(_TIMEOUT)
                for pipe in (process.stdin, process.stdout):
                    if pipe:
                        with contextlib.suppress(BrokenPipeError):
                            pipe.close()
        finally:
            self._power.close()

    # At work

    def run(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside as root. Raises CommandError if it fails, unless told not to check."""
        with self._inside() as prefix:
            process = _popen([*prefix, *argv], subprocess.PIPE)
        return _finish(process, argv, stdin, timeout, check)

    def peer(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of this system's at the other end of the link, like `run`."""
        process = _popen([*self._entrance.peer(), *argv], subprocess.PIPE)
        return _finish(process, argv, stdin, timeout, check)

    def popen(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command inside; its pipes are text, its errors among its output."""
        with self._inside() as prefix:
            return self._keep(_popen([*prefix, *argv], subprocess.STDOUT), prefix)

    def start_peer(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command at the other end of the link, like `popen`: a listener or sender that outlives reboots."""
        prefix = self._entrance.peer()
        return self._keep(_popen([*prefix, *argv], subprocess.STDOUT), prefix)

    def write_file(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file inside, and the folders above it."""
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"'
        self.run(["sh", "-c", script, "sh", path, f"{mode:o}"], stdin=text)

    def journal(self, *args: str) -> list[dict[str, Any]]:
        """Give the journal's records, `-u nftguard` or `-b -1` for example; everything logged by now is in it."""
        self.run(["journalctl", "--sync"])
        found = self.run(["journalctl", "--quiet", "--no-pager", "--output=json", "--all", *args])
        return [json.loads(line) for line in found.stdout.splitlines()]

    def boot_id(self) -> str:
        """Name this boot; no other is called the same."""
        return self.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip()

    # The ways and means

    def _stop(self, number: int) -> None:
        os.kill(self._init(), number)
        self._power.hear("off", self._reap)
        self.state = "off"

    def _init(self) -> int:
        """Give the process id, as seen from here, of the machine's PID 1."""

        def look() -> int | None:
            if not self._power.silent:
                raise MachineError(f"{self.name} is down\n{self._power.console()}")
            return self._entrance.init(self._boot)

        self._pid1 = wait_until(look, f"{self.name} to boot", timeout=_TIMEOUT, pause=0.01)
        return self._pid1

    def _inside(self) -> AbstractContextManager[list[str]]:
        return self._entrance.inside(self._boot, self._init())

    def _keep(self, process: subprocess.Popen[str], prefix: list[str]) -> subprocess.Popen[str]:
        self._started.append(process)
        wait_until(lambda: arrived(process.pid, prefix), "the command to begin", pause=0.002)
        return process

    def _reap(self) -> None:
        """Wait for what `popen` started, as far as it has ended, lest it hold up the machine's end.

        systemd-shutdown, which ended it, waits for it for 10 s, unless told that something has ended.
        """
        for process in self._started:
            if process.returncode is None and process.poll() is not None and self._pid1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid1, signal.SIGCHLD)

    def _has_addresses(self) -> bool:
        listed = self.run(["ip", "-oneline", "address", "show", "dev", "host0", "-tentative"], check=False).stdout
        return " 192.0.2.2/" in listed and " 2001:db8::2/" in listed


def _popen(command: Sequence[str], errors: int) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, errors="replace")


def _finish(
    process: subprocess.Popen[str], argv: Sequence[str], stdin: str | None, timeout: float, check: bool
) -> subprocess.CompletedProcess[str]:
    """See a command through to its end, under the name that the test gave it."""
    with process:
        try:
            output, errors = process.communicate(stdin or "", timeout)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                error.cmd = list(argv)
            raise
    if check and process.returncode:
        raise CommandError(process.returncode, list(argv), output, errors)
    return subprocess.CompletedProcess(list(argv), process.returncode, output, errors)
