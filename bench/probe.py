"""Connections tried again and again: from when on, and for how long, traffic gets through."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable

    from bench.namespace import Namespace
    from tests.boot.machine import Machine

Target = tuple[str, int]
"""An address and a TCP port; where nobody listens the answer is a reset, at once, and an answer all the same."""
Heard = dict[Target, list[float]]
"""Of each target, when the attempts began that were answered, in seconds since the watch began."""

_PATIENCE = 0.05  # seconds for an answer, which takes a tenth of a millisecond over a link within one kernel
_CLOSED = 0.3  # seconds without an answer after which a target counts as blocked
_LIMIT = 120.0  # seconds for a command to end, and to block
_UNSENT = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM}


class Watch:
    """Attempts from within a network, one after another for each target."""

    def __init__(self, network: Namespace, targets: Iterable[Target], pause: float = 0.001) -> None:
        """Prepare attempts in a network, with so many seconds between them."""
        self._network = network
        self._pause = pause
        self.heard: Heard = {target: [] for target in targets}
        self.attempts = 0
        """How many were made to each target."""
        self._begun = time.monotonic()
        self._waiting: deque[tuple[float, Target, socket.socket]] = deque()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    def quiet(self, target: Target) -> float:
        """Give for how many seconds attempts at a target have been without an answer."""
        times = self.heard[target]
        return self.elapsed - (times[-1] if times else 0)

    def run(self, act: Callable[[], object], over: Callable[[Watch], bool]) -> None:
        """Begin with an act, and try every target again and again until it is over."""
        with self._network.entered():
            self._begun = time.monotonic()
            act()
            while not over(self):
                self._attempt()
                time.sleep(self._pause)
                self._listen(_PATIENCE)
            time.sleep(_PATIENCE)
            self._listen(0)

    def _attempt(self) -> None:
        self.attempts += 1
        for target in self.heard:
            attempt = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
            attempt.setblocking(False)
            begun = self.elapsed
            if (code := attempt.connect_ex(target)) in _UNSENT:
                attempt.close()
            elif code in {0, errno.EINPROGRESS, errno.ECONNREFUSED}:
                self._waiting.append((begun, target, attempt))
            else:
                raise OSError(code, f"connecting to {target[0]}:{target[1]}")

    def _listen(self, patience: float) -> None:
        """Note what was answered, and give up what is too old: it would be sent again after a second."""
        poll = select.poll()
        for _, _, attempt in self._waiting:
            poll.register(attempt, select.POLLOUT)
        ready = {descriptor for descriptor, _ in poll.poll(0)}
        left = deque[tuple[float, Target, socket.socket]]()
        for begun, target, attempt in self._waiting:
            if attempt.fileno() in ready:
                if attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in {0, errno.ECONNREFUSED}:
                    self.heard[target].append(begun)
                attempt.close()
            elif self.elapsed - begun > patience:
                attempt.close()
            else:
                left.append((begun, target, attempt))
        self._waiting = left


def answering(network: Namespace, targets: Iterable[Target]) -> set[Target]:
    """Give the targets that answer within a twentieth of a second, of three attempts at each."""
    watch = Watch(network, targets)
    watch.run(lambda: None, lambda watch: watch.attempts == 3)
    return {target for target, times in watch.heard.items() if times}


def timed(
    machine: Machine, network: Namespace, command: str, targets: Iterable[Target], pause: float = 0.001
) -> tuple[float, float]:
    """Run a shell's command in a machine; give milliseconds until the targets are blocked, and until it ended.

    Blocked is what gives no answer for a while: from the last attempt on that had one. Raises RuntimeError when the
    command fails, and TimeoutError.
    """
    process, go = _ready(machine, command)
    ended: list[float] = []

    def over(watch: Watch) -> bool:
        if not ended and process.poll() is not None:
            if process.returncode:
                raise RuntimeError(f"{command}: exit {process.returncode}")
            ended.append(watch.elapsed)
        if watch.elapsed > _LIMIT:
            raise TimeoutError(f"{command}: nothing is blocked after {_LIMIT:g} s")
        return bool(ended) and all(watch.quiet(target) > _CLOSED for target in watch.heard)

    watch = Watch(network, targets, pause)
    watch.run(go, over)
    return 1000 * max(max(times, default=0.0) for times in watch.heard.values()), 1000 * ended[0]


def open_after(machine: Machine, network: Namespace, command: str, target: Target, seconds: float) -> float:
    """Run a shell's command in a machine; give for how many milliseconds of the time after it a target was open."""
    _, go = _ready(machine, command)
    watch = Watch(network, [target])
    watch.run(go, lambda watch: watch.elapsed > seconds)
    return 1000 * seconds * len(watch.heard[target]) / watch.attempts


def _ready(machine: Machine, command: str) -> tuple[subprocess.Popen[str], Callable[[], None]]:
    """Have a shell wait inside, so that the way in is not measured; give it, and what lets it go."""
    process = machine.popen(["sh", "-c", f"read go; {command}"])

    def go() -> None:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()

    return process, go
