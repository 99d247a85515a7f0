"""The processes of a control group, and which of them holds a socket.

Names of processes are theirs to choose, and process ids are used again: what is read of a process is read through one
open directory of /proc, which never leads to another process (linux/fs/proc/base.c, pid_revalidate).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nftguard.names import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MOST = 32  # processes looked at in one group
_LINE = 256  # characters of a command line
_DESCRIPTORS = 4096  # looked at for one socket, in all
_READ = 4096  # bytes: enough for stat and for what is shown of a command line


@dataclass(frozen=True, slots=True)
class Process:
    """One process. `name` is that of its main thread, cleaned, as /proc/PID/comm gives it."""

    pid: int
    name: str
    uids: frozenset[int]  # real, effective, saved and that for files
    started: int  # in clock ticks since boot

    def __str__(self) -> str:
        """Give it as it is listed: `curl[812]`."""
        return f"{self.name}[{self.pid}]"


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that were in a control group at one moment; not `complete` where there may be others."""

    processes: tuple[Process, ...] = ()
    complete: bool = False

    def of(self, uid: int | None) -> tuple[Process, ...]:
        """List the candidates for a socket of that user.

        A socket keeps the user that made it: root's may be held by a process that is no longer root's, so for root, and
        for None (not known), every process is a candidate.
        """
        return tuple(found for found in self.processes if not uid or uid in found.uids)


@dataclass(frozen=True, slots=True)
class Program:
    """The program behind a socket: its name is sure, and so is the process where there is one."""

    name: str
    process: Process | None = None


@dataclass(frozen=True, slots=True)
class Details:
    """More of one process, cleaned. `exe` is empty without CAP_SYS_PTRACE; `parent` is `bash[811]`."""

    exe: str = ""
    cmdline: str = ""
    parent: str = ""


def of(directory: Path) -> Group:
    """List the processes of a control group, not of those below it, up to MOST.

    Each was in the group at the moment of the second reading of its list: alive before it and after it under that
    number.
    """
    with contextlib.ExitStack() as stack:
        before, complete = _members(directory)
        opened: list[tuple[Process, int]] = []
        for pid in before:
            try:
                folder = stack.enter_context(_opened(f"/proc/{pid}"))
                opened.append((_process(pid, folder), folder))
            except (OSError, ValueError):  # gone, or hidden from us
                continue
        after, whole = _members(directory)
        found = tuple(process for process, folder in opened if process.pid in after and _alive(folder))
    # Whoever came in between was not looked at.
    return Group(found, complete and whole and set(after) <= {process.pid for process in found})


def certain(group: Group, uid: int | None, still_open: Callable[[], bool]) -> Program | None:
    """Name the program behind a socket of the group that `uid` made, only where it cannot be another; else None.

    The rule, which needs no access to descriptors: an open socket is held by a process, in the group that made it. If
    the group was listed while the socket was open, then its holder is listed; if all candidates have the same name, it
    is the program's, and a sole candidate is the process. `still_open` asks the kernel, and is called after the
    listing: whoever sent and ended before is not in the list, but then its socket has ended too, so that a shell is not
    taken for what it started.

    It assumes that no descriptor was passed to another group, and that the process did not move here or away after it
    had made the socket, as that of a login does. The name is the main thread's, and a process may change its own.
    """
    candidates = group.of(uid)
    if not group.complete or not candidates or len({found.name for found in candidates}) > 1 or not still_open():
        return None
    return Program(candidates[0].name, candidates[0] if len(candidates) == 1 else None)


def holder(group: Group, inode: int) -> Program | None:
    """Name the program that has the socket with this inode open, exactly; None where that cannot be told.

    Needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH for the processes of others (proc_pid_fd(5)). Where several processes
    share the socket, as after fork(2), the process is not sure, and the program only when they have the same name.
    """
    link, left = f"socket:[{inode}]", _DESCRIPTORS
    found: list[Process] = []
    for process in group.processes:
        with contextlib.suppress(OSError), opened(process) as folder, _opened("fd", folder) as descriptors:
            with os.scandir(descriptors) as entries:
                names = [entry.name for entry in itertools.islice(entries, left)]
            left -= len(names)
            if any(_target(name, descriptors) == link for name in names):
                found.append(process)
    if len({process.name for process in found}) != 1:
        return None
    return Program(found[0].name, found[0] if len(found) == 1 else None)


