"""Network namespaces of a test's own: made and removed by it, so that nothing reaches the machine's own ruleset."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


class Namespace:
    """One network namespace with its loopback up; it ends with `close` and the last process in it."""

    def __init__(self) -> None:
        with _returning():
            _call("unshare", _CLONE_NEWNET)
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """A path by which other programs reach the namespace."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move this thread into the namespace; sockets and processes made meanwhile belong to it."""
        with _returning():
            _call("setns", self._fd, _CLONE_NEWNET)
            yield

    def enter(self) -> None:
        """Move this thread into the namespace for good: for a child process."""
        _call("setns", self._fd, _CLONE_NEWNET)

    def run(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command inside, to its end."""
        with self.entered():
            done = subprocess.run(argv, check=False, text=True, capture_output=True, timeout=30, **options)
        assert not check or done.returncode == 0, f"{argv} exited with {done.returncode}: {done.stderr}"
        return done

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command inside."""
        with self.entered():
            return subprocess.Popen(argv, text=True, **options)

    def nft(self, script: str) -> str:
        """Run an nft script inside, as a foreign program would."""
        return self.run("nft", "-f", "-", input=script).stdout

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def _returning() -> Iterator[None]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)


def connect(near: Namespace, far: Namespace, name: str, network: int) -> None:
    """Join two namespaces by a veth pair: 10.0.N.1 and fd00:N::1 at the near end, .2 and ::2 at the far one."""
    near.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-far", "netns", far.path)
    for end, link, host in ((near, name, 1), (far, f"{name}-far", 2)):
        end.run("ip", "address", "add", f"10.0.{network}.{host}/24", "dev", link)
        end.run("ip", "address", "add", f"fd00:{network}::{host}/64", "dev", link, "nodad")
        end.run("ip", "link", "set", link, "up")
