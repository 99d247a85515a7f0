"""inotify: the few calls that python has none for, and the events that come of them.

Numbers: linux/include/uapi/linux/inotify.h; inotify(7).
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

from nftguard.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRITTEN, MOVED, CREATE, DELETE = 0x8, 0xC0, 0x100, 0x200  # MOVED: both ways
OVERFLOW, IGNORED = 0x4000, 0x8000

_ONLY_DIRECTORIES = 0x01000000
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
_libc = ctypes.CDLL(None, use_errno=True)


def begin(what: str) -> int:
    """Open a descriptor that never blocks; `what` says what cannot be done without. Raises UnavailableError."""
    descriptor: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise UnavailableError(f"{what}: inotify: {os.strerror(ctypes.get_errno())}; see fs.inotify.max_user_instances")
    return descriptor


def add(descriptor: int, folder: Path, mask: int) -> int:
    """Listen to a folder; give the watch's number. Raises OSError."""
    watch = int(_libc.inotify_add_watch(descriptor, os.fsencode(folder), mask | _ONLY_DIRECTORIES))
    if watch < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return watch


def remove(descriptor: int, watch: int) -> None:
    """Listen to it no more."""
    _libc.inotify_rm_watch(descriptor, watch)


def read(descriptor: int, most: int) -> Iterator[tuple[int, int, str]]:
    """Take in what waits, at most so many times 64 KiB, some 1,500 events; give the watch, mask and name of each."""
    for _ in range(most):
        try:
            data = os.read(descriptor, 1 << 16)
        except OSError:  # nothing waits
            return
        yield from events(data)


def events(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Decode what was read; the name is as `os.fsdecode` gives it."""
    at = 0
    while at + _EVENT.size <= len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        yield watch, mask, os.fsdecode(data[at : at + length].split(b"\0", 1)[0])
        at += length
