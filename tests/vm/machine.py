"""A real Debian with its own kernel, in a virtual machine, with nftguard installed.

    with VirtualMachine(disk.prepare(BOOKWORM)) as machine:
        machine.run(["systemctl", "enable", "--now", "nftguard"])
        machine.reboot(hard=True)

It shows what a container (tests/boot) cannot: the kernel's log, limits of memory, process ids as the kernel sees them,
and what this kernel does, whatever the one is that the tests run on. qemu emulates the processor, so that everything
takes about ten times as long. The machine is 192.0.2.2 and 2001:db8::2, and no other is in reach.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any, Self

from tests.boot.machine import CommandError
from tests.boot.power import MachineError
from tests.vm.hypervisor import Hypervisor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.vm.disk import Disk

_BOOT = 180.0  # seconds, with a processor that is emulated and shared
_PING = 5.0
_GRACE = 10.0  # what an answer may take beyond the command's own time
_ENVIRONMENT = (
    *("env", "--ignore-environment", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    *("HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER="),
)
_numbers = itertools.count(1)


class VirtualMachine:
    """One machine. Nothing of it is left after `close`, or after the death of the process that made it."""

    def __init__(self, disk: Disk) -> None:
        self.suite = disk.suite
        self.name = f"vm-{os.getpid()}-{next(_numbers)}"
        self.state = "off"
        """What `systemctl is-system-running` said at the end of the boot, running or degraded; or off."""
        self._disk = disk
        self._hypervisor: Hypervisor | None = None
        self._lock: int | None = None

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

    def boot(self) -> None:
        """Turn the machine on, with a fresh disk, and wait until it is up."""
        if self._hypervisor:
            raise MachineError(f"{self.name} is on")
        self._lock = os.open(self._disk.path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._hypervisor = Hypervisor(self._disk)
        self._wait_for_boot("")

    def reboot(self, *, hard: bool = False) -> None:
        """Reboot in order, or as if the power had failed."""
        before = self.boot_id()
        self.state = "off"
        if hard:
            self._running().reset()
        else:
            with contextlib.suppress(OSError):  # its end may be faster than the answer
                self._ask(["systemctl", "reboot", "--no-block"], "", _PING)
        self._wait_for_boot(before)

    def close(self) -> None:
        """Cut the power and drop the disk."""
        hypervisor, self._hypervisor, self.state = self._hypervisor, None, "off"
        if hypervisor:
            hypervisor.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # At work

    def run(
        self, argv: Sequence[str], *, stdin: str = "", timeout: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside as root. Raises CommandError if it fails, unless told not to check."""
        try:
            done = self._ask(argv, stdin, timeout)
        except OSError as error:
            raise MachineError(f"{self.name} does not answer: {error}\n{self._running().console()}") from None
        if check and done.returncode:
            raise CommandError(done.returncode, done.args, done.stdout, done.stderr)
        return done

    def write_file(self, path: str, text: str) -> None:
        """Write a file inside, and the folders above it."""
        self.run(["sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", path], stdin=text)

    def journal(self, *args: str) -> list[dict[str, Any]]:
        """Give the journal's records, `-u nftguard` or `-b -1` for example; everything logged by now is in it."""
        self.run(["journalctl", "--sync"])
        found = self.run(["journalctl", "--quiet", "--no-pager", "--output=json", "--all", *args])
        return [json.loads(line) for line in found.stdout.splitlines()]

    def boot_id(self) -> str:
        """Name this boot; no other is called the same."""
        return self.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip()

    # The ways and means

    def _running(self) -> Hypervisor:
        if not self._hypervisor:
            raise MachineError(f"{self.name} is off")
        return self._hypervisor

    def _wait_for_boot(self, before: str) -> None:
        """Wait until another boot than that is done."""
        hypervisor, end = self._running(), time.monotonic() + _BOOT
        while time.monotonic() < end and hypervisor.running:
            try:
                boot = self._ask(["cat", "/proc/sys/kernel/random/boot_id"], "", _PING).stdout.strip()
                if boot and boot != before:
                    wait = ["systemctl", "is-system-running", "--wait"]
                    self.state = self._ask(wait, "", max(1.0, end - time.monotonic())).stdout.strip()
                    if self.state in {"running", "degraded"}:
                        return
            except (OSError, subprocess.TimeoutExpired):  # on its way down or up
                pass
            time.sleep(0.1)
        what = "not up in time" if hypervisor.running else "off"
        raise MachineError(f"{self.name} is {what}, {self.state or 'silent'}\n{hypervisor.console()}")

    def _ask(self, argv: Sequence[str], stdin: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Have the agent run a command. Raises OSError where it is not there, or no longer."""
        mine = f"{self.name}-{next(_numbers)}"
        question = {"id": mine, "argv": [*_ENVIRONMENT, *argv], "stdin": stdin, "timeout": timeout}
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(timeout + _GRACE)
            line.connect(str(self._running().agent))
            line.sendall(json.dumps(question).encode() + b"\n")
            with line.makefile("rb") as answers:
                for answer in answers:
                    # What the end of a boot cut off may come before, and the answer to a question given up.
                    with contextlib.suppress(ValueError):
                        found = json.loads(answer)
                        if found["id"] == mine:
                            return _done(argv, timeout, found)
        raise ConnectionError("the line was cut")


def _done(argv: Sequence[str], timeout: float, found: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    if found.get("timeout"):
        raise subprocess.TimeoutExpired(list(argv), timeout)
    return subprocess.CompletedProcess(list(argv), found["code"], found["stdout"], found["stderr"])
