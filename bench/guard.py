"""nftguard as the bench runs it: a configuration, folders of its own, and a daemon in a namespace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import config, nftscript, policy
from nftguard.plan import Plan, create

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from bench.namespace import Namespace
    from nftguard.config import Config
    from nftguard.model import Table

ORIGIN = ('"@mail"', "21", "22", "23")  # the origin story's eleven ports
_MEMORY = Path("/dev/shm")  # noqa: S108 - where systemd's /run is memory, so that no disk is measured
_PATIENCE = 60.0  # seconds for the daemon to start, or to rest


def ports(count: int) -> tuple[str, ...]:
    """List so many ports, each by itself: the eleven, or every other one, so that no two could be joined."""
    return ORIGIN if count == 11 else tuple(str(port) for port in range(20001, 20001 + 2 * count, 2))


class Guard:
    """A configuration in a temporary folder, and what nftguard makes of it in one namespace."""

    def __init__(self, namespace: Namespace, listed: Sequence[str] = ORIGIN) -> None:
        self.namespace = namespace
        self._folder = tempfile.TemporaryDirectory(prefix="bench-", dir=_MEMORY if _MEMORY.is_dir() else None)
        folder = self.folder = Path(self._folder.name)
        self._path, self._run, state = folder / "nftguard.toml", folder / "run", folder / "state"
        self._path.write_text(f'[[block]]\nname = "mail"\nports = [{", ".join(listed)}]\n', encoding="ascii")
        self._environment = {
            "PATH": os.environ["PATH"],
            "RUNTIME_DIRECTORY": str(self._run),
            "STATE_DIRECTORY": str(state),
        }
        self.python = (sys.executable, "-m", "nftguard", "--config", str(self._path))
        self.console_script = (str(Path(sys.executable).with_name("nftguard")), "--config", str(self._path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._folder.cleanup()

    def config(self) -> Config:
        """Read the configuration."""
        return config.load(self._path)

    def table(self) -> Table:
        """Build the table that the configuration asks for."""
        return policy.build(self.config())

    def script(self) -> str:
        """Build the nft script that makes the whole table from nothing."""
        return nftscript.script(Plan(tuple(create(self.table()))))

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a program in the namespace, quiet, with the environment that the service has."""
        with self.namespace.entered():
            return subprocess.Popen(
                command,
                env=self._environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def run(self, *command: str) -> None:
        """Run a program to its end. Raises CalledProcessError."""
        process = self.start(command)
        if process.wait(_PATIENCE):
            raise subprocess.CalledProcessError(process.returncode, command)

    def daemon(self) -> Daemon:
        """Start the daemon, and wait until it says that it protects and has nothing left to do."""
        (self._run / "status.json").unlink(missing_ok=True)
        return Daemon(self.start((*self.python, "run")), self._run / "status.json")


def until(true: Callable[[], bool]) -> None:
    """Look every tenth of a second, so as to disturb little, until it is true. Raises TimeoutError."""
    last = time.monotonic() + _PATIENCE
    while not true():
        if time.monotonic() > last:
            raise TimeoutError(f"nothing after {_PATIENCE:g} s")
        time.sleep(0.1)


def _state(status: Path) -> str:
    return str(json.loads(status.read_text(encoding="utf-8"))["state"])


class Daemon:
    """A running daemon. SIGTERM at the end makes it lift its rules."""

    def __init__(self, process: subprocess.Popen[bytes], status: Path) -> None:
        self._process = process
        self.pid = process.pid
        try:
            until(lambda: self._ticks() >= 0 and status.exists() and _state(status) == "protected")
            self.rest()
        except BaseException:
            process.kill()
            process.wait()
            raise

    def rest(self) -> None:
        """Wait until it used no CPU for a tenth of a second."""
        before = -1

        def rested() -> bool:
            nonlocal before
            last, before = before, self._ticks()
            return last == before

        until(rested)

    def _ticks(self) -> int:
        if self._process.poll() is not None:
            raise RuntimeError(f"the daemon ended with {self._process.returncode}")
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # utime and stime, proc(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
