"""Control groups: from the id that the kernel gives for a socket or a packet to the path in the cgroup v2 tree.

The id is the inode number of the group's directory, 64 bits that are never used twice while the host is up
(linux/fs/kernfs/dir.c, __kernfs_new_node).
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import inotify
from nftguard.errors import UnavailableError
from nftguard.names import clean
from nftguard.who.owners import estate, unit_at

if TYPE_CHECKING:
    from collections.abc import Callable

_GONE = 8192  # ids remembered after their group has ended
_BELOW = 4096  # groups followed below one unit: its owner may be able to make any number
_BIRTHS = 500  # groups made below one unit within a second; more, and it is not listened to for a while
_MUTED = 60.0  # seconds
_WALK_EVERY = 1.0  # seconds from one walk to the next, at least
_REST = 20  # and so many times what the last one took
_DEPTH = 32
_READS, _ALL = 4, 128  # times 64 KiB; fs.inotify.max_queued_events is 16,384 by default


def mounted(proc: Path = Path("/proc")) -> Path:
    """Find where the cgroup v2 tree is mounted (proc_pid_mountinfo(5)). Raises UnavailableError where it is not."""
    found: list[tuple[bool, str]] = []
    try:
        lines = (proc / "self/mountinfo").read_bytes().split(b"\n")
    except OSError:
        lines = []
    for line in lines:
        mount, _, kind = line.partition(b" - ")
        fields = mount.split(b" ")
        if kind.startswith(b"cgroup2 ") and len(fields) > 4:
            octal = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 255]), fields[4])
            found.append((fields[3] != b"/", os.fsdecode(octal)))
    for _, path in sorted(found, key=lambda one: one[0]):  # a part of the tree may be mounted elsewhere as well
        if Path(path, "cgroup.controllers").exists():  # is not hidden by another mount, nor v1
            return Path(path)
    raise UnavailableError("cgroup v2 is not mounted here: attempts cannot be traced to units")


def ids(root: Path, path: str) -> tuple[int, ...]:
    """Give the ids of a group and of those above it, from below the root on. Raises OSError where one is gone.

    A path is as `Tree.path` gives it; of the root itself there are none.
    """
    folder, found = root, []
    for part in path.split("/"):
        if part:
            folder /= part
            found.append(folder.stat().st_ino)
    return tuple(found)


class Tree:
    """The cgroups of the host by their ids, followed with inotify, so that also a short-lived one is known.

    `fd` is for a selector: whenever it is readable, call `read` at once. A group that ends within the time that this
    takes is never known.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Walk the tree below `root`. Raises UnavailableError where inotify cannot be had."""
        self.root = root
        self.changes = 0
        """Grows whenever a group came or went."""
        self.problem = ""
        """Why not everything can be followed; empty while it can."""
        self._clock = clock
        self._live: dict[int, str] = {}
        self._ids: dict[str, int] = {}
        self._units: dict[str, dict[str, int]] = {}
        self._gone: OrderedDict[int, str] = OrderedDict()
        self._watches: dict[int, str] = {}
        self._below: Counter[str] = Counter()
        self._births: Counter[str] = Counter()
        self._births_since = self._walk_after = clock()
        self._muted: dict[str, float] = {}
        self._partial = False
        self.fd = inotify.begin("units cannot be followed")
        self._walk()

    def close(self) -> None:
        """Stop following."""
        os.close(self.fd)

    def path(self, number: int) -> str:
        """Give the path below the root of an id, as "/system.slice/ssh.service"; empty where it is not known.

        Groups that ended a while ago are known still. As `os.fsdecode` gives it: fit for opening files, to be cleaned
        before it is shown.
        """
        if found := self._known(number):
            return found
        self._drain(_ALL)  # what the id belongs to may stand at the end of the queue
        if not self._known(number) and self._partial and self._clock() >= self._walk_after:
            self._walk()
        return self._known(number)

    def paths(self) -> list[str]:
        """List the paths of the groups that live, parents before their children."""
        return sorted(self._ids)

    def unit(self, name: str) -> dict[str, int]:
        """Give the live groups of a unit of the system's manager, paths to ids: one, but for the moment of a move."""
        return dict(self._units.get(name, {}))

    def directory(self, path: str) -> Path:
        """Give the directory of a path that `path` or `paths` gave."""
        return self.root / path.lstrip("/")

    def _known(self, number: int) -> str:
        return self._live.get(number) or self._gone.get(number, "")

    def read(self) -> None:
        """Take in what changed, up to a bound; never waits."""
        self._drain(_READS)

    def _drain(self, most: int) -> None:
        for watch, mask, name in inotify.read(self.fd, most):
            self._take(watch, mask, name)

    def _take(self, watch: int, mask: int, name: str) -> None:
        if mask & inotify.OVERFLOW:
            self._partial = True
            if self._clock() >= self._walk_after:
                self._walk()
        elif mask & inotify.IGNORED:
            self._watches.pop(watch, None)
        elif (parent := self._watches.get(watch)) is not None and mask & (inotify.CREATE | inotify.DELETE):
            path = f"{parent.rstrip('/')}/{name}"
            if mask & inotify.CREATE:
                self._enter(path)
                self._quieten(path)
            else:
                self._forget(path)

    def _walk(self) -> None:
        """Look at everything anew; what is not there any more is gone."""
        began = self._clock()
        self._partial, self.problem = False, ""
        before = set(self._ids)
        for path in before - set(self._enter("/")):
            self._forget(path)
        ended = self._clock()
        self._walk_after = ended + max(_WALK_EVERY, _REST * (ended - began))

    def _enter(self, path: str) -> list[str]:
        """Know a directory and all below it, the upper ones first; give the paths."""
        found, queue = [], deque([path])
        while queue:
            path = queue.popleft()
            full = self.directory(path)
            try:
                if not self._remember(full.lstat().st_ino, path):  # looked at at once: it may live for milliseconds
                    continue
                found.append(path)
                self._watch(path)
                # Listed once it is watched, so that nothing is missed in between. A group without children has two
                # links (kernfs_refresh_inode), and need not be listed with its fifty files.
                if full.lstat().st_nlink == 2 or path.count("/") >= _DEPTH:
                    continue
                with os.scandir(full) as entries:
                    queue += [f"{path.rstrip('/')}/{one.name}" for one in entries if one.is_dir(follow_symlinks=False)]
            except OSError:  # gone again, or the user has no more room
                continue
        return found

    def _remember(self, number: int, path: str) -> bool:
        """Note what a directory's id is; False where its unit has too many."""
        if self._ids.get(path) == number:
            return True
        self._forget(path)  # ended and made anew
        unit = estate(path)
        if self._below[unit] >= _BELOW:
            self._partial = True
            self.problem = f"more than {_BELOW} control groups in {clean(unit)}: not all of them are followed"
            return False
        self._below[unit] += 1
        self._ids[path] = number
        self._live[number] = path
        if name := unit_at(path):
            self._units.setdefault(name, {})[path] = number
        self.changes += 1
        return True

    def _forget(self, path: str) -> None:
        if (number := self._ids.pop(path, None)) is None:
            return
        unit = estate(path)
        self._below[unit] -= 1
        if not self._below[unit]:
            del self._below[unit]
        self._live.pop(number, None)
        if (name := unit_at(path)) and (there := self._units.get(name)):
            there.pop(path, None)
            if not there:
                del self._units[name]
        self._gone[number] = path
        if len(self._gone) > _GONE:
            self._gone.popitem(last=False)
        self.changes += 1

    def _watch(self, path: str) -> None:
        unit = estate(path)
        if self._clock() < self._muted.get(unit, 0.0):
            self._tell_muted(unit)
            return
        try:
            self._watches[inotify.add(self.fd, self.directory(path), inotify.CREATE | inotify.DELETE)] = path
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.ENOMEM}:
                self._partial = True
                self.problem = "the kernel gives no more inotify watches (fs.inotify.max_user_watches)"

    def _quieten(self, path: str) -> None:
        """Listen no more, for a while, to a unit that makes groups without end: each costs us a look."""
        now, unit = self._clock(), estate(path)
        if path == unit:  # systemd made it
            return
        if now >= self._births_since + 1.0:
            self._births.clear()
            self._births_since = now
            self._muted = {name: end for name, end in self._muted.items() if now < end}
        self._births[unit] += 1
        if self._births[unit] <= _BIRTHS:
            return
        self._muted[unit] = now + _MUTED
        self._tell_muted(unit)
        for watch, watched in list(self._watches.items()):
            if estate(watched) == unit:
                inotify.remove(self.fd, watch)
                del self._watches[watch]

    def _tell_muted(self, unit: str) -> None:
        self._partial = True
        self.problem = f"{clean(unit)} makes control groups without end: they are not followed for a while"
