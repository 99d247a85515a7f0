"""Network namespaces of the bench's own, so that no rule of it ever meets the machine's traffic."""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

ADDRESS, PEER = "192.0.2.1", "192.0.2.2"  # RFC 5737: for documentation, so nobody's
DEVICE = "sink"

_CLONE_NEWNET = 0x40000000  # linux/include/uapi/linux/sched.h
_OURS = Path("/proc/thread-self/ns/net")

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace with loopback up; it ends when the last socket and process in it are gone.

    Sockets stay in the namespace that they were opened in, and so does a libnftables context.
    """

    def __init__(self, of: int | None = None) -> None:
        """Make one; or take the one that the process `of` is in, as it is."""
        if of is not None:
            self._file = Path(f"/proc/{of}/ns/net").open("rb")  # noqa: SIM115 - closed by __exit__
            return
        with _OURS.open("rb") as home:
            _checked(_libc.unshare(_CLONE_NEWNET))  # os.unshare and os.setns came with Python 3.12
            try:
                self._file = _OURS.open("rb")  # it is what keeps the namespace
            finally:
                _checked(_libc.setns(home.fileno(), _CLONE_NEWNET))
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Stand in the namespace, in this thread: what is opened or started now belongs to it."""
        with _OURS.open("rb") as home:
            _checked(_libc.setns(self._file.fileno(), _CLONE_NEWNET))
            try:
                yield
            finally:
                _checked(_libc.setns(home.fileno(), _CLONE_NEWNET))

    def run(self, *command: str, text: str = "") -> None:
        """Run a program in the namespace to its end, with `text` as its input. Raises RuntimeError with its words."""
        with self.entered():
            ended = subprocess.run(command, input=text, check=False, text=True, capture_output=True)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ended.stderr.strip()}")

    def add_sink(self) -> None:
        """Add a device that takes packets for PEER and drops them at once: the cheapest end that a packet can have."""
        # Without a queue of its own, as loopback and tunnels are, so that only the way to the device is measured.
        link = ("ip", "link", "add", DEVICE, "txqueuelen", "0", "type")
        try:
            self.run(*link, "dummy")
        except RuntimeError:  # a kernel without it; ifb drops what was not redirected to it
            self.run(*link, "ifb")
        self.run("ip", "link", "set", DEVICE, "up")
        self.run("ip", "address", "add", f"{ADDRESS}/24", "dev", DEVICE)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
