"""The names of users, from /etc/passwd alone; and those of groups, whose file begins its lines alike.

Never through the name service switch: it may ask a server over the network and wait for it, in the middle of a flood
of attempts. Users that only a directory service knows have a number and no name here.
"""

from __future__ import annotations

from pathlib import Path

from nftguard import folder
from nftguard.names import clean

_MOST = 4 << 20  # bytes
_LAST = (1 << 32) - 2  # ids have 32 bits, and the last one means "no change" to chown(2)


class Users:
    """Names by user id; the file is read anew when it has changed."""

    def __init__(self, path: Path = Path("/etc/passwd")) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._names: dict[int, str] = {}
        self._ids: dict[str, int] = {}

    def name(self, uid: int) -> str:
        """Give the user's name, fit to be shown; empty where the file has none."""
        self._read()
        return self._names.get(uid, "")

    def ids(self) -> dict[str, int]:
        """Give the ids by name; of two lines with the same name the first counts."""
        self._read()
        return self._ids

    def _read(self) -> None:
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                self._names, self._ids = parse(folder.read(self._path, _MOST, links=True) or b"")
                self._seen = seen
        except (OSError, ValueError):  # replaced at this moment, or unreadable: what was known holds
            pass


def parse(data: bytes) -> tuple[dict[int, str], dict[str, int]]:
    """Read passwd(5) or group(5) both ways: of two lines the first counts, as it does for getpwuid(3)."""
    names: dict[int, str] = {}
    ids: dict[str, int] = {}
    if len(data) > _MOST:
        data = data[: data.rfind(b"\n", 0, _MOST) + 1]  # a line that is cut would name somebody else
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 4 and fields[0] and fields[2].isdigit() and len(fields[2]) <= 10 and int(fields[2]) <= _LAST:
            name = clean(fields[0])
            names.setdefault(int(fields[2]), name)
            ids.setdefault(name, int(fields[2]))
    return names, ids
