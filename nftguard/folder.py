"""A file that another process writes: to hear when it changes, and to read it without trust in who wrote it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from nftguard import inotify
from nftguard.errors import UnavailableError

if TYPE_CHECKING:
    from pathlib import Path


_READS = 16  # times 64 KiB; more wait until the next call


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
        self.fd = inotify.begin(f"{path} cannot be watched")
        try:
            self._above = inotify.add(self.fd, path.parent.parent, inotify.MOVED | inotify.CREATE)
        except OSError as error:
            os.close(self.fd)
            raise UnavailableError(f"{path} cannot be watched: {path.parent.parent}: {error.strerror}") from None
        self._enter()

    def close(self) -> None:
        """Stop listening."""
        os.close(self.fd)

    def changed(self) -> bool:
        """Take in what happened, and tell whether the file may be another now; never waits."""
        found = False
        for watch, mask, name in inotify.read(self.fd, _READS):
            if mask & inotify.OVERFLOW or (watch == self._above and name == self._path.parent.name):
                self._enter()
                found = True
            elif watch != self._above and name == self._path.name:
                found = True
        return found

    def _enter(self) -> None:
        """Listen to the folder, which may be a new one; that of an old one ends with it."""
        with suppress(OSError):  # it may not be there yet
            inotify.add(self.fd, self._path.parent, inotify.WRITTEN | inotify.MOVED | inotify.DELETE)
