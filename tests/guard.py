"""A real daemon in a namespace, with a real datagram socket in the place of systemd's."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.netns import Namespace

PATIENCE = 15.0  # seconds; only a failing test waits that long


class Running:
    """A program that is ended where the block that uses it ends."""

    process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)


class Guard(Running):
    """One `nftguard run`. Its environment is that of the test, with the folders that the fixture `folders` made."""

    def __init__(
        self, netns: Namespace, config: Path, folder: Path, before: tuple[str, ...] = (), **environment: str
    ) -> None:
        self.netns = netns
        self.config = config
        self.folder = folder
        with netns.entered():
            self.namespace = Path("/proc/thread-self/ns/net").stat().st_ino
        self.notified: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = folder / "notify"
        path.unlink(missing_ok=True)
        self._socket.bind(str(path))
        self._socket.settimeout(0.02)
        self._log = (folder / "log").open("a+", encoding="utf-8")
        self.process = netns.popen(
            *(*before, sys.executable, "-m", "nftguard", "--config", str(config), "run"),
            env=os.environ | {"NOTIFY_SOCKET": str(path)} | environment,
            stderr=self._log,
        )

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._socket.close()
        self._log.close()

    def listen(self) -> list[dict[str, str]]:
        """Take in what was notified; give all of it, in order, each as its variables."""
        while True:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                return self.notified
            lines = (line.partition("=") for line in data.decode().splitlines())
            self.notified.append({name: value for name, _, value in lines})

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for the condition, listening meanwhile."""
        end = time.monotonic() + PATIENCE
        while not condition():
            self.listen()
            assert time.monotonic() < end, f"{what} did not come; notified {self.notified}, logged:\n{self.log()}"
            time.sleep(0.005)

    def ready(self, times: int = 1) -> None:
        """Wait for the READY=1 number `times`."""
        self.until(lambda: sum("READY" in found for found in self.notified) >= times, f"READY=1 number {times}")

    def logged(self, text: str, times: int = 1) -> None:
        """Wait for lines with the text in the console log."""
        self.until(lambda: self.log().count(text) >= times, f"{text!r} in the log, {times} times")

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it as systemd would; give the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return cli(self.netns, self.config, *arguments)

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.cli("status", "--json").stdout)
        return document


def cli(netns: Namespace, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    return netns.run(sys.executable, "-m", "nftguard", "--config", str(config), *arguments, check=False)
