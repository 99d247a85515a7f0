"""Files that outlive a process: written whole, the daemon's last word, the single-instance lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from nftguard import __version__, bootscript
from nftguard.errors import BusyError, NotPermittedError, UnavailableError


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file whole: a reader, or a power cut, meets either the old content or the new. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as stream:  # noqa: PTH123
            os.fchmod(stream.fileno(), mode)  # whatever the umask
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
            if os.geteuid() == 0:  # what a verb writes as root, the service's own user must be able to replace
                owner = path.parent.stat()
                os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
        part.rename(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def namespace() -> int:
    """Name the network namespace that this process is in, by its inode."""
    return Path("/proc/self/ns/net").stat().st_ino


def write_status(document: dict[str, Any]) -> None:
    """Write the daemon's last word for those who may not ask the kernel. Raises OSError."""
    write(Path(bootscript.run_dir()) / "status.json", json.dumps(document | {"version": __version__}))


def read_status() -> dict[str, Any] | None:
    """Read the daemon's last word; None where there is none, or one of another version."""
    try:
        document = json.loads((Path(bootscript.run_dir()) / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(document, dict) and document.get("version") == __version__
    return document if known else None


def lock() -> IO[str]:
    """Take the single-instance lock; it is held until the file is closed.

    Raises BusyError, NotPermittedError, and UnavailableError where the folder is of no use.
    """
    path = Path(bootscript.run_dir()) / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="ascii")
    except PermissionError:
        raise NotPermittedError(f"take the lock {path}") from None
    except OSError as error:
        raise UnavailableError(f"the lock {path} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        who = stream.read(20).strip() or "unknown"
        stream.close()
        raise BusyError(
            f"another nftguard is running (process {who}, lock {path}); `nftguard status` shows it"
        ) from None
    with contextlib.suppress(OSError):  # a full /run costs only the name in somebody's message
        os.truncate(stream.fileno(), 0)
        os.write(stream.fileno(), f"{os.getpid()}\n".encode())
    return stream
