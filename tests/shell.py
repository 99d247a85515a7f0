"""A real interactive shell on a terminal of its own, in which keys are typed and what it shows is read."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from typing import TYPE_CHECKING

from tests.guard import PATIENCE, Running

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CLEAR = "\x15"  # Ctrl-U: forget what was typed


class Shell(Running):
    """One shell; `say` types, `hear` waits for what it shows."""

    def __init__(self, argv: list[str], environment: Mapping[str, str], cwd: str) -> None:
        self.terminal, end = pty.openpty()
        self.process = subprocess.Popen(
            argv, stdin=end, stdout=end, stderr=end, env=environment, cwd=cwd, text=True, start_new_session=True
        )
        os.close(end)
        self.shown = ""

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        os.close(self.terminal)

    def say(self, keys: str) -> None:
        self.shown = ""
        os.write(self.terminal, keys.encode())

    def hear(self, heard: Callable[[str], bool]) -> str:
        """Wait until what was shown since the last keys is what is waited for; give it."""
        end = time.monotonic() + PATIENCE
        while not heard(self.shown):
            assert time.monotonic() < end, f"shown was {self.shown!r}"
            if select.select([self.terminal], [], [], 0.05)[0]:
                self.shown += os.read(self.terminal, 65536).decode(errors="replace")
        return self.shown
