"""The hardware: qemu, as one process that does not outlive this one."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from builder import cache
from tests.boot import host
from tests.boot.power import MachineError
from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    from tests.vm.disk import Disk

PORT = "nftguard.agent"
"""The name of the virtio port that leads to the agent."""

_TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs"}  # to the Debian package that has it
_TIMEOUT = 30.0


def lacking() -> str | None:
    """Say what keeps virtual machines from being booted here; None if nothing does."""
    if platform.machine() != "x86_64":
        return f"the virtual machines are for x86_64, not {platform.machine()}"
    if missing := sorted({package for tool, package in _TOOLS.items() if not shutil.which(tool)}):
        return f"booting a virtual machine needs the packages {' '.join(missing)}"
    return host.lacking()


class Hypervisor:
    """One qemu, running from here on. What the machine writes to its disk is gone at the end."""

    def __init__(self, disk: Disk) -> None:
        # In /tmp, or where TMPDIR says: the path of a socket has at most 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="nftguard-vm-")
        self._console = Path(self._folder.name) / "console"
        self._monitor = Path(self._folder.name) / "monitor"
        self.agent = Path(self._folder.name) / "agent"
        """The socket that leads to the agent, as soon as it is there."""
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "--", *self._command(disk)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": str(cache.folder())},  # for what is written to the disk
                start_new_session=True,  # Ctrl-C is for the tests, which then close the machine
            )
        try:
            wait_until(lambda: self.agent.exists() or not self.running, "qemu to begin", timeout=_TIMEOUT)
        except TimeoutError:
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Whether it is on; a guest that powers off ends it."""
        return self._process.poll() is None

    def console(self) -> str:
        """Give the end of what qemu and the guest's console wrote."""
        return self._console.read_bytes()[-8000:].decode(errors="replace")

    def reset(self) -> None:
        """Press the button: what the guest has not written to its disk by now is lost."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(_TIMEOUT)
            monitor.connect(str(self._monitor))
            with monitor.makefile("rw", encoding="utf-8", newline="\n") as stream:
                stream.readline()  # it greets
                for word in ("qmp_capabilities", "system_reset"):
                    stream.write(json.dumps({"execute": word}) + "\n")
                    stream.flush()
                    while "return" not in (heard := json.loads(stream.readline() or "{}")):
                        if "event" not in heard:
                            raise MachineError(f"qemu says {heard} to {word}")

    def close(self) -> None:
        """Cut the power, for good."""
        self._process.kill()
        self._process.wait(_TIMEOUT)
        with contextlib.suppress(FileNotFoundError):
            self._folder.cleanup()

    def _command(self, disk: Disk) -> list[str]:
        # Debian's cloud kernel has nvme and ext4 built in: it finds its root without an initrd.
        return [
            *("qemu-system-x86_64", "-machine", "q35,smm=off,vmport=off", "-accel", "tcg", "-cpu", "qemu64"),
            *("-smp", "2", "-m", "1024", "-display", "none", "-nodefaults", "-no-user-config", "-serial", "stdio"),
            *("-qmp", f"unix:{self._monitor},server=on,wait=off"),
            *("-drive", f"if=none,id=disk,file={disk.path},format=raw,snapshot=on"),
            *("-device", "nvme,drive=disk,serial=disk"),
            # No network is in reach, but there is a link, with a gateway.
            *("-netdev", "user,id=net,restrict=on,ipv6=off,net=192.0.2.0/24,host=192.0.2.1"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={self.agent},server=on,wait=off"),
            *("-device", f"virtserialport,chardev=agent,name={PORT}"),
            *("-kernel", str(disk.kernel), "-append", "root=/dev/nvme0n1 rw console=ttyS0 quiet panic=-1"),
        ]
