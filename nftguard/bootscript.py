"""The last applied ruleset as an nft script, loaded before anything heavy is imported.

A start is protected some 100 ms earlier this way. The script counts only while the fingerprint in its first line fits:
that of the configuration's file list and contents, of /etc/services (which names ports) and of the program's version.
Modification times would not do: `cp -p` and a removed drop-in leave none behind. `boot.sh`, which loads the script at
boot without Python, takes the same fingerprint with b2sum; a test holds the two together.

Imported first of all, so this module imports next to nothing (hashlib takes 11 ms, pathlib 16, `_blake2` none).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # not `signal`, which costs 3 ms of enum
import fcntl
import os
from _blake2 import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SIGNALS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)
"""The signals that the daemon handles."""

DEFAULT_CONFIG = "/etc/nftguard.toml"
NAME = "last.nft"
_VERSION = os.path.join(os.path.dirname(__file__), "__init__.py")  # noqa: PTH118, PTH120


def run_dir() -> str:
    """Name the folder for what ends with the boot: the lock, the control socket and status.json."""
    return os.environ.get("RUNTIME_DIRECTORY") or "/run/nftguard"


def state_dir() -> str:
    """Name the folder for what outlives a boot: this script."""
    return os.environ.get("STATE_DIRECTORY") or "/var/lib/nftguard"


def fingerprint(config: str, besides: tuple[str, ...] = ("/etc/services", _VERSION)) -> str:
    """Hash what decides what the table looks like: as `b2sum -l 128 FILE… | b2sum -l 128` does.

    With nothing besides it is that of the configuration's files alone, which an upgrade of the program leaves as it is.
    """
    drop_ins = os.path.splitext(config)[0] + ".d"  # noqa: PTH122
    try:
        names = sorted(name for name in os.listdir(drop_ins) if name.endswith(".toml") and name[0] != ".")  # noqa: PTH208
    except OSError:
        names = []
    listing = blake2b(digest_size=16)
    for path in [config, *(os.path.join(drop_ins, name) for name in names), *besides]:  # noqa: PTH118
        try:
            # A FIFO would be waited for.
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
                content = blake2b(stream.read() or b"", digest_size=16)
        except OSError:
            continue
        listing.update(f"{content.hexdigest()}  {path}\n".encode(errors="surrogateescape"))
    return listing.hexdigest()


def first_line(mark: str) -> str:
    """Give the line that says for which fingerprint a script was written."""
    return f"# nftguard {mark}\n"


END = "# end\n"
"""The last line: nft takes the beginning of a script that was cut for a whole one."""


def early(arguments: list[str]) -> Any:
    """Load the script if this is to become the service; return the libnftables context for further use, or None.

    The script creates the table and so leaves one that is there alone. Whatever goes wrong here is found again, and
    told, by the reconcile that follows.
    """
    match arguments:
        case ["run"]:
            config = DEFAULT_CONFIG
        case ["--config", config, "run"]:
            pass
        case [word, "run"] if word.startswith("--config="):
            config = word.removeprefix("--config=")
        case _:
            return None
    # Until the daemon can act on them: a stop in the first 200 ms must still lift the rules.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)
    try:
        with open(os.path.join(state_dir(), NAME), encoding="ascii") as stream:  # noqa: PTH118, PTH123
            if stream.readline() != first_line(fingerprint(config)) or _running():
                return None
            script = stream.read()
        if not script.endswith(END):
            return None
        import nftables

        context = nftables.Nftables()
    except (ImportError, OSError, ValueError):
        return None
    context.cmd(script)
    return context


def _running() -> bool:
    """Whether a daemon holds the lock: then the rules are its business, also when it was told to lift them."""
    try:
        with open(os.path.join(run_dir(), "lock"), "rb") as stream:  # noqa: PTH118, PTH123
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
