"""Where the documentation's commands are run: in login sessions of root and of alice on a machine.

    python -m tests.boot.console docs/journal.md debian12 [--write]

runs a page and shows what differs; --write puts what was printed in the page, in the place of what was shown.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

from tests.boot import docs, image
from tests.boot.base import CHECKOUT
from tests.boot.machine import Machine
from tests.boot.suites import SUITES

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

_TIMEOUT = 30.0  # seconds, of one command
_QUIET = 0.1  # seconds without a word, after which it is looked whether it waits for an answer
# What logind and sshd would make of two people who log in: each session is a scope, with a process of sshd in it.
_SSHD = "open('/proc/self/comm', 'w').write('sshd'); import signal; signal.pause()"
_PREPARE = f"""
echo 'u alice 1000 "Alice" /home/alice /bin/bash' | systemd-sysusers -
install -d -o alice -g alice /home/alice
begin() {{
    systemd-run --quiet --scope --unit="$1" --slice="$2" \\
        --uid="$3" python3 -c "{_SSHD}" >/dev/null 2>&1 &
    until grep -q sshd $(sed 's,^,/proc/,; s,$,/comm,' "/sys/fs/cgroup/user.slice/$2/$1.scope/cgroup.procs"); do
        sleep 0.02
    done 2>/dev/null
}}
begin session-1 user-0.slice root
begin session-2 user-1000.slice alice
"""
_ENTER = 'echo 0 >"/sys/fs/cgroup/user.slice/$1/cgroup.procs" && cd "$2" && shift 2 && exec "$@" 2>&1'
_ROOT = ("user-0.slice/session-1.scope", "/root")
_ALICE = (
    *("user-1000.slice/session-2.scope", "/home/alice"),
    *("setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "--inh-caps=-all", "--"),
    *("env", "HOME=/home/alice", "USER=alice"),
)


class MachineConsole:
    """A machine, as somebody sees it who has logged in."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.release = str(machine.suite)
        machine.run(["bash", "-ec", _PREPARE])

    def run(self, command: str, *, root: bool) -> tuple[int, str]:
        """Run a command in a shell, and give its exit code and what it printed."""
        done = self._machine.run(_shell(command, root=root), check=False, timeout=_TIMEOUT)
        return done.returncode, done.stdout + done.stderr

    def talk(self, command: str, *, root: bool, typed: str | None, enough: Callable[[str], bool]) -> tuple[int, str]:
        """Run one that asks for something to be typed, or one that is interrupted when it has printed enough."""
        return talk(self._machine.popen(_shell(command, root=root)), typed, enough)

    def write(self, path: str, text: str) -> None:
        """Write a file; one that begins like a script may be executed."""
        self._machine.write_file(path, text, 0o755 if text.startswith("#!") else 0o644)


def talk(process: subprocess.Popen[str], typed: str | None, enough: Callable[[str], bool]) -> tuple[int, str]:
    """See a process through, as `Console.talk` does; what is typed is among what was printed, as on a terminal."""
    assert process.stdin
    assert process.stdout
    printed, end = "", time.monotonic() + _TIMEOUT
    while time.monotonic() < end:
        if select.select([process.stdout], [], [], _QUIET)[0]:
            if not (piece := os.read(process.stdout.fileno(), 65536)):
                break
            printed += piece.decode(errors="replace")
        elif typed is not None and printed.endswith(": "):
            process.stdin.write(f"{typed}\n")
            process.stdin.flush()
            printed += f"{typed}\n"
            typed = None
        elif enough(printed):
            process.send_signal(signal.SIGINT)
            break
    else:
        process.kill()
    return process.wait(_TIMEOUT), printed


def _shell(command: str, *, root: bool) -> list[str]:
    return ["sh", "-c", _ENTER, "sh", *(_ROOT if root else _ALICE), "bash", "-c", command]


def main() -> int:
    """Run one page."""
    path, release = CHECKOUT / sys.argv[1], sys.argv[2]
    [suite] = [suite for suite in SUITES if str(suite) == release]
    page = path.read_text()
    with Machine(image.bare(suite) if docs.bare(page) else image.prepare(suite)) as machine:
        begun = time.monotonic()
        found = list(docs.run(page, MachineConsole(machine)))
        sys.stdout.writelines(f"{one}\n\n" for one in found)
        sys.stdout.write(f"{path.name} on {release}: {len(found)} differ; {time.monotonic() - begun:.1f} s\n")
    if "--write" in sys.argv:
        path.write_text(docs.written(page, found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
