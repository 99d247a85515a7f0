"""A file that another process writes: to hear when it changes, and to read it without trust in who wrote it."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from typing import TYPE_CHECKING

from nftguard.errors import UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

# linux/include/uapi/linux/inotify.h; inotify(7)
_WRITTEN, _MOVED, _CREATE, _DELETE, _OVERFLOW, _ONLY_DIRECTORIES = 8, 0xC0, 0x100, 0x200, 0x4000, 0x01000000
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
_libc = ctypes.CDLL(None, use_errno=True)


def read(path: Path, most: int, *, links: bool = False) -> bytes | None:
    """Read a regular file, one byte more than `most` at most; None where there is none. `links`: also through a link.

    Raises OSError where it cannot be read, and ValueError where it is no regular file.
    """
    try:
        # A FIFO would be waited for, and a link could lead to a file that only the reader may read.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as stream:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is not a regular file")
        return stream.read(most + 1)


class Watch:
    """Hears when a file is replaced, was written, or is removed, also together with its folder.

    The folder need not be there yet; the folder above must. `fd` is for a selector.
    """

    def __init__(self, path: Path) -> None:
        """Begin to listen. Raises UnavailableError where inotify cannot be had, or the folder above is not there."""
        self._path = path
        self.fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            reason = os.strerror(ctypes.get_errno())
            raise UnavailableError(f"{path} cannot be watched: inotify: {reason}; see fs.inotify.max_user_instances")
        self._above = self._add(path.parent.parent, _MOVED | _CREATE)
        if self._above < 0:
            reason = os.strerror(ctypes.get_errno())
            os.close(self.fd)
            raise UnavailableError(f"{path} cannot be watched: {path.parent.parent}: {reason}")
        self._enter()

    def close(self) -> None:
        """Stop listening."""
        os.close(self.fd)

    def changed(self) -> bool:
        """Take in what happened, and tell whether the file may be another now; never waits."""
        found = False
        for _ in range(16):  # some thousand events; more wait until the next call
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:  # nothing waits
                break
            found = self._take(data) or found
        return found

    def _take(self, data: bytes) -> bool:
        at, found = 0, False
        while at + _EVENT.size <= len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            name = os.fsdecode(data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0"))
            at += _EVENT.size + length
            if mask & _OVERFLOW or (watch == self._above and name == self._path.parent.name):
                self._enter()
                found = True
            elif watch != self._above and name == self._path.name:
                found = True
        return found

    def _enter(self) -> None:
        """Listen to the folder, which may be a new one; that of an old one ends with it."""
        self._add(self._path.parent, _WRITTEN | _MOVED | _DELETE)

    def _add(self, folder: Path, mask: int) -> int:
        return int(_libc.inotify_add_watch(self.fd, os.fsencode(folder), mask | _ONLY_DIRECTORIES))
