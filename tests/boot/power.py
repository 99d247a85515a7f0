"""This side of a machine's supervisor: on, off, and nothing left at the end."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from builder.system import private

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.boot.image import Image

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_TIMEOUT = 60.0


class MachineError(Exception):
    """The machine did not do what it should; the text ends with its console."""


class Power:
    """The supervisor's process. It runs from here on, with the machine off; the end of this process ends it."""

    def __init__(self, name: str, image: Image) -> None:
        self.name = name
        self._console = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._supervisor = subprocess.Popen(
            [*private("--net"), sys.executable, "-I", str(_SUPERVISOR), name, str(image.base), str(image.installed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._console,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the tests, which then close the machine
        )
        assert self._supervisor.stdin
        assert self._supervisor.stdout
        self._words, self._answers = self._supervisor.stdin, self._supervisor.stdout

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._supervisor.pid

    @property
    def silent(self) -> bool:
        """Whether the supervisor is there and has told nothing new."""
        return self._supervisor.poll() is None and not self._readable(0)

    def send(self, word: str) -> None:
        """Give a command."""
        try:
            self._words.write(f"{word}\n".encode())
        except BrokenPipeError:
            raise MachineError(f"the supervisor of {self.name} is gone\n{self.console()}") from None

    def hear(self, wanted: str, meanwhile: Callable[[], None] = lambda: None) -> str:
        """Wait for a word, and return what comes with it; do something again and again meanwhile."""
        end = time.monotonic() + _TIMEOUT
        line = f"nothing within {_TIMEOUT:g} s"
        while time.monotonic() < end:
            meanwhile()
            if self._readable(0.02):
                line = self._answers.readline().decode().strip()
                word, _, rest = line.partition(" ")
                if word == wanted:
                    return rest
                if wanted == "on" or not line:
                    break
        raise MachineError(f"{self.name} should be {wanted}; its supervisor says {line!r}\n{self.console()}")

    def console(self) -> str:
        """Give the end of what the machine, systemd-nspawn and the supervisor wrote."""
        self._console.seek(0, os.SEEK_END)
        self._console.seek(max(0, self._console.tell() - 8000))
        return self._console.read().decode(errors="replace")

    def close(self) -> None:
        """End the machine with all that belongs to it. Raises MachineError if something had gone wrong."""
        if self._console.closed:
            return
        self._words.close()
        try:
            code = self._supervisor.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            code = self._supervisor.wait(_TIMEOUT)
        self._answers.close()
        console = self.console()
        self._console.close()
        if code:
            subprocess.run(
                [*private(), sys.executable, "-I", str(_SUPERVISOR), self.name], timeout=_TIMEOUT, check=True
            )
            raise MachineError(f"the supervisor of {self.name} failed with {code}\n{console}")

    def _readable(self, timeout: float) -> bool:
        return bool(select.select([self._answers], [], [], timeout)[0])
