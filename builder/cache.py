"""The folder where systems and packages stay that were built, between runs and between checkouts."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from builder.system import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

VARIABLE = "NFTGUARD_BOOT_CACHE"
"""The environment variable that names another folder."""

_DEFAULT = "/var/tmp/nftguard-boot"  # noqa: S108 - root's own, as folder() sees to
_DAY = 86400


def folder() -> Path:
    """Give the folder; make it if need be. Root runs what is in it, so it must be root's alone."""
    path = Path(os.environ.get(VARIABLE) or _DEFAULT).absolute()
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022 or path.is_symlink():
        raise PermissionError(f"{path} must belong to root, and no other may write there")
    return path


@contextmanager
def lock(name: str, *, timeout: float) -> Iterator[None]:
    """Be the only one, in whatever process, who builds what `name` says. Raises TimeoutError."""
    with (folder() / f"{name}.lock").open("wb") as stream:
        end = time.monotonic() + timeout
        while not _locked(stream.fileno()):
            if time.monotonic() > end:
                raise TimeoutError(f"another process builds {name}, and is not done after {timeout:g} s")
            time.sleep(0.1)
        yield


def key(parts: Iterable[str | bytes]) -> str:
    """Hash what something is made of."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()[:12]


def fresh(path: Path, days: float) -> bool:
    """Whether it is there and no older than that. Its change time counts: a file keeps the age it had elsewhere."""
    return path.exists() and time.time() - path.lstat().st_ctime < days * _DAY


def kept(kind: str, mark: str, days: float, make: Callable[[Path], None], *, timeout: float = 900.0) -> Path:
    """Give the folder that `make` makes, made now if there is none of this kind and mark, or it is older than that.

    One process at a time makes one of a kind. Raises BuildError where an old one is still in use, TimeoutError where
    another process takes longer than `timeout` seconds, and whatever `make` raises.
    """
    path = folder() / f"{kind}-{mark}"
    with lock(kind, timeout=timeout):
        if not fresh(path, days):
            part = path.with_name(f"{path.name}.part")
            discard(part)
            make(part)
            if not discard(path):
                raise BuildError(f"{path} is too old, and somebody still uses it")
            part.rename(path)
            discard_old(f"{kind}-*", days)
    return path


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep others from discarding a folder that is in use."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def discard(path: Path) -> bool:
    """Remove a file or folder, unless somebody (a running machine) holds a lock on it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _locked(descriptor):
            return False
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(descriptor)
    return True


def discard_old(pattern: str, days: float) -> None:
    """Remove what matches and is older than that, and whatever an interrupted builder left."""
    for path in folder().glob(pattern):
        if path.suffix != ".lock" and not fresh(path, days):
            discard(path)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