def details(process: Process) -> Details:
    """Read more of a process; what cannot be read is empty, and all of it where the process has ended."""
    try:
        with opened(process) as folder:
            line = read("cmdline", folder)
            return Details(clean(_target("exe", folder)), _quoted(line), _parent(folder))
    except OSError:
        return Details()


def head(directory: Path) -> Process | None:
    """Give the first process of a control group; None where there is none that can be seen."""
    for pid in _members(directory)[0]:
        try:
            with _opened(f"/proc/{pid}") as folder:
                process = _process(pid, folder)
                return process if pid in _members(directory)[0] and _alive(folder) else None
        except (OSError, ValueError):
            continue
    return None


@contextlib.contextmanager
def opened(process: Process) -> Iterator[int]:
    """Open the directory of this very process in /proc. Raises OSError where it has ended."""
    with _opened(f"/proc/{process.pid}") as folder:
        if _started(_stat(folder)) != process.started:
            raise ProcessLookupError(process.pid)
        yield folder


def read(name: str, folder: int, most: int = _READ) -> bytes:
    """Read a file of an opened process, up to `most` bytes. Raises OSError."""
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), "rb") as file:  # noqa: PTH123 - a descriptor
        return file.read(most)


def _members(directory: Path) -> tuple[list[int], bool]:
    """List the process ids of a group, and tell whether these are all."""
    try:
        with (directory / "cgroup.procs").open("rb", buffering=0) as file:
            data = file.read(12 * MOST) or b""
            more = file.read(1)
    except OSError:  # gone, or a group of threads (EOPNOTSUPP)
        return [], False
    pids = [int(line) for line in data.split(b"\n")[:-1]]
    # 0 is a process of another process namespace, and the last line may have been cut
    return [pid for pid in pids if pid][:MOST], not more and 0 not in pids and len(pids) <= MOST


@contextlib.contextmanager
def _opened(name: str, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _process(pid: int, folder: int) -> Process:
    status = _stat(folder)
    # The name in `status` is escaped (linux/fs/proc/array.c, proc_task_name), so that no name makes a line of its own.
    uids = re.search(rb"\nUid:\t([0-9\t]+)\n", read("status", folder))
    if not uids:
        raise ValueError(pid)
    return Process(pid, clean(status[0]), frozenset(map(int, uids[1].split())), _started(status))


def _stat(folder: int) -> tuple[bytes, list[bytes]]:
    """Give the name and the fields behind it, from the state on (proc_pid_stat(5)); the name may hold parentheses."""
    head, _, rest = read("stat", folder).rpartition(b")")
    fields = rest.split()
    if len(fields) < 20:
        raise ProcessLookupError
    return head.partition(b"(")[2], fields


def _started(stat: tuple[bytes, list[bytes]]) -> int:
    return int(stat[1][19])


def _parent(folder: int) -> str:
    try:
        pid = int(_stat(folder)[1][1])
        with _opened(f"/proc/{pid}") as above:
            name = clean(_stat(above)[0])
        # Still its parent: then it has not ended meanwhile, and the number was not another's.
        return f"{name}[{pid}]" if int(_stat(folder)[1][1]) == pid else ""
    except OSError:
        return ""


def _alive(folder: int) -> bool:
    try:
        os.stat("stat", dir_fd=folder)
    except OSError:
        return False
    return True


def _target(name: str, folder: int) -> str:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return ""


def _quoted(line: bytes) -> str:
    """Give a command line as a shell would take it, cut to what is kept of it."""
    text = " ".join(shlex.quote(clean(argument, _READ)) for argument in line.rstrip(b"\0").split(b"\0"))
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"
